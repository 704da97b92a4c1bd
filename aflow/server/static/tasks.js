// The tasks of a run: sorted and filtered on the server, fetched and rendered as they become visible.
// @ts-check
import {
  Behind,
  get,
  go,
  html,
  Link,
  Notice,
  plural,
  query,
  Skeleton,
  State,
  setQuery,
  size,
  span,
  Time,
  useCallback,
  useLayoutEffect,
  withQuery,
} from "./lib.js";
import { Rows, usePages } from "./table.js";

/** @type {import("./table.js").Column[]} */
const COLUMNS = [
  { title: "State", track: "52px", small: "18px", name: "sign" },
  { title: "Task", track: "minmax(150px, 1.3fr)", small: "minmax(80px, 1.2fr)", sort: "task", name: "name" },
  { title: "Item", track: "minmax(80px, 1fr)", small: "minmax(50px, 1fr)" },
  { title: "Started", track: "100px", sort: "started", hide: "mid" },
  { title: "Duration", track: "92px", small: "64px", sort: "duration", right: true },
  { title: "Wait", track: "84px", sort: "wait", right: true, hide: "mid" },
  { title: "Attempts", track: "72px", right: true, hide: "mid" },
  { title: "Memory", track: "80px", right: true, hide: "wide" },
  { title: "Where", track: "minmax(90px, .8fr)", hide: "wide" },
  { title: "Reason", track: "minmax(120px, 1.4fr)", hide: "wide" },
];
const STATES = ["running", "succeeded", "failed", "cancelled", "ready"];

export function Tasks({ path, data }) {
  const step = query("step"),
    state = query("state"),
    sort = query("sort") || "task";
  const api = `v1/runs/${path}/task-page`;
  const words = { step, state, sort };
  const load = (/** @type {number} */ offset, /** @type {number} */ limit) =>
    get(withQuery(api, { ...words, offset, limit })).then((found) => ({ total: found.total, rows: found.tasks }));
  const pages = usePages(JSON.stringify([path, words]), data.version, load);
  useFailedKeys(path);
  const cells = (/** @type {any} */ t) => {
    return [
      html`<${State} state=${t.reused ? "reused" : t.state} />`,
      html`<${Link} to=${`runs/${path}/tasks/${t.task}`}><b>${t.step}</b><span class="dim">/${t.task}</span><//>`,
      t.item !== null ? html`<code title=${t.item}>${t.item}</code>` : t.index !== null ? html`<span class="dim">#${t.index}</span>` : "",
      html`<${Time} at=${t.started_at} />`,
      span(t.finished_at ? t.finished_at - t.started_at : null),
      span(t.started_at && !t.reused ? Math.max(0, t.started_at - t.created_at) : null),
      t.attempts,
      size(t.max_rss),
      html`<span class="dim">${t.host}</span>`,
      html`<span class="dim" title=${t.reason}>${t.reason}</span>`,
    ];
  };
  const open = useCallback((/** @type {any} */ t) => go(`runs/${path}/tasks/${t.task}`), [path]);
  const choose = (/** @type {string} */ name) => (/** @type {any} */ e) => setQuery({ [name]: e.target.value });
  return html`<div class="toolbar">
      <select aria-label="Step" value=${step} onChange=${choose("step")}><option value="">all steps</option>${data.steps.map((/** @type {any} */ s) => html`<option>${s.step}</option>`)}</select>
      <select aria-label="State" value=${state} onChange=${choose("state")}><option value="">all states</option>${STATES.map((s) => html`<option>${s}</option>`)}</select>
      <select class="only-small" aria-label="Order" value=${sort} onChange=${(/** @type {any} */ e) => setQuery({ sort: e.target.value === "task" ? "" : e.target.value })}>
        ${[
          ["task", "by number"],
          ["started", "by start"],
          ["-duration", "longest first"],
          ["duration", "shortest first"],
          ["-wait", "longest wait first"],
        ].map(([key, title]) => html`<option value=${key}>${title}</option>`)}</select>
      ${pages.total >= 0 && html`<span class="dim" role="status">${plural(pages.total, "task")}</span>`}<${Behind} path=${withQuery(api, { ...words, offset: 0, limit: 100 })} />
    </div>
    ${pages.error && html`<${Notice} kind=${pages.total < 0 ? "bad" : "warn"} retry=${pages.retry}>${pages.error.message}<//>`}
    ${pages.total < 0 && !pages.error && html`<${Skeleton} lines=${10} />`}
    ${pages.total === 0 && html`<${Notice}>${step || state ? "No task matches." : "No task has begun yet."}<//>`}
    ${
      pages.total > 0 &&
      html`<${Rows} key=${JSON.stringify(words)} label="Tasks" columns=${COLUMNS} total=${pages.total} item=${pages.row} cells=${cells} seen=${pages.seen} order=${sort}
      sort=${(/** @type {string} */ by) => setQuery({ sort: by === "task" ? "" : by })} open=${open} room=${330} />`
    }`;
}

/** `[` and `]` go to the failed task before and after. @param {string} path @param {number} [task] */
export function useFailedKeys(path, task = 0) {
  useLayoutEffect(() => {
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
