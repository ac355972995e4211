package page

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace.dev/millrace/xds/fleetpb"
)

// world is a fleet that tests change.
type world struct {
	mu   sync.Mutex
	view *fleetpb.FleetView
	next chan struct{}
}

func newWorld(v *fleetpb.FleetView) *world { return &world{view: v, next: make(chan struct{})} }

func (w *world) get() (*fleetpb.FleetView, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.view, w.next
}

func (w *world) set(v *fleetpb.FleetView) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.view = v
	close(w.next)
	w.next = make(chan struct{})
}

// run runs the page of a world until the test ends.
func run(t testing.TB, w *world, o Options) *Page {
	t.Helper()
	o.View = w.get
	p := New(o, prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return p
}

// follow reads events of a stream until one has a text.
func follow(t testing.TB, from *bufio.Reader, name, text string) string {
	t.Helper()
	event := ""
	for {
		line, err := from.ReadString('\n')
		if err != nil {
			t.Fatalf("the stream ended before an event %s with %q: %v", name, text, err)
		}
		if rest, ok := strings.CutPrefix(line, "event: "); ok {
			event = strings.TrimSpace(rest)
		} else if data, ok := strings.CutPrefix(line, "data: "); ok && event == name && strings.Contains(data, text) {
			return data
		}
	}
}

func open(t testing.TB, url string) *bufio.Reader {
	t.Helper()
	resp, err := http.Get(url + "/page/stream")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || ct != "text/event-stream" {
		t.Fatalf("the stream is %s, %s", resp.Status, ct)
	}
	return bufio.NewReader(resp.Body)
}

// TestStreamFollowsTheFleet: a viewer gets what is there, and what happens.
func TestStreamFollowsTheFleet(t *testing.T) {
	w := newWorld(wellView())
	p := run(t, w, Options{})
	srv := httptest.NewServer(p.Handler(Guard{}))
	defer srv.CloseClientConnections() // streams do not end by themselves
	one, two := open(t, srv.URL), open(t, srv.URL)
	var data struct {
		At    time.Time `json:"at"`
		Fleet Snapshot  `json:"fleet"`
	}
	if err := json.Unmarshal([]byte(follow(t, one, "fleet", "All is well")), &data); err != nil || data.At.IsZero() || len(data.Fleet.Nodes) != 3 {
		t.Errorf("%+v, %v", data, err)
	}
	follow(t, two, "fleet", "All is well")
	follow(t, one, "event", "xds was started")
	dying := wellView()
	lose(dying, 2)
	w.set(dying)
	for _, v := range []*bufio.Reader{one, two} {
		follow(t, v, "fleet", `"health":"degraded"`)
		follow(t, v, "event", "smollm2-1 takes no requests")
		follow(t, v, "beat", "at")
	}
	if n := testutil.ToFloat64(p.metrics.encoded); n > 3 {
		t.Errorf("two viewers of two snapshots had %v of them encoded", n)
	}
	// Who comes later gets what has happened before.
	late := open(t, srv.URL)
	follow(t, late, "event", "smollm2-1 takes no requests")
	for path, want := range map[string]string{"fleet.json": `"health":"degraded"`, "events.json": `"seq":2`, "decisions.json": "[]"} {
		resp, err := http.Get(srv.URL + "/page/" + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(b), want) {
			t.Errorf("%s has no %s: %.200s", path, want, b)
		}
	}
}

// TestViewersAreBounded in number.
func TestViewersAreBounded(t *testing.T) {
	p := run(t, newWorld(wellView()), Options{})
	p.viewers.Store(mostViewers)
	w := httptest.NewRecorder()
	p.Handler(Guard{}).ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/page/stream", nil))
	if w.Code != http.StatusServiceUnavailable || p.viewers.Load() != mostViewers {
		t.Errorf("one viewer more: %d, %d viewers", w.Code, p.viewers.Load())
	}
}

// stuck is a viewer that reads nothing: what is written to it fails, as a connection does
// whose deadline is over.
type stuck struct{ http.ResponseWriter }

func (stuck) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// TestSlowViewersAreDropped, and nothing of what they missed is kept.
func TestSlowViewersAreDropped(t *testing.T) {
	p := run(t, newWorld(wellView()), Options{})
	p.stream(stuck{httptest.NewRecorder()}, httptest.NewRequest("GET", "http://localhost/page/stream", nil))
	if n := testutil.ToFloat64(p.metrics.dropped); n != 1 || p.viewers.Load() != 0 {
		t.Errorf("%v dropped, %d viewers", n, p.viewers.Load())
	}
}

func TestGuard(t *testing.T) {
	const token = "0123456789abcdef"
	named := func(name string) bool { return name == "mesh.example" }
	tests := []struct {
		name   string
		guard  Guard
		url    string
		header map[string]string
		method string
		want   int
		text   string
	}{
		{name: "localhost", url: "http://localhost:7101/page/", want: 200, text: "Millrace"},
		{name: "loopback", url: "http://127.0.0.1:7101/page/", want: 200},
		{name: "IPv6", url: "http://[::1]:7101/page/", want: 200},
		{name: "the root", url: "http://localhost/", want: 302},
		{name: "a name of somebody's that resolves to us", url: "http://evil.example:7101/page/fleet.json", want: 421, text: "not a name of this page"},
		{name: "an address of the network", url: "http://10.0.0.1/page/", want: 421},
		{name: "another site posts", url: "http://localhost/page/chat", method: "POST", header: map[string]string{"Sec-Fetch-Site": "cross-site"}, want: 403},
		{name: "refused", guard: Guard{Refused: "give xds -page"}, url: "http://localhost/page/", want: 403, text: "-page"},
		{name: "no token", guard: Guard{Token: token, Host: named}, url: "https://mesh.example/page/fleet.json", want: 401, text: "-page-token"},
		{name: "no token, by a browser", guard: Guard{Token: token, Host: named}, url: "https://mesh.example/page/", want: 303},
		{name: "the form", guard: Guard{Token: token, Host: named}, url: "https://mesh.example/page/login.html", want: 200, text: "Token"},
		{name: "a token", guard: Guard{Token: token, Host: named}, url: "https://mesh.example/page/fleet.json", header: map[string]string{"Authorization": "Bearer " + token}, want: 200},
		{name: "a wrong token", guard: Guard{Token: token, Host: named}, url: "https://mesh.example/page/fleet.json", header: map[string]string{"Authorization": "Bearer x"}, want: 401},
		{name: "a cookie", guard: Guard{Token: token, Host: named}, url: "https://mesh.example/page/fleet.json", header: map[string]string{"Cookie": cookie + "=" + Guard{Token: token}.proof()}, want: 200},
		{name: "a wrong cookie", guard: Guard{Token: token, Host: named}, url: "https://mesh.example/page/fleet.json", header: map[string]string{"Cookie": cookie + "=" + Guard{}.proof()}, want: 401},
		{name: "a token without TLS", guard: Guard{Token: token, Host: named}, url: "http://mesh.example/page/fleet.json", header: map[string]string{"Authorization": "Bearer " + token}, want: 403, text: "TLS"},
		{name: "another name than the certificate's", guard: Guard{Token: token, Host: named}, url: "https://evil.example/page/", want: 421},
	}
	p := run(t, newWorld(wellView()), Options{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			method := tt.method
			if method == "" {
				method = "GET"
			}
			r := httptest.NewRequest(method, tt.url, nil)
			for k, v := range tt.header {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			p.Handler(tt.guard).ServeHTTP(w, r)
			if w.Code != tt.want || !strings.Contains(w.Body.String(), tt.text) {
				t.Errorf("%d %.200s, want %d with %q", w.Code, w.Body, tt.want, tt.text)
			}
			if !strings.Contains(w.Header().Get("Content-Security-Policy"), "default-src 'none'; script-src 'self'") {
				t.Error("without a policy for the browser")
			}
		})
	}
}

// TestLogin holds that a browser gets in by the form, and stays.
func TestLogin(t *testing.T) {
	g := Guard{Token: "0123456789abcdef", Host: func(string) bool { return true }}
	h := run(t, newWorld(wellView()), Options{}).Handler(g)
	for token, where := range map[string]string{"wrong": "/page/login.html?wrong", g.Token: "/page/"} {
		r := httptest.NewRequest("POST", "https://mesh.example/page/login", strings.NewReader("token="+token))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if to := w.Header().Get("Location"); w.Code != 303 || to != where {
			t.Errorf("%s: %d to %s", token, w.Code, to)
		}
		set := w.Header().Get("Set-Cookie")
		if (set != "") != (token == g.Token) || set != "" && !strings.Contains(set, "HttpOnly; Secure; SameSite=Strict") {
			t.Errorf("%s: cookie %q", token, set)
		}
		if strings.Contains(set, g.Token) {
			t.Error("the cookie has the token")
		}
	}
}

// TestAssetsComeFromHere holds that nothing is fetched from elsewhere, that nothing is written
// into the page that its policy forbids, and that all of it is small.
func TestAssetsComeFromHere(t *testing.T) {
	files, err := assets.ReadDir("assets")
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for _, f := range files {
		b, err := assets.ReadFile("assets/" + f.Name())
		if err != nil {
			t.Fatal(err)
		}
		size += len(b)
		text := strings.ReplaceAll(string(b), "http://www.w3.org/2000/svg", "")
		for _, bad := range []string{"http://", "https://", "@import", "innerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=", "onclick=", "<script>"} {
			if strings.Contains(text, bad) {
				t.Errorf("%s has %q", f.Name(), bad)
			}
		}
	}
	if most := 300 << 10; size > most {
		t.Errorf("the page has %d bytes; must have at most %d", size, most)
	}
	t.Logf("%d files, %d bytes", len(files), size)
}

// TestMetricsAreWellFormed by Prometheus' rules.
func TestMetricsAreWellFormed(t *testing.T) {
	reg := prometheus.NewRegistry()
	New(Options{}, reg)
	if faults, err := testutil.GatherAndLint(reg); err != nil || len(faults) > 0 {
		t.Errorf("%v, %v", faults, err)
	}
}

// TestTextsOfEventsAreBounded, and are text where they are cut.
func TestTextsOfEventsAreBounded(t *testing.T) {
	p := run(t, newWorld(wellView()), Options{})
	p.happened(noon, Event{Text: strings.Repeat("ü", 5000)})
	items, _ := p.events.Since(0)
	for _, one := range items {
		if len(one) > 2<<10 || strings.Contains(string(one), `\ufffd`) {
			t.Errorf("%d bytes: %.100s", len(one), one)
		}
	}
}
