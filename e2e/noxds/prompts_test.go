//go:build vllm

package noxds

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
)

// sample is a request of the prompts that are compared, and what a real vLLM makes of it. A
// line of the file that the unit tests of extproc's tokenizers read, too.
type sample struct {
	Name string `json:"name"`
	Path string `json:"path"`
	// Template is whose prompts these are; empty: that of the server.
	Template string          `json:"template,omitempty"`
	Body     json.RawMessage `json:"body"`
	// Count is the tokens of the prompt by its usage.
	Count int `json:"count"`
	// Tokens are those of each prompt, where the API says them.
	Tokens [][]uint32 `json:"tokens,omitempty"`
}

// object is a JSON object whose fields keep their order: names and values in turn.
type object []any

func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i := 0; i < len(o); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		value, err := marshal(o[i+1])
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%q:%s", o[i], value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// marshal writes JSON as clients do: without escapes for HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}

// samplesOf is how many prompts each maker makes.
const samplesOf = 24

// makers are the kinds of prompts. Each makes what follows "model" in a body.
var makers = []struct {
	name, path string
	make       func(*generator) object
}{
	{"tools", rigChat, (*generator).tools},
	{"calls", rigChat, (*generator).calls},
	{"reasoning", rigChat, (*generator).reasoning},
	{"parts", rigChat, (*generator).parts},
	{"odd places", rigChat, (*generator).oddPlaces},
	{"ends", rigChat, (*generator).ends},
	{"arguments", rigChat, (*generator).arguments},
	{"documents", rigChat, (*generator).documents},
	{"truncated chats", rigChat, (*generator).truncatedChat},
	{"special tokens", rigChat, (*generator).specialChat},
	{"salts and adapters", rigChat, (*generator).apart},
	{"templates", rigChat, (*generator).anyTemplate},
	{"completions", "/v1/completions", (*generator).completion},
	{"lists", "/v1/completions", (*generator).lists},
	{"truncated completions", "/v1/completions", (*generator).truncated},
	{"messages", "/v1/messages", (*generator).messages},
	{"responses", "/v1/responses", (*generator).responses},
}

const rigChat = "/v1/chat/completions"

// templates are those of requests, in turn; "" is the server's.
var templates = []string{"plain", "parts", "strict"}

// makeSamples makes all prompts, the same ones every time.
func makeSamples() (all []sample) {
	for k, m := range makers {
		g := &generator{rand.New(rand.NewPCG(11, uint64(k)))}
		for i := range samplesOf {
			s := sample{Name: fmt.Sprintf("%s %d", m.name, i), Path: m.path}
			if m.name == "templates" {
				s.Template = templates[i%len(templates)]
			}
			body, err := marshal(append(object{"model", "smollm2"}, m.make(g)...))
			if err != nil {
				panic(err) // our own values
			}
			if m.name == "salts and adapters" && i%2 == 1 {
				body = bytes.Replace(body, []byte(`"smollm2"`), fmt.Appendf(nil, "%q", adapters[i%len(adapters)]), 1)
			}
			s.Body = body
			all = append(all, s)
		}
	}
	return all
}

// generator makes parts of prompts.
type generator struct{ *rand.Rand }

// of picks one.
func of[T any](g *generator, all ...T) T { return all[g.IntN(len(all))] }

// texts are pieces of what people write.
var texts = []string{
	"The mill stands by the river.", "Wie spät ist es?", "数えてください、一、二、三。", "Сколько стоит хлеб?", "  two blanks  ", "\n\nlines\n", "\ttab",
	"def f(x):\n    return x ** 2", "<|im_start|>system\nno<|im_end|>", "<|im_end|>", "<|endoftext|>", "🙂🙃 👩‍👩‍👧", "é e\u0301 ﬁ", "1234567890", "a\r\nb", "{\"k\": [1, 2.50, null]}",
	"don't, we'll, I'm", "https://example.com/?q=a%20b&c=d", "<b>&amp;</b>", "…", "[INST] x [/INST]", "</think>", "it's 3.14159", "\u00a0nbsp", "x",
}

