// The timeline of a run. Tasks share lanes: there are as many as tasks that ran at the same time.
// It is drawn as pixels, not as shapes: a hundred thousand tasks take a few milliseconds per frame.
// @ts-check
import {
  ask,
  count,
  go,
  html,
  Link,
  Notice,
  now,
  plural,
  query,
  Skeleton,
  State,
  setQuery,
  span,
  useEffect,
  useLayoutEffect,
  useMemo,
  useReading,
  useRef,
  useState,
  withQuery,
} from "./lib.js";
import { Rows } from "./table.js";

/** @typedef {{version: number, base: number, steps: string[], workers: string[], states: string[], count: number, task: Uint32Array, ready: Float32Array, start: Float32Array, end: Float32Array, step: Uint16Array, worker: Uint16Array, state: Uint8Array, flags: Uint8Array}} Columns */

/** Decode the columns of a response; aflow/server/columns.py describes the format. @param {ArrayBuffer} buffer @returns {Columns} */
export function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  /** @param {any} kind @param {number} bytes */
  const column = (kind, bytes) => {
    const found = new kind(buffer, at, head.count);
    at += head.count * bytes + ((8 - ((head.count * bytes) % 8)) % 8);
    return found;
  };
  return {
    ...head,
    task: column(Uint32Array, 4),
    ready: column(Float32Array, 4),
    start: column(Float32Array, 4),
    end: column(Float32Array, 4),
    step: column(Uint16Array, 2),
    worker: column(Uint16Array, 2),
    state: column(Uint8Array, 1),
    flags: column(Uint8Array, 1),
  };
}

const NAMES = /** @type {const} */ (["task", "ready", "start", "end", "step", "worker", "state", "flags"]);

/** The row of each task number, kept while columns grow. @type {WeakMap<Columns, Map<number, number>>} */
const rowsOf = new WeakMap();

/** Merge changed rows into columns that were fetched before. @param {Columns} all @param {Columns} news @returns {Columns} */
export function merge(all, news) {
  const rows = rowsOf.get(all) || new Map();
  if (!rows.size) for (let n = 0; n < all.count; n++) rows.set(all.task[n], n);
  let total = all.count;
  const at = new Uint32Array(news.count);
  for (let n = 0; n < news.count; n++) {
    let row = rows.get(news.task[n]);
    if (row === undefined) rows.set(news.task[n], (row = total++));
    at[n] = row;
  }
  const out = /** @type {any} */ ({ ...news, count: total });
  for (const name of NAMES) {
    const from = /** @type {any} */ (news)[name],
      before = /** @type {any} */ (all)[name];
    const column = total === all.count ? before : new from.constructor(total);
    if (column !== before) column.set(before);
    for (let n = 0; n < news.count; n++) column[at[n]] = from[n];
    out[name] = column;
  }
  rowsOf.set(out, rows);
  return out;
}

/**
 * Assign a lane to each task. With `lane` all tasks share the lanes; with `step` or `worker` each of these has its own.
 * @param {Columns} c @param {string} by
 */
export function pack(c, by) {
  const order = new Uint32Array(c.count);
  let n = 0;
  for (let row = 0; row < c.count; row++) if (!Number.isNaN(c.start[row])) order[n++] = row;
  const rows = byStart(order.subarray(0, n), c.start);
  const group = by === "step" ? c.step : by === "worker" ? c.worker : null;
  const lane = new Int32Array(c.count).fill(-1);
  /** @type {Map<number, {ends: number[], heap: number[], lanes: number}>} */
  const groups = new Map();
  for (const row of rows) {
    const key = group ? group[row] : 0;
    let g = groups.get(key);
    if (!g) groups.set(key, (g = { ends: [], heap: [], lanes: 0 }));
    // A heap of the times at which lanes become free: the earliest one is reused.
    const end = Number.isNaN(c.end[row]) ? Infinity : c.end[row];
    let at;
    if (g.heap.length && g.ends[g.heap[0]] <= c.start[row]) at = popLane(g);
    else at = g.lanes++;
    g.ends[at] = end;
    pushLane(g, at);
    lane[row] = at;
  }
  const keys = [...groups.keys()].sort((a, b) => a - b);
  let first = 0;
  const bands = keys.map((key) => {
    const lanes = /** @type {any} */ (groups.get(key)).lanes;
    const band = { key, first, lanes, name: by === "step" ? c.steps[key] : by === "worker" ? c.workers[key] || "here" : "" };
    first += lanes;
    return band;
  });
  const offset = new Map(bands.map((band) => [band.key, band.first]));
  if (group) for (const row of rows) lane[row] += offset.get(group[row]) || 0;
  return { rows, lane, lanes: first, bands };
}

