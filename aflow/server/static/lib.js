// What every page uses: rendering, state, the API, the address, formats.
// @ts-check

import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";
import { Fragment, h, render } from "./vendor/preact.js";
import { batch, computed, effect, signal } from "./vendor/signals.js";

export const html = /** @type {(strings: TemplateStringsArray, ...values: any[]) => any} */ (/** @type {unknown} */ (htm.bind(h)));
export { batch, computed, effect, Fragment, render, signal, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState };

/** The address of the server: above the folder of the pages. */
export const ROOT = new URL(import.meta.url.replace(/ui\/static\/.*$/, ""));

// ------------------------------------------------------------ the API

/** An answer that is a refusal; `message` is the server's own sentence. */
export class Refused extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Whether the server answers: "live", "lost" (it does not), or "login" (it wants a token). */
export const connection = signal("live");

/** What the token of this browser allows: "write" (everything), "read", or "" before the server has said so. */
export const scope = signal("");

/** Why it wants one: what the server said when it answered nothing more. */
export const refusedWith = signal("");

/**
 * Ask the server. Raises Refused with its sentence, or with our own where it does not answer.
 * @param {string} path as "v1/runs" @param {RequestInit & {json?: unknown}} [how]
 */
export async function ask(path, how = {}) {
  const headers = { "X-Aflow-Request": "1", ...(how.headers || {}) };
  if (how.json !== undefined) {
    how = { ...how, body: JSON.stringify(how.json), method: how.method || "POST" };
    headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(new URL(path, ROOT), { ...how, headers, credentials: "same-origin" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    connection.value = "lost";
    throw new Refused(0, "The server does not respond. The page tries again by itself.");
  }
  if (connection.value === "lost" && answer.status !== 401) connection.value = "live";
  scope.value = answer.headers.get("X-Aflow-Scope") || scope.peek();
  if (!answer.ok) {
    const said = await answer.json().catch((error) => {
      if (error instanceof DOMException && error.name === "AbortError") throw error;
      return {}; // a response that is not JSON has no message
    });
    // A token that only may not do this gets the page; one that may not even read has expired.
    const reads = !how.method || how.method === "GET";
    if (answer.status === 401 || (answer.status === 403 && reads && how.json === undefined)) {
      // Several requests are refused at the same moment: the first one's reason stays.
      if (connection.value !== "login") refusedWith.value = answer.status === 403 || known ? said.error || "" : "";
      connection.value = "login";
    } else known = true;
    throw new Refused(answer.status, said.error || `The server responded with ${answer.status}.`);
  }
  known = true;
  return answer;
}
let known = false; // whether the server has answered this page before

/** The JSON that the server answers. @param {string} path @param {any} [how] */
export const get = async (path, how) => (await ask(path, how)).json();

/** A path with a query, without what is empty. @param {string} path @param {Record<string, any>} query */
export function withQuery(path, query) {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value !== undefined && value !== null && value !== "") words.set(name, String(value));
  const text = words.toString();
  return text ? `${path}?${text}` : path;
}

/**
 * Read something, and again when `tick` changes. A reading is not broken off because there is more to read by now: what changes
 * faster than it is read would never be shown. Each one ends, and then the next begins; another `key`, or a machine that has slept,
 * breaks it off. Where the server does not answer it is tried again. `read`, `take` and `fail` may depend on `key` alone.
 * @param {string | null} key what is read; null: nothing @param {unknown} tick
 * @param {(stop: AbortSignal) => Promise<any>} read @param {(data: any) => void} take @param {(error: any) => void} fail
 * @returns {() => void} reads again, now
 */
export function useReading(key, tick, read, take, fail) {
  const state = useRef(/** @type {any} */ ({ busy: false, stale: false, timer: 0, start: () => {} }));
  useEffect(() => {
    if (key === null) return;
    const stop = new AbortController();
    const own = (state.current = {
      busy: false,
      stale: false,
      timer: 0,
      start: () => {
        clearTimeout(own.timer);
        if (own.busy) return void (own.stale = true);
        own.busy = true;
        own.stale = false;
        read(stop.signal)
          .then(
            (data) => stop.signal.aborted || take(data),
            (error) => {
              if (stop.signal.aborted) return;
              fail(error);
              if (error.status === 0 || error.status >= 500) own.timer = /** @type {any} */ (setTimeout(own.start, 2000));
            },
          )
          .finally(() => {
            own.busy = false;
            if (own.stale && !stop.signal.aborted) own.start();
          });
      },
    });
    own.start();
    return () => {
      stop.abort();
      clearTimeout(own.timer);
    };
  }, [key, woken.value]);
  const first = useRef(true);
  useEffect(() => {
    if (!first.current && key !== null) state.current.start();
    first.current = false;
  }, [tick]);
  return useCallback(() => state.current.start(), []);
}

/**
 * What an API path says, read again when the path or `tick` changes. The last answer stays on the
 * page while a new one is on its way, or is not available.
 * @param {string | null} path @param {unknown} [tick]
 */
export function useApi(path, tick) {
  const [state, set] = useState(/** @type {any} */ ({ data: null, error: null, path: null }));
  const retry = useReading(
    path,
    tick,
    (signal) => get(/** @type {string} */ (path), { signal }),
    (data) => set({ data, error: null, path }),
    (error) => set((/** @type {any} */ was) => ({ data: was.path === path ? was.data : null, error, path })),
  );
  const fresh = state.path === path;
  return {
    data: fresh ? state.data : null,
    error: fresh ? state.error : null,
    stale: Boolean(fresh && state.data && state.error),
    retry,
  };
}

// ------------------------------------------------------------ the address

/** The address as it is now. */
export const place = signal(new URL(location.href));
addEventListener("popstate", () => (place.value = new URL(location.href)));

export const BASE = new URL("ui/", ROOT).pathname;

/** Go somewhere. @param {string} to below /ui/ @param {boolean} [replace] */
export function go(to, replace = false) {
  const url = new URL(to, new URL(BASE, location.href));
  if (url.href === location.href) return;
  history[replace ? "replaceState" : "pushState"](null, "", url);
  const page = url.pathname !== place.value.pathname;
  place.value = url;
  if (page && !replace) scrollTo(0, 0);
}

/** Change words of the query in place. @param {Record<string, any>} changes @param {boolean} [replace] */
export function setQuery(changes, replace = true) {
  const url = new URL(place.value);
  for (const [name, value] of Object.entries(changes))
    if (value === undefined || value === null || value === "") url.searchParams.delete(name);
    else url.searchParams.set(name, String(value));
  go(url.pathname + url.search, replace);
}

/** A word of the query. @param {string} name */
export const query = (name) => place.value.searchParams.get(name) || "";

/** A link inside of the UI. @param {any} props */
export function Link({ to, children, ...rest }) {
  const href = new URL(to, new URL(BASE, location.href));
  const follow = (/** @type {MouseEvent} */ event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
    event.preventDefault();
    go(href.pathname + href.search);
  };
  return html`<a href=${href.pathname + href.search} onClick=${follow} ...${rest}>${children}</a>`;
}

export const runPath = (/** @type {any} */ run) => `runs/${run.flow}/${run.run}`;

// ------------------------------------------------------------ formats

/** Seconds as people say them. @param {number | null | undefined} seconds */
export function span(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  if (seconds < 0.0005) return "0 s";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} m ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} m`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

/** Bytes as people say them. @param {number | null | undefined} bytes */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (bytes >= 1000 && at < 4) [bytes, at] = [bytes / 1000, at + 1];
  return `${at && bytes < 10 ? bytes.toFixed(1) : Math.round(bytes)} ${units[at]}`;
}

export const count = (/** @type {number} */ n) => n.toLocaleString("en-US");

/** A number of things in words, as "1 run" and "2 runs". @param {number} n @param {string} one @param {string} [many] */
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** A clock that pages which show running things look at. */
export const now = signal(Date.now() / 1000);

/** Grows when this machine was asleep: everything is read again then. */
export const woken = signal(0);
const ASLEEP = 20; // seconds that a clock which ticks each second was late, at least
let ticked = Date.now() / 1000;
setInterval(() => {
  const at = Date.now() / 1000;
  if (at - ticked > ASLEEP && !document.hidden) woken.value++;
  ticked = at;
  if (!document.hidden) now.value = at;
}, 1000);

/** @param {{at: number | null | undefined}} props */
export function Time({ at }) {
  if (!at) return html`<span>–</span>`;
  const when = new Date(at * 1000);
  const passed = now.value - at;
  const text = passed < 60 ? "just now" : passed < 86400 * 7 ? `${span(passed).split(" ").slice(0, 2).join(" ")} ago` : when.toLocaleDateString();
  return html`<time dateTime=${when.toISOString()} title=${`${when.toLocaleString()}  (${when.toISOString().replace("T", " ").slice(0, 19)} UTC)`}>${text}</time>`;
}

/** How long a run or a task has taken, or takes by now. @param {any} each */
export const took = (each) =>
  each.finished_at
    ? each.finished_at - (each.started_at || each.created_at)
    : each.state === "running"
      ? now.value - (each.started_at || each.created_at)
      : null;

// ------------------------------------------------------------ small parts

/** Whether a parameter has another value than the default, where that is known. @param {string} value @param {string | null | undefined} usual */
export const differs = (value, usual) => usual !== null && usual !== undefined && usual !== value;

/** The states of tasks and runs, in the order of bars. */
export const STATES = ["succeeded", "failed", "cancelled", "running", "ready", "waiting", "pending"];

const SIGNS = {
  succeeded: html`<circle cx="8" cy="8" r="7" /><path class="cut" d="M4.6 8.3 7 10.6l4.4-5" />`,
  failed: html`<path d="M5 1h6l4 4v6l-4 4H5l-4-4V5z" /><path class="cut" d="m5.4 5.4 5.2 5.2m0-5.2-5.2 5.2" />`,
  running: html`<circle class="ring" cx="8" cy="8" r="6" /><path class="arc" d="M8 2a6 6 0 0 1 6 6" />`,
  cancelled: html`<circle class="ring" cx="8" cy="8" r="6" /><path class="line" d="m4 12 8-8" />`,
  ready: html`<circle class="ring" cx="8" cy="8" r="6" />`,
  waiting: html`<circle class="ring dots" cx="8" cy="8" r="6" />`,
  pending: html`<circle class="ring" cx="8" cy="8" r="6" /><path class="line" d="M8 4.6V8l2.4 1.6" />`,
  reused: html`<path class="ring" d="m8 1.6 6.4 6.4L8 14.4 1.6 8z" />`,
};

/** A state as a sign: a shape and a colour. @param {{state: string, label?: boolean, name?: string}} props */
export function State({ state, label = false, name = state }) {
  const sign = /** @type {any} */ (SIGNS)[state] || SIGNS.ready;
  if (label)
    return html`<span class=${`state ${state}`}><svg viewBox="0 0 16 16" width="14" height="14" aria-hidden="true">${sign}</svg> <span>${name}</span></span>`;
  return html`<span class=${`state ${state}`}><svg viewBox="0 0 16 16" width="14" height="14" role="img" aria-label=${name}>${sign}</svg></span>`;
}

/** A bar of task states. @param {{tasks: Record<string, number>, text?: boolean}} props */
export function Bar({ tasks, text = true }) {
  const total = Object.values(tasks).reduce((sum, n) => sum + n, 0);
  if (!total) return html`<span class="dim">no tasks</span>`;
  const summary = STATES.filter((s) => tasks[s])
    .map((s) => `${count(tasks[s])} ${s}`)
    .join(", ");
  const done = (tasks.succeeded || 0) + (tasks.failed || 0) + (tasks.cancelled || 0);
  return html`<span class="bar-and-text" title=${summary}>
    <span class="bar" role="img" aria-label=${summary}>
      ${STATES.filter((s) => tasks[s]).map((s) => html`<i class=${s} style=${{ flexGrow: tasks[s] }}></i>`)}
    </span>
    ${text && html`<span class="of">${done === total ? count(total) : `${count(done)}/${count(total)}`}</span>`}
  </span>`;
}

/** A sentence where something is missing or went wrong. @param {any} props */
export function Notice({ kind = "info", children, retry = null }) {
  return html`<div class=${`notice ${kind}`} role=${kind === "bad" ? "alert" : "status"}>
    <div>${children}</div>
    ${retry && html`<button onClick=${retry}>Retry</button>`}
  </div>`;
}

/** Grey lines while something loads; nothing for the first 300 ms. */
export function Skeleton({ lines = 6 }) {
  const [shown, show] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => show(true), 300);
    return () => clearTimeout(timer);
  }, []);
  if (!shown) return html`<div class="skeleton" aria-busy="true"></div>`;
  return html`<div class="skeleton" aria-busy="true" aria-label="Loading">
    ${Array.from({ length: lines }, (_, n) => html`<i style=${{ width: `${92 - ((n * 37) % 50)}%` }}></i>`)}
  </div>`;
}

/**
 * What an API answers, as a page: a skeleton, a sentence, or the page.
 * @param {any} found of useApi @param {(data: any) => any} page @param {string} [title] the heading of a page that cannot be shown
 */
export function shown(found, page, title = "") {
  if (found.data)
    return html`${found.stale && html`<${Notice} kind="warn" retry=${found.retry}>This page is not up to date: ${found.error.message}<//>`}
      ${page(found.data)}`;
  if (found.error) return html`${title && html`<h1>${title}</h1>`}<${Notice} kind="bad" retry=${found.retry}>${found.error.message}<//>`;
  return html`<${Skeleton} />`;
}