// text is some of them, at least so many.
func (g *generator) text(least int) string {
	var all []string
	for range least + g.IntN(3) {
		all = append(all, of(g, texts...))
	}
	return strings.Join(all, of(g, " ", "\n", ""))
}

// long is a text of at least two blocks of the cache.
func (g *generator) long() string {
	return fmt.Sprintf("Story %d. ", g.IntN(1e6)) + strings.Repeat(g.text(2)+" The wheel turns and turns again, as it did. ", 4)
}

func say(role string, content any) object { return object{"role", role, "content", content} }

func part(text string) object { return object{"type", "text", "text", text} }

// turns are some messages that end with the user's.
func (g *generator) turns() []any {
	var all []any
	if g.IntN(2) == 0 {
		all = append(all, say("system", g.text(1)))
	}
	for range g.IntN(3) {
		all = append(all, say("user", g.text(1)), say("assistant", g.text(1)))
	}
	return append(all, say("user", g.text(1)))
}

// tool is the description of a function.
func (g *generator) tool(name string) object {
	city := object{"type", "string", "description", of(g, "A city.", "Eine Stadt, z. B. „Köln“", "<city> & 'state'", "")}
	options := []object{
		{"type", "object", "properties", object{"city", city}, "required", []string{"city"}},
		{"properties", object{"zone", object{"enum", []any{"a", 1, 2.5, nil, true}}, "city", city}, "type", "object", "additionalProperties", false},
		{"type", "object", "properties", object{"at", object{"type", "array", "items", object{"type", "number", "minimum", -0.5, "default", 1e-7}}}},
		{"type", "object", "properties", object{}},
	}
	f := object{"name", name}
	if g.IntN(4) > 0 {
		f = append(f, "description", g.text(1))
	}
	if g.IntN(6) > 0 {
		f = append(f, "parameters", of(g, options...))
	}
	if g.IntN(4) == 0 {
		f = append(f, "strict", of(g, true, false))
	}
	if g.IntN(2) == 0 {
		return object{"function", f, "type", "function"}
	}
	return object{"type", "function", "function", f}
}

func (g *generator) toolList() (all []object) {
	for i := range 1 + g.IntN(3) {
		all = append(all, g.tool(fmt.Sprintf("tool_%d", i)))
	}
	return all
}

func (g *generator) tools() object {
	o := object{"messages", g.turns(), "tools", g.toolList()}
	if g.IntN(2) == 0 {
		o = append(o, "tool_choice", of[any](g, "auto", "none"))
	}
	return o
}

// call is a call of a function, with arguments as a text.
func (g *generator) call(id string) object {
	arguments := of(g, `{"city":"Köln","day":3}`, `{"b": 1.50, "a": [1, {"x": null}]}`, `{}`, ``, `{"q":"<a> & 'b'"}`, `{"n":12345678901234567890, "f":1e3}`, `[1]`, `not json`)
	call := object{"id", id, "type", "function", "function", object{"name", "tool_0", "arguments", arguments}}
	if g.IntN(3) == 0 {
		call = object{"function", object{"arguments", arguments, "name", "tool_0"}, "type", "function", "id", id}
	}
	return call
}

// calls are conversations in which functions were called.
func (g *generator) calls() object {
	calls := []object{g.call("call_1")}
	if g.IntN(2) == 0 {
		calls = append(calls, g.call("call_2"))
	}
	asks := object{"role", "assistant", "tool_calls", calls}
	if content := of[any](g, "", "Let me see.", nil, 0); content != 0 {
		asks = append(asks, "content", content)
	}
	all := append(g.turns(), asks)
	for i := range calls {
		result := of[any](g, "21 °C", `{"celsius": 21}`, "", []object{part("one"), part("two")})
		all = append(all, object{"role", "tool", "tool_call_id", fmt.Sprintf("call_%d", i+1), "content", result})
	}
	if g.IntN(2) == 0 {
		all = append(all, say("assistant", "It is warm."), say("user", g.text(1)))
	}
	o := object{"messages", all}
	if g.IntN(2) == 0 {
		o = append(o, "tools", g.toolList())
	}
	return o
}

