package jinja

import "slices"

// loop is what a loop's body sees as loop. It reads one element ahead where it
// must, which shows where the elements are made as they are read.
type loop struct {
	e     *exec
	over  any
	next  func() (any, bool)
	again func(over any, depth int) string // nil: not recursive
	index int                              // from 0
	depth int                              // from 0

	size    int // 1 + the number of elements; 0: not known
	ahead   any
	peeked  bool // whether ahead is the next element, or that there is none
	ended   bool // whether there is none
	current any
	before  any
	last    []any // what changed() was called with
	asked   bool  // whether it was
}

func (l *loop) advance() (any, bool) {
	var v any
	ok := true
	switch {
	case l.peeked && !l.ended:
		v = l.ahead
		l.peeked, l.ahead = false, nil
	default:
		v, ok = l.next()
	}
	if !ok {
		return nil, false
	}
	l.index++
	l.before, l.current = l.current, v
	return v, true
}

func (l *loop) peek() (any, bool) {
	if !l.peeked || l.ended {
		v, ok := l.next()
		l.ahead, l.peeked, l.ended = v, true, !ok
	}
	return l.ahead, !l.ended
}

func (l *loop) length() int {
	if l.size == 0 {
		l.size = 1 + l.count()
	}
	return l.size - 1
}

func (l *loop) count() int {
	if n, ok := l.e.length(l.over); ok {
		return n
	}
	var rest []any
	for {
		v, ok := l.next()
		if !ok {
			break
		}
		l.e.spend(step)
		rest = append(rest, v)
	}
	l.next = each(rest)
	n := len(rest) + l.index + 1
	if l.peeked && !l.ended {
		n++
	}
	return n
}

// each iterates over a slice.
func each(items []any) func() (any, bool) {
	i := 0
	return func() (any, bool) {
		if i >= len(items) {
			return nil, false
		}
		i++
		return items[i-1], true
	}
}

// attribute is one of a loop's; ok is false if there is none of that name.
func (l *loop) attribute(name string) (v any, ok bool) {
	switch name {
	case "index":
		return int64(l.index + 1), true
	case "index0":
		return int64(l.index), true
	case "revindex":
		return int64(l.length() - l.index), true
	case "revindex0":
		return int64(l.length() - l.index - 1), true
	case "first":
		return l.index == 0, true
	case "last":
		_, more := l.peek()
		return !more, true
	case "length":
		return int64(l.length()), true
	case "depth":
		return int64(l.depth + 1), true
	case "depth0":
		return int64(l.depth), true
	case "previtem":
		if l.index == 0 {
			return newUndefined("the item before the first"), true
		}
		return l.before, true
	case "nextitem":
		if v, more := l.peek(); more {
			return v, true
		}
		return newUndefined("the item after the last"), true
	case "cycle":
		return &method{self: l, name: name, call: l.cycle}, true
	case "changed":
		return &method{self: l, name: name, call: l.changed}, true
	}
	return nil, false
}

func (l *loop) cycle(e *exec, a *args) any {
	e.noKeywords(a)
	if len(a.values) == 0 {
		throw(errType, "cycle() without values")
	}
	return a.values[l.index%len(a.values)]
}

func (l *loop) changed(e *exec, a *args) any {
	e.noKeywords(a)
	if l.asked && slices.EqualFunc(l.last, a.values, e.equal) {
		return false
	}
	l.asked, l.last = true, a.values
	return true
}

func (l *loop) call(e *exec, a *args) any {
	b := e.bind(a, "loop", "iterable")
	if l.again == nil {
		throw(errType, "a loop without recursive is called")
	}
	return l.again(b[0], l.depth+1)
}

// macro is a macro, or the body of a call block, with the scope it was made in.
type macro struct {
	def   *macroNamed
	scope *scope
}

type macroNamed struct {
	*macroDef
	name string
}

func (m *macroDef) named(name string) *macroNamed { return &macroNamed{m, name} }

func (m *macro) call(e *exec, a *args) any {
	e.deeper()
	defer e.leave()
	d := m.def
	s := newScope(d.function, m.scope)
	used := make([]bool, len(a.names))
	take := func(name string) any {
		i := slices.Index(a.names, name)
		if i < 0 {
			return missing
		}
		used[i] = true
		return a.keywords[i]
	}
	foundCaller := d.explicitCaller && len(a.values) >= len(d.params)
	for i, p := range d.params {
		if i < len(a.values) {
			s.cells[p.cell.at] = a.values[i]
			continue
		}
		s.cells[p.cell.at] = take(p.id)
		foundCaller = foundCaller || p.id == "caller"
	}
	if d.caller != nil && !foundCaller {
		caller := take("caller")
		if caller == missing || caller == nil {
			caller = newUndefined("caller")
		}
		s.cells[d.caller.at] = caller
	}
	m.rest(e, a, s, used)
	return e.capture(func() {
		e.begin(s, &d.enter)
		m.defaults(e, s)
		e.body(d.body, s)
	})
}

// rest hands over the arguments that no parameter takes.
func (m *macro) rest(e *exec, a *args, s *scope, used []bool) {
	others := NewDict(0)
	for i, name := range a.names {
		if !used[i] {
			others.Set(name, a.keywords[i])
		}
	}
	if m.def.kwargs != nil {
		s.cells[m.def.kwargs.at] = others
	} else if others.Len() > 0 {
		throw(errType, "macro %s has no parameter %s", quoteShort(m.def.name), quoteShort(others.keys[0].(string)))
	}
	n := min(len(a.values), len(m.def.params))
	if m.def.varargs != nil {
		s.cells[m.def.varargs.at] = &tuple{a.values[n:]}
	} else if len(a.values) > n {
		throw(errType, "macro %s takes %d arguments, not %d", quoteShort(m.def.name), n, len(a.values))
	}
}

func (m *macro) defaults(e *exec, s *scope) {
	first := len(m.def.params) - len(m.def.defaults)
	for i, p := range m.def.params {
		if s.cells[p.cell.at] != missing {
			continue
		}
		if i < first {
			s.cells[p.cell.at] = newUndefined(p.id)
		} else {
			s.cells[p.cell.at] = m.def.defaults[i-first].eval(e, s)
		}
	}
}
