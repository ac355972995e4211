"""Holds answers and events against the published descriptions of their APIs.

Usage: described.py OPENAI ANTHROPIC RECORD. The first two are descriptions as JSON, the
third has an exchange a line: path, status, type, body. Prints a JSON object: by operation
and kind of answer or event, how many hold, or what is wrong with the first that does not.
"""

import array
import base64
import json
import sys

import fastjsonschema

descriptions = {}
for name, path in zip(("openai", "anthropic"), sys.argv[1:3]):
    with open(path) as f:
        descriptions[name] = json.load(f)
validators = {}


def operation(path):
    """The API of a path, and what its description calls the operation; None: it is in neither."""
    path = path.rstrip("/")
    if path.startswith("/v1/messages"):
        return "anthropic", path
    path = path.removeprefix("/v1")
    paths = descriptions["openai"]["paths"]
    if path.startswith("/models/"):
        path = "/models/{model}"
    return "openai", path if path in paths else None


def answer(api, path, method, kind):
    """The schema of an answer of status 200; what streams of chats hold is in no path."""
    if kind == "text/event-stream" and path in ("/chat/completions", "/completions"):
        return {"$ref": "#/components/schemas/" + ("CreateChatCompletionStreamResponse" if path[1:5] == "chat" else "CreateCompletionResponse")}
    if kind == "text/event-stream" and api == "anthropic":
        return {"$ref": "#/components/schemas/MessageStreamEvent"}
    return descriptions[api]["paths"][path][method.lower()]["responses"]["200"]["content"][kind]["schema"]


def needed(api, schema):
    """The schemas that one refers to, by name."""
    out, rest = {}, [schema]
    while rest:
        v = rest.pop()
        if isinstance(v, dict):
            ref = v.get("$ref")
            if isinstance(ref, str):
                name = ref.rsplit("/", 1)[1]
                if name not in out:
                    out[name] = descriptions[api]["components"]["schemas"][name]
                    rest.append(out[name])
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
    return {"anyOf": [v, {"type": "null"}]} if v.pop("nullable", False) is True else v


def fault(api, schema, value):
    key = api + json.dumps(schema)
    if key not in validators:
        whole = {**plain(schema), "components": {"schemas": plain(needed(api, schema))}}
        validators[key] = fastjsonschema.compile({"$schema": "http://json-schema.org/draft-07/schema#", "allOf": [whole], "components": whole["components"]})
    try:
        validators[key](value)
    except fastjsonschema.JsonSchemaException as e:
        return f"{str(e)[:200]} in {json.dumps(value)[:400]}"
    return None


holds, wrong = {}, {}


def listed(v):
    """Embeddings as lists: the description has no place for base64, which clients ask for and decode."""
    for e in v.get("data", []):
        if isinstance(e, dict) and isinstance(e.get("embedding"), str):
            e["embedding"] = list(array.array("f", base64.b64decode(e["embedding"])))
    return v


def ended(path, v):
    """An event of a completion as if its choices had ended: the description has no place for the
    null that OpenAI's own streams have until then."""
    for c in v.get("choices", []) if path == "/completions" else []:
        if c.get("finish_reason", "") is None:
            c["finish_reason"] = "stop"
    return v


def held(name, api, schema, value):
    w = fault(api, schema, value)
    if w:
        wrong.setdefault(name, w)
    holds[name] = holds.get(name, 0) + 1


def error(name, api, value):
    held(name, api, {"$ref": "#/components/schemas/ErrorResponse"}, value)


with open(sys.argv[3]) as f:
    for line in f:
        e = json.loads(line)
        api, path = operation(e["path"])
        kind = e["type"].split(";")[0]
        if path is None or e["method"] == "HEAD" or not e["body"]:
            continue
        if e["status"] != 200:
            error(f"{path}: error", api, json.loads(e["body"]))
        elif kind != "text/event-stream":
            held(f"{path}: answer", api, answer(api, path, e["method"], kind), listed(json.loads(e["body"])))
        else:
            for text in e["body"].split("\n"):
                if not text.startswith("data: ") or text == "data: [DONE]":
                    continue
                v = json.loads(text[6:])
                if "error" in v and "choices" not in v and v.get("type", "error") == "error":
                    error(f"{path}: error event", api, v)
                else:
                    held(f"{path}: {v.get('type', v.get('object', 'event'))}", api, answer(api, path, e["method"], kind), ended(path, v))

print(json.dumps({name: wrong.get(name, f"holds {n}") for name, n in sorted(holds.items())}))
