package weights

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"millrace.dev/millrace/internal/regular"
)

// Shape is what a layout of a model depends on.
type Shape struct {
	// Architecture is what the file calls it, such as "llama".
	Architecture string
	// Layers is how many there are; LayerBytes is the mean of their weights.
	Layers     int
	LayerBytes uint64
	// EmbeddingBytes are the token embeddings, HeadBytes the output head and all else that
	// there is once. Tied is whether the head is a copy of the embeddings, so that one
	// process has them once.
	EmbeddingBytes, HeadBytes uint64
	Tied                      bool
	// Parameters is how many numbers the weights are.
	Parameters uint64
	// KVBytesPerToken is what a token takes in the KV cache of all layers, at 2 bytes a
	// number; at 4 where the weights are of 4.
	KVBytesPerToken uint64
	// Hidden is the width of the activations; Heads and KVHeads are the attention heads of a
	// layer, the most where layers differ.
	Hidden, Heads, KVHeads int
	// Context is the longest sequence that it was trained for, in tokens; 0: not known.
	Context int
}

// Bounds of what a shape can be, far above any model: so that sums of them fit.
const (
	maxLayers = 1 << 14
	maxWidth  = 1 << 24
)

// wayOut is what helps where a shape can't be known.
const wayOut = "convert the model anew, or write spec.layout of the model"

// ShapeOf reads the shape of a GGUF file, of the first of several, or of a folder with
// weights in safetensors form.
func ShapeOf(path string) (Shape, error) {
	st, err := regular.Stat(path)
	if err != nil {
		return Shape{}, err
	}
	read := shapeOfGGUF
	if st.IsDir() {
		read = shapeOfFolder
	}
	s, err := read(path)
	if err == nil {
		err = s.check()
	}
	if err != nil && !strings.HasPrefix(err.Error(), path) {
		err = fmt.Errorf("%s: %w", path, err)
	}
	if err != nil {
		return Shape{}, err
	}
	return s, nil
}

// part is a tensor of a model.
type part struct {
	name            string
	elements, bytes uint64
	// at is where it begins, kind its type, and unknown whether that isn't one of
	// blocks, so that bytes is not known; of GGUF.
	at      uint64
	kind    uint32
	unknown bool
}

// layerName is how tensors of a layer are named: of GGUF, Llama and its kin, GPT-2, BERT.
var layerName = regexp.MustCompile(`(?:^|\.)(?:blk|layers|h|layer|blocks)\.(\d+)\.`)

// tower are parts of a model that read images or sound: they are not split.
var tower = regexp.MustCompile(`(?:^|\.)(?:vision|visual|audio|mm|v|a)(?:_[a-z]+)?\.`)

// add counts a tensor.
func (s *Shape) add(p part, of *layers) {
	s.Parameters += p.elements
	m := layerName.FindStringSubmatch(p.name)
	switch {
	case m != nil && !tower.MatchString(p.name):
		n, err := strconv.Atoi(m[1])
		if err == nil && n < s.Layers {
			of.bytes += p.bytes
			of.seen[n] = true
			return
		}
		s.HeadBytes += p.bytes // such as a layer that predicts further tokens
	case strings.Contains(p.name, "token_embd.weight") || strings.Contains(p.name, "embed_tokens.weight") || strings.HasSuffix(p.name, "wte.weight"):
		s.EmbeddingBytes += p.bytes
	default:
		of.output = of.output || p.name == "output.weight" || strings.HasSuffix(p.name, "lm_head.weight")
		s.HeadBytes += p.bytes
	}
}

// layers is what add counts of all layers.
type layers struct {
	bytes  uint64
	seen   map[int]bool
	output bool
}

// count adds all tensors up. The number of layers is known.
func (s *Shape) count(all []part) error {
	of := layers{seen: map[int]bool{}}
	for _, p := range all {
		s.add(p, &of)
	}
	if s.Tied = !of.output; s.Tied {
		s.HeadBytes += s.EmbeddingBytes
	}
	if len(of.seen) != s.Layers {
		return fmt.Errorf("tensors of %d layers, and %d must be there: a file of the model is missing, or its names are not known; fetch it again, or write spec.layout of the model", len(of.seen), s.Layers)
	}
	s.LayerBytes = (of.bytes + uint64(s.Layers) - 1) / uint64(s.Layers)
	return nil
}

// check says what is missing or beyond all bounds.
func (s Shape) check() error {
	fault := func(name string, v, most int) error {
		if v < 1 || v > most {
			return fmt.Errorf("%s: %d; must be 1 to %d: %s", name, v, most, wayOut)
		}
		return nil
	}
	return errors.Join(fault("layers", s.Layers, maxLayers), fault("hidden size", s.Hidden, maxWidth), fault("attention heads", s.Heads, maxWidth))
}

// shardName is that of one of several GGUF files of a model.
var shardName = regexp.MustCompile(`-(\d{5})-of-(\d{5})\.gguf$`)

// filesOf returns the files of a model of which one is named: several of them where the
// name says so.
func filesOf(path string, count uint64) ([]string, error) {
	if count < 2 {
		return []string{path}, nil
	}
	base := filepath.Base(path)
	m := shardName.FindStringSubmatchIndex(base)
	if m == nil || count > 99999 || base[m[4]:m[5]] != fmt.Sprintf("%05d", count) {
		return nil, fmt.Errorf("split.count: %d files, and this one is not named …-00001-of-%05d.gguf: name it so, beside the others", count, count)
	}
	var all []string
	for i := range count {
		all = append(all, filepath.Join(filepath.Dir(path), fmt.Sprintf("%s-%05d-of-%05d.gguf", base[:m[0]], i+1, count)))
	}
	return all, nil
}