/**
 * Sort rows by start. They nearly are sorted: tasks are numbered as they are created. Otherwise integer keys are sorted (the start
 * in the upper half, the row in the lower one), which is several times as fast as a comparison function.
 * @param {Uint32Array} rows @param {Float32Array} start
 */
function byStart(rows, start) {
  let sorted = true;
  for (let n = 1; sorted && n < rows.length; n++) sorted = start[rows[n - 1]] <= start[rows[n]];
  if (sorted) return rows;
  if (rows.length >= 2097152) return rows.sort((a, b) => start[a] - start[b] || a - b);
  const bits = new Uint32Array(start.buffer, start.byteOffset, start.length);
  const keys = new Float64Array(rows.length);
  // The bits of positive floats sort like the floats. A start before that of the run (the clock was set) counts as 0.
  for (let n = 0; n < rows.length; n++) keys[n] = (start[rows[n]] > 0 ? bits[rows[n]] : 0) * 2097152 + n;
  keys.sort();
  const found = new Uint32Array(rows.length);
  for (let n = 0; n < keys.length; n++) found[n] = rows[keys[n] % 2097152];
  return found;
}

/** @param {{ends: number[], heap: number[]}} g */
function popLane(g) {
  const top = g.heap[0],
    last = /** @type {number} */ (g.heap.pop());
  if (g.heap.length) {
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= g.heap.length) break;
      if (child + 1 < g.heap.length && g.ends[g.heap[child + 1]] < g.ends[g.heap[child]]) child++;
      if (g.ends[g.heap[child]] >= g.ends[last]) break;
      g.heap[at] = g.heap[child];
      at = child;
    }
    g.heap[at] = last;
  }
  return top;
}

/** @param {{ends: number[], heap: number[]}} g @param {number} lane */
function pushLane(g, lane) {
  let at = g.heap.push(lane) - 1;
  while (at && g.ends[g.heap[(at - 1) >> 1]] > g.ends[lane]) {
    g.heap[at] = g.heap[(at - 1) >> 1];
    at = (at - 1) >> 1;
  }
  g.heap[at] = lane;
}

/** @type {Map<string, number>} */
const colours = new Map();
let coloursOf = "";
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Return a colour of the style sheet in the current theme. @param {string} name */
function resolved(name) {
  const node = document.body.appendChild(document.createElement("i"));
  node.style.color = `var(${name})`;
  const found = getComputedStyle(node).color;
  node.remove();
  return found;
}

/** Return a colour of the style sheet as a number for ImageData; cached until the theme changes. @param {string} name */
function colour(name) {
  const look = `${document.documentElement.dataset.theme || ""}${dark.matches}`;
  if (look !== coloursOf) colours.clear(), (coloursOf = look);
  const known = colours.get(name);
  if (known !== undefined) return known;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const probe = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  probe.fillStyle = resolved(name);
  probe.fillRect(0, 0, 1, 1);
  const [r, g, b] = probe.getImageData(0, 0, 1, 1).data;
  const found = (0xff000000 | (b << 16) | (g << 8) | r) >>> 0;
  colours.set(name, found);
  return found;
}

