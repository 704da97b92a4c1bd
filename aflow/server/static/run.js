// One run: its graph and steps, timeline, tasks, logs, artifacts, code, cards, explanation, events.
// @ts-check

import { Graph } from "./graph.js";
import {
  Act,
  ask,
  attempt,
  Bar,
  Behind,
  confirm,
  copy,
  count,
  differs,
  go,
  html,
  Link,
  later,
  Notice,
  now,
  plural,
  query,
  ROOT,
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
  useRunVersion,
  useState,
} from "./lib.js";
import { Log } from "./log.js";
import { Tasks } from "./tasks.js";
import { Timeline, useColumns } from "./timeline.js";

const part = (/** @type {string} */ name) => later(() => import("./parts.js"), name);
const Artifacts = part("Artifacts"),
  Code = part("Code"),
  Cards = part("Cards"),
  Explain = part("Explain"),
  Events = part("Events"),
  Again = part("Again");

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
    if (await confirm("Cancel this run?", "Its tasks are stopped. Their results stay, and the run can be resumed.", "Cancel the run"))
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
        ${!over && !data.read_only && html`<${Act} class="danger" onClick=${cancel}>Cancel<//>`}
        ${over && again && data.state !== "succeeded" && html`<${Act} class="main" onClick=${() => setForm("resume")}>Resume<//>`}
        ${over && again && html`<${Act} onClick=${() => setForm("rerun")}>Run again…<//>`}
        <button onClick=${() => go(`compare?runs=${path}`)}>Compare…</button>
        <details class="menu"><summary aria-label="More">⋯</summary><div>
          <a href=${new URL(`v1/runs/${path}/log.txt`, ROOT).href}>Download all logs</a>
          <a href=${new URL(`v1/runs/${path}/trace.json`, ROOT).href} title="The times of all tasks, for Perfetto or chrome://tracing">Download a trace</a>
          <button onClick=${() => copy(`aflow logs ${path}`)}>Copy the log command</button>
          <button onClick=${() => copy(`from aflow import Run\nrun = Run("${path}")`)}>Copy the client's code</button>
          ${over && !data.read_only && html`<${Act} class="danger" onClick=${remove}>Delete…<//>`}
        </div></details>
      </div>
    </div>
    <div class="facts">
      <span><b>State</b>${data.state}</span><span><b>Started</b><${Time} at=${data.created_at} /></span><span><b>Duration</b>${span(took(data))}</span>
      <span><b>User</b>${data.user}</span>
      ${data.origin_run && html`<span><b>Resumed from</b><${Link} to=${`runs/${data.flow}/${data.origin_run}`}>${data.origin_run}<//></span>`}
      ${data.code.key && html`<span><b>Code</b><code title=${data.code.key}>${data.code.key.slice(0, 10)}</code></span>`}
      ${data.tags.map((/** @type {string} */ tag) => html`<${Link} class="tag" title=${tag} to=${`?filter=tag:${encodeURIComponent(tag)}`}>${tag}<//>`)}
      <${Behind} path=${`v1/runs/${path}/overview`} />
    </div>
    <${Bar} tasks=${data.tasks} />
    ${data.read_only && html`<p class="dim">${readOnly(data)}</p>`}
    ${over && !data.read_only && !again && html`<p class="dim">This run cannot be run again from here, because its code was not kept.</p>`}
    ${data.reason && html`<${Notice} kind=${data.state === "failed" ? "bad" : "info"}><div class="long" tabindex=${data.reason.length > 400 ? 0 : null}>${data.reason}</div><//>`}
    ${form && html`<${Again} data=${data} path=${path} mode=${form} close=${() => setForm("")} />`}
  </section>`;
}

/** Why the page of a run offers no changes. @param {any} run */
export const readOnly = (run) =>
  run.recorded_by === "metaflow"
    ? html`Metaflow recorded this run. You can see it here, but not change it. In a terminal, <code>aflow resume FILE --origin-run-id ${run.run}</code> starts a new run that continues where this one failed.`
    : "A job recorded this run in the datastore. You can see it here, but not change it.";

function Overview({ data, path }) {
  const retried = data.steps.some((/** @type {any} */ s) => s.retried),
    reused = data.steps.some((/** @type {any} */ s) => s.reused),
    more = data.steps.reduce((/** @type {number} */ n, /** @type {any} */ s) => n + (s.tasks.failed || 0), 0) - data.failures.length;
  return html`
    ${
      data.failures.length > 0 &&
      html`<section><h2>What failed</h2>${data.failures.map((/** @type {any} */ f) => html`<${Failure} failure=${f} path=${path} />`)}
      ${more > 0 && html`<button class="link" onClick=${() => setQuery({ tab: "tasks", state: "failed" }, false)}>${plural(more, "more failed task")}</button>`}</section>`
    }
    ${data.doc && html`<p class="doc">${data.doc}</p>`}
    <div class="split">
      ${data.graph && html`<section class="graph-box"><${Graph} graph=${data.graph} steps=${data.steps} open=${(/** @type {string} */ step) => setQuery({ tab: "tasks", step }, false)} /></section>`}
      <section><h2>Steps</h2><div class="scroll"><table>
        <thead><tr><th>Step</th><th>Tasks</th><th class="right">Median</th><th class="right">p95</th><th class="right">Longest</th><th class="right">Wait</th><th class="right" title="The peak memory of a single task">Memory</th>${retried && html`<th class="right">Retried</th>`}${reused && html`<th class="right">Reused</th>`}</tr></thead>
        <tbody>${data.steps.map(
          (/** @type {any} */ s) => html`<tr>
          <td><button class="link" onClick=${() => setQuery({ tab: "tasks", step: s.step }, false)}>${s.step}</button></td>
          <td>${sum(s.tasks) ? html`<${Bar} tasks=${s.tasks} />` : html`<span class="dim">not begun</span>`}</td>
          <td class="right num">${span(s.median)}</td><td class="right num">${span(s.p95)}</td><td class="right num">${span(s.longest)}</td><td class="right num">${span(s.wait)}</td><td class="right num">${size(s.max_rss)}</td>
          ${retried && html`<td class="right num">${s.retried || "–"}</td>`}${reused && html`<td class="right num">${s.reused || "–"}</td>`}</tr>`,
        )}</tbody></table></div>
        ${data.typed_parameters.length > 0 && html`<h2>Parameters</h2><${Values} rows=${data.typed_parameters.map((/** @type {any} */ p) => [p.name, p.type, p.value, p.default])} />`}
      </section>
    </div>`;
}

export function Failure({ failure, path }) {
  const error = failure.error;
  return html`<article class="failure">
    <header><${State} state="failed" /> <${Link} to=${`runs/${path}/tasks/${failure.task}`}>${failure.step}/${failure.task}<//> <span class="long" tabindex=${(error?.message || failure.reason || "").length > 400 ? 0 : null}>${error ? html`<b>${error.type}</b>: ${error.message}` : failure.reason}</span></header>
    ${error?.traceback && html`<${Traceback} text=${error.traceback} />`}
  </article>`;
}

/** A traceback; frames of the user's code are highlighted, those of libraries are collapsed. @param {{text: string}} props */
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
  return html`<div class="traceback">${parts.map((part) => (part.own ? html`<pre tabindex="0">${part.lines.join("\n")}</pre>` : html`<details><summary>${plural(part.lines.filter((l) => l.includes("File")).length || 1, "frame")} of libraries</summary><pre class="dim" tabindex="0">${part.lines.join("\n")}</pre></details>`))}</div>`;
}

/** A table of names and values; parameters that differ from their defaults are marked. @param {{rows: any[][]}} props */
export function Values({ rows }) {
  return html`<div class="scroll" tabindex="0"><table class="values"><tbody>${rows.map(([name, type, value, usual]) => html`<tr><td><b>${name}</b></td><td class="dim">${type}</td><td><code>${value}</code>${differs(value, usual) && html` <small class="changed">default ${usual}</small>`}</td></tr>`)}</tbody></table></div>`;
}
