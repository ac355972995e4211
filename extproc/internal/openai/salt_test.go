package openai

import (
	"testing"

	"millrace.dev/millrace/internal/apis"
)

// TestLastSaltCounts has a salt that comes twice be the last one, as engines read it.
func TestLastSaltCounts(t *testing.T) {
	for fields, want := range map[string]struct {
		salt      string
		separated bool
	}{
		`"cache_salt":"s"`:                      {"s", false},
		`"cache_salt":"s","cache_salt":"t"`:     {"t", false},
		`"cache_salt":"s","cache_salt":["t"]`:   {"", true},
		`"cache_salt":"s","cache_salt":null`:    {"", false},
		`"cache_salt":"s","cache_salt":{"a":1}`: {"", true},
	} {
		var r Request
		if err := r.Parse(apis.Chat, []byte(`{"model":"m","messages":[{"role":"user","content":"x"}],`+fields+`}`)); err != nil {
			t.Fatal(err)
		}
		if string(r.Salt) != want.salt || r.Separated != want.separated {
			t.Errorf("%s: salt %q, separated %v; want %+v", fields, r.Salt, r.Separated, want)
		}
	}
}
