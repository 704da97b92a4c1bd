// When the server runs flows: on and off, what comes next, run now.
// @ts-check
import { Behind, Link, Notice, ask, attempt, confirm, get, go, html, shown, useApi, useState } from "./lib.js";

export function SchedulesPage() {
  const [tick, setTick] = useState(0);
  const found = useApi("v1/schedules", tick);
  const again = () => setTick((n) => n + 1);
  const path = (/** @type {any} */ s) => `v1/schedules/${encodeURIComponent(s.name)}`;
  const pause = (/** @type {any} */ s) => attempt(() => ask(path(s), { method: "PATCH", json: { paused: !s.paused } }), s.paused ? "Resumed." : "Paused.").then(again);
  const start = async (/** @type {any} */ s) => {
    const answer = await attempt(() => get(`${path(s)}/runs`, { method: "POST" }), "");
    if (answer) go(`runs/${answer.run}`);
  };
  const remove = async (/** @type {any} */ s) => {
    if (await confirm("Delete the schedule?", html`<p>${s.name} is not run any more. Its runs stay.</p>`, "Delete it")) attempt(() => ask(path(s), { method: "DELETE" }), "Deleted.").then(again);
  };
  return shown(found, (data) => html`<div class="head"><h1>Schedules</h1><${Behind} path="v1/schedules" /></div>
    ${data.schedules.length === 0 ? html`<${Notice}>There are no schedules. <code>aflow schedule create flow.py</code> makes one of a flow's <code>@schedule</code>.<//>` : html`<div class="scroll"><table class="list"><thead><tr><th>On</th><th>Name</th><th>Cron</th><th>Next</th><th>Latest run</th><th class="right">Started</th><th class="right">Skipped</th><th></th></tr></thead><tbody>
      ${data.schedules.map((/** @type {any} */ s) => html`<tr data-row><td><button role="switch" aria-checked=${!s.paused} aria-label=${`${s.name} is ${s.paused ? "paused" : "on"}`} class="switch" onClick=${() => pause(s)}></button></td>
        <td><b>${s.name}</b>${s.said && html`<div class="reason">${s.said}</div>`}</td><td><code>${s.cron}</code> <span class="dim">${s.timezone}</span></td><td>${s.paused ? html`<span class="dim">paused</span>` : s.next ? html`<time>${new Date(s.next * 1000).toLocaleString()}</time>` : "–"}</td>
        <td>${s.latest ? html`<${Link} to=${`runs/${s.latest}`}>${s.latest}<//>` : "–"}</td><td class="right num">${s.started}</td><td class="right num">${s.skipped}</td>
        <td class="actions"><button onClick=${() => start(s)}>Run now</button><button class="danger" onClick=${() => remove(s)}>Delete</button></td></tr>`)}</tbody></table></div>`}`);
}

