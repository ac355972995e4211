package token

import (
	"encoding/json"
	"os"
	"testing"
)

// AsHF writes the tests' tokenizer as Hugging Face's files, and returns its path. With begins it
// puts a token before every text.
func AsHF(t testing.TB, folder string, begins bool) string {
	t.Helper()
	path := asHF(t, folder, false)
	if !begins {
		return path
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file map[string]json.RawMessage
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	file["post_processor"] = json.RawMessage(`{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|im_start|>"}},{"Sequence":{}}],` +
		`"special_tokens":{"<|im_start|>":{"ids":[1]}}}`)
	write(t, folder, "tokenizer.json", file)
	return path
}
