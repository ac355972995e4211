package weights

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tensorsFile builds a file in safetensors form of a header and so many bytes of data.
func tensorsFile(header string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, data)...)
}

const twoTensors = `{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}}`

func TestCheckSafetensors(t *testing.T) {
	tests := []struct {
		name string
		data []byte
		want string // part of the error; none: it passes
	}{
		{"whole", tensorsFile(twoTensors, 26), ""},
		{"of a type that nobody knows", tensorsFile(`{"a":{"dtype":"Q9","shape":[7],"data_offsets":[0,3]}}`, 3), ""},
		{"padded header", tensorsFile(twoTensors+"   ", 26), ""},
		{"one byte short", tensorsFile(twoTensors, 25), "the file is cut off"},
		{"one byte longer", tensorsFile(twoTensors, 27), "not all of it is tensors"},
		{"half the header", tensorsFile(twoTensors, 0)[:60], "it ends in the middle of its header"},
		{"empty", nil, "not a safetensors file"},
		{"text", []byte("<!DOCTYPE html><html>"), "not a safetensors file"},
		{"no JSON", tensorsFile("[1,2,3]", 0), "broken safetensors header"},
		{"cut JSON", tensorsFile(twoTensors[:40], 26), "broken safetensors header"},
		{"fewer bytes than its shape", tensorsFile(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}`, 4), "takes 8 bytes, and has 4"},
		{"backwards", tensorsFile(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}`, 8), "bytes 8 to 0"},
		{"a shape that overflows", tensorsFile(`{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}`, 0), "without bounds"},
		{"eight dimensions", tensorsFile(`{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}`, 1), ""},
		{"nine dimensions", tensorsFile(`{"a":{"dtype":"Q9","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}`, 1), `tensor "a": a shape of 9 dimensions; must be at most 8`},
		{"twice the same", tensorsFile(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1), "there twice"},
		{"a negative offset", tensorsFile(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}`, 1), "broken safetensors header"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.safetensors")
			if err := os.WriteFile(path, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			err := CheckSafetensors(path)
			if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestCheckRepository(t *testing.T) {
	one := string(tensorsFile(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1))
	tests := []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"one file", map[string]string{"config.json": "{}", "model.safetensors": one}, ""},
		{"shards", map[string]string{"config.json": "{}", "m-1.safetensors": one, IndexFile: `{"weight_map":{"a":"m-1.safetensors"}}`}, ""},
		{"no config", map[string]string{"model.safetensors": one}, "config.json"},
		{"no weights", map[string]string{"config.json": "{}"}, "no weights in safetensors form"},
		{"a shard is missing", map[string]string{"config.json": "{}", "m-1.safetensors": one, IndexFile: `{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}`}, "m-2.safetensors, which is not there"},
		{"a tensor is missing", map[string]string{"config.json": "{}", "m-1.safetensors": one, IndexFile: `{"weight_map":{"c":"m-1.safetensors"}}`}, `no tensor "c"`},
		{"an index that leads elsewhere", map[string]string{"config.json": "{}", "m-1.safetensors": one, IndexFile: `{"weight_map":{"a":"../m-1.safetensors"}}`}, "must be the name of a file beside it"},
		{"a broken index", map[string]string{"config.json": "{}", "m-1.safetensors": one, IndexFile: `{`}, "no index"},
		{"a broken shard", map[string]string{"config.json": "{}", "m-1.safetensors": one[:20]}, "m-1.safetensors"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "odd [name]*")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for name, text := range tt.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := CheckRepository(dir)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzSafetensors(f *testing.F) {
	f.Add(tensorsFile(twoTensors, 26))
	f.Add(tensorsFile(twoTensors, 0)[:60])
	f.Fuzz(func(t *testing.T, b []byte) {
		names, need, err := safetensors(bytes.NewReader(b), uint64(len(b)))
		if err == nil && (need < 10 || names == nil) {
			t.Errorf("a file of %d bytes with %d tensors", need, len(names))
		}
	})
}
