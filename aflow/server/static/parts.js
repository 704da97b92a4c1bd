// The less frequent tabs of a run: artifacts, code, cards, explanation, events; and the form that starts it again.
// @ts-check

import {
  Act,
  ask,
  attempt,
  Behind,
  count,
  get,
  go,
  html,
  Link,
  Notice,
  plural,
  query,
  ROOT,
  Skeleton,
  State,
  setQuery,
  shown,
  size,
  useApi,
  useReading,
  useRef,
  useState,
  withQuery,
} from "./lib.js";
import { Values } from "./run.js";

/** Render the preview of an artifact: a table, a plot, an image or a text. @param {{artifact: any}} props */
export function Preview({ artifact }) {
  const p = artifact.preview || {};
  if (p.rows && p.columns)
    return html`<div class="scroll" tabindex="0"><table class="frame"><thead><tr>${p.columns.map((/** @type {any} */ c, /** @type {number} */ n) => html`<th>${c}${p.dtypes && html`<br /><small>${p.dtypes[n]}</small>`}</th>`)}</tr></thead>
      <tbody>${p.rows.map((/** @type {any[]} */ row) => html`<tr>${row.map((cell) => html`<td>${String(cell)}</td>`)}</tr>`)}</tbody></table><small class="dim">${p.shape ? `${plural(p.shape[0], "row")} × ${plural(p.shape[1], "column")}` : ""}</small></div>`;
  if (p.histogram) {
    const highest = Math.max(...p.histogram, 1);
    return html`<span class="histogram"><svg viewBox=${`0 0 ${p.histogram.length * 6} 24`} width=${p.histogram.length * 6} height="24" role="img" aria-label="histogram">${p.histogram.map((/** @type {number} */ n, /** @type {number} */ at) => html`<rect x=${at * 6} y=${24 - (n / highest) * 24} width="5" height=${(n / highest) * 24} />`)}</svg>
      <small>${p.shape ? `${p.shape.join(" × ")} ${p.dtype}` : p.dtype}, ${p.min} to ${p.max}</small></span>`;
  }
  if (p.image) return html`<img class="preview" alt=${artifact.name} src=${`data:${p.image_type || "image/png"};base64,${p.image}`} />`;
  if (p.json !== undefined) return html`<pre class="json" tabindex="0">${p.json}</pre>`;
  return html`<code>${artifact.text}</code>`;
}

export function Artifacts({ path, version }) {
  const found = useApi(`v1/runs/${path}/artifacts`, version);
  const search = query("name"),
    step = query("step");
  return shown(
    found,
    (data) => html`
    <div class="toolbar"><input aria-label="Filter artifacts" placeholder="Name or type" value=${search} onInput=${(/** @type {any} */ e) => setQuery({ name: e.target.value })} />
      <select aria-label="Step" value=${step} onChange=${(/** @type {any} */ e) => setQuery({ step: e.target.value })}><option value="">all steps</option>${data.steps.map((/** @type {any} */ s) => html`<option>${s.step}</option>`)}</select><${Behind} path=${`v1/runs/${path}/artifacts`} /></div>
    ${data.steps
      .filter((/** @type {any} */ s) => !step || s.step === step)
      .map(
        (
          /** @type {any} */ step,
        ) => html`<section><h2>${step.step} <small class="dim">${plural(step.count, "task")}${step.count > step.tasks.length ? `, the first ${step.tasks.length} shown` : ""}</small></h2>
      ${step.tasks.map((/** @type {any} */ task) => {
        const left = task.artifacts.filter((/** @type {any} */ a) => `${a.name} ${a.type}`.toLowerCase().includes(search.toLowerCase()));
        return (
          left.length > 0 &&
          html`<div class="scroll"><table class="values left"><caption><${Link} to=${`runs/${path}/tasks/${task.task}`}>task ${task.task}<//></caption><tbody>
          ${left.map(
            (
              /** @type {any} */ a,
            ) => html`<tr><td><b>${a.name}</b></td><td class="dim">${a.type}</td><td class="num dim">${size(a.size)}</td><td><${Preview} artifact=${a} /></td>
          <td><a href=${new URL(`v1/runs/${path}/tasks/${task.task}/artifacts/${a.name}`, ROOT).href} title="The pickle">↓</a></td></tr>`,
          )}</tbody></table></div>`
        );
      })}
      ${step.tasks.map((/** @type {any} */ task) => task.damaged && html`<${Notice} kind="warn">${task.damaged}<//>`)}
      ${step.tasks.every((/** @type {any} */ task) => task.artifacts.length === 0 && !task.damaged) && html`<p class="dim">The step set no artifacts.</p>`}</section>`,
      )}
    ${data.steps.length === 0 && html`<${Notice}>No step has set artifacts yet.<//>`}`,
  );
}

