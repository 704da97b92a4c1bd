// When each task ran: lanes of tasks, packed so that as many rows are there as tasks went on at once.
// Drawn as pixels, not as shapes: a hundred thousand tasks cost a few milliseconds a frame.
// @ts-check
import { ROOT, Notice, Skeleton, ask, count, go, html, query, setQuery, span, useEffect, useLayoutEffect, useMemo, useRef, useState, withQuery } from "./lib.js";

/** @typedef {{version: number, base: number, steps: string[], workers: string[], states: string[], count: number, task: Uint32Array, ready: Float32Array, start: Float32Array, end: Float32Array, step: Uint16Array, worker: Uint16Array, state: Uint8Array, flags: Uint8Array}} Columns */

/** The columns in an answer; the format is that of aflow/server/columns.py. @param {ArrayBuffer} buffer @returns {Columns} */
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
  return { ...head, task: column(Uint32Array, 4), ready: column(Float32Array, 4), start: column(Float32Array, 4), end: column(Float32Array, 4), step: column(Uint16Array, 2), worker: column(Uint16Array, 2), state: column(Uint8Array, 1), flags: column(Uint8Array, 1) };
}

/** Rows that have changed put into columns that were read before. @param {Columns} all @param {Columns} news @returns {Columns} */
export function merge(all, news) {
  if (!news.count) return { ...all, ...{ version: news.version } };
  const rows = new Map();
  for (let n = 0; n < all.count; n++) rows.set(all.task[n], n);
  const added = [];
  for (let n = 0; n < news.count; n++) if (!rows.has(news.task[n])) added.push(n);
  const total = all.count + added.length;
  const out = /** @type {any} */ ({ ...news, count: total });
  for (const name of ["task", "ready", "start", "end", "step", "worker", "state", "flags"]) {
    const from = /** @type {any} */ (news)[name], before = /** @type {any} */ (all)[name];
    const column = new from.constructor(total);
    column.set(before);
    out[name] = column;
  }
  let next = all.count;
  for (let n = 0; n < news.count; n++) {
    const row = rows.get(news.task[n]) ?? next++;
    for (const name of ["task", "ready", "start", "end", "step", "worker", "state", "flags"]) out[name][row] = /** @type {any} */ (news)[name][n];
  }
  return out;
}

/**
 * The lane of each task. By `lane` the lanes are shared by all, by `step` or by `worker` each has its own.
 * @param {Columns} c @param {string} by @param {number} now seconds after the base
 */
