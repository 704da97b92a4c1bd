// The list of runs: filter, histogram, selection, and actions on the selected runs.
// @ts-check
import {
  Act,
  ask,
  askText,
  attempt,
  Bar,
  Behind,
  confirm,
  count,
  differs,
  get,
  go,
  html,
  Link,
  later,
  mayChange,
  Notice,
  now,
  plural,
  query,
  runPath,
  Skeleton,
  State,
  setQuery,
  span,
  Time,
  took,
  useCallback,
  useEffect,
  useLayoutEffect,
  useMemo,
  useReading,
  useRef,
  useState,
  useTopic,
  withQuery,
} from "./lib.js";
import { Rows } from "./table.js";

const Many = later(() => import("./many.js"), "Many");
const PAGE = 100;
const CHIPS = [
  ["", "All"],
  ["state:running", "Running"],
  ["state:failed", "Failed"],
  ["state:succeeded", "Succeeded"],
  ["since:1d", "Last day"],
];
const WORDS = [
  "flow:",
  "state:running",
  "state:failed",
  "state:succeeded",
  "state:cancelled",
  "tag:",
  "user:",
  "since:1d",
  "since:7d",
  "until:",
  "id:",
  "artifact:",
  "param.",
];

const nameOf = (/** @type {any} */ run) => `${run.flow}/${run.run}`;

/** @type {import("./table.js").Column[]} */
const COLUMNS = [
  { title: html`<span class="hidden">Select</span>`, track: "26px" },
  { title: "State", track: "98px", small: "18px", name: "sign" },
  { title: "Run", track: "minmax(130px, 2.2fr)", small: "minmax(90px, 1.5fr)", name: "name" },
  { title: "Parameters", track: "minmax(130px, 1.3fr)", hide: "wide", name: "params" },
  { title: "Tasks", track: "minmax(100px, 132px)", small: "76px" },
  { title: "Started", track: "84px", hide: "mid" },
  { title: "Duration", track: "76px", small: "62px", right: true },
  { title: "User", track: "minmax(44px, 90px)", hide: "wide" },
  { title: "Tags", track: "minmax(90px, .8fr)", hide: "wide" },
];

/** The pages of matching runs that were fetched so far. @param {string} filter */
function useRuns(filter) {
  const [state, set] = useState(
    /** @type {{filter: string | null, runs: any[], cursor: string | null, error: any}} */ ({ filter: null, runs: [], cursor: null, error: null }),
  );
  const [tick, setTick] = useState(0);
  const throttle = useRef(0);
  const reading = useRef("");
  useTopic("runs", (name) => {
    if (name !== "runs" || throttle.current) return;
    throttle.current = /** @type {any} */ (setTimeout(() => ((throttle.current = 0), setTick((n) => n + 1)), 500));
  });
  const again = useReading(
    filter,
    tick,
    (signal) => get(withQuery("v1/search", { filter, limit: PAGE }), { signal }),
    (answer) =>
      set((was) => {
        if (was.filter !== filter) return { filter, runs: answer.runs, cursor: answer.cursor, error: null };
        // Only the newest runs were fetched again; older ones stay as they were.
        const last = answer.runs[answer.runs.length - 1];
        if (!answer.cursor || !last) return { filter, runs: answer.runs, cursor: answer.cursor, error: null };
        const known = new Set(answer.runs.map(nameOf));
        const older = was.runs.filter((run) => run.created_at <= last.created_at && !known.has(nameOf(run)));
        return { filter, runs: [...answer.runs, ...older], cursor: older.length ? was.cursor : answer.cursor, error: null };
      }),
    (error) => set((was) => (was.filter === filter ? { ...was, error } : { filter: null, runs: [], cursor: null, error })),
  );
  const more = useCallback(async () => {
    const cursor = state.cursor;
    if (!cursor || reading.current === cursor || state.filter !== filter) return;
    reading.current = cursor;
    const answer = await attempt(() => get(withQuery("v1/search", { filter, limit: PAGE, cursor })), "");
    reading.current = "";
    if (!answer) return;
    set((was) => {
      if (was.filter !== filter || was.cursor !== cursor) return was;
      const known = new Set(was.runs.map(nameOf));
      return { ...was, runs: [...was.runs, ...answer.runs.filter((/** @type {any} */ run) => !known.has(nameOf(run)))], cursor: answer.cursor };
    });
  }, [state, filter]);
  return { ...state, loaded: state.filter === filter, more, again };
}

