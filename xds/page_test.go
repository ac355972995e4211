package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"millrace.dev/millrace/internal/program"
)

// pairOf writes the certificate of a server of Go's tests, and returns a client that trusts it.
func pairOf(t *testing.T) (cert, key string, client *http.Client) {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(srv.Close)
	pair := srv.TLS.Certificates[0]
	b, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	return write(t, "page.pem", text("CERTIFICATE", pair.Certificate[0])), write(t, "page.key", text("PRIVATE KEY", b)), srv.Client()
}

// TestPageFlags: elsewhere than on loopback the page takes a certificate and a token, or xds does not start.
func TestPageFlags(t *testing.T) {
	cert, key, _ := pairOf(t)
	long, short := write(t, "token", strings.Repeat("x", 20)+"\n"), write(t, "short", "secret")
	tests := []struct {
		name, want string
		args       []string
	}{
		{"open to all", "-page: 0.0.0.0:7443 is not on loopback: -page-cert, -page-key and -page-token must be given, too", []string{"-page", "0.0.0.0:7443"}},
		{"without a token", "-page-token must be given", []string{"-page", "0.0.0.0:7443", "-page-cert", cert, "-page-key", key}},
		{"without TLS", "-page-cert, -page-key and -page-token must be given", []string{"-page", "0.0.0.0:7443", "-page-token", long}},
		{"half a certificate", "-page-cert, -page-key; must be given both", []string{"-page", "127.0.0.1:0", "-page-cert", cert}},
		{"a short token", "has 6 bytes; must have at least 16", []string{"-page", "127.0.0.1:0", "-page-token", short}},
		{"no token there", "-page-token: open /nowhere", []string{"-page", "127.0.0.1:0", "-page-token", "/nowhere"}},
		{"no certificate there", "-page-cert, -page-key: ", []string{"-page", "127.0.0.1:0", "-page-cert", "/nowhere", "-page-key", key}},
		{"nothing that they are for", "-page; is missing", []string{"-page-token", long}},
		{"a chat with nobody", `-page-chat: "x"; must be host:port`, []string{"-page-chat", "x"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := run(t.Context(), append(tt.args, "-check"), io.Discard)
			if err == nil || !strings.Contains(err.Error(), tt.want) || program.ExitCode(err) != program.ExitUsage {
				t.Errorf("run() = %v with %d, want …%s…", err, program.ExitCode(err), tt.want)
			}
		})
	}
	if err := run(t.Context(), []string{"-check", "-page", "0.0.0.0:7443", "-page-cert", cert, "-page-key", key, "-page-token", long}, io.Discard); err != nil {
		t.Errorf("with all of it: %v", err)
	}
}

// TestPageIsServed at the metrics address, and on a port of its own by TLS and a token.
func TestPageIsServed(t *testing.T) {
	cert, key, client := pairOf(t)
	token := strings.Repeat("x", 20)
	log := &logBuffer{line: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{
			"-listen", "127.0.0.1:0", "-metrics", "127.0.0.1:0", "-page", "127.0.0.1:0", "-page-cert", cert, "-page-key", key, "-page-token", write(t, "token", token),
		}, log)
	}()
	if err := shows("http://"+log.attr("metrics")+"/", "<title>Millrace</title>"); err != nil {
		t.Error(err)
	}
	if err := shows("http://"+log.attr("metrics")+"/page/events.json", "xds was started"); err != nil {
		t.Error(err)
	}
	log.mu.Lock()
	found := regexp.MustCompile(`msg=page \S+ address=(\S+) tls=true|msg=page address=(\S+) tls=true`).FindStringSubmatch(log.b.String())
	log.mu.Unlock()
	if found == nil {
		t.Fatalf("no line with the address of the page: %s", log.b.String())
	}
	for with, want := range map[string]int{"": http.StatusUnauthorized, "Bearer " + token: http.StatusOK} {
		req, _ := http.NewRequest("GET", "https://"+found[1]+found[2]+"/page/fleet.json", nil)
		req.Header.Set("Authorization", with)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != want {
			t.Errorf("with %q: %s, want %d", with, resp.Status, want)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
