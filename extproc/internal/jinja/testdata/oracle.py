#!/usr/bin/env python3
"""Renders chat templates with Python's Jinja2, set as transformers sets it.

  oracle.py generate SEED COUNT [LONGEST]   makes templates and variables by chance and renders them
  oracle.py cases < templates     renders lines that are templates, all with the same variables
  oracle.py render < pairs        renders lines of {"t": template, "c": variables}
  oracle.py families FILE         renders conversations with the templates that a TypeScript
                                  file of @huggingface/ollama-utils has, and names them in "f"

Prints lines of {"t", "c", "o"}: o is the text, or null where Jinja2 refuses; then e is
why. Times are those of NOW. Needs Jinja2 3.1.
"""
import datetime
import json
import random
import re
import signal
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime.datetime(2026, 3, 4, 5, 6, 7)


class Generation(jinja2.ext.Extension):
    """The tag that marks the assistant's words; transformers' own also notes where they are."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_generation"), [], [], body).set_lineno(line)

    def _generation(self, caller):
        return caller()


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: NOW.strftime(format)
    return env


ENV = environment()


class Slow(BaseException):  # Jinja makes syntax errors of some Exceptions
    pass


def slow(*_):
    raise Slow()


def render(template, variables):
    signal.signal(signal.SIGALRM, slow)
    signal.setitimer(signal.ITIMER_REAL, 5)
    try:
        return {"o": ENV.from_string(template).render(**variables)}
    except Slow:
        return None
    except RecursionError:
        return None
    except Exception as e:
        return {"o": None, "e": type(e).__name__ + ": " + str(e)[:80]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# What published templates are made of.

WORDS = ["user", "assistant", "system", "tool", "a", "b", "Hello", " x ", "hi漢", "", "</think>", "<think>a</think>b", "élan", "Ünï",
         "a,b,c", "one two  three", "\n line\n\n two\n", "it's", 'say "hi"', "0", "42", " 7 ", "3.5", "-1", "TRUE", "<|im_start|>", "{{x}}",
         "tab\tend", "back\\slash", "🙂 ok", "naïve façade", "a\u00a0b", "line\u2028sep", "\x1fa", "word-word (x)", "%s", "{}", "&<>'\""]
KEYS = ["role", "content", "type", "name", "text", "tool_calls", "function", "arguments", "items", "keys", "a", "b", "id", "x y"]


class Gen:
    def __init__(self, rng):
        self.r = rng
        self.vars = []  # names that the template sets
        self.spaces = []
        self.macros = []
        self.loops = 0
        self.depth = 0
        self.has_tools = False

    def pick(self, *choices):
        """Chooses; what is not there yet, mostly again."""
        for _ in range(4):
            choice = self.r.choice(choices)
            if not isinstance(choice, str) or not self.absent(choice) or self.chance(0.05):
                break
        return choice

    def absent(self, text):
        return any(re.search(r"\b%s\b" % name, text) and not there for name, there in (
            ("m", "m" in self.vars), ("loop", self.loops), ("ns", "ns.x" in self.vars), ("tools", self.has_tools), ("message", "message" in self.vars)))

    def chance(self, p):
        return self.r.random() < p

    # Variables.

    def value(self, depth=0):
        k = self.r.randrange(12 if depth < 3 else 8)
        if k < 3:
            return self.r.choice(WORDS)
        if k == 3:
            return self.r.choice([0, 1, 2, 3, -1, 7, 100, 255, -7, 12345678901234567890])
        if k == 4:
            return self.r.choice([0.5, 2.0, -1.5, 1e16, 1e-5, 3.14159, 0.1, 1e22, 123456.789])
        if k == 5:
            return self.r.choice([True, False])
        if k == 6:
            return None
        if k == 7:
            return self.r.choice([[], {}, ""])
        if k < 10:
            return [self.value(depth + 1) for _ in range(self.r.randrange(4))]
        return {self.r.choice(KEYS): self.value(depth + 1) for _ in range(self.r.randrange(4))}

    def message(self):
        role = self.pick("user", "assistant", "system", "tool", "user", "assistant", "developer")
        m = {"role": role}
        k = self.r.randrange(8)
        if k < 5:
            m["content"] = self.r.choice(WORDS) + self.pick("", " ", "\n") + self.r.choice(WORDS)
        elif k == 5:
            m["content"] = [{"type": "text", "text": self.r.choice(WORDS)} for _ in range(self.r.randrange(3))]
            if self.chance(0.3):
                m["content"].append({"type": "image"})
        elif k == 6:
            m["content"] = None
        if role == "assistant" and self.chance(0.3):
            m["tool_calls"] = [self.call() for _ in range(self.r.randrange(1, 3))]
        if self.chance(0.15):
            m["reasoning_content"] = self.r.choice(WORDS)
        if self.chance(0.1):
            m["name"] = self.pick("get_weather", "f")
        if role == "tool" and self.chance(0.5):
            m["tool_call_id"] = "call_1"
        return m

    def call(self):
        arguments = {self.pick("city", "n", "q"): self.value(2) for _ in range(self.r.randrange(3))}
        if self.chance(0.3):
            arguments = json.dumps(arguments)
        c = {"type": "function", "function": {"name": self.pick("get_weather", "f"), "arguments": arguments}}
        if self.chance(0.6):
            c["id"] = "call_%d" % self.r.randrange(9)
        return c

    def tool(self):
        props = {self.pick("city", "unit", "n"): {"type": self.pick("string", "integer", ["string", "null"]), "description": self.r.choice(WORDS)}
                 for _ in range(self.r.randrange(3))}
        if props and self.chance(0.3):
            props[next(iter(props))]["enum"] = ["c", "f"]
        return {"type": "function", "function": {"name": self.pick("get_weather", "f"), "description": self.r.choice(WORDS),
                                                 "parameters": {"type": "object", "properties": props, "required": list(props)[:1]}}}

    def context(self):
        c = {"messages": [self.message() for _ in range(self.r.randrange(5))], "bos_token": "<s>", "eos_token": "</s>",
             "add_generation_prompt": self.chance(0.7)}
        if self.chance(0.4):
            c["tools"] = [self.tool() for _ in range(self.r.randrange(3))] if self.chance(0.9) else None
        self.has_tools = bool(c.get("tools"))
        if self.chance(0.2):
            c["documents"] = [{"title": self.r.choice(WORDS), "text": self.r.choice(WORDS)} for _ in range(2)]
        if self.chance(0.3):
            c["enable_thinking"] = self.chance(0.5)
        for name in ("v", "w"):
            if self.chance(0.8):
                c[name] = self.value()
        c["s"] = self.r.choice(WORDS)
        c["n"] = self.r.choice([0, 1, 2, 3, -2, 7])
        c["l"] = [self.value(2) for _ in range(self.r.randrange(5))]
        c["d"] = {self.r.choice(KEYS): self.value(2) for _ in range(self.r.randrange(5))}
        c["tree"] = [{"name": "a", "children": [{"name": "b", "children": []}, {"name": "c", "children": [{"name": "d", "children": []}]}]}]
        return c

    # Expressions, by what they mostly are.

    def name(self):
        names = ["v", "w", "s", "n", "l", "d", "messages", "tools", "missing", "add_generation_prompt", "enable_thinking", "documents"]
        return self.r.choice(names + self.vars * 3)

    def quoted(self, s=None):
        s = self.r.choice(WORDS) if s is None else s
        q = self.pick("'", '"')
        s = s.replace("\\", "\\\\").replace(q, "\\" + q)
        if self.chance(0.7):
            s = s.replace("\n", "\\n")
        if self.chance(0.05):
            s += self.pick("\\t", "\\x41", "\\u00e9", "\\101", "\\q", "\\é")
        return q + s + q

    def string(self, d=0):
        k = self.r.randrange(26 if d < 4 else 5)
        if k < 3:
            return self.quoted()
        if k == 3:
            return "s"
        if k == 4:
            return self.pick("m.content", "messages[0].content", "messages[-1]['role']", "m['role']", "message.content") if self.chance(0.8) else self.name()
        if k == 5:
            return "%s + %s" % (self.string(d + 1), self.string(d + 1))
        if k == 6:
            return "%s ~ %s" % (self.any(d + 1), self.any(d + 1))
        if k == 7:
            return "(%s)" % self.string(d + 1)
        if k == 8:
            return "%s.%s()" % (self.postfix(self.string(d + 1)), self.pick("strip", "lstrip", "rstrip", "upper", "lower", "title", "capitalize", "swapcase"))
        if k == 9:
            return "%s.%s(%s)" % (self.postfix(self.string(d + 1)), self.pick("strip", "lstrip", "rstrip", "removeprefix", "removesuffix"), self.quoted())
        if k == 10:
            return "%s|%s" % (self.postfix(self.string(d + 1)), self.pick("trim", "upper", "lower", "title", "capitalize", "string", "e", "safe", "reverse", "indent", "indent(2, true)", "indent(width=3, blank=true)",
                                                                            "trim('a ')", "center(9)", "replace('a', 'bb')", "replace('a', 'b', 1)", "default('z')", "default('z', true)", "d('q', boolean=true)", "truncate(5)", "truncate(6, true, '..', 0)", "tojson"))
        if k == 11:
            return "%s|tojson%s" % (self.postfix(self.any(d + 1)), self.pick("", "", "", "(indent=2)", "(indent=4)", "(ensure_ascii=true)", "(separators=(',', ':'))", "(sort_keys=true)", "(indent=1, sort_keys=True)", "(True)", "(indent='\\t')"))
        if k == 12:
            return "%s|join(%s)" % (self.postfix(self.list(d + 1)), self.pick("''", "', '", "'\\n'", "n"))
        if k == 13:
            return "%s.join(%s)" % (self.quoted(self.pick(", ", "", "\n")), self.list(d + 1))
        if k == 14:
            return "%s[%s]" % (self.postfix(self.string(d + 1)), self.slice(d + 1))
        if k == 15:
            return "%s.split(%s)[%s]" % (self.postfix(self.string(d + 1)), self.quoted(self.pick("</think>", " ", ",", "a")), self.pick("0", "-1", "1", "n"))
        if k == 16:
            return "%s.replace(%s, %s)" % (self.postfix(self.string(d + 1)), self.quoted(), self.quoted())
        if k == 17:
            return "%s if %s else %s" % (self.string(d + 1), self.bool(d + 1), self.string(d + 1)) if self.chance(0.5) else "(%s if %s)" % (self.string(d + 1), self.bool(d + 1))
        if k == 18:
            return "%s * %s" % (self.postfix(self.string(d + 1)), self.pick("2", "n", "0", "-1", "true"))
        if k == 19:
            return self.pick("strftime_now('%d %b %Y')", "strftime_now('%Y-%m-%d %H:%M:%S')", "strftime_now(\"%B %-d, %Y\")", "strftime_now('%A %j %p %I %y %% %z|%Z')")
        if k == 20:
            return "%s(%s)" % (self.r.choice(self.macros), self.arguments(d + 1)) if self.macros else self.quoted()
        if k == 21:
            return self.pick("'%s-%s' % (s, n)", "'%d' % n", "'%s' % s", "'%r' % v", "'{} {}'.format(s, n)", "'{0}{a}'.format(s, a=v)", "'%s|%s'|format(s, l)", "'%5s' % s")
        if k == 22:
            return "%s.%s(%s)" % (self.postfix(self.string(d + 1)), self.pick("center", "ljust", "rjust", "zfill"), self.pick("3", "10", "n"))
        if k == 23:
            return "%s|map(%s)|join" % (self.postfix(self.list(d + 1)), self.pick("'upper'", "attribute='role'", "attribute='content'", "'string'", "'trim'", "attribute='type', default='q'", "'tojson'", "'default', 'z'"))
        if k == 24:
            return "%s|%s" % (self.postfix(self.list(d + 1)), self.pick("first", "last", "min", "max"))
        return "%s.%s" % (self.pick("m", "messages[0]", "d", "loop", "ns"), self.pick("role", "content", "name", "type", "x"))

    def postfix(self, e):
        """Makes an expression safe to put a filter or an attribute behind."""
        if self.chance(0.9):
            return "(%s)" % e
        return e

    def slice(self, d):
        part = lambda: self.pick("", "", "1", "-1", "2", "-2", "n", "0", "10", "none")
        s = part() + ":" + part()
        if self.chance(0.3):
            s += ":" + self.pick("1", "2", "-1", "-2", "", "n")
        return s

    def int(self, d=0):
        k = self.r.randrange(17 if d < 4 else 4)
        if k < 2:
            return str(self.r.choice([0, 1, 2, 3, 7, 10, 100]))
        if k == 2:
            return "n"
        if k == 3:
            return self.pick("loop.index", "loop.index0", "loop.length", "loop.revindex", "loop.revindex0", "loop.depth") if self.loops and self.chance(0.8) else self.name()
        if k == 4:
            return "%s|%s" % (self.postfix(self.any(d + 1)), self.pick("length", "count", "int", "int(5)", "float", "abs", "round", "round(1)", "round(2, 'floor')", "round(method='ceil')"))
        if k < 8:
            return "%s %s %s" % (self.int(d + 1), self.pick("+", "-", "*", "/", "//", "%"), self.int(d + 1))
        if k == 8:
            return "-%s" % self.int(d + 1)
        if k == 9:
            return "(%s)" % self.int(d + 1)
        if k == 10:
            return "%s ** %s" % (self.pick("2", "n", "3"), self.pick("2", "3", "n"))
        if k == 11:
            return "%s.%s(%s)" % (self.postfix(self.string(d + 1)), self.pick("find", "rfind", "count", "index"), self.quoted())
        if k == 12:
            return "%s|%s" % (self.postfix(self.list(d + 1)), self.pick("sum", "length", "first", "last", "max", "min"))
        if k == 13:
            return self.pick("1.5", "2.0", "0.1", "1e3", "1_000", "0x1f", "0b101", "3.", "12345678901234567890", "1e16", "7.0")
        if k == 14:
            return "(%s - 7) %s %s" % (self.int(d + 1), self.pick("//", "%"), self.pick("3", "-3", "2.5", "-2"))
        if k == 15:
            return "%s if %s else %s" % (self.int(d + 1), self.bool(d + 1), self.int(d + 1))
        return "+%s" % self.int(d + 1)

    TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "sequence", "iterable", "true", "false", "callable",
             "lower", "upper", "odd", "even", "divisibleby(2)", "divisibleby 3", "equalto('user')", "eq 1", "sameas(none)", "sameas true", "in ['a', 1]", "ne('x')", "gt(1)", "escaped"]

    def bool(self, d=0):
        k = self.r.randrange(17 if d < 4 else 4)
        if k == 0:
            return self.pick("true", "false", "True", "False")
        if k == 1:
            return self.name()
        if k == 2:
            return "%s is %s%s" % (self.name(), self.pick("", "", "not "), self.r.choice(self.TESTS))
        if k == 3:
            return self.pick("loop.first", "loop.last", "add_generation_prompt", "not loop.first", "loop.previtem", "loop.nextitem is defined", "loop.changed(m)", "m.role == 'user'", "m['content'] is string")
        if k == 4:
            return "not %s" % self.bool(d + 1)
        if k == 5:
            return "%s %s %s" % (self.bool(d + 1), self.pick("and", "or"), self.bool(d + 1))
        if k == 6:
            return "(%s)" % self.bool(d + 1)
        if k < 9:
            return "%s %s %s" % (self.any(d + 1), self.pick("==", "!="), self.any(d + 1))
        if k == 9:
            return "%s %s %s" % (self.int(d + 1), self.pick("<", ">", "<=", ">="), self.int(d + 1))
        if k == 10:
            return "%s %s %s" % (self.any(d + 1), self.pick("in", "not in"), self.pick(self.list(d + 1), self.string(d + 1), "d", "l", "m"))
        if k == 11:
            return "%s is %s%s" % (self.postfix(self.any(d + 1)), self.pick("", "", "not "), self.r.choice(self.TESTS))
        if k == 12:
            return "%s.%s(%s)" % (self.postfix(self.string(d + 1)), self.pick("startswith", "endswith"), self.pick(self.quoted(), "('a', '<')"))
        if k == 13:
            return "%s.%s()" % (self.postfix(self.string(d + 1)), self.pick("isalpha", "isdigit", "isspace", "isupper", "islower", "isalnum", "istitle", "isnumeric", "isdecimal"))
        if k == 14:
            return "1 %s %s %s %s" % (self.pick("<", "<=", "!="), self.int(d + 1), self.pick("<", "==", ">="), self.int(d + 1))
        if k == 15:
            return "%s %s %s" % (self.string(d + 1), self.pick("<", ">", "=="), self.string(d + 1))
        return "'%s' in m" % self.r.choice(KEYS)

    def list(self, d=0):
        k = self.r.randrange(19 if d < 4 else 4)
        if k < 2:
            return self.pick("l", "messages", "tools", "messages[1:]", "m.tool_calls", "documents", "m.content") if self.chance(0.9) else self.name()
        if k == 2:
            return "[" + ", ".join(self.any(d + 2) for _ in range(self.r.randrange(4))) + self.pick("]", "]", "]")
        if k == 3:
            return "range(%s)" % self.pick("3", "n", "1, 4", "5, 1, -2", "0", "l|length", "messages|length")
        if k == 4:
            return "%s[%s]" % (self.postfix(self.list(d + 1)), self.slice(d + 1))
        if k == 5:
            return "%s|%s" % (self.postfix(self.list(d + 1)), self.pick("list", "reverse", "reverse|list", "sort", "sort(reverse=true)", "unique", "unique|list", "sort(attribute='role')", "batch(2)|list", "slice(2)|list", "batch(2, 'x')|list"))
        if k == 6:
            return "%s|%s(%s)" % (self.postfix(self.list(d + 1)), self.pick("selectattr", "rejectattr"), self.pick("'role', 'equalto', 'user'", "'role', '==', 'system'", "'role', 'in', ['user', 'tool']", "'tool_calls'", "'type', 'eq', 'text'", "'content', 'string'", "'content', 'defined'")) + self.pick("", "|list", "|list")
        if k == 7:
            return "%s|%s%s" % (self.postfix(self.list(d + 1)), self.pick("select", "reject"), self.pick("", "('string')", "('defined')", "('eq', 1)", "('in', [1, 'a'])", "('none')")) + self.pick("", "|list")
        if k == 8:
            return "%s|map(%s)%s" % (self.postfix(self.list(d + 1)), self.pick("attribute='role'", "'string'", "attribute='content'", "attribute='function.name'", "'length'", "attribute=0", "attribute='0'"), self.pick("", "|list", "|list"))
        if k == 9:
            return "%s.%s()" % (self.dict(d + 1), self.pick("items", "keys", "values"))
        if k == 10:
            return "%s|items%s" % (self.postfix(self.dict(d + 1)), self.pick("", "|list"))
        if k == 11:
            return "%s|dictsort%s" % (self.postfix(self.dict(d + 1)), self.pick("", "(true)", "(by='value')", "(reverse=true)"))
        if k == 12:
            return "%s.%s" % (self.postfix(self.string(d + 1)), self.pick("split()", "split(',')", "splitlines()", "split('a', 1)", "rsplit(' ', 1)", "rsplit()", "split(none, 1)", "partition(',')", "rpartition(' ')", "split(' ', maxsplit=1)", "splitlines(true)"))
        if k == 13:
            return "%s + %s" % (self.list(d + 1), self.list(d + 1))
        if k == 14:
            return "(%s)" % self.list(d + 1)
        if k == 15:
            return "(%s, %s)" % (self.any(d + 2), self.any(d + 2))
        if k == 16:
            return "%s|list" % self.postfix(self.string(d + 1))
        if k == 17:
            return "%s or []" % self.list(d + 1)
        return "%s if %s else []" % (self.list(d + 1), self.bool(d + 1))

    def dict(self, d=0):
        k = self.r.randrange(9 if d < 4 else 3)
        if k < 2:
            return self.pick("d", "m", "messages[0]", "tools[0].function", "tree[0]", "v")
        if k == 2:
            return "d"
        if k == 3:
            return "{" + ", ".join("%s: %s" % (self.pick(self.quoted(self.r.choice(KEYS)), self.quoted(self.r.choice(KEYS)), "n", "true", "1.0", "none"), self.any(d + 2)) for _ in range(self.r.randrange(4))) + "}"
        if k == 4:
            return "dict(a=%s, b=%s)" % (self.any(d + 2), self.any(d + 2))
        if k == 5:
            return "dict(%s, x=1)" % self.dict(d + 1)
        if k == 6:
            return "tools[0]['function']['parameters']"
        if k == 7:
            return "(%s)" % self.dict(d + 1)
        return "%s.get(%s)" % (self.dict(d + 1), self.quoted(self.r.choice(KEYS)))

    def any(self, d=0):
        k = self.r.randrange(12)
        if k < 4:
            return self.string(d)
        if k < 6:
            return self.int(d)
        if k == 6:
            return self.bool(d)
        if k == 7:
            return self.list(d)
        if k == 8:
            return self.dict(d)
        if k == 9:
            return self.name()
        if k == 10:
            return self.pick("none", "None", "ns.x", "m.nope", "messages[99]", "d['%s']" % self.r.choice(KEYS), "d.%s" % self.pick("a", "b", "items", "role", "x"), "l[%s]" % self.pick("0", "-1", "n", "9"), "v[0]", "v.a", "s[1]", "s[-1]", "missing.x", "l.append", "l.append(1)", "d.update({})", "namespace(a=1)", "ns")
        return "%s.get(%s, %s)" % (self.dict(d + 1), self.quoted(self.r.choice(KEYS)), self.any(d + 2))

    def arguments(self, d):
        out = [self.any(d + 2) for _ in range(self.r.randrange(3))]
        if self.chance(0.3):
            out.append("%s=%s" % (self.pick("a", "b", "c"), self.any(d + 2)))
        if self.chance(0.05):
            out.append(self.pick("*l", "**d", "*[1]", "**{'b': 1}"))
        return ", ".join(out)

    # Statements.

    def tag(self, text):
        return "{%" + self.pick("", "", "", "-", "-", "+") + self.pick(" ", " ", "\n  ", "") + text + self.pick(" ", " ", "") + self.pick("", "", "", "-", "-", "+") + "%}"

    def out(self, text):
        left = self.pick("{{ ", "{{ ", "{{- ", "{{", "{{-", "{{+ ")
        if text[0] in "{-+" and left[-1] != " ":
            left += " "
        return left + text + self.pick(" }}", " }}", " -}}", "}}" if text[-1] != "}" else " }}")

    def text(self):
        return self.pick("", "\n", " ", "  \n", "\n\n", "text", " a b ", "\n    ", "漢字\n", "<|im_end|>\n", "x\r\n", "\t", "é ", "{ }", "{a}", "\n \n", "%}", "}}")

    def body(self, least=0):
        self.depth += 1
        parts = []
        for _ in range(self.r.randrange(least, 4 if self.depth < 3 else 2) + (1 if least == 0 else 0)):
            parts.append(self.text())
            parts.append(self.statement())
        parts.append(self.text())
        self.depth -= 1
        return "".join(parts)

    def scoped(self, f):
        """Runs f and forgets, mostly, what names it set: they are its block's own."""
        kept = list(self.vars)
        out = f()
        if self.chance(0.8):
            self.vars = kept
        return out

    def statement(self):
        k = self.r.randrange(30 if self.depth < 4 else 12)
        if k < 10:
            return self.out(self.any())
        if k == 10:
            return self.out(self.string())
        if k == 11:
            return "{#%s comment %s#}" % (self.pick("", "-", "+"), self.pick("", "-", "+"))
        if k < 15:
            return self.condition()
        if k < 19:
            return self.loop()
        if k < 22:
            return self.set()
        if k == 22:
            return self.macro()
        if k == 23:
            return self.rest()
        if k == 24:
            name = self.pick("x", "y", "c")
            s = self.tag("set %s%s" % (name, self.pick("", "", " | trim", " | upper | replace('A', 'b')"))) + self.scoped(self.body) + self.tag("endset")
            self.vars.append(name)
            return s
        if k == 25:
            name = "ns"
            self.vars.append("ns.x")
            return self.tag("set %s = namespace(x=%s, found=false)" % (name, self.any(2)))
        if k == 26:
            return self.tag("set ns.%s = %s" % (self.pick("x", "found", "new"), self.any(2)))
        if k == 27 and self.loops:
            return self.tag("if %s" % self.bool(2)) + self.tag(self.pick("break", "continue")) + self.tag("endif")
        if k == 28:
            return self.tag("if %s" % self.bool(2)) + self.out("raise_exception(%s)" % self.string(3)) + self.tag("endif")
        return self.out(self.any())

    def condition(self):
        s = self.tag("if %s" % self.bool()) + self.body()
        for _ in range(self.pick(0, 0, 1, 2)):
            s += self.tag("elif %s" % self.bool()) + self.body()
        if self.chance(0.5):
            s += self.tag("else") + self.body()
        return s + self.tag("endif")

    def loop(self):
        k = self.r.randrange(10)
        kept = list(self.vars)
        if k == 0:
            s = self.tag("for t in tree recursive") + self.out("t.name ~ loop.depth ~ loop.index") + self.text() + self.out("loop(t.children)") + self.tag("endfor")
            return s
        if k < 5:
            head, names = "m in " + self.pick("messages", "messages", "messages[1:]", "messages|reverse", "messages if m.role != 'system'", "messages[::-1]"), ["m"]
        elif k == 5:
            head, names = "k, v in %s" % self.pick("d.items()", "d|items", "d|dictsort", "tools[0].function.parameters.properties.items()", "[(1, 2), 'ab']", "d.items() if v is not none"), ["k", "v"]
        elif k == 6:
            head, names = "i in range(%s)" % self.pick("3", "n", "messages|length - 1, -1, -1", "2, 0, -1"), ["i"]
        elif k == 7:
            head, names = "c in %s" % self.string(2), ["c"]
        else:
            head, names = "x in %s" % self.list(1), ["x"]
            if self.chance(0.3):
                head += " if " + self.bool(2)
        self.vars += names
        self.loops += 1
        s = self.tag("for " + head) + self.body()
        self.loops -= 1
        self.vars = kept if self.chance(0.85) else self.vars
        if self.chance(0.2):
            s += self.tag("else") + self.body()
        return s + self.tag("endfor")

    def set(self):
        name = self.pick("x", "y", "c", "message", "s", "l", "messages", "content")
        if self.chance(0.1):
            s = self.tag("set x, y = %s" % self.pick("1, 2", "(s, n)", "'ab'", "[1, 2, 3]", "l[:2]", "n, ns.x"))
            self.vars += ["x", "y"]
            return s
        expression = self.pick("messages[1:]", "messages + [{'role': 'user', 'content': 'z'}]", "messages") if name == "messages" else self.any()
        s = self.tag("set %s = %s" % (name, expression))
        if name not in ("messages",):
            self.vars.append(name)
        return s

    def macro(self):
        name = "f%d" % self.r.randrange(3)
        parameters = self.pick("a", "a, b=1", "a, b='z', c=none", "", "a=s, b=a", "a, b=x")
        loops, self.loops = self.loops, 0
        kept = list(self.vars)
        self.vars += ["a", "b"]
        extra = self.pick("", "", "", "{{ varargs }}", "{{ kwargs }}", "{{ caller() if caller }}", "{{ varargs|length }}{{ kwargs|tojson }}")
        s = self.tag("macro %s(%s)" % (name, parameters)) + self.body() + extra + self.tag("endmacro")
        self.vars = kept
        self.loops = loops
        self.macros.append(name)
        return s

    def rest(self):
        k = self.r.randrange(7)
        if k == 0:
            return self.tag("with a = %s, b = %s" % (self.any(2), self.any(2))) + self.scoped(lambda: (self.vars.extend(["a", "b"]), self.body())[1]) + self.tag("endwith")
        if k == 1:
            return self.tag("filter %s" % self.pick("upper", "trim", "indent(2)", "replace('a', 'b')|upper", "indent(2)", "trim", "upper|length")) + self.scoped(self.body) + self.tag("endfilter")
        if k == 2 and self.macros:
            loops, self.loops = self.loops, 0
            s = self.tag("call%s %s(%s)" % (self.pick("", "", "(q)"), self.r.choice(self.macros), self.arguments(2))) + self.scoped(self.body) + self.tag("endcall")
            self.loops = loops
            return s
        if k == 3:
            return self.tag("raw") + "{{ not }} {% this %} " + self.text() + self.tag("endraw").replace("{%+", "{%")
        if k == 4:
            loops, self.loops = self.loops, 0
            s = self.tag("generation") + self.scoped(self.body) + self.tag("endgeneration")
            self.loops = loops
            return s
        if k == 5:
            return self.tag("set j = joiner(', ')") + self.out("j()") + self.out("j()") + self.tag("set q = cycler('a', 1)") + self.out("q.next() ~ q.current ~ q.next()")
        return self.tag("print %s, %s" % (self.any(2), self.any(2)))


