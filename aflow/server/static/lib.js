// Shared by all pages: rendering, state, the API, the URL, formats.
// @ts-check

import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";
import { Fragment, h, render } from "./vendor/preact.js";
import { batch, computed, effect, signal } from "./vendor/signals.js";

export const html = /** @type {(strings: TemplateStringsArray, ...values: any[]) => any} */ (/** @type {unknown} */ (htm.bind(h)));
export { batch, computed, effect, Fragment, render, signal, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState };

/** The base URL of the server, one level above the pages. */
export const ROOT = new URL(import.meta.url.replace(/ui\/static\/.*$/, ""));

// ------------------------------------------------------------ the API

/** An error response; `message` is the sentence of the server. */
export class Refused extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The state of the connection: "live", "lost" (the server does not respond) or "login" (it requires a token). */
export const connection = signal("live");

/** The scope of the token of this browser: "write" (everything), "read", or "" before the first response. */
export const scope = signal("");

/** Why the user has to log in again: the error of the first refused request. */
export const refusedWith = signal("");

/**
 * Send a request. Throws Refused with the sentence of the server, or with one of ours if it does not respond.
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
    const refusal = await answer.json().catch((error) => {
      if (error instanceof DOMException && error.name === "AbortError") throw error;
      return {}; // a response that is not JSON has no message
    });
    // 403 for a change: the scope does not allow it, and the page stays. 403 for a read: the token has expired.
    const reads = !how.method || how.method === "GET";
    if (answer.status === 401 || (answer.status === 403 && reads && how.json === undefined)) {
      // Several requests are refused at the same time: keep the reason of the first one.
      if (connection.value !== "login") refusedWith.value = answer.status === 403 || known ? refusal.error || "" : "";
      connection.value = "login";
    } else known = true;
    throw new Refused(answer.status, refusal.error || `The server responded with ${answer.status}.`);
  }
  known = true;
  return answer;
}
let known = false; // whether this page has received a response

/** Return the JSON of a response. @param {string} path @param {any} [how] */
export const get = async (path, how) => (await ask(path, how)).json();

/** Return a path with a query; empty values are left out. @param {string} path @param {Record<string, any>} query */
export function withQuery(path, query) {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value !== undefined && value !== null && value !== "") words.set(name, String(value));
  const text = words.toString();
  return text ? `${path}?${text}` : path;
}

/**
 * Fetch data, and again each time `tick` changes. A new `tick` does not abort a running request: data that change faster than they
 * can be fetched would never be shown. The next request starts when the running one has ended. Another `key`, or a machine that
 * wakes up, aborts it. A request that the server does not answer is retried. `read`, `take` and `fail` may depend on `key` only.
 * @param {string | null} key identifies the data; null fetches nothing @param {unknown} tick
 * @param {(stop: AbortSignal) => Promise<any>} read @param {(data: any) => void} take @param {(error: any) => void} fail
 * @returns {() => void} fetches again, now
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
 * Fetch the JSON of a path, and again when the path or `tick` changes. The last response stays on the
 * page until the next one has arrived.
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

// ------------------------------------------------------------ the URL

/** The current URL. */
export const place = signal(new URL(location.href));
addEventListener("popstate", () => (place.value = new URL(location.href)));

export const BASE = new URL("ui/", ROOT).pathname;

/** Navigate to a page. @param {string} to below /ui/ @param {boolean} [replace] */
export function go(to, replace = false) {
  const url = new URL(to, new URL(BASE, location.href));
  if (url.href === location.href) return;
  history[replace ? "replaceState" : "pushState"](null, "", url);
  const page = url.pathname !== place.value.pathname;
  place.value = url;
  if (page && !replace) scrollTo(0, 0);
}

/** Change parameters of the query. @param {Record<string, any>} changes @param {boolean} [replace] */
export function setQuery(changes, replace = true) {
  const url = new URL(place.value);
  for (const [name, value] of Object.entries(changes))
    if (value === undefined || value === null || value === "") url.searchParams.delete(name);
    else url.searchParams.set(name, String(value));
  go(url.pathname + url.search, replace);
}

/** Return a parameter of the query. @param {string} name */
export const query = (name) => place.value.searchParams.get(name) || "";

/** A link to a page of the UI. @param {any} props */
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