export function RunsPage() {
  const filter = query("filter");
  const { runs, cursor, error, loaded, more, again } = useRuns(filter);
  const [chosen, setChosen] = useState(/** @type {Set<string>} */ (new Set()));
  const [many, setMany] = useState(false);
  useLayoutEffect(() => {
    const open = () => mayChange() && setMany(true);
    addEventListener("many", open);
    return () => removeEventListener("many", open);
  }, []);
  const toggle = (/** @type {string} */ path) => {
    const next = new Set(chosen);
    next.has(path) ? next.delete(path) : next.add(path);
    setChosen(next);
  };
  const seen = useCallback(
    (/** @type {number} */ _, /** @type {number} */ end) => void (cursor && end > runs.length - PAGE / 2 && more()),
    [cursor, runs.length, more],
  );
  const moves = runs.some((run) => run.state === "running");
  const fresh = useMemo(() => ({}), [chosen, moves && now.value]);
  return html`
    <div class="head"><h1>Runs</h1>
      <div class="chips">${CHIPS.map(([words, title]) => html`<button aria-pressed=${filter === words} onClick=${() => setQuery({ filter: words }, false)}>${title}</button>`)}</div>
      <${Behind} path=${withQuery("v1/search", { filter, limit: PAGE })} />
    </div>
    <div class="filter-row"><${Filter} filter=${filter} />${runs.length > 0 && html`<${Act} onClick=${() => setMany(!many)} aria-expanded=${many} title="Cancel, resume, tag or delete all runs that match (X)">All that match…<//>`}</div>
    ${many && html`<${Many} key=${filter} filter=${filter} close=${() => (setMany(false), again())} />`}
    ${error && html`<${Notice} kind=${loaded ? "warn" : "bad"} retry=${again}>${loaded ? "This list is not up to date: " : ""}${error.message}<//>`}
    ${chosen.size > 0 && html`<${Chosen} chosen=${chosen} kept=${runs.filter((run) => run.read_only && chosen.has(nameOf(run))).length} clear=${() => (setChosen(new Set()), again())} />`}
    ${!loaded && !error && html`<${Skeleton} lines=${12} />`}
    ${loaded && runs.length > 0 && html`<${Activity} runs=${runs} />`}
    ${loaded && runs.length === 0 && !cursor && (filter ? html`<${Notice}><span>No run matches <code>${filter}</code>. <button class="link" onClick=${() => setQuery({ filter: "" })}>Show all runs</button></span><//>` : html`<${Empty} />`)}
    ${
      loaded &&
      (runs.length > 0 || cursor) &&
      html`<${Rows} key=${filter} label="Runs" columns=${COLUMNS} total=${runs.length + (cursor ? 1 : 0)} item=${(/** @type {number} */ n) => runs[n] || null} cells=${(/** @type {any} */ run) => row(run, chosen, toggle)} fresh=${fresh} seen=${seen} row=${48} room=${chosen.size ? 310 : 250}
      mark=${(/** @type {any} */ run) => (chosen.has(nameOf(run)) ? "chosen" : "")} pick=${(/** @type {any} */ run) => toggle(nameOf(run))} open=${(/** @type {any} */ run) => go(runPath(run))} />`
    }`;
}

/** Return the parameters that differ from their defaults; all of them if the defaults are unknown. @param {any} run */
function parameters(run) {
  const shown = run.parameters.filter((/** @type {any} */ p) => p.default === null || differs(p.value, p.default));
  if (!shown.length) return run.parameters.length ? html`<span class="dim">defaults</span>` : "";
  return shown
    .slice(0, 4)
    .map(
      (/** @type {any} */ p) =>
        html`<span title=${`${p.name} = ${p.value}${p.default === null ? "" : `, default ${p.default}`}`}><i>${p.name}</i> ${p.value}</span>`,
    );
}

/** @param {any} run @param {Set<string>} chosen @param {(path: string) => void} toggle */
function row(run, chosen, toggle) {
  const path = nameOf(run);
  return [
    html`<input type="checkbox" aria-label=${`Select ${path}`} checked=${chosen.has(path)} onChange=${() => toggle(path)} />`,
    html`<${State} state=${run.state} label />`,
    html`<${Link} to=${runPath(run)} title=${path}><b>${run.flow}</b><span class="dim id"><i>/</i>${run.run}</span><//>${run.reason && html`<small class=${`reason ${run.state}`} title=${run.reason}>${run.reason}</small>`}`,
    parameters(run),
    html`<${Bar} tasks=${run.tasks} />`,
    html`<${Time} at=${run.created_at} />`,
    span(took(run)),
    run.user,
    run.tags
      .slice(0, 3)
      .map((/** @type {string} */ tag) => html`<button class="tag" onClick=${() => setQuery({ filter: `tag:${tag}` }, false)}>${tag}</button>`),
  ];
}

