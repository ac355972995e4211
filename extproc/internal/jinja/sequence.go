package jinja

import (
	"math/big"
	"unicode/utf8"
)

// iter iterates over a value as Python does, nil if that can't be iterated over.
func (e *exec) tryIter(v any) func() (any, bool) {
	switch v := v.(type) {
	case *list:
		return each(v.items)
	case *tuple:
		return each(v.items)
	case *Dict:
		return each(v.keys)
	case *undefined:
		return each(nil)
	case *iterator:
		return v.next
	case *span:
		i, n := int64(0), v.length()
		return func() (any, bool) {
			if i >= n {
				return nil, false
			}
			i++
			return v.start + (i-1)*v.step, true
		}
	case *view:
		i := 0
		return func() (any, bool) {
			if i >= v.length() {
				return nil, false
			}
			i++
			return v.item(i - 1), true
		}
	case *loop:
		throw(ErrUnsupported, "loop is iterated over")
	}
	s, ok := text(v)
	if !ok {
		return nil
	}
	return func() (any, bool) {
		if s == "" {
			return nil, false
		}
		_, n := utf8.DecodeRuneInString(s)
		c := s[:n]
		s = s[n:]
		return c, true
	}
}

func (e *exec) iter(v any) func() (any, bool) {
	next := e.tryIter(v)
	if next == nil {
		throw(errType, "a value of type %s is not iterable", typeName(v))
	}
	return next
}

// collect returns all elements of a value. They are not to be changed.
func (e *exec) collect(v any) []any {
	switch v := v.(type) {
	case *list:
		return v.items
	case *tuple:
		return v.items
	}
	var out []any
	next := e.iter(v)
	for {
		item, ok := next()
		if !ok {
			return out
		}
		e.spend(step)
		out = append(out, item)
	}
}

// length is Python's len().
func (e *exec) length(v any) (n int, ok bool) {
	switch v := v.(type) {
	case string:
		e.spend(len(v) / 8)
		return runeCount(v), true
	case markup:
		return runeCount(string(v)), true
	case *list:
		return len(v.items), true
	case *tuple:
		return len(v.items), true
	case *Dict:
		return v.Len(), true
	case *view:
		return v.length(), true
	case *span:
		return int(v.length()), true
	case *undefined:
		return 0, true
	case *loop:
		return v.length(), true
	}
	return 0, false
}

// index makes an index of a value; ok is false if Python has none of its type.
func index(v any) (n int64, ok bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	case int64:
		return v, true
	case *big.Int:
		if v.Sign() < 0 {
			return -1 << 62, true
		}
		return 1 << 62, true
	}
	return 0, false
}

// at returns the element at an index that may count from the end.
func (e *exec) at(v any, i int64) (any, bool) {
	n, _ := e.length(v)
	if i < 0 {
		i += int64(n)
	}
	if i < 0 || i >= int64(n) {
		return nil, false
	}
	switch v := v.(type) {
	case *list:
		return v.items[i], true
	case *tuple:
		return v.items[i], true
	case *span:
		return v.start + i*v.step, true
	}
	s, _ := text(v)
	start := byteAt(s, int(i))
	_, size := utf8.DecodeRuneInString(s[start:])
	return s[start : start+size], true
}

// byteAt is where the character i of a text begins.
func byteAt(s string, i int) int {
	if i >= len(s) {
		return len(s)
	}
	at := 0
	for ; i > 0 && at < len(s); i-- {
		_, n := utf8.DecodeRuneInString(s[at:])
		at += n
	}
	return at
}

// sliceable reports whether a value has slices.
func sliceable(v any) bool {
	switch v.(type) {
	case string, markup, *list, *tuple, *span, *undefined:
		return true
	}
	return false
}