export function Code({ path, data }) {
  const against = query("against");
  const found = useApi(withQuery(`v1/runs/${path}/code`, { against }));
  const others = useApi(withQuery("v1/search", { filter: `flow:${data.flow}`, limit: 30 }));
  const [file, setFile] = useState("");
  const parameters = data.typed_parameters.map((/** @type {any} */ p) => [p.name, p.type, p.value, p.default]);
  return html`
    ${parameters.length > 0 && html`<h2>Parameters</h2><${Values} rows=${parameters} />`}
    ${data.constants.length > 0 && html`<h2>Configs and constants</h2><${Values} rows=${data.constants.map((/** @type {any} */ c) => [c.name, c.type, c.text])} />`}
    <div class="toolbar"><label>Differences to <select value=${against} onChange=${(/** @type {any} */ e) => setQuery({ against: e.target.value })}><option value="">no other run</option>
      ${(others.data?.runs || []).filter((/** @type {any} */ r) => r.run !== data.run).map((/** @type {any} */ r) => html`<option value=${r.run}>${r.run}</option>`)}</select></label></div>
    ${shown(found, (code) => {
      const chosen =
        code.files.find((/** @type {any} */ f) => f.name === file) || code.files.find((/** @type {any} */ f) => f.name === code.script) || code.files[0];
      if (against)
        return code.diff
          ? html`<pre class="diff" tabindex="0">${code.diff.split("\n").map((/** @type {string} */ line) => html`<span class=${line.startsWith("+") ? "add" : line.startsWith("-") ? "del" : line.startsWith("@@") ? "at" : ""}>${line}</span>`)}</pre>`
          : html`<${Notice}>The code of both runs is the same.<//>`;
      return html`<div class="files"><ul>${code.files.map((/** @type {any} */ f) => html`<li><button aria-pressed=${chosen === f} onClick=${() => setFile(f.name)}>${f.name}</button></li>`)}</ul>
        ${chosen && html`<pre class="source" tabindex="0">${chosen.text.split("\n").map((/** @type {string} */ line, /** @type {number} */ n) => html`<span><i>${n + 1}</i>${line}</span>`)}</pre>`}</div>`;
    })}`;
}

export function Cards({ path, version }) {
  const found = useApi(`v1/runs/${path}/cards`, version);
  const [open, setOpen] = useState("");
  return shown(found, (data) => {
    const card = data.cards.find((/** @type {any} */ c) => `${c.task}/${c.name}` === open) || data.cards[0];
    if (!card) return html`<${Notice}><span>This run has no cards: put <code>@card</code> on a step.</span><//>`;
    return html`<div class="files"><ul>${data.cards.map((/** @type {any} */ c) => html`<li><button aria-pressed=${c === card} onClick=${() => setOpen(`${c.task}/${c.name}`)}>${c.step}/${c.task} <small>${c.id || c.type}</small></button></li>`)}</ul>
      <${Card} path=${path} card=${card} task=${card.task} title=${`Card of ${card.step}`} /></div>`;
  });
}

