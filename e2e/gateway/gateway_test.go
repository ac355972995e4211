// Package gateway tests what xds makes of a real Envoy, over fake nodes and a fake
// extproc that speak the real protocols. It needs no model and no Python.
//
// Its one rule: what is asserted is what a client or an engine can see.
package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/engine/enginepb"
)

// nobody is an address on which extproc would be, if it were there.
const nobody = "127.0.0.1:9"

// send posts a body as it is; header holds pairs of name and value.
func send(ctx context.Context, url, body string, header ...string) (rig.Answer, error) {
	return rig.Send(ctx, url, strings.NewReader(body), header...)
}

func (g *gateway) must(t *testing.T, code int, header ...string) rig.Answer {
	t.Helper()
	a, err := send(t.Context(), g.url(rig.ChatPath), `{"model":"smollm2"}`, header...)
	if err != nil {
		t.Fatal(err)
	}
	if a.Status != code {
		t.Fatalf("status %d, want %d: %s", a.Status, code, a.Body)
	}
	return a
}

// TestGatewayWithoutExtproc shows what xds makes of Envoy when extproc is away.
// The parts share one gateway and run in order.
func TestGatewayWithoutExtproc(t *testing.T) {
	g := newGateway(t, nobody)
	t.Run("weights split the traffic", g.testSplit)
	t.Run("own answers are OpenAI JSON", g.testReplies)
	t.Run("own answers on Anthropic's paths are Anthropic JSON", g.testMessagesReplies)
	t.Run("models are answered without an engine", g.testModels)
	t.Run("a browser asks for its page", g.testBrowser)
	t.Run("the body says which model", g.testOtherModel)
	t.Run("what a client must not say is removed", g.testUntrusted)
	t.Run("retries walk to the next host", g.testRetries)
	t.Run("what is not ready leaves", g.testLeave)
	t.Run("what hangs is marked first", g.testHang)
	t.Run("all fail their checks at once", g.testStall)
	t.Run("nobody is left", g.testNobody)
	t.Run("a restart of xds disturbs nothing", g.testRestart)
}

func (g *gateway) testSplit(t *testing.T) {
	counts := g.served(func() {
		for range 600 {
			g.must(t, 200)
		}
	})
	if c := counts["node-c"]; c < 170 || c > 230 || counts["node-b"] != 0 || counts["node-a"]+c != 600 {
		t.Errorf("600 requests were served as %v, want 400 on node-a and 200 on node-c", counts)
	}
}

func (g *gateway) testReplies(t *testing.T) {
	huge := bytes.Repeat([]byte("a"), 20<<20)
	tests := []struct {
		name, method, path string
		body               []byte
		header             http.Header
		want               int
		code               string
	}{
		{name: "unknown path", method: "GET", path: "/nothing", want: 404, code: "not_found"},
		{name: "unknown model to read", method: "GET", path: "/v1/models/nobody", want: 404, code: "not_found"},
		{name: "model to write", method: "DELETE", path: "/v1/models/smollm2", want: 405, code: "method_not_allowed"},
		{name: "20 MiB", method: "POST", path: rig.ChatPath, body: huge, want: 413, code: "request_too_large"},
		{name: "header bomb", method: "POST", path: rig.ChatPath, header: http.Header{"X-Bomb": {strings.Repeat("x", 100<<10)}}, want: 431, code: "headers_too_large"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, g.url(tt.path), bytes.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range tt.header {
				req.Header[k] = v
			}
			a, err := rig.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			checkReply(t, a, tt.want, tt.code)
		})
	}
}

func checkReply(t *testing.T, a rig.Answer, code int, errorCode string) {
	t.Helper()
	if a.Status != code {
		t.Fatalf("status %d, want %d: %s", a.Status, code, a.Body)
	}
	if errorCode == "" {
		return
	}
	var e rig.APIError
	if err := json.Unmarshal(a.Body, &e); err != nil {
		t.Fatalf("%v: %s", err, a.Body)
	}
	if e.Error.Code != errorCode || e.Error.Message == nil || *e.Error.Message == "" || e.Error.Type == nil {
		t.Errorf("error %s, want code %s", a.Body, errorCode)
	}
	if ct := a.Header.Get("content-type"); ct != "application/json" {
		t.Errorf("content-type %q", ct)
	}
}

