package jinja

import "slices"

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
