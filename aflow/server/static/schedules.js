// Schedules: pause and resume, next times, run now, create, change, delete.
// @ts-check
import { Act, ask, attempt, Behind, confirm, get, go, html, Link, Notice, query, setQuery, shown, useApi, useEffect, useState, withQuery } from "./lib.js";

const pathOf = (/** @type {string} */ name) => `v1/schedules/${encodeURIComponent(name)}`;

export function SchedulesPage() {
  const [tick, setTick] = useState(0);
  const found = useApi("v1/schedules", tick);
  const again = () => setTick((n) => n + 1);
  const edited = query("edit");
  useEffect(() => {
    const timer = setInterval(() => document.hidden || again(), 15000);
    return () => clearInterval(timer);
  }, []);
  const pause = (/** @type {any} */ s) =>
    attempt(() => ask(pathOf(s.name), { method: "PATCH", json: { paused: !s.paused } }), s.paused ? `${s.name} is on.` : `${s.name} is off.`).then(again);
  const start = async (/** @type {any} */ s) => {
    const answer = await attempt(() => get(`${pathOf(s.name)}/runs`, { method: "POST" }), "");
    if (answer) go(`runs/${answer.run}`);
  };
  const remove = async (/** @type {any} */ s) => {
    if (await confirm("Delete the schedule?", html`<p>${s.name} starts no more runs. Its earlier runs stay.</p>`, "Delete it"))
      attempt(() => ask(pathOf(s.name), { method: "DELETE" }), "Deleted.").then(again);
  };
  const close = () => (setQuery({ edit: "" }), again());
  return html`<div class="head"><h1>Schedules</h1><div class="actions"><${Act} class="main" onClick=${() => setQuery({ edit: "*" })}>New schedule…<//></div><${Behind} path="v1/schedules" /></div>
  ${shown(found, (data) => {
    const one = data.schedules.find((/** @type {any} */ s) => s.name === edited);
    return html`${edited && (one || edited === "*") && html`<${Form} key=${edited} schedule=${one} close=${close} />`}
    ${
      data.schedules.length === 0
        ? html`<${Notice}><span>There are no schedules. Create one for a flow that has run here, or use <code>aflow schedule create flow.py</code>, which takes the flow's own <code>@schedule</code>.</span><//>`
        : html`<div class="scroll"><table class="list stack"><thead><tr><th>On</th><th>Name</th><th>When</th><th>Next</th><th class=${data.schedules.some((/** @type {any} */ s) => s.latest) ? "" : "wide"}>Latest run</th><th class="right wide">Started</th><th class="right wide">Skipped</th><th><span class="hidden">Actions</span></th></tr></thead><tbody>
      ${data.schedules.map(
        (
          /** @type {any} */ s,
        ) => html`<tr data-row><td><${Act} role="switch" aria-checked=${!s.paused} aria-label=${`${s.name} is ${s.paused ? "off" : "on"}`} class="switch" onClick=${() => pause(s)}><//></td>
        <td class="name"><b>${s.name}</b>${s.flow && html` <${Link} class="dim" to=${`flows/${s.flow}`}>${s.flow}<//>`}${s.reason && html`<div class="reason">${s.reason}</div>`}</td><td><code>${s.cron}</code> <span class="dim">${s.timezone}</span></td>
        <td>${s.paused ? html`<span class="dim">off</span>` : s.next ? html`<${Soon} at=${s.next} />` : "–"}</td>
        <td class=${data.schedules.some((/** @type {any} */ each) => each.latest) ? "" : "wide"}>${s.latest ? html`<${Link} to=${`runs/${s.latest}`}>${s.latest.split("/")[1]}<//>` : "–"}</td><td class="right num wide">${s.started}</td><td class="right num wide">${s.skipped}</td>
        <td><span class="actions"><${Act} onClick=${() => start(s)}>Run now<//><${Act} onClick=${() => setQuery({ edit: s.name })}>Change…<//><${Act} class="danger" onClick=${() => remove(s)}>Delete<//></span></td></tr>`,
      )}</tbody></table></div>`
    }`;
  })}`;
}

/** Format a future time. @param {{at: number}} props */
function Soon({ at }) {
  const when = new Date(at * 1000);
  return html`<time dateTime=${when.toISOString()} title=${`${when.toISOString().replace("T", " ").slice(0, 16)} UTC`}>${when.toLocaleString([], { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" })}</time>`;
}

const MISSED = [
  ["latest", "start the latest"],
  ["skip", "skip them"],
  ["all", "start all of them"],
];
const OVERLAP = [
  ["skip", "skip the new run"],
  ["wait", "wait until it ends"],
  ["cancel", "cancel it"],
  ["allow", "start the new run as well"],
];

/** The form that creates or changes a schedule. @param {{schedule?: any, close: () => void}} props */
function Form({ schedule, close }) {
  const flows = useApi(schedule ? null : "v1/flows");
  const [flow, setFlow] = useState(schedule?.flow || "");
  const detail = useApi(flow ? `v1/flows/${flow}` : null);
  const [values, set] = useState({
    name: schedule?.name || "",
    cron: schedule?.cron || "0 6 * * ? *",
    timezone: schedule?.timezone || Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC",
    missed: schedule?.missed || "latest",
    overlap: schedule?.overlap || "skip",
  });
  const [parameters, setParameters] = useState(/** @type {Record<string, any>} */ (schedule?.parameters || {}));
  const [message, setMessage] = useState("");
  const field = (/** @type {string} */ name) => ({
    value: /** @type {any} */ (values)[name],
    onInput: (/** @type {any} */ e) => set({ ...values, [name]: e.target.value }),
  });
  const code = detail.data?.code;
  const body = schedule
    ? { cron: values.cron, timezone: values.timezone, missed: values.missed, overlap: values.overlap, parameters }
    : {
        cron: values.cron,
        timezone: values.timezone,
        missed: values.missed,
        overlap: values.overlap,
        run: { package: code?.key, script: code?.script, flow, parameters },
      };
  const save = async (/** @type {any} */ event) => {
    event.preventDefault();
    setMessage("");
    try {
      await ask(pathOf(values.name), { method: schedule ? "PATCH" : "PUT", json: body });
      close();
    } catch (error) {
      setMessage(error instanceof Error ? error.message : String(error));
    }
  };
  const given = (/** @type {string} */ name) => (/** @type {any} */ e) => {
    const next = { ...parameters };
    if (e.target.value === "") delete next[name];
    else next[name] = e.target.value;
    setParameters(next);
  };
  const known = detail.data?.parameters || [];
  return html`<form class="sheet-inline" onSubmit=${save} aria-label=${schedule ? `Change ${schedule.name}` : "New schedule"}>
    <h2>${schedule ? `Change ${schedule.name}` : "New schedule"}</h2>
    ${
      !schedule &&
      html`<div class="fields"><label>Flow <select required value=${flow} onChange=${(/** @type {any} */ e) => (setFlow(e.target.value), values.name || set({ ...values, name: e.target.value }))}><option value="">choose one</option>${(flows.data?.flows || []).map((/** @type {any} */ f) => html`<option>${f.flow}</option>`)}</select></label>
      <label>Name <input required pattern="[A-Za-z0-9][A-Za-z0-9_\\-]*" maxlength="100" ...${field("name")} /></label></div>`
    }
    ${flow && detail.data && !schedule && !code?.key && html`<${Notice} kind="warn">The code of this flow was not kept, so this page cannot run it. Use <code>aflow schedule create</code> with its file.<//>`}
    <div class="fields"><label>Cron <input required class="code" spellcheck=${false} ...${field("cron")} /></label><label>Timezone <input list="zones" ...${field("timezone")} /></label></div>
    <datalist id="zones">${Intl.supportedValuesOf("timeZone").map((zone) => html`<option value=${zone} />`)}</datalist>
    <${Ticks} cron=${values.cron} timezone=${values.timezone} />
    <div class="fields"><label>If the earlier run is still active <select value=${values.overlap} onChange=${field("overlap").onInput}>${OVERLAP.map(([key, title]) => html`<option value=${key}>${title}</option>`)}</select></label>
      <label>For missed runs <select value=${values.missed} onChange=${field("missed").onInput}>${MISSED.map(([key, title]) => html`<option value=${key}>${title}</option>`)}</select></label></div>
    ${known.length > 0 && html`<fieldset><legend>Parameters</legend><div class="fields">${known.map((/** @type {any} */ p) => html`<label><span>${p.name} <small class="dim">${p.type}</small></span><input placeholder="the flow's default" value=${parameters[p.name] ?? ""} onInput=${given(p.name)} /></label>`)}</div></fieldset>`}
    ${message && html`<${Notice} kind="bad">${message}<//>`}
    <footer><${Behind} path=${pathOf(values.name || "NAME")} method=${schedule ? "PATCH" : "PUT"} body=${body} /><button type="button" onClick=${close}>Close</button><${Act} class="main" disabled=${!schedule && !code?.key}>${schedule ? "Save" : "Create"}<//></footer></form>`;
}

/** The next times of a cron expression, while the user types it. @param {{cron: string, timezone: string}} props */
function Ticks({ cron, timezone }) {
  const [asked, setAsked] = useState({ cron, timezone });
  useEffect(() => {
    const timer = setTimeout(() => setAsked({ cron, timezone }), 250);
    return () => clearTimeout(timer);
  }, [cron, timezone]);
  const found = useApi(asked.cron.trim() ? withQuery("v1/ticks", asked) : null);
  if (found.error && !found.data) return html`<p class="bad" role="status">${found.error.message}</p>`;
  if (!found.data) return html`<p class="dim">…</p>`;
  if (!found.data.next.length) return html`<p class="bad" role="status">This schedule has no next run.</p>`;
  return html`<p class="dim" role="status">Due ${found.data.next.map((/** @type {number} */ at, /** @type {number} */ n) => html`${n ? " · " : ""}<${Soon} at=${at} />`)}</p>`;
}
