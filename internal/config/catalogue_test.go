package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBadCatalogue(t *testing.T) {
	const name = "testdata/badcatalogue/all.yaml"
	_, err := LoadCatalogue(name)
	if err == nil {
		t.Fatal("took a bad file")
	}
	if diff := cmp.Diff(wanted(t, name), err.Error()); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
	for _, text := range []string{"", "models: []", "---\n---\n"} {
		if _, err := ParseCatalogue("c.yaml", []byte(text)); err == nil {
			t.Errorf("%q: taken", text)
		}
	}
}

func TestGoodCatalogue(t *testing.T) {
	c, err := ParseCatalogue("c.yaml", []byte(`
models:
  - {name: tiny, urls: [https://a.example/t.gguf, http://10.0.0.5/t], size: 92Mi, contextTokens: 8192, tokenizer: https://a.example/tokenizer.json}
  - {name: llama-3.1, repo: "org/Llama-3.1-GGUF:Q4_K_M"}
`))
	want := Catalogue{Models: []CatalogueModel{
		{Name: "tiny", URLs: []string{"https://a.example/t.gguf", "http://10.0.0.5/t"}, Size: 92 << 20, Format: GGUF, ContextTokens: 8192, Tokenizer: "https://a.example/tokenizer.json"},
		{Name: "llama-3.1", Repo: "org/Llama-3.1-GGUF:Q4_K_M"},
	}}
	if diff := cmp.Diff(want, c); diff != "" || err != nil {
		t.Errorf("catalogue (-want +got): %v\n%s", err, diff)
	}
}

func FuzzCatalogue(f *testing.F) {
	f.Add([]byte("models:\n- {name: tiny, repo: a/b}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseCatalogue("c.yaml", text)
		if err == nil && len(c.Models) == 0 {
			t.Error("no models, and no error")
		}
	})
}
