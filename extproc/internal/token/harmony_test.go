package token

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"millrace.dev/millrace/extproc/internal/harmony"
)

// gptOSS is a template as far as it shows that conversations are in Harmony's form.
const gptOSS = "{#- <|start|>{role}<|channel|> -#}{% for m in messages %}{{ m.content }}{% endfor %}"

// withChannels is a model with the tokens of Harmony's form, for an engine.
func withChannels(t testing.TB, e Engine) *Model {
	t.Helper()
	m := smol(t)
	all := slices.Clone(m.specials.all)
	for i, text := range harmony.Controls {
		all = append(all, special{text: []byte(text), id: uint32(1e6 + i), control: true})
	}
	of := &Model{bpe: m.bpe, specials: newSpecials(all), memo: newMemo(), ids: new(idMemo)}
	of.setTemplate(&source{template: gptOSS})
	out, err := of.For(e)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestHarmonyIsAsVLLMMakesIt holds prompts in Harmony's form to what vLLM 0.32's own code made
// of the same requests: see testdata/harmony.py.
func TestHarmonyIsAsVLLMMakesIt(t *testing.T) {
	m := withChannels(t, Engine{Kind: "vllm", Version: "0.32.0"})
	exact, refused, doubts := 0, 0, map[Doubt]int{}
	for i, r := range renderedBy(t, "testdata/harmony.jsonl") {
		c := bodyChat(t, r.Body)
		pieces, doubt, err := m.inHarmony(c, "2026-11-30")
		if r.Out == nil {
			refused++
			if err == nil && doubt == Certain {
				t.Errorf("%d: vLLM refuses %.300s", i, r.Body)
			}
			continue
		}
		if err != nil {
			t.Errorf("%d: %v, of %.300s", i, err, r.Body)
			continue
		}
		if doubt != Certain {
			doubts[doubt]++
			continue
		}
		var text strings.Builder
		for _, p := range pieces {
			text.WriteString(p.Text)
		}
		if text.String() != *r.Out {
			t.Errorf("%d: %s\ngot  %q\nwant %q", i, r.Body, text.String(), *r.Out)
			continue
		}
		n, sure := m.CountChat(c)
		ids, same := m.AppendChat(nil, c)
		if !sure || same || len(ids) != n { // another day is as many tokens, but others
			t.Errorf("%d: %d tokens (%v), %d ids (%v)", i, n, sure, len(ids), same)
		}
		exact++
	}
	if exact < 300 {
		t.Errorf("only %d conversations are compared", exact)
	}
	t.Logf("%d the same, %d refused by both, estimates %v", exact, refused, doubts)
}

// bodyChat is the chat of a request's body.
func bodyChat(t *testing.T, raw json.RawMessage) *Chat {
	t.Helper()
	var body struct {
		Messages []json.RawMessage `json:"messages"`
		Tools    json.RawMessage   `json:"tools"`
	}
	if err := json.Unmarshal(raw, &body); err != nil {
		t.Fatal(err)
	}
	c := &Chat{Raw: raw, Tools: body.Tools}
	for _, m := range body.Messages {
		var of struct {
			Role string `json:"role"`
		}
		if err := json.Unmarshal(m, &of); err != nil {
			t.Fatal(err)
		}
		c.Messages = append(c.Messages, Message{Role: of.Role, Raw: m})
	}
	return c
}

// TestHarmonyOfOtherEngines is an estimate: of releases that are not known, and where the
// tokenizer has no tokens for it.
func TestHarmonyOfOtherEngines(t *testing.T) {
	c := &Chat{Messages: []Message{{Role: "user", Content: []byte("hi <|end|>")}}}
	for _, e := range []Engine{{Kind: "vllm", Version: "0.31.0"}, {Kind: "vllm"}, {Kind: "tgi"}, {}} {
		if n, exact := withChannels(t, e).CountChat(c); exact || c.Doubt != ByHarmony || n < 40 {
			t.Errorf("%+v: %d tokens, exact %v, doubt %q", e, n, exact, c.Doubt)
		}
	}
	if _, exact := hfWith(t, gptOSS, Engine{Kind: "vllm", Version: "0.32.0"}).CountChat(c); exact || c.Doubt != ByHarmony {
		t.Errorf("without its tokens: exact %v, doubt %q", exact, c.Doubt)
	}
	known := withChannels(t, Engine{Kind: "vllm", Version: "0.32.0"})
	if n, exact := known.CountChat(c); !exact || n < 40 {
		t.Errorf("vLLM 0.32: %d tokens, doubt %q", n, c.Doubt)
	}
	// What the client writes is no control token.
	ids, _ := known.AppendChat(nil, c)
	ends := 0
	for _, id := range ids {
		if id == 1e6+3 {
			ends++
		}
	}
	if ends != 2 {
		t.Errorf("%d messages end, want the system's and the user's", ends)
	}
}
