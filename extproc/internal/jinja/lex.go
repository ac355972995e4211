package jinja

import (
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"millrace.dev/millrace/internal/trust"
)

// kind is what a token is. Operators have themselves as kind.
type kind string

const (
	kindData          kind = "data"
	kindName          kind = "name"
	kindString        kind = "string"
	kindInteger       kind = "integer"
	kindFloat         kind = "float"
	kindVariableBegin kind = "variable_begin"
	kindVariableEnd   kind = "variable_end"
	kindBlockBegin    kind = "block_begin"
	kindBlockEnd      kind = "block_end"
	kindEOF           kind = "eof"
)

// lexeme is a token. Numbers and strings have their value, names and data their text.
type lexeme struct {
	kind  kind
	text  string
	value any
	line  int
}

// operators by length: the longest that fits is taken.
var operators = [...][]string{
	{"//", "**", "==", "!=", ">=", "<="},
	{"+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".", ":", "|", ",", ";"},
}

// lexer cuts a template into tokens as Jinja's does with trim_blocks and
// lstrip_blocks set.
type lexer struct {
	source string
	at     int
	line   int
	// lineStarts is whether the last match ended with a new line: white space up
	// to a tag goes then.
	lineStarts bool
	brackets   []byte // that are open in a tag
	out        []lexeme
}

func lex(source string) []lexeme {
	source = normalizeNewlines(source)
	source = strings.TrimSuffix(source, "\n")
	l := &lexer{source: source, line: 1, lineStarts: true}
	for l.at < len(l.source) {
		l.root()
	}
	l.emit(lexeme{kind: kindEOF})
	return l.out
}

func normalizeNewlines(s string) string {
	if !strings.Contains(s, "\r") {
		return s
	}
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n")
}

func (l *lexer) emit(t lexeme) {
	t.line = l.line
	l.out = append(l.out, t)
}

func (l *lexer) rest() string { return l.source[l.at:] }

// advance moves behind a match.
func (l *lexer) advance(n int) {
	match := l.source[l.at : l.at+n]
	l.line += strings.Count(match, "\n")
	l.lineStarts = strings.HasSuffix(match, "\n")
	l.at += n
}

// root emits the text up to the next tag, and the tag.
func (l *lexer) root() {
	rest := l.rest()
	begin, tag := findTag(rest)
	if begin < 0 {
		l.emit(lexeme{kind: kindData, text: rest})
		l.advance(len(rest))
		return
	}
	text, opening := rest[:begin], rest[begin:]
	raw := matchRaw(opening)
	length, sign := 2, byte(0)
	if len(opening) > 2 && (opening[2] == '-' || opening[2] == '+') {
		length, sign = 3, opening[2]
	}
	l.data(l.stripped(text, sign, tag == '{'))
	if raw > 0 {
		l.advance(begin + raw)
		l.raw()
		return
	}
	l.advance(begin + length)
	switch tag {
	case '#':
		l.comment()
	case '{':
		l.emit(lexeme{kind: kindVariableBegin})
		l.tag(kindVariableEnd, "}}")
	case '%':
		l.emit(lexeme{kind: kindBlockBegin})
		l.tag(kindBlockEnd, "%}")
	}
}

// findTag returns where the next tag begins, and its second character.
func findTag(s string) (int, byte) {
	for from := 0; ; {
		i := strings.IndexByte(s[from:], '{')
		if i < 0 || from+i+1 >= len(s) {
			return -1, 0
		}
		from += i
		if c := s[from+1]; c == '{' || c == '%' || c == '#' {
			return from, c
		}
		from++
	}
}

func (l *lexer) data(text string) {
	if text != "" {
		l.emit(lexeme{kind: kindData, text: text})
	}
}

// stripped is the text before a tag without the white space that the tag takes.
func (l *lexer) stripped(text string, sign byte, variable bool) string {
	switch {
	case sign == '-':
		return strings.TrimRightFunc(text, IsSpace)
	case sign == '+' || variable:
		return text
	}
	start := strings.LastIndexByte(text, '\n') + 1
	if (start > 0 || l.lineStarts) && strings.TrimLeftFunc(text[start:], IsSpace) == "" {
		return text[:start]
	}
	return text
}

// matchRaw returns the length of the tag that begins raw text, 0 if s begins otherwise.
func matchRaw(s string) int {
	if !strings.HasPrefix(s, "{%") {
		return 0
	}
	at := 2
	if at < len(s) && (s[at] == '-' || s[at] == '+') {
		at++
	}
	at += spaces(s[at:])
	if !strings.HasPrefix(s[at:], "raw") {
		return 0
	}
	at += len("raw")
	at += spaces(s[at:])
	if strings.HasPrefix(s[at:], "-%}") {
		at += 3
		return at + spaces(s[at:])
	}
	if strings.HasPrefix(s[at:], "%}") {
		return at + 2
	}
	return 0
}

// spaces is the length of the white space that s begins with.
func spaces(s string) int { return len(s) - len(strings.TrimLeftFunc(s, IsSpace)) }

// closing is the length of a tag's end at the start of s, with what it takes of
// the text behind it. 0: there is none.
func closing(s, end string) int {
	switch {
	case strings.HasPrefix(s, "-"+end):
		n := 1 + len(end)
		return n + spaces(s[n:])
	case end == "}}" && strings.HasPrefix(s, end):
		return len(end)
	case end == "}}":
		return 0
	case strings.HasPrefix(s, "+"+end):
		return 1 + len(end)
	case strings.HasPrefix(s, end+"\n"):
		return len(end) + 1
	case strings.HasPrefix(s, end):
		return len(end)
	}
	return 0
}

func (l *lexer) comment() {
	rest := l.rest()
	end := strings.Index(rest, "#}")
	if rest == "" {
		return // Jinja finds nothing amiss then
	}
	if end < 0 {
		throw(errSyntax, "line %d: the end of a comment is missing", l.line)
	}
	if end > 0 && (rest[end-1] == '-' || rest[end-1] == '+') {
		end--
	}
	l.advance(end)
	l.advance(closing(l.rest(), "#}"))
}

// raw emits the text up to endraw.
func (l *lexer) raw() {
	rest := l.rest()
	for from := 0; ; {
		i := strings.Index(rest[from:], "{%")
		if rest == "" {
			return // as in a comment
		}
		if i < 0 {
			throw(errSyntax, "line %d: the end of a raw block is missing", l.line)
		}
		from += i
		if n, sign := matchEndRaw(rest[from:]); n > 0 {
			l.data(l.stripped(rest[:from], sign, false))
			l.advance(from + n)
			return
		}
		from++
	}
}

func matchEndRaw(s string) (n int, sign byte) {
	at := 2
	if at < len(s) && (s[at] == '-' || s[at] == '+') {
		sign = s[at]
		at++
	}
	at += spaces(s[at:])
	if !strings.HasPrefix(s[at:], "endraw") {
		return 0, 0
	}
	at += len("endraw")
	at += spaces(s[at:])
	end := closing(s[at:], "%}")
	if end == 0 {
		return 0, 0
	}
	return at + end, sign
}

// tag emits what is in a tag, and its end.
func (l *lexer) tag(end kind, mark string) {
	l.brackets = l.brackets[:0]
	for {
		if l.at >= len(l.source) {
			return // the parser finds that the end is missing
		}
		if n := closing(l.rest(), mark); n > 0 && len(l.brackets) == 0 {
			l.emit(lexeme{kind: end})
			l.advance(n)
			return
		}
		l.token()
	}
}

// token emits one token of a tag.
func (l *lexer) token() {
	rest := l.rest()
	if n := spaces(rest); n > 0 {
		l.advance(n)
		return
	}
	c := rest[0]
	switch {
	case c >= '0' && c <= '9':
		l.number()
	case c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
		n := 1
		for n < len(rest) && wordByte(rest[n]) {
			n++
		}
		if n < len(rest) && rest[n] >= utf8.RuneSelf {
			l.foreign(rest[n:])
		}
		l.emit(lexeme{kind: kindName, text: rest[:n]})
		l.advance(n)
	case c == '\'' || c == '"':
		l.str(c)
	case c >= utf8.RuneSelf:
		l.foreign(rest)
	default:
		l.operator()
	}
}

// foreign refuses names that are not ASCII, which Jinja allows.
func (l *lexer) foreign(s string) {
	if r, _ := utf8.DecodeRuneInString(s); unicode.IsLetter(r) || unicode.IsMark(r) || unicode.IsNumber(r) {
		throw(ErrUnsupported, "line %d: a name with letters that are not ASCII", l.line)
	}
	throw(errSyntax, "line %d: unexpected character", l.line)
}

func wordByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func (l *lexer) operator() {
	rest := l.rest()
	for _, all := range operators {
		for _, op := range all {
			if strings.HasPrefix(rest, op) {
				l.balance(op)
				l.emit(lexeme{kind: kind(op), text: op})
				l.advance(len(op))
				return
			}
		}
	}
	throw(errSyntax, "line %d: unexpected character %q", l.line, rest[0])
}

var closers = map[byte]byte{'(': ')', '[': ']', '{': '}'}

func (l *lexer) balance(op string) {
	if closer, opens := closers[op[0]]; opens {
		l.brackets = append(l.brackets, closer)
		return
	}
	if op != ")" && op != "]" && op != "}" {
		return
	}
	last := len(l.brackets) - 1
	if last < 0 || l.brackets[last] != op[0] {
		throw(errSyntax, "line %d: unexpected %q", l.line, op)
	}
	l.brackets = l.brackets[:last]
}

// str emits a string literal.
func (l *lexer) str(quote byte) {
	rest := l.rest()
	for i := 1; i < len(rest); i++ {
		switch rest[i] {
		case '\\':
			i++
		case quote:
			l.emit(lexeme{kind: kindString, value: l.unescape(rest[1:i])})
			l.advance(i + 1)
			return
		}
	}
	throw(errSyntax, "line %d: the end of a string is missing", l.line)
}

// unescape decodes a literal as Python's unicode-escape does after everything
// that is not ASCII was made an escape, too.
func (l *lexer) unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var ascii strings.Builder
	for _, r := range s {
		switch {
		case r < utf8.RuneSelf:
			ascii.WriteByte(byte(r))
		case r < 0x100:
			ascii.WriteString(`\x` + hex(r, 2))
		case r < 0x10000:
			ascii.WriteString(`\u` + hex(r, 4))
		default:
			ascii.WriteString(`\U` + hex(r, 8))
		}
	}
	s = ascii.String()
	var out strings.Builder
	for i := 0; i < len(s); {
		if s[i] != '\\' {
			out.WriteByte(s[i])
			i++
			continue
		}
		if i+1 == len(s) {
			throw(errSyntax, `line %d: \ at the end of a string`, l.line)
		}
		i += 1 + l.escape(&out, s[i+1:])
	}
	return out.String()
}

