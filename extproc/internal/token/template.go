package token

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/nikolalohinski/gonja/v2/builtins"
	"github.com/nikolalohinski/gonja/v2/config"
	"github.com/nikolalohinski/gonja/v2/exec"
	"github.com/nikolalohinski/gonja/v2/loaders"
)

// chatML is what llama.cpp uses for a model without a template.
const chatML = "{%- for message in messages -%}\n" +
	"  {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}\n" +
	"{%- endfor -%}\n" +
	"{%- if add_generation_prompt -%}\n" +
	"  {{- '<|im_start|>assistant\\n' -}}\n" +
	"{%- endif -%}"

// template renders conversations with the model's Jinja template. It is slow:
// form stands in for it wherever it can.
type template struct {
	jinja    *exec.Template
	source   string
	bos, eos string
	llama    bool // whether variables are those of llama.cpp, else transformers'
	// addBOS and addEOS say whether the backend adds the tokens to each prompt.
	addBOS, addEOS bool

	// Found by learn.
	typed           bool     // whether contents may be lists as well as strings
	onlyTyped       bool     // whether contents must be lists
	noSystem        bool     // whether system messages are ignored or refused
	objectArguments bool     // whether calls' arguments may be objects
	usesTools       bool     // whether tools are looked at
	extras          []string // keys of messages besides role and content that are
}

// input is what a template sees.
type input struct {
	messages []any // of map[string]any
	tools    any   // nil = none
	generate bool  // whether the assistant's turn is opened at the end
	extra    map[string]any
}

func newTemplate(source, bos, eos string, llama bool) (*template, error) {
	if source == "" {
		source = chatML
	}
	cfg := config.New()
	cfg.TrimBlocks, cfg.LeftStripBlocks = true, true
	loader, err := loaders.NewMemoryLoader(map[string]string{"/chat": source})
	if err != nil {
		return nil, fmt.Errorf("chat template: %w", err)
	}
	t := &template{source: source, bos: bos, eos: eos, llama: llama}
	if t.jinja, err = parse(cfg, loader); err != nil {
		return nil, fmt.Errorf("chat template: %w", brief(err))
	}
	return t, nil
}

// parse guards against panics in the library: the template is not ours.
func parse(cfg *config.Config, loader loaders.Loader) (t *exec.Template, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("template: %v", r)
		}
	}()
	return exec.NewTemplate("/chat", cfg, loader, environment())
}

// brief cuts an error that quotes a whole template.
func brief(err error) error {
	const most = 300
	if s := err.Error(); len(s) > most {
		return errors.New(s[:most] + "…")
	}
	return err
}

// environment is Jinja's, with what transformers and llama.cpp add to it.
func environment() *exec.Environment {
	filters := exec.NewFilterSet(map[string]exec.FilterFunction{})
	filters.Update(builtins.Filters)
	_ = filters.Replace("tojson", toJSON) // it is there: no error
	globals := exec.EmptyContext().Update(builtins.GlobalFunctions).Update(exec.NewContext(map[string]any{
		"raise_exception": func(message string) (string, error) { return "", errors.New(message) },
		"strftime_now":    func(format string) string { return strftime(time.Now(), format) },
		"range":           span,
	}))
	return &exec.Environment{
		Context: globals, Filters: filters, Tests: builtins.Tests,
		ControlStructures: builtins.ControlStructures, Methods: builtins.Methods,
	}
}

// maxSpan bounds range(), which a template calls with what it likes.
const maxSpan = 1 << 16

// span is range([start,] stop[, step]).
func span(_ *exec.Evaluator, args *exec.VarArgs) ([]int, error) {
	var n [3]int
	if len(args.Args) < 1 || len(args.Args) > len(n) {
		return nil, errors.New("range: 1 to 3 numbers are needed")
	}
	for i, a := range args.Args {
		n[i] = a.Integer()
	}
	start, stop, step := n[0], n[1], n[2]
	if len(args.Args) == 1 {
		start, stop = 0, n[0]
	}
	if len(args.Args) < 3 {
		step = 1
	}
	var out []int
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		if len(out) == maxSpan {
			return nil, errors.New("range: too long")
		}
		out = append(out, i)
	}
	return out, nil
}

// render fills in the template.
func (t *template) render(in *input) (out string, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("template: %v", r)
		}
	}()
	vars := map[string]any{"messages": in.messages, "bos_token": t.bos, "eos_token": t.eos}
	if t.llama {
		now := time.Now()
		vars["enable_thinking"] = true
		vars["datetime"] = now.Format("Jan 02 2006")
		vars["date_string"] = now.Format("02 Jan 2006")
	} else {
		vars["add_generation_prompt"] = false
	}
	if in.tools != nil {
		vars["tools"] = in.tools
	}
	for k, v := range in.extra {
		vars[k] = v
	}
	if in.generate {
		vars["add_generation_prompt"] = true
	}
	out, err = t.jinja.ExecuteToString(exec.NewContext(vars))
	if err != nil {
		return "", brief(err)
	}
	return out, nil
}

// mentions says whether the template may look at a name.
func (t *template) mentions(name string) bool { return strings.Contains(t.source, name) }

// dated says whether the prompt depends on the day.
func (t *template) dated() bool {
	return t.mentions("strftime_now") || t.llama && (t.mentions("date_string") || t.mentions("datetime"))
}

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

// strftime formats the directives that templates use for dates.
func strftime(now time.Time, format string) string {
	var out strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			out.WriteByte(format[i])
			continue
		}
		i++
		layout, ok := strftimeLayouts[format[i]]
		if !ok {
			out.WriteString(format[i-1 : i+1])
			continue
		}
		out.WriteString(now.Format(layout))
	}
	return out.String()
}

var strftimeLayouts = map[byte]string{
	'd': "02", 'm': "01", 'Y': "2006", 'y': "06", 'b': "Jan", 'B': "January", 'H': "15", 'M': "04",
	'S': "05", 'A': "Monday", 'a': "Mon", 'p': "PM", 'I': "03", 'j': "002", 'Z': "MST", 'z': "-0700",
	'F': "2006-01-02", 'T': "15:04:05", 'e': "_2", 'n': "\n", 't': "\t",
}
