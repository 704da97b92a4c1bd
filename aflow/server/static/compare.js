// Two to five runs side by side. By default only the rows that differ are shown.
// @ts-check
import { Behind, differs, go, html, Link, Notice, query, State, setQuery, shown, span, useApi, useState, withQuery } from "./lib.js";
import { Preview } from "./parts.js";

const TITLES = { run: "Runs", parameters: "Parameters, configs", durations: "Median seconds of steps", artifacts: "Artifacts" };

export function ComparePage() {
  const runs = query("runs").split(",").filter(Boolean);
  const [adding, setAdding] = useState("");
  const flow = runs[0]?.split("/")[0] || "";
  const others = useApi(flow ? withQuery("v1/search", { filter: `flow:${flow}`, limit: 50 }) : null);
  const found = useApi(runs.length > 1 ? withQuery("v1/compare", { runs: runs.join(",") }) : null);
  const all = query("all") === "1";
  const add = (/** @type {string} */ path) => path && go(`compare?runs=${[...runs, path].join(",")}`, true);
  return html`<div class="head"><h1>Compare</h1><label class="check"><input type="checkbox" checked=${all} onChange=${() => setQuery({ all: all ? "" : 1 })} /> Show equal rows, too</label>
      ${runs.length > 1 && html`<${Behind} path=${withQuery("v1/compare", { runs: runs.join(",") })} />`}</div>
    <div class="toolbar">${
      runs.length < 5 &&
      html`<select aria-label="Add a run" value=${adding} onChange=${(/** @type {any} */ e) => (setAdding(""), add(e.target.value))}><option value="">Add a run…</option>
      ${(others.data?.runs || []).filter((/** @type {any} */ r) => !runs.includes(`${r.flow}/${r.run}`)).map((/** @type {any} */ r) => html`<option value=${`${r.flow}/${r.run}`}>${r.run} (${r.state})</option>`)}</select>`
    }</div>
    ${runs.length < 2 && html`<${Notice}>Choose at least two runs: add one here, or select them in the list of runs.<//>`}
    ${
      runs.length > 1 &&
      shown(found, (data) => {
        const rows = data.rows.filter((/** @type {any} */ r) => all || r.differ);
        return html`<div class="scroll"><table class="compare"><thead><tr><th></th>${data.runs.map((/** @type {any} */ r) => html`<th><${State} state=${r.state} /> <${Link} to=${`runs/${r.flow}/${r.run}`}>${r.run}<//> ${data.runs.length > 2 && html`<button class="quiet" aria-label=${`Remove ${r.run}`} onClick=${() => go(`compare?runs=${runs.filter((p) => p !== `${r.flow}/${r.run}`).join(",")}`, true)}>×</button>`}</th>`)}</tr></thead>
        ${Object.entries(TITLES).map(([section, title]) => {
          const own = rows.filter((/** @type {any} */ r) => r.section === section);
          return (
            own.length > 0 &&
            html`<tbody><tr class="section"><th colspan=${data.runs.length + 1}>${title}</th></tr>${own.map((/** @type {any} */ r) => html`<tr class=${r.differ ? "differ" : "same"}><th>${r.name}</th>${r.values.map((/** @type {any} */ v, /** @type {number} */ n) => html`<td>${cell(section, r, v, n)}</td>`)}</tr>`)}</tbody>`
          );
        })}</table></div>
        ${data.rows.some((/** @type {any} */ r) => r.section === "run" && r.name === "code" && r.differ) && html`<p>Their code differs: ${data.runs.slice(1).map((/** @type {any} */ r) => html`<${Link} class="tag" to=${`runs/${r.flow}/${r.run}?tab=code&against=${data.runs[0].run}`}>${r.run} against ${data.runs[0].run}<//>`)}</p>`}
        ${rows.length === 0 && html`<${Notice}>Nothing differs.<//>`}<${Scatter} data=${data} />`;
      })
    }`;
}

/** @param {string} section @param {any} row @param {any} value @param {number} n */
function cell(section, row, value, n) {
  if (value === null || value === undefined) return html`<span class="dim">–</span>`;
  if (section === "durations" || row.name === "seconds") {
    const most = Math.max(...row.values.filter((/** @type {any} */ v) => v !== null), 0.000001);
    return html`<span class="paired"><i style=${{ width: `${(Math.max(value, 0) / most) * 100}%` }}></i><span>${span(value)}</span></span>`;
  }
  if (row.previews)
    return html`<${Preview} artifact=${{ name: row.name, text: String(value), preview: row.previews[n] }} />${row.defaults && differs(value, row.defaults[n]) && html` <small class="changed">default ${row.defaults[n]}</small>`}`;
  return html`<code>${String(value)}</code>`;
}

/** A scatter plot of two numeric values of the runs. */
function Scatter({ data }) {
  const figures = data.rows.filter((/** @type {any} */ r) => r.values.every((/** @type {any} */ v) => v !== null && v !== "" && Number.isFinite(Number(v))));
  const [x, setX] = useState(0),
    [y, setY] = useState(1);
  if (figures.length < 2) return null;
  const fx = figures[x % figures.length],
    fy = figures[y % figures.length];
  const scale = (/** @type {any[]} */ values) => {
    const numbers = values.map(Number),
      low = Math.min(...numbers),
      high = Math.max(...numbers);
    return numbers.map((v) => (high > low ? (v - low) / (high - low) : 0.5));
  };
  const xs = scale(fx.values),
    ys = scale(fy.values);
  // The labels of overlapping points are stacked.
  const order = (/** @type {number} */ n) => xs.slice(0, n).filter((x, m) => Math.abs(x - xs[n]) < 0.3 && Math.abs(ys[m] - ys[n]) < 0.08).length;
  const choice = (/** @type {number} */ at, /** @type {(n: number) => void} */ set, /** @type {string} */ label) =>
    html`<label>${label} <select value=${at} onChange=${(/** @type {any} */ e) => set(Number(e.target.value))}>${figures.map((/** @type {any} */ f, /** @type {number} */ n) => html`<option value=${n}>${f.section}: ${f.name}</option>`)}</select></label>`;
  return html`<section><h2>Scatter plot</h2><div class="toolbar">${choice(x, setX, "Horizontal")}${choice(y, setY, "Vertical")}</div>
    <svg class="scatter" viewBox="0 0 420 220" role="img" aria-label=${`${fy.name} against ${fx.name}`}><path class="edge" d="M40 10v180h370" />${data.runs.map((/** @type {any} */ r, /** @type {number} */ n) => html`<g class=${r.state}><circle cx=${50 + xs[n] * 340} cy=${180 - ys[n] * 160} r="6"><title>${r.run}: ${fx.values[n]}, ${fy.values[n]}</title></circle><text x=${xs[n] > 0.5 ? 40 + xs[n] * 340 : 60 + xs[n] * 340} y=${184 - ys[n] * 160 - 14 * order(n)} text-anchor=${xs[n] > 0.5 ? "end" : "start"}>${r.run}</text></g>`)}</svg></section>`;
}
