package mesh

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"millrace.dev/millrace/xds/fleetpb"
)

// fakeAPI answers completions as the given replica.
func fakeAPI(t *testing.T, replica string, status int, body string) (addr string, asked *atomic.Int32) {
	t.Helper()
	asked = &atomic.Int32{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var req struct {
			Model string `json:"model"`
			Max   int    `json:"max_tokens"`
		}
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil || req.Model != "m" || req.Max != 1 {
			t.Errorf("asked %+v, %v; want one token of m", req, err)
		}
		w.Header().Set("X-Millrace-Replica", replica)
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String(), asked
}

const oneTokenAnswer = `{"usage":{"completion_tokens":1}}`

// TestProbeReachesEveryReplica has a gateway that always chooses the same one.
func TestProbeReachesEveryReplica(t *testing.T) {
	gateway, _ := fakeAPI(t, "m-0", http.StatusOK, oneTokenAnswer)
	other, asked := fakeAPI(t, "m-1", http.StatusOK, oneTokenAnswer)
	view := &fleetpb.FleetView{Nodes: []*fleetpb.NodeView{nodeView("a", "m-0", 0, true, ""), nodeView("c", "m-1", 0, true, "")}}
	view.Nodes[1].Report.Engine.HttpAddress = other
	m := &mesh{plan: Plan{Listen: gateway}, first: wanted}
	if err := m.probe(t.Context(), view); err != nil {
		t.Fatal(err)
	}
	if asked.Load() != 1 {
		t.Errorf("the other replica was asked %d times, want once", asked.Load())
	}
}

// TestProbeThatFailsEndsNoOther has a gateway that refuses the first request, and answers
// the others only when that one has come back.
func TestProbeThatFailsEndsNoOther(t *testing.T) {
	refused := make(chan struct{})
	var asked atomic.Int32
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Millrace-Probe") != "K" {
			t.Errorf("header %v, want the key of probes", r.Header)
		}
		if asked.Add(1) == 1 {
			w.WriteHeader(http.StatusTooManyRequests)
			_ = http.NewResponseController(w).Flush()
			close(refused)
			return
		}
		<-refused
		w.Header().Set("X-Millrace-Replica", "m-0")
		fmt.Fprint(w, oneTokenAnswer)
	}))
	defer gateway.Close()
	m := &mesh{plan: Plan{Listen: gateway.Listener.Addr().String(), ProbeKey: "K"}}
	seen, err := m.throughEnvoy(t.Context(), wanted[:1])
	if err == nil || !strings.Contains(err.Error(), "429") || !seen["m-0"] {
		t.Errorf("seen %v, %v; want the answer of the other, and the refusal", seen, err)
	}
}

func TestProbeTakesNoAnswerWithoutAToken(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		status     int
		want       string
	}{
		{name: "refused", status: http.StatusServiceUnavailable, body: "no healthy upstream", want: "503 Service Unavailable: no healthy upstream"},
		{name: "no token", status: http.StatusOK, body: `{"usage":{"completion_tokens":0}}`, want: "no token in"},
		{name: "no JSON", status: http.StatusOK, body: "hello", want: "no token in hello"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			gateway, _ := fakeAPI(t, "", tt.status, tt.body)
			m := &mesh{plan: Plan{Listen: gateway}, first: wanted}
			if err := m.probe(t.Context(), nil); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("probe() = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestDrainWaitsForRequestsInFlight(t *testing.T) {
	var polls atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost && r.URL.Path == "/drain_listeners":
		case r.URL.Path == "/stats":
			fmt.Fprintf(w, "http.admin.downstream_rq_active: 1\nhttp.gateway.downstream_rq_active: %d\n", max(0, 3-polls.Add(1)))
		default:
			t.Errorf("asked %s %s", r.Method, r.URL)
		}
	}))
	defer srv.Close()
	m := &mesh{plan: Plan{Admin: srv.Listener.Addr().String()}}
	m.drain()
	if polls.Load() != 3 {
		t.Errorf("looked %d times, want until nothing was in flight", polls.Load())
	}
	srv.Close()
	m.drain() // nobody to ask: returns
}

func TestWaitingIsPrintedOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		w := waiting{show: &console{err: &b}, logs: "/m/logs", began: time.Now(), printed: map[string]time.Time{}}
		for i := range 60 { // 12 s of a part that comes and goes
			w.print([]string{[]string{"a", "b"}[i/5%2]})
			time.Sleep(200 * time.Millisecond)
		}
		want := "0s: waiting for a\n1s: waiting for b\n10.2s: waiting for a; logs: /m/logs\n11.2s: waiting for b; logs: /m/logs\n"
		if got := strings.ReplaceAll(b.String(), "millrace: ", ""); got != want {
			t.Errorf("told\n%swant\n%s", got, want)
		}
	})
}

func TestConditionsOmitWhatMissingHas(t *testing.T) {
	v := &fleetpb.FleetView{Conditions: []*fleetpb.Condition{{Code: "model-down", Text: "a"}, {Code: "not-placed", Text: "b"}}}
	if got := conditions(v); len(got) != 1 || got[0] != "b" {
		t.Errorf("conditions() = %q, want b alone", got)
	}
}

func TestLogsAreBounded(t *testing.T) {
	logs := filepath.Join(t.TempDir(), "logs")
	for range 3 { // three runs
		if err := freshLogs(logs); err != nil {
			t.Fatal(err)
		}
	}
	small, large := filepath.Join(logs, "small.log"), filepath.Join(logs, "large.log")
	for path, size := range map[string]int64{small: 10, large: maxLog + 1} {
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
	}
	trimLogs(logs)
	for path, want := range map[string]int64{small: 10, large: 0, large + ".old": maxLog} {
		if st, err := os.Stat(path); err != nil || st.Size() != want {
			t.Errorf("%s: %v, %v; want %d bytes", path, st, err, want)
		}
	}
}
