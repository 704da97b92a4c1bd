// Settings: the server, its checks, garbage collection, storage by flow, tokens, and the theme.
// @ts-check
import { Act, ask, attempt, Behind, confirm, copy, count, get, html, Link, Notice, plural, State, shown, size, Time, theme, useApi, useState } from "./lib.js";

export function SettingsPage() {
  return html`<div class="head"><h1>Settings</h1></div>
    <div class="panels"><div><${Look} /><${Server} /><${Storage} /></div><div><${Doctor} /><${Collection} /></div><${Tokens} /></div>`;
}

function Look() {
  const [chosen, choose] = useState(localStorage.getItem("aflow.theme") || "");
  return html`<section class="panel"><h2>Look</h2><div class="chips" role="group" aria-label="Theme">
    ${[
      ["", "As the system"],
      ["light", "Light"],
      ["dark", "Dark"],
    ].map(([name, title]) => html`<button aria-pressed=${chosen === name} onClick=${() => (theme(name), choose(name))}>${title}</button>`)}</div></section>`;
}

function Server() {
  const found = useApi("v1/server");
  const rows = (/** @type {any} */ d) => [
    ["Logged in as", d.caller ? identity(d.caller) : "–"],
    ["Version", d.version],
    ["Python", d.python],
    ["Metadata", d.metadata],
    ["Datastore", d.storage],
    ["Runs here now", count(d.runs_here)],
    ["Previews of artifacts", d.previews ? "written (AFLOW_PREVIEWS=0 leaves them out)" : "off: only types and shapes are recorded"],
  ];
  return html`<section class="panel"><h2>Server <${Behind} path="v1/server" /></h2>
    ${shown(found, (data) => html`<dl class="pairs">${rows(data).map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl><p><button onClick=${logOut}>Log out</button></p>`)}</section>`;
}

const RIGHTS = { read: "may read", write: "may read and change" };

/** The token of this browser: name, scope and expiry. @param {{name: string, scope: "read" | "write", expires_at: number | null}} caller */
const identity = ({ name, scope, expires_at }) =>
  `${name}, which ${RIGHTS[scope]}${expires_at ? `, until ${new Date(expires_at * 1000).toLocaleString()}` : ""}`;

const logOut = () => attempt(() => ask("ui/logout", { method: "POST" }), "").then(() => location.reload());

const SIGNS = { ok: "succeeded", warn: "pending", fail: "failed" };

/** The results of `aflow doctor` with the settings of the server. */
function Doctor() {
  const [state, set] = useState(/** @type {{busy: boolean, findings: any[] | null, error: string}} */ ({ busy: false, findings: null, error: "" }));
  const check = async () => {
    set({ ...state, busy: true, error: "" });
    try {
      set({ busy: false, findings: (await get("v1/doctor", { method: "POST" })).findings, error: "" });
    } catch (error) {
      set({ ...state, busy: false, error: error instanceof Error ? error.message : String(error) });
    }
  };
  const bad = (state.findings || []).filter((f) => f.state !== "ok").length;
  return html`<section class="panel"><h2>Check <${Behind} path="v1/doctor" method="POST" /></h2>
    <p class="dim">Checks whether this machine, the datastore, the metadata, the queue and the settings of AWS work. It changes nothing.</p>
    <${Act} onClick=${check} disabled=${state.busy} aria-busy=${state.busy ? "true" : null}>${state.busy ? "Checking…" : state.findings ? "Check again" : "Check now"}<//>
    ${state.error && html`<${Notice} kind="bad" retry=${check}>${state.error}<//>`}
    ${
      state.findings &&
      html`<p role="status">${bad ? `${count(bad)} of ${plural(state.findings.length, "finding")} ${bad === 1 ? "needs" : "need"} attention.` : "All is well."}</p>
      <ul class="findings">${state.findings.map((f) => html`<li><${State} state=${/** @type {any} */ (SIGNS)[f.state]} name=${f.state} /><div><b>${f.name}</b> ${f.message}${f.advice && html`<br /><span class="dim">${f.advice}</span>`}</div></li>`)}</ul>`
    }</section>`;
}

const DAY = 86400;
const AGES = [
  ["", "any age"],
  ["1", "a day ago"],
  ["7", "a week ago"],
  ["30", "30 days ago"],
  ["90", "90 days ago"],
  ["365", "a year ago"],
];

/** What `aflow gc` would delete. */
function Collection() {
  const [age, setAge] = useState("30");
  const [failed, setFailed] = useState(false);
  const [keep, setKeep] = useState("0");
  const [plan, setPlan] = useState(/** @type {any} */ (null));
  const [busy, setBusy] = useState(false);
  const body = { older_than: age ? Number(age) * DAY : null, failed, keep: Number(keep) || 0 };
  const look = async (/** @type {any} */ event) => {
    event.preventDefault();
    setBusy(true);
    setPlan(await attempt(() => get("v1/gc", { json: body }), ""));
    setBusy(false);
  };
  const words = ["aflow gc", age && `--older-than ${age}d`, failed && "--failed", Number(keep) > 0 && `--keep ${Number(keep)}`].filter(Boolean).join(" ");
  const change = (/** @type {(value: any) => void} */ set) => (/** @type {any} */ e) => (
    set(e.target.type === "checkbox" ? e.target.checked : e.target.value), setPlan(null)
  );
  return html`<section class="panel"><h2>Clean up <${Behind} path="v1/gc" method="POST" body=${body} /></h2>
    <p class="dim">Shows which runs and unreferenced objects <code>aflow gc</code> would delete. It deletes nothing.</p>
    <form class="toolbar" onSubmit=${look}>
      <label>Runs that ended before <select value=${age} onChange=${change(setAge)}>${AGES.map(([value, title]) => html`<option value=${value}>${title}</option>`)}</select></label>
      <label class="check"><input type="checkbox" checked=${failed} onChange=${change(setFailed)} /> only unsuccessful runs</label>
      <label>keep the newest <input type="number" min="0" max="9999" value=${keep} onInput=${change(setKeep)} /> of each flow</label>
      <${Act} disabled=${busy}>${busy ? "Looking…" : "Look"}<//></form>
    ${
      plan &&
      html`<p role="status"><b>${plural(plan.count, "run")}</b> and ${plural(plan.objects, "object")} would be deleted: <b>${size(plan.size)}</b>.${plan.young > 0 && ` ${plural(plan.young, "more object")} ${plan.young === 1 ? "is" : "are"} unreferenced, but too new to be deleted.`}</p>
      ${plan.runs.length > 0 && html`<details><summary>The runs</summary><ul class="plain">${plan.runs.map((/** @type {string} */ run) => html`<li>${run}</li>`)}</ul>${plan.count > plan.runs.length && html`<p class="dim">and ${count(plan.count - plan.runs.length)} more</p>`}</details>`}
      <p>In a terminal, in the server's folder: <code>${words}</code> <button onClick=${() => copy(words)}>Copy</button></p>`
    }</section>`;
}

/** The size of the artifacts of each flow. */
function Storage() {
  const [found, set] = useState(/** @type {any} */ (null));
  const [busy, setBusy] = useState(false);
  const look = async () => {
    setBusy(true);
    set((await attempt(() => get("v1/storage", { method: "POST" }), "")) || found);
    setBusy(false);
  };
  const most = Math.max(...(found?.flows || []).map((/** @type {any} */ f) => f.size), 1);
  return html`<section class="panel"><h2>Storage by flow <${Behind} path="v1/storage" method="POST" /></h2>
    <p class="dim">The size of the artifacts and the code of each flow in the datastore. Data that several runs of a flow share count once.</p>
    <${Act} onClick=${look} disabled=${busy} aria-busy=${busy ? "true" : null}>${busy ? "Adding up…" : found ? "Add up again" : "Add up"}<//>
    ${
      found &&
      html`<p role="status"><b>${size(found.size)}</b> in ${plural(found.objects, "object")}${found.complete ? "." : " so far. The time limit was reached before all runs were read."}</p>
      ${
        found.flows.length > 0 &&
        html`<div class="scroll" tabindex="0"><table><thead><tr><th>Flow</th><th class="right">Runs</th><th class="right">Objects</th><th class="right">Size</th><th><span class="hidden">Share</span></th></tr></thead><tbody>${found.flows.map((/** @type {any} */ f) => html`<tr><td class="name"><${Link} to=${`flows/${f.flow}`}>${f.flow}<//></td><td class="right num">${count(f.runs)}</td><td class="right num">${count(f.objects)}</td><td class="right num">${size(f.size)}</td><td class="share"><span class="paired"><i style=${{ width: `${(f.size / most) * 100}%` }}></i></span></td></tr>`)}</tbody></table></div>`
      }`
    }</section>`;
}

const LIVES = [
  ["", "for ever"],
  ["1", "a day"],
  ["30", "30 days"],
  ["365", "a year"],
];

function Tokens() {
  const [tick, setTick] = useState(0);
  const tokens = useApi("v1/tokens", tick);
  const again = () => setTick((n) => n + 1);
  const [made, setMade] = useState("");
  const create = async (/** @type {any} */ event) => {
    event.preventDefault();
    const form = new FormData(event.target),
      days = Number(form.get("days"));
    const answer = await attempt(() => get("v1/tokens", { json: { name: form.get("name"), scope: form.get("scope"), seconds: days ? days * DAY : null } }), "");
    if (answer) setMade(answer.token), event.target.reset(), again();
  };
  const revoke = async (/** @type {any} */ token) => {
    if (await confirm("Revoke the token?", html`<p>The server then refuses clients that use ${token.name}.</p>`, "Revoke it"))
      attempt(() => ask(`v1/tokens/${encodeURIComponent(token.name)}`, { method: "DELETE" }), "Revoked.").then(again);
  };
  return html`<section class="panel wide-panel"><h2>Tokens <${Behind} path="v1/tokens" /></h2>${shown(
    tokens,
    (data) => html`
    ${
      data.tokens.length === 0
        ? html`<p class="dim">There are no tokens: this server accepts only clients of this machine. As soon as you create a token, the server requires one.</p>`
        : html`<div class="scroll"><table><thead><tr><th>Name</th><th>Scope</th><th>Created</th><th>Expires</th><th></th></tr></thead><tbody>${data.tokens.map(
            (/** @type {any} */ t) => html`<tr>
      <td><b>${t.name}</b></td><td>${t.scope}</td><td><${Time} at=${t.created_at} /></td><td>${t.expires_at ? html`<time title=${new Date(t.expires_at * 1000).toISOString()}>${new Date(t.expires_at * 1000).toLocaleString()}</time>` : "never"}</td>
      <td class="right"><${Act} class="danger" onClick=${() => revoke(t)}>Revoke<//></td></tr>`,
          )}</tbody></table></div>`
    }
    <form class="toolbar" onSubmit=${create}><input name="name" aria-label="Name of a new token" placeholder="Name of a new token" required />
      <label>may <select name="scope" aria-label="Scope"><option value="read">read</option><option value="write">read and change</option></select></label>
      <label>lasts <select name="days" aria-label="Lasts">${LIVES.map(([value, title]) => html`<option value=${value}>${title}</option>`)}</select></label><${Act}>Create<//></form>
    ${made && html`<${Notice} kind="warn"><span>The token is shown only once: <code>${made}</code></span> <button onClick=${() => copy(made)}>Copy</button><//>`}`,
  )}</section>`;
}
