package jinja

import (
	"math/big"
	"slices"
	"strconv"
	"unicode/utf8"
)

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