/** A part of the UI that is read when it is shown first. @param {() => Promise<any>} load @param {string} name */
export const later = (load, name) => (/** @type {any} */ props) => {
  const [state, set] = useState(/** @type {{page: any, error: any}} */ ({ page: null, error: null }));
  const [again, setAgain] = useState(0);
  useEffect(() => {
    load().then(
      (module) => set({ page: module[name], error: null }),
      (error) => set({ page: null, error }),
    );
  }, [again]);
  if (state.error) return html`<${Notice} kind="bad" retry=${() => setAgain((n) => n + 1)}>The server did not return this page: ${state.error.message}<//>`;
  return state.page ? html`<${state.page} ...${props} />` : html`<${Skeleton} />`;
};

/** Tabs whose choice is in the address. @param {{tabs: [string, string, any?][], name?: string}} props */
export function Tabs({ tabs, name = "tab" }) {
  const chosen = query(name) || tabs[0][0];
  const move = (/** @type {KeyboardEvent} */ event) => {
    const by = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!by) return;
    const at = tabs.findIndex(([key]) => key === chosen);
    const next = tabs[(at + by + tabs.length) % tabs.length][0];
    setQuery({ [name]: next === tabs[0][0] ? "" : next });
    requestAnimationFrame(() => document.getElementById(`${name}-${next}`)?.focus());
    event.preventDefault();
  };
  useEffect(() => document.getElementById(`${name}-${chosen}`)?.scrollIntoView({ block: "nearest", inline: "nearest" }), [chosen]);
  return html`<div class="tabs" role="tablist" onKeyDown=${move}>
    ${tabs.map(
      ([key, title, mark]) => html`<button role="tab" id=${`${name}-${key}`} aria-selected=${key === chosen} tabindex=${key === chosen ? 0 : -1}
        onClick=${() => setQuery({ [name]: key === tabs[0][0] ? "" : key })}>${title}${mark !== undefined && mark !== null && html`<small>${mark}</small>`}</button>`,
    )}
  </div>`;
}

