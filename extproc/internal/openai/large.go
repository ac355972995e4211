package openai

import (
	"bytes"

	"millrace.dev/millrace/internal/apis"
)

// Large is the last field of a body whose number llama.cpp would take for another one
// (apis.Holds), and that number's JSON. The zero Large is none.
type Large struct{ Field, Number []byte }

// see takes in the value of the field of that name, at which s stands.
func (l *Large) see(s *scanner, name []byte) {
	number := s.b[s.i:]
	if c := s.peek(); c != '-' && (c < '0' || c > '9') {
		number = nil
	}
	if end := bytes.IndexFunc(number, func(c rune) bool { return !numeral(c) }); end >= 0 {
		number = number[:end]
	}
	const short = len("999999999")
	switch {
	case (len(number) > short || bytes.ContainsAny(number, "eE")) && !apis.Holds(string(name), number):
		*l = Large{name, number}
	case l.Field != nil && bytes.Equal(l.Field, name): // the last of several counts
		*l = Large{}
	}
}

// numeral is whether a number of JSON may have that character.
func numeral(c rune) bool {
	return c >= '0' && c <= '9' || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E'
}
