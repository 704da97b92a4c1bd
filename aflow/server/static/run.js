// One run: its graph and steps, timeline, tasks, logs, artifacts, code, cards, explanation, events.
// @ts-check

import { Graph } from "./graph.js";
import {
  ask,
  attempt,
  Bar,
  Behind,
  confirm,
  copy,
  count,
  get,
  go,
  html,
  Link,
  Notice,
  now,
  query,
  ROOT,
  Skeleton,
  State,
  setQuery,
  shown,
  size,
  span,
  Tabs,
  Time,
  took,
  useApi,
  useEffect,
  useReading,
  useRef,
  useRunVersion,
  useState,
  withQuery,
} from "./lib.js";
import { Log } from "./log.js";
import { Tasks } from "./tasks.js";
import { Timeline, useColumns } from "./timeline.js";

export function RunPage({ flow, run }) {
  const path = `${flow}/${run}`;
  const version = useRunVersion(path);
  const found = useApi(`v1/runs/${path}/overview`, version);
  useEffect(() => {
    document.title = `${path} · aflow`;
    return () => (document.title = "aflow");
  }, [path]);
  const tab = query("tab") || "overview";
  const columns = useColumns(tab === "timeline" ? path : null, version);
  return shown(
    found,
    (data) => html`
    <${Head} data=${data} path=${path} />
    <${Tabs} tabs=${[["overview", "Overview"], ["timeline", "Timeline"], ["tasks", "Tasks", count(sum(data.tasks))], ["logs", "Logs"], ["artifacts", "Artifacts"], ["code", "Parameters and code"], ["cards", "Cards"], ["explain", "Explain"], ["events", "Events"]]} />
    <div role="tabpanel">
      ${tab === "overview" && html`<${Overview} data=${data} path=${path} />`}
      ${tab === "timeline" && html`<${Timeline} path=${path} running=${data.state === "running"} found=${columns} />`}
      ${tab === "tasks" && html`<${Tasks} path=${path} data=${data} />`}
      ${tab === "logs" && html`<${Log} path=${path} running=${data.state === "running"} steps=${data.steps.map((/** @type {any} */ s) => s.step)} />`}
      ${tab === "artifacts" && html`<${Artifacts} path=${path} version=${version} />`}
      ${tab === "code" && html`<${Code} path=${path} data=${data} />`}
      ${tab === "cards" && html`<${Cards} path=${path} version=${version} />`}
      ${tab === "explain" && html`<${Explain} path=${path} version=${version} />`}
      ${tab === "events" && html`<${Events} path=${path} version=${data.version} />`}
    </div>`,
    path,
  );
}

const sum = (/** @type {Record<string, number>} */ tasks) => Object.values(tasks).reduce((a, b) => a + b, 0);

