// events draws the timeline.

import { h, id, hidden } from "./dom.js";
import { time } from "./text.js";

const most = 200;
const signs = { good: "●", info: "○", bad: "▲" };
const words = { good: "good: ", info: "", bad: "trouble: " };

/** Events is the timeline, the newest first. */
export class Events {
  constructor() {
    this.list = id("happened");
  }

  clear() {
    this.list.replaceChildren();
  }

  add(e) {
    this.list.prepend(
      h("li", { "data-level": e.level, "data-kind": e.kind },
        h("time", { datetime: e.at }, time(e.at)),
        h("span", { class: "sign", "aria-hidden": "true" }, signs[e.level] || "○"),
        h("span", {}, words[e.level] ? hidden(words[e.level]) : "", e.text)));
    while (this.list.childElementCount > most) this.list.lastElementChild.remove();
  }
}
