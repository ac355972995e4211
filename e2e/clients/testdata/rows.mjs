// Asks the mesh with the official Node clients and Vercel's AI SDK.
//
// Usage: rows.mjs BASE_URL MODEL. Prints a JSON object: by row, what the client
// returned or threw.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The packages lie in the cache, not beside this file.
const require = createRequire(pathToFileURL(process.env.CLIENTS + "/package.json"));
const load = async (name) => import(pathToFileURL(require.resolve(name)));
const { default: OpenAI } = await load("openai");
const { default: Anthropic } = await load("@anthropic-ai/sdk");
const { createOpenAI } = await load("@ai-sdk/openai");
const { generateText, streamText, embed } = await load("ai");

const [base, model] = process.argv.slice(2);
const o = new OpenAI({ baseURL: base + "/v1", apiKey: "none", maxRetries: 0, timeout: 120_000 });
const a = new Anthropic({ baseURL: base, apiKey: "none", maxRetries: 0, timeout: 120_000 });
const v = createOpenAI({ baseURL: base + "/v1", apiKey: "none" });
const messages = [{ role: "user", content: "What is the weather in Paris?" }];
const parameters = { type: "object", properties: { city: { type: "string", maxLength: 12 } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "weather", parameters } }];
const rows = {};

async function row(name, f) {
  try {
    rows[name] = JSON.stringify(await f());
  } catch (e) {
    rows[name] = `${e.constructor.name} ${e.status ?? e.statusCode} ${e.param ?? ""} ${e.message}`;
  }
}

await row("openai chat streamed", async () => {
  const r = await o.chat.completions.stream({ model, messages, max_tokens: 3 }).finalChatCompletion();
  return [r.choices[0].finish_reason, typeof r.choices[0].message.content];
});
await row("openai tool", async () => {
  const r = await o.chat.completions.create({ model, messages, max_tokens: 60, tools, tool_choice: { type: "function", function: { name: "weather" } } });
  return [r.choices[0].finish_reason, r.choices[0].message.tool_calls[0].function.name];
});
await row("openai tool that is not there", () => o.chat.completions.create({ model, messages, tools, tool_choice: { type: "function", function: { name: "nobody" } } }));
await row("openai embeddings", async () => (await o.embeddings.create({ model, input: "word ".repeat(600) })).data[0].embedding.length);
await row("openai response streamed", async () => {
  const types = [];
  for await (const e of await o.responses.create({ model, input: "Hi", max_output_tokens: 3, stream: true })) types.push(e.type);
  return [types[0], types.at(-1)];
});
await row("openai response helper", async () => {
  const r = await o.responses.stream({ model, input: "Hi", max_output_tokens: 3 }).finalResponse();
  return [r.status, r.incomplete_details.reason];
});
await row("openai echo", () => o.completions.create({ model, prompt: "a", echo: true }));
await row("anthropic message", async () => {
  const m = await a.messages.create({ model, max_tokens: 3, messages });
  return [m.type, m.stop_reason, m.id.slice(0, 4), typeof m._request_id];
});
await row("anthropic streamed", async () => {
  const m = await a.messages.stream({ model, max_tokens: 3, messages }).finalMessage();
  return [m.stop_reason, m.content[0].type];
});
await row("anthropic forced", async () => {
  const m = await a.messages.create({ model, max_tokens: 60, messages, tools: [{ name: "weather", input_schema: parameters }], tool_choice: { type: "any" } });
  return [m.stop_reason, m.content[0].name];
});
await row("ai response", async () => {
  const r = await generateText({ model: v.responses(model), prompt: "Hi", maxOutputTokens: 3, maxRetries: 0 });
  return [r.finishReason, r.usage.outputTokens];
});
await row("ai response streamed", async () => {
  const r = streamText({ model: v.responses(model), prompt: "Hi", maxOutputTokens: 3, maxRetries: 0 });
  let text = "";
  for await (const part of r.textStream) text += part;
  return [await r.finishReason, text.length > 0];
});
await row("ai chat streamed", async () => {
  const r = streamText({ model: v.chat(model), prompt: "Hi", maxOutputTokens: 3, maxRetries: 0 });
  let text = "";
  for await (const part of r.textStream) text += part;
  return [await r.finishReason, text.length > 0];
});
await row("ai embedding", async () => (await embed({ model: v.embedding(model), value: "Hi", maxRetries: 0 })).embedding.length);

console.log(JSON.stringify(rows));
