"""Asks the mesh with the second major version of OpenAI's client, and with libraries on it.

Usage: older.py BASE_URL MODEL [ROW…]. Prints a JSON object, as frameworks.py does.
"""

import json
import logging
import sys

import instructor
import openai
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

base, model, only = sys.argv[1], sys.argv[2], sys.argv[3:]
logging.disable(logging.ERROR)
rows = {}
question = "What is the weather in Paris?"
messages = [{"role": "user", "content": question}]
long = "word " * 9000
parameters = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"], "additionalProperties": False}


class City(BaseModel):
    """A city."""

    city: str = Field(max_length=12)


def row(f):
    """Adds a row by the function's name."""
    if only and f.__name__ not in only:
        return
    try:
        rows[f.__name__] = str(f())
    except Exception as e:
        rows[f.__name__] = f"{type(e).__name__} {str(e)[:300]}"


def client(url=base, retries=0):
    return openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=retries)


@row
def chat():
    r = client().chat.completions.create(model=model, messages=messages, max_tokens=3)
    return r.choices[0].finish_reason, r.usage.completion_tokens


@row
def chat_parsed():
    r = client().chat.completions.parse(model=model, messages=messages, max_tokens=40, temperature=0, response_format=City)
    return type(r.choices[0].message.parsed).__name__


@row
def response_streamed():
    return [e.type for e in client().responses.create(model=model, input=question, max_output_tokens=3, stream=True)][-1]


@row
def input_tokens():
    r = client().responses.input_tokens.count(model=model, input=question)
    return r.object, r.input_tokens > 5


# instructor, in each of its modes.


def instruct(mode, url=base, **more):
    c = instructor.from_openai(client(url, more.pop("retries", 0)), mode=mode)
    return type(c.chat.completions.create(**{"model": model, "response_model": City, "messages": messages, "max_tokens": 40, "temperature": 0, "max_retries": 1, **more})).__name__


@row
def instructor_tools():
    return instruct(instructor.Mode.TOOLS)


@row
def instructor_tools_strict():
    return instruct(instructor.Mode.TOOLS_STRICT)


@row
def instructor_form():
    return instruct(instructor.Mode.JSON_SCHEMA)


@row
def instructor_partial():
    c = instructor.from_openai(client(), mode=instructor.Mode.TOOLS)
    parts = list(c.chat.completions.create_partial(model=model, response_model=City, messages=messages, max_tokens=40, temperature=0))
    return len(parts) > 0, isinstance(parts[-1].city, str)


@row
def instructor_responses():
    return instruct(instructor.Mode.RESPONSES_TOOLS, max_tokens=60)


@row
def instructor_model():
    return instruct(instructor.Mode.TOOLS, model="nobody")


@row
def instructor_busy():
    return instruct(instructor.Mode.TOOLS, f"{base}/busy/instructor", retries=2)


# llama-index.


def llama(url=base, **more):
    return OpenAILike(**{"model": model, "api_base": url + "/v1", "api_key": "none", "is_chat_model": True, "is_function_calling_model": True, "context_window": 4096, "max_tokens": 40, "temperature": 0, "max_retries": 0, **more})


def weather(city: str) -> str:
    """The weather of a city."""
    return "sunny"


ask = [ChatMessage(role="user", content=question)]


@row
def llama_index_chat():
    r = llama(max_tokens=3).chat(ask)
    return r.raw.choices[0].finish_reason, len(r.message.content) > 0


@row
def llama_index_streamed():
    return len("".join(r.delta for r in llama(max_tokens=3).stream_chat(ask))) > 0


@row
def llama_index_complete():
    return len(llama(max_tokens=3, is_chat_model=False).complete("One two").text) > 0


@row
def llama_index_tool():
    m = llama()
    r = m.chat_with_tools([FunctionTool.from_defaults(weather)], user_msg=question, tool_required=True)
    return [(c.tool_name, sorted(c.tool_kwargs)) for c in m.get_tool_calls_from_response(r)]


@row
def llama_index_form():
    return type(llama().as_structured_llm(City).complete(question).raw).__name__


@row
def llama_index_form_native():
    return type(llama(should_use_structured_outputs=True).as_structured_llm(City).complete(question).raw).__name__


@row
def llama_index_embeddings():
    e = OpenAILikeEmbedding(model_name=model, api_base=base + "/v1", api_key="none")
    return [len(v) for v in e.get_text_embedding_batch(["a", "b"])]


@row
def llama_index_model():
    return llama(model="nobody").chat(ask)


@row
def llama_index_too_long():
    return llama().chat([ChatMessage(role="user", content=long)])


@row
def llama_index_busy():
    return len(llama(f"{base}/busy/llama", max_retries=2, max_tokens=1).chat(ask).message.content) > 0


print(json.dumps(rows))
