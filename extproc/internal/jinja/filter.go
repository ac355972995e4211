package jinja

import (
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"millrace.dev/millrace/internal/trust"
)

type filter func(e *exec, v any, a *args) any

// filters are Jinja's, with transformers' tojson.
var filters = map[string]filter{
	"abs": abs, "attr": attr, "batch": batch, "center": center, "count": lengthFilter, "length": lengthFilter,
	"capitalize": onString("capitalize", capitalize), "lower": onString("lower", lower), "upper": onString("upper", upper),
	"title": onString("title", titleFilter), "string": stringFilter, "trim": trim,
	"d": defaultTo, "default": defaultTo, "dictsort": dictsort, "e": escape, "escape": escape, "safe": safe,
	"first": first, "last": last, "float": toFloat, "int": toInt, "format": formatFilter, "indent": indent,
	"items": itemsFilter, "join": joinFilter, "list": listFilter, "map": mapFilter,
	"min": extreme(-1), "max": extreme(1), "replace": replaceFilter, "reverse": reverse, "round": round,
	"select": choose(false, true), "reject": choose(false, false), "selectattr": choose(true, true), "rejectattr": choose(true, false),
	"slice": slices1, "sort": sortFilter, "sum": sum, "tojson": toJSON, "truncate": truncate, "unique": unique,
	"filesizeformat": absent("filesizeformat"), "forceescape": absent("forceescape"), "groupby": absent("groupby"),
	"pprint": absent("pprint"), "random": absent("random"), "striptags": absent("striptags"), "urlencode": absent("urlencode"),
	"urlize": absent("urlize"), "wordcount": absent("wordcount"), "wordwrap": absent("wordwrap"), "xmlattr": absent("xmlattr"),
}

// absent is a filter of Jinja's that isn't here.
func absent(name string) filter {
	return func(*exec, any, *args) any {
		throw(ErrUnsupported, "filter %s", name)
		return nil
	}
}

// softText is the text of any value; the mark of what is safe would matter.
func (e *exec) softText(v any) string {
	if _, ok := v.(markup); ok {
		throw(ErrUnsupported, "a filter of text that is marked as safe")
	}
	s := e.str(v)
	e.spend(len(s))
	return s
}

func onString(name string, f func(string) string) filter {
	return func(e *exec, v any, a *args) any {
		e.bind(a, name)
		return f(e.softText(v))
	}
}

func abs(e *exec, v any, a *args) any {
	e.bind(a, "abs")
	switch v := v.(type) {
	case bool, int64, *big.Int:
		return shrink(new(big.Int).Abs(integer(v)))
	case float64:
		return math.Abs(v)
	}
	throw(errType, "abs of a value of type %s", typeName(v))
	return nil
}

func attr(e *exec, v any, a *args) any {
	b := e.bind(a, "attr", "name")
	name, ok := text(b[0])
	if !ok {
		throw(errType, "attr of a value of type %s", typeName(b[0]))
	}
	if u, ok := v.(*undefined); ok {
		throw(ErrUnsupported, "attr of %s, which is undefined", quoteShort(u.what))
	}
	if found, ok := e.own(v, name); ok {
		return found
	}
	return newUndefined(name)
}

func batch(e *exec, v any, a *args) any {
	b := e.bind(a, "batch", "linecount", "fill_with=")
	fill, over := given(b[1], nil), any(nil)
	var next func() (any, bool)
	return &iterator{func() (any, bool) {
		if next == nil {
			next = e.iter(v)
		}
		n, ok := index(b[0])
		if !ok {
			throw(ErrUnsupported, "batch of a count of type %s", typeName(b[0]))
		}
		var row []any
		if over != nil {
			row, over = []any{over.([1]any)[0]}, nil
		}
		for {
			item, ok := next()
			if !ok {
				break
			}
			e.spend(step)
			if int64(len(row)) == n {
				over = [1]any{item}
				return &list{row}, true
			}
			row = append(row, item)
		}
		if len(row) == 0 {
			return nil, false
		}
		for fill != nil && int64(len(row)) < n {
			e.spend(step)
			row = append(row, fill)
		}
		return &list{row}, true
	}}
}

