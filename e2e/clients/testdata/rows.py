"""Asks the mesh with the official Python clients.

Usage: rows.py BASE_URL MODEL. Prints a JSON object: by row, what the client returned or
raised.
"""

import json
import sys
import urllib.error
import urllib.request

import anthropic
import openai
from pydantic import BaseModel, Field

base, model = sys.argv[1:3]
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
    return o.chat.completions.create(**{"model": model, "messages": question, "temperature": 0, "max_tokens": 60, **more})


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


@row
def response_logprobs():
    r = o.responses.create(model=model, input="Hi", max_output_tokens=2, include=["message.output_text.logprobs"], top_logprobs=2)
    return [len(p.top_logprobs) for p in r.output[0].content[0].logprobs]


@row
def response_verbosity():
    return o.responses.create(model=model, input="Hi", text={"verbosity": "low"})


@row
def chat_image():
    return chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}])


@row
def chat_hints():
    r = chat(max_tokens=1, prompt_cache_key="k", prompt_cache_retention="24h", safety_identifier="s", service_tier="auto", metadata={"a": "b"}, verbosity="medium",
             modalities=["text"], prediction={"type": "content", "content": "a"}, parallel_tool_calls=False, reasoning_effort="low", store=False, user="u")
    return r.choices[0].finish_reason, isinstance(r.system_fingerprint, str)


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
    return a.messages.create(**{"model": model, "max_tokens": 3, "messages": question, **more})


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


def used(m):
    return m.stop_reason, [(b.type, b.name, sorted(b.input)) if b.type == "tool_use" else (b.type,) for b in m.content], m.usage.input_tokens + (m.usage.cache_read_input_tokens or 0) > 9


uses = [{"name": "weather", "description": "The weather of a city.", "input_schema": parameters}]


@row
def anthropic_tool_any():
    return used(message(max_tokens=60, tools=uses, tool_choice={"type": "any"}))


@row
def anthropic_tool_named():
    return used(message(max_tokens=60, tools=uses, tool_choice={"type": "tool", "name": "weather"}))


@row
def anthropic_tool_auto():
    m = message(max_tokens=60, tools=uses)
    return m.stop_reason in ("tool_use", "end_turn", "max_tokens"), [b.type for b in m.content] in (["tool_use"], ["text"])


@row
def anthropic_tool_streamed():
    with a.messages.stream(model=model, max_tokens=60, messages=question, tools=uses, tool_choice={"type": "any"}) as s:
        return used(s.get_final_message())


@row
def anthropic_tool_absent():
    return message(tools=uses, tool_choice={"type": "tool", "name": "nobody"})


@row
def anthropic_form():
    m = message(max_tokens=60, output_config={"format": {"type": "json_schema", "schema": parameters}})
    return m.stop_reason, sorted(json.loads(m.content[0].text))


@row
def anthropic_form_streamed():
    with a.messages.stream(model=model, max_tokens=60, messages=question, output_config={"format": {"type": "json_schema", "schema": parameters}}) as s:
        m = s.get_final_message()
    return sorted(json.loads(m.content[0].text)), m.usage.input_tokens + (m.usage.cache_read_input_tokens or 0) > 9


@row
def anthropic_parsed():
    return type(a.messages.parse(model=model, max_tokens=60, messages=question, output_format=City).parsed_output).__name__


@row
def anthropic_counted():
    plain, u = a.messages.count_tokens(model=model, messages=question).input_tokens, message().usage
    return plain - u.input_tokens - u.cache_read_input_tokens, a.messages.count_tokens(model=model, messages=question, tools=uses).input_tokens > plain + 30


@row
def anthropic_counted_as_charged():
    m = message(max_tokens=1, tools=uses, tool_choice={"type": "any"})
    return m.usage.input_tokens + (m.usage.cache_read_input_tokens or 0) - a.messages.count_tokens(model=model, messages=question, tools=uses, tool_choice={"type": "any"}).input_tokens


@row
def response_counted():
    counted = o.responses.input_tokens.count(model=model, input="Hi", instructions="Be short.")
    return counted.object, counted.input_tokens - o.responses.create(model=model, input="Hi", instructions="Be short.", max_output_tokens=1).usage.input_tokens


@row
def response_stored():
    return o.responses.create(model=model, input="Hi", max_output_tokens=1, store=True).store


def refused(call):
    """The kind of error that a call ends with."""
    try:
        call()
    except openai.APIStatusError as e:
        return type(e).__name__


@row
def response_not_stored():
    r = o.responses.create(model=model, input="Hi", max_output_tokens=1, store=False)
    return r.store, refused(lambda: o.responses.retrieve(r.id))


@row
def response_turns():
    first = o.responses.create(model=model, input="Hi", max_output_tokens=3)
    second = o.responses.create(model=model, input="Go on", max_output_tokens=3, previous_response_id=first.id)
    items = list(o.responses.input_items.list(second.id, order="asc", limit=2))
    return o.responses.retrieve(second.id).output == second.output, [i.role for i in items], second.usage.input_tokens > first.usage.input_tokens