// reasoning are conversations with thoughts, by either name.
func (g *generator) reasoning() object {
	thinks := say("assistant", of[any](g, "So it is.", "", nil))
	for _, name := range of(g, []string{"reasoning"}, []string{"reasoning_content"}, []string{"reasoning_content", "reasoning"}) {
		thinks = append(thinks, name, of(g, "\nFirst, the wheel.\n", "Hm.", "", name+": and then?"))
	}
	all := append(g.turns(), thinks)
	if g.IntN(3) == 0 {
		all = append(all, object{"role", "tool", "tool_call_id", "call_1", "content", "ok"})
	} else if g.IntN(2) == 0 {
		all = append(all, say("user", g.text(1)))
	}
	return object{"messages", all}
}

// parts are contents that are lists.
func (g *generator) parts() object {
	all := g.turns()
	for i := range all {
		m := all[i].(object)
		switch g.IntN(4) {
		case 0:
			m[3] = []any{part(m[3].(string))}
		case 1:
			m[3] = []any{part(m[3].(string)), part(g.text(1))}
		case 2:
			m[3] = of(g, []any{part(""), part("x")}, []any{part("x"), part(""), part("y")}, []any{}, []any{part("")}, []any{object{"text", "turned", "type", "text"}})
		}
	}
	return object{"messages", all}
}

// oddPlaces are roles where few have them, and fields that few send.
func (g *generator) oddPlaces() object {
	all := g.turns()
	for range 1 + g.IntN(2) {
		extra := of[any](g,
			say("system", "Late."), say("system", ""), say("developer", "From the developer."), say("assistant", "Twice."),
			object{"role", "user", "name", "anna", "content", "Named."}, object{"role", "assistant", "content", nil}, say("user", ""),
			object{"role", "user", "content", "Null.", "name", nil}, say("tool", "no call"), object{"content", "turned", "role", "user"},
		)
		at := g.IntN(len(all) + 1)
		all = append(all[:at:at], append([]any{extra}, all[at:]...)...)
	}
	return object{"messages", all}
}

// ends are prompts that end without the turn of the assistant, or amid it.
func (g *generator) ends() object {
	all := append(g.turns(), say("assistant", of(g, "The answer is", "The answer is ", "x", "1, 2,\n", "The answer is\n\n")))
	o := object{"messages", all, "add_generation_prompt", false}
	if g.IntN(3) > 0 {
		o = append(o, "continue_final_message", true)
	} else if g.IntN(2) == 0 {
		o = object{"messages", all}
	}
	return o
}

// arguments are those of the template.
func (g *generator) arguments() object {
	o := object{"messages", g.turns()}
	if n := g.IntN(5); n > 0 {
		o = append(o, "chat_template_kwargs", of(g,
			object{"enable_thinking", false}, object{"enable_thinking", true}, object{"unknown", 1}, object{"enable_thinking", nil},
			object{"reasoning_effort", "high"}, object{"add_generation_prompt", false}, object{"documents", []object{{"title", "a", "text", "b"}}}, object{}))
	}
	if g.IntN(2) == 0 {
		o = append(o, "reasoning_effort", of(g, "none", "low", "medium", "high"))
	}
	return o
}

// documents are passages beside the conversation.
func (g *generator) documents() object {
	var all []object
	for range g.IntN(3) {
		all = append(all, object{"title", g.text(1), "text", g.text(1)})
	}
	if all == nil {
		all = []object{}
	}
	return object{"documents", all, "messages", g.turns()}
}

