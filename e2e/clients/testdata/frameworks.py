"""Asks the mesh with libraries that people build on, over OpenAI's client.

Usage: frameworks.py BASE_URL MODEL [ROW…]. Prints a JSON object: by row, what the library
returned or raised. Below BASE_URL/busy/NAME the first request of each NAME gets a 429.
"""

import asyncio
import json
import logging
import os
import sys
import tempfile

os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", OPENAI_API_KEY="none", LANGSMITH_TRACING="false")
base, model, only = sys.argv[1], sys.argv[2], sys.argv[3:]
os.environ["LLM_USER_PATH"] = tempfile.mkdtemp()
with open(os.environ["LLM_USER_PATH"] + "/extra-openai-models.yaml", "w") as f:
    f.write(f"- {{model_id: mill, model_name: {model}, api_base: {base}/v1, api_key_name: none, supports_schema: true, supports_tools: true}}\n")

import agents
import litellm
import llm
import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, models
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

logging.disable(logging.ERROR)
litellm.suppress_debug_info = True
agents.set_tracing_disabled(True)
rows = {}
question = "What is the weather in Paris?"
messages = [{"role": "user", "content": question}]
long = [{"role": "user", "content": "word " * 9000}]
parameters = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"], "additionalProperties": False}
tools = [{"type": "function", "function": {"name": "weather", "description": "The weather of a city.", "parameters": parameters}}]


class City(BaseModel):
    """A city."""

    city: str = Field(max_length=12)


def weather(city: City) -> str:
    """The weather of a city."""
    return "sunny"


def row(f):
    """Adds a row by the function's name."""
    if only and f.__name__ not in only:
        return
    try:
        got = f()
        rows[f.__name__] = str(asyncio.run(got) if asyncio.iscoroutine(got) else got)
    except Exception as e:
        rows[f.__name__] = f"{type(e).__name__} {str(e)[:300]}"


def busy(name):
    return f"{base}/busy/{name}/v1"


# litellm, by OpenAI's API and by Anthropic's.


def lite(kind="openai", url=None, **more):
    return litellm.completion(**{"model": f"{kind}/{model}", "api_base": url or (base + "/v1" if kind == "openai" else base), "api_key": "none", "messages": messages, "max_tokens": 40, "max_retries": 0, "temperature": 0, **more})


def called(message):
    return [(c.function.name, sorted(json.loads(c.function.arguments))) for c in message.tool_calls or []]


@row
def litellm_chat():
    r = lite(max_tokens=3)
    return r.choices[0].finish_reason, r.usage.completion_tokens


@row
def litellm_streamed():
    r = litellm.stream_chunk_builder(list(lite(max_tokens=3, stream=True, stream_options={"include_usage": True})))
    return r.choices[0].finish_reason, r.usage.completion_tokens, len(r.choices[0].message.content) > 0


@row
def litellm_tool_required():
    r = lite(tools=tools, tool_choice="required")
    return r.choices[0].finish_reason, called(r.choices[0].message)


@row
def litellm_tool_named():
    return called(lite(tools=tools, tool_choice={"type": "function", "function": {"name": "weather"}}).choices[0].message)


@row
def litellm_tool_auto():
    m = lite(tools=tools, tool_choice="auto").choices[0].message
    return bool(m.content) != bool(m.tool_calls)


@row
def litellm_form():
    return sorted(json.loads(lite(response_format=City).choices[0].message.content))


@row
def litellm_embeddings():
    r = litellm.embedding(model="openai/" + model, api_base=base + "/v1", api_key="none", input=["a", "b"])
    return len(r.data), len(r.data[0]["embedding"])


@row
def litellm_response():
    r = litellm.responses(model="openai/" + model, api_base=base + "/v1", api_key="none", input="Hi", max_output_tokens=3)
    return r.status in ("completed", "incomplete"), r.usage.output_tokens <= 16  # it asks for 16 at least


