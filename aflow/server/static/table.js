// A virtualised table: only the visible rows are in the document.
// @ts-check
import { html, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./lib.js";

/** Browsers draw nothing below 16 to 33 million pixels. In longer tables a scrolled pixel stands for several. */
const TALLEST = 8_000_000;
const BESIDE = 6; // rendered rows above and below the visible ones

/**
 * Return the visible rows, and the position of the first of them.
 * @param {{total: number, row: number, top: number, view: number}} at `top` is the scroll position of the box, `view` its height
 */
export function visible({ total, row, top, view }) {
  const whole = total * row;
  const tall = Math.min(whole, TALLEST);
  const ratio = tall < whole ? (whole - view) / Math.max(1, tall - view) : 1;
  const real = Math.max(0, Math.min(top * ratio, whole - view));
  const first = Math.max(0, Math.floor(real / row) - BESIDE);
  const end = Math.min(total, Math.ceil((real + view) / row) + BESIDE);
  return { tall, ratio, first, end, y: top - (real - first * row) };
}

/**
 * @typedef {{title: any, track: string, small?: string, name?: string, right?: boolean, hide?: "wide" | "mid", sort?: string, numeric?: boolean}} Column
 *   `track` is its width in the grid (`small` on a phone); `hide` names the width below which it is hidden ("wide" before "mid")
 */

/**
 * The table. `item(n)` returns the data of a row, or null while they load; `cells(item)` returns its cells, one per column. Cells
 * are rendered again when the item or `fresh` changes. `seen(first, end)` is called with the rows that became visible.
 * @param {{label: string, columns: Column[], total: number, item: (n: number) => any, cells: (item: any) => any[], fresh?: any, row?: number, seen?: (first: number, end: number) => void,
 *   order?: string, sort?: (order: string) => void, mark?: (item: any) => string, pick?: (item: any) => void, open?: (item: any) => void, room?: number}} props
 */
export function Rows({ label, columns, total, item, cells, fresh, row = 36, seen, order = "", sort, mark, pick, open, room = 260 }) {
  const box = useRef(/** @type {any} */ (null));
  const [top, setTop] = useState(0);
  const [view, setView] = useState(600);
  const [bar, setBar] = useState(0); // the height of a horizontal scroll bar, which would hide the last row
  const [at, setAt] = useState(-1);
  const { tall, ratio, first, end, y } = visible({ total, row, top, view });

  useLayoutEffect(() => {
    const watch = new ResizeObserver(() => {
      const node = box.current;
      if (!node) return;
      setView(Math.max(row, node.clientHeight - HEAD));
      setBar(node.offsetHeight - node.clientHeight - BORDERS);
    });
    watch.observe(box.current);
    return () => watch.disconnect();
  }, [row]);
  useEffect(() => seen?.(first, end), [first, end, total, seen]);
  useEffect(() => setAt(-1), [order]);

  const show = useCallback(
    (/** @type {number} */ n) => {
      const node = box.current;
      const from = (n * row) / ratio,
        to = ((n + 1) * row - (node.clientHeight - HEAD)) / ratio;
      if (node.scrollTop > from) node.scrollTop = from;
      else if (node.scrollTop < to) node.scrollTop = to;
    },
    [row, ratio],
  );
  // A layout effect: it runs before the first paint, and after each key before the next one.
  useLayoutEffect(() => {
    const key = (/** @type {any} */ event) => {
      event.preventDefault();
      const by = { j: 1, k: -1 }[/** @type {string} */ (event.detail)];
      if (by) {
        const next = Math.max(0, Math.min(total - 1, at + by));
        setAt(next);
        show(next);
      } else if (at >= 0 && item(at) && event.detail === "x") pick?.(item(at));
      else if (at >= 0 && item(at) && event.detail === "Enter") open?.(item(at));
    };
    addEventListener("rowkey", key);
    return () => removeEventListener("rowkey", key);
  }, [at, total, item, pick, open, show]);

  const tracks = useMemo(() => {
    const of = (/** @type {(c: Column) => boolean} */ kept, small = false) =>
      columns
        .filter(kept)
        .map((c) => (small && c.small) || c.track)
        .join(" ");
    return { "--all": of(() => true), "--wide": of((c) => c.hide !== "wide"), "--mid": of((c) => !c.hide, true) };
  }, [columns]);
  const look = (/** @type {Column} */ c) => `${c.right ? "right num" : ""} ${c.hide || ""} ${c.name || ""}`;
  const header = (/** @type {Column} */ c) => {
    if (!c.sort || !sort) return c.title;
    const down = order === `-${c.sort}`,
      up = order === c.sort;
    return html`<button class="sort" onClick=${() => sort(up ? `-${c.sort}` : c.sort || "")}>${c.title}<i aria-hidden="true">${up ? "↑" : down ? "↓" : ""}</i></button>`;
  };
  const sorted = (/** @type {Column} */ c) => (!c.sort || !sort ? null : order === c.sort ? "ascending" : order === `-${c.sort}` ? "descending" : "none");
  const height = Math.min(total * row, tall) + HEAD + BORDERS + bar;
  // A row that stays visible is the same object as before: Preact does not diff it.
  const made = useRef({ fresh, columns, rows: /** @type {Map<number, any>} */ (new Map()) });
  if (made.current.fresh !== fresh || made.current.columns !== columns) made.current = { fresh, columns, rows: new Map() };
  const { rows } = made.current;
  if (rows.size > 400) for (const n of rows.keys()) if (n < first || n >= end) rows.delete(n);
  const draw = (/** @type {number} */ n) => {
    const found = item(n),
      name = `row ${n === at ? "at" : ""} ${found ? mark?.(found) || "" : ""}`;
    const before = rows.get(n);
    if (before && before.found === found && before.name === name) return before.node;
    const parts = found ? cells(found) : null;
    const node = html`<div key=${n} class=${name} role="row" data-row aria-rowindex=${n + 2} style=${{ height: `${row}px` }}>
      ${parts ? columns.map((c, m) => html`<span role="cell" class=${look(c)}>${parts[m]}</span>`) : html`<span role="cell" class="loading-row" aria-label="Loading"><i></i></span>`}</div>`;
    rows.set(n, { found, name, node });
    return node;
  };
  return html`<div class="rows" ref=${box} role="table" aria-label=${label} aria-rowcount=${total + 1} tabindex="0" style=${{ ...tracks, height: `min(${height}px, max(300px, calc(100vh - ${room}px)))` }}
    onScroll=${() => setTop(box.current.scrollTop)}>
    <div class="row head-row" role="row" aria-rowindex="1">${columns.map((c) => html`<span role="columnheader" class=${look(c)} aria-sort=${sorted(c)}>${header(c)}</span>`)}</div>
    <div class="all-rows" role="rowgroup" style=${{ height: `${tall}px` }}><div role="presentation" style=${{ transform: `translateY(${y}px)` }}>
      ${Array.from({ length: Math.max(0, end - first) }, (_, k) => draw(first + k))}
    </div></div>
  </div>`;
}

const HEAD = 32; // height of the header row in pixels, as in app.css
const BORDERS = 2; // height of both borders in pixels, as in app.css

/**
 * Fetch rows in pages as they become visible. When `version` changes, the visible pages are fetched again; the old rows stay until
 * then.
 * @param {string} key identifies the list: another one starts over @param {any} version
 * @param {(offset: number, limit: number) => Promise<{total: number, rows: any[]}>} load
 */
export function usePages(key, version, load, size = 100) {
  const kept = useRef({
    key: "",
    version,
    pages: /** @type {Map<number, any[]>} */ (new Map()),
    fresh: /** @type {Set<number>} */ (new Set()),
    asked: /** @type {Set<number>} */ (new Set()),
    range: [0, 1],
    total: -1,
    error: /** @type {any} */ (null),
  });
  const [, draw] = useState(0);
  const state = kept.current;
  if (state.key !== key) kept.current = { ...state, key, version, pages: new Map(), fresh: new Set(), asked: new Set(), range: [0, 1], total: -1, error: null };
  const read = useCallback(() => {
    const now = kept.current;
    const last = Math.max(now.range[0] + 1, now.range[1]) - 1;
    for (let page = Math.floor(now.range[0] / size); page <= Math.floor(last / size); page++) {
      if (now.fresh.has(page) || now.asked.has(page)) continue;
      now.asked.add(page);
      load(page * size, size).then(
        (found) => {
          now.asked.delete(page);
          now.pages.set(page, found.rows);
          now.fresh.add(page);
          now.total = found.total;
          now.error = null;
          if (now === kept.current) draw((n) => n + 1);
        },
        (error) => {
          now.asked.delete(page);
          now.error = error;
          if (now !== kept.current) return;
          draw((n) => n + 1);
          if (error.status === 0 || error.status >= 500) setTimeout(() => now === kept.current && read(), 2000);
        },
      );
    }
    if (now.pages.size > 60)
      for (const page of now.pages.keys())
        if (now.pages.size > 40 && Math.abs(page * size - now.range[0]) > 10 * size) now.pages.delete(page) && now.fresh.delete(page);
  }, [key]);
  useEffect(() => {
    kept.current.fresh.clear();
    read();
  }, [key, version]);
  const seen = useCallback(
    (/** @type {number} */ first, /** @type {number} */ end) => {
      kept.current.range = [first, end];
      read();
    },
    [key],
  );
  const now = kept.current;
  return { total: now.total, error: now.error, seen, retry: read, row: (/** @type {number} */ n) => now.pages.get(Math.floor(n / size))?.[n % size] || null };
}