/** Ask before something is destroyed; resolves to whether it shall be. */
export const dialog = signal(/** @type {any} */ (null));

/** @param {string} title @param {any} body @param {string} yes @returns {Promise<boolean>} */
export const confirm = (title, body, yes) => asked({ title, body, yes, danger: true });

/** Ask for a text; null where there is none. @param {string} title @param {string} label @param {string} yes @returns {Promise<string | null>} */
export const askText = (title, label, yes) => asked({ title, label, yes });

/** @param {any} what @returns {Promise<any>} */
const asked = (what) =>
  new Promise((resolve) => {
    dialog.value = { ...what, answer: (/** @type {any} */ answer) => ((dialog.value = null), resolve(answer)) };
  });

/** A line at the bottom that goes by itself. */
export const toast = signal(/** @type {{text: string, bad: boolean} | null} */ (null));
/** @type {any} */
let toastTimer;

/** @param {string} text @param {boolean} [bad] */
export function say(text, bad = false) {
  toast.value = { text, bad };
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (toast.value = null), bad ? 10000 : 4000);
}

/** Do something that the server may refuse, and say how it went. @param {() => Promise<any>} what @param {string} done */
export async function attempt(what, done) {
  try {
    const answer = await what();
    if (done) say(done);
    return answer;
  } catch (error) {
    say(error instanceof Error ? error.message : String(error), true);
    return null;
  }
}

