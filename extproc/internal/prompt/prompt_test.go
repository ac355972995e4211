package prompt

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/token"
	"millrace.dev/millrace/internal/apis"
)

// smolPath is where set-up puts the model of the tests.
func smolPath() string {
	cache := os.Getenv("MILLRACE_CACHE")
	if cache == "" {
		cache = filepath.Join("..", "..", "..", ".cache")
	}
	return filepath.Join(cache, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
}

// TestCountsEqualTheServers reads the requests that a real server has counted as
// they come from Envoy.
func TestCountsEqualTheServers(t *testing.T) {
	c, err := Load(smolPath())
	if err != nil {
		t.Fatalf("%v; run `make setup`, which fetches the model", err)
	}
	f, err := os.Open("../token/testdata/counts.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	counted, identified := map[apis.API]int{}, map[apis.API]int{}
	var r openai.Request
	for lines.Scan() {
		var s struct {
			Name, Path string
			Body       json.RawMessage
			Tokens     int
		}
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		api := apis.Of("POST", s.Path)
		if how := api.Row().Counted; how != apis.Conversation && how != apis.Texts {
			continue
		}
		if err := r.Parse(api, s.Body); err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		n, doubt := c.Count(&r)
		if n != s.Tokens || doubt != pick.Certain {
			t.Errorf("%s: %d tokens, doubt %q; the server counts %d", s.Name, n, doubt, s.Tokens)
		}
		if ids, certain := c.(pick.Identifier).IDs(nil, &r); len(ids) > 0 && (!certain || len(ids) != n) {
			t.Errorf("%s: %d ids, certain %v; %d tokens", s.Name, len(ids), certain, n)
		} else if len(ids) > 0 {
			identified[api]++
		}
		counted[api]++
	}
	if counted[apis.Messages] < 100 || counted[apis.Chat] < 150 || counted[apis.Responses] < 10 || identified[apis.Messages] < 100 || identified[apis.Chat] < 150 || identified[apis.Completions] == 0 {
		t.Errorf("%v requests, tokens known of %v; something is lost", counted, identified)
	}
}

func TestMediaAreEstimated(t *testing.T) {
	c, err := Load(smolPath())
	if err != nil {
		t.Fatal(err)
	}
	image := "data:image/png;base64," + strings.Repeat("A", 1<<16)
	for api, body := range map[apis.API]string{
		apis.Chat:      `{"messages":[{"role":"user","content":[{"type":"text","text":"What is this?"},{"type":"image_url","image_url":{"url":"` + image + `"}}]}]}`,
		apis.Responses: `{"input":[{"role":"user","content":[{"type":"input_text","text":"What is this?"},{"type":"input_image","image_url":"` + image + `"}]}]}`,
		apis.Messages:  `{"messages":[{"role":"user","content":[{"type":"text","text":"What is this?"},{"type":"image","source":{"type":"base64","data":"` + image + `"}}]}]}`,
	} {
		var r openai.Request
		if err := r.Parse(api, []byte(body)); err != nil {
			t.Fatal(err)
		}
		words := openai.Request{API: apis.Chat, Messages: []openai.Message{{Role: "user", Content: []byte("What is this?")}}}
		text, _ := c.Count(&words)
		image := openai.Media{Kind: openai.Image}
		if n, doubt := c.Count(&r); doubt != "media" || n != text+image.Tokens() {
			t.Errorf("%v: %d tokens, doubt %q; want an estimate of %d", api, n, doubt, text+image.Tokens())
		}
	}
}

func TestContinuedResponseIsEstimated(t *testing.T) {
	c, err := Load(smolPath())
	if err != nil {
		t.Fatal(err)
	}
	var r openai.Request
	if err := r.Parse(apis.Responses, []byte(`{"input":"Hi","previous_response_id":"resp_1"}`)); err != nil {
		t.Fatal(err)
	}
	if _, doubt := c.Count(&r); doubt != "previous" {
		t.Errorf("a prompt of which only the end is seen has doubt %q", doubt)
	}
}

// TestDoubtsHaveTheirCounters has each reason of the tokenizer among those that are counted.
func TestDoubtsHaveTheirCounters(t *testing.T) {
	for _, d := range []token.Doubt{token.ByTemplate, token.ByRefusal, token.ByTools, token.ByFields, token.ByEngine, token.ByHarmony, token.ByClock, token.ByMedia, token.ByWords} {
		if !slices.Contains(pick.Doubts, string(d)) {
			t.Errorf("%q is not counted", d)
		}
	}
}

// TestIDsThatWereSent has ids in place of a text be the prompt's tokens as they are.
func TestIDsThatWereSent(t *testing.T) {
	c, err := Load(smolPath())
	if err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string][]uint32{
		`{"prompt":[1,22, 333]}`:       {1, 22, 333},
		`{"prompt":[[4294967295 ,0]]}`: {4294967295, 0},
		`{"prompt":[1,4294967296]}`:    nil,
		`{"prompt":[1,-2]}`:            nil,
		`{"prompt":[1.5]}`:             nil,
		`{"prompt":[[1],[2]]}`:         nil, // two prompts
		`{"prompt":[true]}`:            nil,
		`{"prompt":[[]]}`:              nil,
	} {
		var r openai.Request
		if err := r.Parse(apis.Completions, []byte(body)); err != nil {
			t.Fatal(err)
		}
		ids, exact := c.(pick.Identifier).IDs(nil, &r)
		if !slices.Equal(ids, want) || exact != (want != nil) {
			t.Errorf("%s: %v, exact %v; want %v", body, ids, exact, want)
		}
	}
}

// TestFieldsThatNobodyCountsHere has a count without them be no exact one, unless they change
// nothing: the tokenizer puts no tokens around prompts, and of one token none is cut.
func TestFieldsThatNobodyCountsHere(t *testing.T) {
	c, err := Load(smolPath())
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]bool{
		`"add_special_tokens":false`: true, `"truncate_prompt_tokens":0`: false, `"truncate_prompt_tokens":-1`: false, `"truncate_prompt_tokens":null`: true,
		`"truncate_prompt_tokens":64`: true, `"truncate_prompt_tokens":"64"`: false, `"documents":[{}]`: true, // no template of it has them
		`"temperature":1`: true, `"cache_salt":"s"`: true,
	} {
		for api, body := range map[apis.API]string{apis.Chat: `"messages":[{"role":"user","content":"hi"}]`, apis.Completions: `"prompt":"hi"`} {
			var r openai.Request
			if err := r.Parse(api, []byte("{"+body+","+field+"}")); err != nil {
				t.Fatal(err)
			}
			_, doubt := c.Count(&r)
			exact := doubt == pick.Certain
			_, certain := c.(pick.Identifier).IDs(nil, &r)
			if exact != want || certain != want {
				t.Errorf("%v with %s: exact %v, ids certain %v; want %v", api, field, exact, certain, want)
			}
		}
	}
}

