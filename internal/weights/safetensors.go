package weights

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"millrace.dev/millrace/internal/regular"
	"os"
	"path/filepath"
	"slices"
)

// Limits of a folder of Hugging Face's. The format's own library takes headers up to 100 MB.
const (
	maxTensorsHeader = 100 << 20 // bytes
	maxIndex         = 64 << 20  // bytes of model.safetensors.index.json
)

// IndexFile names the shards of weights that are in several files.
const IndexFile = "model.safetensors.index.json"

var errTensors = errors.New("broken safetensors header")

// CheckSafetensors says why the file at path can't be a whole file in safetensors form;
// nil: it can.
func CheckSafetensors(path string) error {
	_, err := tensorsOf(path)
	return err
}

// tensorsOf returns a file's tensors by name.
func tensorsOf(path string) (map[string]tensorEntry, error) {
	f, err := regular.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	names, need, err := safetensors(f, uint64(max(st.Size(), 0)))
	if err == nil && uint64(st.Size()) != need {
		err = fmt.Errorf("%d bytes, but its header says %d: the file is cut off, or not all of it is tensors", st.Size(), need)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return names, nil
}

// safetensors reads the header of a file of so many bytes, and returns its tensors by name
// and how long the file must be.
func safetensors(r io.Reader, size uint64) (names map[string]tensorEntry, need uint64, err error) {
	br := bufio.NewReaderSize(r, 1<<16)
	var head [8]byte
	if _, err := io.ReadFull(br, head[:]); err != nil {
		return nil, 0, errors.New("not a safetensors file")
	}
	n := binary.LittleEndian.Uint64(head[:])
	if n > maxTensorsHeader || n < 2 {
		return nil, 0, fmt.Errorf("not a safetensors file: a header of %d bytes", n)
	}
	if 8+n > size {
		return nil, 0, errEarly
	}
	names, end, err := tensors(json.NewDecoder(io.LimitReader(br, int64(n))))
	return names, 8 + n + end, err
}

// tensorEntry is one tensor of a header.
type tensorEntry struct {
	Dtype string    `json:"dtype"`
	Shape dims      `json:"shape"`
	At    [2]uint64 `json:"data_offsets"`
}

// dims are the dimensions of a tensor.
type dims []uint64

// UnmarshalJSON refuses more than there can be before it makes room for them.
func (d *dims) UnmarshalJSON(b []byte) error {
	if n := bytes.Count(b, []byte(",")); n >= maxDims {
		return fmt.Errorf("a shape of %d dimensions; must be at most %d", n+1, maxDims)
	}
	return json.Unmarshal(b, (*[]uint64)(d))
}

// bitsOf is the width of the types of tensors. One that isn't known passes.
var bitsOf = map[string]uint64{
	"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
	"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4,
}

// tensors reads a header and returns the tensors by name, and where the last one ends.
func tensors(dec *json.Decoder) (map[string]tensorEntry, uint64, error) {
	broken := func(err error) (map[string]tensorEntry, uint64, error) {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errEarly
		}
		return nil, 0, fmt.Errorf("%w: %w", errTensors, err)
	}
	names, end := map[string]tensorEntry{}, uint64(0)
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return broken(errors.Join(err, errors.New("no object")))
	}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return broken(err)
		}
		name, _ := t.(string) // a key is one
		if name == "__metadata__" {
			var any map[string]string
			if err := dec.Decode(&any); err != nil {
				return broken(err)
			}
			continue
		}
		var e tensorEntry
		if err := dec.Decode(&e); err != nil {
			return broken(fmt.Errorf("tensor %.80q: %w", name, err))
		}
		if err := e.check(); err != nil {
			return broken(fmt.Errorf("tensor %.80q: %w", name, err))
		}
		if _, twice := names[name]; twice || len(names) == maxTensors {
			return broken(fmt.Errorf("tensor %.80q: there twice, or one too many", name))
		}
		names[name], end = e, max(end, e.At[1])
	}
	if _, err := dec.Token(); err != nil {
		return broken(err)
	}
	return names, end, nil
}

// check says why a tensor can't lie where its entry says.
func (e tensorEntry) check() error {
	if e.At[0] > e.At[1] || e.At[1] > 1<<60 {
		return fmt.Errorf("bytes %d to %d", e.At[0], e.At[1])
	}
	width, known := bitsOf[e.Dtype]
	if !known {
		return nil
	}
	for _, n := range e.Shape {
		over, product := bits.Mul64(width, n)
		if over != 0 || product > 1<<63 {
			return errors.New("without bounds")
		}
		width = product
	}
	if (width+7)/8 != e.At[1]-e.At[0] {
		return fmt.Errorf("%s %v takes %d bytes, and has %d", e.Dtype, e.Shape, (width+7)/8, e.At[1]-e.At[0])
	}
	return nil
}

// checkShards checks all that a folder has in safetensors form, and that the files which its
// index names are there, with the tensors that the index says. It returns how many files
// there are.
func checkShards(folder string) (int, error) {
	paths, err := filepath.Glob(filepath.Join(escape(folder), "*.safetensors"))
	if err != nil {
		return 0, err
	}
	has := map[string]map[string]tensorEntry{} // tensors by file
	for _, path := range paths {
		if has[filepath.Base(path)], err = tensorsOf(path); err != nil {
			return 0, err
		}
	}
	index := filepath.Join(folder, IndexFile)
	shards, err := Shards(index)
	if errors.Is(err, os.ErrNotExist) {
		return len(paths), nil
	}
	if err != nil {
		return 0, err
	}
	for _, tensor := range slices.Sorted(maps.Keys(shards)) {
		file := shards[tensor]
		if has[file] == nil {
			return 0, fmt.Errorf("%s: it names %s, which is not there", index, file)
		}
		if _, there := has[file][tensor]; !there {
			return 0, fmt.Errorf("%s: %s has no tensor %.80q", index, file, tensor)
		}
	}
	return len(paths), nil
}

// escape makes a path mean itself to filepath.Glob.
func escape(path string) string {
	var b []rune
	for _, r := range path {
		if r == '*' || r == '?' || r == '[' || r == '\\' {
			b = append(b, '\\')
		}
		b = append(b, r)
	}
	return string(b)
}

// Shards reads an index, and returns in which file of its folder each tensor is.
func Shards(index string) (map[string]string, error) {
	f, err := regular.Open(index)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err != nil {
		return nil, err
	}
	var x struct {
		Map map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(b, &x); err != nil || len(b) > maxIndex || len(x.Map) == 0 {
		return nil, fmt.Errorf("%s: no index with a weight_map", index)
	}
	for _, name := range x.Map {
		if filepath.Base(name) != name || !filepath.IsLocal(name) {
			return nil, fmt.Errorf("%s: %.80q; must be the name of a file beside it", index, name)
		}
	}
	return x.Map, nil
}
