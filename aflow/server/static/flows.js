// The list of flows, and the page of one flow: durations of its runs and steps, a grid of runs and steps.
// @ts-check

import { Graph } from "./graph.js";
import { Act, attempt, Bar, Behind, get, go, html, Link, Notice, plural, runPath, State, shown, span, Time, took, useApi, useState } from "./lib.js";
import { DryRun } from "./parts.js";

export function FlowsPage() {
  const found = useApi("v1/flows");
  return shown(
    found,
    (data) => html`<div class="head"><h1>Flows</h1><${Behind} path="v1/flows" /></div>
    ${
      data.flows.length === 0
        ? html`<${Notice}>No flow has run here yet.<//>`
        : html`<div class="scroll"><table class="list"><thead><tr><th>Flow</th><th>Latest run</th><th>Tasks</th><th>Started</th><th class="right">Duration</th></tr></thead><tbody>
      ${data.flows.map(
        (/** @type {any} */ f) => html`<tr data-row><td class="name"><${Link} to=${`flows/${f.flow}`}><b>${f.flow}</b><//></td>
        ${f.latest && html`<td><${State} state=${f.latest.state} /> <${Link} to=${runPath(f.latest)}>${f.latest.run}<//></td><td><${Bar} tasks=${f.latest.tasks} /></td><td><${Time} at=${f.latest.created_at} /></td><td class="right num">${span(took(f.latest))}</td>`}</tr>`,
      )}</tbody></table></div>`
    }`,
    "Flows",
  );
}

export function FlowPage({ flow }) {
  const found = useApi(`v1/flows/${flow}`);
  const [form, setForm] = useState(false);
  const plans = useApi("v1/schedules");
  const own = (plans.data?.schedules || []).filter((/** @type {any} */ s) => s.flow === flow);
  return shown(
    found,
    (data) => {
      const steps = [...new Set(data.grid.flatMap((/** @type {any} */ r) => Object.keys(r.steps)))];
      return html`<div class="head"><h1>${flow}</h1><div class="actions">${data.code.key && html`<${Act} class="main" onClick=${() => setForm(!form)}>Run…<//>`}<${Link} class="button" to=${`?filter=flow:${flow}`}>All runs<//></div><${Behind} path=${`v1/flows/${flow}`} /></div>
      ${data.doc && html`<p class="doc">${data.doc}</p>`}
      ${own.length > 0 && html`<p>${own.map((/** @type {any} */ s) => html`<${Link} class="tag" to=${`schedules?edit=${encodeURIComponent(s.name)}`}>${s.name}: ${s.paused ? "off" : s.next ? `next ${new Date(s.next * 1000).toLocaleString([], { weekday: "short", hour: "2-digit", minute: "2-digit" })}` : "no next run"}<//>`)}</p>`}
      ${form && html`<${RunForm} data=${data} close=${() => setForm(false)} />`}
      <section><h2>Latest runs</h2><${Durations} runs=${data.runs} /></section>
      <div class="split">
      ${data.graph && html`<section class="graph-box"><${Graph} graph=${data.graph} /></section>`}
      <section><h2>Steps of runs</h2><${Grid} data=${data} steps=${steps} /><h2>Changes in duration of steps</h2><${Slower} data=${data} steps=${steps} /></section></div>`;
    },
    flow,
  );
}

/** One bar per run, the oldest first; the height is the duration. */
function Durations({ runs }) {
  const shownRuns = [...runs].reverse();
  const longest = Math.max(...shownRuns.map((run) => took(run) || 0), 0.001);
  return html`<div class="durations">${shownRuns.map((run) => html`<${Link} class=${run.state} to=${runPath(run)} title=${`${run.run}: ${run.state}, ${span(took(run))}`} style=${{ height: `${Math.max(4, ((took(run) || 0) / longest) * 100)}%` }}><span class="hidden">${run.run}: ${run.state}, ${span(took(run))}</span><//>`)}</div><p class="dim">${plural(runs.length, "run")}, the longest ${span(longest)}</p>`;
}

function Grid({ data, steps }) {
  const runs = [...data.grid].reverse();
  return html`<div class="scroll"><table class="grid"><tbody>${steps.map(
    (step) =>
      html`<tr><th>${step}</th>${runs.map((run) => {
        const cell = run.steps[step];
        const state = !cell ? "waiting" : cell.tasks.failed ? "failed" : cell.tasks.running ? "running" : cell.tasks.cancelled ? "cancelled" : "succeeded";
        return html`<td><${Link} to=${`runs/${data.flow}/${run.run}?tab=tasks&step=${step}`} title=${`${run.run} ${step}: ${cell ? `${state}, ${span(cell.seconds)}` : "not begun"}`}><i class=${state}></i><//></td>`;
      })}</tr>`,
  )}</tbody></table></div>`;
}

const median = (/** @type {number[]} */ values) => (values.length ? [...values].sort((a, b) => a - b)[Math.floor((values.length - 1) / 2)] : null);

function Slower({ data, steps }) {
  const done = data.grid.filter((/** @type {any} */ r) => r.state === "succeeded");
  const times = (/** @type {any[]} */ runs, /** @type {string} */ step) => median(runs.filter((r) => r.steps[step]).map((r) => r.steps[step].seconds));
  return html`<table><thead><tr><th>Step</th><th class="right">Last 5</th><th class="right">Before</th><th class="right">Change</th></tr></thead><tbody>${steps.map(
    (step) => {
      const now = times(done.slice(0, 5), step),
        before = times(done.slice(5), step);
      const change = now !== null && before ? now / before - 1 : null;
      return html`<tr><td class="name">${step}</td><td class="right num">${span(now)}</td><td class="right num">${span(before)}</td><td class=${`right num ${change !== null && change > 0.25 ? "bad" : ""}`}>${change === null ? "–" : `${change > 0 ? "+" : ""}${Math.round(change * 100)} %`}</td></tr>`;
    },
  )}</tbody></table>`;
}

function RunForm({ data, close }) {
  const [values, setValues] = useState(/** @type {Record<string, string>} */ ({}));
  const [tags, setTags] = useState("");
  const body = { package: data.code.key, script: data.code.script, flow: data.flow, parameters: values, tags: tags.split(/[\s,]+/).filter(Boolean) };
  const start = async (/** @type {any} */ event) => {
    event.preventDefault();
    const answer = await attempt(() => get("v1/runs", { json: body }), "");
    if (answer) close(), go(`runs/${answer.run}`);
  };
  return html`<form class="sheet-inline" onSubmit=${start}><h2>Run ${data.flow}</h2>
    <div class="fields">${data.parameters.map(
      (/** @type {any} */ p) =>
        html`<label><span>${p.name} <small class="dim">${p.type}</small></span><input name=${p.name} placeholder=${p.default ?? p.value} onInput=${(
          /** @type {any} */ e,
        ) => {
          const next = { ...values };
          if (e.target.value === "") delete next[p.name];
          else next[p.name] = e.target.value;
          setValues(next);
        }} /></label>`,
    )}</div>
    <label>Tags <input value=${tags} onInput=${(/** @type {any} */ e) => setTags(e.target.value)} /></label>
    <p class="dim">Empty fields have the flow's defaults. The run uses the code of the latest run. The same command for a terminal:</p>
    <pre>aflow submit ${data.code.script}${Object.entries(values).map(([name, value]) => ` --${name} ${/^[\w.-]+$/.test(value) ? value : `'${value}'`}`)}</pre>
    <${DryRun} path="v1/dry-run" body=${body} />
    <footer><button type="button" onClick=${close}>Close</button><${Act} class="main">Start<//></footer></form>`;
}
