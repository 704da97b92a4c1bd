// Change all runs that match a filter: count them, ask for confirmation, then change them in batches that can be stopped.
// @ts-check
import { askText, attempt, Behind, confirm, count, get, html, Notice, plural, say, useEffect, useRef, useState } from "./lib.js";

const MOST = 10_000; // runs per action

/** The texts of each action. @type {Record<string, {title: string, done: string, danger?: boolean, warning: string}>} */
const ACTIONS = {
  cancel: { title: "Cancel", done: "asked to stop", danger: true, warning: "Their tasks are stopped. Their results stay, and the runs can be resumed." },
  resume: { title: "Resume", done: "resumed", warning: "Each run continues where it stopped, with its own code." },
  tag: { title: "Add a tag", done: "tagged", warning: "" },
  untag: { title: "Remove a tag", done: "changed", warning: "" },
  delete: {
    title: "Delete",
    done: "deleted",
    danger: true,
    warning: "Their records are deleted. The next `aflow gc` deletes the data that no other run shares. This cannot be undone.",
  },
};

const runs = (/** @type {number} */ n) => plural(n, "run");

/** @typedef {{count: number, names: string[], refused: Record<string, number>, until: number | null, left: boolean, stopped: string}} Found */

/** Send the batches of an action, one after another. @param {any} body @param {() => boolean} goes @param {(found: Found) => void} show @returns {Promise<Found>} */
async function all(body, goes, show) {
  const found = /** @type {Found} */ ({ count: 0, names: [], refused: {}, until: body.until ?? null, left: false, stopped: "" });
  for (let cursor = /** @type {string | null} */ (null); ; ) {
    const answer = await get("v1/batch", { json: { ...body, cursor, until: found.until } });
    found.count += answer.count;
    found.until = answer.until;
    found.names.push(...answer.runs.slice(0, Math.max(0, 8 - found.names.length)));
    for (const { reason, count } of answer.refused) found.refused[reason] = (found.refused[reason] || 0) + count;
    found.stopped = answer.stopped || "";
    cursor = answer.cursor;
    const total = found.count + Object.values(found.refused).reduce((a, b) => a + b, 0);
    found.left = cursor !== null;
    show({ ...found });
    if (cursor === null || found.stopped || total >= MOST || !goes()) return found;
  }
}

/** @param {{filter: string, close: () => void}} props */
export function Many({ filter, close }) {
  const [action, setAction] = useState("");
  const [tags, setTags] = useState(/** @type {string[]} */ ([]));
  const [plan, setPlan] = useState(/** @type {Found | null} */ (null));
  const [done, setDone] = useState(/** @type {Found | null} */ (null));
  const [busy, setBusy] = useState("");
  const asked = useRef(0); // the number of the latest request: responses to earlier ones are ignored
  useEffect(() => () => void asked.current++, []);
  const body = { action, filter, ...(tags.length ? { tags } : {}) };
  const choose = async (/** @type {string} */ name) => {
    const named = name === "tag" || name === "untag" ? await askText(ACTIONS[name].title, "Tag", "Count the runs") : "";
    if (named === null) return;
    const mine = ++asked.current;
    setAction(name);
    setTags(named ? [named] : []);
    setPlan(null);
    setDone(null);
    setBusy("count");
    const goes = () => mine === asked.current;
    await attempt(() => all({ action: name, filter, ...(named ? { tags: [named] } : {}), dry_run: true }, goes, (found) => goes() && setPlan(found)), "");
    if (goes()) setBusy("");
  };
  const start = async () => {
    if (!plan) return;
    const how = ACTIONS[action];
    const listed = html`<p>${runs(plan.count)} that match ${filter ? html`<code>${filter}</code>` : "no filter: all"}. ${how.warning}</p><ul>${plan.names.map((name) => html`<li>${name}</li>`)}</ul>${plan.count > plan.names.length && html`<p class="dim">and ${count(plan.count - plan.names.length)} more</p>`}`;
    if (!(await confirm(`${how.title}: ${runs(plan.count)}?`, listed, `${how.title}: ${runs(plan.count)}`))) return;
    const mine = ++asked.current;
    const goes = () => mine === asked.current;
    setBusy("do");
    const found = await attempt(() => all({ ...body, until: plan.until }, goes, (each) => goes() && setDone(each)), "");
    if (!goes()) return;
    setBusy("");
    if (found && !found.stopped) say(`${runs(found.count)} ${how.done}.`), close();
  };
  const stop = () => (asked.current++, setBusy(""));
  const how = ACTIONS[action];
  const refused = Object.entries((done || plan)?.refused || {});
  return html`<section class="sheet-inline many" aria-label="All runs that match">
    <h2>All runs that match ${filter ? html`<code>${filter}</code>` : "(no filter: all runs)"} <${Behind} path="v1/batch" method="POST" body=${{ ...body, dry_run: true }} /></h2>
    <div class="chips" role="group" aria-label="Action">${Object.entries(ACTIONS).map(([name, each]) => html`<button aria-pressed=${action === name} disabled=${busy === "do"} onClick=${() => choose(name)}>${each.title}</button>`)}</div>
    ${!action && html`<p class="dim">The page first counts the runs. It changes nothing before you confirm.</p>`}
    ${plan && !done && html`<p role="status"><b>${runs(plan.count)}</b> ${busy === "count" ? "so far…" : `can be ${how.done}${tags.length ? `: ${tags[0]}` : ""}.`}</p>`}
    ${action && !plan && busy === "count" && html`<p class="dim" aria-busy="true">Counting…</p>`}
    ${done && plan && html`<progress max=${Math.max(plan.count, 1)} value=${done.count} aria-label="Progress"></progress><p role="status">${count(done.count)} of ${runs(plan.count)} ${how.done}.</p>`}
    ${refused.length > 0 && html`<ul class="plain">${refused.map(([reason, n]) => html`<li><b>${runs(n)}</b> left out: ${reason}</li>`)}</ul>`}
    ${plan?.left && !busy && !done && html`<${Notice}>More runs match: these are the newest ${count(MOST)}. Narrow the filter, or repeat the action afterwards.<//>`}
    ${done?.stopped && html`<${Notice} kind="warn">${done.stopped}<//>`}
    <footer><button type="button" onClick=${close}>Close</button>${busy ? html`<button type="button" onClick=${stop}>Stop</button>` : action && plan && plan.count > 0 && html`<button class=${`main ${how.danger ? "danger" : ""}`} onClick=${start}>${how.title}: ${runs(plan.count)}…</button>`}</footer>
  </section>`;
}
