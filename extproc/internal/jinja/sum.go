package jinja

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