const PALETTE = {
  succeeded: "--good-mass",
  failed: "--bad-mass",
  running: "--hot-mass",
  cancelled: "--dim",
  ready: "--line",
  waiting: "--line",
};

/**
 * Fetch the tasks of a run as columns, then only the changes. The request runs in parallel to that of the run: both take long for a
 * million tasks.
 * @param {string | null} path null fetches nothing @param {unknown} tick
 * @returns {{columns: Columns | null, error: any, retry: () => void}}
 */
export function useColumns(path, tick) {
  const [state, set] = useState(/** @type {any} */ ({ path: null, columns: null, error: null }));
  const held = useRef(/** @type {{path: string | null, columns: Columns | null}} */ ({ path: null, columns: null }));
  const retry = useReading(
    path,
    tick,
    async (signal) => {
      const before = held.current.path === path ? held.current.columns : null;
      const answer = await ask(withQuery(`v1/runs/${path}/columns`, { since: before?.version }), { signal });
      return [before, decode(await answer.arrayBuffer())];
    },
    ([before, news]) => {
      held.current = { path, columns: before ? (news.count || news.version !== before.version ? merge(before, news) : before) : news };
      set({ path, columns: held.current.columns, error: null });
    },
    (error) => set((/** @type {any} */ was) => ({ path, columns: was.path === path ? was.columns : null, error })),
  );
  return state.path === path ? { ...state, retry } : { columns: null, error: null, retry };
}

/** @param {{path: string, running: boolean, found: ReturnType<typeof useColumns>}} props */
export function Timeline({ path, running, found }) {
  const { columns, error, retry } = found;
  const by = query("by") || "lane";
  if (error && !columns) return html`<${Notice} kind="bad" retry=${retry}>${error.message}<//>`;
  if (!columns) return html`<${Skeleton} />`;
  const stale = error && html`<${Notice} kind="warn" retry=${retry}>This timeline is not up to date: ${error.message}<//>`;
  if (!columns.count) return html`${stale}<${Notice}>No task has started yet.<//>`;
  return html`${stale}<${Chart} c=${columns} by=${by} path=${path} running=${running} />`;
}

/**
 * Build the time axis without idle periods. `at(t)` maps a time to its position, `time(x)` is the inverse; a narrow seam separates
 * the remaining periods.
 * @param {Columns} c @param {Uint32Array} rows @param {number} now @param {boolean} collapse
 */
export function timeAxis(c, rows, now, collapse) {
  let low = Infinity,
    high = 0;
  for (const r of rows) {
    if (c.start[r] < low) low = c.start[r];
    const end = Number.isNaN(c.end[r]) ? now : c.end[r];
    if (end > high) high = end;
  }
  high = Math.max(high, low + 0.001);
  /** @type {[number, number][]} */
  const busy = [];
  if (collapse) {
    const seam = (high - low) * 0.01;
    for (const r of rows) {
      const end = Number.isNaN(c.end[r]) ? now : c.end[r],
        last = busy[busy.length - 1];
      if (last && c.start[r] <= last[1] + seam) last[1] = Math.max(last[1], end);
      else busy.push([c.start[r], end]);
    }
  }
  if (busy.length < 2) return { low, high, seams: /** @type {number[]} */ ([]), at: (/** @type {number} */ t) => t, time: (/** @type {number} */ x) => x };
  const work = busy.reduce((sum, [a, b]) => sum + b - a, 0),
    gap = Math.max(work * 0.015, 0.0005);
  const begins = [low];
  for (let n = 1; n < busy.length; n++) begins.push(begins[n - 1] + busy[n - 1][1] - busy[n - 1][0] + gap);
  const piece = (/** @type {number} */ value, /** @type {(n: number) => number} */ begin) => {
    let first = 0,
      last = busy.length - 1;
    while (first < last) {
      const middle = (first + last + 1) >> 1;
      if (begin(middle) <= value) first = middle;
      else last = middle - 1;
    }
    return first;
  };
  const length = (/** @type {number} */ n) => busy[n][1] - busy[n][0];
  return {
    low,
    high: begins[busy.length - 1] + length(busy.length - 1),
    seams: begins.slice(1).map((x) => x - gap / 2),
    at: (/** @type {number} */ t) => {
      const n = piece(t, (k) => busy[k][0]);
      return begins[n] + Math.min(t - busy[n][0], length(n) + gap);
    },
    time: (/** @type {number} */ x) => {
      const n = piece(x, (k) => begins[k]);
      return busy[n][0] + Math.min(x - begins[n], length(n));
    },
  };
}

