package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/e2e/rig"
)

// TestUnaryAnswersEqualTheBackends asks engine and the backend behind it the same:
// whether the engine has put the answer together itself can't be seen in it. What engine
// says otherwise, as clients expect it, e2e/clients proves.
func TestUnaryAnswersEqualTheBackends(t *testing.T) {
	m := shared(t)
	node := m.Replicas(t).Whole
	engine, backend := "http://"+m.Addr(t, "engine@"+node, "http"), "http://"+m.Addr(t, "backend@"+node, "http")
	const (
		chat   = `"model":"smollm2","temperature":0,"messages":[{"role":"user","content":"Say <hi> & \"bye\" to me, é and 🌟."}]`
		prompt = `"model":"smollm2","temperature":0,"prompt":"One two three four"`
	)
	tests := []struct{ name, path, body string }{
		{"chat", chatPath, `{` + chat + `,"max_tokens":24}`},
		{"chat, said not to stream", chatPath, `{"stream":false,` + chat + `,"max_tokens":4}` + "\n"},
		{"chat to its end", chatPath, `{` + chat + `,"max_tokens":200,"seed":1}`},
		{"chat of a character's first half", chatPath, `{` + chat + `,"max_tokens":1}`},
		{"chat that stops", chatPath, `{` + chat + `,"max_tokens":40,"stop":["e"]}`},
		{"chat that stops in a word", chatPath, `{` + chat + `,"max_tokens":40,"stop":["you", "llo"]}`},
		{"chat with logprobs", chatPath, `{` + chat + `,"max_tokens":4,"logprobs":true,"top_logprobs":2}`},
		{"chat with a JSON schema", chatPath, `{` + chat + `,"max_tokens":40,"response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}}}}`},
		{"chat with a JSON object", chatPath, `{` + chat + `,"max_tokens":20,"response_format":{"type":"json_object"}}`},
		{"n is one", chatPath, `{` + chat + `,"max_tokens":4,"n":1}`},
		{"completion", "/v1/completions", `{` + prompt + `,"max_tokens":16}`},
		{"completion that stops", "/v1/completions", `{` + prompt + `,"max_tokens":40,"stop":"r"}`},
		{"completion in a grammar", "/v1/completions", `{` + prompt + `,"max_tokens":9,"grammar":"root ::= [a-z<>&\u00e9]+"}`},
		{"completion of no token", "/v1/completions", `{` + prompt + `,"max_tokens":0}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			answered(t, backend+tt.path, tt.body) // the prompt is cached from now on
			want, _ := answered(t, backend+tt.path, tt.body)
			got, header := answered(t, engine+tt.path, tt.body)
			if diff := cmp.Diff(want, got, wholeCharacters); diff != "" {
				t.Errorf("the backend (-) said another thing than engine (+):\n%s", diff)
			}
			if header.Get("x-millrace-usage") == "" || header.Get("content-type") != "application/json; charset=utf-8" {
				t.Errorf("header %v", header)
			}
		})
	}
	for _, body := range []string{
		`{"model":"smollm2","messages":[{"role":"user","content":"` + strings.Repeat("long ", 9000) + `"}]}`,
		`{"model":"smollm2","messages":[{"role":"user","content":"hi"}],"response_format":{"type":"nonsense"}}`,
	} {
		direct, err1 := rig.Send(t.Context(), backend+chatPath, strings.NewReader(body), "content-type", "application/json")
		through, err2 := rig.Send(t.Context(), engine+chatPath, strings.NewReader(body), "content-type", "application/json")
		if err1 != nil || err2 != nil || direct.Status != 400 || through.Status != 400 {
			t.Errorf("refused with %d %v by the backend, with %d %v by engine; want 400", direct.Status, err1, through.Status, err2)
		}
	}
}

// wholeCharacters leaves out half a character at the end of a text: a stream does
// not hold it.
var wholeCharacters = cmp.Transformer("whole", func(s string) string { return strings.TrimSuffix(s, "\uFFFD") })

// answered returns an answer, what differs from time to time taken out.
func answered(t *testing.T, url, body string) (map[string]any, http.Header) {
	t.Helper()
	a, err := rig.Send(t.Context(), url, strings.NewReader(body), "content-type", "application/json")
	if err != nil || a.Status != http.StatusOK {
		t.Fatalf("%s: %d %v %s", url, a.Status, err, a.Body)
	}
	v := rig.Decode[map[string]any](t, a.Body)
	scrub(v)
	return v, a.Header
}

// scrub keeps that a field is there, of those that never are the same twice.
func scrub(v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, inner := range v {
			switch {
			case inner == nil && (name == "logprobs" || name == "refusal"):
				delete(v, name) // the backend leaves it out
			case name == "id" && v["token"] == nil, strings.HasPrefix(name, "created"), strings.HasPrefix(name, "completed_at"),
				strings.HasSuffix(name, "_ms"), strings.HasSuffix(name, "per_second"):
				v[name] = fmt.Sprintf("a %T", inner)
			default:
				scrub(inner)
			}
		}
	case []any:
		for _, inner := range v {
			scrub(inner)
		}
	}
}

// TestCancelledUnaryRequestStopsGenerating leaves while a unary answer is made
// beside a stream that continues: the backend must be busy with the stream alone.
func TestCancelledUnaryRequestStopsGenerating(t *testing.T) {
	m := shared(t)
	node := m.Replicas(t).Whole
	engine, backend := "http://"+m.Addr(t, "engine@"+node, "http"), "http://"+m.Addr(t, "backend@"+node, "http")
	begin := func(more string) context.CancelFunc {
		ctx, cancel := context.WithCancel(t.Context())
		body := `{"model":"smollm2","max_tokens":1500,"ignore_eos":true,` + more + `"messages":[{"role":"user","content":"Count to 1000."}]}`
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = rig.Send(ctx, engine+chatPath, strings.NewReader(body), "content-type", "application/json")
		}()
		return func() { cancel(); <-done }
	}
	busy := func(want int) func() error {
		return func() error {
			b, err := rig.Get(backend + "/slots")
			if err != nil {
				return err
			}
			var slots []struct {
				Processing bool `json:"is_processing"`
			}
			if err := json.Unmarshal(b, &slots); err != nil {
				return err
			}
			n := 0
			for _, s := range slots {
				if s.Processing {
					n++
				}
			}
			if n != want {
				return fmt.Errorf("%d slots of the backend are busy, want %d", n, want)
			}
			return nil
		}
	}
	rig.Wait(t, 5*time.Second, "the backend is idle", busy(0))
	leaveStream := begin(`"stream":true,`)
	defer leaveStream()
	leave := begin("")
	defer leave()
	rig.Wait(t, 10*time.Second, "both requests are generating", busy(2))
	leave()
	took := rig.Wait(t, 2*time.Second, "the unary one has stopped", busy(1))
	t.Logf("it stopped %.2f s after its client had left", took.Seconds())
	leaveStream()
	rig.Wait(t, 2*time.Second, "the stream has stopped", busy(0))
}
