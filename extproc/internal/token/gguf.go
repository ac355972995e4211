package token

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// Limits on a GGUF header. A model's own is a few MB; the largest known
// vocabularies stay under 20 MB.
const (
	maxHeader = 128 << 20 // bytes read
	maxText   = 4 << 20   // bytes of one string; the longest are chat templates
	maxKeys   = 1 << 16   // entries of metadata
)

// GGUF's value types that the reader meets by name.
const (
	ggufBool   = 7
	ggufString = 8
	ggufArray  = 9
)

// ggufSizes is the width of each scalar type in bytes; 0 for the others.
var ggufSizes = [...]int{0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

var errHeader = errors.New("gguf: broken header")

// metadata is what of a GGUF header concerns tokens.
type metadata struct {
	model, pre, name string
	template         string
	tokens           *names
	types            []uint32 // by token
	merges           [][]byte
	bos, eos         int // -1 if not given
	addBOS, addEOS   option
}

// option is a boolean that may be absent.
type option int8

const (
	absent option = iota
	no
	yes
)

// is returns the option's value, or otherwise if it is absent.
func (o option) is(otherwise bool) bool {
	if o == absent {
		return otherwise
	}
	return o == yes
}

// readGGUF reads a header up to the tensors, which it never touches.
func readGGUF(r io.Reader) (*metadata, error) {
	g := &gguf{r: bufio.NewReaderSize(r, 1<<16), left: maxHeader}
	if magic := g.bytes(4); g.err == nil && string(magic) != "GGUF" {
		return nil, errors.New("gguf: no GGUF magic")
	}
	if v := g.uint32(); g.err == nil && v != 2 && v != 3 {
		return nil, fmt.Errorf("gguf: version %d; must be 2 or 3", v)
	}
	g.uint64() // tensors
	keys := g.uint64()
	if g.err != nil {
		return nil, g.err
	}
	if keys > maxKeys {
		return nil, fmt.Errorf("gguf: %d metadata entries; at most %d", keys, maxKeys)
	}
	m := &metadata{bos: -1, eos: -1}
	for range keys {
		if g.entry(m); g.err != nil {
			return nil, g.err
		}
	}
	return m, g.err
}

// gguf reads values until the first error, which stays.
type gguf struct {
	r    *bufio.Reader
	left int // bytes that may still be read
	err  error
	buf  []byte // of the last bytes call
}

func (g *gguf) fail(err error) {
	if g.err == nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: it ends too early", errHeader)
		}
		g.err = err
	}
}

// take counts n bytes against the limit.
func (g *gguf) take(n uint64) bool {
	if g.err != nil {
		return false
	}
	if n > uint64(g.left) {
		g.fail(fmt.Errorf("gguf: header of more than %d bytes", maxHeader))
		return false
	}
	g.left -= int(n)
	return true
}

// bytes returns the next n bytes, good until the next call. n ≤ maxText.
func (g *gguf) bytes(n int) []byte {
	if !g.take(uint64(n)) {
		return nil
	}
	if cap(g.buf) < n {
		g.buf = make([]byte, n)
	}
	g.buf = g.buf[:n]
	if _, err := io.ReadFull(g.r, g.buf); err != nil {
		g.fail(err)
		return nil
	}
	return g.buf
}

func (g *gguf) skip(n uint64) {
	if !g.take(n) {
		return
	}
	if _, err := g.r.Discard(int(n)); err != nil {
		g.fail(err)
	}
}

func (g *gguf) uint32() uint32 {
	b := g.bytes(4)
	if b == nil {
		return 0
	}
	return binary.LittleEndian.Uint32(b)
}

func (g *gguf) uint64() uint64 {
	b := g.bytes(8)
	if b == nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b)
}

// text returns the next string, good until the next call.
func (g *gguf) text() []byte {
	n := g.uint64()
	if n > maxText {
		g.fail(fmt.Errorf("gguf: string of %d bytes; at most %d", n, maxText))
		return nil
	}
	return g.bytes(int(n))
}

func (g *gguf) entry(m *metadata) {
	key := string(g.text())
	kind := g.uint32()
	switch key {
	case "tokenizer.ggml.model":
		g.stringTo(kind, &m.model)
	case "tokenizer.ggml.pre":
		g.stringTo(kind, &m.pre)
	case "general.name":
		g.stringTo(kind, &m.name)
	case "tokenizer.chat_template":
		g.stringTo(kind, &m.template)
	case "tokenizer.ggml.tokens":
		m.tokens = g.names(kind)
	case "tokenizer.ggml.merges":
		m.merges = g.lines(kind)
	case "tokenizer.ggml.token_type":
		m.types = g.integers(kind)
	case "tokenizer.ggml.bos_token_id":
		m.bos = g.id(kind)
	case "tokenizer.ggml.eos_token_id":
		m.eos = g.id(kind)
	case "tokenizer.ggml.add_bos_token":
		m.addBOS = g.option(kind)
	case "tokenizer.ggml.add_eos_token":
		m.addEOS = g.option(kind)
	default:
		g.skipValue(kind, 0)
	}
}