/** Return the columns with their times mapped to the axis. @param {Columns} c @param {ReturnType<typeof timeAxis>} axis @param {number} now @returns {Columns} */
function placed(c, axis, now) {
  if (!axis.seams.length) return c;
  const start = c.start.map((t) => (Number.isNaN(t) ? t : axis.at(t)));
  const end = c.end.map((t) => axis.at(Number.isNaN(t) ? now : t));
  return { ...c, start, end };
}

/**
 * Arrange what is drawn in the order of the starts, so that a frame reads memory sequentially. `sort` holds the state and, in higher
 * bits, the flags; `latest` the latest end so far, which a binary search needs to find the first visible task.
 * @param {Columns} c @param {ReturnType<typeof pack>} packed
 */
export function ordered(c, packed) {
  const { rows } = packed,
    size = rows.length;
  const start = new Float32Array(size),
    end = new Float32Array(size),
    latest = new Float32Array(size),
    lane = new Uint32Array(size),
    sort = new Uint8Array(size);
  let last = -Infinity;
  for (let n = 0; n < size; n++) {
    const r = rows[n];
    start[n] = c.start[r];
    const to = (end[n] = c.end[r]);
    latest[n] = last = to > last ? to : to === to ? last : Infinity;
    lane[n] = packed.lane[r];
    sort[n] = c.state[r] | (c.flags[r] << 4);
  }
  return { start, end, latest, lane, sort };
}

/** Return the first index whose value is at least `least`, in ascending values. @param {Float32Array} values @param {number} least */
function firstAtLeast(values, least) {
  let first = 0,
    last = values.length;
  while (first < last) {
    const middle = (first + last) >> 1;
    if (values[middle] < least) first = middle + 1;
    else last = middle;
  }
  return first;
}

/**
 * Draw tasks as pixels.
 * @param {CanvasRenderingContext2D} context @param {ImageData} image @param {ReturnType<typeof ordered>} tasks @param {readonly string[]} states
 * @param {number} count of lanes @param {number} low @param {number} high @param {number} now
 */