CASE = {"messages": [{"role": "system", "content": "hi漢"}, {"role": "user", "content": " Who? "}, {"role": "assistant", "content": "<think>a</think>\n\nb"}],
        "bos_token": "<s>", "add_generation_prompt": True, "d": {"b": 1, "a": {"t": "x", "l": ["é", 2.0]}},
        "tree": [{"n": 1, "c": [{"n": 2, "c": []}, {"n": 3, "c": [{"n": 4}]}]}]}


def generate(seed, count, longest=3000):
    done = 0
    for i in range(count * 3):
        rng = random.Random("%d/%d" % (seed, i))
        g = Gen(rng)
        variables = g.context()
        template = g.body(1) if rng.random() < 0.8 else g.out(g.any())
        if len(template) > longest:
            continue
        result = render(template, variables)
        if result is None:
            continue
        # Most of what Jinja2 refuses says little: one in three is kept.
        if result["o"] is None and rng.random() < 0.66:
            continue
        if result["o"] is not None and len(result["o"]) > 20000:
            continue
        emit(template, variables, result)
        done += 1
        if done == count:
            return


# Conversations for templates that models were published with.

CALL = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "exact": True, "f": 1.5, "n": None}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "the city's \"name\""}, "unit": {"type": "string", "enum": ["c", "f"]},
                                     "days": {"type": ["integer", "null"]}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["city"]}}}
