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

func sum(e *exec, v any, a *args) any {
	b := e.bind(a, "sum", "attribute=", "start=")
	get := e.getter(given(b[0], nil), nil, false)
	total := given(b[1], int64(0))
	if _, ok := text(total); ok {
		throw(errType, "sum of texts")
	}
	for _, item := range e.collect(v) {
		n := get(item)
		if _, ok := n.(float64); ok {
			throw(ErrUnsupported, "sum of floats")
		}
		total = e.binary("+", total, n)
	}
	return total
}

func unique(e *exec, v any, a *args) any {
	b := e.bind(a, "unique", "case_sensitive=", "attribute=")
	get := e.getter(given(b[1], nil), nil, !e.isTrue(given(b[0], false)))
	var next func() (any, bool)
	seen := map[any]bool{}
	return &iterator{func() (any, bool) {
		if next == nil {
			next = e.iter(v)
		}
		for {
			item, ok := next()
			if !ok {
				return nil, false
			}
			e.spend(2 * step)
			if k := hash(get(item)); !seen[k] {
				seen[k] = true
				return item, true
			}
		}
	}}
}

// mapFilter looks an attribute up, or applies another filter, for each element.
func mapFilter(e *exec, v any, a *args) any {
	var next func() (any, bool)
	var f func(any) any
	return &iterator{func() (any, bool) {
		if next == nil {
			next = each(nil)
			if e.isTrue(v) {
				f, next = e.mapping(a), e.iter(v)
			}
		}
		item, ok := next()
		if !ok {
			return nil, false
		}
		e.spend(step)
		return f(item), true
	}}
}

func (e *exec) mapping(a *args) func(any) any {
	if path, ok := a.named("attribute"); ok && len(a.values) == 0 {
		b := e.bind(a, "map", "attribute", "default=")
		return e.getter(path, given(b[1], nil), false)
	}
	if len(a.values) == 0 {
		throw(errType, "map without a filter")
	}
	name, ok := text(a.values[0])
	apply := e.filters[name]
	if !ok || apply == nil {
		throw(errType, "map with no such filter")
	}
	rest := &args{values: a.values[1:], names: a.names, keywords: a.keywords}
	return func(item any) any { return apply(e, item, rest) }
}

// choose is select, reject and theirs by an attribute.
func choose(byAttribute, positive bool) filter {
	return func(e *exec, v any, a *args) any {
		var next func() (any, bool)
		var holds func(any) bool
		return &iterator{func() (any, bool) {
			if next == nil {
				next = each(nil)
				if e.isTrue(v) {
					holds, next = e.choice(a, byAttribute), e.iter(v)
				}
			}
			for {
				item, ok := next()
				if !ok {
					return nil, false
				}
				e.spend(step)
				if holds(item) == positive {
					return item, true
				}
			}
		}}
	}
}

// choice is the test that elements are chosen by.
func (e *exec) choice(a *args, byAttribute bool) func(any) bool {
	get := func(v any) any { return v }
	values := a.values
	if byAttribute {
		if len(values) == 0 {
			throw(errType, "an attribute's name is missing")
		}
		get = e.getter(values[0], nil, false)
		values = values[1:]
	}
	if len(values) == 0 {
		return func(v any) bool { return e.isTrue(get(v)) }
	}
	name, ok := text(values[0])
	holds := e.tests[name]
	if !ok || holds == nil {
		throw(errType, "no such test")
	}
	rest := &args{values: values[1:], names: a.names, keywords: a.keywords}
	return func(v any) bool { return e.isTrue(holds(e, get(v), rest)) }
}
