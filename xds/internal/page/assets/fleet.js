// fleet draws what runs: the verdict first, then Envoy, replicas and nodes with the flows
// between them.

import { h, s, id, text, hidden } from "./dom.js";
import { number, percent, bytes, time, ago, known, of } from "./text.js";

// Shapes say what colours say, for those who do not see colours.
const shapes = {
  well: "M12 2a10 10 0 1 0 0 20 10 10 0 0 0 0-20zm-1.6 14.6-4-4 1.5-1.5 2.5 2.5 5.7-5.7 1.5 1.5z",
  degraded: "M12 2 1.5 21h21zM11 9h2v6h-2zm0 7.5h2v2h-2z",
  down: "M7.5 2h9L22 7.5v9L16.5 22h-9L2 16.5v-9zm.9 4.9L6.9 8.4l3.6 3.6-3.6 3.6 1.5 1.5 3.6-3.6 3.6 3.6 1.5-1.5-3.6-3.6 3.6-3.6-1.5-1.5-3.6 3.6z",
  empty: "M12 2a10 10 0 1 0 0 20 10 10 0 0 0 0-20zm0 2.2a7.8 7.8 0 1 1 0 15.6 7.8 7.8 0 0 1 0-15.6z",
  lost: "M12 2a10 10 0 1 0 0 20 10 10 0 0 0 0-20zM11 6h2v7h-2zm0 9h2v2.2h-2z",
};
const states = {
  "ready": { sign: "●", words: "ready" },
  "suspect": { sign: "▲", words: "in doubt" },
  "not-ready": { sign: "■", words: "takes no requests" },
  "asleep": { sign: "☾", words: "asleep" },
  "unplaced": { sign: "◌", words: "has no place" },
  "draining": { sign: "▽", words: "is being drained" },
  "drained": { sign: "▽", words: "drained" },
  "silent": { sign: "▲", words: "silent" },
  "free": { sign: "○", words: "free" },
};

let shown = null; // the newest snapshot

/** drawVerdict draws what is to be read first. lostAt is since when xds does not answer; null: it does. */
export function drawVerdict(fleet, lostAt) {
  const lost = lostAt !== null;
  const health = lost ? "lost" : fleet ? fleet.health : "empty";
  const headline = lost ? "xds does not answer" : fleet ? fleet.headline : "Waiting for xds";
  let sub = "";
  if (lost) {
    sub = (lostAt ? `What is below is from ${time(lostAt)}. ` : "") +
      "Requests are still served: Envoy and extproc keep the last weights. Check the process xds and its log; this page tries again by itself.";
  } else if (fleet) {
    sub = `${of(fleet.ads_clients, "data-plane client")} connected, configuration ${fleet.config_version || "none"}` +
      (fleet.hidden ? `, ${number(fleet.hidden)} more items are not shown` : "");
  }
  id("verdict").dataset.health = health;
  id("sign-shape").setAttribute("d", shapes[health]);
  text(id("headline"), headline);
  text(id("sub"), sub);
  text(id("announce"), lost ? headline : `${headline}. ${fleet ? of(fleet.problems.length, "problem") : ""}`);
  document.title = health === "well" ? "Millrace" : `${headline} – Millrace`;
  const problems = lost || !fleet ? [] : fleet.problems;
  const key = JSON.stringify(problems);
  if (id("problems").dataset.key === key) return;
  id("problems").dataset.key = key;
  id("problems").replaceChildren(...problems.map((p) =>
    h("li", { "data-grave": String(p.grave) },
      h("p", { class: "what" }, h("span", { class: "sign", "aria-hidden": "true" }, p.grave ? "■" : "▲"), p.grave ? hidden("grave: ") : "", p.text),
      p.next ? h("p", { class: "next" }, "→ ", p.next) : "")));
}

/** drawFleet draws the picture. */
export function drawFleet(fleet, at) {
  shown = fleet;
  const now = new Date(at);
  const order = [];
  for (const m of fleet.models) for (const r of m.replicas) for (const part of r.shards) order.push(part.node);
  const rank = (n) => (order.indexOf(n.name) + 1 || order.length + 1);
  const nodes = [...fleet.nodes].sort((a, b) => rank(a) - rank(b) || (a.name < b.name ? -1 : 1));
  id("gateway").replaceChildren(gateway(fleet));
  id("models").replaceChildren(...(fleet.models.length ? fleet.models.map((m) => model(m, now)) : [h("p", { class: "hint" }, "No model is configured.")]));
  id("nodes").replaceChildren(
    nodes.length ? h("div", { class: nodes.length > 24 ? "cards many" : "cards" }, nodes.map((n) => nodeCard(n, now))) : h("p", { class: "hint" }, "No node has reported."));
  drawFlows();
}