export function draw(context, image, tasks, states, count, low, high, now) {
  const w = image.width,
    h = image.height;
  const pixels = new Uint32Array(image.data.buffer);
  pixels.fill(0);
  const paints = Uint32Array.from(states, (state) => colour(/** @type {any} */ (PALETTE)[state] || "--dim"));
  const hollow = colour("--dim"),
    failed = states.indexOf("failed");
  const scale = w / (high - low),
    lanes = h / count;
  const { start, end, lane, sort } = tasks;
  const tops = new Int32Array(count),
    bottoms = new Int32Array(count);
  for (let n = 0; n < count; n++) {
    tops[n] = Math.floor(n * lanes);
    bottoms[n] = Math.max(tops[n] + 1, Math.floor((n + 1) * lanes) - (lanes > 3 ? 1 : 0));
  }
  // Of tasks narrower than a pixel one is drawn; failed tasks have priority.
  const last = new Int32Array(count).fill(-1);
  const thin = scale > 2 ? 1 : 0;
  for (let n = firstAtLeast(tasks.latest, low), size = start.length; n < size; n++) {
    const from = start[n];
    if (from > high) break;
    const to = end[n] === end[n] ? end[n] : now;
    if (to < low) continue;
    const row = lane[n],
      state = sort[n] & 15;
    let x2 = ((to < high ? to - low : high - low) * scale - thin) | 0;
    if (x2 === last[row] && state !== failed) continue;
    if (x2 >= w) x2 = w - 1;
    const x1 = from > low ? ((from - low) * scale) | 0 : 0;
    if (x2 < x1) x2 = x1;
    // Failed tasks are visible among a hundred thousand others.
    if (state === failed && x2 - x1 < 2) x2 = Math.min(w - 1, x1 + 2);
    if (x2 === last[row] && state !== failed) continue;
    last[row] = x2;
    const y1 = tops[row],
      y2 = bottoms[row],
      flags = sort[n] >> 4;
    if (flags & 1) {
      for (let y = y1; y < y2; y++) {
        if (y === y1 || y === y2 - 1 || x2 - x1 < 3) pixels.fill(hollow, y * w + x1, y * w + x2 + 1);
        else pixels[y * w + x1] = pixels[y * w + x2] = hollow;
      }
      continue;
    }
    const paint = paints[state];
    if (flags & 2 && lanes > 4 && x2 - x1 > 3) {
      for (let y = y1; y < y2; y++) for (let x = x1; x <= x2; x++) if ((x + y) % 5) pixels[y * w + x] = paint;
    } else if (x2 - x1 < 16) for (let y = y1 * w; y < y2 * w; y += w) for (let at = y + x1; at <= y + x2; at++) pixels[at] = paint;
    else for (let y = y1 * w; y < y2 * w; y += w) pixels.fill(paint, y + x1, y + x2 + 1);
  }
  context.putImageData(image, 0, 0);
}

const OVERVIEW = 46; // height in pixels of the overview below the chart

/** Draw how many tasks ran and waited over the whole run. @param {any} canvas @param {Columns} c @param {Uint32Array} rows @param {ReturnType<typeof timeAxis>} axis @param {number} width @param {number} now */
function drawOverview(canvas, c, rows, axis, width, now) {
  const { low, high } = axis;
  const ran = new Int32Array(width + 2),
    waited = new Int32Array(width + 2);
  const scale = width / (high - low);
  const x = (/** @type {number} */ t) => Math.max(0, Math.min(width, Math.floor((t - low) * scale)));
  for (const r of rows) {
    const from = x(c.start[r]),
      to = x(Number.isNaN(c.end[r]) ? now : c.end[r]) + 1;
    ran[from]++;
    ran[to]--;
    const ready = x(c.ready[r]);
    if (!axis.seams.length && ready < from) {
      waited[ready]++;
      waited[from]--;
    }
  }
  let most = 1;
  for (let n = 0, a = 0, b = 0; n < width; n++) most = Math.max(most, (a += ran[n]), (b += waited[n]));
  const ratio = Math.min(devicePixelRatio || 1, 2);
  [canvas.width, canvas.height] = [Math.floor(width * ratio), OVERVIEW * ratio];
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  for (const [counts, paint] of /** @type {[Int32Array, string][]} */ ([
    [waited, "--warn-soft"],
    [ran, "--hot-line"],
  ])) {
    context.fillStyle = resolved(paint);
    for (let n = 0, a = 0; n < width; n++) {
      a += counts[n];
      const tall = (a / most) * (OVERVIEW - 4);
      context.fillRect(n, OVERVIEW - tall, 1, tall);
    }
  }
}

