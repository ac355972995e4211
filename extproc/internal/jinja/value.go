package jinja

import (
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A value is one of: nil (None), bool, int64, *big.Int (beyond int64), float64,
// string, markup, *undefined, *list, *tuple, *Dict, *span, *view, *iterator,
// *namespace, *macro, *loop, *method, *builtin, *cycler, *joiner.

type (
	// markup is text that escaping would leave alone.
	markup string
	// undefined is what Jinja has for what is not there.
	undefined struct {
		what string // for errors
	}
	list  struct{ items []any }
	tuple struct{ items []any }
	// span is Python's range.
	span struct{ start, stop, step int64 }
	// view is what a dictionary's keys(), values() and items() are.
	view struct {
		of   *Dict
		kind string // dict_keys, dict_values, dict_items
	}
	// iterator is a generator, or one of Python's iterators: it can be used once.
	iterator struct{ next func() (any, bool) }
	// namespace has attributes that may be assigned to.
	namespace struct{ attrs *Dict }
	// method is a function of a value, by name.
	method struct {
		self any
		name string
		call func(e *exec, a *args) any
	}
	// builtin is a function that every template has.
	builtin struct {
		name string
		call func(e *exec, a *args) any
	}
	cycler struct {
		items []any
		at    int
	}
	joiner struct {
		separator any
		used      bool
	}
)

// missing is in the cell of a variable that nothing was assigned to.
var missing any = &undefined{what: "missing"}

func newUndefined(what string) *undefined { return &undefined{what} }

func newList(items []any) *list { return &list{items} }

func (s *span) length() int64 {
	switch {
	case s.step > 0 && s.start < s.stop:
		return (s.stop-s.start-1)/s.step + 1
	case s.step < 0 && s.start > s.stop:
		return (s.start-s.stop-1)/-s.step + 1
	}
	return 0
}

func (v *view) length() int { return v.of.Len() }

func (v *view) item(i int) any {
	switch v.kind {
	case "dict_keys":
		return v.of.keys[i]
	case "dict_values":
		return v.of.values[i]
	}
	return &tuple{[]any{v.of.keys[i], v.of.values[i]}}
}

// typeName is Python's name of a value's type.
func typeName(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		return "bool"
	case int64, *big.Int:
		return "int"
	case float64:
		return "float"
	case string:
		return "str"
	case markup:
		return "Markup"
	case *undefined:
		return "Undefined"
	case *list:
		return "list"
	case *tuple:
		return "tuple"
	case *Dict:
		return "dict"
	case *span:
		return "range"
	case *view:
		return v.kind
	case *namespace:
		return "Namespace"
	case *macro:
		return "Macro"
	case *loop:
		return "LoopContext"
	}
	return "object"
}

// isTrue is Python's bool().
func (e *exec) isTrue(v any) bool {
	switch v := v.(type) {
	case nil, *undefined:
		return false
	case bool:
		return v
	case int64:
		return v != 0
	case *big.Int:
		return v.Sign() != 0
	case float64:
		return v != 0
	case string:
		return v != ""
	case markup:
		return v != ""
	case *list:
		return len(v.items) > 0
	case *tuple:
		return len(v.items) > 0
	case *Dict:
		return v.Len() > 0
	case *span:
		return v.length() > 0
	case *view:
		return v.length() > 0
	case *loop:
		return v.length() > 0
	}
	return true
}

// text returns a string's text.
func text(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case markup:
		return string(v), true
	}
	return "", false
}

// str is Python's str().
func (e *exec) str(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case markup:
		return string(v)
	case *undefined:
		return ""
	case int64:
		return strconv.FormatInt(v, 10)
	}
	w := &writer{e: e}
	w.repr(v, 0)
	return w.out.String()
}

// writer writes values as Python's repr() does.
type writer struct {
	e   *exec
	out strings.Builder
}

