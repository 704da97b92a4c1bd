// Registered workers with their running tasks, and the queue: pools and buried messages.
// @ts-check
import {
  Act,
  attempt,
  Behind,
  confirm,
  copy,
  count,
  get,
  html,
  Link,
  Notice,
  now,
  plural,
  State,
  shown,
  size,
  span,
  Time,
  useApi,
  useEffect,
  useState,
  withQuery,
} from "./lib.js";

const SIGNS = { idle: "ready", busy: "running", draining: "cancelled", silent: "failed" };

export function WorkersPage() {
  const [tick, setTick] = useState(0);
  const workers = useApi("v1/workers", tick),
    queue = useApi("v1/queue", tick),
    jobs = useApi("v1/jobs", tick);
  const again = () => setTick((n) => n + 1);
  useEffect(() => {
    const timer = setInterval(() => document.hidden || again(), 3000);
    return () => clearInterval(timer);
  }, []);
  return html`<div class="head"><h1>Workers</h1><${Behind} path="v1/workers" /></div>
    ${shown(workers, (data) => html`<${Registered} data=${data} url=${queue.data?.url} again=${again} />`)}
    <h2>Queue <${Behind} path="v1/queue" /></h2>
    ${shown(queue, (data) => (data.url ? html`<${Queue} data=${data} again=${again} />` : html`<${Notice}><span>This server has no queue: its runs use processes of this machine. <code>aflow server --queue URL</code> sends tasks to workers.</span><//>`))}
    <h2>Jobs of AWS Batch, Slurm and Kubernetes <${Behind} path="v1/jobs" /></h2>
    ${shown(jobs, (data) => html`<${Jobs} data=${data} />`)}`;
}

/** The jobs of active runs, by queue. @param {{data: any}} props */
function Jobs({ data }) {
  const [open, setOpen] = useState("");
  if (!data.queues.length) return html`<${Notice}>No run has jobs at present.<//>`;
  return html`<div class="scroll"><table class="list stack"><thead><tr><th>Run, step</th><th class="right">Waiting</th><th class="right">Running</th><th>For</th><th>Reason from the job system</th><th class="wide">User</th></tr></thead>
    ${data.queues.map(
      (/** @type {any} */ q) =>
        html`<tbody key=${`${q.system}/${q.queue}`}><tr class="section"><th colspan="6">${q.system}${q.queue ? ` · ${q.queue}` : ""} <small class="dim">${count(q.waiting)} waiting, ${count(q.running)} running</small></th></tr>
        ${q.steps.map((/** @type {any} */ s) => {
          const key = `${q.system}/${q.queue}/${s.run}/${s.step}`;
          return html`<tr data-row><td class="name"><${Link} to=${`runs/${s.run}?tab=tasks&step=${s.step}`}><b>${s.run}</b>/${s.step}<//> <button class="link" aria-expanded=${open === key} onClick=${() => setOpen(open === key ? "" : key)}>${open === key ? "hide jobs" : "jobs"}</button></td>
          <td class="right num">${count(s.waiting)}<span class="only-small dim"> waiting</span></td><td class="right num">${count(s.running)}<span class="only-small dim"> running</span></td><td class="num">${s.since ? html`<span class="only-small dim">for </span>${span(Math.max(0, now.value - s.since))}` : "–"}</td><td class="said">${s.reason || html`<span class="dim">–</span>`}</td><td class="wide dim">${s.user}</td></tr>
          ${open === key && html`<tr><td colspan="6"><${JobsOfStep} run=${s.run} step=${s.step} tick=${data} /></td></tr>`}`;
        })}</tbody>`,
    )}</table></div>${!data.complete && html`<p class="dim">There are more jobs: these are those of the newest runs.</p>`}`;
}

const JOBS = 100; // jobs shown per step

/** @param {{run: string, step: string, tick: any}} props */
function JobsOfStep({ run, step, tick }) {
  const path = withQuery(`v1/runs/${run}/jobs`, { step, limit: JOBS });
  const found = useApi(path, tick);
  return html`<section class="panel waiting-panel"><h2>Jobs of ${step} <${Behind} path=${path} /></h2>${shown(found, (data) =>
    data.jobs.length === 0
      ? html`<p class="dim">No jobs remain.</p>`
      : html`<div class="scroll messages" tabindex="0"><table><thead><tr><th>Task</th><th>State</th><th>Job</th><th>Host</th><th>Since</th></tr></thead><tbody>${data.jobs.map(
          (/** @type {any} */ j) =>
            html`<tr><td><${Link} to=${`runs/${run}/tasks/${j.task}`}>${j.step}/${j.task}<//></td><td title=${j.reason}><${State} state=${j.state === "running" ? "running" : "pending"} name=${j.state} label /></td><td><code>${j.job || "–"}</code></td><td class="dim">${j.host || "–"}</td><td><${Time} at=${j.since} /></td></tr>`,
        )}</tbody></table></div>${data.next !== null && html`<p class="dim">The first ${count(data.jobs.length)}; <${Link} to=${`runs/${run}?tab=tasks&step=${step}&state=running`}>all of them<//>.</p>`}`,
  )}</section>`;
}

