package jinja

import (
	"slices"
	"strconv"
	"strings"
)

// This file has the filters that order or choose elements.

// getter finds an attribute by its path, as a.0.b; nil is the element itself. What
// is undefined becomes otherwise, if that is not nil.
func (e *exec) getter(path, otherwise any, lowered bool) func(any) any {
	var parts []any
	if s, ok := text(path); ok {
		for _, p := range strings.Split(s, ".") {
			if n, err := strconv.ParseInt(p, 10, 64); err == nil && p[0] != '-' && p[0] != '+' {
				parts = append(parts, n)
			} else {
				parts = append(parts, p)
			}
		}
	} else if path != nil {
		parts = []any{path}
	}
	return func(v any) any {
		for _, p := range parts {
			e.spend(step)
			v = e.item(v, p)
			if _, ok := v.(*undefined); ok && otherwise != nil {
				v = otherwise
			}
		}
		if s, ok := text(v); ok && lowered {
			return lower(s)
		}
		return v
	}
}

// cmp is the order of two values; it throws where Python has none.
func (e *exec) cmp(a, b any) int {
	if e.less(a, b, "<") {
		return -1
	}
	if e.less(b, a, "<") {
		return 1
	}
	return 0
}

type keyed struct{ key, value any }

// sorted sorts values by keys as Python's sorted() does.
func (e *exec) sorted(values []any, key func(any) any, backward bool) []any {
	all := make([]keyed, len(values))
	for i, v := range values {
		all[i] = keyed{key(v), v}
	}
	e.spend(3 * step * len(all))
	if backward {
		slices.Reverse(all)
	}
	slices.SortStableFunc(all, func(a, b keyed) int { return e.cmp(a.key, b.key) })
	if backward {
		slices.Reverse(all)
	}
	out := make([]any, len(all))
	for i := range all {
		out[i] = all[i].value
	}
	return out
}

func sortFilter(e *exec, v any, a *args) any {
	b := e.bind(a, "sort", "reverse=", "case_sensitive=", "attribute=")
	lowered := !e.isTrue(given(b[1], false))
	paths := []any{given(b[2], nil)}
	if s, ok := text(paths[0]); ok {
		paths = nil
		for _, p := range strings.Split(s, ",") {
			paths = append(paths, p)
		}
	}
	var gets []func(any) any
	for _, p := range paths {
		gets = append(gets, e.getter(p, nil, lowered))
	}
	key := func(item any) any {
		k := &list{}
		for _, get := range gets {
			k.items = append(k.items, get(item))
		}
		return k
	}
	return newList(e.sorted(e.collect(v), key, e.isTrue(given(b[0], false))))
}

func dictsort(e *exec, v any, a *args) any {
	b := e.bind(a, "dictsort", "case_sensitive=", "by=", "reverse=")
	d, ok := v.(*Dict)
	by, isText := text(given(b[1], "key"))
	if !ok || !isText || by != "key" && by != "value" {
		throw(errType, "dictsort of a value of type %s", typeName(v))
	}
	at := 0
	if by == "value" {
		at = 1
	}
	lowered := !e.isTrue(given(b[0], false))
	get := e.getter(nil, nil, lowered)
	key := func(item any) any { return get(item.(*tuple).items[at]) }
	return newList(e.sorted(e.collect(&view{d, "dict_items"}), key, e.isTrue(given(b[2], false))))
}

// extreme is min or max.
func extreme(sign int) filter {
	return func(e *exec, v any, a *args) any {
		b := e.bind(a, "min", "case_sensitive=", "attribute=")
		get := e.getter(given(b[1], nil), nil, !e.isTrue(given(b[0], false)))
		all := e.collect(v)
		if len(all) == 0 {
			return newUndefined("the extreme of nothing")
		}
		best := all[0]
		key := get(best)
		for _, item := range all[1:] {
			k := get(item)
			better := sign < 0 && e.less(k, key, "<") || sign > 0 && e.less(key, k, ">")
			if better {
				best, key = item, k
			}
		}
		return best
	}
}
