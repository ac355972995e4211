package page

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestChatGoesToEnvoyAlone: two operations, as they come, with nothing of the viewer's but what
// the chat needs.
func TestChatGoesToEnvoyAlone(t *testing.T) {
	next := make(chan struct{})
	var seen *http.Request
	envoy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r.Clone(t.Context())
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("X-Millrace-Node", "node-1")
		w.Header().Set("Set-Cookie", "a=b")
		fmt.Fprint(w, "data: one\n\n")
		_ = http.NewResponseController(w).Flush()
		<-next
		fmt.Fprint(w, "data: two\n\n")
	}))
	defer envoy.Close()
	p := run(t, newWorld(wellView()), Options{Gateway: strings.TrimPrefix(envoy.URL, "http://")})
	srv := httptest.NewServer(p.Handler(Guard{}))
	defer srv.Close()
	req, _ := http.NewRequest("POST", srv.URL+"/page/chat?model=x", strings.NewReader(`{}`))
	for name, v := range map[string]string{"Content-Type": "application/json", "X-Session-Id": "s", "Cookie": "c=d", "Authorization": "Bearer page", "X-Api-Key": "k", "X-Gateway-Destination-Endpoint": "10.0.0.1:1"} {
		req.Header.Set(name, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body := bufio.NewReader(resp.Body)
	if line, err := body.ReadString('\n'); line != "data: one\n" || err != nil {
		t.Errorf("the first event is not passed through at once: %q, %v", line, err)
	}
	close(next)
	rest, _ := io.ReadAll(body)
	if !strings.Contains(string(rest), "data: two") || resp.Header.Get("X-Millrace-Node") != "node-1" || resp.Header.Get("Set-Cookie") != "" {
		t.Errorf("%q, %v", rest, resp.Header)
	}
	if h := seen.Header; seen.URL.String() != "/v1/chat/completions" || h.Get("Cookie") != "" || h.Get("Authorization") != "Bearer k" || h.Get("X-Session-Id") != "s" || h.Get("X-Gateway-Destination-Endpoint") != "" {
		t.Errorf("Envoy got %s %v", seen.URL, h)
	}
}

func TestChatIsRefused(t *testing.T) {
	off, gone := run(t, newWorld(wellView()), Options{}), run(t, newWorld(wellView()), Options{Gateway: "127.0.0.1:1"})
	tests := []struct {
		name, method, path, kind string
		page                     *Page
		want                     int
		text                     string
	}{
		{"no gateway", "POST", "/page/chat", "application/json", off, 404, "-page-chat"},
		{"no JSON", "POST", "/page/chat", "text/plain", gone, 415, "application/json"},
		{"Envoy is away", "POST", "/page/chat", "application/json", gone, 502, "does not answer"},
		{"another operation", "POST", "/page/v1/embeddings", "application/json", gone, 405, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, "http://localhost"+tt.path, strings.NewReader("{}"))
			r.Header.Set("Content-Type", tt.kind)
			w := httptest.NewRecorder()
			tt.page.Handler(Guard{}).ServeHTTP(w, r)
			if w.Code != tt.want || !strings.Contains(w.Body.String(), tt.text) {
				t.Errorf("%d %s, want %d with %q", w.Code, w.Body, tt.want, tt.text)
			}
		})
	}
	busy := make(chan struct{}, mostChats)
	for range mostChats {
		busy <- struct{}{}
	}
	r := httptest.NewRequest("POST", "http://localhost/page/chat", nil)
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	limited(busy, http.NotFoundHandler()).ServeHTTP(w, r)
	if w.Code != http.StatusTooManyRequests {
		t.Errorf("one chat more: %d", w.Code)
	}
}
