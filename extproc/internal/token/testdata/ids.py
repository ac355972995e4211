"""Writes ids.jsonl: requests of counts.jsonl and the tokens that a real vLLM makes of
them. Run it again after a change of requests, with a server as e2e/noxds starts it:

    python3 extproc/internal/token/testdata/ids.py http://127.0.0.1:8000

Each line is {"name", "body", "tokens"}: a chat with messages, or a completion's prompt.
"""
import json
import os
import sys
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
MOST = 400  # tokens in a line


def post(url, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url + "/tokenize", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]


def asks(line):
    """The part of a request that makes its prompt, None if that is not plain."""
    body = line["body"]
    if line["path"] == "/tokenize":
        return {"prompt": body["content"]}
    if line["path"] == "/v1/completions" and isinstance(body["prompt"], str):
        return {"prompt": body["prompt"]}
    if line["path"] == "/v1/chat/completions" and set(body) <= {"model", "messages", "max_tokens", "stream"}:
        return {"messages": body["messages"]}
    return None


def main():
    seen = set()
    with open(os.path.join(HERE, "counts.jsonl")) as source, open(os.path.join(HERE, "ids.jsonl"), "w") as out:
        for text in source:
            line = json.loads(text)
            body = asks(line)
            if body is None or json.dumps(body) in seen:
                continue
            seen.add(json.dumps(body))
            try:
                tokens = post(sys.argv[1], dict(body, model="tiny"))
            except urllib.error.HTTPError:
                continue  # refused, as a request would be
            if len(tokens) <= MOST:
                out.write(json.dumps({"name": line["name"], "body": body, "tokens": tokens}, ensure_ascii=False) + "\n")


main()