func (g *gateway) testModels(t *testing.T) {
	counts := g.served(func() {
		b, err := rig.Get(g.url("/v1/models"))
		if want := `"id":"smollm2","object":"model"`; err != nil || !strings.Contains(string(b), want) || !strings.Contains(string(b), `"object":"list"`) {
			t.Errorf("/v1/models: %v %s", err, b)
		}
		if b, err := rig.Get(g.url("/v1/models/other")); err != nil || !strings.HasPrefix(string(b), `{"id":"other"`) {
			t.Errorf("/v1/models/other: %v %s", err, b)
		}
	})
	if counts["node-a"]+counts["node-b"]+counts["node-c"] != 0 {
		t.Errorf("engines were asked: %v", counts)
	}
}

// testOtherModel asks for a model that no node is left for: the first model's
// engines must not be bothered.
// testBrowser asks as a browser does for the page of an origin that the policy names, and for
// one of another.
func (g *gateway) testBrowser(t *testing.T) {
	for origin, allowed := range map[string]string{"https://chat.example.com": "https://chat.example.com", "https://evil.example.com": ""} {
		for _, path := range []string{rig.ChatPath, "/v1/models"} {
			first, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, g.url(path), nil)
			if err != nil {
				t.Fatal(err)
			}
			first.Header.Set("Origin", origin)
			first.Header.Set("Access-Control-Request-Method", "POST")
			first.Header.Set("Access-Control-Request-Headers", "authorization,content-type,x-stainless-lang")
			resp, err := http.DefaultClient.Do(first)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			h := resp.Header
			if got := h.Get("Access-Control-Allow-Origin"); resp.StatusCode != http.StatusOK || got != allowed {
				t.Errorf("OPTIONS %s of %s: %s, allowed %q, want %q", path, origin, resp.Status, got, allowed)
			}
			if allowed != "" && (h.Get("Access-Control-Max-Age") != "300" || h.Get("Access-Control-Allow-Headers") != "authorization, *" ||
				!strings.Contains(h.Get("Access-Control-Allow-Methods"), "POST")) {
				t.Errorf("OPTIONS %s: %v", path, h)
			}
		}
		if got := g.must(t, 200, "Origin", origin).Header.Get("Access-Control-Allow-Origin"); got != allowed {
			t.Errorf("the answer to %s allows %q, want %q", origin, got, allowed)
		}
		list, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.url("/v1/models"), nil)
		if err != nil {
			t.Fatal(err)
		}
		list.Header.Set("Origin", origin)
		resp, err := http.DefaultClient.Do(list)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Access-Control-Allow-Origin"); resp.StatusCode != http.StatusOK || got != allowed {
			t.Errorf("GET /v1/models of %s: %s, allowed %q, want %q", origin, resp.Status, got, allowed)
		}
	}
}

func (g *gateway) testOtherModel(t *testing.T) {
	tests := []struct {
		body, kind string
		want       int
	}{
		{`{"messages":[{"role":"user","content":"model"}],"model":"other"}`, "application/json", 503},
		{`{"model":"other"}`, "application/json; charset=utf-8", 503},
		{`{"model":"smollm2"}`, "application/json", 200},
		{`{"model":"nobody"}`, "application/json", 200}, // an engine says what is wrong with it
		{`{"model":`, "application/json", 200},
		{`{}`, "", 200},
	}
	for _, tt := range tests {
		a, err := send(t.Context(), g.url(rig.ChatPath), tt.body, "content-type", tt.kind)
		if err != nil || a.Status != tt.want {
			t.Errorf("%s %q: %d %v, want %d", tt.body, tt.kind, a.Status, err, tt.want)
		}
	}
}