/** A card in a sandboxed frame: its HTML is not trusted. @param {{path: string, card: any, task: number, title: string}} props */
export function Card({ path, card, task, title }) {
  const theme = document.documentElement.dataset.theme || "";
  const url = new URL(withQuery(`v1/runs/${path}/tasks/${task}/cards/${encodeURIComponent(card.name)}`, { theme }), ROOT).href;
  return html`<iframe class="card" title=${title} sandbox="allow-scripts" src=${url}></iframe>`;
}

export function Explain({ path, version }) {
  const found = useApi(`v1/runs/${path}/explain`, version);
  return shown(
    found,
    (data) =>
      html`<p class="dim">Why each task ran or reused a result.</p><div class="scroll" tabindex="0"><table class="explain"><tbody>${data.lines.map(
        (/** @type {any} */ line) => html`<tr>
    <td><b>${line.step}</b></td><td class="num">${plural(line.count, "task")}</td><td><${State} state=${line.text.startsWith("did not") ? "reused" : line.text.startsWith("it cannot") ? "failed" : "succeeded"} name=${line.text.startsWith("did not") ? "reused" : line.text.startsWith("it cannot") ? "not known" : "ran"} /> ${line.text}</td></tr>`,
      )}</tbody></table></div>`,
  );
}

const BATCHES = 300; // commits whose events are fetched: those of a run of 100,000 tasks take many megabytes

