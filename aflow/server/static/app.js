// The frame around all pages: rail, search box, dialogs, keyboard. It chooses the page by the path of the URL.
// @ts-check
import {
  ask,
  BASE,
  connection,
  dialog,
  get,
  go,
  html,
  Link,
  later,
  live,
  Notice,
  place,
  ROOT,
  refusedWith,
  render,
  scope,
  setQuery,
  theme,
  toast,
  useEffect,
  useLayoutEffect,
  useRef,
  useState,
  withQuery,
} from "./lib.js";
import { RunPage } from "./run.js";
import { RunsPage } from "./runs.js";

const TaskPage = later(() => import("./task.js"), "TaskPage"),
  FlowsPage = later(() => import("./flows.js"), "FlowsPage"),
  FlowPage = later(() => import("./flows.js"), "FlowPage");
const ComparePage = later(() => import("./compare.js"), "ComparePage"),
  SchedulesPage = later(() => import("./schedules.js"), "SchedulesPage");
const SettingsPage = later(() => import("./settings.js"), "SettingsPage"),
  WorkersPage = later(() => import("./workers.js"), "WorkersPage");

const RAIL = [
  ["", "Runs", "r", "M3 4h10M3 8h10M3 12h6"],
  ["flows", "Flows", "f", "M4 8h2c3 0 2-4 6-4M6 8c3 0 2 4 6 4M6 8h6"],
  ["schedules", "Schedules", "s", "M8 2a6 6 0 1 1 0 12A6 6 0 0 1 8 2zm0 3v3l2 2"],
  ["workers", "Workers", "w", "M3 4h10v4H3zM3 10h10v3H3zM5 6h1M5 11.5h1"],
  ["settings", "Settings", ",", "M8 5.5a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5zM8 2v2M8 12v2M2 8h2M12 8h2M4 4l1 1M11 11l1 1M12 4l-1 1M5 11l-1 1"],
];

/** Return the page of a path. @param {string} path below /ui/ */
function page(path) {
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  if (!parts.length || (parts[0] === "runs" && parts.length === 1)) return html`<${RunsPage} />`;
  if (parts[0] === "runs" && parts.length === 3) return html`<${RunPage} key=${path} flow=${parts[1]} run=${parts[2]} />`;
  if (parts[0] === "runs" && parts.length === 5 && parts[3] === "tasks")
    return html`<${TaskPage} key=${path} flow=${parts[1]} run=${parts[2]} task=${Number(parts[4])} />`;
  if (parts[0] === "flows" && parts.length === 1) return html`<${FlowsPage} />`;
  if (parts[0] === "flows" && parts.length === 2) return html`<${FlowPage} key=${path} flow=${parts[1]} />`;
  if (parts[0] === "compare") return html`<${ComparePage} />`;
  if (parts[0] === "schedules") return html`<${SchedulesPage} />`;
  if (parts[0] === "workers") return html`<${WorkersPage} />`;
  if (parts[0] === "settings") return html`<${SettingsPage} />`;
  return html`<h1>Page not found</h1><${Notice}>The page ${path} does not exist. <${Link} to="./">See all runs<//><//>`;
}

