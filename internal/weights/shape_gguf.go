package weights

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"millrace.dev/millrace/internal/regular"
)

// found is what a GGUF header has of a shape.
type found struct {
	// numbers are the metadata that are whole numbers, by name: of an array all, but no more than
	// layers there can be.
	numbers map[string][]uint64
	arch    string
	kept    uint64 // numbers in all
	tensors []part
}

// shapeKeys are the ends of the entries' names that a shape is made of; before them is the
// architecture's name.
var shapeKeys = []string{
	".block_count", ".embedding_length", ".context_length", ".attention.head_count", ".attention.head_count_kv",
	".attention.key_length", ".attention.value_length", ".attention.kv_lora_rank", ".rope.dimension_count", "split.count",
}

// maxNumbers bounds what is kept of them: ten by layer, far above any file.
const maxNumbers = 10 * maxLayers

// notWhole are the fixed types of GGUF that are no whole numbers: floats and booleans.
var notWhole = []uint32{6, 7, 12}

// entry reads an entry's value if it is part of a shape.
func (f *found) entry(h *header, name string, kind uint32) bool {
	if name == "general.architecture" && kind == typeString {
		if f.arch != "" {
			h.fail(fmt.Errorf("%w: %s is there twice", errBad, name))
		}
		f.arch = h.name()
		return true
	}
	if !slices.ContainsFunc(shapeKeys, func(end string) bool { return strings.HasSuffix(name, end) }) {
		return false
	}
	if _, twice := f.numbers[name]; twice {
		h.fail(fmt.Errorf("%w: %.80s is there twice", errBad, name))
		return true
	}
	n := uint64(1)
	if kind == typeArray {
		kind, n = h.uint32(), h.uint64()
	}
	width, fixed := widths[kind]
	if !fixed || slices.Contains(notWhole, kind) || n > maxLayers {
		h.fail(fmt.Errorf("%w: %.80s is of type %d; must be a number, or at most %d", errBad, name, kind, maxLayers))
		return true
	}
	if f.kept += n; f.kept > maxNumbers {
		h.fail(fmt.Errorf("%w: %.80s and those before it are more than %d numbers", errBad, name, maxNumbers))
		return true
	}
	f.numbers[name] = nil
	for ; n > 0 && h.err == nil; n-- {
		var b [8]byte
		copy(b[:], h.bytes(int(width)))
		f.numbers[name] = append(f.numbers[name], binary.LittleEndian.Uint64(b[:]))
	}
	return true
}

// most returns the largest number of an entry of the architecture; 0: there is none.
func (f *found) most(end string) int {
	if all := f.numbers[f.arch+end]; len(all) > 0 {
		return int(min(slices.Max(all), 1<<40))
	}
	return 0
}

// each returns what an entry has for a layer; other without one.
func (f *found) each(end string, layer, other int) int {
	switch all := f.numbers[f.arch+end]; {
	case len(all) == 1:
		return int(min(all[0], 1<<40))
	case layer < len(all):
		return int(min(all[layer], 1<<40))
	}
	return other
}

func shapeOfGGUF(path string) (Shape, error) {
	f, err := ggufOf(path)
	if err != nil {
		return Shape{}, err
	}
	files, err := filesOf(path, first(f.numbers["split.count"]))
	if err != nil {
		return Shape{}, err
	}
	tensors := f.tensors
	for _, file := range files[1:] {
		more, err := ggufOf(file)
		if err != nil {
			return Shape{}, fmt.Errorf("%s: %w", file, err)
		}
		tensors = append(tensors, more.tensors...)
	}
	return f.shape(tensors)
}

func first(all []uint64) uint64 {
	if len(all) == 0 {
		return 0
	}
	return all[0]
}

// ggufOf reads what a file has.
func ggufOf(path string) (*found, error) {
	r, err := regular.Open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	st, err := r.Stat()
	if err != nil {
		return nil, err
	}
	return find(r, uint64(max(0, st.Size())))
}

// find reads what the header of a file of so many bytes has.
func find(r io.Reader, size uint64) (*found, error) {
	h := newHeader(r)
	h.found = &found{numbers: map[string][]uint64{}}
	need, err := h.all()
	if err == nil && size < need {
		err = fmt.Errorf("%d bytes, but its header needs %d: the file is cut off; fetch it again", size, need)
	}
	if err != nil {
		return nil, err
	}
	start := (h.read + h.align - 1) / h.align * h.align
	return h.found, h.found.measure(size - min(size, start))
}

// measure finds how long tensors of unknown types are: up to the next one, the last up to
// the end of so many bytes.
func (f *found) measure(size uint64) error {
	if !slices.ContainsFunc(f.tensors, func(p part) bool { return p.unknown }) {
		return nil
	}
	slices.SortStableFunc(f.tensors, func(a, b part) int { return cmp.Compare(a.at, b.at) })
	for i := range f.tensors {
		p, end := &f.tensors[i], size
		if i+1 < len(f.tensors) {
			end = f.tensors[i+1].at
		}
		if !p.unknown {
			continue
		}
		if end < p.at || end-p.at > size {
			return fmt.Errorf("tensor %.80q: of type %d, which is not known, and it ends nowhere: %s", p.name, p.kind, wayOut)
		}
		p.bytes, p.elements = end-p.at, 0
	}
	return nil
}

// shape returns what the metadata and the tensors of all files make.
func (f *found) shape(tensors []part) (Shape, error) {
	if f.arch == "" {
		return Shape{}, errors.New("general.architecture: missing: " + wayOut)
	}
	s := Shape{
		Architecture: f.arch, Layers: f.most(".block_count"), Hidden: f.most(".embedding_length"),
		Heads: f.most(".attention.head_count"), Context: f.most(".context_length"),
	}
	for _, need := range []string{".block_count", ".embedding_length", ".attention.head_count"} {
		if f.most(need) == 0 {
			return Shape{}, fmt.Errorf("%.80s%s: missing, or 0: %s", f.arch, need, wayOut)
		}
	}
	if err := s.check(); err != nil {
		return Shape{}, err
	}
	s.KVHeads = s.Heads
	if n := f.most(".attention.head_count_kv"); n > 0 {
		s.KVHeads = n
	}
	s.KVBytesPerToken = f.kv(s)
	return s, s.count(tensors)
}

// kvNumber is the size of a number in the KV cache, in bytes.
const kvNumber = 2

// kv returns what a token takes in the KV cache of all layers, in bytes.
func (f *found) kv(s Shape) uint64 {
	var sum uint64
	lora, rope := f.most(".attention.kv_lora_rank"), f.most(".rope.dimension_count")
	for layer := range s.Layers {
		if lora > 0 { // one compressed vector for all heads
			sum += uint64(min(lora, maxWidth)+min(rope, maxWidth)) * kvNumber
			continue
		}
		heads := f.each(".attention.head_count_kv", layer, f.each(".attention.head_count", layer, s.Heads))
		width := s.Hidden / s.Heads
		wide := f.each(".attention.key_length", layer, width) + f.each(".attention.value_length", layer, width)
		sum += uint64(min(heads, maxWidth)) * uint64(min(wide, maxWidth)) * kvNumber
	}
	return sum
}
