// Package jinja renders chat templates as Python's Jinja2 3.1 does with the
// settings of transformers: a sandbox without changes, blocks trimmed, no
// autoescape, tojson without escapes for HTML, loop controls, the generation tag.
// Package token calls it for prompts whose text it can't put together itself.
//
// Its one rule: what it renders is what Jinja2 renders, to the byte. What it
// isn't sure of it refuses with an error that is ErrUnsupported, at Parse or at
// Render; what Jinja2 refuses it refuses with another one. Both kinds of texts
// come from outside: neither a template nor its variables make it panic, and what
// they may cost is bounded.
package jinja

import (
	"errors"
	"fmt"
	"time"
)

// Errors of Parse and Render.
var (
	// ErrUnsupported is in an error about what Jinja2 may render and this package
	// doesn't, so that nobody knows the prompt.
	ErrUnsupported = errors.New("not rendered here")
	// ErrLimit is in an error about a template that costs too much.
	ErrLimit = errors.New("template costs too much")
	// ErrRaised is in an error that the template itself raised.
	ErrRaised = errors.New("template refuses")

	errSyntax = errors.New("syntax")
	errType   = errors.New("type")
	errValue  = errors.New("value")
	errUndef  = errors.New("undefined")
)

// Bounds of a template and of what rendering may cost.
const (
	// maxSource is the longest template, in bytes. Published ones have up to 30 kB.
	maxSource = 1 << 20
	// maxSpent bounds the work of rendering, in bytes: those copied, and step for each step and value.
	maxSpent = 1 << 26
	// maxDepth bounds calls and values that lie in each other.
	maxDepth = 100
	// maxDigits bounds integers.
	maxDigits = 300
)

// Template is a template that was parsed. Any number of goroutines may render it.
type Template struct {
	body  []stmt
	main  *function
	enter entry
}

// Options are what rendering depends on beside the variables.
type Options struct {
	// Now is the time of strftime_now, in the engine's zone.
	Now time.Time
	// Read, if it is not nil, is set to how much of Now the template has read.
	Read *Reading
	// ASCII is whether only ASCII's white space is stripped from texts, as
	// llama.cpp does.
	ASCII bool
}

// Reading is how much of the clock a template has read: which times make the same prompt.
type Reading uint8

const (
	// NotRead is none of it: any time does.
	NotRead Reading = iota
	// DateRead is the date: the same day does.
	DateRead
	// TimeRead is the time of the day, too.
	TimeRead
)

// failure is what a template went wrong with.
type failure struct {
	kind error
	text string
}

func (f *failure) Error() string { return f.kind.Error() + ": " + f.text }
func (f *failure) Unwrap() error { return f.kind }

// throw ends parsing or rendering with an error, which caught returns.
func throw(kind error, format string, args ...any) {
	panic(&failure{kind, fmt.Sprintf(format, args...)}) // Parse and Render catch it: an evaluator that recurs can't hand errors up without drowning in them
}

// caught makes an error of what was thrown.
func caught(err *error) {
	switch r := recover().(type) {
	case nil:
	case *failure:
		*err = r
	default:
		*err = &failure{ErrUnsupported, fmt.Sprint(r)} // a bug of ours: the prompt is not known
	}
}

// Parse parses a template.
func Parse(source string) (t *Template, err error) {
	defer caught(&err)
	if len(source) > maxSource {
		throw(ErrLimit, "it has %d bytes; at most %d", len(source), maxSource)
	}
	p := &parser{tokens: lex(source)}
	body := p.body()
	if undeclared(body, "self")["self"] {
		throw(ErrUnsupported, "variable self")
	}
	t = &Template{body: body, main: newFunction(nil)}
	root := newSymbols(nil, t.main)
	root.body(body)
	root.resolve(body)
	t.enter = root.entry()
	return t, nil
}

// Render renders a template with variables: see FromJSON for what they may be.
func (t *Template) Render(vars *Dict, o Options) (out []byte, err error) {
	defer caught(&err)
	e := &exec{vars: vars, options: o, filters: filters, tests: tests}
	s := newScope(t.main, nil)
	e.begin(s, &t.enter)
	e.body(t.body, s)
	return e.out, nil
}
