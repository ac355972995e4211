package weights

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const llamaConfig = `{"model_type":"llama","num_hidden_layers":2,"hidden_size":64,"num_attention_heads":4,"num_key_value_heads":2,"max_position_embeddings":2048,"torch_dtype":"bfloat16"}`

const llamaTensors = `{"model.embed_tokens.weight":{"dtype":"BF16","shape":[16],"data_offsets":[0,32]},` +
	`"model.layers.0.w":{"dtype":"BF16","shape":[8],"data_offsets":[32,48]},"model.layers.1.w":{"dtype":"F32","shape":[8],"data_offsets":[48,80]},` +
	`"model.vision_tower.layers.0.w":{"dtype":"U8","shape":[4],"data_offsets":[80,84]},"lm_head.weight":{"dtype":"U8","shape":[16],"data_offsets":[84,100]}}`

func TestShapeOfFolder(t *testing.T) {
	whole := Shape{
		Architecture: "llama", Layers: 2, LayerBytes: 24, EmbeddingBytes: 32, HeadBytes: 20, Parameters: 16 + 8 + 8 + 4 + 16,
		KVBytesPerToken: 2 * 2 * 2 * 16 * 2, Hidden: 64, Heads: 4, KVHeads: 2, Context: 2048,
	}
	with := func(change func(*Shape)) Shape { s := whole; change(&s); return s }
	tests := []struct {
		name, config, tensors, index string
		want                         Shape
		err                          string
	}{
		{name: "whole", config: llamaConfig, tensors: llamaTensors, want: whole},
		{name: "below text_config, of float32", config: `{"text_config":` + strings.Replace(llamaConfig, "bfloat16", "float32", 1) + `}`, tensors: llamaTensors, want: with(func(s *Shape) { s.KVBytesPerToken *= 2 })},
		{name: "heads of their own width", config: strings.Replace(llamaConfig, "{", `{"head_dim":32,`, 1), tensors: llamaTensors, want: with(func(s *Shape) { s.KVBytesPerToken *= 2 })},
		{name: "no layers", config: `{"hidden_size":64}`, tensors: llamaTensors, err: "num_hidden_layers: missing, or not above 0: convert the model anew"},
		{name: "no config", config: `[]`, tensors: llamaTensors, err: "no model's config"},
		{name: "no weights", config: llamaConfig, err: "no weights in safetensors form: fetch them"},
		{name: "with its index", config: llamaConfig, tensors: llamaTensors, index: `{"weight_map":{"lm_head.weight":"model.safetensors"}}`, want: whole},
		{name: "a broken index", config: llamaConfig, tensors: llamaTensors, index: `{`, err: IndexFile + ": no index with a weight_map"},
		{name: "a layer too few", config: strings.Replace(llamaConfig, `layers":2`, `layers":3`, 1), tensors: llamaTensors, err: "tensors of 2 layers, and 3 must be there"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "config.json"), []byte(tt.config))
			if tt.tensors != "" {
				write(t, filepath.Join(dir, "model.safetensors"), tensorsFile(tt.tensors, 100))
			}
			if tt.index != "" {
				write(t, filepath.Join(dir, IndexFile), []byte(tt.index))
			}
			got, err := ShapeOf(dir)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.HasPrefix(err.Error(), dir) {
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

func FuzzShapeOfConfig(f *testing.F) {
	f.Add([]byte(llamaConfig))
	f.Add([]byte(`{"n_layer":2,"n_embd":8,"n_head":2,"kv_lora_rank":3}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := shapeOfConfig(b); err == nil && (s.Layers < 1 || s.Heads < 1 || s.KVBytesPerToken == 0 && s.Hidden >= s.Heads) {
			t.Errorf("%s: %+v", b, s)
		}
	})
}