@row
def litellm_model():
    return lite(model="openai/nobody")


@row
def litellm_too_long():
    return lite(messages=long)


@row
def litellm_busy():
    return lite(url=busy("litellm"), max_retries=2, max_tokens=1).usage.completion_tokens


@row
def litellm_anthropic():
    r = lite("anthropic", max_tokens=3)
    return r.choices[0].finish_reason, r.usage.completion_tokens


@row
def litellm_anthropic_streamed():
    r = litellm.stream_chunk_builder(list(lite("anthropic", max_tokens=3, stream=True)))
    return r.choices[0].finish_reason, len(r.choices[0].message.content) > 0


@row
def litellm_anthropic_tool():
    r = lite("anthropic", tools=tools, tool_choice="required")
    return r.choices[0].finish_reason, called(r.choices[0].message)


@row
def litellm_anthropic_form():
    return sorted(json.loads(lite("anthropic", response_format=City).choices[0].message.content))


@row
def litellm_anthropic_too_long():
    return lite("anthropic", messages=long)


# LangChain.


def lang(**more):
    return ChatOpenAI(**{"model": model, "base_url": base + "/v1", "api_key": "none", "max_retries": 0, "max_tokens": 40, "temperature": 0, **more})


@row
def langchain_chat():
    m = lang(max_tokens=3).invoke(question)
    return m.response_metadata["finish_reason"], m.usage_metadata["output_tokens"]


@row
def langchain_streamed():
    whole = None
    for part in lang(max_tokens=3, stream_usage=True).stream(question):
        whole = part if whole is None else whole + part
    return whole.response_metadata["finish_reason"], whole.usage_metadata["output_tokens"], len(whole.content) > 0


@row
def langchain_batch():
    return [m.usage_metadata["output_tokens"] for m in lang(max_tokens=2).batch(["One", "Two", "Three"])]


@row
def langchain_tool_required():
    return [(c["name"], sorted(c["args"])) for c in lang().bind_tools(tools, tool_choice="any").invoke(question).tool_calls]


@row
def langchain_tool_named():
    return [(c["name"], sorted(c["args"])) for c in lang().bind_tools(tools, tool_choice="weather").invoke(question).tool_calls]


@row
def langchain_tool_streamed():
    whole = None
    for part in lang().bind_tools(tools, tool_choice="any").stream(question):
        whole = part if whole is None else whole + part
    return [(c["name"], sorted(c["args"])) for c in whole.tool_calls]


@row
def langchain_form():
    return type(lang().with_structured_output(City).invoke(question)).__name__


@row
def langchain_form_by_call():
    return type(lang().with_structured_output(City, method="function_calling").invoke(question)).__name__


@row
def langchain_form_by_json():
    return type(lang().with_structured_output(City, method="json_mode").invoke("Name a city as JSON: {\"city\": ...}")).__name__


@row
def langchain_response():
    m = lang(use_responses_api=True, max_tokens=3).invoke(question)
    return m.response_metadata["status"], m.usage_metadata["output_tokens"]


@row
def langchain_response_streamed():
    whole = None
    for part in lang(use_responses_api=True).bind_tools(tools, tool_choice="required").stream(question):
        whole = part if whole is None else whole + part
    return [(c["name"], sorted(c["args"])) for c in whole.tool_calls]


@row
def langchain_embeddings():
    return [len(v) for v in OpenAIEmbeddings(model=model, base_url=base + "/v1", api_key="none", check_embedding_ctx_length=False).embed_documents(["a", "b"])]


@row
def langchain_model():
    return lang(model="nobody").invoke(question)


@row
def langchain_too_long():
    return lang().invoke(long)


@row
def langchain_busy():
    return lang(base_url=busy("langchain"), max_retries=2, max_tokens=1).invoke(question).usage_metadata["output_tokens"]


# pydantic-ai.