BARE = {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}}


def conversations():
    user = {"role": "user", "content": "What about 漢字, <b>& \"quotes\"?\n  Really?  "}
    answer = {"role": "assistant", "content": "It's  fine.\n"}
    system = {"role": "system", "content": " Be kind.\n\nAnd short. "}
    text_call = dict(CALL, function={"name": "get_weather", "arguments": json.dumps(CALL["function"]["arguments"], ensure_ascii=False)})
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": '{"t": 21}'}
    for name, messages, more in (
        ("one", [user], {}),
        ("system", [system, user], {}),
        ("turns", [system, user, answer, user, answer, user], {}),
        ("without prompt", [user, answer], {"add_generation_prompt": False}),
        ("ends with answer", [user, answer], {}),
        ("system late", [user, answer, system, user], {}),
        ("system twice", [system, system, user], {}),
        ("users", [user, user, user], {}),
        ("answer first", [answer, user], {}),
        ("none", [], {}),
        ("tools", [user], {"tools": [TOOL]}),
        ("tools, system", [system, user], {"tools": [TOOL, BARE]}),
        ("tools, turns", [system, user, answer, user], {"tools": [TOOL, BARE]}),
        ("no tools", [user], {"tools": []}),
        ("tools are null", [user], {"tools": None}),
        ("call", [system, user, called, result], {"tools": [TOOL]}),
        ("call, answered", [user, called, result, answer, user], {"tools": [TOOL, BARE]}),
        ("call as text", [user, dict(called, tool_calls=[text_call]), result], {"tools": [TOOL]}),
        ("call of null", [user, dict(called, content=None), result, answer], {"tools": [TOOL]}),
        ("call with words", [user, dict(called, content="I'll see."), result], {"tools": [TOOL]}),
        ("calls", [user, dict(called, tool_calls=[CALL, dict(CALL, id="call00002")]), result, dict(result, tool_call_id="call00002")], {"tools": [TOOL]}),
        ("call without tools", [user, called, result], {}),
        ("reasoning", [user, dict(answer, reasoning_content="Hm.\nYes."), user], {}),
        ("reasoning, call", [user, dict(called, reasoning_content="Ask."), result], {"tools": [TOOL], "enable_thinking": True}),
        ("thought in text", [system, user, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}, user], {}),
        ("thinking off", [user], {"enable_thinking": False}),
        ("thinking on", [system, user], {"enable_thinking": True, "thinking": True}),
        ("thinking off, tools", [user], {"enable_thinking": False, "thinking": False, "tools": [TOOL]}),
        ("effort", [user], {"reasoning_effort": "high", "model_identity": "You are X."}),
        ("parts", [dict(system, content=[{"type": "text", "text": "Be kind."}]), dict(user, content=[{"type": "text", "text": "a"}, {"type": "text", "text": "漢"}])], {}),
        ("image", [dict(user, content=[{"type": "image"}, {"type": "text", "text": "What?"}])], {}),
        ("documents", [user], {"documents": [{"title": "T", "text": "x y"}, {"title": "U", "text": "z"}]}),
        ("developer", [{"role": "developer", "content": "Be kind."}, user], {}),
        ("unknown role", [{"role": "critic", "content": "No."}, user], {}),
        ("empty", [dict(user, content=""), dict(answer, content=""), dict(user, content=" \n")], {}),
        ("no content", [user, {"role": "assistant"}, user], {}),
        ("many", [system] + [user, answer] * 12 + [user], {}),
    ):
        yield name, {"messages": messages, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True, **more}