func slices1(e *exec, v any, a *args) any {
	b := e.bind(a, "slice", "slices", "fill_with=")
	return e.lazy(func() []any {
		seq := e.collect(v)
		n := int(e.mustIndex(b[0]))
		if n == 0 {
			throw(errValue, "slice by zero")
		}
		if n < 0 || n > mostSpan {
			throw(ErrUnsupported, "slice of %d", n)
		}
		each, extra, offset := len(seq)/n, len(seq)%n, 0
		var out []any
		for i := range n {
			start := offset + i*each
			if i < extra {
				offset++
			}
			row := append([]any{}, seq[start:offset+(i+1)*each]...)
			if fill := given(b[1], nil); fill != nil && i >= extra {
				row = append(row, fill)
			}
			e.spend(step * (len(row) + 1))
			out = append(out, &list{row})
		}
		return out
	})
}

// lazy is a generator whose elements are all made when the first is asked for.
func (e *exec) lazy(make func() []any) any {
	var next func() (any, bool)
	return &iterator{func() (any, bool) {
		if next == nil {
			next = each(make())
		}
		return next()
	}}
}

func center(e *exec, v any, a *args) any {
	b := e.bind(a, "center", "width=")
	return e.padded(e.softText(v), e.mustIndex(given(b[0], int64(80))), " ", "center")
}

func lengthFilter(e *exec, v any, a *args) any {
	e.bind(a, "length")
	n, ok := e.length(v)
	if !ok {
		throw(errType, "length of a value of type %s", typeName(v))
	}
	return int64(n)
}

func stringFilter(e *exec, v any, a *args) any {
	e.bind(a, "string")
	if _, ok := text(v); ok {
		return v
	}
	return e.softText(v)
}

func trim(e *exec, v any, a *args) any {
	b := e.bind(a, "trim", "chars=")
	return e.stripped(e.softText(v), given(b[0], nil), true, true)
}

// titleFilter is not str.title(): words begin behind fewer characters.
func titleFilter(s string) string {
	var out strings.Builder
	begins := true
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case IsSpace(r) || strings.ContainsRune("-({[<", r):
			out.WriteString(s[i : i+n])
			begins = true
		case begins:
			out.WriteString(upper(s[i : i+n]))
			begins = false
		default:
			out.WriteString(lower(s[i : i+n]))
		}
		i += n
	}
	return out.String()
}

func defaultTo(e *exec, v any, a *args) any {
	b := e.bind(a, "default", "default_value=", "boolean=")
	if _, ok := v.(*undefined); ok || e.isTrue(given(b[1], false)) && !e.isTrue(v) {
		return given(b[0], "")
	}
	return v
}

var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "'", "&#39;", `"`, "&#34;")

func escape(e *exec, v any, a *args) any {
	e.bind(a, "escape")
	if m, ok := v.(markup); ok {
		return m
	}
	s := escaper.Replace(e.softText(v))
	e.spend(len(s))
	return markup(s)
}

func safe(e *exec, v any, a *args) any {
	e.bind(a, "safe")
	return markup(e.str(v))
}

func first(e *exec, v any, a *args) any {
	e.bind(a, "first")
	if found, ok := e.iter(v)(); ok {
		return found
	}
	return newUndefined("the first of nothing")
}

func last(e *exec, v any, a *args) any {
	e.bind(a, "last")
	all, ok := e.reversed(v)
	if !ok {
		throw(errType, "last of a value of type %s", typeName(v))
	}
	if len(all) == 0 {
		return newUndefined("the last of nothing")
	}
	return all[0]
}

// reversed are a value's elements from the end; ok is false where Python can't.
func (e *exec) reversed(v any) (all []any, ok bool) {
	switch v.(type) {
	case *iterator, *loop:
		return nil, false
	}
	if e.tryIter(v) == nil {
		return nil, false
	}
	all = slices.Clone(e.collect(v))
	e.spend(step * len(all))
	slices.Reverse(all)
	return all, true
}

