package weights

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// gguf is a GGUF file that is being made.
type gguf struct {
	meta, tensors bytes.Buffer
	keys, count   uint64
	end           uint64 // of the tensors, from the first one
}

func text(s string) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, uint64(len(s))), s...)
}

func put(b *bytes.Buffer, values ...any) {
	for _, v := range values {
		if s, ok := v.(string); ok {
			v = text(s)
		}
		if err := binary.Write(b, binary.LittleEndian, v); err != nil {
			panic(err) // only values of fixed size are put
		}
	}
}

// set adds an entry: a string, a number or an array of numbers.
func (g *gguf) set(name string, value any) *gguf {
	g.keys++
	put(&g.meta, name)
	switch v := value.(type) {
	case string:
		put(&g.meta, uint32(typeString), v)
	case uint16:
		put(&g.meta, uint32(2), v)
	case uint32:
		put(&g.meta, uint32(typeUint32), v)
	case float32:
		put(&g.meta, uint32(6), v)
	case []uint32:
		put(&g.meta, uint32(typeArray), uint32(typeUint32), uint64(len(v)), v)
	}
	return g
}

// tensor adds one of so many elements and bytes of a type.
func (g *gguf) tensor(name string, kind uint32, elements, size uint64) *gguf {
	g.count++
	put(&g.tensors, name, uint32(1), elements, kind, g.end)
	g.end += (size + 31) / 32 * 32
	return g
}

func (g *gguf) bytes() []byte {
	var b bytes.Buffer
	put(&b, []byte("GGUF"), uint32(3), g.count, g.keys)
	b.Write(g.meta.Bytes())
	b.Write(g.tensors.Bytes())
	b.Write(make([]byte, (32-b.Len()%32)%32+int(g.end)))
	return b.Bytes()
}

// tiny is a model of two layers: an embedding of F32, layers of Q4_1, a head of F16.
func tiny() *gguf {
	g := (&gguf{}).set("general.architecture", "llama").set("llama.block_count", uint32(2)).set("llama.embedding_length", uint32(64)).
		set("llama.attention.head_count", uint32(4)).set("llama.attention.head_count_kv", uint32(2)).set("llama.context_length", uint32(2048)).
		set("tokenizer.chat_template", "{{ x }}")
	g.tensor("token_embd.weight", 0, 64, 256)
	for i := range 2 {
		g.tensor(fmt.Sprintf("blk.%d.attn_q.weight", i), 3, 320, 200)
	}
	return g.tensor("output_norm.weight", 0, 8, 32).tensor("output.weight", 1, 64, 128)
}

// lists adds a list as long as may be of each of many architectures.
func lists(g *gguf) *gguf {
	for i := range 11 {
		g.set(fmt.Sprintf("a%d.block_count", i), make([]uint32, maxLayers))
	}
	return g
}