function Filter({ filter }) {
  const [text, setText] = useState(filter);
  const [open, setOpen] = useState(false);
  const leaving = useRef(/** @type {any} */ (0));
  useEffect(() => setText(filter), [filter]);
  const last = text.split(/\s+/).pop() || "";
  const [values, setValues] = useState(/** @type {string[]} */ ([]));
  const asked = open ? (/^(?:tag|user|artifact):|^flow:(?!$)/.exec(last) ? last.replace(/^flow:/, "") : "") : "";
  useEffect(() => {
    if (!asked) return setValues([]);
    const stop = new AbortController();
    const timer = setTimeout(() => {
      const show = (/** @type {any} */ answer) => setValues(answer.found.map((/** @type {any} */ f) => (f.kind === "flow" ? `flow:${f.text}` : f.text)));
      get(withQuery("v1/suggest", { prefix: asked }), { signal: stop.signal }).then(show, () => stop.signal.aborted || setValues([]));
    }, 120);
    return () => (clearTimeout(timer), stop.abort());
  }, [asked]);
  const hints = open ? [...values, ...WORDS].filter((word) => word.startsWith(last) && word !== last) : [];
  const complete = (/** @type {string} */ word) => setText(text.slice(0, text.length - last.length) + word);
  return html`<form class="filter" onSubmit=${(/** @type {any} */ e) => (e.preventDefault(), setQuery({ filter: text.trim() }, false))}>
    <input aria-label="Filter runs" value=${text} spellcheck=${false} placeholder="flow:Train state:failed tag:prod user:ann since:7d param.alpha:0.1" onFocus=${() => (clearTimeout(leaving.current), setOpen(true))} onBlur=${() => (leaving.current = setTimeout(() => setOpen(false), 150))}
      onInput=${(/** @type {any} */ e) => setText(e.target.value)} onKeyDown=${(/** @type {any} */ e) => e.key === "Tab" && last && hints[0] && ((complete(hints[0]), e.preventDefault()))} />
    ${hints.length > 0 && html`<div class="hints">${hints.map((word) => html`<button type="button" onMouseDown=${(/** @type {any} */ e) => (e.preventDefault(), complete(word))}>${word}</button>`)}</div>`}
  </form>`;
}