func reverse(e *exec, v any, a *args) any {
	e.bind(a, "reverse")
	if _, ok := v.(markup); ok {
		throw(ErrUnsupported, "reverse of text that is marked as safe")
	}
	if s, ok := text(v); ok {
		return e.slice(s, [3]any{nil, nil, int64(-1)})
	}
	if all, ok := e.reversed(v); ok {
		return &iterator{each(all)}
	}
	all := slices.Clone(e.collect(v))
	slices.Reverse(all)
	return newList(all)
}

func toFloat(e *exec, v any, a *args) any {
	b := e.bind(a, "float", "default=")
	otherwise := given(b[0], 0.0)
	switch v := v.(type) {
	case bool, int64, float64, *big.Int:
		return float(v)
	case *undefined:
		throw(errUndef, "float of %s", quoteShort(v.what))
	}
	if s, ok := text(v); ok {
		if f, ok := parseFloat(s); ok {
			return f
		}
	}
	return otherwise
}

// parseFloat is Python's float() of a text.
func parseFloat(s string) (float64, bool) {
	s = strings.TrimFunc(s, IsSpace)
	switch strings.ToLower(strings.TrimLeft(s, "+-")) {
	case "inf", "infinity", "nan":
		throw(ErrUnsupported, "the number %s", s)
	}
	if !isASCII(s) {
		throw(ErrUnsupported, "the number %s", quoteShort(s))
	}
	if strings.ContainsAny(s, "xXpP_") {
		if strings.ContainsAny(s, "_") {
			throw(ErrUnsupported, "the number %s", quoteShort(s))
		}
		return 0, false
	}
	f, err := trust.Number(s, -math.MaxFloat64, math.MaxFloat64)
	return f, err == nil
}

func toInt(e *exec, v any, a *args) any {
	b := e.bind(a, "int", "default=", "base=")
	otherwise, base := given(b[0], int64(0)), e.mustIndex(given(b[1], int64(10)))
	switch v := v.(type) {
	case bool, int64, *big.Int:
		return shrink(integer(v))
	case float64:
		n, _ := new(big.Float).SetFloat64(finite(v)).Int(nil)
		return shrink(n)
	case *undefined:
		throw(errUndef, "int of %s", quoteShort(v.what))
	}
	s, ok := text(v)
	if !ok {
		return otherwise
	}
	if base != 10 {
		throw(ErrUnsupported, "int with base %d", base)
	}
	s = strings.TrimFunc(s, IsSpace)
	if digits := strings.TrimLeft(s, "+-"); digits != "" && strings.Trim(digits, "0123456789") == "" && len(s)-len(digits) < 2 && len(s) < maxDigits {
		n, _ := new(big.Int).SetString(s, 10)
		return shrink(n)
	}
	f, ok := parseFloat(s)
	if !ok {
		return otherwise
	}
	n, _ := new(big.Float).SetFloat64(f).Int(nil)
	return shrink(n)
}

func formatFilter(e *exec, v any, a *args) any {
	s := e.softText(v)
	if len(a.names) > 0 {
		throw(ErrUnsupported, "format with names")
	}
	return e.percent(s, &tuple{a.values})
}

func indent(e *exec, v any, a *args) any {
	b := e.bind(a, "indent", "width=", "first=", "blank=")
	s, ok := v.(string)
	if !ok {
		if _, m := v.(markup); m {
			throw(ErrUnsupported, "indent of text that is marked as safe")
		}
		throw(errType, "indent of a value of type %s", typeName(v))
	}
	prefix := ""
	if t, ok := text(given(b[0], int64(4))); ok {
		prefix = t
	} else {
		prefix = strings.Repeat(" ", int(min(max(e.mustIndex(given(b[0], int64(4))), 0), mostSpan)))
	}
	lines := splitlines(s+"\n", false)
	e.spend(len(s) + len(lines)*(len(prefix)+1))
	blank := e.isTrue(given(b[2], false))
	for i := 1; i < len(lines); i++ {
		if blank || lines[i] != "" {
			lines[i] = prefix + lines[i]
		}
	}
	out := strings.Join(lines, "\n")
	if e.isTrue(given(b[1], false)) {
		out = prefix + out
	}
	return out
}

