package e2e

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// TestTokenize makes tokens of a text and a text of tokens through the mesh, with and
// without /v1 and a model: as many tokens as extproc counts of the same prompt.
func TestTokenize(t *testing.T) {
	m := shared(t)
	const text = "The mill's race, größer than 漢字."
	for _, prefix := range []string{"", "/v1"} {
		for _, named := range []bool{true, false} {
			body := map[string]any{"content": text}
			if named {
				body["model"] = model
			}
			tokens := rig.Decode[struct{ Tokens []int }](t, rig.MustPost(t, m.URL(t, prefix+"/tokenize"), body).Body).Tokens
			if len(tokens) < 8 {
				t.Fatalf("%d tokens", len(tokens))
			}
			delete(body, "content")
			body["tokens"] = tokens
			back := rig.Decode[struct{ Content string }](t, rig.MustPost(t, m.URL(t, prefix+"/detokenize"), body).Body).Content
			if back != text {
				t.Errorf("%d tokens are %q, want %q", len(tokens), back, text)
			}
			a := rig.MustPost(t, m.URL(t, "/v1/completions"), map[string]any{"model": model, "prompt": text, "max_tokens": 1})
			if want := fmt.Sprintf("prompt=%d,", len(tokens)); !strings.HasPrefix(a.Header.Get("x-millrace-usage"), want) {
				t.Errorf("x-millrace-usage: %q, want %q in it", a.Header.Get("x-millrace-usage"), want)
			}
		}
	}
}

// TestOperationsThatTheBackendLacks come to it all the same, and are answered with an error
// of the API that names the model, whatever the backend has for them: it is a chat model.
func TestOperationsThatTheBackendLacks(t *testing.T) {
	m := shared(t)
	form := "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n" +
		"--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n%s\r\n--b--\r\n"
	tests := []struct {
		path, kind, body string
		// by is who answers: extproc's errors come without the header of a node.
		byEngine bool
		status   int
		want     string
	}{
		{"/v1/rerank", "application/json", `{"model":"` + model + `","query":"a","documents":["b"]}`, true, 400, `"code":"unsupported_operation"`},
		{"/rerank", "application/json", `{"model":"` + model + `","query":"a","documents":["b"]}`, true, 400, `"code":"unsupported_operation"`},
		{"/v2/rerank", "application/json", `{"query":"a","documents":["b"]}`, false, 400, `"param":"model"`},
		{"/v1/score", "application/json", `{"model":"` + model + `","text_1":"a","text_2":"b"}`, true, 400, `"code":"unsupported_operation"`},
		{"/v1/audio/transcriptions", "multipart/form-data; boundary=b", fmt.Sprintf(form, model), true, 400, `"code":"unsupported_operation"`},
		{"/audio/translations", "multipart/form-data; boundary=b", fmt.Sprintf(form, model), true, 400, `"code":"unsupported_operation"`},
		{"/v1/audio/transcriptions", "multipart/form-data; boundary=b", fmt.Sprintf(form, "nobody"), false, 404, `"code":"model_not_found"`},
		{"/v1/audio/transcriptions", "multipart/form-data; boundary=b", "x", false, 400, `"code":"invalid_form"`},
	}
	for _, tt := range tests {
		t.Run(tt.path+" "+tt.want, func(t *testing.T) {
			a, err := rig.Send(t.Context(), m.URL(t, tt.path), bytes.NewReader([]byte(tt.body)), "content-type", tt.kind)
			if err != nil {
				t.Fatal(err)
			}
			byEngine := a.Header.Get("x-millrace-node") != ""
			if byEngine != tt.byEngine || a.Status != tt.status || !strings.Contains(string(a.Body), tt.want) {
				t.Errorf("status %d, answered by an engine: %v: %.300s", a.Status, byEngine, a.Body)
			}
		})
	}
}
