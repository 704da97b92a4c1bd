// The graph of a flow with the layout of the server: one node per step, with its task counts.
// @ts-check
import { count, html, span } from "./lib.js";

const W = 168,
  H = 50,
  GX = 24,
  GY = 34;

const OUTCOMES = [
  ["failed", "failed"],
  ["running", "running"],
  ["cancelled", "cancelled"],
  ["succeeded", "succeeded"],
];

/** @param {Record<string, number>} tasks */
function stateOf(tasks) {
  for (const [state] of OUTCOMES) if (tasks[state]) return state;
  return "waiting";
}

/** Return the text of a node, shortened to fit. @param {Record<string, number>} tasks @param {number} total @param {number | null} median */
function figuresOf(tasks, total, median) {
  const parts = [tasks.failed ? `${count(tasks.failed)} of ${count(total)} failed` : `${count(tasks.succeeded || 0)}/${count(total)}`];
  if (median !== null) parts.push(span(median));
  return parts.join(" · ").length <= 27 ? parts.join(" · ") : parts[0];
}

/** @param {{graph: any, steps?: any[], open?: (step: string) => void}} props */
export function Graph({ graph, steps = [], open }) {
  const at = new Map(graph.nodes.map((/** @type {any} */ node) => [node.name, node]));
  const figures = new Map(steps.map((step) => [step.step, step]));
  const width = graph.width * (W + GX),
    height = graph.height * (H + GY);
  const x = (/** @type {any} */ node) => node.x * (W + GX) + GX / 2;
  const y = (/** @type {any} */ node) => node.y * (H + GY) + 4;
  return html`<svg class="graph" viewBox=${`0 0 ${width} ${height}`} width=${width} style=${{ minWidth: `${Math.min(width, graph.width * 112)}px` }} role="group" aria-label="Graph of the flow">
    <defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" /></marker></defs>
    ${graph.nodes.flatMap((/** @type {any} */ node) =>
      node.next.map((/** @type {string} */ name) => {
        const to = at.get(name);
        if (!to) return null;
        const x1 = x(node) + W / 2,
          y1 = y(node) + H,
          x2 = x(to) + W / 2,
          y2 = y(to);
        if (y2 <= y1 - H)
          return html`<path class="edge" marker-end="url(#arrow)" d=${`M${x(node) + W} ${y(node) + H / 2}C${x(node) + W + 40} ${y(node) + H / 2} ${x(to) + W + 40} ${y(to) + H / 2} ${x(to) + W} ${y(to) + H / 2}`} />`;
        const middle = (y1 + y2) / 2;
        return html`<path class="edge" marker-end="url(#arrow)" d=${`M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2 - 1}`} />`;
      }),
    )}
    ${graph.nodes.map((/** @type {any} */ node) => {
      const step = figures.get(node.name);
      const tasks = step ? step.tasks : {};
      const total = /** @type {number} */ (Object.values(tasks).reduce((/** @type {any} */ a, /** @type {any} */ b) => a + b, 0));
      const state = total ? stateOf(tasks) : "waiting";
      const detail = total ? figuresOf(tasks, total, step.median) : node.foreach ? `for each of ${node.foreach}` : node.condition ? `by ${node.condition}` : "";
      const act = open && (() => open(node.name));
      return html`<g class=${`node ${state} ${node.is_many ? "many" : ""}`} transform=${`translate(${x(node)} ${y(node)})`} tabindex=${open ? 0 : -1} role=${open ? "button" : "img"} aria-label=${`${node.name}: ${detail || "not begun"}`} onClick=${act} onKeyDown=${(/** @type {any} */ e) => (e.key === "Enter" || e.key === " ") && act && ((e.preventDefault(), act()))}>
        ${node.doc && html`<title>${node.doc}</title>`}
        ${node.is_many && html`<rect class="behind" x="5" y="5" width=${W} height=${H} rx="9" />`}
        <rect class="box" width=${W} height=${H} rx="9" />
        ${total > 0 && html`<rect class="done" x="1" y=${H - 5} width=${Math.max(0, ((W - 2) * ((tasks.succeeded || 0) + (tasks.failed || 0))) / total)} height="4" rx="2" />`}
        <text x="12" y="21">${node.name.length > 20 ? `${node.name.slice(0, 19)}…` : node.name}</text><text class="detail" x="12" y="37">${detail}</text></g>`;
    })}
  </svg>`;
}
