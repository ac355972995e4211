//go:build vllm

package noxds

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

var update = flag.Bool("update", false, "write what the engines make of the prompts to the file that the unit tests read")

// vllmData is a file of the prompts' templates, or their own.
func vllmData(name string) string {
	return filepath.Join(rig.Root(), "extproc", "internal", "token", "testdata", "vllm", name)
}

// fewest is how many prompts must be compared.
const fewest = 300

// answered is what an engine says of a prompt.
type answered struct {
	status int
	header http.Header
	count  int
	cached int
	tokens [][]uint32
	text   string
}

// request sends a sample's body for an answer of one token.
func (s *sample) request(t *testing.T, port int, header ...string) answered {
	t.Helper()
	limit := `"max_tokens":1`
	if s.Path == "/v1/responses" {
		limit = `"max_output_tokens":1`
	}
	body := fmt.Appendf(nil, `{%s,"temperature":0,"return_token_ids":true,%s`, limit, s.Body[1:])
	if s.Template != "" {
		text, err := os.ReadFile(vllmData(s.Template + ".jinja"))
		if err != nil {
			t.Fatal(err)
		}
		quoted, _ := marshal(string(text))
		body = fmt.Appendf(nil, `{"chat_template":%s,%s`, quoted, body[1:])
	}
	a, err := rig.Post(t.Context(), "http://"+rig.Address(port)+s.Path, json.RawMessage(body), header...)
	if err != nil {
		t.Fatal(err)
	}
	got := answered{status: a.Status, header: a.Header, text: string(a.Body)}
	if a.Status != http.StatusOK {
		return got
	}
	var c struct {
		Usage struct {
			Prompt  int `json:"prompt_tokens"`
			Input   int `json:"input_tokens"`
			Read    int `json:"cache_read_input_tokens"`
			Written int `json:"cache_creation_input_tokens"`
			Details struct {
				Cached int `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
			Inputs struct {
				Cached int `json:"cached_tokens"`
			} `json:"input_tokens_details"`
		} `json:"usage"`
		Tokens  []uint32 `json:"prompt_token_ids"`
		Choices []struct {
			Tokens []uint32 `json:"prompt_token_ids"`
		} `json:"choices"`
	}
	if err := json.Unmarshal(a.Body, &c); err != nil {
		t.Fatalf("%s: %v: %.300s", s.Name, err, a.Body)
	}
	u := c.Usage
	got.count, got.cached = u.Prompt+u.Input, u.Details.Cached+u.Inputs.Cached+u.Read
	if s.Path == "/v1/messages" {
		got.count += u.Read + u.Written // Anthropic's usage counts them apart
	}
	if c.Tokens != nil {
		got.tokens = [][]uint32{c.Tokens}
	}
	for _, choice := range c.Choices {
		if choice.Tokens != nil {
			got.tokens = append(got.tokens, choice.Tokens)
		}
	}
	return got
}

// recorded reads the file of samples.
func recorded(t *testing.T) (all []sample) {
	t.Helper()
	b, err := os.ReadFile(vllmData("prompts.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		all = append(all, rig.Decode[sample](t, line))
	}
	return all
}

// record asks an engine for all prompts, and returns those that it did not refuse.
func record(t *testing.T, port int) (all []sample) {
	t.Helper()
	refused := 0
	for _, s := range makeSamples() {
		a := s.request(t, port)
		if a.status != http.StatusOK {
			if refused++; a.status >= http.StatusInternalServerError {
				t.Errorf("%s: %d %.300s", s.Name, a.status, a.text)
			}
			t.Logf("%s: refused: %.200s", s.Name, a.text)
			continue
		}
		s.Count, s.Tokens = a.count, a.tokens
		all = append(all, s)
	}
	t.Logf("figure: %d prompts, %d more are refused by the engine", len(all), refused)
	return all
}

// testRecorded holds the file that unit tests compare extproc's tokens with to a real engine.
func (p *pair) testRecorded(t *testing.T) {
	got := record(t, p.ports.engines[0])
	if *update {
		var b bytes.Buffer
		for _, s := range got {
			line, err := marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			b.Write(append(line, '\n'))
		}
		if err := os.WriteFile(vllmData("prompts.jsonl"), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := recorded(t)
	if len(got) != len(want) || len(got) < fewest {
		t.Fatalf("%d prompts, %d in the file, want %d or more; -update writes it", len(got), len(want), fewest)
	}
	for i, s := range got {
		if w := want[i]; s.Name != w.Name || s.Count != w.Count || !slices.EqualFunc(s.Tokens, w.Tokens, slices.Equal) {
			t.Errorf("%s: %d tokens %v, the file has %s, %d %v", s.Name, s.Count, s.Tokens, w.Name, w.Count, w.Tokens)
		}
	}
}

// writeTokenizer writes the engines' tokenizer for them and for extproc: that of the model,
// but that it puts a token before texts, and with the template of the samples.
func (p *pair) writeTokenizer(t *testing.T) {
	t.Helper()
	file := rig.Decode[map[string]json.RawMessage](t, []byte(rig.Read(t, rig.MustCached(t, "vllm/model/tokenizer.json"))))
	file["post_processor"] = json.RawMessage(`{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|im_start|>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],` +
		`"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"<|im_start|>":{"id":"<|im_start|>","ids":[1],"tokens":["<|im_start|>"]}}}`)
	text, err := marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, "tokenizer.json", string(text))
	p.write(t, "tokenizer_config.json", rig.Read(t, rig.MustCached(t, "vllm/model/tokenizer_config.json")))
	p.write(t, "chat_template.jinja", rig.Read(t, vllmData("served.jinja")))
}

// why is what extproc says of a request in x-millrace-decision.
type why struct {
	Prompt     int    `json:"prompt_tokens"`
	Exact      bool   `json:"exact"`
	Doubt      string `json:"doubt"`
	Candidates []struct {
		Address string `json:"address"`
		Cached  int    `json:"expected_cached_tokens"`
	} `json:"candidates"`
}

// shortest is how many tokens a prompt must have for a block of it to be cached and used.
const shortest = 33

// blockLimit is how long extproc may take to apply an engine's events on a busy machine.
const blockLimit = 30 * time.Second

// testPrompts sends the recorded prompts through Envoy. What extproc calls exact is what the
// engine's usage says; asked again, what it predicts to be cached is what is.
func (p *pair) testPrompts(t *testing.T) {
	counted, cached, salted, estimates := 0, 0, 0, map[string]int{}
	for _, s := range recorded(t) {
		if s.Template != "" {
			continue // it is not the server's
		}
		a, w := p.explained(t, &s)
		if w.Exact && w.Prompt != a.count {
			t.Errorf("%s: extproc counts %d tokens, the engine %d", s.Name, w.Prompt, a.count)
			continue
		}
		if !w.Exact {
			estimates[w.Doubt]++
			continue
		}
		counted++
		if a.count < shortest || len(s.Tokens) > 1 {
			continue
		}
		if bytes.Contains(s.Body, []byte(`"cache_salt":"`)) {
			salted++
		}
		rig.Wait(t, blockLimit, s.Name+": its blocks are known", func() error {
			a, w := p.explained(t, &s)
			if len(w.Candidates) == 0 || w.Candidates[0].Cached != a.cached || a.cached == 0 {
				return fmt.Errorf("of %d tokens the engine had %d cached, predicted %+v", a.count, a.cached, w.Candidates)
			}
			return nil
		})
		cached++
	}
	t.Logf("figure: %d prompts counted as by the engine, of %d the cached tokens, too, %d of them salted; estimates by reason %v", counted, cached, salted, estimates)
}

// explained sends a sample through Envoy.
func (p *pair) explained(t *testing.T, s *sample) (answered, why) {
	t.Helper()
	p.asked++
	a := s.request(t, p.ports.gateway, "x-millrace-debug", "1")
	if a.status != http.StatusOK {
		t.Fatalf("%s: %d %.300s", s.Name, a.status, a.text)
	}
	return a, rig.Decode[why](t, []byte(a.header.Get("x-millrace-decision")))
}