/** @param {{c: Columns, by: string, path: string, running: boolean}} props */
function Chart({ c: real, by, path, running }) {
  // The timeline of an active run grows each second.
  const wall = (running ? now.value : now.peek()) - real.base;
  const collapse = query("idle") === "collapse";
  const packed = useMemo(() => pack(real, by), [real, by]);
  const axis = useMemo(() => timeAxis(real, packed.rows, wall, collapse), [real, packed, collapse, running && wall]);
  const c = useMemo(() => placed(real, axis, wall), [real, axis]);
  const tasks = useMemo(() => ordered(c, packed), [c, packed]);
  const here = axis.seams.length ? axis.high : wall;
  const [view, setView] = useState(/** @type {[number, number] | null} */ (null));
  const [hover, setHover] = useState(/** @type {any} */ (null));
  const canvas = useRef(/** @type {any} */ (null));
  const overview = useRef(/** @type {any} */ (null));
  const buffer = useRef(/** @type {ImageData | null} */ (null));
  const [width, setWidth] = useState(900);
  const [table, setTable] = useState(false);
  const [, repaint] = useState(0);
  const height = Math.max(80, Math.min(560, packed.lanes * 14));
  const row = height / packed.lanes;
  const [low, high] = view || [axis.low, axis.high];
  const look = `${document.documentElement.dataset.theme || ""}${dark.matches}`;

  useEffect(() => setView(null), [collapse]);
  useLayoutEffect(() => {
    const watch = new ResizeObserver((seen) => setWidth(Math.max(200, Math.floor(seen[0].contentRect.width))));
    watch.observe(canvas.current.parentElement);
    const themed = () => repaint((n) => n + 1);
    dark.addEventListener("change", themed);
    return () => (watch.disconnect(), dark.removeEventListener("change", themed));
  }, []);
  useLayoutEffect(() => {
    const context = canvas.current.getContext("2d");
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const w = Math.floor(width * ratio),
      h = Math.floor(height * ratio);
    if (canvas.current.width !== w || canvas.current.height !== h) [canvas.current.width, canvas.current.height] = [w, h];
    if (!buffer.current || buffer.current.width !== w || buffer.current.height !== h) buffer.current = context.createImageData(w, h);
    draw(context, /** @type {ImageData} */ (buffer.current), tasks, c.states, packed.lanes, low, high, here);
  }, [tasks, low, high, width, height, look, running && wall]);
  useLayoutEffect(() => drawOverview(overview.current, c, packed.rows, axis, width, here), [c, packed, axis, width, look]);

  const placeOf = (/** @type {any} */ event, /** @type {any} */ node) => (event.clientX - node.getBoundingClientRect().left) / width;
  const timeAt = (/** @type {any} */ event) => low + placeOf(event, canvas.current) * (high - low);
  const find = (/** @type {any} */ event) => {
    const at = timeAt(event),
      lane = Math.floor((event.clientY - canvas.current.getBoundingClientRect().top) / row);
    const slack = (2 / width) * (high - low);
    for (let n = firstAtLeast(tasks.latest, at - slack); n < tasks.start.length && tasks.start[n] - slack <= at; n++)
      if (tasks.lane[n] === lane && (Number.isNaN(tasks.end[n]) ? here : tasks.end[n]) + slack >= at) return packed.rows[n];
    return null;
  };
  const clamp = (/** @type {number} */ a, /** @type {number} */ b) => {
    const size = Math.min(Math.max(b - a, 0.001), (axis.high - axis.low) * 1.1);
    const from = Math.max(axis.low - size * 0.05, Math.min(a, axis.high - size * 0.95));
    setView([from, from + size]);
  };
  const wheel = useRef(/** @type {(event: any) => void} */ (() => {}));
  wheel.current = (event) => {
    if (!event.ctrlKey && !event.shiftKey && Math.abs(event.deltaY) > Math.abs(event.deltaX) && !view && event.deltaY > 0) return;
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY))
      return clamp(low + (event.deltaX / width) * (high - low), high + (event.deltaX / width) * (high - low));
    const at = timeAt(event),
      factor = Math.exp(event.deltaY * 0.0015);
    clamp(at - (at - low) * factor, at + (high - at) * factor);
  };
  useEffect(() => {
    const turn = (/** @type {any} */ event) => wheel.current(event);
    canvas.current.addEventListener("wheel", turn, { passive: false });
    return () => canvas.current?.removeEventListener("wheel", turn);
  }, []);
  const drag = useRef(/** @type {any} */ (null));
  const down = (/** @type {any} */ event) => {
    drag.current = { x: event.clientX, low, high, moved: false };
    canvas.current.setPointerCapture(event.pointerId);
  };
  const move = (/** @type {any} */ event) => {
    const d = drag.current;
    if (!d) {
      const r = find(event);
      return setHover(r === null ? null : { r, x: event.offsetX, y: event.offsetY });
    }
    if (Math.abs(d.x - event.clientX) > 3) d.moved = true;
    const by = ((d.x - event.clientX) / width) * (d.high - d.low);
    if (d.moved) clamp(d.low + by, d.high + by);
  };
  const up = (/** @type {any} */ event) => {
    const d = drag.current;
    drag.current = null;
    if (!d || d.moved) return;
    const r = find(event);
    if (r !== null) go(`runs/${path}/tasks/${c.task[r]}`);
  };
  // Dragging over the overview selects a period.
  const brush = useRef(/** @type {number | null} */ (null));
  const stretch = (/** @type {any} */ event) => {
    const at = axis.low + Math.max(0, Math.min(1, placeOf(event, overview.current))) * (axis.high - axis.low);
    if (event.type === "pointerdown") {
      brush.current = at;
      overview.current.setPointerCapture(event.pointerId);
    } else if (brush.current !== null) {
      const [a, b] = [Math.min(at, brush.current), Math.max(at, brush.current)];
      if (b - a > (axis.high - axis.low) * 0.004) setView([a, b]);
      else if (event.type === "pointerup") setView(null);
      if (event.type === "pointerup") brush.current = null;
    }
  };
  const keys = (/** @type {KeyboardEvent} */ event) => {
    const size = high - low;
    const act = {
      ArrowLeft: () => clamp(low - size / 8, high - size / 8),
      ArrowRight: () => clamp(low + size / 8, high + size / 8),
      "+": () => clamp(low + size / 6, high - size / 6),
      "-": () => clamp(low - size / 4, high + size / 4),
      0: () => setView(null),
    }[event.key];
    if (act) act(), event.preventDefault();
  };
  const percent = (/** @type {number} */ t) => ((t - axis.low) / (axis.high - axis.low)) * 100;
  const from = Math.max(0, percent(low)),
    to = Math.min(100, percent(high));
  const retried = useMemo(() => c.flags.some((f) => f & 2), [c]),
    reused = useMemo(() => c.flags.some((f) => f & 1), [c]);
  return html`<section class="timeline">
    <div class="toolbar">
      <select aria-label="Rows" value=${by} onChange=${(/** @type {any} */ e) => setQuery({ by: e.target.value === "lane" ? "" : e.target.value })}><option value="lane">packed</option><option value="step">by step</option><option value="worker">by process</option></select>
      <span class="group"><button aria-label="Zoom in" onClick=${() => clamp(low + (high - low) / 4, high - (high - low) / 4)}>+</button><button aria-label="Zoom out" onClick=${() => clamp(low - (high - low) / 2, high + (high - low) / 2)}>−</button><button onClick=${() => setView(null)} disabled=${!view}>Fit</button></span>
      <label class="check"><input type="checkbox" checked=${collapse} onChange=${() => setQuery({ idle: collapse ? "" : "collapse" })} /> Collapse idle time</label>
      <button aria-pressed=${table} onClick=${() => setTable(!table)}>As a table</button>
      <span class="dim">${plural(packed.rows.length, "task")}, ${count(packed.lanes)} at once, ${span(axis.time(axis.high) - axis.low)}</span>
      <span class="legend"><i class="succeeded"></i>succeeded <i class="failed"></i>failed ${running && html`<i class="running"></i>running`} ${reused && html`<i class="hollow"></i>reused`} ${retried && html`<i class="hatched"></i>retried`}</span>
    </div>
    <div class="axis" aria-hidden="true">${ticks(low, high).map((at) => html`<span style=${{ left: `${((at - low) / (high - low)) * 100}%` }}>${span(axis.time(at)).replace(/ 0 [smh]$/, "")}</span>`)}</div>
    <div class="chart">
      <canvas ref=${canvas} style=${{ width: `${width}px`, height: `${height}px` }} tabindex="0" role="img" aria-label=${`Timeline of ${plural(packed.rows.length, "task")}; the table holds the same`} onPointerDown=${down} onPointerMove=${move} onPointerUp=${up} onPointerLeave=${() => setHover(null)} onKeyDown=${keys}></canvas>
      ${axis.seams.filter((x) => x > low && x < high).map((x) => html`<i class="seam" style=${{ left: `${((x - low) / (high - low)) * 100}%` }}></i>`)}
      ${packed.bands.length > 1 && packed.bands.slice(0, 60).map((band) => html`<span class="band" style=${{ top: `${band.first * row}px` }}>${band.name}</span>`)}
      ${hover && html`<div class="tip" style=${{ left: `${Math.max(0, Math.min(hover.x + 12, width - 240))}px`, top: `${Math.min(hover.y + 14, height - 44)}px` }}><b>${c.steps[c.step[hover.r]]}/${c.task[hover.r]}</b> ${c.flags[hover.r] & 1 ? "reused" : c.states[c.state[hover.r]]}<br />${span((Number.isNaN(real.end[hover.r]) ? wall : real.end[hover.r]) - real.start[hover.r])}, from ${span(real.start[hover.r])}</div>`}
    </div>
    <div class="overview"><canvas ref=${overview} style=${{ width: `${width}px`, height: `${OVERVIEW}px` }} role="img" aria-label="The numbers of running and waiting tasks over time" onPointerDown=${stretch} onPointerMove=${stretch} onPointerUp=${stretch}></canvas>
      ${view && html`<i style=${{ left: `${from}%`, width: `${Math.max(0.4, to - from)}%` }}></i>`}</div>
    <p class="dim">${running ? "The timeline grows while the run is active. " : ""}Scroll to zoom, drag to move, drag over the overview to select a time range, click a task to open it. Keyboard: arrows, + and −, 0.</p>
    ${table && html`<${Table} c=${real} rows=${packed.rows} now=${wall} path=${path} />`}
  </section>`;
}

