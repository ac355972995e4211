package jinja

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"millrace.dev/millrace/internal/trust"
)

// FromJSON decodes a value as Python's json.loads does: objects keep the order of
// their keys, integers and floats stay apart.
func FromJSON(raw []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	v, err = decode(d, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("json: more than one value")
	}
	return v, nil
}

func decode(d *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("json: %w: more than %d levels", ErrLimit, maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Number:
		return number(string(t))
	case json.Delim:
		if t == '[' {
			return decodeList(d, depth)
		}
		return decodeDict(d, depth)
	}
	return t, nil // nil, bool, string
}

func decodeList(d *json.Decoder, depth int) (any, error) {
	out := &list{}
	for d.More() {
		v, err := decode(d, depth+1)
		if err != nil {
			return nil, err
		}
		out.items = append(out.items, v)
	}
	_, err := d.Token()
	return out, err
}

func decodeDict(d *json.Decoder, depth int) (any, error) {
	out := NewDict(4)
	for d.More() {
		k, err := d.Token()
		if err != nil {
			return nil, err
		}
		v, err := decode(d, depth+1)
		if err != nil {
			return nil, err
		}
		out.set(k, v)
	}
	_, err := d.Token()
	return out, err
}

func number(s string) (any, error) {
	if !strings.ContainsAny(s, ".eE") {
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return n, nil
		}
		n, ok := new(big.Int).SetString(s, 10)
		if !ok || len(s) > maxDigits {
			return nil, fmt.Errorf("json: %w: integer of %d digits", ErrUnsupported, len(s))
		}
		return n, nil
	}
	f, err := trust.Number(s, -math.MaxFloat64, math.MaxFloat64)
	if err != nil {
		return nil, fmt.Errorf("json: %w", err)
	}
	return f, nil
}

// NewList makes a list of values.
func NewList(items ...any) any { return &list{items} }

// jsonWriter writes values as Python's json.dumps does.
type jsonWriter struct {
	e           *exec
	out         []byte
	ascii, sort bool
	indented    bool
	indent      string
	comma       string
	colon       string
}

// toJSON is the filter as transformers has it.
func toJSON(e *exec, v any, a *args) any {
	b := e.bind(a, "tojson", "ensure_ascii=", "indent=", "separators=", "sort_keys=")
	w := &jsonWriter{e: e, ascii: e.isTrue(given(b[0], false)), sort: e.isTrue(given(b[3], false)), comma: ", ", colon: ": "}
	w.indentation(given(b[1], nil))
	if s := given(b[2], nil); s != nil {
		parts := e.collect(s)
		if len(parts) != 2 {
			throw(errValue, "tojson with %d separators", len(parts))
		}
		w.comma, w.colon = e.mustText(parts[0]), e.mustText(parts[1])
	}
	w.value(v, 0)
	e.spend(len(w.out))
	return string(w.out)
}

func (w *jsonWriter) indentation(v any) {
	if v == nil {
		return
	}
	w.indented, w.comma = true, ","
	if s, ok := text(v); ok {
		w.indent = s
		return
	}
	switch v.(type) {
	case bool, int64:
		n, _ := index(v)
		if n > 1000 {
			throw(ErrUnsupported, "tojson with an indent of %d", n)
		}
		w.indent = strings.Repeat(" ", int(max(n, 0)))
	case *undefined, float64:
		throw(ErrUnsupported, "tojson with an indent of type %s", typeName(v))
	default:
		throw(errType, "tojson with an indent of type %s", typeName(v))
	}
}

func (w *jsonWriter) value(v any, depth int) {
	w.e.spend(step)
	if depth > maxDepth {
		throw(ErrLimit, "a value is nested too deep")
	}
	switch v := v.(type) {
	case *list:
		w.list(v.items, depth)
	case *tuple:
		w.list(v.items, depth)
	case *Dict:
		w.dict(v, depth)
	default:
		if s, ok := text(v); ok {
			w.text(s)
			return
		}
		w.out = append(w.out, scalar(v)...)
	}
}

// scalar is the JSON of what is neither text nor has elements.
func scalar(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case *big.Int:
		return v.String()
	case float64:
		return floatText(finite(v))
	}
	throw(errType, "tojson of a value of type %s", typeName(v))
	return ""
}

func (w *jsonWriter) line(depth int) {
	if w.indented {
		w.out = append(w.out, '\n')
		for range depth {
			w.e.spend(len(w.indent))
			w.out = append(w.out, w.indent...)
		}
	}
}

func (w *jsonWriter) list(items []any, depth int) {
	w.out = append(w.out, '[')
	for i, v := range items {
		if i > 0 {
			w.out = append(w.out, w.comma...)
		}
		w.line(depth + 1)
		w.value(v, depth+1)
	}
	if len(items) > 0 {
		w.line(depth)
	}
	w.out = append(w.out, ']')
}

func (w *jsonWriter) dict(d *Dict, depth int) {
	order := make([]int, d.Len())
	for i := range order {
		order[i] = i
	}
	if w.sort {
		slices.SortStableFunc(order, func(i, j int) int { return w.e.cmp(d.keys[i], d.keys[j]) })
	}
	w.out = append(w.out, '{')
	for n, i := range order {
		if n > 0 {
			w.out = append(w.out, w.comma...)
		}
		w.line(depth + 1)
		w.text(jsonKey(d.keys[i]))
		w.out = append(w.out, w.colon...)
		w.value(d.values[i], depth+1)
	}
	if len(order) > 0 {
		w.line(depth)
	}
	w.out = append(w.out, '}')
}

func jsonKey(k any) string {
	if s, ok := text(k); ok {
		return s
	}
	if _, ok := k.(*tuple); ok {
		throw(errType, "tojson of a key of type tuple")
	}
	return scalar(k)
}

// text writes a string; with ascii all else is escaped.
func (w *jsonWriter) text(s string) {
	w.out = append(w.out, '"')
	for i := 0; i < len(s); {
		r, n := rune(s[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(s[i:])
		}
		w.char(r, s[i:i+n])
		i += n
	}
	w.out = append(w.out, '"')
}

func (w *jsonWriter) char(r rune, raw string) {
	const names = "\"\"\\\\\nn\rr\tt\bb\ff"
	switch {
	case r < utf8.RuneSelf && (r < ' ' || r == '"' || r == '\\'):
		for i := 0; i < len(names); i += 2 {
			if names[i] == byte(r) {
				w.out = append(w.out, '\\', names[i+1])
				return
			}
		}
		w.out = append(w.out, `\u`+hex(r, 4)...)
	case r < 0x7f || !w.ascii:
		w.out = append(w.out, raw...)
	case r > 0xffff:
		r -= 0x10000
		w.out = append(w.out, `\u`+hex(0xd800+r>>10, 4)+`\u`+hex(0xdc00+r&0x3ff, 4)...)
	default:
		w.out = append(w.out, `\u`+hex(r, 4)...)
	}
}
