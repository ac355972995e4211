"""Prints what vLLM makes of conversations with gpt-oss: lines of JSON with b (the request's body),
o (the prompt's text, with special tokens; null: it refuses), n (its tokens) and d (the day).

Run it with the Python of `make test-vllm`: harmony.py < harmony.in.jsonl > harmony.jsonl.
"""

import datetime
import json
import os
import sys

os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["VLLM_SYSTEM_START_DATE"] = DAY = "2026-11-30"
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # noqa: E402
from vllm.entrypoints.openai.parser.harmony_utils import get_encoding  # noqa: E402
from vllm.renderers.online_renderer import OnlineRenderer  # noqa: E402

renderer = OnlineRenderer.__new__(OnlineRenderer)  # what Harmony needs of it
renderer.supports_browsing = renderer.supports_code_interpreter = False
renderer.parser = None
renderer.renderer = None

for line in sys.stdin:
    case = json.loads(line)
    try:
        request = ChatCompletionRequest(model="m", **case["b"])
        _, inputs = renderer._make_request_with_harmony(request, request.tools is not None)
        ids = inputs[0]["prompt_token_ids"]
        case["o"], case["n"] = get_encoding().decode(ids), len(ids)
    except Exception as e:  # whatever it is, the client gets an error
        case["o"], case["e"] = None, (type(e).__name__ + ": " + str(e))[:160]
    out.write(json.dumps(case, ensure_ascii=False) + "\n")
out.flush()
