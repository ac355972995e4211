// page follows the stream of /page/stream and draws what comes. What each event is, is said in
// xds/internal/page: Snapshot, Event, Decision.

import { id, text } from "./dom.js";
import { time } from "./text.js";
import { drawVerdict, drawFleet, drawFlows } from "./fleet.js";
import { Events } from "./events.js";
import { Decisions } from "./decisions.js";
import { Chat } from "./chat.js";

// A stream of which nothing has come for so long is lost: a beat comes every 5 s.
const lostAfter = 12000;
const retryAfter = 1000;

const events = new Events();
const decisions = new Decisions();
const chat = new Chat();
let source = null;
let last = Date.now(); // when anything came
let asOf = ""; // time of the newest view
let fleet = null;
let lost = false;

function connect() {
  source = new EventSource("stream");
  source.addEventListener("open", () => {
    events.clear();
    decisions.clear();
  });
  on("fleet", (data) => {
    fleet = data.fleet;
    drawFleet(fleet, data.at);
    chat.draw(fleet);
  });
  on("event", (data) => events.add(data));
  on("decision", (data) => decisions.add(data));
  on("beat", (data) => {
    asOf = data.at;
    came();
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) again();
    lose();
  });
}

function on(name, take) {
  source.addEventListener(name, (e) => {
    last = Date.now();
    take(JSON.parse(e.data));
  });
}

// again opens another stream: a browser gives up by itself where an answer is no stream.
function again() {
  source.close();
  setTimeout(connect, retryAfter);
}

function came() {
  lost = false;
  text(id("live"), `live, as of ${time(asOf)}`);
  id("live").dataset.state = "live";
  document.body.dataset.lost = "false";
  drawVerdict(fleet, null);
}

function lose() {
  if (lost) return;
  lost = true;
  text(id("live"), asOf ? `lost since ${time(asOf)}` : "xds does not answer");
  id("live").dataset.state = "lost";
  document.body.dataset.lost = "true";
  drawVerdict(fleet, asOf);
}

setInterval(() => {
  if (Date.now() - last < lostAfter) return;
  lose();
  last = Date.now();
  again();
}, 1000);

let drawn = 0;
const redraw = () => {
  cancelAnimationFrame(drawn);
  drawn = requestAnimationFrame(drawFlows);
};
new ResizeObserver(redraw).observe(id("picture"));
connect();
