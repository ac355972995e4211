package jinja

import (
	"math/big"
	"strconv"
	"strings"
)

// format is str.format() with fields that have neither conversion nor format.
func format(e *exec, s string, a *args) any {
	var out strings.Builder
	next, numbered := 0, false
	for s != "" {
		i := strings.IndexAny(s, "{}")
		if i < 0 {
			out.WriteString(s)
			break
		}
		out.WriteString(s[:i])
		s = s[i:]
		if strings.HasPrefix(s, "{{") || strings.HasPrefix(s, "}}") {
			out.WriteByte(s[0])
			s = s[2:]
			continue
		}
		end := strings.IndexByte(s, '}')
		if s[0] == '}' || end < 0 {
			throw(errValue, "format() of a single brace")
		}
		field := s[1:end]
		s = s[end+1:]
		if strings.Trim(field, "0123456789_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			throw(ErrUnsupported, "format() of %s", quoteShort(field))
		}
		if field == "" {
			field = strconv.Itoa(next)
			next++
		} else if field[0] >= '0' && field[0] <= '9' {
			numbered = true
		}
		if numbered && next > 0 {
			throw(errValue, "format() of fields with and without numbers")
		}
		t := e.field(a, field)
		e.spend(len(t))
		out.WriteString(t)
	}
	return out.String()
}

func (e *exec) field(a *args, name string) string {
	if name[0] >= '0' && name[0] <= '9' {
		i, err := strconv.Atoi(name)
		if err != nil || i >= len(a.values) {
			throw(errValue, "format() of %d values", len(a.values))
		}
		return e.str(a.values[i])
	}
	v, ok := a.named(name)
	if !ok {
		throw(errValue, "format() without %s", quoteShort(name))
	}
	return e.str(v)
}

// percent is Python's s % v.
func (e *exec) percent(s string, v any) any {
	values := []any{v}
	if t, ok := v.(*tuple); ok {
		values = t.items
	}
	used := 0
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			out.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) {
			throw(errValue, "an incomplete format")
		}
		if s[i] == '%' {
			out.WriteByte('%')
			continue
		}
		if used == len(values) {
			throw(errType, "not enough values for a format")
		}
		t := e.conversion(s[i], values[used])
		e.spend(len(t))
		out.WriteString(t)
		used++
	}
	if used < len(values) {
		e.leftOver(v)
	}
	return out.String()
}

// leftOver throws for values that no conversion took, unless Python lets that pass.
func (e *exec) leftOver(v any) {
	switch v.(type) {
	case *Dict, *list:
		return
	case *tuple, string, nil, bool, int64, float64:
		throw(errType, "not all values are converted")
	}
	throw(ErrUnsupported, "%% of a value of type %s", typeName(v))
}

func (e *exec) conversion(c byte, v any) string {
	switch c {
	case 's':
		return e.str(v)
	case 'r':
		w := &writer{e: e}
		w.repr(v, 0)
		return w.out.String()
	case 'd', 'i':
		switch v := v.(type) {
		case bool, int64, *big.Int:
			return e.str(shrink(integer(v)))
		case float64:
			n, _ := new(big.Float).SetFloat64(finite(v)).Int(nil)
			return n.String()
		}
		throw(errType, "%%d of a value of type %s", typeName(v))
	}
	throw(ErrUnsupported, "the format %%%c", c)
	return ""
}
