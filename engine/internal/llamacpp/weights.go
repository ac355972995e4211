package llamacpp

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/regular"
)

// part is the end of the name of the first file of several.
var part = regexp.MustCompile(`-00001-of-(\d{5})\.gguf$`)

// readable returns why weights can't be read: all of their files are regular ones, so that
// nothing waits for one of them.
func readable(path string) error {
	if err := regular.Check(path); err != nil {
		return err
	}
	for _, other := range otherParts(path) {
		if err := regular.Check(other); err != nil {
			return err
		}
	}
	return nil
}

// otherParts are the files of the same weights behind the first one.
func otherParts(path string) (all []string) {
	m := part.FindStringSubmatchIndex(path)
	if m == nil {
		return nil
	}
	n, _ := strconv.Atoi(path[m[2]:m[3]]) // it is digits
	for i := 2; i <= min(n, mostParts); i++ {
		all = append(all, fmt.Sprintf("%s-%05d-of-%05d.gguf", path[:m[0]], i, n))
	}
	return all
}

// mostParts bounds how many files weights have.
const mostParts = 1024

// hostTokens returns how many tokens the backend's cache of idle prompts in host
// memory holds, by what the model's weights say of the size of a token.
func hostTokens(b *enginepb.Backend) (uint64, error) {
	f, err := regular.Open(b.GetWeights())
	if err != nil {
		return 0, err
	}
	defer f.Close()
	bytes, err := tokenBytes(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", b.GetWeights(), err)
	}
	return cacheMiB << 20 / bytes, nil
}

// figures are the numbers of a model that its KV cache depends on.
var figures = []string{
	"block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
}

// tokenBytes reads GGUF's description of a model and returns the size of a token
// in a KV cache of 16-bit floats, which are llama.cpp's default.
func tokenBytes(r *bufio.Reader) (uint64, error) {
	g := gguf{r: r}
	magic, version := g.text(4), g.number(4)
	g.number(8) // tensors
	entries := g.number(8)
	if g.err == nil && (magic != "GGUF" || version < 2) {
		return 0, errors.New("not a GGUF file of version 2 or later")
	}
	found := map[string]uint64{}
	for ; entries > 0 && g.err == nil; entries-- {
		key := g.string()
		_, name, _ := strings.Cut(key, ".")
		for _, want := range figures {
			if name == want {
				key = want
			}
		}
		if n := g.value(uint32(g.number(4)), 0); key != "" {
			found[key] = n
		}
	}
	if g.err != nil {
		return 0, fmt.Errorf("GGUF: %w", g.err)
	}
	return sizeOf(found)
}

// sizeOf returns the size of a token by a model's figures.
func sizeOf(f map[string]uint64) (uint64, error) {
	heads := f["attention.head_count"]
	if heads == 0 || f["block_count"] == 0 || f["embedding_length"] == 0 {
		return 0, errors.New("GGUF: the number of layers or heads is missing")
	}
	cached := f["attention.head_count_kv"]
	if cached == 0 {
		cached = heads
	}
	head := f["embedding_length"] / heads
	length := func(name string) uint64 {
		if n := f[name]; n > 0 {
			return n
		}
		return head
	}
	const half, most = 2, 1 << 30
	if f["block_count"] > 1<<16 || cached > 1<<16 || length("attention.key_length") > 1<<16 || length("attention.value_length") > 1<<16 {
		return 0, errors.New("GGUF: the numbers of layers and heads don't fit together")
	}
	n := f["block_count"] * cached * (length("attention.key_length") + length("attention.value_length")) * half
	if n == 0 || n > most {
		return 0, errors.New("GGUF: the numbers of layers and heads don't fit together")
	}
	return n, nil
}

// gguf reads the parts of a GGUF file until something is wrong with one.
type gguf struct {
	r   *bufio.Reader
	err error
}

// maxString bounds the keys and texts that are kept, in bytes.
const maxString = 1 << 16

func (g *gguf) fail(err error) {
	if g.err == nil {
		g.err = err
	}
}

// number reads an integer of so many bytes.
func (g *gguf) number(size int) uint64 {
	var b [8]byte
	if g.err == nil {
		if _, err := io.ReadFull(g.r, b[:size]); err != nil {
			g.fail(err)
		}
	}
	return binary.LittleEndian.Uint64(b[:])
}

func (g *gguf) text(size uint64) string {
	if size > maxString {
		g.fail(fmt.Errorf("a text of %d bytes", size))
	}
	if g.err != nil {
		return ""
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(g.r, b); err != nil {
		g.fail(err)
	}
	return string(b)
}

func (g *gguf) string() string { return g.text(g.number(8)) }

// skip reads over so many bytes.
func (g *gguf) skip(n uint64) {
	if g.err != nil {
		return
	}
	if _, err := io.CopyN(io.Discard, g.r, int64(min(n, 1<<62))); err != nil {
		g.fail(err)
	}
}

// The types of GGUF's values that have no fixed size, and the size of the others.
const (
	typeString = 8
	typeArray  = 9
)

var sizes = map[uint32]int{0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

// value reads a value and returns it if it is a number; of a list, the largest.
func (g *gguf) value(kind uint32, depth int) uint64 {
	size, fixed := sizes[kind]
	switch {
	case fixed:
		return g.number(size)
	case kind == typeString:
		g.skip(g.number(8))
		return 0
	case kind == typeArray && depth < 2:
		of := uint32(g.number(4))
		var most uint64
		for n := g.number(8); n > 0 && g.err == nil; n-- {
			most = max(most, g.value(of, depth+1))
		}
		return most
	}
	g.fail(fmt.Errorf("a value of type %d", kind))
	return 0
}
