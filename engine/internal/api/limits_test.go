package api

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"millrace.dev/millrace/engine/enginepb"
)

// TestLimitsReachTheBackendOnce sends what backends read in an order of their own.
func TestLimitsReachTheBackendOnce(t *testing.T) {
	const (
		chat       = "/v1/chat/completions"
		completion = "/v1/completions"
		messages   = `"messages":[{"role":"user","content":"hi"}]`
	)
	tests := []struct {
		name, path, fields string
		want               string // the backend's body behind the model; "": refused
		param              string // of the refusal
		tokens             int64  // that the request is expected to need beside its prompt
	}{
		{"the API's counts, not the backend's", chat, messages + `,"max_tokens":16,"n":1,"n_predict":400,"n_cmpl":3`, messages + `,"max_tokens":16,"n":1`, "", 48},
		{"the newer of the API's counts", chat, messages + `,"max_tokens":400,"max_completion_tokens":16`, messages + `,"max_completion_tokens":16`, "", 16},
		{"the backend's alone is read", chat, messages + `,"n_predict":16`, messages + `,"max_tokens":16`, "", 16},
		{"the backend's without end is none", chat, messages + `,"n_predict":-1,"max_tokens":8`, messages + `,"max_tokens":8`, "", 8},
		{"that of another operation", completion, `"prompt":"a","max_output_tokens":400,"max_tokens":16`, `"prompt":"a","max_tokens":16`, "", 16},
		{"the backend's number of answers", completion, `"prompt":"a","n_cmpl":2,"max_tokens":10`, `"prompt":"a","n":2,"max_tokens":10`, "", 20},
		{"each prompt has its answers", completion, `"prompt":["a","b",[1,2]],"n":2,"max_tokens":10`, `"prompt":["a","b",[1,2]],"n":2,"max_tokens":10`, "", 60},
		{"an answer without end", completion, `"prompt":"a","ignore_eos":true,"max_tokens":500`, `"prompt":"a","ignore_eos":true,"max_tokens":500`, "", 500},
		{"no limit", chat, messages + `,"max_tokens":-1`, "", "max_tokens", 0},
		{"a limit that overflows in a backend", chat, messages + `,"max_tokens":1000000000000`, "", "max_tokens", 0},
		{"one that only just does", chat, messages + `,"max_tokens":2147483648`, "", "max_tokens", 0},
		{"one beyond 64 bits", chat, messages + `,"max_tokens":18446744073709551617`, "", "max_tokens", 0},
		{"one with an exponent", chat, messages + `,"max_tokens":1e12`, "", "max_tokens", 0},
		{"a backend's own below what it holds", chat, messages + `,"top_k":-99999999999`, "", "top_k", 0},
		{"more logprobs than there are numbers", chat, messages + `,"top_logprobs":4294967297`, "", "top_logprobs", 0},
		{"a fraction without end", chat, messages + `,"temperature":1e300`, "", "temperature", 0},
		{"a fraction that is no number", chat, messages + `,"temperature":1e999`, "", "temperature", 0},
		{"a seed of 64 bits", chat, messages + `,"seed":9007199254740993,"max_tokens":8`, messages + `,"seed":9007199254740993,"max_tokens":8`, "", 8},
		{"a limit that is none", chat, messages + `,"n_predict":"400"`, "", "n_predict", 0},
		{"no answers", chat, messages + `,"n":0`, "", "n", 0},
		{"a slot of one's own", chat, messages + `,"id_slot":1`, "", "id_slot", 0},
		{"whatever slot", chat, messages + `,"id_slot":-1,"cache_prompt":true`, messages + `,"id_slot":-1,"cache_prompt":true`, "", 64},
		{"an account left out", chat, messages + `,"response_fields":["content"]`, "", "response_fields", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, load := "", int64(0)
			var g *rig
			g = newRig(t, func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				got, load = string(b), g.gate.Load().Tokens
				_, _ = io.WriteString(w, `{"choices":[]}`)
			})
			body := `{"model":"smollm2",` + tt.fields + `}`
			resp, answer := g.post(t, tt.path, body)
			if tt.want == "" {
				if resp.StatusCode != 400 || !strings.Contains(answer, fmt.Sprintf("%q:%q", "param", tt.param)) || got != "" {
					t.Errorf("%d %s, and the backend got %q; want a refusal of %s", resp.StatusCode, answer, got, tt.param)
				}
				return
			}
			got = strings.TrimSuffix(strings.TrimSuffix(got, "}"), asStream)
			if want := `{"model":"smollm2",` + tt.want; got != want {
				t.Errorf("the backend got %s, want %s", got, want)
			}
			if prompt := int64(len(body)/bytesPerToken) + 1; load-prompt != tt.tokens {
				t.Errorf("%d tokens are expected, want %d", load-prompt, tt.tokens)
			}
		})
	}
}

// asStream is what is asked of llama.cpp beside what the client asks for.
const asStream = `,"stream":true,"stream_options":{"include_usage":true}`

// TestNumbersThatOverflow has the refusal say the number that was sent.
func TestNumbersThatOverflow(t *testing.T) {
	g := newRig(t, func(http.ResponseWriter, *http.Request) { t.Error("the backend was asked") })
	_, answer := g.post(t, "/v1/chat/completions", `{"model":"smollm2","messages":[{"role":"user","content":"hi"}],"max_tokens":1000000000000}`)
	if !strings.Contains(answer, "max_tokens: 1000000000000; must be") {
		t.Errorf("%s; want the number that was sent", answer)
	}
}

// TestTheMarkOfUTF8 has a body that some clients begin with U+FEFF be read without it.
func TestTheMarkOfUTF8(t *testing.T) {
	got := ""
	g := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = string(b)
		_, _ = io.WriteString(w, `{"choices":[]}`)
	})
	if resp, answer := g.post(t, "/v1/chat/completions", "\ufeff"+`{"model":"smollm2","messages":[{"role":"user","content":"hi"}],"max_tokens":4}`); resp.StatusCode != 200 || !strings.HasPrefix(got, `{"model":"smollm2"`) {
		t.Errorf("%d %s, and the backend got %q", resp.StatusCode, answer, got)
	}
}

func TestClosedFieldsOfVLLM(t *testing.T) {
	for field, status := range map[string]int{
		`"priority":-5`: 400, `"priority":0`: 200, `"kv_transfer_params":{"do_remote_decode":true}`: 400, `"request_id":"a"`: 400, `"min_tokens":3`: 200,
	} {
		g := newRigOf(t, enginepb.Backend_VLLM, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"choices":[]}`) })
		if resp, body := g.post(t, "/v1/chat/completions", strings.TrimSuffix(chat, "}")+","+field+"}"); resp.StatusCode != status {
			t.Errorf("%s: %d %s, want %d", field, resp.StatusCode, body, status)
		}
	}
}

// TestAStreamThatIsLeftIsCounted has a client leave before the account.
func TestAStreamThatIsLeftIsCounted(t *testing.T) {
	g := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		for range 9 {
			_, _ = io.WriteString(w, "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n")
		}
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	resp, err := http.DefaultClient.Do(g.request(t.Context(), "/v1/chat/completions", strings.TrimSuffix(chat, "}")+`,"stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 200)); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	until(t, func() bool { return g.meter.Totals().Generated == 9 })
}