func (g *gateway) testUntrusted(t *testing.T) {
	a := g.must(t, 200, "x-gateway-destination-endpoint", nobody, "x-millrace-model", "other",
		"x-envoy-max-retries", "9", "x-millrace-priority", "critical", "x-session-id", "s1", "x-millrace-prompt-tokens", "7")
	n := g.nodes[a.Header.Get("x-millrace-node")]
	if n == nil {
		t.Fatalf("no engine answered: %s", a.Body)
	}
	seen := *n.seen.Load()
	for _, name := range []string{"x-gateway-destination-endpoint", "x-millrace-model", "x-envoy-max-retries", "x-millrace-prompt-tokens"} {
		if v := seen.Get(name); v != "" {
			t.Errorf("the engine got the client's %s: %s", name, v)
		}
	}
	if seen.Get("x-millrace-priority") != "critical" || seen.Get("x-session-id") != "s1" {
		t.Errorf("the engine didn't get priority and session: %v", seen)
	}
	if v := a.Header.Get("endpoint-load-metrics"); v != "" {
		t.Errorf("the client got the load report %q", v)
	}
	if a.Header.Get("x-request-id") == "" || a.Header.Get("x-envoy-attempt-count") != "1" {
		t.Errorf("header %v; want a request id and one attempt", a.Header)
	}
	b, err := send(t.Context(), g.url("/chat/completions"), `{}`)
	if err != nil || b.Status != 200 {
		t.Fatalf("alias: %d %v", b.Status, err)
	}
	if p := g.nodes[b.Header.Get("x-millrace-node")].seen.Load().Get(":path"); p != rig.ChatPath {
		t.Errorf("the alias came as %s", p)
	}
}

func (g *gateway) testRetries(t *testing.T) {
	for _, code := range []int32{503, 429, 500} {
		g.nodes["node-a"].code.Store(code)
		counts := g.served(func() {
			for range 4 {
				g.must(t, 200)
			}
		})
		if counts["node-c"] != 4 {
			t.Errorf("status %d: served as %v, want all 4 answered by node-c", code, counts)
		}
	}
	g.nodes["node-c"].code.Store(503)
	checkReply(t, g.must(t, 503), 503, "")
	g.nodes["node-a"].code.Store(200)
	g.nodes["node-c"].code.Store(200)
	if err := rig.Poll(15*time.Second, func() error { return g.has(2) }); err != nil {
		t.Fatal(err) // an ejected host comes back by itself
	}
}

// steady sends requests until the load is stopped, one at a time.
func (g *gateway) steady(t *testing.T) *rig.Load {
	return rig.StartLoadOf(t, 1, func(ctx context.Context, _, _ int) (rig.Outcome, error) {
		a, err := send(ctx, g.url(rig.ChatPath), `{}`)
		if err == nil && a.Status != 200 {
			err = fmt.Errorf("status %d: %s", a.Status, a.Body)
		}
		return rig.Outcome{Replica: a.Header.Get("x-millrace-node")}, err
	})
}

func (g *gateway) testLeave(t *testing.T) {
	load := g.steady(t)
	began := time.Now()
	g.nodes["node-b"].set(func(s *enginepb.Status) { s.State, s.Reason = enginepb.State_BROKEN, "shard died" })
	if err := rig.Poll(5*time.Second, func() error { return g.has(1) }); err != nil {
		t.Error(err)
	}
	t.Logf("out of Envoy after %v", time.Since(began))
	if counts := g.served(func() { g.must(t, 200) }); counts["node-a"] != 0 {
		t.Errorf("the replica without its shard still serves: %v", counts)
	}
	g.nodes["node-b"].set(func(s *enginepb.Status) { s.State, s.Reason = enginepb.State_READY, "" })
	if err := rig.Poll(5*time.Second, func() error { return g.has(2) }); err != nil {
		t.Error(err)
	}
	load.MustAllSucceed(t)
}

// testHang stops an engine: its agent says so, Envoy finds out and resets what is
// stuck there, and the host leaves.
func (g *gateway) testHang(t *testing.T) {
	c := g.nodes["node-c"]
	hung := make(chan struct{})
	c.mu.Lock()
	c.hung = hung
	c.mu.Unlock()
	began := time.Now()
	var wg sync.WaitGroup
	for range 6 { // round robin: some of them get stuck
		wg.Go(func() {
			a, err := send(t.Context(), g.url(rig.ChatPath), `{}`)
			if err != nil || a.Status != 200 {
				t.Errorf("a stuck request ended with %d %v", a.Status, err)
			}
		})
	}
	if err := rig.Poll(2*time.Second, func() error { return g.lists(c.ln.Addr().String()+"::rq_active::0", false) }); err != nil {
		t.Error(err) // nothing got stuck there
	}
	c.mu.Lock()
	c.mute = "silent: nothing heard for 1s"
	c.mu.Unlock()
	c.wake()
	if err := rig.Poll(2*time.Second, func() error { return g.lists("failed_eds_health", true) }); err != nil {
		t.Error(err)
	}
	wg.Wait()
	freed := time.Since(began)
	gone := rig.Poll(6*time.Second, func() error { return g.lists(c.ln.Addr().String(), false) })
	left := time.Since(began)
	t.Logf("stuck requests were answered elsewhere after %v, the host left after %v", freed, left)
	if gone != nil || freed < 500*time.Millisecond || freed > 4*time.Second || left < 2900*time.Millisecond || left > 5*time.Second {
		t.Errorf("want within 4 s, and after 3 s: %v", gone)
	}
	close(hung)
	c.mu.Lock()
	c.hung, c.mute = nil, ""
	c.mu.Unlock()
	c.wake()
	if err := rig.Poll(5*time.Second, func() error { return g.has(2) }); err != nil {
		t.Error(err)
	}
}