const MAY_READ = "Your token may only read. This action needs a token with scope write.";

/** Whether the token allows changes; where it does not, that is said. */
export function mayChange() {
  if (scope.peek() !== "read") return true;
  say(MAY_READ, true);
  return false;
}

/** A button that changes something. With a token that may only read it does nothing but say so. @param {any} props */
export function Act({ children, onClick = undefined, title = undefined, ...rest }) {
  const barred = scope.value === "read";
  const refuse = (/** @type {Event} */ event) => (event.preventDefault(), void mayChange());
  return html`<button ...${rest} aria-disabled=${barred ? "true" : null} title=${barred ? MAY_READ : title} onClick=${barred ? refuse : onClick}>${children}</button>`;
}

/** Copy a text. @param {string} text */
export const copy = (text) => attempt(() => navigator.clipboard.writeText(text), "Copied.");

/**
 * The call behind a page, to be copied.
 * @param {{path: string, method?: string, body?: unknown}} props
 */
export function Behind({ path, method = "GET", body = undefined }) {
  const url = new URL(path, ROOT).href;
  const data = body === undefined ? "" : ` -H 'Content-Type: application/json' -d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`;
  const curl = `curl ${method === "GET" ? "" : `-X ${method} `}-H "Authorization: Bearer $AFLOW_SERVICE_AUTH_KEY" '${url}'${data}`;
  const python = [
    "import json, os, urllib.request",
    `request = urllib.request.Request(${JSON.stringify(url)}, method=${JSON.stringify(method)})`,
    'request.add_header("Authorization", "Bearer " + os.environ["AFLOW_SERVICE_AUTH_KEY"])',
    "print(json.load(urllib.request.urlopen(request)))",
  ].join("\n");
  return html`<details class="behind"><summary>API</summary><div>
    <code>${method} ${new URL(path, ROOT).pathname}</code>
    <button onClick=${() => copy(curl)}>Copy as curl</button><button onClick=${() => copy(python)}>Copy as Python</button>
  </div></details>`;
}