function gateway(fleet) {
  let running = 0;
  let waiting = 0;
  for (const m of fleet.models) {
    for (const r of m.replicas) {
      running += r.running;
      waiting += r.waiting;
    }
    waiting += m.scaling ? m.scaling.queued : 0;
  }
  return h("article", { class: "card envoy", "data-at": "envoy" },
    h("h3", {}, "Envoy"),
    h("p", { class: "big" }, number(running), h("small", {}, " running")),
    h("p", { class: waiting ? "warn" : "dim" }, `${number(waiting)} waiting`));
}

function stateLine(state, name) {
  const st = states[state] || states["not-ready"];
  return [h("span", { class: "sign", "data-state": state, "aria-hidden": "true" }, st.sign), name, state === "ready" ? hidden(", ready") : h("span", { class: "state" }, st.words)];
}

function model(m, now) {
  const sc = m.scaling;
  return h("div", { class: "model" },
    h("h3", {}, m.name, h("small", {}, ` ${number(m.ready)} of ${of(m.desired, "replica")}`)),
    sc ? h("p", { class: "scaling", "data-phase": sc.phase },
      h("b", {}, sc.phase === "Growing" ? "↑ growing" : sc.phase === "Shrinking" ? "↓ shrinking" : sc.phase.toLowerCase()),
      ` to ${number(sc.desired)} (of ${sc.min} to ${sc.max}${sc.mode === "recommend" ? ", recommended" : ""})`,
      sc.queued ? `, ${number(sc.queued)} queued` : "",
      sc.reason ? h("span", { class: "dim" }, `: ${sc.reason}`) : "") : "",
    m.layout ? h("p", { class: "dim layout" }, m.layout) : "",
    h("div", { class: "cards" }, m.replicas.map((r) => replica(r, now))));
}

function replica(r, now) {
  const down = r.state !== "ready";
  return h("article", { class: "card", "data-state": r.state, "data-at": `r:${r.name}` },
    h("h4", {}, stateLine(r.state, r.name)),
    r.reason ? h("p", { class: "reason" }, r.reason, known(r.since) && down ? h("span", { class: "dim" }, ` · for ${ago(r.since, now)}`) : "") : "",
    !r.slots && !r.weight ? "" : h("dl", { class: "facts" },
      fact("weight", r.weight ? percent(r.share) : "none"),
      fact("requests", requests(r)),
      r.kv_total_tokens ? fact("KV cache", meter(r.kv_used_tokens / r.kv_total_tokens), ` ${percent(r.kv_used_tokens / r.kv_total_tokens)}`) : "",
      r.cached_tokens ? fact("cached", `${number(r.cached_tokens)} tokens`) : "",
      r.decode ? fact("speed", `${number(r.decode)} tok/s`, h("span", { class: "dim" }, ` · prefill ${number(r.prefill)}`)) : ""),
    r.source ? h("p", { class: "dim" }, `${r.engine || "engine"}, named by ${r.source}`) : "",
    r.limit && r.waiting ? h("p", { class: "dim" }, r.limit) : "");
}

const fact = (name, ...value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));

// requests draws running ones as squares, free slots as outlines, and those that wait behind.
function requests(r) {
  const slots = Math.min(r.slots || r.running, 16);
  const waiting = Math.min(r.waiting, 12);
  const width = 10 * slots + (waiting ? 4 + 7 * waiting : 0);
  const words = `${number(r.running)}${r.slots ? ` of ${number(r.slots)}` : ""} run` + (r.waiting ? `, ${number(r.waiting)} wait` : "");
  return [
    width ? s("svg", { class: "queue", width, height: 10, viewBox: `0 0 ${width} 10`, "aria-hidden": "true" },
      Array.from({ length: slots }, (_, i) => s("rect", { x: 10 * i + 0.5, y: 0.5, width: 8, height: 9, rx: 1.5, class: i < r.running ? "run" : "room" })),
      Array.from({ length: waiting }, (_, i) => s("circle", { cx: 10 * slots + 7 + 7 * i, cy: 5, r: 2.5, class: "wait" }))) : "",
    h("span", { class: r.waiting ? "warn" : "" }, " ", words)];
}

