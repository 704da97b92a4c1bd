// The page of a task: attempts, inputs, artifacts, log, cards, and the command that runs it alone.
// @ts-check
import { Behind, copy, count, html, Link, Notice, ROOT, State, shown, size, span, Time, useApi, useEffect, useRunVersion } from "./lib.js";
import { Log } from "./log.js";
import { Card, Preview } from "./parts.js";
import { Failure, Values } from "./run.js";
import { useFailedKeys } from "./tasks.js";

export function TaskPage({ flow, run, task }) {
  const path = `${flow}/${run}`;
  const version = useRunVersion(path);
  const found = useApi(`v1/runs/${path}/tasks/${task}`, version);
  useFailedKeys(path, task);
  useEffect(() => {
    document.title = `${path}/${task} · aflow`;
    return () => (document.title = "aflow");
  }, [path, task]);
  return shown(
    found,
    (t) => {
      const running = t.state === "running" || t.state === "ready";
      return html`
    <section class="run-head"><div class="head"><h1><${State} state=${t.reused ? "reused" : t.state} /> <span class="title"><${Link} to=${`runs/${path}?tab=tasks&step=${t.step}`}>${t.step}<//><span class="dim">/${task}</span></span></h1>
      <div class="actions"><button onClick=${() => copy(`from aflow import Task\ntask = Task("${t.pathspec}")`)}>Copy the client's code</button><button onClick=${() => copy(`python FLOW.py spin ${t.pathspec.split("/").slice(1).join("/")}`)}>Copy the spin command</button></div></div>
      <div class="facts"><span><b>Run</b><${Link} to=${`runs/${path}`}>${path}<//></span><span><b>State</b>${t.reused ? "result reused" : t.state}</span><span><b>Started</b><${Time} at=${t.started_at} /></span>
        <span><b>Duration</b>${span(t.finished_at ? t.finished_at - t.started_at : null)}</span>${t.host && html`<span><b>Where</b>${t.host}</span>`}
        ${t.max_rss && html`<span><b>Memory peak</b>${size(t.max_rss)}</span>`}${t.origin && html`<span><b>Result of</b><code>${t.origin}</code></span>`}
        ${t.stack.map((/** @type {any} */ f) => html`<span><b>${f.variable}[${f.index}]</b><code>${f.value}</code></span>`)}<${Behind} path=${`v1/runs/${path}/tasks/${task}`} /></div>
      ${t.reason && t.state === "failed" && !t.error && html`<${Notice} kind="bad">${t.reason}<//>`}
      ${t.error && html`<${Failure} failure=${{ ...t, task }} path=${path} />`}
    </section>
    <div class="split">
      <section><h2>Attempts</h2><div class="scroll" tabindex="0"><table><thead><tr><th>State</th><th>#</th><th>Started</th><th class="right">Duration</th><th class="right">CPU</th><th class="right">Memory</th><th>Where</th></tr></thead><tbody>
        ${t.tries.map((/** @type {any} */ a) => html`<tr><td><${State} state=${a.state === "timed_out" || a.state === "lost" ? "failed" : a.state === "interrupted" ? "cancelled" : a.state} /> ${a.state.replace("_", " ")}</td><td>${a.attempt}</td><td><${Time} at=${a.started_at} /></td><td class="right num">${span(a.finished_at ? a.finished_at - a.started_at : null)}</td><td class="right num">${span(a.cpu)}</td><td class="right num">${size(a.max_rss)}</td><td class="dim">${a.host}${a.pid ? ` (pid ${a.pid})` : ""}${a.worker && html`<br /><code>${a.worker}</code>`}</td></tr>${a.reason && html`<tr><td></td><td colspan="6"><div class="reason" title=${a.reason}>${a.reason}</div></td></tr>`}`)}</tbody></table></div>
        ${t.inputs.count > 0 && html`<h2>Inputs</h2><p>${t.inputs.tasks.map((/** @type {number} */ n) => html`<${Link} class="tag" to=${`runs/${path}/tasks/${n}`}>task ${n}<//>`)} ${t.inputs.count > t.inputs.tasks.length && html`<span class="dim">and ${count(t.inputs.count - t.inputs.tasks.length)} more</span>`}</p>`}</section>
      <section><h2>Artifacts</h2>${t.damaged && html`<${Notice} kind="warn">${t.damaged}<//>`}${t.artifacts.length ? html`<div class="scroll"><table class="values left"><tbody>${t.artifacts.map((/** @type {any} */ a) => html`<tr><td><b>${a.name}</b></td><td class="dim">${a.type}</td><td class="num dim">${size(a.size)}</td><td><${Preview} artifact=${a} /></td><td><a href=${new URL(`v1/runs/${path}/tasks/${task}/artifacts/${a.name}`, ROOT).href} title="The pickle">↓</a></td></tr>`)}</tbody></table></div>` : !t.damaged && html`<p class="dim">${running ? "None yet." : "None."}</p>`}
        ${t.inherited.length > 0 && html`<details><summary>${count(t.inherited.length)} passed on from earlier tasks</summary><p>${t.inherited.map((/** @type {any} */ i) => html`<${Link} class="tag" to=${`runs/${path}/tasks/${i.task}`}>${i.name}<//>`)}</p></details>`}
        ${t.facts.length > 0 && html`<h2>Metadata</h2><${Values} rows=${t.facts.map((/** @type {any} */ f) => [f.name, "", f.value])} />`}</section>
    </div>
    ${t.cards.map((/** @type {any} */ card) => html`<section><h2>Card ${card.id || card.type}</h2><${Card} path=${path} card=${card} task=${task} title="Card" /></section>`)}
    <section><h2>Log</h2><${Log} path=${path} task=${task} running=${running} /></section>`;
    },
    `${path}/${task}`,
  );
}