func hex(r rune, width int) string {
	s := strconv.FormatInt(int64(r), 16)
	return strings.Repeat("0", width-len(s)) + s
}

const (
	escapes = "\\'\"abfnrtv"
	escaped = "\\'\"\a\b\f\n\r\t\v"
)

// escape decodes what follows a backslash and returns how long it is.
func (l *lexer) escape(out *strings.Builder, s string) int {
	c := s[0]
	if i := strings.IndexByte(escapes, c); i >= 0 {
		out.WriteByte(escaped[i])
		return 1
	}
	switch {
	case c == '\n':
		return 1
	case c >= '0' && c <= '7':
		n, r := 0, rune(0)
		for n < 3 && n < len(s) && s[n] >= '0' && s[n] <= '7' {
			r = r*8 + rune(s[n]-'0')
			n++
		}
		out.WriteRune(r)
		return n
	case c == 'x':
		return l.code(out, s, 2)
	case c == 'u':
		return l.code(out, s, 4)
	case c == 'U':
		return l.code(out, s, 8)
	case c == 'N':
		throw(ErrUnsupported, `line %d: \N in a string`, l.line)
	}
	out.WriteByte('\\')
	out.WriteByte(c)
	return 1
}

func (l *lexer) code(out *strings.Builder, s string, digits int) int {
	if len(s) < 1+digits {
		throw(errSyntax, `line %d: a \%c that is cut`, l.line, s[0])
	}
	n, err := strconv.ParseUint(s[1:1+digits], 16, 32)
	if err != nil || n > unicode.MaxRune {
		throw(errSyntax, `line %d: a \%c without a code`, l.line, s[0])
	}
	if n >= 0xd800 && n < 0xe000 {
		throw(ErrUnsupported, "line %d: half a pair of surrogates", l.line)
	}
	out.WriteRune(rune(n))
	return 1 + digits
}

