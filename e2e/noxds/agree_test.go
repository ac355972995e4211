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
		got.count += u.Read + u.Written // Anthropic's usage tells them apart
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
func (p *pair) testRecorded(t *testing.T) { testRecorded(t, p.ports.engines[0]) }

func testRecorded(t *testing.T, port int) {
	got := record(t, port)
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