/** The breadcrumb. It is the search box as well. */
function Search() {
  const path = place.value.pathname.slice(BASE.length);
  const input = useRef(/** @type {any} */ (null));
  const leaving = useRef(/** @type {any} */ (0)); // a timer: the click on a suggestion comes after the blur event
  const [text, setText] = useState(/** @type {string | null} */ (null));
  const [found, setFound] = useState(/** @type {any[]} */ ([]));
  const [at, setAt] = useState(0);
  useEffect(() => {
    if (text === null) return setFound([]);
    const timer = setTimeout(() => {
      get(`v1/suggest?prefix=${encodeURIComponent(text.trim())}`).then(
        (answer) => (setFound(answer.found), setAt(0)),
        () => setFound([]),
      );
    }, 120);
    return () => clearTimeout(timer);
  }, [text]);
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  const crumb = parts[0] === "runs" && parts[2] ? `${parts[1]}/${parts[2]}${parts[4] ? `/…/${parts[4]}` : ""}` : parts.join(" / ");
  const visit = (/** @type {string} */ words) => {
    const [flow, run, second, third] = words.trim().replace(/^\/+/, "").split("/");
    setText(null);
    input.current?.blur();
    if (!flow) return;
    if (/[:\s]/.test(words)) return go(`?filter=${encodeURIComponent(words.trim())}`);
    if (!run) return go(found.some((each) => each.text === flow) ? `flows/${flow}` : `?filter=${encodeURIComponent(words.trim())}`);
    if (third && !/^\d+$/.test(third)) return go(withQuery(`runs/${flow}/${run}`, { tab: "artifacts", step: second, name: third }));
    const task = third || (/^\d+$/.test(second || "") ? second : "");
    go(`runs/${flow}/${run}${task ? `/tasks/${task}` : second ? `?tab=tasks&step=${second}` : ""}`);
  };
  const keys = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter")
      visit(found[at] && text && (at > 0 || found[at].text.startsWith(text) || found[at].text.includes(`:${text}`)) ? found[at].text : text || "");
    else if (event.key === "Escape") setText(null), input.current.blur();
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      setAt((at + (event.key === "ArrowDown" ? 1 : -1) + found.length) % Math.max(found.length, 1));
      event.preventDefault();
    } else if (event.key === "Tab" && found[at]) setText(found[at].text + (found[at].kind === "flow" ? "/" : "")), event.preventDefault();
  };
  return html`<div class="search" role="search">
    <svg viewBox="0 0 16 16" width="15" height="15" aria-hidden="true"><path d="M7 2a5 5 0 1 1 0 10A5 5 0 0 1 7 2zm3.6 8.6L14 14" /></svg>
    <input id="search" ref=${input} type="text" role="combobox" aria-expanded=${found.length > 0} aria-controls="found" aria-label="Go to a flow, run or task, or search runs" autocomplete="off" spellcheck=${false}
      placeholder=${crumb || "Search: a flow, a pathspec, or state:failed tag:prod ..."} value=${text ?? ""} onFocus=${() => (clearTimeout(leaving.current), setText(""))} onBlur=${() => (leaving.current = setTimeout(() => setText(null), 150))}
      onInput=${(/** @type {any} */ event) => setText(event.target.value)} onKeyDown=${keys} />
    <kbd>/</kbd>
    ${found.length > 0 && html`<ul id="found" role="listbox">${found.map((each, n) => html`<li role="option" aria-selected=${n === at} onMouseDown=${() => visit(each.text)}><small>${each.kind}</small>${each.text}</li>`)}</ul>`}
  </div>`;
}

const LIVE = { live: "Live", paused: "Paused while the page is hidden", lost: "Connection lost; the page reconnects", idle: "This page has no live updates" };

