// drive has a headless Chromium do what comes on standard input, a JSON object a line, and prints
// what came of each, in a line. browser.go says what there is to do.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";

const [modules, executable, shots] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const browser = await chromium.launch({ executablePath: executable, args: ["--no-sandbox"] });
let page = null;
let errors = []; // what the console has, and what was not fetched
let foreign = []; // what was asked of somebody else
let bytes = 0;

const todo = {
  async open({ url, scheme, width, motion }) {
    if (page) await page.context().close();
    errors = [];
    foreign = [];
    bytes = 0;
    const context = await browser.newContext({ viewport: { width: width || 1440, height: 900 }, colorScheme: scheme || "light", reducedMotion: motion || "no-preference", ignoreHTTPSErrors: true });
    page = await context.newPage();
    page.on("console", (m) => ["error", "warning"].includes(m.type()) && errors.push(m.text()));
    page.on("pageerror", (e) => errors.push(e.message));
    page.on("request", (r) => new URL(r.url()).origin !== new URL(url).origin && foreign.push(r.url()));
    page.on("response", (r) => (bytes += Number(r.headers()["content-length"] || 0)));
    await page.goto(url);
    return {};
  },
  // await waits for a verdict, and text anywhere.
  async await({ health, text }) {
    const most = { timeout: 45000 };
    if (health) await page.waitForSelector(`#verdict[data-health=${health}]`, most);
    if (text) await page.getByText(text).first().waitFor(most);
    return { headline: await page.textContent("#headline") };
  },
  // check takes a picture, and says what is wrong with the page.
  async check({ name }) {
    await page.waitForTimeout(300); // that what moves is in the picture
    await page.screenshot({ path: `${shots}/${name}.png`, fullPage: true });
    await page.evaluate(axe);
    const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    const findings = found.violations.map((v) => `${v.id}: ${v.help} (${v.nodes.map((n) => n.target.join(" ")).slice(0, 3).join("; ")})`);
    const paint = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? 0);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    const moving = await page.evaluate(() => document.getAnimations().length);
    return { findings, rules: found.passes?.length ?? 0, errors, foreign, paint_ms: Math.round(paint), bytes, wide, moving };
  },
  // forget drops the errors that a test has caused itself.
  async forget() {
    errors = [];
    return {};
  },
  // walk goes through the page by Tab alone, and says where it was, and where that could not be seen.
  async walk() {
    const seen = [];
    const unseen = [];
    await page.evaluate(() => { window.walked = new Set(); });
    for (let i = 0; i < 60; i++) {
      await page.keyboard.press("Tab");
      const at = await page.evaluate(() => {
        const el = document.activeElement;
        if (!el || el === document.body || window.walked.has(el)) return null;
        window.walked.add(el);
        const style = getComputedStyle(el);
        const box = el.getBoundingClientRect();
        return { name: el.id || el.className || el.getAttribute("href") || el.tagName, visible: style.outlineStyle !== "none" && box.width > 0 && box.right > 0 };
      });
      if (!at) break;
      seen.push(at.name);
      if (!at.visible) unseen.push(at.name);
    }
    return { seen, unseen };
  },
  // explain opens the first decision, by keys, and says what there is.
  async explain() {
    const button = page.locator(".open").first();
    await button.waitFor();
    await button.focus();
    await page.keyboard.press("Enter");
    return { text: await page.locator(".why:not([hidden])").first().innerText() };
  },
  // chat asks, by keys, and says what stands under the answer.
  async chat({ words }) {
    await page.focus("#words");
    await page.keyboard.type(words);
    await page.keyboard.press("Enter");
    const line = page.locator(".facts-line").last();
    await line.filter({ hasNotText: "waiting for" }).waitFor({ timeout: 60000 });
    return { text: await line.innerText(), answer: await page.locator(".answer").last().innerText() };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  try {
    console.log(JSON.stringify({ ...(await todo[command.do](command)) }));
  } catch (err) {
    console.log(JSON.stringify({ failed: String(err.message).slice(0, 500) }));
  }
}
await browser.close();
