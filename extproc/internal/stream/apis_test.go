package stream

import (
	"fmt"
	"strings"
	"testing"

	"millrace.dev/millrace/internal/apis"
)

// formOf is an upload of a sound of so many bytes for a model, which comes behind it.
func formOf(model string, sound int) string {
	const head = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n%s\r\n"
	field := "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n" + model + "\r\n"
	if model == "" {
		field = ""
	}
	return fmt.Sprintf(head, strings.Repeat("s", sound)) + field + "--b--\r\n"
}

// TestOperations sends requests of all kinds of rows.
func TestOperations(t *testing.T) {
	const form = "multipart/form-data; boundary=b"
	tests := []struct {
		path, kind, body string
		model            string
		tokens           int    // of the prompt; 0: any
		forward          string // empty: as it came
		err              string // its code
		param            string // at fault
	}{
		{path: "/v1/audio/transcriptions", kind: form, body: formOf("n", 10), model: "n"},
		{path: "/audio/translations", kind: form, body: formOf("n", 10), model: "n"},
		{path: "/v1/audio/transcriptions", kind: form, body: formOf("n", 90000), model: "n", tokens: upload},
		{path: "/v1/audio/transcriptions", kind: form, body: formOf("auto", 10), model: "n", forward: formOf("n", 10)},
		{path: "/v1/audio/transcriptions", kind: form, body: formOf("", 10), err: "missing_required_parameter", param: "model"},
		{path: "/v1/audio/transcriptions", kind: form, body: formOf("x", 10), err: "model_not_found", param: "model"},
		{path: "/v1/audio/transcriptions", kind: form, body: "s", err: "invalid_form"},
		{path: "/v1/audio/transcriptions", kind: form, body: strings.Repeat("--b\r\n\r\n\r\n", 100) + formOf("n", 1), model: "m"},
		{path: "/v1/audio/transcriptions", kind: "multipart/form-data", body: formOf("n", 10), err: "invalid_form"},
		{path: "/v1/audio/transcriptions", kind: "application/json", body: `{"model":"n"}`, err: "unsupported_content_type"},
		{path: "/v1/chat/completions", kind: form, body: formOf("n", 10), err: "unsupported_content_type"},
		{path: "/v1/rerank", body: `{"model":"n","query":"12345678","documents":["1234",{"text":"1234"}]}`, model: "n", tokens: 4},
		{path: "/v2/rerank", body: `{"query":"q","documents":[]}`, err: "missing_required_parameter", param: "model"},
		{path: "/score", body: `{"model":"n","text_1":"1234","text_2":["1234","1234"]}`, model: "n", tokens: 3},
		{path: "/tokenize", body: `{"content":"hi"}`, model: "m", tokens: 1},
		{path: "/v1/tokenize", body: `{"model":"n","prompt":"12345678"}`, model: "n", tokens: 1},
		{path: "/detokenize", body: `{"model":"x","tokens":[1,2]}`, err: "model_not_found", param: "model"},
	}
	for _, tt := range tests {
		for _, m := range []Mode{Buffered, Duplex} {
			f := newFleet(3, twoModels)
			evs := []Event{post(by(m), func(h *RequestHead) { h.Path, h.ContentType = tt.path, tt.kind })}
			for rest := tt.body; rest != ""; {
				n := min(len(rest), 5000)
				if m == Buffered {
					n = len(rest)
				}
				evs = append(evs, Event{Kind: RequestBody, Body: []byte(rest[:n]), At: epoch, End: n == len(rest)})
				rest = rest[n:]
			}
			x := f.core.Begin()
			out := run(x, evs...)
			var d *Decision
			sent := ""
			for _, r := range out {
				if r.Decision != nil {
					d = r.Decision
				}
				sent += string(r.Chunk)
			}
			name := fmt.Sprintf("%s %.60q, mode %d", tt.path, tt.body, m)
			if err := out[len(out)-1].Error; err != nil || tt.err != "" {
				if err == nil || err.Code != tt.err || err.Param != tt.param {
					t.Errorf("%s: error %+v, want %q of %q", name, err, tt.err, tt.param)
				}
				continue
			}
			want := tt.forward
			if want == "" && m == Duplex {
				want = tt.body
			}
			if sent != want {
				t.Errorf("%s: %.200q is forwarded, want %.200q", name, sent, want)
			}
			if d == nil || d.Model != tt.model || tt.tokens > 0 && d.PromptTokens != tt.tokens || d.Session != "" || len(d.Chain) > 0 {
				t.Errorf("%s: %+v, want model %s, %d tokens, by load", name, d, tt.model, tt.tokens)
			}
			f.core.Finish(x)
			if n := f.leaks(); n != 0 {
				t.Errorf("%s: %d is left", name, n)
			}
		}
	}
}

// TestFormThatIsCutOff sees only what Envoy could buffer: what it has read counts, and
// nothing of it is changed.
func TestFormThatIsCutOff(t *testing.T) {
	f := newFleet(3, twoModels)
	for _, tt := range []struct{ body, model string }{
		{strings.TrimSuffix(formOf("n", 10), "b--\r\n"), "m"}, // the field has no end
		{formOf("n", 10), "n"},                                // there may be more
		{formOf("auto", 10), "m"},
		{formOf("", 10)[:20], "m"},
	} {
		head := post(func(h *RequestHead) {
			h.Path, h.ContentType = "/v1/audio/transcriptions", "multipart/form-data; boundary=b"
		})
		out := run(f.core.Begin(), head, Event{Kind: RequestBody, Body: []byte(tt.body), At: epoch})
		last := out[len(out)-1]
		if last.Decision == nil || last.Decision.Model != tt.model || last.Replace || last.Length != 0 {
			t.Errorf("%q: %+v, want model %s", tt.body, last, tt.model)
		}
	}
}

// TestTokenizeDoesNotWait asks for tokens while all slots are taken.
func TestTokenizeDoesNotWait(t *testing.T) {
	f := newFleet(1, oneSlot)
	x := f.core.Begin()
	run(x, post(), bodyOf(hello))
	y := f.core.Begin()
	out := run(y, post(func(h *RequestHead) { h.Path = apis.Tokenize.Row().Path }), bodyOf(`{"content":"hi"}`))
	if y.Waits() != nil || out[len(out)-1].Decision == nil {
		t.Errorf("it waits: %+v", out)
	}
	f.core.Finish(y)
	f.core.Finish(x)
}
