package weights

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"millrace.dev/millrace/internal/regular"
)

// maxConfig bounds a config.json, in bytes.
const maxConfig = 16 << 20

// modelConfig is what a config.json has of a shape.
type modelConfig struct {
	Type    string       `json:"model_type"`
	Layers  int          `json:"num_hidden_layers"`
	Hidden  int          `json:"hidden_size"`
	Heads   int          `json:"num_attention_heads"`
	KVHeads int          `json:"num_key_value_heads"`
	HeadDim int          `json:"head_dim"`
	Lora    int          `json:"kv_lora_rank"`
	Rope    int          `json:"qk_rope_head_dim"`
	Context int          `json:"max_position_embeddings"`
	Dtype   string       `json:"torch_dtype"`
	Type2   string       `json:"dtype"`
	Layers2 int          `json:"n_layer"`
	Hidden2 int          `json:"n_embd"`
	Heads2  int          `json:"n_head"`
	Text    *modelConfig `json:"text_config"`
}

func shapeOfFolder(path string) (Shape, error) {
	b, err := regular.Read(filepath.Join(path, "config.json"), maxConfig)
	if err != nil {
		return Shape{}, err
	}
	s, err := shapeOfConfig(b)
	if err != nil {
		return Shape{}, fmt.Errorf("%s: %w", filepath.Join(path, "config.json"), err)
	}
	files, err := filepath.Glob(filepath.Join(escape(path), "*.safetensors"))
	if err != nil {
		return Shape{}, err
	}
	if len(files) == 0 {
		return Shape{}, errors.New("no weights in safetensors form: fetch them, or write spec.layout of the model")
	}
	// A folder may have the same weights twice, in one file and in several.
	shards, err := Shards(filepath.Join(path, IndexFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Shape{}, err
	}
	if err == nil {
		files = files[:0]
		for _, name := range shards {
			files = append(files, filepath.Join(path, name))
		}
		slices.Sort(files)
		files = slices.Compact(files)
	}
	var all []part
	for _, file := range files {
		tensors, err := tensorsOf(file)
		if err != nil {
			return Shape{}, err
		}
		for name, e := range tensors {
			all = append(all, e.part(name))
		}
	}
	return s, s.count(all)
}

// part returns what counts of a tensor. Its numbers are as many as its shape says.
func (e tensorEntry) part(name string) part {
	p := part{name: name, bytes: e.At[1] - e.At[0], elements: 1}
	for _, n := range e.Shape {
		p.elements *= n // within bounds where the type is known; else it is only shown
	}
	if _, known := bitsOf[e.Dtype]; !known {
		p.elements = 0
	}
	return p
}

// shapeOfConfig returns what a config.json says, without weights.
func shapeOfConfig(b []byte) (Shape, error) {
	var c modelConfig
	if err := json.Unmarshal(b, &c); err != nil {
		return Shape{}, fmt.Errorf("no model's config: %w", err)
	}
	if c.Layers == 0 && c.Text != nil {
		c = *c.Text
	}
	if c.Layers == 0 && c.Layers2 > 0 { // GPT-2 and its kin
		c.Layers, c.Hidden, c.Heads = c.Layers2, c.Hidden2, c.Heads2
	}
	s := Shape{Architecture: c.Type, Layers: c.Layers, Hidden: c.Hidden, Heads: c.Heads, KVHeads: c.KVHeads, Context: max(0, c.Context)}
	for _, f := range []struct {
		name  string
		value int
	}{{"num_hidden_layers", c.Layers}, {"hidden_size", c.Hidden}, {"num_attention_heads", c.Heads}} {
		if f.value <= 0 {
			return Shape{}, fmt.Errorf("%s: missing, or not above 0: %s", f.name, wayOut)
		}
	}
	if err := s.check(); err != nil {
		return Shape{}, err
	}
	if s.KVHeads <= 0 {
		s.KVHeads = s.Heads
	}
	number := uint64(kvNumber)
	if strings.Contains(c.Dtype+c.Type2, "float32") {
		number = 4
	}
	width := c.HeadDim
	if width <= 0 {
		width = c.Hidden / c.Heads
	}
	per := 2 * uint64(min(s.KVHeads, maxWidth)) * uint64(min(width, maxWidth))
	if c.Lora > 0 {
		per = uint64(min(c.Lora, maxWidth)) + uint64(min(max(0, c.Rope), maxWidth))
	}
	s.KVBytesPerToken = uint64(c.Layers) * per * number
	return s, nil
}
