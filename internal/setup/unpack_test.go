package setup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWriteMemberStaysInside(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"../out", "/out", "a/../../out", ""} {
		err := writeMember(strings.NewReader("x"), filepath.Join(dir, "in"), name, 0o644)
		if err == nil || !strings.Contains(err.Error(), "points outside") {
			t.Errorf("writeMember(%q) = %v, want it refused", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "out")); err == nil {
		t.Error("a member was written outside")
	}
}

func TestUnpackKeepsTheExecutableBit(t *testing.T) {
	dir := t.TempDir()
	if err := writeMember(strings.NewReader("x"), dir, "program", 0o755); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dir, "program")); err != nil || st.Mode().Perm()&0o111 == 0 {
		t.Errorf("mode %v, %v, want it executable", st.Mode(), err)
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(false, zipped(f, map[string]string{"a/b": "text", "a/../../c": "evil"}))
	f.Add(true, tarred(f, map[string]string{"a/b": "text", "../c": "evil"}))
	f.Fuzz(func(t *testing.T, source bool, b []byte) {
		dir := t.TempDir()
		file := filepath.Join(dir, "archive")
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
		a := archive{Source: source, Take: []rule{{"*", "./"}, {"*/*", "x/"}, {"*/*/*/*", "y/"}}}
		_ = unpack(t.Context(), a, file, filepath.Join(dir, "in"))
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) > 2 {
			t.Errorf("%v in the folder above, %v", entries, err)
		}
	})
}