/** Format a duration. @param {number | null | undefined} seconds */
export function span(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  if (seconds < 0.0005) return "0 s";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} m ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} m`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

/** Format a number of bytes. @param {number | null | undefined} bytes */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (bytes >= 1000 && at < 4) [bytes, at] = [bytes / 1000, at + 1];
  return `${at && bytes < 10 ? bytes.toFixed(1) : Math.round(bytes)} ${units[at]}`;
}

export const count = (/** @type {number} */ n) => n.toLocaleString("en-US");

/** Format a count with its noun: "1 run", "2 runs". @param {number} n @param {string} one @param {string} [many] */
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** The current time in seconds, updated each second. */
export const now = signal(Date.now() / 1000);

/** Incremented when this machine wakes up; all data are then fetched again. */
export const woken = signal(0);
const ASLEEP = 20; // seconds that a one-second timer was late: the machine slept
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

/** Return the duration of a run or task, until now if it is running. @param {any} each */
export const took = (each) =>
  each.finished_at
    ? each.finished_at - (each.started_at || each.created_at)
    : each.state === "running"
      ? now.value - (each.started_at || each.created_at)
      : null;

// ------------------------------------------------------------ small parts

/** Return whether a parameter differs from its default; false if the default is unknown. @param {string} value @param {string | null | undefined} usual */
export const differs = (value, usual) => usual !== null && usual !== undefined && usual !== value;

/** The states of tasks and runs, in the order in which bars show them. */
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

/** The icon of a state: a shape and a colour. @param {{state: string, label?: boolean, name?: string}} props */
export function State({ state, label = false, name = state }) {
  const sign = /** @type {any} */ (SIGNS)[state] || SIGNS.ready;
  if (label)
    return html`<span class=${`state ${state}`}><svg viewBox="0 0 16 16" width="14" height="14" aria-hidden="true">${sign}</svg> <span>${name}</span></span>`;
  return html`<span class=${`state ${state}`}><svg viewBox="0 0 16 16" width="14" height="14" role="img" aria-label=${name}>${sign}</svg></span>`;
}

/** A stacked bar of the task states. @param {{tasks: Record<string, number>, text?: boolean}} props */
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

/** A message: nothing to show, or an error. @param {any} props */
export function Notice({ kind = "info", children, retry = null }) {
  return html`<div class=${`notice ${kind}`} role=${kind === "bad" ? "alert" : "status"}>
    <div>${children}</div>
    ${retry && html`<button onClick=${retry}>Retry</button>`}
  </div>`;
}

/** A placeholder while data load; invisible for the first 300 ms. */
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
 * Render a response: the placeholder, the error, or the page.
 * @param {any} found the result of useApi @param {(data: any) => any} page @param {string} [title] the heading above an error
 */
export function shown(found, page, title = "") {
  if (found.data)
    return html`${found.stale && html`<${Notice} kind="warn" retry=${found.retry}>This page is not up to date: ${found.error.message}<//>`}
      ${page(found.data)}`;
  if (found.error) return html`${title && html`<h1>${title}</h1>`}<${Notice} kind="bad" retry=${found.retry}>${found.error.message}<//>`;
  return html`<${Skeleton} />`;
}

/** A component whose module is loaded when it is first rendered. @param {() => Promise<any>} load @param {string} name */
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

/** Tabs; the query of the URL has the selected one. @param {{tabs: [string, string, any?][], name?: string}} props */
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

/** The open dialog, with the callback that closes it; null for none. */
export const dialog = signal(/** @type {any} */ (null));

/** Ask for confirmation. @param {string} title @param {any} body @param {string} yes @returns {Promise<boolean>} */
export const confirm = (title, body, yes) => asked({ title, body, yes, danger: true });

/** Ask for a text; null if the user cancels. @param {string} title @param {string} label @param {string} yes @returns {Promise<string | null>} */
export const askText = (title, label, yes) => asked({ title, label, yes });

/** @param {any} what @returns {Promise<any>} */
const asked = (what) =>
  new Promise((resolve) => {
    dialog.value = { ...what, answer: (/** @type {any} */ answer) => ((dialog.value = null), resolve(answer)) };
  });

/** The message at the bottom of the page, which disappears after some seconds. */
export const toast = signal(/** @type {{text: string, bad: boolean} | null} */ (null));
/** @type {any} */
let toastTimer;