export function Events({ path, version }) {
  const [state, set] = useState(/** @type {{events: any[] | null, error: any}} */ ({ events: null, error: null }));
  const [whole, setWhole] = useState(false);
  const after = whole ? 0 : Math.max(0, version - BATCHES);
  const latest = useRef(after);
  latest.current = after;
  const retry = useReading(
    `${path} ${whole}`,
    version,
    async (signal) => {
      const since = latest.current;
      const answer = await ask(`v1/runs/${path}/events`, { signal, headers: since ? { "Last-Event-ID": String(since) } : {} });
      const found = [];
      for (const block of (await answer.text()).split("\n\n")) {
        const kind = /^event: (.*)$/m.exec(block),
          data = /^data: (.*)$/m.exec(block);
        if (kind && data && kind[1] !== "end") found.push({ kind: kind[1], ...JSON.parse(data[1]) });
      }
      return found;
    },
    (found) => set({ events: found, error: null }),
    (error) => set((was) => ({ ...was, error })),
  );
  const { events, error } = state;
  if (error && !events) return html`<${Notice} kind="bad" retry=${retry}>${error.message}<//>`;
  if (!events) return html`<${Skeleton} />`;
  const last = events.slice(-1000).reverse();
  return html`${error && html`<${Notice} kind="warn" retry=${retry}>This list is not up to date: ${error.message}<//>`}
    ${(after > 0 || events.length > last.length) && html`<p class="dim">The latest ${plural(last.length, "event")}${after > 0 ? html`. <button class="link" onClick=${() => setWhole(true)}>Read all</button>` : ` of ${count(events.length)}.`}</p>`}
    ${events.length === 0 && html`<${Notice}>There are no events yet.<//>`}
    <div class="scroll"><table><tbody>${last.map(
      (
        e,
      ) => html`<tr><td class="num dim">${e.at ? new Date(e.at * 1000).toLocaleTimeString([], { hour12: false }) : "–"}</td><td>${e.kind.replaceAll("_", " ")}</td>
    <td>${e.task !== undefined && html`<${Link} to=${`runs/${path}/tasks/${e.task}`}>${e.step || ""}/${e.task}<//>`}</td><td>${e.state && html`<${State} state=${e.state} label />`}</td><td>${e.reason || (e.count !== undefined ? plural(e.count, "item") : "")}</td></tr>`,
    )}</tbody></table></div>`;
}
/** The form that resumes a run, reruns it from a step, or starts it with other parameters. */
export function Again({ data, path, mode, close }) {
  const [step, setStep] = useState("");
  const [values, setValues] = useState(/** @type {Record<string, string>} */ ({}));
  const resume = mode === "resume" || step !== "";
  const changed = Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined));
  const body = resume ? { step: step || null, parameters: changed } : { parameters: changed };
  const start = async (/** @type {any} */ event) => {
    event.preventDefault();
    const answer = await attempt(() => get(`v1/runs/${path}/${resume ? "resume" : "rerun"}`, { json: body }), "");
    if (answer) close(), go(`runs/${answer.run}`);
  };
  return html`<form class="sheet-inline" onSubmit=${start}>
    <h2>${mode === "resume" ? "Resume" : "Run again"}</h2>
    <label>From <select value=${step} onChange=${(/** @type {any} */ e) => setStep(e.target.value)}>
      <option value="">${mode === "resume" ? "where it stopped" : "the start"}</option>
      ${data.steps.map((/** @type {any} */ s) => html`<option value=${s.step}>step ${s.step}: the results before it are reused</option>`)}
    </select></label>
    <div class="fields">${data.typed_parameters.map(
      (/** @type {any} */ p) => html`<label><span>${p.name} <small class="dim">${p.type}</small></span>
      <input name=${p.name} placeholder=${p.value} value=${values[p.name] ?? ""} onInput=${(/** @type {any} */ e) => setValues({ ...values, [p.name]: e.target.value === "" ? /** @type {any} */ (undefined) : e.target.value })} /></label>`,
    )}</div>
    <p class="dim">The new run uses the code of this run. ${data.typed_parameters.length > 0 && `Empty parameters have the values of this run.${resume ? " Only the steps that run see other values; reused results were computed with the earlier ones." : ""}`}</p>
    <${DryRun} path=${`v1/runs/${path}/${resume ? "resume" : "rerun"}/dry-run`} body=${body} />
    <footer><button type="button" onClick=${close}>Close</button><${Act} class="main">${resume ? "Resume" : "Start"}<//></footer>
  </form>`;
}

/**
 * The dry run of a form: the checked parameters, and the tasks that would run. The result is hidden as soon as the form changes.
 * @param {{path: string, body: any}} props
 */
export function DryRun({ path, body }) {
  const [state, set] = useState(/** @type {{of: string, busy: boolean, found: any, error: string}} */ ({ of: "", busy: false, found: null, error: "" }));
  const of = JSON.stringify([path, body]);
  const look = async () => {
    set({ of, busy: true, found: null, error: "" });
    try {
      set({ of, busy: false, found: await get(path, { json: body }), error: "" });
    } catch (error) {
      set({ of, busy: false, found: null, error: error instanceof Error ? error.message : String(error) });
    }
  };
  const { found, error } = state.of === of ? state : { found: null, error: "" };
  const tasks = (/** @type {number} */ n) => plural(n, "task");
  return html`<div class="forecast"><${Act} type="button" onClick=${look} disabled=${state.busy}>${state.busy ? "Looking…" : "Dry run"}<//> <span class="dim">checks the parameters and shows what would run; it starts nothing.</span>
    ${error && html`<${Notice} kind="bad">${error}<//>`}
    ${
      found &&
      html`<p role="status"><b>${tasks(found.run)} would run</b>${found.reuse > 0 && `, ${tasks(found.reuse)} would be taken over`}${found.after.length > 0 && html`, and then, as their results ask for it: ${found.after.join(", ")}`}.</p>
      <div class="scroll" tabindex="0"><table><thead><tr><th>Step</th><th class="right">Run</th><th class="right">Taken over</th><th>Why</th></tr></thead><tbody>${found.steps.map(
        (/** @type {any} */ s) =>
          html`<tr><td><b>${s.step}</b></td><td class="right num">${count(s.run)}</td><td class="right num">${count(s.reuse)}</td><td>${s.reasons.slice(0, 3).map((/** @type {any} */ r) => html`<div>${r.text.replace(/^would (not )?run: /, "")}${s.reasons.length > 1 && html` <small class="dim">${tasks(r.count)}</small>`}</div>`)}</td></tr>`,
      )}</tbody></table></div>
      ${found.parameters.length > 0 && html`<${Values} rows=${found.parameters.map((/** @type {any} */ p) => [p.name, p.type, p.value])} />`}`
    }</div>`;
}
