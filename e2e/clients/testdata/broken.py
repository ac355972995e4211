"""Reads streams whose backends are lost meanwhile, and that are bound to a grammar, so that
nothing continues them.

Usage: broken.py BASE_URL MODEL API. Prints "begun" once a stream has begun, and at its
end what the client raised.
"""

import sys

import anthropic
import openai

base, model, api = sys.argv[1:4]
question = [{"role": "user", "content": "Count to one thousand, and leave out no number."}]
o = openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0, timeout=120)
a = anthropic.Anthropic(base_url=base, api_key="none", max_retries=0, timeout=120)
# The model is small and samples: without it, some answers end after three tokens.
endless = {"ignore_eos": True, "grammar": "root ::= [a-zA-Z0-9 ,.]+"}
streams = {
    "chat": lambda: o.chat.completions.create(model=model, messages=question, max_tokens=1500, stream=True, extra_body=endless),
    "responses": lambda: o.responses.create(model=model, input=question, max_output_tokens=1500, stream=True, extra_body=endless),
    "messages": lambda: a.messages.create(model=model, messages=question, max_tokens=1500, stream=True, extra_body=endless),
}
last = None
try:
    for n, last in enumerate(streams[api]()):
        if n == 5:
            print("begun", flush=True)
    print("ended", getattr(last, "type", ""))
except Exception as e:
    print(type(e).__name__, e)