/** @param {{data: any, url?: string, again: () => void}} props */
function Registered({ data, url, again }) {
  const drain = async (/** @type {any} */ w) => {
    if (
      await confirm(
        "Drain the worker?",
        html`<p>${w.name} leases no more tasks, and ends when ${w.running.length === 0 ? "it receives this request" : w.running.length === 1 ? "its task has ended" : `its ${count(w.running.length)} tasks have ended`}. Its pools lose ${plural(w.slots, "slot")}.</p>`,
        "Drain it",
      )
    )
      attempt(() => get(`v1/workers/${encodeURIComponent(w.name)}/drain`, { method: "POST" }), "The worker leases no more tasks.").then(again);
  };
  const command = `aflow worker --queue ${url || "URL"}`;
  if (!data.workers.length)
    return html`<${Notice}><span>No worker has registered. <code>${command}</code> starts one, on this machine or another. <button class="link" onClick=${() => copy(command)}>Copy</button></span><//>`;
  const slots = data.workers.reduce((/** @type {number} */ sum, /** @type {any} */ w) => sum + w.slots, 0),
    busy = data.workers.reduce((/** @type {number} */ sum, /** @type {any} */ w) => sum + w.running.filter((/** @type {any} */ t) => t.begun).length, 0);
  return html`<p class="dim">${plural(data.workers.length, "worker")}, ${count(busy)} of ${plural(slots, "slot")} busy.</p><div class="scroll"><table class="list stack"><thead><tr><th>State</th><th>Worker</th><th>Pools</th><th>Slots</th><th>Runs now</th><th class="right wide">Done</th><th class="right wide">Failed</th><th class="wide">Version</th><th>Heartbeat</th><th><span class="hidden">Actions</span></th></tr></thead><tbody>
    ${data.workers.map((/** @type {any} */ w) => {
      const begun = w.running.filter((/** @type {any} */ t) => t.begun);
      return html`<tr data-row key=${w.name}><td><${State} state=${/** @type {any} */ (SIGNS)[w.state]} name=${w.state} label /></td>
        <td class="name"><b>${w.name}</b><br /><span class="dim">${w.host}, process ${w.pid}</span>${w.drain && html`<div class="reason">${w.drain}</div>`}</td><td>${w.pools.join(", ")}${Object.entries(w.labels).map(([name, value]) => html` <span class="tag">${name}=${value}</span>`)}</td>
        <td><span class="slots" role="img" aria-label=${`${begun.length} of ${plural(w.slots, "slot")} busy`}>${w.slots <= 32 && Array.from({ length: w.slots }, (_, n) => html`<i class=${n < begun.length ? "running" : ""}></i>`)}</span> <span class="num dim">${begun.length}/${w.slots}</span></td>
        <td>${w.running.slice(0, 3).map((/** @type {any} */ t) => {
          const [flow, run, step, task] = t.task.split("/");
          return html`<div class="one-line">${task ? html`<${Link} to=${`runs/${flow}/${run}/tasks/${task}`}>${step}/${task}<//>` : t.task} <span class="dim num">${t.begun ? span(Math.max(0, now.value - t.since)) : "waits"}</span></div>`;
        })}${w.running.length > 3 && html`<span class="dim">and ${count(w.running.length - 3)} more</span>`}${w.running.length === 0 && html`<span class="dim">–</span>`}</td>
        <td class="right num wide">${count(w.done)}</td><td class="right num wide">${w.failed ? html`<span class="bad">${count(w.failed)}</span>` : "0"}</td><td class="wide dim">${w.version}</td>
        <td><${Time} at=${w.heartbeat_at} /></td><td class="right">${w.state !== "draining" && w.state !== "silent" && html`<${Act} onClick=${() => drain(w)}>Drain<//>`}</td></tr>`;
    })}</tbody></table></div>`;
}

