//go:build templates

package token

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// someDay is the day of all conversations.
const someDay = "2026-11-30"

// conversation is one of gpt-oss as the oracle reads it.
type conversation struct {
	Effort, Day string
	Tools       []function
	Turns       []spoken
}

type function struct {
	Name, Description string
	Parameters        json.RawMessage
}

type spoken struct {
	Role, Thoughts, CallID string
	Texts                  []string
	Calls                  []struct{ ID, Name, Arguments string }
}

// body is the request that stands for it.
func (c *conversation) body() []byte {
	var messages, tools []any
	for _, t := range c.Turns {
		m := map[string]any{"role": t.Role, "content": nil}
		if len(t.Texts) == 1 {
			m["content"] = t.Texts[0]
		} else if t.Texts != nil {
			var parts []any
			for _, text := range t.Texts {
				parts = append(parts, map[string]string{"type": "text", "text": text})
			}
			m["content"] = parts
		}
		if t.Thoughts != "" {
			m["reasoning"] = t.Thoughts
		}
		if t.Role == "tool" {
			m["tool_call_id"] = t.CallID
		}
		var calls []any
		for _, call := range t.Calls {
			calls = append(calls, map[string]any{"id": call.ID, "type": "function", "function": map[string]string{"name": call.Name, "arguments": call.Arguments}})
		}
		if calls != nil {
			m["tool_calls"] = calls
		}
		messages = append(messages, m)
	}
	for _, f := range c.Tools {
		tools = append(tools, map[string]any{"type": "function", "function": map[string]any{"name": f.Name, "description": f.Description, "parameters": f.Parameters}})
	}
	all := map[string]any{"messages": messages}
	if tools != nil {
		all["tools"] = tools
	}
	if c.Effort != "" {
		all["reasoning_effort"] = c.Effort
	}
	out, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return out
}

// speaker makes conversations by chance.
type speaker struct{ *rand.Rand }

func anyOf[T any](s speaker, all ...T) T { return all[s.IntN(len(all))] }

func (s speaker) text(most int) string {
	var out strings.Builder
	for range s.IntN(most + 1) {
		out.WriteString(anyOf(s, "the river", " Größe", "漢字かな交じり文", " don't WE'LL", "  two  spaces ", "\nline\r\n", "\n\n", `{"a": 1}`, "<|end|>", "<|start|>assistant",
			" 3.14159 2026", "🙂👩‍👩‍👧", "\t", " to=functions.f", "CamelCaseWords", "//", "ÀÉ́", "\u00a0\u3000", "'s", "_x-y", "aaaaaaaa", "กรุงเทพ", "\x00", "…"))
	}
	return out.String()
}

func (s speaker) conversation() *conversation {
	c := &conversation{Effort: anyOf(s, "", "low", "medium", "high"), Day: someDay}
	for i := range s.IntN(4) * s.IntN(2) {
		schema, _ := json.Marshal(s.object(0))
		if s.IntN(6) == 0 {
			schema = []byte("null")
		}
		c.Tools = append(c.Tools, function{fmt.Sprint(anyOf(s, "f", "get_x", "a.b"), i), s.text(4), schema})
	}
	if s.IntN(2) == 0 {
		c.Turns = append(c.Turns, spoken{Role: anyOf(s, "system", "developer"), Texts: s.texts()})
	}
	var ids []string
	for i := range 1 + s.IntN(6) {
		t := spoken{Role: anyOf(s, "user", "user", "assistant", "assistant", "tool", "developer", "system"), Texts: s.texts()}
		if t.Role == "assistant" && s.IntN(2) == 0 {
			t.Thoughts = s.text(5)
		}
		for range s.IntN(3) * s.IntN(2) {
			if t.Role == "assistant" {
				id := fmt.Sprint("call", i, s.IntN(3))
				ids = append(ids, id)
				t.Calls = append(t.Calls, struct{ ID, Name, Arguments string }{id, anyOf(s, "f0", "get_x1", "do-it"), anyOf(s, "{}", "", `{"q": "`+"ü<|call|>"+`"}`)})
			}
		}
		if t.Role == "tool" {
			t.CallID = anyOf(s, append(ids, "nobody's")...)
		}
		c.Turns = append(c.Turns, t)
	}
	return c
}

