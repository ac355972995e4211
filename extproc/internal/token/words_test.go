package token

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestLongWordsAreDoubtfulWhereverTheyStand has no count be exact that extrapolates a word, in
// Harmony's form and by a template that renders tools.
func TestLongWordsAreDoubtfulWhereverTheyStand(t *testing.T) {
	harmony := withChannels(t, Engine{Kind: "vllm", Version: "0.32.0"})
	rendered, err := withTemplate(t, chatML+"{{ tools }}").For(Engine{Kind: "vllm", Version: "0.32.0"})
	if err != nil {
		t.Fatal(err)
	}
	const tool = `{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","description":%s}}]}`
	for name, tt := range map[string]struct {
		of   *Model
		body string
	}{
		"a tool":             {harmony, tool},
		"a template's tool":  {rendered, tool},
		"a part of a list":   {harmony, `{"messages":[{"role":"user","content":[{"type":"text","text":%s}]}]}`},
		"reasoning":          {harmony, `{"messages":[{"role":"assistant","content":null,"reasoning":%s},{"role":"user","content":"x"}]}`},
		"arguments of calls": {harmony, `{"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":%s}}]}]}`},
	} {
		for word, doubt := range map[string]Doubt{strings.Repeat("a", longWord+1): ByWords, strings.Repeat("\u00e4", longWord): ByWords, "short": Certain} {
			text := strings.ReplaceAll(fmt.Sprintf("%q", word), "\u00e4", `\u00e4`) // escaped, no run of its JSON is long
			c := bodyChat(t, json.RawMessage(fmt.Sprintf(tt.body, text)))
			if _, exact := tt.of.CountChat(c); exact != (doubt == Certain) || c.Doubt != doubt {
				t.Errorf("%s, %.8s: exact %v, doubt %q, want %q", name, word, exact, c.Doubt, doubt)
			}
			if ids, _ := tt.of.AppendChat(nil, c); len(ids) > 0 && doubt == ByWords {
				t.Errorf("%s, %.8s: %d ids", name, word, len(ids))
			}
		}
	}
}

// TestHarmonyCallsNobody doubts a call of a function without a name.
func TestHarmonyCallsNobody(t *testing.T) {
	m := withChannels(t, Engine{Kind: "vllm", Version: "0.32.0"})
	c := bodyChat(t, json.RawMessage(`{"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"","arguments":"{}"}}]}]}`))
	if _, exact := m.CountChat(c); exact || c.Doubt != ByTools {
		t.Errorf("exact %v, doubt %q", exact, c.Doubt)
	}
}

// TestHarmonyGivesUpLargeTypes estimates tools that are far larger indented than they come.
func TestHarmonyGivesUpLargeTypes(t *testing.T) {
	m := withChannels(t, Engine{Kind: "vllm", Version: "0.32.0"})
	var fields strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&fields, `,"p%d":{}`, i)
	}
	const depth = 40
	for name, inner := range map[string]string{
		"properties": `{"type":"object","properties":{` + fields.String()[1:] + `}}`,
		"examples":   `{"type":"object","properties":{"p":{"examples":[` + strings.Repeat(`"a",`, 80_000) + `"a"]}}}`,
		"variants":   `{"oneOf":[` + strings.Repeat(`{},`, 80_000) + `{}]}`,
	} {
		schema := strings.Repeat(`{"type":"object","properties":{"p":`, depth) + inner + strings.Repeat(`}}`, depth)
		c := bodyChat(t, json.RawMessage(`{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":`+schema+`}}]}`))
		if _, exact := m.CountChat(c); exact || c.Doubt != ByTemplate {
			t.Errorf("%s: exact %v, doubt %q", name, exact, c.Doubt)
		}
	}
}
