package weights

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// file builds a GGUF file of two tensors: the second one ends it.
func file() []byte {
	var b bytes.Buffer
	put := func(values ...any) {
		for _, v := range values {
			if s, ok := v.(string); ok {
				v = append(binary.LittleEndian.AppendUint64(nil, uint64(len(s))), s...)
			}
			if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
				panic(err) // only values of fixed size are put
			}
		}
	}
	put([]byte("GGUF"), uint32(3), uint64(2), uint64(4))
	put("general.name", uint32(8), "tiny")
	put("general.alignment", uint32(4), uint32(64))
	put("words", uint32(9), uint32(8), uint64(2), "a", "bc")
	put("numbers", uint32(9), uint32(9), uint64(1), uint32(4), uint64(3), [3]uint32{})
	put("one", uint32(1), uint64(10), uint32(0), uint64(0))              // 40 bytes of F32
	put("two", uint32(2), uint64(64), uint64(2), uint32(3), uint64(128)) // 4 blocks of Q4_1
	b.Write(make([]byte, (64-b.Len()%64)%64+128+80))
	return b.Bytes()
}

func TestCheck(t *testing.T) {
	whole := file()
	tests := []struct {
		name string
		data []byte
		want string // part of the error; none: it passes
	}{
		{"whole", whole, ""},
		{"longer", append(bytes.Clone(whole), 1, 2, 3), ""},
		{"one byte short", whole[:len(whole)-1], "the file is cut off"},
		{"only the header", whole[:len(whole)-208], "the file is cut off"},
		{"half the header", whole[:90], "it ends in the middle of its header"},
		{"empty", nil, "not a GGUF file"},
		{"text", []byte("hello, I am text"), "not a GGUF file"},
		{"another version", append([]byte("GGUF\x01\x00\x00\x00"), whole[8:]...), "version 1; must be 2 or 3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.gguf")
			if err := os.WriteFile(path, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			err := Check(path)
			if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if err := Check(t.TempDir()); err == nil || !strings.Contains(err.Error(), "a folder") {
		t.Errorf("a folder: %v", err)
	}
}

func FuzzSize(f *testing.F) {
	f.Add(file())
	f.Add(file()[:90])
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := size(bytes.NewReader(b))
		if err == nil && n < 24 {
			t.Errorf("a file of %d bytes", n)
		}
	})
}
