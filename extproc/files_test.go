package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFilesThatBlock puts a pipe that nobody writes to in the place of each file that
// extproc reads while it runs: it says so, serves on, and ends when it is to.
func TestFilesThatBlock(t *testing.T) {
	const fleet = "endpoints: [{address: \"127.0.0.1:1\", models: [m], type: openai}]\n"
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	pipe := func(name string) {
		t.Helper()
		if err := syscall.Mkfifo(at("pipe"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(at("pipe"), at(name)); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct{ name, file, text, log string }{
		{"fleet", "fleet.yaml", fleet, "fleet refused.*fleet.yaml: not a regular file"},
		{"key", "key", fleet + "policy: {sessions: {cookie: {name: c, keyFile: key}}}\n", "fleet refused.*key: not a regular file"},
		{"tokenizer", "t.gguf", fleet + "models: [{name: m, tokenizer: t.gguf}]\n", "tokenizer unreadable.*t.gguf: not a regular file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, text := range map[string]string{"fleet.yaml": tt.text, "key": strings.Repeat("k", 32)} {
				if err := os.WriteFile(at(name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if tt.name == "tokenizer" {
				pipe(tt.file) // it is read beside all else
			}
			p := start(t, "-fleet", at("fleet.yaml"))
			if tt.name != "tokenizer" {
				pipe(tt.file)
			}
			p.log.await(t, tt.log)
			for _, path := range []string{"/readyz", "/metrics"} {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.metrics+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || path == "/readyz" && !strings.Contains(string(body), "not a regular file") {
					t.Errorf("%s: %.300s %v", path, body, err)
				}
				cancel()
			}
			ended := make(chan error, 1)
			go func() { ended <- p.stop() }()
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(grace + 5*time.Second):
				t.Error("it does not end")
			}
			if err := os.Remove(at(tt.file)); err != nil {
				t.Fatal(err)
			}
		})
	}
	pipe("fleet.yaml")
	for _, flags := range [][]string{{"-check", "-fleet", at("fleet.yaml")}, {"-fleet", at("fleet.yaml")}} {
		if err := run(t.Context(), append(flags, "-listen", "127.0.0.1:0", "-metrics", "127.0.0.1:0"), io.Discard); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%v: %v", flags, err)
		}
	}
}
