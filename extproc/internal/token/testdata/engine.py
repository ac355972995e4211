"""Prints what vLLM renders of conversations: lines of JSON with t (template), a (its default
arguments), b (the request's body) and o (the prompt; null: it refuses).

Run it with the Python of `make test-vllm`: engine.py FOLDER < engine.in.jsonl > engine.jsonl.
"""

import json
import os
import sys
import types

os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from transformers import AutoTokenizer  # noqa: E402
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # noqa: E402
from vllm.renderers.chat_utils import parse_chat_messages  # noqa: E402
from vllm.renderers.hf import resolve_chat_template_content_format, safe_apply_chat_template  # noqa: E402

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
config = types.SimpleNamespace(
    multimodal_config=None, enable_prompt_embeds=False, revision=None, code_revision=None, trust_remote_code=False,
    tokenizer_revision=None, model="m", tokenizer="m", hf_config=types.SimpleNamespace(model_type="llama"),
)


def render(case):
    request = ChatCompletionRequest(model="m", **case["b"])
    params = request.build_chat_params(case["t"], "auto").with_defaults(case.get("a"))
    kwargs = params.get_apply_chat_template_kwargs()
    tools = [t.model_dump() for t in request.tools] if request.tools else None
    form = resolve_chat_template_content_format(case["t"], tools, "auto", tokenizer, model_config=config)
    messages, _, _ = parse_chat_messages(request.messages, config, content_format=form)
    kwargs.pop("tokenize", None)
    return safe_apply_chat_template(config, tokenizer, messages, tools=tools, tokenize=False, **kwargs)


for line in sys.stdin:
    case = json.loads(line)
    try:
        case["o"] = render(case)
    except Exception as e:  # whatever it is, the client gets an error
        case["o"], case["e"] = None, (type(e).__name__ + ": " + str(e))[:160]
    out.write(json.dumps(case, ensure_ascii=False) + "\n")
out.flush()
