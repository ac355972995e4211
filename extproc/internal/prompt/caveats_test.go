package prompt

import (
	"slices"
	"strings"
	"testing"

	"millrace.dev/millrace/extproc/internal/pick"
)

// TestCaveats has a model say why its conversations are estimated: as its engines' versions
// are not known, differ, or make Harmony's form.
func TestCaveats(t *testing.T) {
	const gptOSS = "{# <|start|><|channel|> #}{% for m in messages %}{{ m.content }}{{ m.reasoning }}{% endfor %}"
	const ordinary = "{% for m in messages %}{{ m.content }}{{ m.reasoning }}{% endfor %}"
	vllm := pick.Engine{Kind: "vllm", Version: "0.32.0"}
	for name, tt := range map[string]struct {
		template string
		engines  []pick.Engine
		want     []string // of each caveat its reason, and what is in its text
	}{
		"known":             {ordinary, []pick.Engine{vllm, {Kind: "vllm", Version: "0.32.1"}}, nil},
		"SGLang known":      {ordinary, []pick.Engine{{Kind: "sglang", Version: "0.5.20"}}, nil},
		"a version to come": {ordinary, []pick.Engine{{Kind: "vllm", Version: "0.99.0"}}, []string{"engine vllm 0.99.0", "engine reasoning"}},
		"no version":        {ordinary, []pick.Engine{{Kind: "sglang"}}, []string{"engine sglang of unknown version"}},
		"no type":           {ordinary, []pick.Engine{{}}, []string{"engine unknown type"}},
		"lists or texts": {"{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}{% for x in messages %}{{ x['content'] }}{% endfor %}",
			[]pick.Engine{{Kind: "tgi", Version: "3"}}, []string{"engine tgi 3"}},
		"by different rules": {ordinary, []pick.Engine{vllm, {Kind: "vllm", Version: "0.19.1"}}, []string{"engine vllm 0.32.0 and vllm 0.19.1"}},
		"unsettable":         {ordinary, []pick.Engine{{Kind: "vllm", Version: "0.32.0", Args: [2]string{"7"}}}, []string{"engine must be a JSON object"}},
		"gpt-oss":            {gptOSS, []pick.Engine{{Kind: "vllm", Version: "0.99.0"}}, []string{"harmony vllm 0.99.0"}},
		"gpt-oss elsewhere":  {gptOSS, []pick.Engine{{Kind: "sglang", Version: "0.5.23"}}, nil},
		"nobody yet":         {gptOSS, nil, nil},
		"the time":           {"{{ strftime_now('%H:%M') }}" + ordinary, []pick.Engine{vllm}, []string{"clock time of the day"}},
		"the time for tools": {"{% if tools %}{{ strftime_now('%H:%M') }}{% endif %}" + ordinary, nil, []string{"clock time of the day"}},
		"the date":           {"{{ strftime_now('%d') }}" + ordinary, []pick.Engine{vllm}, []string{"clock the date"}},
		"no template":        {"{% include 'x' %}", []pick.Engine{vllm}, []string{"template include"}},
	} {
		c, err := Load(letters(t, tt.template))
		if err != nil {
			t.Fatal(err)
		}
		if tt.engines != nil {
			c = c.(pick.Tailor).For(tt.engines)
		}
		var reasons []string
		for _, caveat := range c.(pick.Doubter).Caveats() {
			reasons = append(reasons, caveat.Reason)
			if !slices.Contains(pick.Doubts, caveat.Reason) {
				t.Errorf("%s: reason %q", name, caveat.Reason)
			}
		}
		for _, want := range tt.want {
			reason, text, _ := strings.Cut(want, " ")
			if !slices.ContainsFunc(c.(pick.Doubter).Caveats(), func(c pick.Caveat) bool { return c.Reason == reason && strings.Contains(c.Text, text) }) {
				t.Errorf("%s: %+v, want %q", name, c.(pick.Doubter).Caveats(), want)
			}
		}
		if len(tt.want) == 0 && len(reasons) > 0 {
			t.Errorf("%s: %+v", name, c.(pick.Doubter).Caveats())
		}
	}
}
