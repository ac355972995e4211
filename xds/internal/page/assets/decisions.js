// decisions draws the table of decisions, each with its candidates.

import { h, id, text } from "./dom.js";
import { number, ms, time } from "./text.js";

const most = 100;

/** Decisions is the table, the newest first. */
export class Decisions {
  constructor() {
    this.rows = id("rows");
    this.waiting = []; // came while somebody reads
    id("newer").addEventListener("click", () => this.flush());
  }

  clear() {
    this.waiting = [];
    this.rows.replaceChildren();
    this.note();
  }

  // add shows a decision, unless somebody reads one: rows must not move then.
  add(d) {
    this.waiting.push(d);
    if (this.waiting.length > most) this.waiting.shift();
    if (!this.rows.querySelector("[aria-expanded=true]") && !this.rows.contains(document.activeElement)) this.flush();
    this.note();
  }

  flush() {
    for (const d of this.waiting) this.rows.prepend(...row(d));
    this.waiting = [];
    while (this.rows.childElementCount > 2 * most) this.rows.lastElementChild.remove();
    this.note();
  }

  note() {
    id("newer").hidden = this.waiting.length === 0;
    text(id("newer"), `Show ${this.waiting.length} newer`);
    id("no-rows").hidden = this.rows.childElementCount > 0 || this.waiting.length > 0;
  }
}

// The terms of a candidate's cost, in milliseconds, as extproc/README.md has them.
const terms = ["wait", "load", "prefill", "decode", "fill", "delay", "shared", "goal"];
const outcomes = { refused: "refused", failed: "failed", shed: "shed", gone: "client left" };

// row is a decision in one row, and the row below that explains it.
function row(d) {
  const detail = `why-${d.seq}`;
  const below = h("tr", { class: "why", id: detail, hidden: true }, h("td", { colspan: "9" }));
  const button = h("button", { class: "open", type: "button", "aria-expanded": "false", "aria-controls": detail, onclick: () => toggle(d, button, below) }, time(d.at));
  const bad = outcomes[d.outcome];
  const u = d.usage;
  return [h("tr", { "data-outcome": d.outcome },
    h("td", {}, button),
    h("td", {}, d.model),
    h("td", {}, bad ? h("span", { class: "bad" }, `${bad}${d.status ? ` (${d.status})` : ""} `) : "", d.node || d.replica || d.address || (bad ? "" : "–"), d.attempts > 1 ? h("span", { class: "warn" }, ` attempt ${d.attempts}`) : ""),
    h("td", {}, d.reason || "–"),
    h("td", { class: "n" }, ms(d.predicted_ms)),
    h("td", { class: "n" }, ms(d.took_ms)),
    h("td", { class: "n" }, (d.exact ? "" : "~") + number(d.prompt_tokens)),
    h("td", { class: "n" }, u ? number(u.cached) : "–"),
    h("td", { class: "n" }, u ? number(u.output) : "–")), below];
}

function toggle(d, button, below) {
  const open = button.getAttribute("aria-expanded") !== "true";
  button.setAttribute("aria-expanded", String(open));
  below.hidden = !open;
  if (open && !below.firstChild.firstChild) below.firstChild.append(...explanation(d));
}

function explanation(d) {
  const u = d.usage;
  const off = d.predicted_ms && d.took_ms !== null ? Math.round((100 * (d.took_ms - d.queued_ms - d.predicted_ms)) / d.predicted_ms) : null;
  const lines = [
    d.reason ? `${d.reason}: ${d.why}.` : "No endpoint was chosen.",
    `${d.operation || "request"}, priority ${d.priority || "none"}${d.queued_ms ? `; waited ${ms(d.queued_ms)} in extproc for ${d.queued_for === "load" ? "its model to be loaded" : "room at an engine"}` : ""}.`,
    off === null ? "" : `Predicted ${ms(d.predicted_ms)}, observed ${ms(d.took_ms - d.queued_ms)} (${off > 0 ? "+" : ""}${off} %)${d.first_token_ms === null ? "" : `; first token after ${ms(d.first_token_ms)}`}.`,
    u ? `Output: expected ${number(d.expected_output_tokens)} tokens, observed ${number(u.output)}. Cached: observed ${number(u.cached)} of ${number(u.prompt)}.` : "The engine does not say what it needed.",
    d.request_id ? `millrace explain ${d.request_id}` : "",
  ];
  const used = terms.filter((t) => d.candidates.some((c) => c[t]));
  return [
    h("p", {}, lines.slice(0, 2).join(" ")), h("p", {}, lines.slice(2, 4).join(" ")), lines[4] ? h("p", {}, h("code", {}, lines[4])) : "",
    d.candidates.length ? h("table", { class: "candidates" },
      h("caption", {}, "Candidates: the cost of each in milliseconds, the cheapest first", d.others ? `; ${number(d.others)} more are not shown` : ""),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Try"), h("th", { scope: "col" }, "Endpoint"), h("th", { scope: "col", class: "n" }, "Cost"), h("th", { scope: "col", class: "n" }, "Finish"),
        used.map((t) => h("th", { scope: "col", class: "n" }, t === "shared" ? "− shared" : t)),
        h("th", { scope: "col", class: "n" }, "cached"), h("th", { scope: "col", class: "n" }, "company"))),
      h("tbody", {}, d.candidates.map((c) => h("tr", { "data-answered": String(c.address === d.address) },
        h("td", {}, c.named ? String(c.named) : "–"),
        h("th", { scope: "row" }, [c.node, c.replica].filter(Boolean).join(" ") || c.address, c.address === d.address ? h("span", { class: "good" }, " ✓ answered") : "", c.out ? h("span", { class: "bad" }, ` ${c.out}`) : ""),
        h("td", { class: "n" }, number(c.cost)), h("td", { class: "n" }, number(c.finish)),
        used.map((t) => h("td", { class: "n" }, number(c[t]))),
        h("td", { class: "n" }, number(c.cached_tokens)), h("td", { class: "n" }, String(c.company)))))) : "",
  ].filter(Boolean);
}
