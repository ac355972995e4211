package jinja

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestViewsAsKeys has views of a dictionary be looked for in another one, as Python does.
func TestViewsAsKeys(t *testing.T) {
	for source, want := range map[string]string{
		"{{ {1: 2}.values() in {} }}": "False", "{% set v = {1: 2}.values() %}{{ v in {v: 1} }}": "True",
		"{{ {1: 2}.keys() in {} }}": "", "{{ {1: 2}.items() in {} }}": "",
	} {
		got, err := renderPair(&pair{Template: source, Vars: []byte("{}")})
		if string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", source, got, err, want)
		}
	}
}

// TestRefusals has what Jinja2 may render and this package doesn't: the error says so.
func TestRefusals(t *testing.T) {
	for _, source := range []string{
		"{% include 'a' %}", "{% extends 'a' %}", "{% block a %}{% endblock %}", "{% import 'a' as b %}", "{% from 'a' import b %}",
		"{% autoescape true %}{% endautoescape %}", "{{ self }}", "{{ é }}", `{{ "\N{DASH}" }}`, `{{ "\ud800" }}`, "{{ 1e999 }}",
		"{{ lipsum() }}", "{{ 'a'|wordwrap }}", "{{ {}.__class__ }}", "{{ range }}", "{{ [1]|map('string') }}", "{{ 2 ** -1 }}", "{{ 10 ** 1000 }}",
		"{{ 1e308 * 10 }}", "{{ 'ß'.upper() }}", "{{ 'Σ'.lower() }}", "{{ '²'.isdigit() }}", "{{ '%5.1f' % 2 }}", "{{ '{!r}'.format(1) }}",
		"{{ strftime_now('%U') }}", "{{ [0.1]|sum }}", "{{ " + strings.Repeat("(", 80) + "1" + strings.Repeat(")", 80) + " }}",
	} {
		_, err := renderPair(&pair{Template: source, Vars: []byte("{}")})
		if !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", source, err)
		}
	}
}

// TestRaisedIsKnown has the template's own refusal apart from all others.
func TestRaisedIsKnown(t *testing.T) {
	_, err := renderPair(&pair{Template: "{{ raise_exception('roles must alternate') }}", Vars: []byte("{}")})
	if !errors.Is(err, ErrRaised) || !strings.Contains(err.Error(), "roles must alternate") {
		t.Errorf("raise_exception: %v", err)
	}
}

// TestHostileTemplatesEnd has templates that would take all time or memory.
func TestHostileTemplatesEnd(t *testing.T) {
	for _, source := range []string{
		"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
		"{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
		"{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
		"{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
		"{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
		"{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
		"{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}",
		"{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}",
		"{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s.replace('a', 'aa') %}{% endfor %}",
		"{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s|replace('', 'aa') %}{% endfor %}",
		"{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s.join([ns.s, ns.s]) %}{% endfor %}",
		"{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
		"{{ 'a' * 999999999999 }}", "{{ [1] * 999999999 }}", "{{ 'a'.center(999999999999) }}", "{{ 'a'|indent(999999999) }}", "{{ [1]|batch(999999999, 1)|list }}",
		"{{ 9 ** 9 ** 9 }}", "{% for t in l recursive %}{{ loop(l) }}{% endfor %}", "{{ [1]|tojson(indent=999999999) }}",
		"{% set x = range(99999)|list %}{% for i in x %}{% if x == x|list %}{% endif %}{% endfor %}",
		"{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{{ s|length }}{{ s.find('b') }}{{ s[::-1][0] }}{% endfor %}",
		"{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{% if 'b' in s %}{% endif %}{% endfor %}",
		"{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{% if s == s ~ '' %}{% endif %}{{ s[9999998] }}{% endfor %}",
		strings.Repeat("{% if true %}", 5000), "{{ " + strings.Repeat("not ", 100000) + "1 }}", "{{ " + strings.Repeat("-", 100000) + "1 }}",
		"{{ " + strings.Repeat("[", 100000), "{{ 1" + strings.Repeat(".a", 100000) + " }}", "{{ 1" + strings.Repeat(" + 1", 200000) + " }}", "{{ a" + strings.Repeat("|upper", 100000) + " }}",
	} {
		began := time.Now()
		out, err := renderPair(&pair{Template: source, Vars: []byte(`{"l": [1, 2]}`)})
		if took := time.Since(began); took > time.Minute {
			t.Errorf("%.100s took %v", source, took)
		}
		if err == nil && len(out) > maxSpent {
			t.Errorf("%.100s wrote %d bytes", source, len(out))
		}
	}
}

func FuzzTemplates(f *testing.F) {
	for _, p := range readPairs(f, "testdata/pairs.jsonl") {
		if len(p.Template) < 400 {
			f.Add(p.Template, string(p.Vars))
		}
	}
	f.Fuzz(func(t *testing.T, source, variables string) {
		tmpl, err := Parse(source)
		if err != nil {
			bug(t, err)
			return
		}
		v, err := FromJSON([]byte(variables))
		if err != nil {
			return
		}
		d, ok := v.(*Dict)
		if !ok {
			d = NewDict(0)
		}
		first, err := tmpl.Render(d, Options{Now: now})
		bug(t, err)
		second, again := tmpl.Render(d, Options{Now: now})
		if string(first) != string(second) || (err == nil) != (again == nil) {
			t.Errorf("%q, %v, then %q, %v", first, err, second, again)
		}
	})
}

// bug fails for errors that were panics of our own.
func bug(t *testing.T, err error) {
	t.Helper()
	if err != nil && (strings.Contains(err.Error(), "runtime error") || strings.Contains(err.Error(), "interface conversion") || strings.Contains(err.Error(), "hash of unhashable")) {
		t.Errorf("a bug: %v", err)
	}
}

// chat100 is a conversation of 100 messages, in a template with what those of models do.
const chat100 = `{%- set ns = namespace(last=0) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}` +
	`{%- for m in messages -%}{%- set content = m.content if m.content is string else '' -%}{%- if m.role == 'assistant' and '</think>' in content -%}{%- set content = content.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}` +
	`{{- '<|im_start|>' + m.role + '\n' + content|trim -}}{%- if m.tool_calls -%}{%- for c in m.tool_calls -%}{{- '<tool_call>' ~ (c.function|tojson) ~ '</tool_call>' -}}{%- endfor -%}{%- endif -%}{{- '<|im_end|>\n' -}}{%- endfor -%}`

func BenchmarkRender(b *testing.B) {
	d := NewDict(1)
	var messages []any
	size := 0
	for i := range 100 {
		m := NewDict(2)
		m.Set("role", []string{"user", "assistant"}[i%2])
		text := strings.Repeat(fmt.Sprintf("message %d of the conversation. ", i), 32)
		m.Set("content", text)
		size += len(text)
		messages = append(messages, m)
	}
	d.Set("messages", NewList(messages...))
	t, err := Parse(chat100)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := t.Render(d, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