// ------------------------------------------------------------ what is live

/** @type {EventSource | null} */
let source = null;
/** @type {Map<number, {topic: () => string, hear: (name: string, data: any) => void}>} */
const listeners = new Map();
let nextListener = 1;
let opened = "";
let heard = 0; // when the stream said something last
const SILENCE = 40; // seconds: the server says something each 15

export const live = signal("idle"); // idle, live, paused, lost

function connect() {
  const topics = [...new Set([...listeners.values()].map((each) => each.topic()))];
  const wanted = document.hidden ? "" : topics.join(",");
  if (wanted === opened && source) return;
  opened = wanted;
  source?.close();
  source = null;
  live.value = topics.length ? (document.hidden ? "paused" : "live") : "idle";
  if (!wanted) return;
  const here = (source = new EventSource(new URL(withQuery("v1/stream", { topics: wanted }), ROOT)));
  heard = Date.now() / 1000;
  here.onopen = () => (live.value = "live");
  here.onerror = () => here === source && again();
  for (const name of ["runs", "run", "lines", "alive"])
    here.addEventListener(name, (event) => {
      heard = Date.now() / 1000;
      const data = JSON.parse(/** @type {MessageEvent} */ (event).data);
      for (const each of listeners.values()) each.hear(name, data);
    });
}

/** Open the stream again, in a while: it was cut off, or nobody is at its other end. @param {number} [wait] milliseconds */
function again(wait = 2000) {
  live.value = "lost";
  source?.close();
  source = null;
  opened = "";
  setTimeout(connect, wait);
  // Why? A stream says nothing of a token that has expired, or of a run that was deleted.
  ask("v1/server").catch(() => null);
}

setInterval(() => source && !document.hidden && Date.now() / 1000 - heard > SILENCE && again(0), 5000);
effect(() => {
  if (woken.value && source) again(0);
});

document.addEventListener("visibilitychange", connect);
let connecting = 0;
const soon = () => {
  clearTimeout(connecting);
  connecting = /** @type {any} */ (setTimeout(connect, 30));
};

/**
 * Hear of a topic while a page is shown. One stream serves the whole page.
 * @param {string | null} topic @param {(name: string, data: any) => void} hear @param {() => string} [current] the topic when the stream is opened again
 */
export function useTopic(topic, hear, current) {
  const heard = useRef(hear);
  heard.current = hear;
  useEffect(() => {
    if (!topic) return;
    const number = nextListener++;
    listeners.set(number, { topic: current || (() => topic), hear: (name, data) => heard.current(name, data) });
    soon();
    return () => {
      listeners.delete(number);
      soon();
    };
  }, [topic]);
}

const PACE = 1000; // milliseconds between readings of a run that goes on, at least

/** A number that grows when a run has changed. @param {any} path */
export function useRunVersion(path) {
  const [version, set] = useState(0);
  const waits = useRef({ timer: 0, latest: 0, at: 0 });
  useTopic(path ? `run:${path}` : null, (name, data) => {
    if (name !== "run" || data.run !== path) return;
    const state = waits.current;
    // A deleted run has version -1, a run that has ended may have the version that it had: both are read at once.
    state.latest = data.is_over ? data.version + 0.5 : data.version;
    if (state.timer) return;
    const show = () => {
      state.timer = 0;
      state.at = Date.now();
      set(state.latest);
    };
    const left = state.at + PACE - Date.now();
    if (left <= 0) show();
    else state.timer = /** @type {any} */ (setTimeout(show, left));
  });
  return version;
}

/** The look: "light", "dark", or as the system has it. @param {string} name */
export function theme(name) {
  localStorage.setItem("aflow.theme", name);
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
}