// lists says why Envoy's hosts of the model do not have the text, or have it though
// they should not.
func (g *gateway) lists(text string, want bool) error {
	b, err := rig.Get("http://" + g.admin + "/clusters?filter=engines/smollm2")
	if err == nil && strings.Contains(string(b), text) != want {
		err = fmt.Errorf("the hosts have %q: %v\n%s", text, !want, b)
	}
	return err
}

// testStall has every engine fail Envoy's checks, as on a machine that stalls:
// requests are tried all the same.
func (g *gateway) testStall(t *testing.T) {
	for _, n := range g.nodes {
		n.sick.Store(true)
	}
	if err := rig.Poll(5*time.Second, func() error { return g.has(0) }); err != nil {
		t.Error(err)
	}
	counts := g.served(func() {
		for range 6 {
			g.must(t, 200)
		}
	})
	if counts["node-a"] == 0 || counts["node-c"] == 0 {
		t.Errorf("served as %v, want by both", counts)
	}
	for _, n := range g.nodes {
		n.sick.Store(false)
	}
	if err := rig.Poll(5*time.Second, func() error { return g.has(2) }); err != nil {
		t.Error(err)
	}
}

func (g *gateway) testNobody(t *testing.T) {
	all := func(state enginepb.State) {
		for _, n := range g.nodes {
			n.set(func(s *enginepb.Status) { s.State = state })
		}
	}
	all(enginepb.State_BROKEN)
	if err := rig.Poll(5*time.Second, func() error { return g.has(0) }); err != nil {
		t.Error(err)
	}
	a := g.must(t, 503)
	checkReply(t, a, 503, "unavailable")
	if a.Header.Get("retry-after") == "" {
		t.Errorf("503 without Retry-After: %v", a.Header)
	}
	all(enginepb.State_READY)
	if err := rig.Poll(5*time.Second, func() error { return g.has(2) }); err != nil {
		t.Error(err)
	}
}

func (g *gateway) testRestart(t *testing.T) {
	a := g.nodes["node-a"].report(1).GetEngine().GetAssignment()
	updates := g.stat(t, "cluster.engines/smollm2.membership_change")
	load := g.steady(t)
	g.xds.KillAndWait()
	if err := g.has(2); err != nil {
		t.Errorf("without xds: %v", err)
	}
	g.startXDS(t)
	connected := func() error {
		if s := g.stat(t, "control_plane.connected_state"); s != 1 {
			return fmt.Errorf("connected_state %v", s)
		}
		b, err := rig.Get("http://" + g.metrics + "/metrics")
		if err == nil && strings.Contains(string(b), `millrace_xds_acks_total{type="cluster"} 0`) {
			err = errors.New("Envoy has not taken anything from the new xds")
		}
		return err
	}
	if err := rig.Poll(10*time.Second, connected); err != nil {
		t.Error(err)
	}
	for range 100 {
		g.must(t, 200)
	}
	load.MustAllSucceed(t)
	t.Log(load)
	if b := g.nodes["node-a"].report(1).GetEngine().GetAssignment(); a.GetGeneration() != b.GetGeneration() {
		t.Errorf("the running replica was assigned anew: %d, was %d", b.GetGeneration(), a.GetGeneration())
	}
	if now := g.stat(t, "cluster.engines/smollm2.membership_change"); now != updates {
		t.Errorf("hosts came or went: membership_change %v, was %v", now, updates)
	}
	for _, name := range []string{"listener_manager.listener_modified", "cluster_manager.cluster_modified", "cluster_manager.cluster_removed"} {
		if v := g.stat(t, name); v != 0 {
			t.Errorf("%s is %v after the restart; nothing had changed", name, v)
		}
	}
}
