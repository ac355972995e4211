package obs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestPrintErrorShowsEveryHint(t *testing.T) {
	cause := errors.New("listen 127.0.0.1:1: address already in use")
	err := fmt.Errorf("up: %w", &Hint{Err: &Hint{Err: cause, Next: "inner"}, Next: "choose another port"})
	var b strings.Builder
	PrintError(&b, "millrace", err)
	want := "millrace: up: listen 127.0.0.1:1: address already in use\nmillrace: hint: choose another port\nmillrace: hint: inner\n"
	if b.String() != want {
		t.Errorf("PrintError wrote\n%swant\n%s", b.String(), want)
	}
	if !errors.Is(err, cause) {
		t.Error("the hint hides its cause from errors.Is")
	}
}

// TestNothingShowsWhoAsks has an address with a password, in a setting that is not made for
// one, be shown without it wherever a program shows anything.
func TestNothingShowsWhoAsks(t *testing.T) {
	text := `-xds: "user:hunter2@10.0.0.1:7100"; must be ip:port`
	var b strings.Builder
	PrintError(&b, "extproc", &Hint{Err: errors.New(text), Next: text})
	log := Logger(&b, "extproc")
	log.Warn("fault", "text", text, "err", fmt.Errorf("fleet: %w", errors.New(text)))
	log.With("text", text).WithGroup("g").Info("again", "address", "http://hunter2@10.0.0.1/")
	w := httptest.NewRecorder()
	writeConditions(w, func() []Condition { return []Condition{{Code: "file", Text: text, Next: text}} })
	b.WriteString(w.Body.String())
	if got := b.String(); strings.Contains(got, "hunter2") || strings.Count(got, "@10.0.0.1") != 8 {
		t.Error(got)
	}
}

func TestOnlyBlockingConditionsMakeUnready(t *testing.T) {
	tests := []struct {
		name       string
		conditions []Condition
		code       int
		admin      string // what /readyz of each handler answers
		probes     string
	}{
		{"nothing", nil, 200, "[]", "[]"},
		{
			"what says nothing of its severity", []Condition{{Code: "file", Text: "line 3", Next: "mend it"}}, 200,
			`[{"code":"file","text":"line 3","next":"mend it","severity":"degraded"}]`, `[{"code":"file","severity":"degraded"}]`,
		},
		{
			"both", []Condition{{Code: "file"}, {Code: "no-table", Text: "of xds", Severity: Blocking}}, 503,
			`[{"code":"file","severity":"degraded"},{"code":"no-table","text":"of xds","severity":"blocking"}]`,
			`[{"code":"file","severity":"degraded"},{"code":"no-table","severity":"blocking"}]`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			list := func() []Condition { return tt.conditions }
			for want, h := range map[string]http.Handler{
				tt.admin: Admin(prometheus.NewRegistry(), list, NewWatch(nil)), tt.probes: Probes(prometheus.NewRegistry(), list, NewWatch(nil)),
			} {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
				got := strings.TrimSpace(w.Body.String())
				if w.Code != tt.code || got != want {
					t.Errorf("/readyz answered %d %s, want %d %s", w.Code, got, tt.code, want)
				}
				var back []Condition
				if err := json.Unmarshal(w.Body.Bytes(), &back); err != nil || len(back) != len(tt.conditions) {
					t.Errorf("read back: %v, %v", back, err)
				}
			}
		})
	}
	var c Condition
	if err := json.Unmarshal([]byte(`{"severity":"grave"}`), &c); err == nil {
		t.Error("an unknown severity is read")
	}
}

func TestReadyzListsConditions(t *testing.T) {
	conditions := []Condition{{Code: "no-driver", Text: "no GPU driver", Next: "install one", Severity: Blocking}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, ln, Admin(prometheus.NewRegistry(), func() []Condition { return conditions }, NewWatch(nil)))
	}()
	resp, err := http.Get("http://" + ln.Addr().String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), `"code":"no-driver"`) {
		t.Errorf("/readyz answered %d %s, want 503 with the condition", resp.StatusCode, body)
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve() = %v after its context ended, want nil", err)
	}
}

func TestParseTarget(t *testing.T) {
	if got, err := ParseTarget("otlp://127.0.0.1:4317"); err != nil || got != "127.0.0.1:4317" {
		t.Errorf("ParseTarget() = %q, %v", got, err)
	}
	for _, bad := range []string{"", "file.json", "otlp://nohost", "http://127.0.0.1:4317"} {
		if _, err := ParseTarget(bad); err == nil {
			t.Errorf("ParseTarget(%q) took a bad target", bad)
		}
	}
}

func TestTracingWithoutTargetRecordsNothing(t *testing.T) {
	provider, shutdown, err := Tracing(t.Context(), "x", "", "")
	if err != nil {
		t.Fatal(err)
	}
	_, span := provider.Tracer("t").Start(t.Context(), "s")
	if span.IsRecording() {
		t.Error("a provider without a target records")
	}
	if err := shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