func TestShapeOfGGUF(t *testing.T) {
	whole := Shape{
		Architecture: "llama", Layers: 2, LayerBytes: 200, EmbeddingBytes: 256, HeadBytes: 160, Parameters: 64 + 640 + 8 + 64,
		KVBytesPerToken: 2 * 2 * 32 * 2, Hidden: 64, Heads: 4, KVHeads: 2, Context: 2048,
	}
	base := func() *gguf {
		return (&gguf{}).set("general.architecture", "x").set("x.block_count", uint32(1)).set("x.embedding_length", uint32(64)).set("x.attention.head_count", uint32(4))
	}
	one := Shape{Architecture: "x", Layers: 1, LayerBytes: 32, EmbeddingBytes: 32, HeadBytes: 32, Tied: true, Parameters: 16, KVBytesPerToken: 4 * 32 * 2, Hidden: 64, Heads: 4, KVHeads: 4}
	with := func(change func(*Shape)) Shape { s := one; change(&s); return s }
	end := func(g *gguf) []byte {
		return g.tensor("token_embd.weight", 0, 8, 32).tensor("blk.0.w", 0, 8, 32).bytes()
	}
	tests := []struct {
		name string
		data []byte
		want Shape
		err  string
	}{
		{name: "of several types", data: tiny().bytes(), want: whole},
		{name: "its head is its embedding", data: end(base()), want: one},
		{
			name: "key and value heads by layer", data: end(base().set("x.attention.head_count_kv", []uint32{3}).set("x.attention.key_length", uint32(10)).set("x.attention.value_length", uint32(6))),
			want: with(func(s *Shape) { s.KVHeads, s.KVBytesPerToken = 3, 3*16*2 }),
		},
		{
			name: "one compressed vector for all heads", data: end(base().set("x.attention.kv_lora_rank", uint32(50)).set("x.rope.dimension_count", uint32(6))),
			want: with(func(s *Shape) { s.KVBytesPerToken = 56 * 2 }),
		},
		{
			name: "a type that nobody knows lasts to the next tensor", data: base().tensor("token_embd.weight", 0, 8, 32).tensor("blk.0.w", 99, 8, 96).tensor("output.weight", 99, 8, 64).bytes(),
			want: with(func(s *Shape) { s.LayerBytes, s.HeadBytes, s.Tied, s.Parameters = 96, 64, false, 8 }),
		},
		{name: "no architecture", data: (&gguf{}).tensor("blk.0.w", 0, 8, 32).bytes(), err: "general.architecture: missing: convert the model anew, or write spec.layout"},
		{name: "no layers", data: (&gguf{}).set("general.architecture", "x").tensor("blk.0.w", 0, 8, 32).bytes(), err: "x.block_count: missing, or 0"},
		{name: "too many layers", data: end((&gguf{}).set("general.architecture", "x").set("x.block_count", uint32(1<<20)).set("x.embedding_length", uint32(64)).set("x.attention.head_count", uint32(4))), err: "layers: 1048576; must be 1 to 16384"},
		{name: "half the layers", data: (&gguf{}).set("general.architecture", "x").set("x.block_count", uint32(2)).set("x.embedding_length", uint32(64)).set("x.attention.head_count", uint32(4)).tensor("blk.0.w", 0, 8, 32).bytes(), err: "tensors of 1 layers, and 2 must be there"},
		{name: "a number that is none", data: end(base().set("x.context_length", float32(1))), err: "x.context_length is of type 6"},
		{name: "an architecture twice", data: end(base().set("general.architecture", "x")), err: "general.architecture is there twice"},
		{name: "a number twice", data: end(base().set("x.block_count", uint32(1))), err: "x.block_count is there twice"},
		{name: "an empty list twice", data: end(base().set("split.count", []uint32{}).set("split.count", []uint32{})), err: "split.count is there twice"},
		{name: "lists without end", data: end(lists(base())), err: "those before it are more than 163840 numbers"},
		{name: "cut off", data: tiny().bytes()[:600], err: "the file is cut off"},
		{name: "of several files that are named otherwise", data: end(base().set("split.count", uint16(3))), err: "split.count: 3 files, and this one is not named …-00001-of-00003.gguf"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.gguf")
			write(t, path, tt.data)
			got, err := ShapeOf(path)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.HasPrefix(err.Error(), path) {
					t.Errorf("ShapeOf() = %v, want %q", err, tt.err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("ShapeOf() = %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestShapeOfSeveralFiles holds that a model in several GGUF files has the tensors of all.
func TestShapeOfSeveralFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "m-00001-of-00002.gguf")
	g := (&gguf{}).set("general.architecture", "x").set("x.block_count", uint32(2)).set("x.embedding_length", uint32(64)).set("x.attention.head_count", uint32(4)).set("split.count", uint16(2))
	write(t, path, g.tensor("token_embd.weight", 0, 8, 32).tensor("blk.0.w", 0, 8, 32).bytes())
	if _, err := ShapeOf(path); err == nil || !strings.Contains(err.Error(), "m-00002-of-00002.gguf") {
		t.Errorf("without the second file: %v", err)
	}
	write(t, filepath.Join(dir, "m-00002-of-00002.gguf"), (&gguf{}).tensor("blk.1.w", 0, 24, 96).bytes())
	if s, err := ShapeOf(path); err != nil || s.LayerBytes != 64 || s.Layers != 2 {
		t.Errorf("ShapeOf() = %+v, %v; want two layers of 64 bytes", s, err)
	}
}

func FuzzShapeOfGGUF(f *testing.F) {
	f.Add(tiny().bytes())
	f.Add(file())
	f.Fuzz(func(t *testing.T, b []byte) {
		found, err := find(bytes.NewReader(b), uint64(len(b)))
		if err != nil {
			return
		}
		if s, err := found.shape(found.tensors); err == nil && (s.Layers < 1 || s.Hidden < 1 || s.LayerBytes > uint64(len(b))) {
			t.Errorf("a file of %d bytes: %+v", len(b), s)
		}
	})
}
