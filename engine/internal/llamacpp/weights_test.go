package llamacpp

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"millrace.dev/millrace/engine/enginepb"
)

// description writes the head of a GGUF file with numbers, a text and a list.
func description(figures map[string]uint32) []byte {
	b := binary.LittleEndian.AppendUint32([]byte("GGUF"), 3)
	b = binary.LittleEndian.AppendUint64(b, 7)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(figures))+2)
	text := func(s string) { b = append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...) }
	text("general.architecture")
	b = binary.LittleEndian.AppendUint32(b, typeString)
	text("llama")
	text("tokenizer.ggml.tokens")
	b = binary.LittleEndian.AppendUint32(b, typeArray)
	b = binary.LittleEndian.AppendUint32(b, typeString)
	b = binary.LittleEndian.AppendUint64(b, 2)
	text("a")
	text("bc")
	for name, n := range figures {
		text("llama." + name)
		b = binary.LittleEndian.AppendUint32(b, 4)
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return b
}

func TestTokenBytes(t *testing.T) {
	small := map[string]uint32{"block_count": 30, "embedding_length": 576, "attention.head_count": 9, "attention.head_count_kv": 3}
	tests := []struct {
		name    string
		file    []byte
		want    uint64
		wantErr string
	}{
		{name: "three of nine heads", file: description(small), want: 23040},
		{name: "all heads", file: description(map[string]uint32{"block_count": 2, "embedding_length": 64, "attention.head_count": 4}), want: 2 * 4 * 32 * 2},
		{name: "heads of another length", file: description(map[string]uint32{
			"block_count": 2, "embedding_length": 64, "attention.head_count": 4, "attention.key_length": 100, "attention.value_length": 50,
		}), want: 2 * 4 * 150 * 2},
		{name: "no heads", file: description(map[string]uint32{"block_count": 2}), wantErr: "the number of layers or heads is missing"},
		{name: "too much of it", file: description(map[string]uint32{"block_count": 1 << 31, "embedding_length": 64, "attention.head_count": 4}), wantErr: "fit together"},
		{name: "another format", file: []byte(strings.Repeat("PK34", 8)), wantErr: "not a GGUF file"},
		{name: "cut", file: description(small)[:90], wantErr: "EOF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tokenBytes(bufio.NewReader(bytes.NewReader(tt.file)))
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("error %v, want %q", err, tt.wantErr)
				}
				return
			}
			if got != tt.want || err != nil {
				t.Errorf("tokenBytes() = %d, %v; want %d", got, err, tt.want)
			}
		})
	}
}

func FuzzTokenBytes(f *testing.F) {
	f.Add(description(map[string]uint32{"block_count": 2, "embedding_length": 64, "attention.head_count": 4}))
	f.Add([]byte("GGUF"))
	f.Fuzz(func(t *testing.T, file []byte) {
		if n, err := tokenBytes(bufio.NewReader(bytes.NewReader(file))); err == nil && n == 0 {
			t.Error("no bytes and no error")
		}
	})
}

// TestWeightsThatBlock are refused by name before a backend is started, whichever of their files
// it is.
func TestWeightsThatBlock(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"whole.gguf", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "b-00001-of-00002.gguf", "l-00001-of-00002.gguf"} {
		if err := os.WriteFile(at(name), []byte("GGUF"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"pipe.gguf", "b-00002-of-00002.gguf"} {
		if err := syscall.Mkfifo(at(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"link.gguf": "whole.gguf", "pipelink.gguf": "pipe.gguf", "dangling.gguf": "nothing", "zero.gguf": "/dev/zero"} {
		if err := os.Symlink(to, at(link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"whole.gguf": "", "link.gguf": "", "m-00001-of-00002.gguf": "",
		"pipe.gguf": "pipe.gguf: not a regular file", "pipelink.gguf": "pipelink.gguf: not a regular file", "zero.gguf": "not a regular file",
		"dangling.gguf": "no such file", ".": "not a regular file",
		"b-00001-of-00002.gguf": "b-00002-of-00002.gguf: not a regular file", "l-00001-of-00002.gguf": "l-00002-of-00002.gguf: no such file",
	} {
		a := &enginepb.Assignment{Model: "m", Backend: &enginepb.Backend{Weights: at(name), ContextTokens: 4096, Slots: 1, Threads: 1}}
		_, err := Programs{LlamaServer: "true", BackendAddress: "127.0.0.1:9"}.head(a)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}
