// The queue of the server: workers that have announced themselves, pools, buried messages.
// @ts-check
import { Behind, Notice, Time, attempt, confirm, count, get, html, now, shown, span, useApi, useEffect, useState } from "./lib.js";

export function WorkersPage() {
  const [tick, setTick] = useState(0);
  const found = useApi("v1/queue", tick);
  const again = () => setTick((n) => n + 1);
  useEffect(() => {
    const timer = setInterval(() => document.hidden || again(), 5000);
    return () => clearInterval(timer);
  }, []);
  const release = (/** @type {any} */ m) => attempt(() => get("v1/queue/release", { json: { ids: [m.id] } }), "Workers get it again.").then(again);
  const remove = async (/** @type {any} */ m) => {
    if (await confirm("Delete the message?", html`<p>The task ${m.task} is given up; its run notices.</p>`, "Delete it")) attempt(() => get("v1/queue/delete", { json: { ids: [m.id] } }), "Deleted.").then(again);
  };
  return html`<div class="head"><h1>Workers</h1><${Behind} path="v1/queue" /></div>
    ${shown(found, (data) => !data.url ? html`<${Notice}><span>This server has no queue: its runs use processes of this machine. <code>aflow server --queue URL</code> hands tasks to workers, and <code>aflow worker --queue URL</code> starts one anywhere.</span><//>` : html`
      <div class="facts"><span><b>Queue</b><code>${data.url}</code></span></div>
      ${data.workers.length === 0 ? html`<${Notice} kind="warn">No worker has announced itself: <code>aflow worker --queue ${data.url}</code> starts one.<//>` : html`<div class="scroll"><table class="list"><thead><tr><th>Worker</th><th>Pools</th><th class="right">Slots</th><th class="right">Longer tasks</th><th>Leaves to others</th></tr></thead><tbody>
        ${data.workers.map((/** @type {any} */ w) => html`<tr data-row><td><b>${w.name}</b></td><td>${w.pools.join(", ")}</td><td class="right num">${w.slots}</td><td class="right num">${w.held}</td><td class="reason">${w.declined.join(" ")}</td></tr>`)}</tbody></table></div>`}
      <h2>Pools</h2><div class="scroll"><table><thead><tr><th>Pool</th><th class="right">Ready</th><th class="right">Leased</th><th class="right">Buried</th><th class="right">Oldest waits</th><th class="right">Workers</th><th class="right">Slots</th></tr></thead><tbody>
        ${data.pools.map((/** @type {any} */ p) => html`<tr><td>${p.pool}</td><td class="right num">${count(p.ready)}</td><td class="right num">${count(p.leased)}</td><td class="right num">${count(p.buried)}</td><td class="right num">${p.ready && p.oldest ? span(Math.max(0, now.value - p.oldest)) : "–"}</td><td class="right num">${p.workers ?? "?"}</td><td class="right num">${p.slots ?? "?"}</td></tr>`)}</tbody></table></div>
      ${data.buried.length > 0 && html`<h2>Buried messages</h2><p class="dim">Each was given to several workers that ended before its task did, or cannot be read.</p><div class="scroll"><table><thead><tr><th>Task</th><th>Pool</th><th class="right">Deliveries</th><th>Buried</th><th></th></tr></thead><tbody>${data.buried.map((/** @type {any} */ m) => html`<tr><td><b>${m.task}</b><br /><code class="dim">${m.id}</code></td><td>${m.pool}</td><td class="right num">${m.deliveries}</td><td><${Time} at=${m.at} /></td><td><span class="actions"><button onClick=${() => release(m)}>Release</button><button class="danger" onClick=${() => remove(m)}>Delete</button></span></td></tr>`)}</tbody></table></div>`}`)}`;
}
