package token

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// chatML is what llama.cpp uses for a model without a template.
const chatML = "{%- for message in messages -%}\n" +
	"  {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}\n" +
	"{%- endfor -%}\n" +
	"{%- if add_generation_prompt -%}\n" +
	"  {{- '<|im_start|>assistant\\n' -}}\n" +
	"{%- endif -%}"

// trimmed marks templates before which llama.cpp trims messages.
const trimmed = "You have access to the following functions in JSONSchema format"

// template renders conversations with the model's Jinja template. It is slow:
// form stands in for it wherever it can.
type template struct {
	jinja    *jinja.Template
	source   string
	bos, eos string
	llama    bool // whether variables are those of llama.cpp, else transformers'
	// addBOS and addEOS say whether the backend adds the tokens to each prompt.
	addBOS, addEOS bool

	// The engine, if it is known; llama.cpp has no habits here.
	habits
	args     *jinja.Dict // what its template gets by default; nil: nothing
	harmony  bool        // whether it does without the template, by Harmony's form
	channels bool        // whether the tokenizer has that form's tokens

	// Found by learn.
	typed           bool     // whether contents may be lists as well as strings
	onlyTyped       bool     // whether contents must be lists
	noSystem        bool     // whether system messages are ignored or refused
	objectArguments bool     // whether calls' arguments may be objects
	usesTools       bool     // whether tools are used
	own             bool     // whether the backend has code of its own for it: only plain texts are certain then
	extras          []string // keys of messages besides role and content that are
}

// input is what a template sees.
type input struct {
	messages []*jinja.Dict
	tools    any  // nil = none
	generate bool // whether the assistant's turn is opened at the end
	extra    *jinja.Dict
	at       time.Time     // by the engine's clock; zero: now
	reads    jinja.Reading // of the clock, found by rendering
}

func newTemplate(source, bos, eos string, llama bool) (*template, error) {
	if source == "" {
		source = chatML
	}
	if llama && strings.Contains(source, trimmed) {
		return nil, errors.New("chat template: the backend trims its messages")
	}
	parsed, err := jinja.Parse(source)
	if err != nil {
		return nil, fmt.Errorf("chat template: %w", err)
	}
	return &template{jinja: parsed, source: source, bos: bos, eos: eos, llama: llama}, nil
}

// render fills in the template.
func (t *template) render(in *input) (string, error) {
	vars := jinja.NewDict(8)
	messages := make([]any, len(in.messages))
	for i, m := range in.messages {
		messages[i] = m
	}
	vars.Set("messages", jinja.NewList(messages...))
	if t.bos != "" || t.llama {
		vars.Set("bos_token", t.bos)
	}
	if t.eos != "" || t.llama {
		vars.Set("eos_token", t.eos)
	}
	now := in.at
	if now.IsZero() {
		now = time.Now()
	}
	if t.llama {
		vars.Set("enable_thinking", true)
		vars.Set("datetime", now.Format("Jan 02 2006"))
		vars.Set("date_string", now.Format("02 Jan 2006"))
	} else {
		vars.Set("tools", nil)
		vars.Set("documents", nil)
	}
	if in.tools != nil {
		vars.Set("tools", in.tools)
	}
	if t.args != nil {
		vars.Update(t.args)
	}
	if in.extra != nil {
		vars.Update(in.extra)
	}
	if in.generate || !t.llama {
		vars.Set("add_generation_prompt", in.generate)
	}
	out, err := t.jinja.Render(vars, jinja.Options{Now: now, ASCII: t.llama, Read: &in.reads})
	return string(out), err
}

// mentions says whether the template may use a name.
func (t *template) mentions(name string) bool { return strings.Contains(t.source, name) }

var stringLiteral = regexp.MustCompile(`'((?:[^'\\\n]|\\.){2,64})'|"((?:[^"\\\n]|\\.){2,64})"`)

// maxLiterals bounds the texts that a template is probed with.
const maxLiterals = 256

// literals returns the short strings in the template's source: what a message
// may have to contain to be treated differently.
func (t *template) literals() []string {
	seen := map[string]bool{}
	var out []string
	for _, m := range stringLiteral.FindAllStringSubmatch(t.source, -1) {
		s := unescape.Replace(m[1] + m[2])
		if !seen[s] && len(out) < maxLiterals {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

var unescape = strings.NewReplacer(`\n`, "\n", `\t`, "\t", `\'`, "'", `\"`, `"`, `\\`, `\`)