def families(file):
    source = open(file, encoding="utf-8").read()
    models = [literal(m) for m in re.findall(r"\bmodel: (\"(?:[^\"\\]|\\.)*\")", source)]
    templates = [literal(m) for m in re.findall(r"\bgguf:\s*(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')", source)]
    if len(models) != len(templates) or not models:
        sys.exit("oracle: %d models and %d templates in %s" % (len(models), len(templates), file))
    seen = set()
    for model, template in zip(models, templates):
        if template in seen:
            continue
        seen.add(template)
        rng = random.Random(model)
        contexts = list(conversations()) + [("by chance", Gen(rng).context()) for _ in range(20)]
        for name, variables in contexts:
            result = render(template, variables)
            if result is not None:
                emit(template, variables, {**result, "f": model.split("/")[-1], "n": name})


def literal(s):
    """Decodes a string of JavaScript."""
    names = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": "\0"}
    def one(m):
        e = m.group(1)
        if e[0] == "u" and len(e) > 1:
            return chr(int(e[1:].strip("{}"), 16))
        if e[0] == "x" and len(e) > 1:
            return chr(int(e[1:], 16))
        return names.get(e, e)
    s = re.sub(r"\\(u\{[0-9a-fA-F]+\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", one, s[1:-1], flags=re.S)
    return s.encode("utf-16", "surrogatepass").decode("utf-16")


def emit(template, variables, result):
    for key in ("o", "e"):  # where something lies in memory is another place each time
        if result.get(key):
            result[key] = re.sub(r"\b0x[0-9a-f]{8,}", "0x0", result[key])
    print(json.dumps({"t": template, "c": variables, **result}, ensure_ascii=False, separators=(",", ":")))


def main():
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogatepass")
    if sys.argv[1] == "generate":
        generate(*map(int, sys.argv[2:]))
        return
    if sys.argv[1] == "cases":
        for line in sys.stdin:
            emit(json.loads(line), CASE, render(json.loads(line), CASE))
        return
    if sys.argv[1] == "families":
        families(sys.argv[2])
        return
    for line in sys.stdin:
        pair = json.loads(line)
        result = render(pair["t"], pair["c"])
        if result is not None:
            emit(pair["t"], pair["c"], result)


if __name__ == "__main__":
    main()
