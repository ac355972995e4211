package keys

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestTenants(t *testing.T) { synctest.Test(t, tenants) }

func tenants(t *testing.T) {
	a, lineA, err := New("team-a")
	if err != nil {
		t.Fatal(err)
	}
	b, lineB, err := New("team-b")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keys")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write("# whose\n" + lineA + " # since May\n\n")
	f, err := Open(slog.New(slog.DiscardHandler), path)
	if err != nil {
		t.Fatal(err)
	}
	for header, want := range map[string]string{
		"Bearer " + a: "team-a", "bearer  " + a + " ": "team-a", a: "team-a",
		"": "", "Bearer ": "", "Bearer " + b: "", "Basic " + a: "", a + "x": "", "Bearer " + lineA: "",
	} {
		if got, ok := f.Tenant([]byte(header)); got != want || ok != (want != "") {
			t.Errorf("%q is of %q (%t), want %q", header, got, ok, want)
		}
	}

	go func() { _ = f.Run(t.Context()) }()
	after := func(text string) {
		write(text)
		time.Sleep(2 * every)
		synctest.Wait()
	}
	after(a + " team-a\n")
	if len(f.Conditions()) != 1 {
		t.Fatal("the fault is not told")
	}
	if text := f.Conditions()[0].Text; strings.Contains(text, a) || !strings.Contains(text, "line 1") {
		t.Errorf("%q; must name the line and not show the key", text)
	}
	if _, ok := f.Tenant([]byte(a)); !ok {
		t.Error("a bad file took the keys before it away")
	}
	after(lineB)
	if _, ok := f.Tenant([]byte(b)); !ok {
		t.Error("the second key is not good")
	}
	if _, ok := f.Tenant([]byte(a)); ok || len(f.Conditions()) > 0 {
		t.Errorf("the first key is good still: %t, %v", ok, f.Conditions())
	}
}

func TestFaultsAreNamed(t *testing.T) {
	_, line, err := New("a")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"":                        "no key",
		"# nobody":                "no key",
		"sk-1 a":                  "line 1: must begin with sha256:",
		"sha256:00 a":             "line 1: must begin with sha256:",
		line[:71]:                 "line 1: after the hash",
		line + " b":               "line 1: after the hash",
		line + "\n" + line:        "line 2: the key is there already",
		line + "\nsk-1 a\nsk-2 a": "line 3: must begin",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	for _, tenant := range []string{"", "two words", "a#b", strings.Repeat("x", 64)} {
		if _, _, err := New(tenant); err == nil {
			t.Errorf("tenant %q is taken", tenant)
		}
	}
	if _, err := Open(slog.New(slog.DiscardHandler), t.TempDir()); err == nil {
		t.Error("a folder is taken")
	}
}

func FuzzParse(f *testing.F) {
	_, line, err := New("a")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(line + "\n# b\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		set, err := Parse(text)
		if err == nil && len(set) == 0 {
			t.Error("no key, no error")
		}
		for _, tenant := range set {
			if tenant == "" || len(tenant) > maxTenant {
				t.Errorf("tenant %q", tenant)
			}
		}
	})
}