def pydantic(kind=OpenAIChatModel, url=None, name=None, **more):
    client = openai.AsyncOpenAI(base_url=url or base + "/v1", api_key="none", max_retries=2 if url else 0)
    return Agent(kind(name or model, provider=OpenAIProvider(openai_client=client)), model_settings={"max_tokens": 40, "temperature": 0}, **more)


@row
async def pydantic_chat():
    r = await pydantic().run("Say hello.", model_settings={"max_tokens": 20})
    return type(r.output).__name__, 1 <= r.usage.output_tokens <= 20


@row
async def pydantic_streamed():
    async with pydantic().run_stream("Say hello.") as r:
        return len(await r.get_output()) > 0


@row
async def pydantic_form_by_call():
    return type((await pydantic(output_type=City).run(question)).output).__name__


@row
async def pydantic_form():
    return type((await pydantic(output_type=NativeOutput(City)).run(question)).output).__name__


@row
async def pydantic_response():
    return type((await pydantic(OpenAIResponsesModel, output_type=City).run(question)).output).__name__


@row
async def pydantic_model():
    return await pydantic(name="nobody").run(question)


@row
async def pydantic_too_long():
    return await pydantic().run(long[0]["content"])


@row
async def pydantic_busy():
    return type((await pydantic(url=busy("pydantic")).run("Hi")).output).__name__


# OpenAI's agents.


def agent(kind, url=None, name=None, **more):
    client = openai.AsyncOpenAI(base_url=url or base + "/v1", api_key="none", max_retries=2 if url else 0)
    settings = agents.ModelSettings(max_tokens=200, temperature=0, tool_choice=more.pop("choice", None))
    return agents.Agent(name="a", instructions="Be short.", model=kind(model=name or model, openai_client=client), model_settings=settings, **more)


chats, responses = agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel
asked = []


@agents.function_tool
def forecast(city: str) -> str:
    """The weather of a city."""
    asked.append(city)
    return "sunny"


@row
async def agents_chat():
    return type((await agents.Runner.run(agent(chats), "Say hello.")).final_output).__name__


@row
async def agents_response():
    return type((await agents.Runner.run(agent(responses), "Say hello.")).final_output).__name__


@row
async def agents_response_streamed():
    r = agents.Runner.run_streamed(agent(responses), "Say hello.")
    kinds = [e.data.type async for e in r.stream_events() if e.type == "raw_response_event"]
    return kinds[0], kinds[-1] in ("response.completed", "response.incomplete"), type(r.final_output).__name__


@row
async def agents_tool():
    asked.clear()
    r = await agents.Runner.run(agent(responses, choice="required", tools=[forecast], tool_use_behavior="stop_on_first_tool"), question)
    return r.final_output, len(asked)


@row
async def agents_form():
    return type((await agents.Runner.run(agent(responses, output_type=City), question)).final_output).__name__


@row
async def agents_model():
    return await agents.Runner.run(agent(responses, name="nobody"), question)


@row
async def agents_busy():
    return type((await agents.Runner.run(agent(responses, busy("agents")), "Hi")).final_output).__name__


# llm.


def simple():
    m = llm.get_model("mill")
    m.key = "none"
    return m


@row
def llm_chat():
    r = simple().prompt(question, stream=False, max_tokens=3)
    return len(r.text()) > 0, r.usage().output


@row
def llm_streamed():
    return len("".join(simple().prompt(question, max_tokens=3))) > 0


@row
def llm_form():
    return sorted(json.loads(simple().prompt(question, schema=City, stream=False, max_tokens=40).text()))


@row
def llm_tools():
    r = simple().prompt(question, tools=[llm.Tool(name="weather", description="The weather of a city.", input_schema=parameters, implementation=lambda city: "sunny")], stream=False, max_tokens=40)
    return bool(r.text()) != bool(r.tool_calls())


@row
def llm_too_long():
    return simple().prompt(long[0]["content"], stream=False, max_tokens=1).text()


print(json.dumps(rows))
