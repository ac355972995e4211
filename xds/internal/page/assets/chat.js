// chat talks to the mesh by way of xds, and shows who answered, how fast, and what was cached.

import { h, id, text } from "./dom.js";
import { number, ms } from "./text.js";

/** Chat is the box. */
export class Chat {
  constructor() {
    this.clear();
    this.running = null; // what stops the present answer
    id("ask").addEventListener("submit", (e) => {
      e.preventDefault();
      this.send(id("words").value.trim());
    });
    id("words").addEventListener("keydown", (e) => {
      if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
        e.preventDefault();
        id("ask").requestSubmit();
      }
    });
    id("stop").addEventListener("click", () => this.running && this.running.abort());
    id("clear").addEventListener("click", () => {
      this.clear();
      id("words").focus();
    });
  }

  clear() {
    this.messages = [];
    this.session = `page-${crypto.getRandomValues(new Uint32Array(2)).join("")}`;
    id("talk").replaceChildren();
  }

  // draw offers the models that the fleet has.
  draw(fleet) {
    id("chat-off").hidden = fleet.chat;
    id("chat-box").hidden = !fleet.chat;
    const names = fleet.models.map((m) => m.name);
    const select = id("model");
    if (names.join("\n") === [...select.options].map((o) => o.value).join("\n")) return;
    const chosen = select.value;
    select.replaceChildren(...names.map((n) => h("option", { value: n }, n)));
    if (names.includes(chosen)) select.value = chosen;
  }

  async send(words) {
    if (!words || this.running) return;
    this.messages.push({ role: "user", content: words });
    id("words").value = "";
    const said = h("p", { class: "answer" });
    const facts = h("p", { class: "facts-line" }, "waiting for the first token …");
    id("talk").append(h("div", { class: "turn" }, h("p", { class: "question" }, words), said, facts));
    id("talk").scrollTop = id("talk").scrollHeight;
    this.running = new AbortController();
    this.busy(true);
    try {
      const a = await this.ask(said);
      this.messages.push({ role: "assistant", content: a.text });
      text(facts, summary(a));
    } catch (err) {
      this.messages.pop();
      facts.classList.add("bad");
      text(facts, err.name === "AbortError" ? "stopped" : err.message);
    } finally {
      this.running = null;
      this.busy(false);
    }
  }

  busy(is) {
    id("send").hidden = is;
    id("stop").hidden = !is;
    (is ? id("stop") : id("words")).focus();
  }

  // ask streams an answer into el, and returns what is known of it.
  async ask(el) {
    const headers = { "content-type": "application/json", "x-session-id": this.session };
    if (id("key").value) headers["x-api-key"] = id("key").value;
    const began = performance.now();
    const resp = await fetch("chat", {
      method: "POST", headers, signal: this.running.signal,
      body: JSON.stringify({ model: id("model").value, messages: this.messages, stream: true, stream_options: { include_usage: true }, max_tokens: 256 }),
    });
    if (!resp.ok) throw new Error(await refusal(resp));
    const a = { node: resp.headers.get("x-millrace-node"), replica: resp.headers.get("x-millrace-replica"), text: "", first: 0, last: 0, usage: null };
    for await (const event of eventsOf(resp.body)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) a.usage = event.usage;
      for (const choice of event.choices || []) {
        const piece = choice.delta && choice.delta.content;
        if (!piece) continue;
        a.last = performance.now() - began;
        a.first = a.first || a.last;
        a.text += piece;
        el.textContent = a.text;
      }
      id("talk").scrollTop = id("talk").scrollHeight;
    }
    return a;
  }
}

// eventsOf decodes server-sent events of JSON.
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
    }
  }
}

async function refusal(resp) {
  const body = await resp.text();
  try {
    return `${resp.status}: ${JSON.parse(body).error.message}`;
  } catch {
    return `${resp.status}: ${body.slice(0, 300)}`;
  }
}

// summary is the line under an answer, as millrace chat has it.
function summary(a) {
  const parts = [[a.node, a.replica].filter(Boolean).join(" ") || "somebody", `TTFT ${ms(Math.round(a.first))}`];
  const u = a.usage;
  if (u && u.completion_tokens > 1 && a.last > a.first) {
    parts.push(`${((1000 * (u.completion_tokens - 1)) / (a.last - a.first)).toFixed(1)} tok/s`);
  }
  if (u) {
    parts.push(`${number(u.completion_tokens)} tokens`);
    const details = u.prompt_tokens_details || {};
    parts.push(`${number(details.cached_tokens || 0)} of ${number(u.prompt_tokens)} prompt tokens cached`);
  }
  return parts.join(" · ");
}