// cut are fields that cut a prompt.
func (g *generator) cut() object {
	o := object{"truncate_prompt_tokens", of(g, -1, 1, 2, 5, 17, 33, 64, 65, 1000, 4000)}
	if side := of(g, "left", "right", ""); side != "" {
		o = append(o, "truncation_side", side)
	}
	return o
}

func (g *generator) truncatedChat() object {
	return append(object{"messages", []any{say("user", g.long())}}, g.cut()...)
}

// specialChat are chats with and without what the tokenizer itself puts around texts.
func (g *generator) specialChat() object {
	return object{"add_special_tokens", of(g, true, false), "messages", g.turns()}
}

// apart are prompts whose caches are kept apart, or not.
func (g *generator) apart() object {
	o := object{"messages", []any{say("user", g.long())}}
	if g.IntN(3) > 0 {
		o = append(o, "cache_salt", of(g, "salt of a tenant", "s", "Größe \"é\"", strings.Repeat("long", 20)))
	}
	return o
}

// anyTemplate makes conversations that any template takes.
func (g *generator) anyTemplate() object {
	all := []any{say("user", g.text(1))}
	for range g.IntN(3) {
		all = append(all, say("assistant", g.text(1)), say("user", g.text(1)))
	}
	if g.IntN(2) == 0 {
		all = append([]any{say("system", g.text(1))}, all...)
	}
	return object{"messages", all}
}

// ids is a list of tokens.
func (g *generator) ids() []int {
	all := make([]int, 1+g.IntN(90))
	for i := range all {
		all[i] = g.IntN(49152)
	}
	return all
}

func (g *generator) completion() object {
	o := object{"prompt", of[any](g, g.text(1), g.text(3), g.long(), g.ids())}
	if g.IntN(2) == 0 {
		o = append(o, "add_special_tokens", of(g, true, false))
	}
	return o
}

// lists are several prompts in one request.
func (g *generator) lists() object {
	o := object{"prompt", of[any](g, []string{g.text(1)}, []string{g.text(1), g.text(2), g.long()}, [][]int{g.ids()}, [][]int{g.ids(), g.ids()})}
	if g.IntN(3) == 0 {
		o = append(o, "add_special_tokens", of(g, true, false))
	}
	return o
}

func (g *generator) truncated() object {
	o := append(object{"prompt", of[any](g, g.text(1), g.long(), g.ids(), []string{g.long(), g.text(1)}, [][]int{g.ids(), g.ids()})}, g.cut()...)
	if g.IntN(3) == 0 {
		o = append(o, "add_special_tokens", of(g, true, false))
	}
	return o
}

// messages are those of Anthropic's API.
func (g *generator) messages() object {
	all := []any{say("user", of[any](g, g.text(1), []object{part(g.text(1)), part(g.text(1))}))}
	if g.IntN(2) == 0 {
		all = append(all, say("assistant", []object{part("Let me see."), {"type", "tool_use", "id", "toolu_1", "name", "tool_0", "input", object{"city", "Köln"}}}),
			say("user", []object{{"type", "tool_result", "tool_use_id", "toolu_1", "content", of[any](g, "21 °C", []object{part("21"), part("°C")})}}))
	}
	o := object{"messages", all}
	if g.IntN(2) == 0 {
		o = append(o, "system", of[any](g, g.text(1), []object{part(g.text(1)), part(g.text(1))}))
	}
	if g.IntN(3) == 0 {
		o = append(o, "tools", []object{{"name", "tool_0", "description", g.text(1), "input_schema", object{"type", "object", "properties", object{"city", object{"type", "string"}}}}})
	}
	return o
}

// responses are those of OpenAI's newer API.
func (g *generator) responses() object {
	o := object{"input", of[any](g, g.text(1), []object{say("user", g.text(1))}, []object{
		say("user", []object{{"type", "input_text", "text", g.text(1)}}), say("assistant", "Yes."), say("user", g.text(1))})}
	if g.IntN(2) == 0 {
		o = append(o, "instructions", g.text(1))
	}
	return o
}
