// Package weights checks whether model files are complete: a GGUF file, or a folder in
// Hugging Face's form; and says what a model of them is made of, for a layout.
//
// Called by setup, mesh and models, before a backend is started that would die of it
// again and again, and by millrace plan. Its one rule: it reads the header and nothing else, however
// many gigabytes follow.
package weights

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"path/filepath"

	"millrace.dev/millrace/internal/regular"
)

// Limits on a header: the largest known are some 20 MB.
const (
	maxHeader  = 256 << 20 // bytes read
	maxTensors = 1 << 20
	maxDims    = 8
	maxDepth   = 4 // of arrays in arrays
	maxName    = 1 << 16
)

// alignKey is the metadata entry with the alignment of tensors, defaultAlign what
// holds without it, in bytes.
const (
	alignKey     = "general.alignment"
	defaultAlign = 32
)

var (
	errEarly = errors.New("it ends in the middle of its header")
	errBad   = errors.New("broken GGUF header")
)

// Check says why the file at path can't be a whole GGUF file; nil: it can.
func Check(path string) error {
	st, err := regular.Stat(path)
	if err != nil {
		return err
	}
	if st.IsDir() {
		return fmt.Errorf("%s: a folder; must be a GGUF file", path)
	}
	f, err := regular.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	need, err := size(f)
	if err == nil && uint64(st.Size()) < need {
		err = fmt.Errorf("%d bytes, but its header needs %d: the file is cut off", st.Size(), need)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// CheckFolder says why path can't be a folder with a model, or a whole GGUF file;
// nil: it can. Weights in another form than safetensors are not checked.
func CheckFolder(path string) error {
	st, err := regular.Stat(path)
	switch {
	case err != nil:
		return err
	case !st.IsDir():
		return Check(path)
	}
	if err = regular.Check(filepath.Join(path, "config.json")); err != nil {
		return err
	}
	_, err = checkShards(path)
	return err
}

// CheckRepository is CheckFolder for a folder whose weights must be in safetensors form.
func CheckRepository(path string) error {
	if err := CheckFolder(path); err != nil {
		return err
	}
	n, err := checkShards(path)
	if err == nil && n == 0 {
		err = fmt.Errorf("%s: no weights in safetensors form", path)
	}
	return err
}

// size reads a header and returns how long the file must be at least.
func size(r io.Reader) (uint64, error) {
	h := newHeader(r)
	return h.all()
}

func newHeader(r io.Reader) *header {
	return &header{r: bufio.NewReaderSize(r, 1<<16), align: defaultAlign}
}

// all reads the whole header.
func (h *header) all() (uint64, error) {
	if magic := h.bytes(4); h.err != nil || string(magic) != "GGUF" {
		return 0, errors.New("not a GGUF file")
	}
	if v := h.uint32(); h.err == nil && v != 2 && v != 3 {
		return 0, fmt.Errorf("GGUF version %d; must be 2 or 3", v)
	}
	tensors, keys := h.uint64(), h.uint64()
	if tensors > maxTensors || keys > maxTensors {
		return 0, fmt.Errorf("%w: %d tensors, %d entries", errBad, tensors, keys)
	}
	for n := uint64(0); n < keys && h.err == nil; n++ {
		h.entry()
	}
	var end uint64
	for n := uint64(0); n < tensors && h.err == nil; n++ {
		end = max(end, h.tensor())
	}
	if h.err != nil || tensors == 0 {
		return h.read, h.err
	}
	start := (h.read + h.align - 1) / h.align * h.align
	return start + end, nil
}

// header reads values until the first error, which stays.
type header struct {
	r     *bufio.Reader
	read  uint64 // bytes so far
	align uint64
	err   error
	buf   [maxName]byte
	// found, if there is one, gets what a shape is made of.
	found *found
}

func (h *header) fail(err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errEarly
	}
	if h.err == nil {
		h.err = err
	}
}

// room counts n bytes against the limit.
func (h *header) room(n uint64) bool {
	if h.err == nil && n > maxHeader-h.read {
		h.fail(fmt.Errorf("%w: more than %d bytes", errBad, maxHeader))
	}
	if h.err == nil {
		h.read += n
	}
	return h.err == nil
}

// bytes returns the next n bytes, good until the next call. n ≤ maxName.
func (h *header) bytes(n int) []byte {
	b := h.buf[:n]
	if !h.room(uint64(n)) {
		clear(b)
		return b
	}
	if _, err := io.ReadFull(h.r, b); err != nil {
		clear(b)
		h.fail(err)
	}
	return b
}

func (h *header) skip(n uint64) {
	if !h.room(n) {
		return
	}
	if _, err := h.r.Discard(int(n)); err != nil {
		h.fail(err)
	}
}

func (h *header) uint32() uint32 { return binary.LittleEndian.Uint32(h.bytes(4)) }
func (h *header) uint64() uint64 { return binary.LittleEndian.Uint64(h.bytes(8)) }

func (h *header) name() string {
	n := h.uint64()
	if n > maxName {
		h.fail(fmt.Errorf("%w: a name of %d bytes", errBad, n))
		return ""
	}
	return string(h.bytes(int(n)))
}

// GGUF's types of values that are no fixed numbers.
const (
	typeUint32 = 4
	typeString = 8
	typeArray  = 9
)

// widths are those of the fixed types, in bytes.
var widths = map[uint32]uint64{0: 1, 1: 1, 2: 2, 3: 2, typeUint32: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

// entry reads one entry of the metadata.
func (h *header) entry() {
	name, kind := h.name(), h.uint32()
	if h.found != nil && h.found.entry(h, name, kind) {
		return
	}
	if name != alignKey || kind != typeUint32 {
		h.value(kind, 0)
		return
	}
	if h.align = uint64(h.uint32()); bits.OnesCount64(h.align) != 1 {
		h.align = defaultAlign
		h.fail(fmt.Errorf("%w: an alignment that is no power of two", errBad))
	}
}

// value skips a value.
func (h *header) value(kind uint32, depth int) {
	width, fixed := widths[kind]
	switch {
	case h.err != nil:
	case fixed:
		h.skip(width)
	case kind == typeString:
		h.skip(h.uint64())
	case kind == typeArray && depth < maxDepth:
		h.array(depth)
	default:
		h.fail(fmt.Errorf("%w: a value of type %d", errBad, kind))
	}
}

func (h *header) array(depth int) {
	kind, n := h.uint32(), h.uint64()
	if n > maxHeader {
		h.fail(fmt.Errorf("%w: an array of %d elements", errBad, n))
		return
	}
	if width, fixed := widths[kind]; fixed {
		h.skip(n * width)
		return
	}
	for ; n > 0 && h.err == nil; n-- {
		h.value(kind, depth+1)
	}
}

// block is how many elements of a tensor lie in how many bytes.
type block struct{ elements, bytes uint64 }

// blocks are those of ggml's types. An element of a type that isn't known is
// counted as nothing, so that the file passes.
var blocks = map[uint32]block{
	0: {1, 4}, 1: {1, 2}, 2: {32, 18}, 3: {32, 20}, 6: {32, 22}, 7: {32, 24}, 8: {32, 34}, 9: {32, 36},
	10: {256, 84}, 11: {256, 110}, 12: {256, 144}, 13: {256, 176}, 14: {256, 210}, 15: {256, 292},
	16: {256, 66}, 17: {256, 74}, 18: {256, 98}, 19: {256, 50}, 20: {32, 18}, 21: {256, 110}, 22: {256, 82}, 23: {256, 136},
	24: {1, 1}, 25: {1, 2}, 26: {1, 4}, 27: {1, 8}, 28: {1, 8}, 29: {256, 56}, 30: {1, 2}, 34: {256, 54}, 35: {256, 66}, 39: {32, 17},
}

// tensor reads the entry of one tensor and returns where it ends, counted from
// the first one.
func (h *header) tensor() uint64 {
	name := h.name()
	dims := h.uint32()
	if dims > maxDims {
		h.fail(fmt.Errorf("%w: a tensor of %d dimensions", errBad, dims))
		return 0
	}
	elements := uint64(1)
	for range dims {
		over, n := bits.Mul64(elements, h.uint64())
		if over != 0 || n > 1<<56 {
			h.fail(fmt.Errorf("%w: a tensor without bounds", errBad))
		}
		elements = n
	}
	kind := h.uint32()
	b, known := blocks[kind]
	at := h.uint64()
	if at > 1<<60 {
		h.fail(fmt.Errorf("%w: a tensor at %d", errBad, at))
	}
	bytes := uint64(0)
	if known {
		bytes = (elements + b.elements - 1) / b.elements * b.bytes
	}
	if h.err == nil && h.found != nil {
		h.found.tensors = append(h.found.tensors, part{name: name, elements: elements, bytes: bytes, at: at, unknown: !known, kind: kind})
	}
	if h.err != nil {
		return at
	}
	return at + bytes
}