// number emits an integer or a floating point number.
func (l *lexer) number() {
	rest := l.rest()
	if n := floatLength(rest); n > 0 && (l.at == 0 || l.source[l.at-1] != '.') {
		f, err := trust.Number(strings.ReplaceAll(rest[:n], "_", ""), -math.MaxFloat64, math.MaxFloat64)
		if err != nil {
			throw(ErrUnsupported, "line %d: number %q is too large", l.line, rest[:n])
		}
		l.emit(lexeme{kind: kindFloat, value: f})
		l.advance(n)
		return
	}
	n, base := integerLength(rest)
	digits := strings.ReplaceAll(rest[:n], "_", "")
	if base != 10 {
		digits = digits[2:]
	}
	if len(digits) > maxDigits {
		throw(ErrUnsupported, "line %d: an integer of %d digits", l.line, len(digits))
	}
	v, _ := new(big.Int).SetString(digits, base) // it has only digits
	l.emit(lexeme{kind: kindInteger, value: shrink(v)})
	l.advance(n)
}

// digitRun is the length of (?:digit+_)*digit+ at the start of s.
func digitRun(s string) int {
	n := 0
	for n < len(s) && (s[n] >= '0' && s[n] <= '9' || s[n] == '_' && n > 0 && s[n-1] != '_' && n+1 < len(s) && s[n+1] >= '0' && s[n+1] <= '9') {
		n++
	}
	return n
}

