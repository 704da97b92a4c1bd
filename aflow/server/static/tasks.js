// The tasks of a run: sorted and filtered on the server, drawn as far as they are on the screen.
// @ts-check
import { Behind, Link, Notice, State, Time, count, html, query, setQuery, shown, size, span, useApi, useEffect, withQuery, go, get } from "./lib.js";

const PAGE = 100;
const SORTS = [["task", "Task"], ["started", "Started"], ["-duration", "Longest first"], ["duration", "Shortest first"], ["-wait", "Longest wait first"]];

export function Tasks({ path, data }) {
  const step = query("step"), state = query("state"), sort = query("sort") || "task";
  const page = Number(query("page") || 0);
  const api = withQuery(`v1/runs/${path}/task-page`, { step, state, sort, offset: page * PAGE, limit: PAGE });
  const found = useApi(api, data.version);
  const total = found.data ? found.data.total : 0;
  useFailedKeys(path);
  return html`<div class="toolbar">
      <select aria-label="Step" value=${step} onChange=${(/** @type {any} */ e) => setQuery({ step: e.target.value, page: "" })}><option value="">all steps</option>${data.steps.map((/** @type {any} */ s) => html`<option>${s.step}</option>`)}</select>
      <select aria-label="State" value=${state} onChange=${(/** @type {any} */ e) => setQuery({ state: e.target.value, page: "" })}><option value="">all states</option>${["running", "succeeded", "failed", "cancelled"].map((s) => html`<option>${s}</option>`)}</select>
      <select aria-label="Order" value=${sort} onChange=${(/** @type {any} */ e) => setQuery({ sort: e.target.value === "task" ? "" : e.target.value, page: "" })}>${SORTS.map(([key, title]) => html`<option value=${key}>${title}</option>`)}</select>
      <span class="dim">${count(total)} tasks</span><${Behind} path=${api} />
    </div>
    ${shown(found, (answer) => answer.tasks.length === 0 ? html`<${Notice}>No task matches.<//>` : html`<div class="scroll"><table class="list"><thead><tr><th>State</th><th>Task</th><th>Item</th><th>Started</th><th class="right">Duration</th><th class="right">Wait</th><th class="right">Attempts</th><th class="right">Memory</th><th class="wide">Where</th><th class="wide">Reason</th></tr></thead>
      <tbody>${answer.tasks.map((/** @type {any} */ t) => html`<tr data-row key=${t.task}>
        <td><${State} state=${t.reused ? "reused" : t.state} /></td><td class="name"><${Link} to=${`runs/${path}/tasks/${t.task}`}><b>${t.step}</b><span class="dim">/${t.task}</span><//></td>
        <td title=${t.item || ""}>${t.item !== null ? html`<code>${t.item}</code>` : t.index !== null ? html`<span class="dim">#${t.index}</span>` : ""}</td>
        <td><${Time} at=${t.started_at} /></td><td class="right num">${span(t.finished_at ? t.finished_at - t.started_at : null)}</td><td class="right num">${span(t.started_at && !t.reused ? Math.max(0, t.started_at - t.created_at) : null)}</td>
        <td class="right num">${t.attempts}</td><td class="right num">${size(t.max_rss)}</td><td class="wide dim">${t.host}</td><td class="wide reason">${t.reason}</td></tr>`)}</tbody></table></div>`)}
    ${total > PAGE && html`<nav class="pages" aria-label="Pages of tasks"><button disabled=${page === 0} onClick=${() => setQuery({ page: page - 1 || "" })}>Previous</button><span>${count(page * PAGE + 1)}–${count(Math.min(total, (page + 1) * PAGE))} of ${count(total)}</span><button disabled=${(page + 1) * PAGE >= total} onClick=${() => setQuery({ page: page + 1 })}>Next</button></nav>`}`;
}

/** `[` and `]` go to the failed task before and after. @param {string} path @param {number} [task] */
export function useFailedKeys(path, task = 0) {
  useEffect(() => {
    const move = async (/** @type {any} */ event) => {
      const answer = await get(withQuery(`v1/runs/${path}/task-page`, { state: "failed", limit: 500 })).catch(() => null);
      const failed = (answer?.tasks || []).map((/** @type {any} */ t) => t.task);
      const next = event.detail > 0 ? failed.find((/** @type {number} */ n) => n > task) : failed.filter((/** @type {number} */ n) => n < task || !task).pop();
      if (next !== undefined) go(`runs/${path}/tasks/${next}`);
    };
    addEventListener("failed", move);
    return () => removeEventListener("failed", move);
  }, [path, task]);
}
