package api

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/wire"
)

// TestCacheIsLogged: what is answered is logged with the answer, what fails is taken
// back, what names no beginnings still takes room.
func TestCacheIsLogged(t *testing.T) {
	const (
		unary  = `{"choices":[{"message":{"content":"Hello"}}],` + timings + `}`
		events = "data: {\"choices\":[]," + timings + "}\n\ndata: [DONE]\n\n"
	)
	tests := []struct {
		name, prefix string
		stream       bool
		backend      http.HandlerFunc
		want         map[uint64]uint32
		tokens       uint64
		malformed    uint64
	}{
		{
			name: "unary", prefix: "0000000000000001.10,0000000000000002.39",
			backend: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, unary) },
			want:    map[uint64]uint32{1: 10, 2: 87}, tokens: 87,
		},
		{
			name: "streamed", stream: true, prefix: "0000000000000001.10,0000000000000002.39",
			backend: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, events)
			},
			want: map[uint64]uint32{1: 10, 2: 87}, tokens: 87,
		},
		{
			name: "refused by the backend", prefix: "0000000000000001.10",
			backend: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) },
			want:    map[uint64]uint32{1: 0},
		},
		{
			name:    "no keys",
			backend: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, unary) },
			want:    map[uint64]uint32{}, tokens: 87,
		},
		{
			name: "malformed", prefix: "x",
			backend: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, unary) },
			want:    map[uint64]uint32{}, tokens: 87, malformed: 1,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newRig(t, tt.backend)
			body := chat
			if tt.stream {
				body = strings.Replace(chat, "{", `{"stream":true,`, 1)
			}
			req := g.request(t.Context(), "/v1/chat/completions", body)
			req.Header.Set(wire.PrefixHeader, tt.prefix)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Fatal(err)
			}
			got := map[uint64]uint32{}
			for _, s := range g.cache.Cache().Segments {
				for i, k := range s.GetKeys() {
					got[k] = s.GetTokens()[i]
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("log (-want +got):\n%s", diff)
			}
			if n := g.cache.Tokens(); n != tt.tokens {
				t.Errorf("Tokens() = %d, want %d", n, tt.tokens)
			}
			if n := g.cache.Malformed(); n != tt.malformed {
				t.Errorf("Malformed() = %d, want %d", n, tt.malformed)
			}
		})
	}
}
