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

function row(d) {
  return [h("tr", {}, h("td", {}, time(d.at)), h("td", {}, d.model), h("td", {}, d.address), h("td", {}, d.reason), h("td", { class: "n" }, ms(d.predicted_ms)), h("td", { class: "n" }, ms(d.took_ms)), h("td", { class: "n" }, number(d.prompt_tokens))), h("tr", { hidden: true })];
}
