// The server: what it is, tokens, the look of these pages.
// @ts-check
import { Behind, Notice, Time, ask, attempt, confirm, copy, get, html, shown, theme, useApi, useState } from "./lib.js";

export function SettingsPage() {
  const found = useApi("v1/server");
  const [tick, setTick] = useState(0);
  const tokens = useApi("v1/tokens", tick);
  const again = () => setTick((n) => n + 1);
  const [made, setMade] = useState("");
  const create = async (/** @type {any} */ event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const answer = await attempt(() => get("v1/tokens", { json: { name: form.get("name"), scope: form.get("scope") } }), "");
    if (answer) (setMade(answer.token), event.target.reset(), again());
  };
  const revoke = async (/** @type {any} */ token) => {
    if (await confirm("Revoke the token?", html`<p>Whoever uses ${token.name} gets in no more, at once.</p>`, "Revoke it")) attempt(() => ask(`v1/tokens/${encodeURIComponent(token.name)}`, { method: "DELETE" }), "Revoked.").then(again);
  };
  return html`<div class="head"><h1>Settings</h1></div>
    <section><h2>Look</h2><div class="chips">${[["", "As the system"], ["light", "Light"], ["dark", "Dark"]].map(([name, title]) => html`<button aria-pressed=${(localStorage.getItem("aflow.theme") || "") === name} onClick=${() => (theme(name), again())}>${title}</button>`)}</div></section>
    <section><h2>Server</h2>${shown(found, (data) => html`<table class="values"><tbody>${Object.entries(data).map(([name, value]) => html`<tr><td><b>${name.replaceAll("_", " ")}</b></td><td><code>${String(value ?? "–")}</code></td></tr>`)}</tbody></table><${Behind} path="v1/server" />`)}</section>
    <section><h2>Tokens</h2>${shown(tokens, (data) => html`
      ${data.tokens.length === 0 ? html`<${Notice}>There are no tokens: this server answers only this machine.<//>` : html`<div class="scroll"><table><thead><tr><th>Name</th><th>Scope</th><th>Made</th><th>Expires</th><th></th></tr></thead><tbody>${data.tokens.map((/** @type {any} */ t) => html`<tr><td><b>${t.name}</b></td><td>${t.scope}</td><td><${Time} at=${t.created_at} /></td><td>${t.expires_at ? new Date(t.expires_at * 1000).toLocaleString() : "never"}</td><td class="actions"><button class="danger" onClick=${() => revoke(t)}>Revoke</button></td></tr>`)}</tbody></table></div>`}
      <form class="toolbar" onSubmit=${create}><input name="name" aria-label="Name of a new token" placeholder="Name of a new token" required /><select name="scope" aria-label="Scope"><option>read</option><option>write</option></select><button>Create</button></form>
      ${made && html`<${Notice} kind="warn">This is shown once: <code>${made}</code> <button onClick=${() => copy(made)}>Copy</button><//>`}`)}</section>`;
}