function Head({ data, path }) {
  if (data.state === "running") void now.value;
  const over = !["running", "pending"].includes(data.state);
  const again = !data.read_only && data.code.key;
  const [form, setForm] = useState("");
  const cancel = async () => {
    if (await confirm("Cancel this run?", "Its tasks are stopped. What they have left stays, and the run can be resumed.", "Cancel the run"))
      attempt(() => ask(`v1/runs/${path}`, { method: "DELETE" }), "The run is being stopped.");
  };
  const remove = async () => {
    if (
      await confirm(
        "Delete this run?",
        html`<p>The records of ${path} and the data that no other run shares are deleted. This cannot be undone.</p>`,
        "Delete it",
      )
    )
      if (await attempt(() => ask(`v1/runs/${path}/records`, { method: "DELETE" }), "Deleted.")) go("./");
  };
  return html`<section class="run-head">
    <div class="head"><h1><${State} state=${data.state} /> <span class="title"><${Link} to=${`flows/${data.flow}`}>${data.flow}<//><span class="dim">/${data.run}</span></span></h1>
      <div class="actions">
        ${!over && !data.read_only && html`<button class="danger" onClick=${cancel}>Cancel</button>`}
        ${over && again && data.state !== "succeeded" && html`<button class="main" onClick=${() => setForm("resume")}>Resume</button>`}
        ${over && again && html`<button onClick=${() => setForm("rerun")}>Run again…</button>`}
        <button onClick=${() => go(`compare?runs=${path}`)}>Compare…</button>
        <details class="menu"><summary aria-label="More">⋯</summary><div>
          <a href=${new URL(`v1/runs/${path}/log.txt`, ROOT).href}>Download all logs</a>
          <a href=${new URL(`v1/runs/${path}/trace.json`, ROOT).href} title="When each task ran, for Perfetto or chrome://tracing">Download a trace</a>
          <button onClick=${() => copy(`aflow logs ${path}`)}>Copy the log command</button>
          <button onClick=${() => copy(`from aflow import Run\nrun = Run("${path}")`)}>Copy the client's code</button>
          ${over && !data.read_only && html`<button class="danger" onClick=${remove}>Delete…</button>`}
        </div></details>
      </div>
    </div>
    <div class="facts">
      <span><b>State</b>${data.state}</span><span><b>Started</b><${Time} at=${data.created_at} /></span><span><b>Duration</b>${span(took(data))}</span>
      <span><b>User</b>${data.user}</span>
      ${data.origin_run && html`<span><b>Resumed from</b><${Link} to=${`runs/${data.flow}/${data.origin_run}`}>${data.origin_run}<//></span>`}
      ${data.code.key && html`<span><b>Code</b><code title=${data.code.key}>${data.code.key.slice(0, 10)}</code></span>`}
      ${data.tags.map((/** @type {string} */ tag) => html`<${Link} class="tag" to=${`?filter=tag:${encodeURIComponent(tag)}`}>${tag}<//>`)}
      <${Behind} path=${`v1/runs/${path}/overview`} />
    </div>
    <${Bar} tasks=${data.tasks} />
    ${data.read_only && html`<p class="dim">${readOnly(data)}</p>`}
    ${over && !data.read_only && !again && html`<p class="dim">It cannot be run again from here: its code was not kept.</p>`}
    ${data.reason && html`<${Notice} kind=${data.state === "failed" ? "bad" : "info"}>${data.reason}<//>`}
    ${form && html`<${Again} data=${data} path=${path} mode=${form} close=${() => setForm("")} />`}
  </section>`;
}

/** Why nothing is offered that changes a run. @param {any} run */
export const readOnly = (run) =>
  run.recorded_by === "metaflow"
    ? html`Metaflow has recorded this run: it is shown here, and not changed. In a terminal <code>aflow resume FILE --origin-run-id ${run.run}</code> takes it over, and goes on where it failed.`
    : "A job has recorded this run in the object store: it is shown here, and not changed.";

/** Start the run again: from where it failed, from a step, or with other parameters. */
function Again({ data, path, mode, close }) {
  const [step, setStep] = useState("");
  const [values, setValues] = useState(/** @type {Record<string, string>} */ ({}));
  const resume = mode === "resume" || step !== "";
  const start = async (/** @type {any} */ event) => {
    event.preventDefault();
    const changed = Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined));
    const body = resume ? { step: step || null, parameters: changed } : { parameters: changed };
    const answer = await attempt(() => get(`v1/runs/${path}/${resume ? "resume" : "rerun"}`, { json: body }), "");
    if (answer) close(), go(`runs/${answer.run}`);
  };
  return html`<form class="sheet-inline" onSubmit=${start}>
    <h2>${mode === "resume" ? "Resume" : "Run again"}</h2>
    <label>From <select value=${step} onChange=${(/** @type {any} */ e) => setStep(e.target.value)}>
      <option value="">${mode === "resume" ? "where it stopped" : "the start"}</option>
      ${data.steps.map((/** @type {any} */ s) => html`<option value=${s.step}>step ${s.step}: what comes before is taken over</option>`)}
    </select></label>
    <div class="fields">${data.typed_parameters.map(
      (/** @type {any} */ p) => html`<label><span>${p.name} <small class="dim">${p.type}</small></span>
      <input name=${p.name} placeholder=${p.value} value=${values[p.name] ?? ""} onInput=${(/** @type {any} */ e) => setValues({ ...values, [p.name]: e.target.value === "" ? /** @type {any} */ (undefined) : e.target.value })} /></label>`,
    )}</div>
    <p class="dim">The code is that of this run. ${data.typed_parameters.length > 0 && `Parameters that are left empty have its values.${resume ? " Other values are seen by the steps that run; what is taken over was made with those of before." : ""}`}</p>
    <footer><button type="button" onClick=${close}>Close</button><button class="main">${resume ? "Resume" : "Start"}</button></footer>
  </form>`;
}

function Overview({ data, path }) {
  return html`
    ${data.failures.length > 0 && html`<section><h2>What failed</h2>${data.failures.map((/** @type {any} */ f) => html`<${Failure} failure=${f} path=${path} />`)}</section>`}
    ${data.doc && html`<p class="doc">${data.doc}</p>`}
    <div class="split">
      ${data.graph && html`<section class="graph-box"><${Graph} graph=${data.graph} steps=${data.steps} open=${(/** @type {string} */ step) => setQuery({ tab: "tasks", step }, false)} /></section>`}
      <section><h2>Steps</h2><div class="scroll"><table>
        <thead><tr><th>Step</th><th>Tasks</th><th class="right">Median</th><th class="right">p95</th><th class="right">Longest</th><th class="right">Wait</th><th class="right" title="The most that one task has taken">Memory</th><th class="right">Retried</th><th class="right">Reused</th></tr></thead>
        <tbody>${data.steps.map(
          (/** @type {any} */ s) => html`<tr>
          <td><button class="link" onClick=${() => setQuery({ tab: "tasks", step: s.step }, false)}>${s.step}</button></td>
          <td>${sum(s.tasks) ? html`<${Bar} tasks=${s.tasks} />` : html`<span class="dim">not begun</span>`}</td>
          <td class="right num">${span(s.median)}</td><td class="right num">${span(s.p95)}</td><td class="right num">${span(s.longest)}</td><td class="right num">${span(s.wait)}</td><td class="right num">${size(s.max_rss)}</td>
          <td class="right num">${s.retried || "–"}</td><td class="right num">${s.reused || "–"}</td></tr>`,
        )}</tbody></table></div>
        ${data.typed_parameters.length > 0 && html`<h2>Parameters</h2><${Values} rows=${data.typed_parameters.map((/** @type {any} */ p) => [p.name, p.type, p.value])} />`}
      </section>
    </div>`;
}

export function Failure({ failure, path }) {
  const error = failure.error;
  return html`<article class="failure">
    <header><${State} state="failed" /> <${Link} to=${`runs/${path}/tasks/${failure.task}`}>${failure.step}/${failure.task}<//> <span>${error ? html`<b>${error.type}</b>: ${error.message}` : failure.reason}</span></header>
    ${error?.traceback && html`<${Traceback} text=${error.traceback} />`}
  </article>`;
}

/** A traceback: the frames of the user's code stand out, those of libraries are folded. @param {{text: string}} props */
export function Traceback({ text }) {
  const lines = text.split("\n");
  const parts = /** @type {{own: boolean, lines: string[]}[]} */ ([]);
  for (const line of lines) {
    const file = /^\s*File "([^"]*)"/.exec(line);
    const before = parts[parts.length - 1];
    const own = file ? !/site-packages|\/lib\/python|\/aflow\/(attempt|executors|task)\//.test(file[1]) : !before || !/^\s{4}/.test(line) || before.own;
    if (before && before.own === own) before.lines.push(line);
    else parts.push({ own, lines: [line] });
  }
  return html`<div class="traceback">${parts.map((part) => (part.own ? html`<pre tabindex="0">${part.lines.join("\n")}</pre>` : html`<details><summary>${part.lines.filter((l) => l.includes("File")).length || 1} frames of libraries</summary><pre class="dim" tabindex="0">${part.lines.join("\n")}</pre></details>`))}</div>`;
}

export function Values({ rows }) {
  return html`<div class="scroll" tabindex="0"><table class="values"><tbody>${rows.map(([name, type, value]) => html`<tr><td><b>${name}</b></td><td class="dim">${type}</td><td><code>${value}</code></td></tr>`)}</tbody></table></div>`;
}

/** What the manifest knows of a value, shown as it is best seen. @param {{artifact: any}} props */
export function Preview({ artifact }) {
  const p = artifact.preview || {};
  if (p.rows && p.columns)
    return html`<div class="scroll" tabindex="0"><table class="frame"><thead><tr>${p.columns.map((/** @type {any} */ c, /** @type {number} */ n) => html`<th>${c}${p.dtypes && html`<br /><small>${p.dtypes[n]}</small>`}</th>`)}</tr></thead>
      <tbody>${p.rows.map((/** @type {any[]} */ row) => html`<tr>${row.map((cell) => html`<td>${String(cell)}</td>`)}</tr>`)}</tbody></table><small class="dim">${p.shape ? `${count(p.shape[0])} rows × ${p.shape[1]} columns` : ""}</small></div>`;
  if (p.histogram) {
    const highest = Math.max(...p.histogram, 1);
    return html`<span class="histogram"><svg viewBox=${`0 0 ${p.histogram.length * 6} 24`} width=${p.histogram.length * 6} height="24" role="img" aria-label="histogram">${p.histogram.map((/** @type {number} */ n, /** @type {number} */ at) => html`<rect x=${at * 6} y=${24 - (n / highest) * 24} width="5" height=${(n / highest) * 24} />`)}</svg>
      <small>${p.shape ? `${p.shape.join(" × ")} ${p.dtype}` : p.dtype}, ${p.min} to ${p.max}</small></span>`;
  }
  if (p.image) return html`<img class="preview" alt=${artifact.name} src=${`data:${p.image_type || "image/png"};base64,${p.image}`} />`;
  if (p.json !== undefined) return html`<pre class="json" tabindex="0">${p.json}</pre>`;
  return html`<code>${artifact.text}</code>`;
}

function Artifacts({ path, version }) {
  const found = useApi(`v1/runs/${path}/artifacts`, version);
  const [search, setSearch] = useState("");
  return shown(
    found,
    (data) => html`
    <div class="toolbar"><input aria-label="Filter artifacts" placeholder="Name or type" value=${search} onInput=${(/** @type {any} */ e) => setSearch(e.target.value)} /><${Behind} path=${`v1/runs/${path}/artifacts`} /></div>
    ${data.steps.map(
      (
        /** @type {any} */ step,
      ) => html`<section><h2>${step.step} <small class="dim">${count(step.count)} ${step.count === 1 ? "task" : "tasks"}${step.count > step.tasks.length ? `, the first ${step.tasks.length} shown` : ""}</small></h2>
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
      ${step.tasks.every((/** @type {any} */ task) => task.artifacts.length === 0) && html`<p class="dim">Nothing of its own.</p>`}</section>`,
    )}
    ${data.steps.length === 0 && html`<${Notice}>No step has left anything yet.<//>`}`,
  );
}

function Code({ path, data }) {
  const against = query("against");
  const found = useApi(withQuery(`v1/runs/${path}/code`, { against }));
  const others = useApi(withQuery("v1/search", { filter: `flow:${data.flow}`, limit: 30 }));
  const [file, setFile] = useState("");
  const parameters = data.typed_parameters.map((/** @type {any} */ p) => [p.name, p.type, p.value]);
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

function Cards({ path, version }) {
  const found = useApi(`v1/runs/${path}/cards`, version);
  const [open, setOpen] = useState("");
  return shown(found, (data) => {
    const card = data.cards.find((/** @type {any} */ c) => `${c.task}/${c.name}` === open) || data.cards[0];
    if (!card) return html`<${Notice}><span>This run has no cards: put <code>@card</code> on a step.</span><//>`;
    return html`<div class="files"><ul>${data.cards.map((/** @type {any} */ c) => html`<li><button aria-pressed=${c === card} onClick=${() => setOpen(`${c.task}/${c.name}`)}>${c.step}/${c.task} <small>${c.id || c.type}</small></button></li>`)}</ul>
      <${Card} path=${path} card=${card} task=${card.task} title=${`Card of ${card.step}`} /></div>`;
  });
}

