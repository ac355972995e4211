"""Asks the mesh with the official Python clients, and checks answers by OpenAI's description.

Usage: rows.py BASE_URL MODEL DESCRIPTION. Prints a JSON object: by row, what the client
returned or raised. DESCRIPTION is OpenAI's API as JSON.
"""

import json
import sys
import urllib.error
import urllib.request

import anthropic
import fastjsonschema
import openai
from pydantic import BaseModel, Field

base, model, description = sys.argv[1:4]
o = openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0, timeout=120)
a = anthropic.Anthropic(base_url=base, api_key="none", max_retries=0, timeout=120)
question = [{"role": "user", "content": "What is the weather in Paris?"}]
parameters = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
response_tools = [{"type": "function", "name": "weather", "strict": True, "parameters": parameters}]
rows = {}


def row(f):
    """Adds a row by the function's name."""
    try:
        rows[f.__name__] = str(f())
    except (openai.APIStatusError, anthropic.APIStatusError) as e:
        error = e.body.get("error", e.body) if isinstance(e.body, dict) else {}
        rows[f.__name__] = f"{type(e).__name__} {e.status_code} {error.get('param')} {error.get('message')}"
    except Exception as e:
        rows[f.__name__] = f"{type(e).__name__} {e}"


class City(BaseModel):
    city: str = Field(max_length=12)


def chat(**more):
    return o.chat.completions.create(model=model, messages=question, temperature=0, **{"max_tokens": 60, **more})


def called(r):
    c = r.choices[0]
    return c.finish_reason, c.message.content, [t.function.name for t in c.message.tool_calls or []], [sorted(json.loads(t.function.arguments)) for t in c.message.tool_calls or []]


@row
def tool_required():
    return called(chat(tools=tools, tool_choice="required"))


@row
def tool_named():
    return called(chat(tools=tools, tool_choice={"type": "function", "function": {"name": "weather"}}))


@row
def tool_absent():
    return called(chat(tools=tools, tool_choice={"type": "function", "function": {"name": "nobody"}}))


@row
def tool_without_tools():
    return called(chat(tool_choice="required"))


@row
def tool_streamed():
    with o.chat.completions.stream(model=model, messages=question, temperature=0, max_tokens=60, tools=tools, tool_choice="required") as s:
        return called(s.get_final_completion())


@row
def chat_parsed():
    r = o.chat.completions.parse(model=model, messages=question, max_tokens=60, temperature=0, response_format=City)
    return type(r.choices[0].message.parsed).__name__


@row
def chat_functions():
    return chat(functions=[{"name": "f", "parameters": {}}])


@row
def several_choices():
    r = chat(n=3, max_tokens=1)
    return len(r.choices), r.usage.completion_tokens, r.usage.total_tokens - r.usage.prompt_tokens


@row
def several_choices_streamed():
    events = list(chat(n=2, max_tokens=1, stream=True, stream_options={"include_usage": True}))
    return [e.usage.completion_tokens for e in events if e.usage], sorted({c.index for e in events for c in e.choices})


@row
def several_prompts():
    r = o.completions.create(model=model, prompt=["One two", "One two"], max_tokens=1)
    one = o.completions.create(model=model, prompt="One two", max_tokens=1)
    return len(r.choices), r.usage.completion_tokens, r.usage.prompt_tokens == 2 * one.usage.prompt_tokens, r.id[:5]


@row
def completion_logprobs():
    p = o.completions.create(model=model, prompt="One two", max_tokens=2, logprobs=3).choices[0].logprobs
    return len(p.tokens), len(p.token_logprobs), [len(t) for t in p.top_logprobs], p.text_offset[0]


@row
def completion_echo():
    return o.completions.create(model=model, prompt="a", echo=True)


@row
def completion_suffix():
    return o.completions.create(model=model, prompt="a", suffix="b")


@row
def completion_best_of():
    return o.completions.create(model=model, prompt="a", best_of=3)


@row
def embedding_of_1000_tokens():
    r = o.embeddings.create(model=model, input="word " * 600)
    return r.usage.prompt_tokens > 512, len(r.data[0].embedding)


@row
def embedding_too_long():
    return o.embeddings.create(model=model, input="word " * 3000)


@row
def embedding_dimensions():
    return o.embeddings.create(model=model, input="a", dimensions=64)


@row
def response():
    r = o.responses.create(model=model, input=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"type": "reasoning", "id": "rs_1", "summary": []}, {"role": "user", "content": "Go on"}], max_output_tokens=3)
    return r.status, r.incomplete_details.reason, r.usage.output_tokens, r.id[:5]


@row
def response_streamed():
    events = list(o.responses.create(model=model, input="Hi", max_output_tokens=3, stream=True))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    last = events[-1]
    numbers = [e.sequence_number for e in events] == list(range(len(events)))
    return events[0].type, last.type, numbers, text == last.response.output_text, events[0].response.model == model


@row
def response_tool():
    with o.responses.stream(model=model, input="Weather in Paris?", tools=response_tools, tool_choice="required", max_output_tokens=60) as s:
        return [(i.type, i.name) for i in s.get_final_response().output]


@row
def response_parsed():
    return type(o.responses.parse(model=model, input="Paris", text_format=City, temperature=0, max_output_tokens=60).output_parsed).__name__


@row
def response_previous():
    return o.responses.create(model=model, input="a", previous_response_id="resp_1")


def raw(method, path):
    r = urllib.request.Request(base + path, method=method)
    with urllib.request.urlopen(r, timeout=60) as f:
        return f.status, len(f.read()) > 0


@row
def health():
    return raw("GET", "/health")