func (g *gguf) want(kind, wanted uint32) bool {
	if g.err == nil && kind != wanted {
		g.fail(fmt.Errorf("%w: value of type %d; must be %d", errHeader, kind, wanted))
	}
	return g.err == nil
}

func (g *gguf) stringTo(kind uint32, to *string) {
	if g.want(kind, ggufString) {
		*to = string(g.text())
	}
}

func (g *gguf) option(kind uint32) option {
	if !g.want(kind, ggufBool) {
		return absent
	}
	if b := g.bytes(1); b != nil && b[0] != 0 {
		return yes
	}
	return no
}

// id reads a token's number; -1 if there is none such.
func (g *gguf) id(kind uint32) int {
	v := g.integer(kind)
	if v > math.MaxInt32 {
		return -1
	}
	return int(v)
}

// integer reads a scalar of a whole-number type.
func (g *gguf) integer(kind uint32) uint64 {
	if kind >= uint32(len(ggufSizes)) || ggufSizes[kind] == 0 || kind == 6 || kind == 12 {
		g.fail(fmt.Errorf("%w: value of type %d; must be a whole number", errHeader, kind))
		return 0
	}
	var wide [8]byte
	copy(wide[:], g.bytes(ggufSizes[kind]))
	return binary.LittleEndian.Uint64(wide[:])
}

// array reads an array's head: the type and the number of its elements.
func (g *gguf) array(kind uint32) (element uint32, n uint64) {
	if !g.want(kind, ggufArray) {
		return 0, 0
	}
	element, n = g.uint32(), g.uint64()
	if n > maxMerges {
		g.fail(fmt.Errorf("gguf: array of %d elements; at most %d", n, maxMerges))
		return 0, 0
	}
	return element, n
}

// reserve is the most elements that memory is reserved for on a header's word.
const reserve = 1 << 18

func (g *gguf) names(kind uint32) *names {
	element, n := g.array(kind)
	if !g.want(element, ggufString) {
		return nil
	}
	if n > maxVocab {
		g.fail(fmt.Errorf("gguf: vocabulary of %d tokens; at most %d", n, maxVocab))
		return nil
	}
	out := newNames(int(min(n, reserve)))
	for range n {
		b := g.text()
		if g.err != nil {
			return nil
		}
		out.add(b)
	}
	return out
}

// lines reads an array of strings into one piece of memory.
func (g *gguf) lines(kind uint32) [][]byte {
	element, n := g.array(kind)
	if !g.want(element, ggufString) {
		return nil
	}
	out := make([][]byte, 0, min(n, reserve))
	var block []byte
	for range n {
		b := g.text()
		if g.err != nil {
			return nil
		}
		if cap(block)-len(block) < len(b) {
			block = make([]byte, 0, max(1<<16, len(b)))
		}
		block = append(block, b...)
		out = append(out, block[len(block)-len(b):len(block):len(block)])
	}
	return out
}

func (g *gguf) integers(kind uint32) []uint32 {
	element, n := g.array(kind)
	out := make([]uint32, 0, min(n, reserve))
	for range n {
		v := g.integer(element)
		if g.err != nil {
			return nil
		}
		out = append(out, uint32(v))
	}
	return out
}

// maxDepth is how deep arrays of arrays may go.
const maxDepth = 4

func (g *gguf) skipValue(kind uint32, depth int) {
	switch {
	case g.err != nil:
	case kind == ggufString:
		n := g.uint64()
		g.skip(n)
	case kind == ggufArray && depth < maxDepth:
		g.skipArray(depth)
	case kind < uint32(len(ggufSizes)) && ggufSizes[kind] > 0:
		g.skip(uint64(ggufSizes[kind]))
	default:
		g.fail(fmt.Errorf("%w: value of unknown type %d", errHeader, kind))
	}
}

func (g *gguf) skipArray(depth int) {
	element, n := g.uint32(), g.uint64()
	if n > maxHeader {
		g.fail(fmt.Errorf("gguf: array of %d elements; at most %d", n, maxHeader))
		return
	}
	if element < uint32(len(ggufSizes)) && ggufSizes[element] > 0 {
		g.skip(n * uint64(ggufSizes[element]))
		return
	}
	for range n {
		if g.skipValue(element, depth+1); g.err != nil {
			return
		}
	}
}