/** A card, in a sandbox: it is of others' making. @param {{path: string, card: any, task: number, title: string}} props */
export function Card({ path, card, task, title }) {
  const theme = document.documentElement.dataset.theme || "";
  const url = new URL(withQuery(`v1/runs/${path}/tasks/${task}/cards/${encodeURIComponent(card.name)}`, { theme }), ROOT).href;
  return html`<iframe class="card" title=${title} sandbox="allow-scripts" src=${url}></iframe>`;
}

function Explain({ path, version }) {
  const found = useApi(`v1/runs/${path}/explain`, version);
  return shown(
    found,
    (data) =>
      html`<p class="dim">Why each task ran, or took over a result.</p><div class="scroll" tabindex="0"><table class="explain"><tbody>${data.lines.map(
        (/** @type {any} */ line) => html`<tr>
    <td><b>${line.step}</b></td><td class="num">${count(line.count)} ${line.count === 1 ? "task" : "tasks"}</td><td><${State} state=${line.text.startsWith("did not") ? "reused" : "succeeded"} /> ${line.text}</td></tr>`,
      )}</tbody></table></div>`,
  );
}

const BATCHES = 300; // commits of a run whose events are read: those of a run of 100,000 tasks are many megabytes

function Events({ path, version }) {
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
  return html`${error && html`<${Notice} kind="warn" retry=${retry}>These events are not the latest: ${error.message}<//>`}
    ${(after > 0 || events.length > last.length) && html`<p class="dim">The latest ${count(last.length)} events${after > 0 ? html`. <button class="link" onClick=${() => setWhole(true)}>Read all</button>` : ` of ${count(events.length)}.`}</p>`}
    ${events.length === 0 && html`<${Notice}>Nothing has happened yet.<//>`}
    <div class="scroll"><table><tbody>${last.map(
      (e) => html`<tr><td class="num dim">${new Date(e.at * 1000).toLocaleTimeString([], { hour12: false })}</td><td>${e.kind.replaceAll("_", " ")}</td>
    <td>${e.task !== undefined && html`<${Link} to=${`runs/${path}/tasks/${e.task}`}>${e.step || ""}/${e.task}<//>`}</td><td>${e.state && html`<${State} state=${e.state} label />`}</td><td>${e.reason || (e.count !== undefined ? `${count(e.count)} items` : "")}</td></tr>`,
    )}</tbody></table></div>`;
}
