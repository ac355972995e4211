package llamacpp

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
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
