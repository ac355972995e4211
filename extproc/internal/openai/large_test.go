package openai

import (
	"testing"

	"millrace.dev/millrace/internal/apis"
)

// TestLarge finds the number that llama.cpp, which holds 32 bits, would take for another one.
func TestLarge(t *testing.T) {
	for fields, want := range map[string]string{
		`"max_tokens":2147483647`:                               "",
		`"max_tokens":-2147483647,"top_k":-1`:                   "",
		`"max_tokens":2147483648`:                               "max_tokens 2147483648",
		`"max_tokens" : 1000000000000 , "a":1`:                  "max_tokens 1000000000000",
		`"top_k":-99999999999`:                                  "top_k -99999999999",
		`"n":1e12`:                                              "n 1e12",
		`"n":1E3,"temperature":0.70000000000000000001`:          "",
		`"temperature":1e999`:                                   "temperature 1e999",
		`"seed":9007199254740993`:                               "",
		`"seed":99999999999999999999`:                           "seed 99999999999999999999",
		`"max_tokens":1000000000000,"max_tokens":5`:             "",
		`"max_tokens":1000000000000,"max_tokens":null`:          "",
		`"max_tokens":5,"m\u0061x_tokens":1000000000000`:        "max_tokens 1000000000000",
		`"max_tokens":"1000000000000"`:                          "", // it is a text: the engine refuses it
		`"logit_bias":{"1":1000000000000},"x":[1000000000000]`:  "", // inside nothing is a bound
		`"chat_template_kwargs":{"a":1e12},"truncation":"auto"`: "",
	} {
		var r Request
		if err := r.Parse(apis.Chat, []byte(`{"model":"m","messages":[{"role":"user","content":"x"}],`+fields+`}`)); err != nil {
			t.Fatal(err)
		}
		got := ""
		if r.Large.Field != nil {
			got = string(r.Large.Field) + " " + string(r.Large.Number)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", fields, got, want)
		}
	}
}

// TestTheMarkOfUTF8IsPassedOver has a body that begins with U+FEFF be the same as one without.
func TestTheMarkOfUTF8IsPassedOver(t *testing.T) {
	const body = `{"model":"m","messages":[{"role":"user","content":"x"}]}`
	var r Request
	if err := r.Parse(apis.Chat, []byte("\ufeff"+body)); err != nil {
		t.Fatal(err)
	}
	if string(r.Raw) != body || string(r.WithModel(nil, "other")) != `{"model":"other","messages":[{"role":"user","content":"x"}]}` {
		t.Errorf("got %q, renamed %q", r.Raw, r.WithModel(nil, "other"))
	}
	if err := r.Parse(apis.Chat, []byte("\ufeff\ufeff"+body)); err == nil {
		t.Error("two marks are taken")
	}
}

func TestParseFields(t *testing.T) {
	for body, want := range map[string]string{
		"model=a": "a", "x=1&model=a%2Fb&model=c": "a/b", "m%6Fdel=a": "a", "mod+el=b&model=a": "a",
		"embedding_model=b": "", "x=model=b": "", "model": "", "": "", "%zz=1&model=a": "a", "model=%zz&model=a": "a",
	} {
		var r Request
		if err := r.ParseFields(apis.Transcriptions, []byte(body)); err != nil || string(r.Model) != want {
			t.Errorf("%s: %q, %v; want %q", body, r.Model, err, want)
		}
	}
}