export function pack(c, by, now) {
  const order = new Uint32Array(c.count);
  let n = 0;
  for (let row = 0; row < c.count; row++) if (!Number.isNaN(c.start[row])) order[n++] = row;
  const rows = order.subarray(0, n).sort((a, b) => c.start[a] - c.start[b] || a - b);
  const group = by === "step" ? c.step : by === "worker" ? c.worker : null;
  const lane = new Int32Array(c.count).fill(-1);
  /** @type {Map<number, {ends: number[], heap: number[], lanes: number}>} */
  const groups = new Map();
  for (const row of rows) {
    const key = group ? group[row] : 0;
    let g = groups.get(key);
    if (!g) groups.set(key, (g = { ends: [], heap: [], lanes: 0 }));
    // A heap of free times: the lane that was free first is taken again.
    const end = Number.isNaN(c.end[row]) ? now : c.end[row];
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

/** @param {{ends: number[], heap: number[]}} g */
function popLane(g) {
  const top = g.heap[0], last = /** @type {number} */ (g.heap.pop());
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

/** A colour of the style sheet as a number for ImageData; kept until the theme changes. @param {string} name */
function colour(name) {
  const look = `${document.documentElement.dataset.theme || ""}${dark.matches}`;
  if (look !== coloursOf) (colours.clear(), (coloursOf = look));
  const known = colours.get(name);
  if (known !== undefined) return known;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const probe = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim() || "#888";
  probe.fillRect(0, 0, 1, 1);
  const [r, g, b] = probe.getImageData(0, 0, 1, 1).data;
  const found = (0xff000000 | (b << 16) | (g << 8) | r) >>> 0;
  colours.set(name, found);
  return found;
}

const PALETTE = { succeeded: "--good", failed: "--bad", running: "--hot", cancelled: "--dim", ready: "--line", waiting: "--line", skipped: "--line" };

/** @param {{path: string, version: number, running: boolean}} props */
export function Timeline({ path, version, running }) {
  const [columns, setColumns] = useState(/** @type {Columns | null} */ (null));
  const [error, setError] = useState(/** @type {any} */ (null));
  const held = useRef(/** @type {Columns | null} */ (null));
  useEffect(() => {
    const stop = new AbortController();
    const since = held.current ? held.current.version : "";
    ask(withQuery(`v1/runs/${path}/columns`, { since }), { signal: stop.signal })
      .then((answer) => answer.arrayBuffer())
      .then(
        (buffer) => {
          const news = decode(buffer);
          held.current = held.current ? merge(held.current, news) : news;
          setColumns(held.current);
          setError(null);
        },
        (said) => stop.signal.aborted || setError(said),
      );
    return () => stop.abort();
  }, [path, version]);
  const by = query("by") || "lane";
  if (error && !columns) return html`<${Notice} kind="bad">${error.message}<//>`;
  if (!columns) return html`<${Skeleton} />`;
  if (!columns.count) return html`<${Notice}>No task has started yet.<//>`;
  return html`<${Chart} c=${columns} by=${by} path=${path} running=${running} />`;
}

/** @param {{c: Columns, by: string, path: string, running: boolean}} props */
function Chart({ c, by, path, running }) {
  const now = Date.now() / 1000 - c.base;
  const packed = useMemo(() => pack(c, by, now), [c, by]);
  const extent = useMemo(() => {
    let low = Infinity, high = 0;
    for (const row of packed.rows) {
      if (c.start[row] < low) low = c.start[row];
      const end = Number.isNaN(c.end[row]) ? now : c.end[row];
      if (end > high) high = end;
    }
    return [low, Math.max(high, low + 0.001)];
  }, [c, packed]);
  const [view, setView] = useState(/** @type {[number, number] | null} */ (null));
  const [hover, setHover] = useState(/** @type {any} */ (null));
  const canvas = useRef(/** @type {any} */ (null));
  const area = useRef(/** @type {any} */ (null));
  const buffer = useRef(/** @type {ImageData | null} */ (null));
  const [width, setWidth] = useState(900);
  const [table, setTable] = useState(false);
  const height = Math.max(80, Math.min(560, packed.lanes * 14));
  const row = height / packed.lanes;
  const [low, high] = view || extent;

  useLayoutEffect(() => {
    const watch = new ResizeObserver((seen) => setWidth(Math.max(200, Math.floor(seen[0].contentRect.width))));
    watch.observe(canvas.current.parentElement);
    return () => watch.disconnect();
  }, []);

  useLayoutEffect(() => {
    const context = canvas.current.getContext("2d");
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const w = Math.floor(width * ratio), h = Math.floor(height * ratio);
    if (canvas.current.width !== w || canvas.current.height !== h) [canvas.current.width, canvas.current.height] = [w, h];
    if (!buffer.current || buffer.current.width !== w || buffer.current.height !== h) buffer.current = context.createImageData(w, h);
    const image = buffer.current;
    const pixels = new Uint32Array(image.data.buffer);
    pixels.fill(0);
    const paints = c.states.map((state) => colour(/** @type {any} */ (PALETTE)[state] || "--dim"));
    const hollow = colour("--dim");
    const scale = w / (high - low);
    const lanes = h / packed.lanes;
    for (const r of packed.rows) {
      const end = Number.isNaN(c.end[r]) ? now : c.end[r];
      if (end < low || c.start[r] > high) continue;
      const x1 = Math.max(0, Math.floor((c.start[r] - low) * scale));
      const x2 = Math.min(w - 1, Math.max(x1, Math.floor((end - low) * scale) - (scale > 2 ? 1 : 0)));
      const y1 = Math.floor(packed.lane[r] * lanes), y2 = Math.max(y1 + 1, Math.floor((packed.lane[r] + 1) * lanes) - (lanes > 3 ? 1 : 0));
      const paint = c.flags[r] & 1 ? hollow : paints[c.state[r]];
      const hatched = c.flags[r] & 2;
      for (let y = y1; y < y2; y++) {
        if (c.flags[r] & 1 && y > y1 && y < y2 - 1) {
          pixels[y * w + x1] = paint;
          pixels[y * w + x2] = paint;
          continue;
        }
        const line = y * w;
        if (hatched && lanes > 4) for (let x = x1; x <= x2; x++) (x + y) % 5 && (pixels[line + x] = paint);
        else pixels.fill(paint, line + x1, line + x2 + 1);
      }
    }
    context.putImageData(image, 0, 0);
    drawArea(area.current, c, packed.rows, low, high, width, now);
  });

  const timeAt = (/** @type {any} */ event) => low + ((event.clientX - canvas.current.getBoundingClientRect().left) / width) * (high - low);
  const find = (/** @type {any} */ event) => {
    const at = timeAt(event), lane = Math.floor((event.clientY - canvas.current.getBoundingClientRect().top) / row);
    const slack = (2 / width) * (high - low);
    for (const r of packed.rows) {
      if (packed.lane[r] !== lane || c.start[r] - slack > at) continue;
      if ((Number.isNaN(c.end[r]) ? now : c.end[r]) + slack >= at) return r;
    }
    return null;
  };
  const clamp = (/** @type {number} */ a, /** @type {number} */ b) => {
    const size = Math.min(Math.max(b - a, 0.001), (extent[1] - extent[0]) * 1.1);
    const from = Math.max(extent[0] - size * 0.05, Math.min(a, extent[1] - size * 0.95));
    setView([from, from + size]);
  };
  const wheel = (/** @type {any} */ event) => {
    if (!event.ctrlKey && !event.shiftKey && Math.abs(event.deltaY) > Math.abs(event.deltaX) && !view && event.deltaY > 0) return;
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) return clamp(low + (event.deltaX / width) * (high - low), high + (event.deltaX / width) * (high - low));
    const at = timeAt(event), by = Math.exp(event.deltaY * 0.0015);
    clamp(at - (at - low) * by, at + (high - at) * by);
  };
  useEffect(() => {
    const node = canvas.current;
    node.addEventListener("wheel", wheel, { passive: false });
    return () => node.removeEventListener("wheel", wheel);
  });
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
    const by = ((d.x - event.clientX) / width) * (d.high - d.low);
    if (Math.abs(d.x - event.clientX) > 3) d.moved = true;
    if (d.moved) clamp(d.low + by, d.high + by);
  };
  const up = (/** @type {any} */ event) => {
    const d = drag.current;
    drag.current = null;
    if (!d || d.moved) return;
    const r = find(event);
    if (r !== null) go(`runs/${path}/tasks/${c.task[r]}`);
  };
  const keys = (/** @type {KeyboardEvent} */ event) => {
    const size = high - low;
    const act = { ArrowLeft: () => clamp(low - size / 8, high - size / 8), ArrowRight: () => clamp(low + size / 8, high + size / 8), "+": () => clamp(low + size / 6, high - size / 6), "-": () => clamp(low - size / 4, high + size / 4), 0: () => setView(null) }[event.key];
    if (act) (act(), event.preventDefault());
  };
  const axis = ticks(low, high);
  return html`<section class="timeline">
    <div class="toolbar">
      <select aria-label="Rows" value=${by} onChange=${(/** @type {any} */ e) => setQuery({ by: e.target.value === "lane" ? "" : e.target.value })}><option value="lane">packed</option><option value="step">by step</option><option value="worker">by process</option></select>
      <button onClick=${() => setView(null)} disabled=${!view}>Fit</button><button aria-label="Zoom in" onClick=${() => clamp(low + (high - low) / 4, high - (high - low) / 4)}>+</button><button aria-label="Zoom out" onClick=${() => clamp(low - (high - low) / 2, high + (high - low) / 2)}>−</button>
      <span class="dim">${count(packed.rows.length)} tasks, ${count(packed.lanes)} at once, ${span(extent[1] - extent[0])}</span>
      <span class="legend"><i class="succeeded"></i>succeeded <i class="failed"></i>failed <i class="running"></i>running <i class="hollow"></i>reused <i class="hatched"></i>retried</span>
      <button aria-pressed=${table} onClick=${() => setTable(!table)}>As a table</button>
    </div>
    <div class="axis" aria-hidden="true">${axis.map((at) => html`<span style=${{ left: `${((at - low) / (high - low)) * 100}%` }}>${span(at)}</span>`)}</div>
    <div class="chart">
      <canvas ref=${canvas} style=${{ width: `${width}px`, height: `${height}px` }} tabindex="0" role="img" aria-label=${`Timeline of ${count(packed.rows.length)} tasks; the table holds the same`} onPointerDown=${down} onPointerMove=${move} onPointerUp=${up} onPointerLeave=${() => setHover(null)} onKeyDown=${keys}></canvas>
      ${packed.bands.length > 1 && packed.bands.slice(0, 60).map((band) => html`<span class="band" style=${{ top: `${band.first * row}px` }}>${band.name}</span>`)}
      ${hover && html`<div class="tip" style=${{ left: `${Math.min(hover.x + 12, width - 240)}px`, top: `${hover.y + 14}px` }}><b>${c.steps[c.step[hover.r]]}/${c.task[hover.r]}</b> ${c.flags[hover.r] & 1 ? "reused" : c.states[c.state[hover.r]]}<br />${span((Number.isNaN(c.end[hover.r]) ? now : c.end[hover.r]) - c.start[hover.r])}, from ${span(c.start[hover.r])}</div>`}
    </div>
    <canvas class="area" ref=${area} height="48" style=${{ width: `${width}px`, height: "48px" }} role="img" aria-label="How many tasks ran at once"></canvas>
    <p class="dim">${running ? "It grows while the run goes on. " : ""}Drag to move, scroll to zoom, click a task to open it. With the keyboard: arrows, + and −, 0.</p>
    ${table && html`<${Table} c=${c} rows=${packed.rows} now=${now} path=${path} />`}
  </section>`;
}

/** How many tasks run at each moment. */
function drawArea(canvas, c, rows, low, high, width, now) {
  if (canvas.width !== width) canvas.width = width;
  const counts = new Int32Array(width + 1);
  for (const r of rows) {
    const end = Number.isNaN(c.end[r]) ? now : c.end[r];
    if (end < low || c.start[r] > high) continue;
    counts[Math.max(0, Math.floor(((c.start[r] - low) / (high - low)) * width))]++;
    counts[Math.min(width, Math.floor(((end - low) / (high - low)) * width) + 1)]--;
  }
  let most = 1, running = 0;
  for (let x = 0; x < width; x++) if ((running += counts[x]) > most) most = running;
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  context.clearRect(0, 0, width, 48);
  context.fillStyle = style.getPropertyValue("--hot-soft");
  running = 0;
  for (let x = 0; x < width; x++) {
    running += counts[x];
    const h = (running / most) * 44;
    context.fillRect(x, 48 - h, 1, h);
  }
}

/** Round times for an axis. @param {number} low @param {number} high */
export function ticks(low, high) {
  const steps = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 604800];
  const step = steps.find((each) => (high - low) / each <= 8) || 604800 * 4;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(Math.round(at * 1000) / 1000);
  return found;
}

/** The same for those who see no canvas. */
function Table({ c, rows, now, path }) {
  const shown = rows.subarray(0, 500);
  return html`<div class="scroll"><table><caption>${rows.length > 500 ? "The first 500 tasks by their start; the tab Tasks has all." : "Tasks by their start."}</caption><thead><tr><th>Task</th><th>State</th><th class="right">Start</th><th class="right">Duration</th></tr></thead><tbody>
    ${[...shown].map((r) => html`<tr><td><a href=${new URL(`ui/runs/${path}/tasks/${c.task[r]}`, ROOT).pathname}>${c.steps[c.step[r]]}/${c.task[r]}</a></td><td>${c.states[c.state[r]]}</td><td class="right num">${span(c.start[r])}</td><td class="right num">${span((Number.isNaN(c.end[r]) ? now : c.end[r]) - c.start[r])}</td></tr>`)}</tbody></table></div>`;
}
