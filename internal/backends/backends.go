// Package backends says what each kind of backend can be asked for: which settings
// it has, which it lacks, and what to do instead.
//
// Called by config, which names a fault by its line, and by engine, before anything
// is started. Its one rule: an impossible combination is refused here, once, and
// with the way out.
package backends

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Kinds of backends.
const (
	// LlamaCpp is llama.cpp; the only kind that several nodes may share.
	LlamaCpp = "llamacpp"
	// VLLM is vLLM, one process group on one node.
	VLLM = "vllm"
	// OpenAI is a server of the OpenAI API that runs elsewhere.
	OpenAI = "openai"
)

// Kinds lists them all.
var Kinds = []string{LlamaCpp, VLLM, OpenAI}

// Field is a setting that a Fault is about.
type Field int

// The settings that not every kind has.
const (
	Kind Field = iota
	Weights
	ContextTokens
	TensorParallel
	PipelineParallel
	DataParallel
	Args
	URL
	ServedModel
	Stages
)

// Settings is what a backend is asked for, as far as its kind matters.
type Settings struct {
	// Kind is one of Kinds.
	Kind string
	// Weights is the path of the weights; empty: none is named.
	Weights string
	// ContextTokens is the context of one sequence; 0: not known.
	ContextTokens int
	// TensorParallel, PipelineParallel and DataParallel are degrees; 0 is 1.
	TensorParallel, PipelineParallel, DataParallel int
	// Args are more arguments of the server's command.
	Args []string
	// URL is where an external server is, ServedModel the model's id there.
	URL, ServedModel string
	// Stages is how many nodes share the layers.
	Stages int
}

// Fault is one impossible setting.
type Fault struct {
	Field Field
	// Index is which of Args; of the others 0.
	Index int
	// Text says the value, and what it must be.
	Text string
}

// faults collects what is wrong.
type faults []Fault

func (f *faults) add(field Field, format string, args ...any) {
	*f = append(*f, Fault{Field: field, Text: fmt.Sprintf(format, args...)})
}

// Most ranks of one replica, and its arguments with the length of one.
const (
	maxDegree = 1024
	maxArgs   = 128
	maxArg    = 2048
)

// The forms of a model's id at an external server and of its URL, and the most characters
// of each, for whoever else checks them.
const (
	ModelPattern = `^[^\x00-\x1f\x7f]*$`
	ModelWords   = "the model's id at the server, without control characters"
	ModelMax     = 512

	URLPattern = `^https?://([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/([A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?$`
	URLWords   = "a URL such as http://10.0.0.7:8000"
	URLMax     = 1024
)

var (
	modelForm = regexp.MustCompile(ModelPattern)
	urlForm   = regexp.MustCompile(URLPattern)
)

// Check returns everything that is impossible.
func Check(s Settings) []Fault {
	var f faults
	switch s.Kind {
	case LlamaCpp:
		f.llamacpp(s)
	case VLLM:
		f.vllm(s)
	case OpenAI:
		f.openai(s)
	default:
		n := len(Kinds) - 1
		f.add(Kind, "%.80q; must be %s or %s", s.Kind, strings.Join(Kinds[:n], ", "), Kinds[n])
	}
	return f
}

func (f *faults) llamacpp(s Settings) {
	if s.Weights == "" {
		f.add(Weights, "missing; must be the path of a GGUF file")
	}
	f.context(s.ContextTokens)
	f.one(TensorParallel, s.TensorParallel, "llamacpp splits layers over nodes: layout.stages, or choose kind vllm")
	f.one(PipelineParallel, s.PipelineParallel, "llamacpp splits layers over nodes: layout.stages")
	f.one(DataParallel, s.DataParallel, "ask for more replicas")
	if len(s.Args) > 0 {
		f.add(Args, "%d arguments; must be left out: llamacpp's binding has no command line", len(s.Args))
	}
	f.noURL(s.URL, "llamacpp is started by engine; choose kind openai for a server that runs already")
	f.unset(ServedModel, s.ServedModel, "llamacpp serves the model by its own name")
}

func (f *faults) vllm(s Settings) {
	if s.Weights == "" {
		f.add(Weights, "missing; must be the path of a folder with the model")
	}
	f.context(s.ContextTokens)
	f.degree(TensorParallel, s.TensorParallel)
	f.degree(PipelineParallel, s.PipelineParallel)
	f.degree(DataParallel, s.DataParallel)
	f.vllmArgs(s.Args)
	f.noURL(s.URL, "vllm is started by engine; choose kind openai for a server that runs already")
	f.unset(ServedModel, s.ServedModel, "vllm serves the model by its own name")
	if s.Stages > 1 {
		f.add(Stages, "%d; must be 1: a vllm replica is on one node; split it there by backend.tensorParallel or backend.pipelineParallel", s.Stages)
	}
}

func (f *faults) openai(s Settings) {
	const external = "the server is external"
	f.unset(Weights, s.Weights, external+", and so are its weights")
	if s.ContextTokens != 0 {
		f.context(s.ContextTokens)
	}
	f.one(TensorParallel, s.TensorParallel, external)
	f.one(PipelineParallel, s.PipelineParallel, external)
	f.one(DataParallel, s.DataParallel, external)
	if len(s.Args) > 0 {
		f.add(Args, "%d arguments; must be left out: nothing is started, %s", len(s.Args), external)
	}
	if _, err := ParseURL(s.URL); err != nil {
		f.add(URL, "%v", err)
	}
	if utf8.RuneCountInString(s.ServedModel) > ModelMax || !modelForm.MatchString(s.ServedModel) {
		f.add(ServedModel, "%.80q; must be %s", s.ServedModel, ModelWords)
	}
	if s.Stages > 1 {
		f.add(Stages, "%d; must be 1: nodes can't share an external server", s.Stages)
	}
}

// context checks the context of a server that we start.
func (f *faults) context(tokens int) {
	const least, most = 128, 16 << 20
	switch {
	case tokens < least:
		f.add(ContextTokens, "%d; must be ≥ %d", tokens, least)
	case tokens > most:
		f.add(ContextTokens, "%d; must be ≤ %d", tokens, most)
	}
}

func (f *faults) degree(field Field, n int) {
	switch {
	case n < 0:
		f.add(field, "%d; must be ≥ 1", n)
	case n > maxDegree:
		f.add(field, "%d; must be ≤ %d", n, maxDegree)
	}
}

// one refuses a degree that the kind lacks.
func (f *faults) one(field Field, n int, instead string) {
	if n != 0 && n != 1 {
		f.add(field, "%d; must be 1: %s", n, instead)
	}
}

// unset refuses a setting that the kind lacks.
func (f *faults) unset(field Field, value, instead string) {
	if value != "" {
		f.add(field, "%.80q; must be left out: %s", value, instead)
	}
}

// noURL refuses a URL, which is not shown: it may have a secret within.
func (f *faults) noURL(value, instead string) {
	if value != "" {
		f.add(URL, "must be left out: %s", instead)
	}
}

// ParseURL reads where a server is. A last "/v1" is left out: it may be there or not.
func ParseURL(text string) (*url.URL, error) {
	if text == "" {
		return nil, fmt.Errorf("missing; must be %s", URLWords)
	}
	u, err := url.ParseRequestURI(text)
	if err != nil || utf8.RuneCountInString(text) > URLMax || !urlForm.MatchString(text) {
		return nil, fmt.Errorf("must be %s", URLWords) // it may have a secret within
	}
	u.Path = strings.TrimSuffix(strings.TrimRight(u.Path, "/"), "/v1")
	u.RawPath = ""
	return u, nil
}
