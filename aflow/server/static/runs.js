// The list of runs: filter words, what is going on above, select many, act on them.
// @ts-check
import {
  Bar, Behind, Link, Notice, Skeleton, State, Time, ask, attempt, confirm, count, get, html, now, query, runPath, setQuery, span, took, useEffect, useRef, useState, useTopic, withQuery, go,
} from "./lib.js";

const PAGE = 50;
const CHIPS = [["", "All"], ["state:running", "Running"], ["state:failed", "Failed"], ["state:succeeded", "Succeeded"], ["since:1d", "Last day"]];
const WORDS = ["flow:", "state:running", "state:failed", "state:succeeded", "state:cancelled", "tag:", "user:", "since:1d", "since:7d", "until:", "id:", "param."];

export function RunsPage() {
  const filter = query("filter");
  const [runs, setRuns] = useState(/** @type {any[] | null} */ (null));
  const [cursor, setCursor] = useState(/** @type {string | null} */ (null));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [chosen, setChosen] = useState(/** @type {Set<string>} */ (new Set()));
  const size = useRef(PAGE);
  const [tick, setTick] = useState(0);
  const throttle = useRef(0);
  useTopic("runs", (name) => {
    if (name !== "runs") return;
    clearTimeout(throttle.current);
    throttle.current = /** @type {any} */ (setTimeout(() => setTick((n) => n + 1), 400));
  });
  useEffect(() => {
    size.current = PAGE;
    setRuns(null);
  }, [filter]);
  useEffect(() => {
    const stop = new AbortController();
    const path = withQuery("v1/search", { filter, limit: Math.min(size.current, 200) });
    get(path, { signal: stop.signal }).then(
      (answer) => (setRuns(answer.runs), setCursor(answer.cursor), setError(null)),
      (said) => stop.signal.aborted || setError(said),
    );
    return () => stop.abort();
  }, [filter, tick]);
  const more = async () => {
    const answer = await attempt(() => get(withQuery("v1/search", { filter, limit: PAGE, cursor })), "");
    if (!answer) return;
    size.current += PAGE;
    setRuns([...(runs || []), ...answer.runs]);
    setCursor(answer.cursor);
  };
  const last = useRef(/** @type {any} */ (null));
  useEffect(() => {
    if (!cursor || !last.current) return;
    const watch = new IntersectionObserver((seen) => seen[0].isIntersecting && more(), { rootMargin: "600px" });
    watch.observe(last.current);
    return () => watch.disconnect();
  }, [cursor, runs]);
  const toggle = (/** @type {string} */ path) => {
    const next = new Set(chosen);
    next.has(path) ? next.delete(path) : next.add(path);
    setChosen(next);
  };
  return html`
    <div class="head"><h1>Runs</h1>
      <div class="chips">${CHIPS.map(([words, title]) => html`<button aria-pressed=${filter === words} onClick=${() => setQuery({ filter: words }, false)}>${title}</button>`)}</div>
      <${Behind} path=${withQuery("v1/search", { filter, limit: PAGE })} />
    </div>
    <${Filter} filter=${filter} />
    ${error && html`<${Notice} kind="bad" retry=${() => setTick(tick + 1)}>${error.message}<//>`}
    ${chosen.size > 0 && html`<${Chosen} chosen=${chosen} clear=${() => (setChosen(new Set()), setTick(tick + 1))} />`}
    ${runs === null && !error && html`<${Skeleton} lines=${12} />`}
    ${runs && runs.length > 0 && html`<${Activity} runs=${runs} />`}
    ${runs && runs.length === 0 && (filter ? html`<${Notice}>No run matches <code>${filter}</code>. <button class="link" onClick=${() => setQuery({ filter: "" })}>Show all runs</button><//>` : html`<${Empty} />`)}
    ${runs && runs.length > 0 && html`<div class="scroll"><table class="list">
      <thead><tr><th><span class="hidden">Select</span></th><th>State</th><th>Run</th><th class="wide">Parameters</th><th>Tasks</th><th>Started</th><th class="right">Duration</th><th>User</th><th class="wide">Tags</th></tr></thead>
      <tbody>${runs.map((run) => html`<${Row} key=${`${run.flow}/${run.run}`} run=${run} chosen=${chosen.has(`${run.flow}/${run.run}`)} toggle=${toggle} />`)}</tbody>
    </table></div>`}
    ${cursor && html`<p ref=${last} class="more"><button onClick=${more}>More runs</button></p>`}`;
}

function Row({ run, chosen, toggle }) {
  const path = `${run.flow}/${run.run}`;
  if (run.state === "running") void now.value;
  return html`<tr data-row class=${chosen ? "chosen" : ""}>
    <td><input type="checkbox" aria-label=${`Select ${path}`} checked=${chosen} onChange=${() => toggle(path)} /></td>
    <td><${State} state=${run.state} label /></td>
    <td class="name"><${Link} to=${runPath(run)}><b>${run.flow}</b><span class="dim">/${run.run}</span><//>
      ${run.reason && html`<div class=${`reason ${run.state}`} title=${run.reason}>${run.reason}</div>`}</td>
    <td class="wide params">${run.parameters.slice(0, 4).map((/** @type {any} */ p) => html`<span title=${`${p.name} = ${p.value}`}><i>${p.name}</i> ${p.value}</span>`)}</td>
    <td><${Bar} tasks=${run.tasks} /></td>
    <td><${Time} at=${run.created_at} /></td>
    <td class="right num">${span(took(run))}</td>
    <td>${run.user}</td>
    <td class="wide tags">${run.tags.slice(0, 3).map((/** @type {string} */ tag) => html`<button class="tag" onClick=${() => setQuery({ filter: `tag:${tag}` }, false)}>${tag}</button>`)}</td>
  </tr>`;
}

function Filter({ filter }) {
  const [text, setText] = useState(filter);
  const [open, setOpen] = useState(false);
  useEffect(() => setText(filter), [filter]);
  const last = text.split(/\s+/).pop() || "";
  const hints = open ? WORDS.filter((word) => word.startsWith(last) && word !== last) : [];
  const complete = (/** @type {string} */ word) => setText(text.slice(0, text.length - last.length) + word);
  return html`<form class="filter" onSubmit=${(/** @type {any} */ e) => (e.preventDefault(), setQuery({ filter: text.trim() }, false))}>
    <input aria-label="Filter runs" value=${text} spellcheck=${false} placeholder="flow:Train state:failed tag:prod user:ann since:7d param.alpha:0.1" onFocus=${() => setOpen(true)} onBlur=${() => setTimeout(() => setOpen(false), 150)}
      onInput=${(/** @type {any} */ e) => setText(e.target.value)} onKeyDown=${(/** @type {any} */ e) => e.key === "Tab" && last && hints[0] && (complete(hints[0]), e.preventDefault())} />
    ${hints.length > 0 && html`<div class="hints">${hints.map((word) => html`<button type="button" onMouseDown=${(/** @type {any} */ e) => (e.preventDefault(), complete(word))}>${word}</button>`)}</div>`}
  </form>`;
}

/** How many runs began in each slice of the time that is shown, by state. */
function Activity({ runs }) {
  const first = Math.min(...runs.map((/** @type {any} */ run) => run.created_at));
  const end = now.peek();
  const slices = 48;
  const width = Math.max((end - first) / slices, 60);
  const bars = Array.from({ length: slices }, () => /** @type {Record<string, number>} */ ({}));
  for (const run of runs) {
    const at = Math.min(slices - 1, Math.floor((run.created_at - (end - width * slices)) / width));
    if (at >= 0) bars[at][run.state] = (bars[at][run.state] || 0) + 1;
  }
  const highest = Math.max(...bars.map((bar) => Object.values(bar).reduce((a, b) => a + b, 0)), 1);
  return html`<svg class="activity" viewBox=${`0 0 ${slices * 10} 36`} preserveAspectRatio="none" role="img" aria-label=${`${count(runs.length)} runs over ${span(end - first)}`}>
    ${bars.map((bar, n) => {
      let y = 36;
      return ["succeeded", "cancelled", "failed", "running", "pending"].map((state) => {
        if (!bar[state]) return null;
        const height = (bar[state] / highest) * 34;
        y -= height;
        return html`<rect class=${state} x=${n * 10 + 1} y=${y} width="8" height=${height} rx="1"><title>${bar[state]} ${state}, ${new Date((end - width * (slices - n)) * 1000).toLocaleString()}</title></rect>`;
      });
    })}
  </svg>`;
}

function Chosen({ chosen, clear }) {
  const paths = [...chosen];
  const each = async (/** @type {(path: string) => Promise<any>} */ what, /** @type {string} */ done) => {
    for (const path of paths) if ((await attempt(() => what(path), "")) === null) return;
    await attempt(async () => 1, done);
    clear();
  };
  const cancel = async () => {
    if (await confirm("Cancel runs?", html`${paths.length} runs are stopped: their tasks end, and what they have left stays.`, "Cancel them"))
      each((path) => ask(`v1/runs/${path}`, { method: "DELETE" }), `${paths.length} runs are being stopped.`);
  };
  const tag = async () => {
    const name = prompt("Tag to add");
    if (name) each((path) => ask(`v1/runs/${path}/tags`, { method: "PATCH", json: { add: [name] } }), `Tagged ${paths.length} runs.`);
  };
  const remove = async () => {
    const plan = await attempt(() => get(`v1/deletion?runs=${encodeURIComponent(paths.join(","))}`), "");
    if (!plan) return;
    const told = html`<p>${plan.runs.length} of ${paths.length} runs can be deleted, with what they alone have left. Runs that go on are kept.</p><ul>${plan.runs.slice(0, 8).map((/** @type {string} */ run) => html`<li>${run}</li>`)}</ul><p>This cannot be undone.</p>`;
    if (await confirm("Delete runs?", told, "Delete them")) each((path) => ask(`v1/runs/${path}/records`, { method: "DELETE" }), "Deleted.");
  };
  return html`<div class="chosen-bar" role="toolbar" aria-label="Selected runs"><b>${paths.length} selected</b>
    <button onClick=${cancel}>Cancel</button><button onClick=${tag}>Tag</button>
    <button disabled=${paths.length < 2 || paths.length > 5} title="Two to five runs" onClick=${() => go(`compare?runs=${paths.join(",")}`)}>Compare</button>
    <button class="danger" onClick=${remove}>Delete</button><button class="quiet" onClick=${clear}>Clear</button></div>`;
}

function Empty() {
  return html`<section class="empty"><h2>No runs yet</h2><p>Three commands make the first one:</p>
    <pre>aflow tutorials pull
cd aflow-tutorials
python 00-hello/hello.py run</pre><p class="dim">This page shows it as soon as it begins.</p></section>`;
}