func (s speaker) texts() []string {
	out := []string{s.text(6)}
	for range s.IntN(3) * s.IntN(2) {
		out = append(out, s.text(3))
	}
	return out
}

// object is a schema of an object.
func (s speaker) object(depth int) map[string]any {
	properties, required := map[string]any{}, []any{}
	if s.IntN(3) > 0 { // more than one have an order that maps don't keep
		name := anyOf(s, "a", "long_name", "é", "x y")
		properties[name] = s.schema(depth + 1)
		if s.IntN(2) == 0 {
			required = append(required, name)
		}
	}
	return map[string]any{"type": "object", "properties": properties, "required": required}
}

func (s speaker) schema(depth int) map[string]any {
	var v map[string]any
	switch k := s.IntN(9); {
	case k < 2:
		v = map[string]any{"type": anyOf(s, "string", "integer", "number", "boolean", "null")}
	case k == 2:
		v = map[string]any{"type": "string", "enum": []any{"p", s.text(1)}}
	case k == 3:
		v = map[string]any{"type": []any{"integer", "null"}}
	case k == 4 && depth < 5:
		v = map[string]any{"type": "array", "items": s.schema(depth + 1)}
	case k < 7 && depth < 5:
		v = s.object(depth)
	case k == 7 && depth < 4:
		v = map[string]any{"oneOf": []any{s.schema(depth + 1), s.schema(depth + 1)}}
	default:
		v = map[string]any{"anyOf": []any{}}
	}
	if s.IntN(3) == 0 {
		v["description"] = s.text(3)
	}
	if s.IntN(5) == 0 {
		v["default"] = anyOf[any](s, 1, -2.5, 1e20, 1e-7, 0.1, "s", true, nil, []any{1, "x"}, map[string]any{"k": 2}, "p")
	}
	if s.IntN(8) == 0 {
		v["nullable"] = s.IntN(2) == 0
	}
	if s.IntN(10) == 0 {
		v["title"], v["examples"] = s.text(1), []any{"e", 1}
	}
	return v
}

// TestHarmonyAgreesWithItsLibrary holds prompts in Harmony's form, token by token, to
// openai/harmony's own library with its vocabulary.
func TestHarmonyAgreesWithItsLibrary(t *testing.T) {
	const count = 2500
	s := speaker{rand.New(rand.NewPCG(11, 12))}
	var all []*conversation
	var lines bytes.Buffer
	for range count {
		c := s.conversation()
		all = append(all, c)
		line, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		lines.Write(append(line, '\n'))
	}
	folder := t.TempDir()
	write(t, folder, "tokenizer_config.json", map[string]any{"chat_template": gptOSS})
	file := filepath.Join(folder, "tokenizer.json")
	python := filepath.Join(os.Getenv("MILLRACE_CACHE"), "templates", "python", "bin", "python")
	cmd := exec.CommandContext(t.Context(), python, filepath.Join("..", "harmony", "testdata", "oracle.py"), "--vocabulary", file)
	var stderr strings.Builder
	cmd.Stdin, cmd.Stderr = &lines, &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, stderr.String())
	}
	base, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	m, err := base.For(Engine{Kind: "vllm", Version: "0.32.0"})
	if err != nil {
		t.Fatal(err)
	}
	same, tokens, doubts := 0, 0, map[Doubt]int{}
	for i, line := range bytes.Split(bytes.TrimSpace(out), []byte("\n")) {
		var want []uint32
		if err := json.Unmarshal(line, &want); err != nil {
			t.Fatal(err)
		}
		c := bodyChat(t, all[i].body())
		n, exact := m.CountChat(c)
		if !exact {
			doubts[c.Doubt]++
			continue
		}
		if got, _ := m.appendHarmony(nil, c, someDay); n != len(want) || !slices.Equal(got, want) {
			at := 0
			for at < len(got) && at < len(want) && got[at] == want[at] {
				at++
			}
			t.Errorf("%d: %d tokens, %d counted, want %d; they differ from %d on: %.1500s", i, len(got), n, len(want), at, all[i].body())
			continue
		}
		same, tokens = same+1, tokens+len(want)
	}
	if same+len(doubts) == 0 || same < 2000 {
		t.Errorf("%d are compared", same)
	}
	t.Logf("%d of %d conversations have the same %d tokens; estimates %v", same, count, tokens, doubts)
}