@row
def models_head():
    return raw("HEAD", "/v1/models")


@row
def models_slash():
    return raw("GET", "/v1/models/")


@row
def chat_slash():
    r = o.with_options(base_url=base + "/v1").post("/chat/completions/", body={"model": model, "messages": question, "max_tokens": 1}, cast_to=object)
    return r["object"]


def message(**more):
    return a.messages.create(model=model, max_tokens=3, messages=question, **more)


@row
def anthropic_message():
    m = message()
    return m.id[:4], m.stop_reason, bool(m._request_id), m.usage.output_tokens


@row
def anthropic_streamed():
    with a.messages.stream(model=model, max_tokens=3, messages=question) as s:
        m = s.get_final_message()
    return m.id[:4], m.stop_reason, m.content[0].type


@row
def anthropic_stopped():
    m = a.messages.create(model=model, max_tokens=60, messages=question, stop_sequences=["e", "a", " "])
    return m.stop_reason, m.stop_sequence in ("e", "a", " ")


@row
def anthropic_forced():
    return message(tools=[{"name": "weather", "input_schema": parameters}], tool_choice={"type": "any"})


@row
def anthropic_form():
    return message(extra_body={"output_config": {"format": {"type": "json_schema", "schema": parameters}}})


@row
def anthropic_model():
    return a.messages.create(model="nobody", max_tokens=1, messages=question)


# Answers by OpenAI's description.

with open(description) as f:
    schemas = json.load(f)["components"]["schemas"]
validators = {}


def needed(name, out):
    """Collects a schema and those that it refers to."""
    if name in out:
        return out
    out[name] = schemas[name]
    rest = [schemas[name]]
    while rest:
        v = rest.pop()
        if isinstance(v, dict):
            ref = v.get("$ref")
            if isinstance(ref, str) and ref.startswith("#/components/schemas/"):
                needed(ref.rsplit("/", 1)[1], out)
            rest += v.values()
        elif isinstance(v, list):
            rest += v
    return out


def plain(v):
    """A schema of OpenAPI 3.1 as JSON Schema. Its alternatives overlap: one or more may hold."""
    if isinstance(v, list):
        return [plain(x) for x in v]
    if not isinstance(v, dict):
        return v
    v = {k: plain(x) for k, x in v.items() if k not in ("discriminator", "format", "$recursiveRef", "$recursiveAnchor")}
    if "oneOf" in v:
        v["anyOf"] = v.pop("oneOf")
    return {"anyOf": [v, {"type": "null"}]} if v.pop("nullable", False) else v


def valid(name, value):
    if name not in validators:
        whole = {"$ref": "#/components/schemas/" + name, "components": {"schemas": plain(needed(name, {}))}}
        validators[name] = fastjsonschema.compile({"$schema": "http://json-schema.org/draft-07/schema#", **whole})
    try:
        validators[name](value)
    except fastjsonschema.JsonSchemaException as e:
        return f"{str(e)[:200]} in {json.dumps(value)[:400]}"
    return ""


def ask(path, body=None):
    data = body and json.dumps({"model": model, **body}).encode()
    r = urllib.request.Request(base + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(r, timeout=120) as f:
            return f.read().decode()
    except urllib.error.HTTPError as e:
        return e.read().decode()


def described(name, schema, path, body=None):
    """Adds a row: which answer or event is not as the schema says."""
    text = ask(path, body)
    if body and body.get("stream"):
        all = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ") and line != "data: [DONE]"]
    else:
        all = [json.loads(text)]
    wrong = [w for w in (valid(schema, v) for v in all) if w]
    rows["description: " + name] = wrong[0] if wrong else "holds" if all else "nothing came"


short = {"messages": question, "max_tokens": 3}
described("chat", "CreateChatCompletionResponse", "/v1/chat/completions", short)
described("a longer chat", "CreateChatCompletionResponse", "/v1/chat/completions", {**short, "max_tokens": 20})
described("chats", "CreateChatCompletionResponse", "/v1/chat/completions", {**short, "n": 2})
described("chat with logprobs", "CreateChatCompletionResponse", "/v1/chat/completions", {**short, "logprobs": True, "top_logprobs": 2})
described("chat with a call", "CreateChatCompletionResponse", "/v1/chat/completions", {**short, "max_tokens": 60, "tools": tools, "tool_choice": "required"})
described("chat streamed", "CreateChatCompletionStreamResponse", "/v1/chat/completions", {**short, "stream": True, "stream_options": {"include_usage": True}})
described("call streamed", "CreateChatCompletionStreamResponse", "/v1/chat/completions", {**short, "max_tokens": 60, "stream": True, "tools": tools, "tool_choice": "required"})
described("completion", "CreateCompletionResponse", "/v1/completions", {"prompt": "a", "max_tokens": 3, "logprobs": 1})
described("embeddings", "CreateEmbeddingResponse", "/v1/embeddings", {"input": ["a", "b"]})
described("models", "ListModelsResponse", "/v1/models")
described("model", "Model", "/v1/models/" + model)
described("response", "Response", "/v1/responses", {"input": "a", "max_output_tokens": 3})
described("response streamed", "ResponseStreamEvent", "/v1/responses", {"input": "a", "max_output_tokens": 3, "stream": True})
described("call in a response streamed", "ResponseStreamEvent", "/v1/responses", {"input": "a", "max_output_tokens": 60, "stream": True, "tools": response_tools, "tool_choice": "required"})
described("error of extproc", "ErrorResponse", "/v1/chat/completions", {**short, "model": "nobody"})
described("error of engine", "ErrorResponse", "/v1/chat/completions", {**short, "tool_choice": "must"})

print(json.dumps(rows))
