package usable

import (
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/internal/config"
)

// TestUsable has what is named be there, be something else, be broken, or not be there.
func TestUsable(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good.gguf", string(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64([]byte("GGUF\x03\x00\x00\x00"), 0), 0)))
	bad, pipe, none := file("bad.gguf", "not a model"), filepath.Join(dir, "pipe"), filepath.Join(dir, "none")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	model := func(edit func(*config.ModelSpec)) error {
		m := config.NewModel("m")
		edit(&m.Spec)
		return Models([]config.Model{config.NewModel("before"), m})
	}
	of := func(path string) func(*config.ModelSpec) {
		return func(s *config.ModelSpec) { s.Weights = path }
	}
	for _, tt := range []struct {
		name string
		err  error
		want string // "": in order
	}{
		{"weights", model(of(good)), ""},
		{"weights that are not there", model(of(none)), "model m: weights: stat " + none},
		{"weights that are a folder", model(of(dir)), "a folder; must be a GGUF file"},
		{"weights that block", model(of(pipe)), "not a regular file"},
		{"weights that are something else", model(of(bad)), bad},
		{"a folder without a model", model(func(s *config.ModelSpec) { s.Weights, s.Backend.Kind = dir, config.VLLM }), "config.json"},
		{"a tokenizer", model(func(s *config.ModelSpec) { s.Tokenizer = good }), ""},
		{"a tokenizer that is not there", model(func(s *config.ModelSpec) { s.Tokenizer = none }), "model m: tokenizer: open " + none},
		{"a tokenizer that blocks", model(func(s *config.ModelSpec) { s.Tokenizer = pipe }), "not a regular file"},
		{"a folder", Folder(dir), ""},
		{"a folder that is not there", Folder(none), "no such file"},
		{"a folder that is a file", Folder(good), "must be a folder"},
		{"a file to write", Output(none), ""},
		{"a file that is there", Output(good), ""},
		{"a file in no folder", Output(filepath.Join(none, "log")), "no such file"},
		{"a file that is a folder", Output(dir), "must be a file"},
		{"a certificate that is none", Certificate(bad, bad, time.Now()), "PEM"},
		{"a certificate that is not there", Certificate(none, none, time.Now()), none},
	} {
		switch {
		case tt.want == "" && tt.err != nil:
			t.Errorf("%s: %v", tt.name, tt.err)
		case tt.want != "" && (tt.err == nil || !strings.Contains(tt.err.Error(), tt.want)):
			t.Errorf("%s: %v, want %q", tt.name, tt.err, tt.want)
		}
	}
}

// TestAddress has free ports, ports in use and those of other machines known apart.
func TestAddress(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for _, tt := range []struct {
		address string
		inUse   bool
		wrong   bool
	}{{"127.0.0.1:0", false, false}, {busy.Addr().String(), true, false}, {"203.0.113.1:80", false, true}} {
		if inUse, err := Address(tt.address); inUse != tt.inUse || (err != nil) != tt.wrong {
			t.Errorf("Address(%s) = %v, %v", tt.address, inUse, err)
		}
	}
}
