package token

import "testing"

func TestImageRules(t *testing.T) {
	const (
		qwen  = `{"patch_size":14,"merge_size":2,"min_pixels":3136,"max_pixels":12845056}`
		edges = `{"patch_size":16,"merge_size":2,"size":{"shortest_edge":65536,"longest_edge":16777216}}`
		llava = `{"crop_size":{"height":336,"width":336},"size":{"shortest_edge":336},"patch_size":14}`
	)
	tests := []struct {
		name, config  string
		width, height int
		want          int // 0: no rule
	}{
		{"squares that make a token each", qwen, 224, 224, 64 + aroundImage},
		{"a large image is scaled down", qwen, 10000, 10000, 128*128 + aroundImage},
		{"a small one is scaled up", qwen, 10, 10, 4 + aroundImage},
		{"limits as edges", edges, 320, 320, 100 + aroundImage},
		{"a small one with limits as edges", edges, 32, 32, 64 + aroundImage},
		{"a size that isn't known", qwen, 0, 0, 37*27 + aroundImage},
		{"images of one size", llava, 4000, 20, 576},
		{"a number of tokens", `{"image_seq_length":64}`, 4000, 20, 64},
		{"nothing that we know", `{"image_mean":[0.5]}`, 10, 10, 0},
		{"nonsense", `{"patch_size":-1,"merge_size":2}`, 10, 10, 0},
		{"not JSON", `{`, 10, 10, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := Model{images: readImageRule([]byte(tt.config))}
			if n, ok := m.Image(tt.width, tt.height); n != tt.want || ok != (tt.want > 0) {
				t.Errorf("Image(%d, %d) = %d, %v; want %d", tt.width, tt.height, n, ok, tt.want)
			}
		})
	}
}

func FuzzImageRule(f *testing.F) {
	f.Add([]byte(`{"patch_size":14,"merge_size":2,"min_pixels":3136,"max_pixels":12845056}`), uint16(3), uint16(60000))
	f.Fuzz(func(t *testing.T, config []byte, w, h uint16) {
		m := Model{images: readImageRule(config)}
		if n, ok := m.Image(int(w), int(h)); ok && (n < 1 || n > 1<<28) {
			t.Errorf("%q: %d × %d has %d tokens", config, w, h, n)
		}
	})
}

func FuzzAnthropicMessages(f *testing.F) {
	f.Add([]byte(`{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":[{"type":"text","text":"x"}]},{"type":"text","text":"y"}]}`))
	f.Add([]byte(`{"role":"assistant","content":[{"type":"thinking","thinking":"x"},{"type":"tool_use","id":"t","name":"n","input":{"a":[1]}}]}`))
	m := smol(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		all, err := AnthropicMessages(raw)
		if err == nil {
			m.CountChat(&Chat{Messages: all, Tools: AnthropicTools(raw)})
		}
	})
}