// slice is Python's v[start:stop:step].
func (e *exec) slice(v any, bounds [3]any) any {
	if _, ok := v.(markup); ok {
		throw(ErrUnsupported, "a slice of text that is marked as safe")
	}
	n, ok := e.length(v)
	switch v := v.(type) {
	case string, markup, *list, *tuple, *span:
	case *undefined:
		throw(errUndef, "a slice of %s", quoteShort(v.what))
	default:
		ok = false
	}
	if !ok {
		throw(errType, "a slice of a value of type %s", typeName(v))
	}
	step := int64(1)
	if bounds[2] != nil {
		step = e.mustIndex(bounds[2])
	}
	if step == 0 {
		throw(errValue, "a slice with step 0")
	}
	start, stop := e.limits(bounds, int64(n), step)
	if s, ok := text(v); ok && step == 1 {
		if start >= stop {
			return ""
		}
		from := byteAt(s, int(start))
		return s[from : from+byteAt(s[from:], int(stop-start))]
	}
	s := &span{start, stop, step}
	if r, ok := v.(*span); ok {
		return &span{r.start + start*r.step, r.start + stop*r.step, r.step * step}
	}
	return e.picked(v, s)
}

// picked returns the elements of a text, list or tuple at the indices of s.
func (e *exec) picked(v any, s *span) any {
	items, count := e.collect(v), s.length()
	e.spend(step * int(count))
	if _, ok := text(v); ok {
		var out []byte
		for i := range count {
			out = append(out, items[s.start+i*s.step].(string)...)
		}
		return string(out)
	}
	out := make([]any, count)
	for i := range count {
		out[i] = items[s.start+i*s.step]
	}
	if _, ok := v.(*tuple); ok {
		return &tuple{out}
	}
	return &list{out}
}

func (e *exec) mustIndex(v any) int64 {
	n, ok := index(v)
	if !ok {
		throw(errType, "an index of type %s", typeName(v))
	}
	return n
}

// limits are a slice's start and stop for a sequence of n.
func (e *exec) limits(bounds [3]any, n, step int64) (start, stop int64) {
	least, most := int64(0), n
	if step < 0 {
		least, most = -1, n-1
	}
	clip := func(v any, otherwise int64) int64 {
		if v == nil {
			return otherwise
		}
		i := e.mustIndex(v)
		if i < 0 {
			return max(i+n, least)
		}
		return min(i, most)
	}
	if step < 0 {
		return clip(bounds[0], most), clip(bounds[1], least)
	}
	return clip(bounds[0], least), clip(bounds[1], most)
}

// item is Jinja's v[key]: an attribute if there is no such element.
func (e *exec) item(v, key any) any {
	switch x := v.(type) {
	case *undefined:
		throw(errUndef, "%s has no elements", quoteShort(x.what))
	case *Dict:
		if hashable(key) {
			if i := x.find(key); i >= 0 {
				return x.values[i]
			}
		}
	case markup:
		if _, ok := index(key); ok {
			throw(ErrUnsupported, "an element of text that is marked as safe")
		}
	case string, *list, *tuple, *span:
		if i, ok := index(key); ok {
			if found, ok := e.at(v, i); ok {
				return found
			}
		}
	}
	if name, ok := text(key); ok {
		if found, ok := e.own(v, name); ok {
			return found
		}
		return newUndefined(name)
	}
	return newUndefined("element")
}

// hashable is whether a value may be a key.
func hashable(v any) bool {
	switch v := v.(type) {
	case *list, *Dict, *view:
		return false
	case *tuple:
		for _, item := range v.items {
			if !hashable(item) {
				return false
			}
		}
	}
	return true
}

// attribute is Jinja's v.name: an element if there is no such attribute.
func (e *exec) attribute(v any, name string) any {
	if u, ok := v.(*undefined); ok {
		throw(errUndef, "%s has no attribute %s", quoteShort(u.what), quoteShort(name))
	}
	if found, ok := e.own(v, name); ok {
		return found
	}
	if d, ok := v.(*Dict); ok {
		if i := d.find(name); i >= 0 {
			return d.values[i]
		}
	}
	return newUndefined(name)
}