func itemsFilter(e *exec, v any, a *args) any {
	e.bind(a, "items")
	return e.lazy(func() []any {
		switch v := v.(type) {
		case *undefined:
			return nil
		case *Dict:
			return e.collect(&view{v, "dict_items"})
		}
		throw(errType, "items of a value of type %s", typeName(v))
		return nil
	})
}

func joinFilter(e *exec, v any, a *args) any {
	b := e.bind(a, "join", "d=", "attribute=")
	get := e.getter(given(b[1], nil), nil, false)
	return e.joined(e.str(given(b[0], "")), e.collect(v), func(item any) string { return e.str(get(item)) })
}

func listFilter(e *exec, v any, a *args) any {
	e.bind(a, "list")
	all := e.collect(v)
	e.spend(step * len(all))
	return newList(append([]any{}, all...))
}

func replaceFilter(e *exec, v any, a *args) any {
	b := e.bind(a, "replace", "old", "new", "count=")
	count := -1
	if c := given(b[2], nil); c != nil {
		count = int(e.mustIndex(c))
	}
	return e.replaced(e.str(v), e.str(b[0]), e.str(b[1]), count)
}

func round(e *exec, v any, a *args) any {
	b := e.bind(a, "round", "precision=", "method=")
	method, ok := text(given(b[1], "common"))
	if !ok || method != "common" && method != "ceil" && method != "floor" {
		throw(errValue, "round by a method that is none")
	}
	switch v.(type) {
	case bool, int64, float64:
	case *big.Int:
		throw(ErrUnsupported, "round of a large integer")
	default:
		throw(errType, "round of a value of type %s", typeName(v))
	}
	places := e.mustIndex(given(b[0], int64(0)))
	if places < 0 || places > 15 {
		throw(ErrUnsupported, "round to %d places", places)
	}
	if method != "common" {
		return rounded(v, method, int(places))
	}
	f, isFloat := v.(float64)
	if !isFloat {
		return shrink(integer(v))
	}
	out, err := trust.Number(strconv.FormatFloat(finite(f), 'f', int(places), 64), -math.MaxFloat64, math.MaxFloat64)
	if err != nil {
		throw(ErrUnsupported, "round of a large number")
	}
	return out
}

func rounded(v any, method string, places int) any {
	scale := math.Pow10(places) // exact up to 22
	f := finite(float(v) * scale)
	if method == "ceil" {
		f = math.Ceil(f)
	} else {
		f = math.Floor(f)
	}
	if f == 0 {
		f = 0 // Python has an integer there, which has no sign
	}
	return f / scale
}

func truncate(e *exec, v any, a *args) any {
	b := e.bind(a, "truncate", "length=", "killwords=", "end=", "leeway=")
	s, ok := v.(string)
	if !ok {
		throw(ErrUnsupported, "truncate of a value of type %s", typeName(v))
	}
	length, end, leeway := e.mustIndex(given(b[0], int64(255))), e.mustText(given(b[2], "...")), int64(5)
	if l := given(b[3], nil); l != nil {
		leeway = e.mustIndex(l)
	}
	n := int64(runeCount(s))
	if length < int64(runeCount(end)) || leeway < 0 {
		throw(errValue, "truncate to %d", length)
	}
	if n <= length+leeway {
		return s
	}
	s = s[:byteAt(s, int(length)-runeCount(end))]
	if e.isTrue(given(b[1], false)) {
		return s + end
	}
	if i := strings.LastIndexByte(s, ' '); i >= 0 {
		s = s[:i]
	}
	return s + end
}
