"""Renders conversations by openai/harmony's own library: lines of JSON in, each a Conversation of
this package, and lines of token ids out. With --vocabulary FILE it writes its tokenizer as Hugging
Face's tokenizer.json first.
"""

import json
import sys

from openai_harmony import (
    Author, Conversation, DeveloperContent, HarmonyEncodingName, Message, ReasoningEffort, RenderConversationConfig, Role,
    SystemContent, TextContent, ToolDescription, load_harmony_encoding,
)

ENCODING = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
START, CHANNEL, CONSTRAIN, BODY = (ENCODING.encode(t, allowed_special="all")[0] for t in ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"))
ORDINARY = 199998
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def says(role, text, channel=None):
    m = Message.from_role_and_content(role, text)
    return m.with_channel(channel) if channel else m


def parts(role, texts):
    return Message.from_role_and_contents(role, [TextContent(text=t) for t in texts])


def developer(text, tools):
    content = DeveloperContent.new()
    if text is not None:
        content = content.with_instructions(text)
    if tools:
        content = content.with_function_tools(
            [ToolDescription.new(t["Name"], t["Description"], parameters=t["Parameters"]) for t in tools]
        )
    return Message.from_role_and_content(Role.DEVELOPER, content)


def assistant(turn):
    texts, calls = turn["Texts"] or [], turn["Calls"] or []
    thoughts = [says(Role.ASSISTANT, turn["Thoughts"], "analysis")] if turn["Thoughts"] else []
    if not calls:
        answer = parts(Role.ASSISTANT, texts).with_channel("final") if texts and texts[0] else None
        return thoughts + ([answer] if answer else [])
    said = "".join(texts)
    out = [says(Role.ASSISTANT, said, "commentary")] if said else []
    for c in calls:
        call = says(Role.ASSISTANT, c["Arguments"], "commentary")
        thoughts.append(call.with_recipient("functions." + c["Name"]).with_content_type("json"))
    return out + thoughts


def messages(c):
    effort = {"low": ReasoningEffort.LOW, "high": ReasoningEffort.HIGH}.get(c["Effort"], ReasoningEffort.MEDIUM)
    system = SystemContent.new().with_reasoning_effort(effort).with_conversation_start_date(c["Day"])
    out, turns, first = [Message.from_role_and_content(Role.SYSTEM, system)], c["Turns"] or [], None
    if turns and turns[0]["Role"] in ("system", "developer"):
        first, turns = "".join(turns[0]["Texts"] or []) if turns[0]["Texts"] is not None else None, turns[1:]
    if first or c["Tools"]:
        out.append(developer(first, c["Tools"]))
    names = {call["ID"]: call["Name"] for t in turns for call in t["Calls"] or []}
    for t in turns:
        if t["Role"] == "assistant":
            out += assistant(t)
        elif t["Role"] == "tool":
            result = Message.from_author_and_content(Author.new(Role.TOOL, "functions." + names.get(t["CallID"], "")), "".join(t["Texts"] or []))
            out.append(result.with_channel("commentary").with_recipient("assistant"))
        elif t["Role"] == "user":
            out.append(parts(Role.USER, t["Texts"] or [""]))
        elif t["Texts"] is not None:
            out.append(developer("".join(t["Texts"]), None))
    last = max((i for i, m in enumerate(out) if m.channel == "final"), default=0)
    return [m for i, m in enumerate(out) if i >= last or m.channel != "analysis"]


def older(ids):
    """Calls of tools as gpt-oss learned them: the function's name before the channel."""
    out, i = [], 0
    while i < len(ids):
        if ids[i] == START:
            end = ids.index(BODY, i) if BODY in ids[i:] else i
            head = ids[i + 1 : end]
            if CONSTRAIN in head:
                author, rest = (ENCODING.decode(part) for part in (head[: head.index(CHANNEL)], head[head.index(CHANNEL) + 1 : head.index(CONSTRAIN)]))
                channel, name = rest.strip().split(" to=", 1)
                kind = ENCODING.decode(head[head.index(CONSTRAIN) + 1 :])
                out += [START] + ENCODING.encode(f"{author} to={name}") + [CHANNEL] + ENCODING.encode(f"{channel} {kind}") + [BODY]
                i = end + 1
                continue
        out.append(ids[i])
        i += 1
    return out


def letters():
    """How byte-level tokenizers write bytes as letters."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {b: chr(b if b in kept else next(others)) for b in range(256)}


def vocabulary(path):
    letter = letters()
    tokens = [ENCODING._inner.decode_bytes([i]) for i in range(ORDINARY)]
    rank = {t: i for i, t in enumerate(tokens)}
    write = lambda t: "".join(letter[b] for b in t)  # noqa: E731
    merges = []
    for i, t in enumerate(tokens):
        parts = [t[j : j + 1] for j in range(len(t))]
        while len(parts) > 2:  # what it is merged of is known by merging with those before it
            ranks = [rank.get(a + b, ORDINARY) for a, b in zip(parts, parts[1:])]
            best = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[best] >= i:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append([write(parts[0]), write(parts[1])])
    added = [{"id": ENCODING.encode(t, allowed_special="all")[0], "content": t, "special": True} for t in sorted(ENCODING.special_tokens_set)]
    file = {
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]},
        "model": {"type": "BPE", "vocab": {write(t): i for i, t in enumerate(tokens)}, "merges": merges, "ignore_merges": True},
    }
    with open(path, "w") as f:
        json.dump(file, f)


if len(sys.argv) > 2:
    vocabulary(sys.argv[2])
for line in sys.stdin:
    conversation = Conversation.from_messages(messages(json.loads(line)))
    ids = ENCODING.render_conversation_for_completion(conversation, Role.ASSISTANT, config=RenderConversationConfig(auto_drop_analysis=False))
    print(json.dumps(older(ids)))
