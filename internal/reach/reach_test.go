package reach

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"millrace.dev/millrace/internal/config"
)

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

var quiet = slog.New(slog.DiscardHandler)

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		put(t, filepath.Join(dir, name), text)
		return filepath.Join(dir, name)
	}
	t.Setenv("TEST_REACH_KEY", "hunter2")
	t.Setenv("TEST_REACH_EMPTY", " ")
	tests := []struct {
		name string
		spec config.Endpoint
		want string // of the reason; empty: none
	}{
		{"nothing special", config.Endpoint{}, ""},
		{"a key", config.Endpoint{APIKey: config.APIKey{File: file("key", "hunter2\r\n")}}, ""},
		{"a variable", config.Endpoint{APIKey: config.APIKey{Env: "TEST_REACH_KEY"}}, ""},
		{"no variable", config.Endpoint{APIKey: config.APIKey{Env: "TEST_REACH_NONE"}}, "apiKey: the environment has no TEST_REACH_NONE"},
		{"an empty variable", config.Endpoint{APIKey: config.APIKey{Env: "TEST_REACH_EMPTY"}}, "apiKey: env TEST_REACH_EMPTY: must be one line"},
		{"no file", config.Endpoint{APIKey: config.APIKey{File: filepath.Join(dir, "gone")}}, "gone: no such file"},
		{"two lines", config.Endpoint{APIKey: config.APIKey{File: file("two", "hunter2\nx: hunter2")}}, "two: must be one line"},
		{"an empty file", config.Endpoint{Headers: []config.EngineHeader{{Name: "x-a", File: file("empty", "\n")}}}, "headers.x-a: "},
		{"authorities that are none", config.Endpoint{TLS: config.EngineTLS{CA: file("ca", "hunter2")}}, "tls.ca: "},
		{"no certificate", config.Endpoint{TLS: config.EngineTLS{Cert: filepath.Join(dir, "gone")}}, "tls.cert: "},
		{"half a list of authorities", config.Endpoint{TLS: config.EngineTLS{CA: file("half", "-----BEGIN CERTIFICATE-----\nhunter2")}}, "half written"},
		{"a certificate that is none", config.Endpoint{TLS: config.EngineTLS{Cert: file("cert", "hunter2")}}, "tls.cert: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Check(tt.spec)
			if (err != nil) != (tt.want != "") || err != nil && (!strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hunter2")) {
				t.Errorf("Check() = %v, want %q", err, tt.want)
			}
		})
	}
}

// TestDoorKeepsWhatWasGood sends the key of before while its file is bad.
func TestDoorKeepsWhatWasGood(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	d := New(config.Endpoint{APIKey: config.APIKey{File: file}}, quiet)
	r, err := http.NewRequest(http.MethodGet, "http://10.0.0.1/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Request(r); err == nil {
		t.Error("a key without its file")
	}
	for _, step := range []struct{ text, want string }{{"one", "Bearer one"}, {"a\nb", "Bearer one"}, {"another", "Bearer another"}} {
		put(t, file, step.text)
		with, err := d.Request(r)
		if err != nil || with.Header.Get("Authorization") != step.want {
			t.Errorf("%q: %v, %v", step.text, with.Header, err)
		}
	}
	if len(r.Header) > 0 {
		t.Error("the request that is used again has the key")
	}
}

func TestKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	synctest.Test(t, func(t *testing.T) {
		keys := NewKeys(quiet)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- keys.Run(ctx) }()
		spec := config.APIKey{File: file, Requests: true}
		if keys.Of(config.APIKey{File: file}) != nil {
			t.Error("a key of probes alone is given to requests")
		}
		k := keys.Of(spec)
		if k == nil || keys.Of(spec) != k || keys.Of(config.APIKey{File: file, Header: "x-api-key", Requests: true}) == k {
			t.Fatal("the same settings are to have the same key, others another")
		}
		if name, _ := k.Header(); name != "" || len(keys.Conditions()) != 1 {
			t.Errorf("header %q, conditions %v, without a file", name, keys.Conditions())
		}
		for _, want := range []string{"one", "two"} {
			put(t, file, want)
			time.Sleep(2 * every)
			if name, value := k.Header(); name != "authorization" || string(value) != "Bearer "+want || len(keys.Conditions()) != 0 {
				t.Errorf("%s: %s %q, conditions %v", want, name, string(value), keys.Conditions())
			}
		}
		put(t, file, "a\nb")
		time.Sleep(2 * every)
		if all := keys.Conditions(); len(all) != 1 || all[0].Code != "engine-key-stale" || !strings.Contains(all[0].Text, file) {
			t.Errorf("conditions %v of a file that is bad now", all)
		}
		if name, value := keys.Of(config.APIKey{File: file, Header: "x-api-key", Requests: true}).Header(); name != "x-api-key" || string(value) != "two" {
			t.Errorf("%s %q", name, string(value))
		}
		if name, _ := (*Key)(nil).Header(); name != "" {
			t.Error("no key has a header")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
