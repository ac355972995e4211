package gateway

import (
	"bytes"
	"encoding/json"
	"net/http"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// testMessagesReplies shows that Envoy's own answers take the form of Anthropic's
// API on its paths.
func (g *gateway) testMessagesReplies(t *testing.T) {
	for _, tt := range []struct {
		name, path, kind string
		body             []byte
		want             int
	}{
		{name: "20 MiB", path: "/v1/messages?beta=true", body: bytes.Repeat([]byte("a"), 20<<20), want: 413, kind: "request_too_large"},
		{name: "unknown path", path: "/v1x", want: 404},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.url(tt.path), bytes.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		a, err := rig.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Type  string
			Error struct{ Type, Message string }
		}
		if err := json.Unmarshal(a.Body, &got); err != nil {
			t.Fatalf("%s: %v: %s", tt.name, err, a.Body)
		}
		anthropic := got.Type == "error" && got.Error.Type == tt.kind && got.Error.Message != ""
		if a.Status != tt.want || anthropic != (tt.kind != "") {
			t.Errorf("%s: status %d, %s; want %d of type %q", tt.name, a.Status, a.Body, tt.want, tt.kind)
		}
	}
}
