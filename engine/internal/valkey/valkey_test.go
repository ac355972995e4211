package valkey

import (
	"errors"
	"strings"
	"testing"

	"millrace.dev/millrace/engine/internal/record"
	"millrace.dev/millrace/internal/secret"
)

func TestURL(t *testing.T) {
	for url, want := range map[secret.URL]string{
		"redis://10.0.0.7:6379/0":          "",
		"rediss://u:hunter2@h:1/3":         "",
		"redis://a:1?addr=b:2":             "",
		"10.0.0.7:6379":                    "must be such as",
		"http://h:1":                       "must begin with redis://",
		"redis://u:hunter2@h:1/zero":       "not a URL of a server",
		"redis://u:hunter2@h:x":            "must be such as",
		"unix:///run/x":                    "must be such as",
		"redis://u:hunter2@h:1?db=hunter2": "not a URL of a server",
	} {
		_, err := Parse(url)
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
}

// TestServerIsDown has all be unavailable, at once from the second time on.
func TestServerIsDown(t *testing.T) {
	s, err := New(Config{URL: "redis://127.0.0.1:1/0", Limits: record.Defaults})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	k := record.Key{ID: "a"}
	_, got := s.Get(t.Context(), k)
	for what, err := range map[string]error{"Get": got, "Put": s.Put(t.Context(), record.Record{Key: k, Version: 1}), "Delete": s.Delete(t.Context(), k)} {
		if !errors.Is(err, record.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
