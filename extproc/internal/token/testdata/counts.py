"""Writes counts.jsonl: requests of our own making and the prompt tokens that the
real llama.cpp server counts for them. Run it again after a change of requests or
of the runtime's version:

    PYTHONPATH=.cache/llamacpp-2026.10.11549 python3 \
        extproc/internal/token/testdata/counts.py .cache/models/SmolLM2-135M-Instruct.Q4_1.gguf

Each line is {"name", "path", "body", "tokens"}. Chats are counted by
/v1/chat/completions/input_tokens, the counter that the server itself uses (and
messages by /v1/messages/count_tokens), and every tenth also by a real completion. Texts ("path": "/tokenize") are counted
without special tokens.
"""
import json
import os
import random
import sys
import urllib.error
import urllib.request

import xllamacpp

HERE = os.path.dirname(os.path.abspath(__file__))


def start(model):
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.cpuparams.n_threads = 1
    params.n_ctx = 8192
    params.n_parallel = 1
    params.cache_ram_mib = 0
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.n_batch = params.n_ubatch = 2048
    return xllamacpp.Server(params)


def post(url, path, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def true_count(url, path, body):
    if path == "/tokenize":
        return len(post(url, path, {"content": body["content"], "parse_special": False})["tokens"])
    if path == "/v1/chat/completions":
        return post(url, path + "/input_tokens", body)["input_tokens"]
    if path == "/v1/responses":
        return post(url, path + "/input_tokens", body)["input_tokens"]
    if path == "/v1/messages":
        return post(url, path + "/count_tokens", body)["input_tokens"]
    return post(url, path, body)["usage"]["prompt_tokens"]


def usage(url, path, body):
    short = dict(body, max_tokens=1, max_output_tokens=1) if path == "/v1/responses" else dict(body, max_tokens=1)
    short.pop("stream", None)
    answer = post(url, path, short)["usage"]
    if path == "/v1/messages":
        return answer["input_tokens"] + answer["cache_read_input_tokens"]
    return answer.get("prompt_tokens", answer.get("input_tokens"))


TEXTS = {
    "greeting": "Hello, how are you today?",
    "empty": "",
    "space": " ",
    "spaces": "      ",
    "one newline": "\n",
    "newlines": "\n\n\n\n",
    "crlf": "first line\r\nsecond line\r\n\r\nthird\r",
    "tabs": "\tif x:\n\t\treturn\t\ty\n",
    "leading newline": "\nafter a newline",
    "leading newlines": "\n\n  after two newlines and spaces",
    "trailing space": "trailing ",
    "trailing spaces": "trailing    ",
    "trailing newline": "trailing\n",
    "trailing newlines": "trailing\n\n\n",
    "inner spaces": "a  b   c    d     e          f",
    "mixed blanks": " \t \n \r\n \v \f x \u00a0 y \u2003 z \u3000 \u0085 end \u2028 para \u2029",
    "digits": "1 12 123 1234 12345 1234567890",
    "digits in words": "a1b22c333 x86_64 utf8 3D 2nd 42nd",
    "digits after spaces": "  7   88    999",
    "phone": "+43 (0)1 234-567/89",
    "float": "3.14159265358979 -1e-10 0x7fff 1_000_000",
    "other digits": "٠١٢٣٤٥ ०१२३ ①②③ Ⅷ ½ ¼ x² 十二",
    "date": "2026-10-11T12:34:56.789Z",
    "apostrophes": "I'm sure you're right, we've done it, they'll say it's what he'd want; don't.",
    "capital apostrophes": "I'M SURE YOU'RE RIGHT, WE'VE DONE IT, IT'S DON'T",
    "odd apostrophes": "'s 't 're 've 'm 'll 'd '' 'sx x's' 'r 'v 'l '",
    "curly apostrophes": "don\u2019t can\u2018t \u201cquoted\u201d",
    "long s": "'\u017f \u017fo",
    "punctuation": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "punctuation runs": "?!?!?! ... ---- ==== #### **bold** ~~gone~~ __init__",
    "space punctuation": "a . b , c ! d ? e : f",
    "url": "https://example.org/a/b.html?q=1&r=%20x#frag",
    "mail": "someone+tag@example.co.uk",
    "path": "C:\\Users\\me\\file.txt /usr/local/bin ~/.config ../x",
    "german": "Größenwahn überfällt äußerst süße Füchse, daß es kracht.",
    "french": "L'été dernier, où étais-tu? Ça va? Œuvre complète à 3,50 €.",
    "spanish": "¿Cómo estás? ¡Muy bien! El niño comió piñas.",
    "polish": "Zażółć gęślą jaźń, pchnąć w tę łódź jeża.",
    "czech": "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "turkish": "İstanbul'da ılık bir gün, ağaçların gölgesinde.",
    "vietnamese": "Tiếng Việt có nhiều dấu thanh điệu.",
    "russian": "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "ukrainian": "Їжак п'є чай із ґанку.",
    "greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא חברה.",
    "arabic": "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر.",
    "persian": "می‌خواهم کتاب بخوانم.",
    "hindi": "ऋषियों को सताने वाले दुष्ट राक्षसों का सर्वनाश।",
    "bengali": "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি।",
    "tamil": "அனைவருக்கும் வணக்கம், இது தமிழ்.",
    "thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "khmer": "សួស្តីពិភពលោក",
    "chinese": "我能吞下玻璃而不伤身体。今天天气怎么样？",
    "traditional": "繁體中文測試，標點符號「引號」與《書名號》。",
    "japanese": "私はガラスを食べられます。それは私を傷つけません。カタカナ、ひらがな、漢字。",
    "korean": "나는 유리를 먹을 수 있어요. 그래도 아프지 않아요.",
    "jamo": "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "georgian": "ვეპხის ტყაოსანი შოთა რუსთაველი",
    "armenian": "Կրնամ ապակի ուտել",
    "amharic": "ሰማይ አይታረስ ንጉሥ አይከሰስ።",
    "cherokee": "ᎠᏂᏴᏫᏯ ᏣᎳᎩ",
    "rare han": "𠮷野家 𪚥 \U0002ebf0\U0002ec00",
    "math": "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β ⇔ ∑ᵢ aᵢ² ≤ √2 ∫ f dx",
    "math letters": "𝓗𝓮𝓵𝓵𝓸 𝕨𝕠𝕣𝕝𝕕 𝟙𝟚𝟛",
    "box drawing": "┌──┬──┐\n│a │b │\n└──┴──┘",
    "emoji": "😀😃😄 hello 🙂🙃",
    "emoji sequences": "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇦🇹🇪🇺 ❤️ 1️⃣",
    "combining": "e\u0301 a\u030a n\u0303 Z\u0351\u036b\u0343\u036a",
    "zero width": "a\u200bb\u200cc\u200dd\ufeffe\u2060f",
    "bidi": "abc \u202eדגב\u202c def",
    "control": "\u0001\u0002\u001b[31mred\u001b[0m\u007f\u0000end",
    "private use": "\ue000\uf8ff\U000f0000",
    "replacement": "bad \ufffd char",
    "specials in text": "<|im_start|>user\nhi<|im_end|> and <|endoftext|>",
    "unclosed special": "<|im_start <|im_end| |im_start|> <im_start> < |im_end|>",
    "adjacent specials": "<|im_start|><|im_start|><|im_end|><|im_end|>",
    "broken special": "<<|im_end|>>x<|im_<|im_end|>end|>",
    "code tokens": "<repo_name>x<file_sep>y<filename>z<gh_stars>1<issue_start>",
    "jupyter": "<jupyter_start><jupyter_text>t<jupyter_code>c<jupyter_output>o<empty_output>",
    "reponame": "<reponame>a/b<filename>c.py",
    "other models' specials": "<s></s>[INST] x [/INST]<|eot_id|><|start_header_id|><bos><pad>",
    "python": "def f(x: int = 0) -> str:\n    \"\"\"Doc.\"\"\"\n    return f\"{x!r:>10}\" if x else ''\n\n\nclass A(B):\n    pass\n",
    "go": "func (s *Server) Run(ctx context.Context) error {\n\tfor {\n\t\tselect {\n\t\tcase <-ctx.Done():\n\t\t\treturn ctx.Err()\n\t\t}\n\t}\n}\n",
    "c": "#include <stdio.h>\nint main(void){for(int i=0;i<10;i++)printf(\"%d\\n\",i);return 0;}\n",
    "html": "<!DOCTYPE html><html><body class=\"x y\"><p>Hi &amp; bye</p><!-- c --></body></html>",
    "json": "{\"a\": [1, 2.5, null, true], \"b\": {\"c\": \"d\\n\"}}",
    "yaml": "a:\n  - b: 1\n    c: |\n      text\n",
    "sql": "SELECT t.id, COUNT(*) FROM t LEFT JOIN u ON t.id=u.t_id WHERE u.x IS NOT NULL GROUP BY 1;",
    "shell": "for f in *.txt; do grep -E '^[a-z]+$' \"$f\" | sort -u >> out 2>&1; done",
    "regex": "^(?:[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*@(?:\\d{1,3}\\.){3}$",
    "diff": "--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n-old\n+new\n context\n",
    "markdown": "# Title\n\n- item **bold**\n- [x] done `code`\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```go\nx := 1\n```\n",
    "latex": "\\begin{equation} e^{i\\pi} + 1 = 0 \\end{equation} $\\frac{a}{b}$",
    "csv": "a,b,c\n1,\"x, y\",3\n,,\n",
    "base64": "TWlsbHJhY2UgcnVucyB3YXRlciB0byB0aGUgd2hlZWwuIDAxMjM0NTY3ODk=",
    "hex": "deadbeef 0123456789abcdef DEADBEEF",
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
    "camel": "getHTTPResponseCodeForURL snake_case_name SCREAMING_SNAKE kebab-case-name",
    "long word": "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen",
    "long run": "a" * 300,
    "long run of two": "ab" * 200,
    "long digits": "9" * 120,
    "long spaces": "x" + " " * 400 + "y",
    "long newlines": "x" + "\n" * 150 + "y",
    "long dashes": "-" * 500,
    "long emoji": "🎉" * 60,
    "long chinese": "今天我们讨论分布式系统的一致性问题" * 12,
    "prose": "The mill stood where the stream bent, and every spring the race was cleared of leaves. " * 12,
    "dialogue": "“Well,” she said — and paused… — “that's that.”\n‘Is it?’\n",
    "long prose": " ".join(f"Sentence number {i} says that {i * i} is the square of {i}, isn't it?" for i in range(120)),
    "long code": "".join(f"\tif err := step{i}(ctx); err != nil {{\n\t\treturn fmt.Errorf(\"step {i}: %w\", err)\n\t}}\n" for i in range(60)),
}


def random_texts():
    """Strings of mixed scripts, blanks, digits and marks, from a fixed seed."""
    rng = random.Random(20261011)
    pools = [
        "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "     \n\t\r", ".,;:!?'\"-_()[]{}<>|/\\@#$%^&*+=~`",
        "äöüßéèñçøåœ", "жщыэюя", "あいうアイウ漢字", "한글", "٠١٢३④Ⅴ½", "\u0301\u0308\u200d\ufe0f", "😀🙂👍🏽", "\u00a0\u2003\u3000\u2028",
    ]
    words = ["the", " and", "'s", "'ll", " don't", "<|im_start|>", "<|im_end|>", "<|", "|>", " 12", "\n\n", "ing", " http://"]
    for i in range(48):
        out = []
        for _ in range(rng.randint(1, 60)):
            if rng.random() < 0.25:
                out.append(rng.choice(words))
            else:
                out.append("".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 6))))
        yield f"random {i}", "".join(out)