/** @param {{data: any, again: () => void}} props */
function Queue({ data, again }) {
  const release = (/** @type {any} */ m) =>
    attempt(() => get("v1/queue/release", { json: { ids: [m.id] } }), "The message is delivered to workers again.").then(again);
  const remove = async (/** @type {any} */ m) => {
    if (await confirm("Delete the message?", html`<p>The queue gives up the task ${m.task} and reports this to its run.</p>`, "Delete it"))
      attempt(() => get("v1/queue/delete", { json: { ids: [m.id] } }), "Deleted.").then(again);
  };
  const [open, setOpen] = useState("");
  return html`<div class="facts"><span><b>URL</b><code>${data.url}</code></span></div>
    <div class="scroll" tabindex="0"><table><thead><tr><th>Pool</th><th class="right">Ready</th><th class="right">Leased</th><th class="right">Buried</th><th class="right">Oldest waits</th><th class="right" title="Tasks that ended in the last minute on registered workers">Rate</th><th class="right">Workers</th><th class="right">Slots</th></tr></thead><tbody>
      ${data.pools.map((/** @type {any} */ p) => html`<tr><td class="name"><b>${p.pool}</b></td><td class="right num">${p.ready ? html`<button class="link" aria-expanded=${open === p.pool} onClick=${() => setOpen(open === p.pool ? "" : p.pool)}>${count(p.ready)}</button>` : "0"}</td><td class="right num">${count(p.leased)}</td><td class="right num">${p.buried ? html`<span class="bad">${count(p.buried)}</span>` : "0"}</td><td class="right num">${p.ready && p.oldest ? span(Math.max(0, now.value - p.oldest)) : "–"}</td><td class="right num">${p.rate === null || p.rate === undefined ? "–" : `${count(p.rate)}/min`}</td><td class="right num">${p.workers ?? "?"}</td><td class="right num">${p.slots ?? "?"}</td></tr>`)}</tbody></table></div>
    ${open && html`<${Waiting} key=${open} pool=${open} tick=${data} />`}
    ${data.buried.length > 0 && html`<h2>Buried messages</h2><p class="dim">Each message was delivered to several workers that ended before its task did, or it cannot be read.</p><div class="scroll"><table><thead><tr><th>Task</th><th>Pool</th><th class="right">Deliveries</th><th>Buried</th><th><span class="hidden">Actions</span></th></tr></thead><tbody>${data.buried.map((/** @type {any} */ m) => html`<tr><td><b>${m.task}</b><br /><code class="dim">${m.id}</code></td><td>${m.pool}</td><td class="right num">${m.deliveries}</td><td><${Time} at=${m.at} /></td><td><span class="actions"><${Act} onClick=${() => release(m)}>Release<//><${Act} class="danger" onClick=${() => remove(m)}>Delete<//></span></td></tr>`)}</tbody></table></div>`}`;
}

const PEEKED = 200;

/** The waiting messages of a pool: counts by run, and the first messages. @param {{pool: string, tick: any}} props */
function Waiting({ pool, tick }) {
  const path = withQuery("v1/queue/messages", { pool, limit: PEEKED });
  const found = useApi(path, tick);
  return html`<section class="panel waiting-panel"><h2>Messages in ${pool} <${Behind} path=${path} /></h2>${shown(found, (data) => {
    if (!data.messages.length) return html`<p class="dim">No messages wait, or the broker cannot list them.</p>`;
    return html`<p>${data.runs.map((/** @type {any} */ r) => html`<${Link} class="tag" to=${`runs/${r.run}`}>${r.run}: ${count(r.ready)}<//>`)} ${data.ready > data.messages.length && html`<span class="dim">of the first ${count(data.messages.length)} of ${plural(data.ready, "message")}</span>`}</p>
    <div class="scroll messages" tabindex="0"><table><thead><tr><th>Task</th><th>Waits</th><th class="right">Size</th></tr></thead><tbody>${data.messages.map(
      (/** @type {any} */ m) => {
        const [flow, run, step, task] = m.task.split("/");
        return html`<tr><td>${task ? html`<${Link} to=${`runs/${flow}/${run}/tasks/${task}`}>${flow}/${run}/${step}/${task}<//>` : m.task}</td><td class="num">${m.at ? span(Math.max(0, now.value - m.at)) : "–"}</td><td class="right num">${size(m.size)}</td></tr>`;
      },
    )}</tbody></table></div>`;
  })}</section>`;
}
