// Who works: the processes that ran tasks lately, workers and their queue.
// @ts-check
import { Behind, Link, Notice, Time, ask, attempt, confirm, count, html, shown, span, useApi, useEffect, useState } from "./lib.js";

export function WorkersPage() {
  const [tick, setTick] = useState(0);
  const found = useApi("v1/workers", tick);
  const queue = useApi("v1/queue", tick);
  const again = () => setTick((n) => n + 1);
  useEffect(() => {
    const timer = setInterval(() => document.hidden || again(), 5000);
    return () => clearInterval(timer);
  }, []);
  const act = async (/** @type {any} */ m, /** @type {string} */ how) => {
    if (how === "delete" && !(await confirm("Delete the message?", html`<p>The task of this message is given up; its run fails it.</p>`, "Delete it"))) return;
    attempt(() => ask(`v1/queue/buried/${encodeURIComponent(m.id)}`, { method: how === "delete" ? "DELETE" : "POST" }), how === "delete" ? "Deleted." : "Released.").then(again);
  };
  const drain = (/** @type {any} */ w) => attempt(() => ask(`v1/workers/${encodeURIComponent(w.name)}/drain`, { method: "POST" }), "The worker takes no more tasks, and ends when its own have.").then(again);
  return html`<div class="head"><h1>Workers</h1><${Behind} path="v1/workers" /></div>
    ${shown(found, (data) => data.workers.length === 0 ? html`<${Notice}>No worker has registered. Runs of this server use processes of this machine; <code>aflow worker --queue URL</code> starts a worker anywhere.<//>` : html`<div class="scroll"><table class="list"><thead><tr><th>Worker</th><th>Pools</th><th class="right">Slots</th><th>Works on</th><th>Version</th><th>Last heartbeat</th><th></th></tr></thead><tbody>
      ${data.workers.map((/** @type {any} */ w) => html`<tr data-row class=${w.is_alive ? "" : "dim"}><td><b>${w.host}</b> <span class="dim">pid ${w.pid}</span></td><td>${w.pools.join(", ")}</td><td class="right num">${w.busy}/${w.slots}</td><td>${w.tasks.map((/** @type {string} */ t) => html`<${Link} class="tag" to=${`runs/${t.split("/").slice(0, 2).join("/")}/tasks/${t.split("/")[3]}`}>${t}<//>`)}</td><td class="dim">${w.version}</td><td><${Time} at=${w.beat_at} />${w.draining && " (draining)"}</td><td class="actions">${w.is_alive && !w.draining && html`<button onClick=${() => drain(w)}>Drain</button>`}</td></tr>`)}</tbody></table></div>`)}
    <h2>Queue</h2>
    ${shown(queue, (data) => !data.url ? html`<${Notice}>This server has no queue (<code>--queue URL</code>).<//>` : html`<div class="facts"><span><b>Queue</b>${data.url}</span></div>
      <div class="scroll"><table><thead><tr><th>Topic</th><th class="right">Ready</th><th class="right">Leased</th><th class="right">Buried</th><th class="right">Oldest</th></tr></thead><tbody>${data.topics.map((/** @type {any} */ t) => html`<tr><td>${t.topic}</td><td class="right num">${count(t.ready)}</td><td class="right num">${count(t.leased)}</td><td class="right num">${count(t.buried)}</td><td class="right num">${span(t.oldest)}</td></tr>`)}</tbody></table></div>
      ${data.buried.length > 0 && html`<h2>Buried messages</h2><div class="scroll"><table><tbody>${data.buried.map((/** @type {any} */ m) => html`<tr><td><code>${m.id}</code></td><td>${m.topic}</td><td class="reason">${m.reason}</td><td class="actions"><button onClick=${() => act(m, "release")}>Release</button><button class="danger" onClick=${() => act(m, "delete")}>Delete</button></td></tr>`)}</tbody></table></div>`}`)}`;
}