/** Show a message at the bottom of the page. @param {string} text @param {boolean} [bad] */
export function say(text, bad = false) {
  toast.value = { text, bad };
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (toast.value = null), bad ? 10000 : 4000);
}

/** Run an action, and show whether it succeeded. @param {() => Promise<any>} what @param {string} done */
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

/** Return whether the token allows changes; show a message if it does not. */
export function mayChange() {
  if (scope.peek() !== "read") return true;
  say(MAY_READ, true);
  return false;
}

/** A button that changes something. With a token of scope read it only shows a message. @param {any} props */
export function Act({ children, onClick = undefined, title = undefined, ...rest }) {
  const barred = scope.value === "read";
  const refuse = (/** @type {Event} */ event) => (event.preventDefault(), void mayChange());
  return html`<button ...${rest} aria-disabled=${barred ? "true" : null} title=${barred ? MAY_READ : title} onClick=${barred ? refuse : onClick}>${children}</button>`;
}

/** Copy a text to the clipboard. @param {string} text */
export const copy = (text) => attempt(() => navigator.clipboard.writeText(text), "Copied.");

/**
 * The API request behind a page, for the user to copy.
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

// ------------------------------------------------------------ live updates

/** @type {EventSource | null} */
let source = null;
/** @type {Map<number, {topic: () => string, onEvent: (name: string, data: any) => void}>} */
const listeners = new Map();
let nextListener = 1;
let opened = "";
let lastEvent = 0; // when the last event arrived, in seconds
const SILENCE = 40; // seconds without an event: the server sends one every 15

export const live = signal("idle"); // idle, live, paused, lost

function connect() {
  const topics = [...new Set([...listeners.values()].map((each) => each.topic()))];
  const joined = document.hidden ? "" : topics.join(",");
  if (joined === opened && source) return;
  opened = joined;
  source?.close();
  source = null;
  live.value = topics.length ? (document.hidden ? "paused" : "live") : "idle";
  if (!joined) return;
  const here = (source = new EventSource(new URL(withQuery("v1/stream", { topics: joined }), ROOT)));
  lastEvent = Date.now() / 1000;
  here.onopen = () => (live.value = "live");
  here.onerror = () => here === source && again();
  for (const name of ["runs", "run", "lines", "alive"])
    here.addEventListener(name, (event) => {
      lastEvent = Date.now() / 1000;
      const data = JSON.parse(/** @type {MessageEvent} */ (event).data);
      for (const each of listeners.values()) each.onEvent(name, data);
    });
}

/** Reconnect the stream after a delay: it was closed, or no events arrive. @param {number} [wait] milliseconds */
function again(wait = 2000) {
  live.value = "lost";
  source?.close();
  source = null;
  opened = "";
  setTimeout(connect, wait);
  // An EventSource does not report the status: ask for the reason, such as an expired token.
  ask("v1/server").catch(() => null);
}

setInterval(() => source && !document.hidden && Date.now() / 1000 - lastEvent > SILENCE && again(0), 5000);
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
 * Subscribe to a topic while a component is mounted. All subscriptions of a page share one stream.
 * @param {string | null} topic @param {(name: string, data: any) => void} onEvent @param {() => string} [current] returns the topic when the stream reconnects
 */
export function useTopic(topic, onEvent, current) {
  const latest = useRef(onEvent);
  latest.current = onEvent;
  useEffect(() => {
    if (!topic) return;
    const number = nextListener++;
    listeners.set(number, { topic: current || (() => topic), onEvent: (name, data) => latest.current(name, data) });
    soon();
    return () => {
      listeners.delete(number);
      soon();
    };
  }, [topic]);
}

const PACE = 1000; // least milliseconds between two requests for an active run

/** Return a number that increases each time a run changes. @param {any} path */
export function useRunVersion(path) {
  const [version, set] = useState(0);
  const waits = useRef({ timer: 0, latest: 0, at: 0 });
  useTopic(path ? `run:${path}` : null, (name, data) => {
    if (name !== "run" || data.run !== path) return;
    const state = waits.current;
    // A deleted run has version -1; a run that ends may keep its version. Both are shown at once.
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

/** Set the theme: "light", "dark", or "" for that of the system. @param {string} name */
export function theme(name) {
  localStorage.setItem("aflow.theme", name);
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
}