/** A histogram of the runs by the time at which they were created, and by state. */
function Activity({ runs }) {
  const first = Math.min(...runs.map((/** @type {any} */ run) => run.created_at));
  const end = now.peek();
  const slices = 48;
  const width = Math.max((end - first) / slices, 60);
  const bars = Array.from({ length: slices }, () => /** @type {Record<string, number>} */ ({}));
  for (const run of runs) {
    const at = Math.min(slices - 1, Math.floor((run.created_at - (end - width * slices)) / width));
    if (at >= 0) bars[at][run.state] = (bars[at][run.state] || 0) + 1;
  }
  const highest = Math.max(...bars.map((bar) => Object.values(bar).reduce((a, b) => a + b, 0)), 1);
  return html`<svg class="activity" viewBox=${`0 0 ${slices * 10} 36`} preserveAspectRatio="none" role="img" aria-label=${`${plural(runs.length, "run")} over ${span(end - first)}`}>
    ${bars.map((bar, n) => {
      let y = 36;
      return ["succeeded", "cancelled", "failed", "running", "pending"].map((state) => {
        if (!bar[state]) return null;
        const height = (bar[state] / highest) * 34;
        y -= height;
        return html`<rect class=${state} x=${n * 10 + 1} y=${y} width="8" height=${height} rx="1"><title>${bar[state]} ${state}, ${new Date((end - width * (slices - n)) * 1000).toLocaleString()}</title></rect>`;
      });
    })}
  </svg>`;
}

/** @param {{chosen: Set<string>, kept: number, clear: () => void}} props `kept`: those that may not be changed */
function Chosen({ chosen, kept, clear }) {
  const paths = [...chosen];
  const runsAre = `${plural(paths.length, "run")} ${paths.length === 1 ? "is" : "are"}`;
  const each = async (/** @type {(path: string) => Promise<any>} */ what, /** @type {string} */ done) => {
    for (const path of paths) if ((await attempt(() => what(path), "")) === null) return;
    await attempt(async () => 1, done);
    clear();
  };
  const cancel = async () => {
    if (await confirm("Cancel runs?", `${runsAre} stopped. Their tasks end, and their results stay.`, "Cancel them"))
      each((path) => ask(`v1/runs/${path}`, { method: "DELETE" }), `${runsAre} being stopped.`);
  };
  const tag = async () => {
    const name = await askText("Tag these runs", "Tag to add", "Add the tag");
    if (name) each((path) => ask(`v1/runs/${path}/tags`, { method: "PATCH", json: { add: [name] } }), `Tagged ${plural(paths.length, "run")}.`);
  };
  const resume = async () => {
    if (await confirm("Resume runs?", `${runsAre} resumed. Each run continues where it stopped, with its own code.`, "Resume them"))
      each((path) => ask(`v1/runs/${path}/resume`, { json: {} }), `Resumed ${plural(paths.length, "run")}.`);
  };
  const remove = async () => {
    const plan = await attempt(() => get(`v1/deletion?runs=${encodeURIComponent(paths.join(","))}`), "");
    if (!plan) return;
    const plannedText = html`<p>${count(plan.runs.length)} of ${plural(paths.length, "run")} can be deleted, with the data that no other run shares. Active runs are kept.</p><ul>${plan.runs.slice(0, 8).map((/** @type {string} */ run) => html`<li>${run}</li>`)}</ul><p>This cannot be undone.</p>`;
    if (await confirm("Delete runs?", plannedText, "Delete them")) each((path) => ask(`v1/runs/${path}/records`, { method: "DELETE" }), "Deleted.");
  };
  return html`<div class="chosen-bar" role="toolbar" aria-label="Selected runs"><b>${paths.length} selected</b>
    ${!kept && html`<${Act} onClick=${cancel}>Cancel<//><${Act} onClick=${resume}>Resume<//><${Act} onClick=${tag}>Tag<//>`}
    <button disabled=${paths.length < 2 || paths.length > 5} title="Two to five runs" onClick=${() => go(`compare?runs=${paths.join(",")}`)}>Compare</button>
    ${!kept && html`<${Act} class="danger" onClick=${remove}>Delete<//>`}<button class="quiet" onClick=${clear}>Clear</button>
    ${kept > 0 && html`<span class="dim">${kept === paths.length ? "They were" : `${kept} of them ${kept === 1 ? "was" : "were"}`} recorded elsewhere, by Metaflow for example. You can see such runs here, but not change them.</span>`}</div>`;
}

function Empty() {
  return html`<section class="empty"><h2>No runs yet</h2><p>These commands start the first run:</p>
    <pre>aflow tutorials pull
cd aflow-tutorials
python 00-hello/hello.py run</pre><p class="dim">This page shows the run as soon as it starts.</p></section>`;
}