def message(role, content, **more):
    return dict({"role": role, "content": content}, **more)


def parts(*texts):
    return [{"type": "text", "text": t} for t in texts]


CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Wien\", \"days\": 3}"}}
TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}}}


def conversations():
    user = message("user", "What is the weather in Wien?")
    sys_ = message("system", "You are terse.")
    said = message("assistant", "Sunny, 21 °C.")
    called = message("assistant", None, tool_calls=[CALL])
    result = message("tool", "{\"temp\": 21, \"sky\": \"clear\"}", tool_call_id="call_1")
    yield "one user", {"messages": [user]}
    yield "system and user", {"messages": [sys_, user]}
    yield "empty system", {"messages": [message("system", ""), user]}
    yield "two systems", {"messages": [sys_, message("system", "And kind."), user]}
    yield "system later", {"messages": [user, sys_, user]}
    yield "system alone", {"messages": [sys_]}
    yield "developer", {"messages": [message("developer", "You are terse."), user]}
    yield "developer later", {"messages": [user, message("developer", "Now be long."), user]}
    yield "no messages", {"messages": []}
    yield "two users", {"messages": [user, user]}
    yield "three turns", {"messages": [user, said, message("user", "And tomorrow?")]}
    yield "long talk", {"messages": [sys_] + [m for i in range(12) for m in (message("user", f"Question {i}?"), message("assistant", f"Answer {i}.\n"))] + [user]}
    yield "two assistants inside", {"messages": [user, said, said, user]}
    yield "assistant first", {"messages": [said, user]}
    yield "prefill", {"messages": [user, message("assistant", "The weather is")]}
    yield "prefill with trailing space", {"messages": [user, message("assistant", "The weather is ")]}
    yield "prefill with leading newline", {"messages": [sys_, user, message("assistant", "\nThe")]}
    yield "prefill alone", {"messages": [message("assistant", "Once upon")]}
    yield "prefill empty", {"messages": [user, message("assistant", "")]}
    yield "prefill empty with name", {"messages": [user, message("assistant", "", name="bob")]}
    yield "prefill null content with reasoning", {"messages": [user, message("assistant", None, reasoning_content="hm")]}
    yield "prefill parts", {"messages": [user, message("assistant", parts("a", "b"))]}
    yield "prefill empty part", {"messages": [user, message("assistant", parts(""))]}
    yield "prefill special", {"messages": [user, message("assistant", "x<|im_end|>\n<|im_start|>")]}
    yield "prefill after system", {"messages": [sys_, message("assistant", "Hi")]}
    yield "prefill after tool", {"messages": [user, called, result, message("assistant", "It is")]}
    yield "no generation prompt", {"messages": [user], "add_generation_prompt": False}
    yield "no generation prompt, three turns", {"messages": [sys_, user, said, user], "add_generation_prompt": False}
    yield "no generation prompt, prefill", {"messages": [user, said], "add_generation_prompt": False}
    yield "generation prompt", {"messages": [user], "add_generation_prompt": True}
    yield "continue false", {"messages": [user, said], "continue_final_message": False}
    yield "continue null", {"messages": [user], "continue_final_message": None}
    yield "continue", {"messages": [user, said], "continue_final_message": True, "add_generation_prompt": False}
    yield "continue content", {"messages": [user, said], "continue_final_message": "content", "add_generation_prompt": False}
    yield "continue a user", {"messages": [sys_, user], "continue_final_message": True, "add_generation_prompt": False}
    yield "no messages, no prompt", {"messages": [], "add_generation_prompt": False}
    yield "name", {"messages": [message("user", "Hi", name="alice")]}
    yield "names", {"messages": [message("system", "s", name="boss"), message("user", "Hi", name="alice"), message("assistant", "x", name="bob"), message("user", "y", name="carol")]}
    yield "unknown role", {"messages": [message("narrator", "It was night."), user]}
    yield "odd role", {"messages": [message("user name\n", "x")]}
    yield "empty role", {"messages": [message("", "x")]}
    yield "special role", {"messages": [message("<|im_end|>", "x")]}
    yield "null user content", {"messages": [message("user", None)]}
    yield "tool call", {"messages": [user, called, result]}
    yield "tool call answered", {"messages": [user, called, result, said, message("user", "Thanks")]}
    yield "tool call with content", {"messages": [user, message("assistant", "Let me look.", tool_calls=[CALL]), result]}
    yield "tool call without content", {"messages": [user, {"role": "assistant", "tool_calls": [CALL]}, result]}
    yield "two tool calls", {"messages": [user, message("assistant", "", tool_calls=[CALL, dict(CALL, id="call_2")]), result, dict(result, tool_call_id="call_2")]}
    yield "tool result parts", {"messages": [user, called, dict(result, content=parts("{\"temp\":", " 21}"))]}
    yield "tool result empty", {"messages": [user, called, dict(result, content="")]}
    yield "tool alone", {"messages": [result]}
    yield "tools", {"messages": [user], "tools": [TOOL]}
    yield "tools and system", {"messages": [sys_, user], "tools": [TOOL, TOOL]}
    yield "tools none", {"messages": [user], "tools": [TOOL], "tool_choice": "none"}
    yield "tools required", {"messages": [user], "tools": [TOOL], "tool_choice": "required"}
    yield "tools empty", {"messages": [user], "tools": []}
    yield "tools used", {"messages": [user, called, result], "tools": [TOOL]}
    yield "one part", {"messages": [message("user", parts("Hello there"))]}
    yield "parts", {"messages": [message("user", parts("Hello", "there", "", "end"))]}
    yield "parts with newlines", {"messages": [message("user", parts("Hello\n", "\nthere", " x"))]}
    yield "parts empty first", {"messages": [message("user", parts("", "", "b"))]}
    yield "no parts", {"messages": [message("user", [])]}
    yield "parts everywhere", {"messages": [message("system", parts("s", "t")), message("user", parts("u", "v")), message("assistant", parts("a", "b")), message("user", parts("w"))]}
    yield "parts with specials", {"messages": [message("user", parts("<|im_end|>", "<|im_start|>system\n", "x"))]}
    yield "response format", {"messages": [user], "response_format": {"type": "json_object"}}
    yield "json schema", {"messages": [user], "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}}}
    yield "stream", {"messages": [user], "stream": True, "temperature": 0, "stop": ["x"], "seed": 1}
    yield "effort", {"messages": [user], "reasoning_effort": "low"}
    yield "kwargs", {"messages": [user], "chat_template_kwargs": {"foo": 1}}
    yield "kwargs thinking", {"messages": [user], "chat_template_kwargs": {"enable_thinking": False}}
    yield "model", {"model": "smollm2", "messages": [user]}
    yield "field names in content", {"messages": [message("user", "add_generation_prompt continue_final_message chat_template_kwargs reasoning_effort tool_calls")]}
    yield "reasoning in history", {"messages": [user, message("assistant", "Yes.", reasoning_content="I think so."), user]}
    yield "content of newlines", {"messages": [message("user", "\n"), message("assistant", "\n\n"), message("user", "\n \n")]}
    yield "escapes", {"messages": [message("user", "tab\t quote\" back\\slash \u2028 nul\u0000 \u00e9 \U0001f600 end")]}


def responses():
    yield "string", {"input": "Tell me a joke."}
    yield "string and instructions", {"input": "Tell me a joke.", "instructions": "You are terse."}
    yield "empty instructions", {"input": "Tell me a joke.", "instructions": ""}
    yield "list", {"input": [{"role": "user", "content": "Tell me a joke."}]}
    yield "list of parts", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Tell me"}, {"type": "input_text", "text": "a joke."}]}]}
    yield "list with system", {"input": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "instructions": "Be kind."}
    yield "list with developer", {"input": [{"type": "message", "role": "developer", "content": "Be brief."}, {"type": "message", "role": "user", "content": "Hi"}]}
    yield "history", {"input": [{"role": "user", "content": "Hi"}, {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello!"}], "status": "completed"}, {"role": "user", "content": "Joke?"}]}
    yield "history as text", {"input": [{"role": "user", "content": "Hi"}, {"type": "message", "role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Joke?"}]}
    yield "two outputs merged", {"input": [{"role": "user", "content": "Hi"}, {"type": "message", "role": "assistant", "content": "Hello!"}, {"type": "message", "role": "assistant", "content": "Again!"}, {"role": "user", "content": "Joke?"}]}
    yield "function call", {"input": [{"role": "user", "content": "Weather?"}, {"type": "function_call", "call_id": "c1", "name": "w", "arguments": "{\"a\": 1}"}, {"type": "function_call_output", "call_id": "c1", "output": "sunny"}]}
    yield "function output parts", {"input": [{"role": "user", "content": "Weather?"}, {"type": "function_call", "call_id": "c1", "name": "w", "arguments": "{}"}, {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "sunny"}, {"type": "input_text", "text": "warm"}]}]}
    yield "call after output", {"input": [{"role": "user", "content": "Weather?"}, {"type": "message", "role": "assistant", "content": "One moment."}, {"type": "function_call", "call_id": "c1", "name": "w", "arguments": "{}"}, {"type": "function_call_output", "call_id": "c1", "output": "sunny"}]}
    yield "reasoning", {"input": [{"role": "user", "content": "Hi"}, {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}, {"type": "message", "role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Joke?"}]}
    yield "prefill", {"input": [{"role": "user", "content": "Hi"}, {"type": "message", "role": "assistant", "content": "Well,"}]}
    yield "tools", {"input": "Weather?", "tools": [{"type": "function", "name": "w", "description": "d", "parameters": {"type": "object", "properties": {}}}]}
    yield "special", {"input": "a<|im_end|>b", "instructions": "\n\n", "max_output_tokens": 5}


def block(kind, **more):
    return dict({"type": kind}, **more)


ANTHROPIC_TOOL = {"name": "get_weather", "description": "Weather of a city.", "input_schema": TOOL["function"]["parameters"]}
BILL = "x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch=%s;You are terse."


def messages():
    user = message("user", "What is the weather in Wien?")
    said = message("assistant", "Sunny, 21 °C.")
    use = block("tool_use", id="t1", name="get_weather", input={"city": "Wien", "days": 3})
    result = block("tool_result", tool_use_id="t1", content="{\"temp\": 21, \"sky\": \"clear\"}")
    yield "one user", {"messages": [user]}
    yield "system", {"system": "You are terse.", "messages": [user]}
    yield "empty system", {"system": "", "messages": [user]}
    yield "null system", {"system": None, "messages": [user]}
    yield "system blocks", {"system": parts("You are", " terse.", "\n"), "messages": [user]}
    yield "no system blocks", {"system": [], "messages": [user]}
    yield "system with a cache mark", {"system": [block("text", text="You are terse.", cache_control={"type": "ephemeral"})], "messages": [user]}
    yield "system with other blocks", {"system": [block("image", source={}), block("text", text="You are terse.")], "messages": [user]}
    for stamp in ("00000", "a5145", "fffff"):
        yield "system with a bill " + stamp, {"system": BILL % stamp, "messages": [user]}
        yield "system blocks with a bill " + stamp, {"system": parts(BILL % stamp, "x"), "messages": [user]}
    yield "three turns", {"system": "Be kind.", "messages": [user, said, message("user", "And tomorrow?")]}
    yield "long talk", {"system": "Be kind.", "messages": [m for i in range(12) for m in (message("user", f"Question {i}?"), message("assistant", f"Answer {i}.\n"))] + [user]}
    yield "one block", {"messages": [message("user", parts("Hello there"))]}
    yield "blocks", {"messages": [message("user", parts("Hello", "there", "", "end"))]}
    yield "blocks empty first", {"messages": [message("user", parts("", "", "b"))]}
    yield "no blocks", {"messages": [message("user", []), user]}
    yield "null content", {"messages": [message("user", None), user]}
    yield "no content", {"messages": [user, {"role": "assistant"}, user]}
    yield "blocks everywhere", {"messages": [message("user", parts("u", "v")), message("assistant", parts("a", "b")), message("user", parts("w"))]}
    yield "unknown block", {"messages": [message("user", [block("document", source={}), block("text", text="b")])]}
    yield "only an unknown block", {"messages": [message("user", [block("document", source={})]), user]}
    yield "tool use", {"messages": [user, message("assistant", [use]), message("user", [result])]}
    yield "tool use with text", {"messages": [user, message("assistant", parts("Let me look.") + [use]), message("user", [result] + parts("And tomorrow?"))]}
    yield "two tool uses", {"messages": [user, message("assistant", [use, dict(use, id="t2")]), message("user", [result, dict(result, tool_use_id="t2")])]}
    yield "tool result blocks", {"messages": [user, message("assistant", [use]), message("user", [dict(result, content=parts("{\"temp\":", " 21}"))])]}
    yield "tool result without content", {"messages": [user, message("assistant", [use]), message("user", [block("tool_result", tool_use_id="t1", is_error=True)])]}
    yield "tools", {"messages": [user], "tools": [ANTHROPIC_TOOL], "tool_choice": {"type": "auto"}}
    yield "tools used", {"messages": [user, message("assistant", [use]), message("user", [result])], "tools": [ANTHROPIC_TOOL]}
    yield "thinking", {"messages": [user, message("assistant", [block("thinking", thinking="Hm.", signature="x")] + parts("Sunny.")), user]}
    yield "only thinking", {"messages": [user, message("assistant", [block("thinking", thinking="Hm.", signature="x")]), user]}
    yield "thinking wanted", {"messages": [user], "thinking": {"type": "enabled", "budget_tokens": 64}}
    yield "prefill", {"messages": [user, message("assistant", "The weather is")]}
    yield "prefill block", {"messages": [user, message("assistant", parts("The weather is"))]}
    yield "prefill blocks", {"messages": [user, message("assistant", parts("a", "b"))]}
    yield "fields of chat completions", {"messages": [user], "add_generation_prompt": False, "continue_final_message": True, "response_format": {"type": "json_object"}, "reasoning_effort": "low"}
    yield "kwargs", {"messages": [user], "chat_template_kwargs": {"enable_thinking": False}}
    yield "stream", {"messages": [user], "stream": True, "stop_sequences": ["x"], "metadata": {"user_id": "u"}, "temperature": 0, "max_tokens": 5}
    yield "specials", {"system": "<|im_end|>", "messages": [message("user", parts("<|im_end|>", "<|im_start|>system\n", "x"))]}


def requests():
    texts = list(TEXTS.items()) + list(random_texts())
    for name, text in texts:
        yield "text: " + name, "/tokenize", {"content": text}
    for i, (name, text) in enumerate(texts):
        if i % 3 == 1:
            yield "user: " + name, "/v1/chat/completions", {"messages": [message("user", text)]}
        elif i % 3 == 2:
            other = texts[(i * 7) % len(texts)][1]
            yield "talk: " + name, "/v1/chat/completions", {"messages": [message("system", other), message("user", "Hi"), message("assistant", text), message("user", text)]}
        elif 0 < len(text) < 3000:
            yield "prompt: " + name, "/v1/completions", {"prompt": text, "max_tokens": 1}
    for name, body in conversations():
        yield name, "/v1/chat/completions", body
    for i, (name, text) in enumerate(texts):
        if 0 < len(text) < 2000 and i % 2 == 0:
            yield "messages: " + name, "/v1/messages", {"system": text, "messages": [message("user", text), message("assistant", parts(text)), message("user", parts("a", text))]}
    for name, body in messages():
        yield "messages: " + name, "/v1/messages", body
    for name, body in responses():
        yield "responses: " + name, "/v1/responses", body
    yield "embedding", "/v1/embeddings", {"input": "Hello <|im_start|> there"}
    yield "embeddings", "/v1/embeddings", {"input": ["Hello", " there", "x\n"]}
    yield "prompts", "/v1/completions", {"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "max_tokens": 1}


def main():
    server = start(sys.argv[1])
    url = server.listening_address
    with open(os.path.join(HERE, "counts.jsonl"), "w") as out:
        for i, (name, path, body) in enumerate(requests()):
            try:
                tokens = true_count(url, path, body)
                if i % 10 == 0 and path in ("/v1/chat/completions", "/v1/responses", "/v1/messages") and tokens < 1500:
                    assert usage(url, path, body) == tokens, name
            except urllib.error.HTTPError as e:
                sys.exit(f"{name}: {e}: {e.read().decode()}")
            out.write(json.dumps({"name": name, "path": path, "body": body, "tokens": tokens}, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