function Login() {
  const [message, setMessage] = useState("");
  const enter = async (/** @type {any} */ event) => {
    event.preventDefault();
    try {
      await ask("ui/login", { json: { token: new FormData(event.target).get("token") } });
      location.reload();
    } catch (error) {
      setMessage(error instanceof Error ? error.message : String(error));
    }
  };
  useEffect(() => {
    document.title = "Log in · aflow";
  }, []);
  return html`<main class="login"><form onSubmit=${enter}>
    <img src=${new URL("ui/static/icon.svg", ROOT).href} width="44" height="44" alt="" />
    <h1>aflow</h1>
    ${refusedWith.value && !message && html`<${Notice} kind="warn">You are logged out: ${refusedWith.value}<//>`}
    <p>This server requires a token. <code>aflow ui</code> on its machine opens this page with a token; <code>aflow token create NAME</code> creates one.</p>
    <label>Token <input name="token" type="password" autocomplete="current-password" required autofocus /></label>
    <button class="main">Log in</button>
    ${message && html`<${Notice} kind="bad">${message}<//>`}
  </form></main>`;
}

function Dialog() {
  const box = useRef(/** @type {any} */ (null));
  const asked = dialog.value;
  useEffect(() => {
    if (asked && box.current && !box.current.open) box.current.showModal();
  }, [asked]);
  if (!asked) return null;
  const none = asked.label ? null : false;
  const answer = (/** @type {any} */ event) => {
    event.preventDefault();
    asked.answer(asked.label ? String(new FormData(event.target).get("text")).trim() || null : true);
  };
  return html`<dialog ref=${box} aria-label=${asked.title} onCancel=${() => asked.answer(none)}><form onSubmit=${answer}>
    <h2>${asked.title}</h2><div>${asked.label ? html`<label>${asked.label} <input name="text" required autofocus /></label>` : asked.body}</div>
    <footer><button type="button" onClick=${() => asked.answer(none)}>${asked.danger ? "No" : "Close"}</button><button class=${asked.danger ? "main danger" : "main"}>${asked.yes}</button></footer>
  </form></dialog>`;
}

const KEYS = [
  ["/", "Search"],
  ["?", "Show these keys"],
  [".", "Commands"],
  ["g r · g f · g s · g w", "Runs, flows, schedules, workers"],
  ["j · k", "Next, previous row"],
  ["x", "Select the row"],
  ["X", "Change all runs that match"],
  ["Enter", "Open the row"],
  ["[ · ]", "Previous, next failed task"],
  ["Esc", "Close"],
];

function Help({ close }) {
  return html`<div class="overlay" onClick=${close}><div class="sheet" role="dialog" aria-label="Keyboard" onClick=${(/** @type {any} */ e) => e.stopPropagation()}>
    <h2>Keyboard</h2><table>${KEYS.map(([key, what]) => html`<tr><td><kbd>${key}</kbd></td><td>${what}</td></tr>`)}</table>
  </div></div>`;
}

function Palette({ close }) {
  const [text, setText] = useState("");
  const path = place.value.pathname.slice(BASE.length);
  const commands = [
    ...RAIL.map(([to, title]) => [`Go to ${title}`, () => go(to || "./")]),
    ["Theme: system", () => theme("")],
    ["Theme: light", () => theme("light")],
    ["Theme: dark", () => theme("dark")],
    ...(path.startsWith("runs/")
      ? ["overview", "timeline", "tasks", "logs", "artifacts", "code", "cards", "explain", "events"].map((tab) => [
          `Tab: ${tab}`,
          () => setQuery({ tab: tab === "overview" ? "" : tab }),
        ])
      : []),
    ...(path.startsWith("runs/") ? [["Next failed task", () => dispatchEvent(new CustomEvent("failed", { detail: 1 }))]] : []),
    ...(path === "" && scope.value !== "read" ? [["Change all runs that match", () => dispatchEvent(new CustomEvent("many"))]] : []),
    ["Only failed runs", () => go("?filter=state:failed")],
    ["Only running runs", () => go("?filter=state:running")],
  ].filter(([title]) => String(title).toLowerCase().includes(text.toLowerCase()));
  const run = (/** @type {any} */ command) => (close(), command?.[1]());
  const input = useRef(/** @type {any} */ (null));
  useEffect(() => input.current.focus(), []);
  return html`<div class="overlay" onClick=${close}><div class="sheet palette" role="dialog" aria-label="Commands" onClick=${(/** @type {any} */ e) => e.stopPropagation()}>
    <input ref=${input} aria-label="Command" placeholder="Command" value=${text} onInput=${(/** @type {any} */ e) => setText(e.target.value)} onKeyDown=${(/** @type {any} */ e) => e.key === "Enter" && run(commands[0])} />
    <ul>${commands.map((each) => html`<li><button onClick=${() => run(each)}>${each[0]}</button></li>`)}</ul>
  </div></div>`;
}

function Frame() {
  const [sheet, setSheet] = useState("");
  const path = place.value.pathname.slice(BASE.length);
  const pending = useRef("");
  // A layout effect listens before the first paint; a plain effect would start later and lose a key.
  useLayoutEffect(() => {
    const keys = (/** @type {KeyboardEvent} */ event) => {
      const target = /** @type {HTMLElement} */ (event.target);
      if (event.key === "Escape") return setSheet("");
      if (event.metaKey || event.ctrlKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName)) return;
      const before = pending.current;
      pending.current = "";
      if (before === "g") {
        const to = { r: "./", f: "flows", s: "schedules", w: "workers" }[event.key];
        if (to) go(to);
      } else if (event.key === "g") pending.current = "g";
      else if (event.key === "/") document.getElementById("search")?.focus(), event.preventDefault();
      else if (event.key === "X") dispatchEvent(new CustomEvent("many"));
      else if (event.key === "?") setSheet("help");
      else if (event.key === ".") setSheet("palette"), event.preventDefault();
      else if ("jkx".includes(event.key) || (event.key === "Enter" && !target.closest("a, button, summary"))) rowKey(event);
      else if (event.key === "[" || event.key === "]") dispatchEvent(new CustomEvent("failed", { detail: event.key === "]" ? 1 : -1 }));
    };
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  }, []);
  if (connection.value === "login") return html`<${Login} />`;
  const first = path.split("/")[0];
  return html`
    <a class="skip" href="#main">Skip to the page</a>
    <nav class="rail" aria-label="Pages">
      <${Link} to="./" class="mark" aria-label="aflow"><img src=${new URL("ui/static/icon.svg", ROOT).href} width="28" height="28" alt="" /><//>
      ${RAIL.map(
        ([
          to,
          title,
          ,
          icon,
        ]) => html`<${Link} to=${to || "./"} title=${title} aria-current=${(first === "runs" || first === "compare" ? "" : first) === to ? "page" : null}>
        <svg viewBox="0 0 16 16" width="18" height="18" aria-hidden="true"><path d=${icon} /></svg><span>${title}</span><//>`,
      )}
    </nav>
    <header class="top">
      <${Search} />
      ${scope.value === "read" && html`<span class="badge" title="Your token may only read. The pages offer no changes.">read only</span>`}
      <span class=${`dot ${connection.value === "lost" ? "lost" : live.value}`} role="status" title=${LIVE[connection.value === "lost" ? "lost" : live.value]} aria-label=${LIVE[live.value]}></span>
      <button class="quiet" onClick=${() => setSheet("help")} aria-label="Keyboard">?</button>
    </header>
    <main id="main">${connection.value === "lost" && html`<${Notice} kind="warn">The server does not respond. The page shows the latest data that it received, and reconnects by itself.<//>`}${page(path)}</main>
    ${sheet === "help" && html`<${Help} close=${() => setSheet("")} />`}
    ${sheet === "palette" && html`<${Palette} close=${() => setSheet("")} />`}
    <${Dialog} />
    ${toast.value && html`<div class=${`toast ${toast.value.bad ? "bad" : ""}`} role="status">${toast.value.text}</div>`}`;
}

/** j, k, x and Enter in a table of rows. @param {KeyboardEvent} event */
function rowKey(event) {
  // A virtualised table handles the key itself.
  if (!dispatchEvent(new CustomEvent("rowkey", { detail: event.key, cancelable: true }))) return;
  const rows = [...document.querySelectorAll("[data-row]")];
  if (!rows.length) return;
  const at = rows.findIndex((row) => row.classList.contains("at"));
  if (event.key === "j" || event.key === "k") {
    const next = rows[Math.min(Math.max(at + (event.key === "j" ? 1 : -1), 0), rows.length - 1)];
    rows[at]?.classList.remove("at");
    next.classList.add("at");
    next.scrollIntoView({ block: "nearest" });
  } else if (at >= 0 && event.key === "x") /** @type {any} */ (rows[at].querySelector("input[type=checkbox]"))?.click();
  else if (at >= 0 && event.key === "Enter") /** @type {any} */ (rows[at].querySelector("a[href]"))?.click();
}

// Close a menu when an entry is chosen, or when the user clicks outside of it.
addEventListener("click", (event) => {
  const target = /** @type {Element} */ (event.target);
  for (const menu of document.querySelectorAll("details.menu[open], details.behind[open]"))
    if (!menu.contains(target) || target.closest("a, button")) menu.removeAttribute("open");
});

// The address of the icon is relative to that of the page, which changes.
const icon = /** @type {HTMLLinkElement | null} */ (document.querySelector("link[rel=icon]"));
if (icon) icon.href = new URL("ui/static/icon.svg", ROOT).href;

// While the server does not respond, ask it every two seconds.
setInterval(() => {
  if (connection.value === "lost" && !document.hidden) ask("healthz").catch(() => null);
}, 2000);

render(html`<${Frame} />`, /** @type {any} */ (document.getElementById("app")));
