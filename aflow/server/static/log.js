// The log of a run or task: fetched in pages, virtualised, followed while the task runs.
// @ts-check
import { get, html, Notice, plural, query, ROOT, Skeleton, setQuery, useEffect, useLayoutEffect, useRef, useState, useTopic, withQuery, woken } from "./lib.js";

const ROW = 19; // pixels, as in app.css
const PIECE = 2000; // lines per request
const KEPT = 400000; // lines that a page keeps

const COLOURS = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];

/**
 * Render a line with ANSI colours as spans. Other control sequences, such as links, are dropped.
 * @param {string} text
 */
export function ansi(text) {
  if (!text.includes("\u001b")) return text;
  // OSC sequences (links, titles) end with BEL or ESC \; CSI sequences with a letter.
  const parts = text.replace(/\u001b\][^\u0007\u001b]*(?:\u0007|\u001b\\)?/g, "").split(/\u001b\[([0-9;?]*)([A-Za-z])/);
  const found = [];
  let look = "";
  for (let n = 0; n < parts.length; n += 3) {
    if (parts[n]) found.push(look ? html`<span class=${look}>${parts[n].replaceAll("\u001b", "")}</span>` : parts[n].replaceAll("\u001b", ""));
    if (parts[n + 2] !== "m") continue;
    const names = new Set(look.split(" ").filter(Boolean));
    for (const code of (parts[n + 1] || "0").split(";").map(Number)) {
      if (code === 0) names.clear();
      else if (code === 1) names.add("ansi-bold");
      else if ((code >= 30 && code <= 37) || (code >= 90 && code <= 97)) {
        for (const name of names) if (name !== "ansi-bold") names.delete(name);
        names.add(`ansi-${COLOURS[code % 10]}`);
      } else if (code === 39) for (const name of names) if (name !== "ansi-bold") names.delete(name);
    }
    look = [...names].join(" ");
  }
  return found;
}

/** @param {{path: string, task?: number, running: boolean, steps?: string[]}} props */
export function Log({ path, task = 0, running, steps = [] }) {
  const step = task ? "" : query("log-step");
  const [lines, setLines] = useState(/** @type {any[]} */ ([]));
  const [search, setSearch] = useState("");
  const [asked, setAsked] = useState("");
  const [loaded, setLoaded] = useState(false);
  const [error, setError] = useState(/** @type {any} */ (null));
  const [follow, setFollow] = useState(true);
  const next = useRef("");
  const [tail, setTail] = useState(/** @type {string | null} */ (null));

  useEffect(() => {
    const stop = new AbortController();
    setLines([]);
    setLoaded(false);
    setTail(null);
    next.current = "";
    (async () => {
      for (let all = /** @type {any[]} */ ([]); !stop.signal.aborted; ) {
        try {
          const answer = await get(withQuery(`v1/runs/${path}/log`, { task: task || "", step, after: next.current, search: asked, limit: PIECE }), {
            signal: stop.signal,
          });
          next.current = answer.next;
          all = all.concat(answer.lines);
          setLines(all);
          setLoaded(true);
          setError(null);
          if (!answer.end && all.length < KEPT) continue;
          setTail(next.current);
          return;
        } catch (reason) {
          const error = /** @type {any} */ (reason);
          if (stop.signal.aborted) return;
          setError(error);
          if (error.status !== 0 && error.status < 500) return;
          await new Promise((resolve) => setTimeout(resolve, 2000)); // then continue at the same position
        }
      }
    })();
    return () => stop.abort();
  }, [path, task, step, asked, woken.value]);

  const topic = running && tail !== null && !asked && !step ? `logs:${path}${task ? `/${task}` : ""}` : null;
  useTopic(
    topic,
    (name, data) => {
      if (name !== "lines" || data.run !== path || (data.task || 0) !== task) return;
      next.current = data.next;
      setLines((before) => before.concat(data.lines));
    },
    () => `logs:${path}${task ? `/${task}` : ""}@${next.current}`,
  );

  const box = useRef(/** @type {any} */ (null));
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(480);
  const [bar, setBar] = useState(0); // the height of a horizontal scroll bar, which would hide the last line
  useLayoutEffect(() => {
    if (!box.current) return;
    setHeight(box.current.clientHeight);
    setBar(Math.max(0, box.current.offsetHeight - box.current.clientHeight - 2)); // two borders
    if (follow && running) box.current.scrollTop = box.current.scrollHeight;
  }, [lines, follow]);
  const scrolled = () => {
    setTop(box.current.scrollTop);
    if (running) setFollow(box.current.scrollTop + box.current.clientHeight > box.current.scrollHeight - 2 * ROW);
  };
  const first = Math.max(0, Math.floor(top / ROW) - 20),
    end = Math.min(lines.length, first + Math.ceil(height / ROW) + 40);
  const download = new URL(withQuery(`v1/runs/${path}/log.txt`, { task: task || "", step }), ROOT).href;
  const shownTask = !task;
  return html`<section class="log">
    <div class="toolbar">
      <form onSubmit=${(/** @type {any} */ e) => (e.preventDefault(), setAsked(search))}><input type="search" aria-label="Search the whole log" placeholder="Search the whole log" value=${search} onInput=${(/** @type {any} */ e) => (setSearch(e.target.value), e.target.value || setAsked(""))} /></form>
      ${steps.length > 1 && html`<select aria-label="Step" value=${step} onChange=${(/** @type {any} */ e) => setQuery({ "log-step": e.target.value })}><option value="">all steps</option>${steps.map((s) => html`<option>${s}</option>`)}</select>`}
      ${running && html`<label class="check"><input type="checkbox" checked=${follow} onChange=${(/** @type {any} */ e) => setFollow(e.target.checked)} /> Follow</label>`}
      <span class="dim">${!loaded && !lines.length ? "Reading…" : plural(lines.length, "line")}${asked ? ` with “${asked}”` : ""}</span><a class="button" href=${download}>Download</a>
    </div>
    ${error && html`<${Notice} kind="bad">${error.message}<//>`}
    ${loaded && lines.length === 0 && html`<${Notice}>${asked ? "No line contains this text." : running ? "There is no output yet." : "There is no output."}<//>`}
    ${!loaded && !error && lines.length === 0 && html`<${Skeleton} lines=${4} />`}
    <div class="lines" hidden=${lines.length === 0} style=${{ height: `clamp(90px, ${lines.length * ROW + 18 + bar}px, 62vh)` }} ref=${box} onScroll=${scrolled} tabindex="0" role="log" aria-label="Output">
      <div style=${{ height: `${lines.length * ROW}px` }}><div style=${{ transform: `translateY(${first * ROW}px)` }}>
        ${lines.slice(first, end).map((line, n) => html`<div key=${first + n} class=${`line ${line.stream}`}><i title=${new Date(line.at * 1000).toLocaleString()}>${new Date(line.at * 1000).toLocaleTimeString([], { hour12: false })}</i>${shownTask && html`<b>${line.step}/${line.task}</b>`}<span>${ansi(line.text)}</span></div>`)}
      </div></div>
    </div></section>`;
}