// TestEnginesThatDiffer has a count be exact where all engines that may serve a request
// count the same.
func TestEnginesThatDiffer(t *testing.T) {
	base, err := Load(smolPath())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		engines []pick.Engine
		doubt   string
	}{
		{[]pick.Engine{{Kind: "llamacpp"}}, pick.Certain},
		{[]pick.Engine{{Kind: "llamacpp"}, {Kind: "llamacpp", Version: "b2"}}, pick.Certain},
		{[]pick.Engine{{Args: [2]string{`{"bos_token":"!!"}`}}, {Args: [2]string{`{"bos_token":"!!"}`, `{"bos_token":"?"}`}}}, pick.Certain}, // which the template does not use
		{[]pick.Engine{{}, {Args: [2]string{"", `{"messages":[]}`}}}, string(token.ByEngine)},
		{[]pick.Engine{{Args: [2]string{`[]`}}}, string(token.ByEngine)},
	} {
		c := base.(pick.Tailor).For(tt.engines)
		var r openai.Request
		if err := r.Parse(apis.Chat, []byte(`{"messages":[{"role":"user","content":"Hello there"}]}`)); err != nil {
			t.Fatal(err)
		}
		n, doubt := c.Count(&r)
		ids, exact := c.(pick.Identifier).IDs(nil, &r)
		if doubt != tt.doubt || exact != (doubt == pick.Certain) {
			t.Errorf("%v: %d tokens, doubt %q, ids certain %v; want %q", tt.engines, n, doubt, exact, tt.doubt)
		}
		if exact && len(ids) != n {
			t.Errorf("%v: %d tokens, %d ids", tt.engines, n, len(ids))
		}
	}
}

// TestEnginesWithTheSameRules has a request counted once for all engines that render it alike,
// and settings that can't be followed be no less so the second time.
func TestEnginesWithTheSameRules(t *testing.T) {
	base, err := Load(letters(t, "{% for m in messages %}{{ m.content }}{% endfor %}"))
	if err != nil {
		t.Fatal(err)
	}
	vllm := func(version, args string) pick.Engine {
		return pick.Engine{Kind: "vllm", Version: version, Args: [2]string{"", args}}
	}
	for name, tt := range map[string]struct {
		engines []pick.Engine
		counts  int // how often a request is counted
	}{
		"releases alike":     {[]pick.Engine{vllm("0.30.0", ""), vllm("0.31.0", ""), vllm("0.31.1", "")}, 1},
		"one that differs":   {[]pick.Engine{vllm("0.30.0", ""), vllm("0.31.0", ""), vllm("0.32.0", "")}, 2},
		"arguments":          {[]pick.Engine{vllm("0.30.0", ""), vllm("0.31.0", `{"a":1}`), vllm("0.30.0", `{"a":1}`)}, 2},
		"where they stand":   {[]pick.Engine{vllm("0.30.0", `{"a":1}`), {Kind: "vllm", Version: "0.30.0", Args: [2]string{`{"a":1}`}}}, 1},
		"none and no others": {[]pick.Engine{vllm("0.30.0", ""), vllm("0.30.0", "{}")}, 1},
		"unknown ones":       {[]pick.Engine{{Kind: "tgi"}, {Kind: "lmdeploy", Version: "7"}, {}}, 1},
	} {
		c := base.(pick.Tailor).For(tt.engines).(*tokenizer)
		if n := 1 + len(c.others); n != tt.counts {
			t.Errorf("%s: counted %d times, want %d", name, n, tt.counts)
		}
		if again := base.(pick.Tailor).For(tt.engines).(*tokenizer); again.model != c.model {
			t.Errorf("%s: made anew", name)
		}
	}
	for range 2 {
		if c := base.(pick.Tailor).For([]pick.Engine{vllm("0.30.0", "[]")}).(*tokenizer); c.fault == nil {
			t.Error("settings that can't be followed are forgotten")
		}
	}
}

// letters writes a tokenizer of transformers whose tokens are letters, with a chat template,
// and returns its path.
func letters(t *testing.T, template string) string {
	t.Helper()
	vocabulary := map[string]int{}
	for c := '!'; c <= '~'; c++ {
		vocabulary[string(c)] = len(vocabulary)
	}
	folder := t.TempDir()
	for name, v := range map[string]any{
		"tokenizer.json": map[string]any{
			"pre_tokenizer": map[string]any{"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
			"model":         map[string]any{"type": "BPE", "vocab": vocabulary, "merges": []string{}},
		},
		"tokenizer_config.json": map[string]any{"chat_template": template},
	} {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(folder, "tokenizer.json")
}
