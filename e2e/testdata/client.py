"""Calls every endpoint of the API with the openai package, as a user would.

Usage: client.py BASE_URL MODEL. Prints one JSON object: what came back, by call.
"""

import json
import sys

import openai

base, model = sys.argv[1:3]
client = openai.OpenAI(base_url=base, api_key="none", max_retries=0, timeout=120)
question = [{"role": "user", "content": "What is the capital of France?"}]
short = {"model": model, "max_tokens": 8, "temperature": 0}


def counts(usage):
    """The usage of a chat completion or a completion."""
    details = usage.prompt_tokens_details
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": (details and details.cached_tokens) or 0},
    }


def chat():
    r = client.chat.completions.create(messages=question, **short)
    return {"text": r.choices[0].message.content, "usage": counts(r.usage), "object": r.object, "model": r.model}


def chat_stream():
    text, usage, chunks = "", None, 0
    options = {"include_usage": True}
    for c in client.chat.completions.create(messages=question, stream=True, stream_options=options, **short):
        chunks += 1
        if c.choices:
            text += c.choices[0].delta.content or ""
        usage = c.usage or usage
    return {"text": text, "usage": counts(usage), "chunks": chunks}


def completion():
    r = client.completions.create(prompt="The capital of France is", **short)
    return {"text": r.choices[0].text, "usage": counts(r.usage), "object": r.object, "model": r.model}


def completion_stream():
    text, chunks = "", 0
    for c in client.completions.create(prompt="The capital of France is", stream=True, **short):
        chunks += 1
        if c.choices:
            text += c.choices[0].text or ""
    return {"text": text, "chunks": chunks}


def responses_usage(usage):
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }


def responses():
    r = client.responses.create(model=model, input=question, max_output_tokens=8, temperature=0)
    return {"text": r.output_text, "usage": responses_usage(r.usage), "object": r.object, "model": r.model}


def responses_stream():
    text, usage, chunks = "", None, 0
    for e in client.responses.create(model=model, input=question, max_output_tokens=8, temperature=0, stream=True):
        chunks += 1
        if e.type == "response.output_text.delta":
            text += e.delta
        if e.type in ("response.completed", "response.incomplete"):
            usage = responses_usage(e.response.usage)
    return {"text": text, "usage": usage, "chunks": chunks}


def embeddings():
    r = client.embeddings.create(model=model, input=["one", "two"], encoding_format="float")
    usage = {"prompt_tokens": r.usage.prompt_tokens, "total_tokens": r.usage.total_tokens}
    return {"lengths": [len(d.embedding) for d in r.data], "usage": usage, "model": r.model}


def models():
    return {"ids": [m.id for m in client.models.list()], "one": client.models.retrieve(model).id}


def unknown_model():
    try:
        client.chat.completions.create(messages=question, **{**short, "model": "no-such-model"})
    except openai.NotFoundError as e:
        return {"code": e.code, "type": e.type, "message": e.message}
    return {}


calls = [chat, chat_stream, completion, completion_stream, responses, responses_stream, embeddings, models, unknown_model]
print(json.dumps({f.__name__: f() for f in calls}))
