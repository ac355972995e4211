package status

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"millrace.dev/millrace/internal/state"
)

// TestEventsArePrinted as they are, and what is no text of a terminal's is shown as what it is.
func TestEventsArePrinted(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/page/events.json" {
			t.Errorf("asked for %s", r.URL)
		}
		fmt.Fprint(w, `[{"seq":1,"at":"2026-11-30T12:00:00Z","level":"bad","text":"node \u001b[2Ja"}]`)
	}))
	defer srv.Close()
	s := state.State{Processes: []state.Process{{Name: "xds", PID: 1, Addrs: map[string]string{"metrics": strings.TrimPrefix(srv.URL, "http://")}}}}
	b, err := askEvents(t.Context(), &s)
	if err != nil || !strings.Contains(string(b), `"seq":1`) {
		t.Fatalf("%s, %v", b, err)
	}
	var out bytes.Buffer
	if err := printEvents(&out, b); err != nil || !strings.Contains(out.String(), "▲  node \\x1b[2Ja\n") {
		t.Errorf("%q, %v", out.String(), err)
	}
	if err := Events(context.Background(), Options{Dir: t.TempDir(), Out: &out}); err == nil || !strings.HasPrefix(err.Error(), "events: ") {
		t.Errorf("without a mesh: %v", err)
	}
}
