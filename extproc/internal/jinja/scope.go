package jinja

import "maps"

func (s *symbols) load(name string) {
	if _, ok := s.find(name); !ok {
		s.define(name, source{from: fromContext, name: name})
	}
}

// merge takes over what branches have assigned.
func (s *symbols) merge(branches []*symbols) {
	stores := map[string]bool{}
	for _, b := range branches {
		for name := range b.stores {
			if !s.stores[name] {
				stores[name] = true
			}
		}
	}
	for _, b := range branches {
		maps.Copy(s.refs, b.refs)
		maps.Copy(s.loads, b.loads)
		maps.Copy(s.stores, b.stores)
	}
	for name := range stores {
		at := s.refs[name]
		if outer, ok := s.outer(name); ok {
			s.loads[at] = source{from: fromOuter, cell: outer}
		} else {
			s.loads[at] = source{from: fromContext, name: name}
		}
	}
}

// target declares what is assigned to.
func (s *symbols) target(e expr, asParameter bool) {
	switch e := e.(type) {
	case *nameExpr:
		if asParameter || e.ctx == ctxParam {
			s.parameter(e.id)
		} else {
			s.store(e.id)
		}
	case *attributeTarget:
		s.load(e.name.id)
	case *tupleExpr:
		for _, item := range e.items {
			s.target(item, asParameter)
		}
	}
}

func (s *symbols) expr(e expr) { walkExpr(e, func(n *nameExpr) { s.load(n.id) }) }

func (s *symbols) exprs(all []expr) {
	for _, e := range all {
		s.expr(e)
	}
}

func (s *symbols) body(body []stmt) {
	for _, st := range body {
		s.stmt(st)
	}
}

// stmt declares the names of a statement, without those of blocks in it.
func (s *symbols) stmt(st stmt) {
	switch st := st.(type) {
	case *outputStmt:
		s.exprs(st.parts)
	case *assignStmt:
		s.expr(st.value)
		s.target(st.target, false)
	case *captureStmt:
		s.target(st.target, false)
	case *forStmt:
		s.expr(st.iter)
	case *ifStmt:
		s.condition(st)
	case *macroStmt:
		s.store(st.name)
	case *callBlockStmt:
		if st.call != nil {
			s.expr(st.call)
		}
	case *filterStmt:
		s.expr(st.filter)
	case *withStmt:
		s.exprs(st.values)
	}
}

func (s *symbols) condition(st *ifStmt) {
	s.expr(st.test)
	branches := []*symbols{s.copy(), s.copy(), s.copy()}
	branches[0].body(st.body)
	for _, b := range st.branches {
		branches[1].stmt(b)
	}
	branches[2].body(st.otherwise)
	s.merge(branches)
}

// entry is what is done with a block's variables when it begins and ends.
type entry struct {
	cells   []int
	sources []source
}

func (s *symbols) entry() (e entry) {
	for at, from := range s.loads {
		e.cells = append(e.cells, at)
		e.sources = append(e.sources, from)
	}
	return e
}