// meter draws a share; what it says is written beside it.
function meter(share, bad) {
  const w = 64;
  return s("svg", { class: bad ? "meter bad" : "meter", width: w, height: 8, viewBox: `0 0 ${w} 8`, "aria-hidden": "true" },
    s("rect", { class: "of", x: 0, y: 0, width: w, height: 8, rx: 2 }),
    s("rect", { class: "is", x: 0, y: 0, width: Math.max(0, Math.min(1, share)) * w, height: 8, rx: 2 }));
}

function nodeCard(n, now) {
  const silent = known(n.silent);
  return h("article", { class: "card node", "data-state": silent ? "not-ready" : n.state, "data-at": `n:${n.name}` },
    h("h4", {}, stateLine(silent ? "silent" : n.state, n.name), n.zone ? h("small", {}, ` ${n.zone}`) : ""),
    silent ? h("p", { class: "reason" }, `silent for ${ago(n.silent, now)}; figures are from then`) : "",
    n.reason && n.state !== "free" ? h("p", { class: "reason" }, n.reason) : "",
    n.replica && n.stages > 1 ? h("p", { class: "dim" }, `shard ${n.stage} of ${n.stages} of ${n.replica}`) : "",
    h("dl", { class: "facts" },
      n.gpus.map((g, i) => gpuFacts(g, i, n.gpus.length)),
      n.gpus.length || !n.cpus ? "" : fact("CPU", meter(n.cpu), ` ${percent(n.cpu)} of ${n.cpus}`),
      n.memory_total ? fact("memory", meter(n.memory_used / n.memory_total, n.memory_used / n.memory_total > 0.94), ` ${percent(n.memory_used / n.memory_total)} of ${bytes(n.memory_total)}`) : ""),
    n.unread ? h("p", { class: "dim" }, `not read: ${n.unread}`) : "");
}

function gpuFacts(g, i, all) {
  const name = all > 1 ? `GPU ${i}` : "GPU";
  if (g.lost) return fact(name, h("span", { class: "bad" }, "lost: the driver does not reach it"));
  return [
    fact(name, meter(g.utilization), ` ${percent(g.utilization)} `, h("span", { class: "dim" }, `${g.name} · ${number(g.celsius)} °C · ${number(g.watts)} W`)),
    g.clock ? fact("clock", meter(g.clock, g.slowed.length > 0), ` ${percent(g.clock)}`, g.slowed.length ? h("span", { class: "bad" }, ` slowed: ${g.slowed.join(", ")}`) : "") : "",
    g.memory_total ? fact("GPU memory", meter(g.memory_used / g.memory_total), ` ${percent(g.memory_used / g.memory_total)} of ${bytes(g.memory_total)}`) : ""];
}

/** drawFlows draws the lines between the cards: their width is the weight, and they move where requests run. */
export function drawFlows() {
  const svg = id("flows");
  if (!shown || getComputedStyle(svg).display === "none") return;
  const frame = id("picture").getBoundingClientRect();
  const place = (at) => {
    const card = [...document.querySelectorAll("#picture [data-at]")].find((c) => c.dataset.at === at);
    if (!card) return null;
    const box = card.getBoundingClientRect();
    return { left: box.left - frame.left, right: box.right - frame.left, y: box.top - frame.top + Math.min(box.height / 2, 40) };
  };
  const lines = [];
  const from = place("envoy");
  for (const m of shown.models) {
    for (const r of m.replicas) {
      const to = place(`r:${r.name}`);
      if (from && to && r.weight) lines.push(...flow(from, to, 1.5 + 9 * r.share, r.running, "weight"));
      for (const part of r.shards) {
        const node = place(`n:${part.node}`);
        if (to && node) lines.push(...flow(to, node, 1 + 4 * part.share, r.running, r.state === "ready" ? "part" : "part off"));
      }
    }
  }
  svg.setAttribute("viewBox", `0 0 ${Math.round(frame.width)} ${Math.round(frame.height)}`);
  svg.setAttribute("width", Math.round(frame.width));
  svg.setAttribute("height", Math.round(frame.height));
  svg.replaceChildren(...lines);
}

function flow(from, to, width, running, kind) {
  const half = (to.left - from.right) / 2;
  const d = `M${from.right} ${from.y}C${from.right + half} ${from.y} ${to.left - half} ${to.y} ${to.left} ${to.y}`;
  const base = s("path", { d, class: `flow ${kind}`, "stroke-width": width.toFixed(1) });
  if (!running) return [base];
  const speed = running > 3 ? "fast" : running > 1 ? "brisk" : "slow";
  return [base, s("path", { d, class: `drops ${speed}`, "stroke-width": Math.max(2, width * 0.45).toFixed(1) })];
}
