package stamp

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

func TestChanged(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	do := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	replace := func(name, text string) error {
		do(os.WriteFile(path("new"), []byte(text), 0o600))
		return os.Rename(path("new"), path(name))
	}
	do(os.WriteFile(path("plain"), []byte("one"), 0o600))
	do(os.Mkdir(path("first"), 0o700))
	do(os.Mkdir(path("second"), 0o700))
	do(os.WriteFile(path("first/key"), []byte("one"), 0o600))
	do(os.WriteFile(path("second/key"), []byte("two"), 0o600))
	do(os.Symlink("first", path("..data")))
	do(os.Symlink("..data/key", path("key"))) // as Kubernetes mounts secrets
	tests := []struct {
		name   string
		change func() error
		want   bool
	}{
		{"nothing", func() error { return nil }, false},
		{"written in place", func() error { return os.WriteFile(path("plain"), []byte("other"), 0o600) }, true},
		{"another of the same size", func() error { return replace("plain", "three") }, true},
		{"gone", func() error { return os.Remove(path("plain")) }, true},
		{"still gone", func() error { return nil }, false},
		{"there again", func() error { return replace("plain", "four") }, true},
		{"a link that is bent", func() error {
			do(os.Symlink("second", path("..new")))
			return os.Rename(path("..new"), path("..data"))
		}, true},
		{"a file that is not of it", func() error { return replace("other", "five") }, false},
	}
	for _, tt := range tests {
		before := Of(path("plain"), "", path("key"))
		do(tt.change())
		if before.Changed() != tt.want || before.Agree(Of(path("key"), path("plain"))) == tt.want {
			t.Errorf("%s: Changed() is %v; must be %v, and Agree() the opposite", tt.name, before.Changed(), tt.want)
		}
	}
	if Of().Changed() || Of("").Changed() {
		t.Error("no files have changed")
	}
}

func TestValue(t *testing.T) {
	name := filepath.Join(t.TempDir(), "number")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var notes []string
	read := func() (int, error) {
		text, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(string(text))
	}
	note := func(n int, err error) { notes = append(notes, fmt.Sprint(n, err != nil)) }
	if _, err := Load([]string{name}, read, note); err == nil {
		t.Error("a value without its file")
	}
	write("1")
	v, err := Load([]string{name}, read, note)
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want int, bad bool) {
		t.Helper()
		if n, err := v.Latest(); n != want || (err != nil) != bad {
			t.Errorf("Latest() = %d, %v; want %d", n, err, want)
		}
	}
	expect(1, false)
	write("two")
	expect(1, true)
	expect(1, true) // noted once
	write("22")
	expect(22, false)
	if want := []string{"1 true", "22 false"}; !slices.Equal(notes, want) {
		t.Errorf("notes are %q; want %q", notes, want)
	}
}