func floatLength(s string) int {
	n := digitRun(s)
	whole := n
	if n < len(s) && s[n] == '.' {
		if d := digitRun(s[n+1:]); d > 0 {
			n += 1 + d
		}
	}
	if n < len(s) && (s[n] == 'e' || s[n] == 'E') {
		e := n + 1
		if e < len(s) && (s[e] == '+' || s[e] == '-') {
			e++
		}
		if d := digitRun(s[e:]); d > 0 {
			return e + d
		}
	}
	if n == whole {
		return 0
	}
	return n
}

var bases = []struct {
	letter byte
	base   int
	digits string
}{{'b', 2, "01"}, {'o', 8, "01234567"}, {'x', 16, "0123456789abcdef"}}

func integerLength(s string) (n, base int) {
	for _, b := range bases {
		if len(s) < 3 || s[0] != '0' || s[1]|0x20 != b.letter {
			continue
		}
		n := 2
		for n < len(s) {
			d := n
			if s[d] == '_' {
				d++
			}
			if d == len(s) || !strings.Contains(b.digits, strings.ToLower(s[d:d+1])) {
				break
			}
			n = d + 1
		}
		if n > 2 {
			return n, b.base
		}
	}
	if s[0] != '0' {
		return digitRun(s), 10
	}
	n = 1 // 0 and more of them, no other digit
	for n < len(s) && (s[n] == '0' || s[n] == '_' && n+1 < len(s) && s[n+1] == '0') {
		n++
	}
	return n, 10
}