/** Return round times for the ticks of the axis. @param {number} low @param {number} high */
export function ticks(low, high) {
  const steps = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 604800];
  const step = steps.find((each) => (high - low) / each <= 8) || 604800 * 4;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(Math.round(at * 1000) / 1000);
  return found;
}

/** @type {import("./table.js").Column[]} */
const COLUMNS = [
  { title: "Task", track: "minmax(150px, 1fr)", small: "minmax(90px, 1fr)", name: "name" },
  { title: "State", track: "130px", small: "18px", name: "sign" },
  { title: "Start", track: "110px", small: "70px", right: true },
  { title: "Duration", track: "110px", small: "70px", right: true },
];

/** The timeline as an accessible table, sorted by start. */
function Table({ c, rows, now, path }) {
  const cells = (/** @type {number} */ n) => {
    const r = rows[n - 1];
    const state = c.flags[r] & 1 ? "reused" : c.states[c.state[r]];
    return [
      html`<${Link} to=${`runs/${path}/tasks/${c.task[r]}`}><b>${c.steps[c.step[r]]}</b><span class="dim">/${c.task[r]}</span><//>`,
      html`<${State} state=${state} label />`,
      span(c.start[r]),
      span((Number.isNaN(c.end[r]) ? now : c.end[r]) - c.start[r]),
    ];
  };
  // An item is the index of its row plus one: 0 would count as no item.
  return html`<${Rows} label="Tasks by their start" columns=${COLUMNS} total=${rows.length} item=${(/** @type {number} */ n) => n + 1} cells=${cells} fresh=${c} open=${(/** @type {number} */ n) => go(`runs/${path}/tasks/${c.task[rows[n - 1]]}`)} room=${420} />`;
}