func (w *writer) repr(v any, depth int) {
	w.e.spend(step)
	if depth > maxDepth {
		throw(ErrLimit, "a value is nested too deep")
	}
	switch v := v.(type) {
	case nil:
		w.out.WriteString("None")
	case bool:
		w.out.WriteString(pick(v, "True", "False"))
	case int64:
		w.out.WriteString(strconv.FormatInt(v, 10))
	case *big.Int:
		w.out.WriteString(v.String())
	case float64:
		w.out.WriteString(floatText(v))
	case string:
		w.e.spend(len(v))
		w.out.WriteString(quote(v))
	case *undefined:
		w.out.WriteString("Undefined")
	case *list:
		w.items("[", "]", v.items, depth)
	case *tuple:
		w.items("(", pick(len(v.items) == 1, ",)", ")"), v.items, depth)
	case *Dict:
		w.dict(v, depth)
	case *view:
		w.out.WriteString(v.kind + "(")
		w.items("[", "]", w.e.collect(v), depth)
		w.out.WriteString(")")
	case *span:
		w.span(v)
	case *namespace:
		w.out.WriteString("<Namespace ")
		w.dict(v.attrs, depth)
		w.out.WriteString(">")
	case *macro:
		w.out.WriteString("<Macro " + pick(v.def.name == "", "anonymous", quote(v.def.name)) + ">")
	case *loop:
		w.out.WriteString("<LoopContext " + strconv.Itoa(v.index+1) + "/" + strconv.Itoa(v.length()) + ">")
	default:
		throw(ErrUnsupported, "the text of a value of type %s", typeName(v))
	}
}

func pick(c bool, yes, no string) string {
	if c {
		return yes
	}
	return no
}

func (w *writer) items(open, shut string, items []any, depth int) {
	w.out.WriteString(open)
	for i, v := range items {
		if i > 0 {
			w.out.WriteString(", ")
		}
		w.repr(v, depth+1)
	}
	w.out.WriteString(shut)
}

func (w *writer) dict(d *Dict, depth int) {
	w.out.WriteString("{")
	for i := range d.keys {
		if i > 0 {
			w.out.WriteString(", ")
		}
		w.repr(d.keys[i], depth+1)
		w.out.WriteString(": ")
		w.repr(d.values[i], depth+1)
	}
	w.out.WriteString("}")
}

func (w *writer) span(s *span) {
	w.out.WriteString("range(" + strconv.FormatInt(s.start, 10) + ", " + strconv.FormatInt(s.stop, 10))
	if s.step != 1 {
		w.out.WriteString(", " + strconv.FormatInt(s.step, 10))
	}
	w.out.WriteString(")")
}

// floatText is Python's repr() of a float: the shortest that is it, with an
// exponent where that has 16 or more, or less than -4.
func floatText(f float64) string {
	switch {
	case math.IsNaN(f):
		return "nan"
	case math.IsInf(f, 0):
		return pick(f > 0, "inf", "-inf")
	}
	s := strconv.FormatFloat(f, 'e', -1, 64)
	mantissa, exponent, _ := strings.Cut(s, "e")
	n, _ := strconv.Atoi(exponent) // FormatFloat wrote it
	if n >= -4 && n < 16 {
		s = strconv.FormatFloat(f, 'f', -1, 64)
		if !strings.Contains(s, ".") {
			s += ".0"
		}
		return s
	}
	return mantissa + "e" + exponent
}

// quote is Python's repr() of a string.
func quote(s string) string {
	mark := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		mark = '"'
	}
	var out strings.Builder
	out.WriteByte(mark)
	for _, r := range s {
		switch {
		case r == rune(mark) || r == '\\':
			out.WriteByte('\\')
			out.WriteRune(r)
		case r == '\n':
			out.WriteString(`\n`)
		case r == '\r':
			out.WriteString(`\r`)
		case r == '\t':
			out.WriteString(`\t`)
		case printable(r):
			out.WriteRune(r)
		case r < 0x100:
			out.WriteString(`\x` + hex(r, 2))
		case r < 0x10000:
			out.WriteString(`\u` + hex(r, 4))
		default:
			out.WriteString(`\U` + hex(r, 8))
		}
	}
	out.WriteByte(mark)
	return out.String()
}

func printable(r rune) bool { return r == ' ' || unicode.IsPrint(r) }

// quoteShort quotes text for an error.
func quoteShort(s string) string {
	const most = 40
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.Quote(s)
}

// IsSpace is Python's str.isspace() of a character.
func IsSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }

// runeCount is Python's len() of a string.
func runeCount(s string) int { return utf8.RuneCountInString(s) }

// shrink makes an int64 of an integer if it is one.
func shrink(v *big.Int) any {
	if v.IsInt64() {
		return v.Int64()
	}
	return v
}