@row
def response_turns_streamed():
    ids = [None]
    for _ in range(3):
        events = list(o.responses.create(model=model, input="Hi", max_output_tokens=3, stream=True, previous_response_id=ids[-1]))
        ids.append(events[-1].response.id)
    return events[-1].response.previous_response_id == ids[2], len(set(ids[1:]))


@row
def response_deleted():
    r = o.responses.create(model=model, input="Hi", max_output_tokens=1)
    gone = o.responses.delete(r.id)
    return gone, refused(lambda: o.responses.retrieve(r.id)), refused(lambda: o.responses.create(model=model, input="Hi", previous_response_id=r.id))


@row
def response_cancelled():
    return o.responses.cancel(o.responses.create(model=model, input="Hi", max_output_tokens=1).id)


@row
def conversation():
    c = o.conversations.create(metadata={"topic": "a"})
    changed = o.conversations.update(c.id, metadata={"topic": "b"})
    return o.conversations.retrieve(c.id).object, changed.metadata, o.conversations.delete(c.id).object, refused(lambda: o.conversations.retrieve(c.id))


@row
def conversation_turns():
    c = o.conversations.create(items=[{"type": "message", "role": "developer", "content": "Be short."}])
    r = o.responses.create(model=model, input="Hi", max_output_tokens=3, conversation=c.id)
    o.responses.create(model=model, input="Go on", max_output_tokens=3, conversation={"id": c.id})
    return r.conversation.id == c.id, [i.role for i in o.conversations.items.list(c.id, order="asc", limit=2)]


@row
def conversation_items():
    c = o.conversations.create(items=[{"role": "user", "content": "a"}])
    o.conversations.items.create(c.id, items=[{"role": "user", "content": "b"}, {"role": "user", "content": "c"}])
    items = list(o.conversations.items.list(c.id))
    one = o.conversations.items.retrieve(items[0].id, conversation_id=c.id)
    o.conversations.items.delete(one.id, conversation_id=c.id)
    return len(items), one.role, len(list(o.conversations.items.list(c.id))), refused(lambda: o.conversations.items.retrieve(one.id, conversation_id=c.id))


@row
def response_busy():
    return openai.OpenAI(base_url=base + "/busy/openai/v1", api_key="none", max_retries=2).responses.create(model=model, input="Hi", max_output_tokens=1).usage.output_tokens


@row
def anthropic_busy():
    return anthropic.Anthropic(base_url=base + "/busy/anthropic", api_key="none", max_retries=2).messages.create(model=model, max_tokens=1, messages=question).usage.output_tokens


@row
def chat_busy():
    return openai.OpenAI(base_url=base + "/busy/given-up/v1", api_key="none", max_retries=0).chat.completions.create(model=model, messages=question, max_tokens=1)


@row
def anthropic_hints():
    return message(metadata={"user_id": "u"}, service_tier="auto", cache_control={"type": "ephemeral"}).stop_reason


@row
def anthropic_model():
    return a.messages.create(model="nobody", max_tokens=1, messages=question)


# Answers that no client above asks for: they are recorded, and held against the description.


def ask(path, body=None):
    data = body and json.dumps({"model": model, **body}).encode()
    r = urllib.request.Request(base + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(r, timeout=120) as f:
            return f.status, f.read().count(b"data: ") > 1
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())["error"]["param"]


def asked(name, path, body=None):
    rows["asked: " + name] = str(ask(path, body))


short = {"messages": question, "max_tokens": 3}
asked("chat", "/v1/chat/completions", short)
asked("a longer chat", "/v1/chat/completions", {**short, "max_tokens": 20})
asked("chats", "/v1/chat/completions", {**short, "n": 2})
asked("chat with logprobs", "/v1/chat/completions", {**short, "logprobs": True, "top_logprobs": 2})
asked("chat with a call", "/v1/chat/completions", {**short, "max_tokens": 60, "tools": tools, "tool_choice": "required"})
asked("chat streamed", "/v1/chat/completions", {**short, "stream": True, "stream_options": {"include_usage": True}})
asked("call streamed", "/v1/chat/completions", {**short, "max_tokens": 60, "stream": True, "tools": tools, "tool_choice": "required"})
asked("completion", "/v1/completions", {"prompt": "a", "max_tokens": 3, "logprobs": 1})
asked("embeddings", "/v1/embeddings", {"input": ["a", "b"]})
asked("models", "/v1/models")
asked("model", "/v1/models/" + model)
asked("response", "/v1/responses", {"input": "a", "max_output_tokens": 3})
asked("response streamed", "/v1/responses", {"input": "a", "max_output_tokens": 3, "stream": True})
asked("call in a response streamed", "/v1/responses", {"input": "a", "max_output_tokens": 60, "stream": True, "tools": response_tools, "tool_choice": "required"})
asked("error of extproc", "/v1/chat/completions", {**short, "model": "nobody"})
asked("error of engine", "/v1/chat/completions", {**short, "tool_choice": "must"})

print(json.dumps(rows))
