package jinja

import "maps"

// This file decides which variable a name means, as Jinja's compiler does: a
// block has names of its own as soon as it assigns them, in whatever branch.

// function is what Jinja makes a Python function of: the template, a macro, the
// body of a call block, a recursive loop, a loop's condition.
type function struct {
	parent *function
	cells  map[string]int // by identifier
}

func (f *function) cell(ident string) int {
	at, ok := f.cells[ident]
	if !ok {
		at = len(f.cells)
		f.cells[ident] = at
	}
	return at
}

func newFunction(parent *function) *function {
	return &function{parent: parent, cells: map[string]int{}}
}

// source is where a variable's value is from when its block begins.
type source struct {
	from loadFrom
	name string // of the variable in the context
	cell cell   // of the outer block's variable
}

type loadFrom int8

const (
	fromNothing loadFrom = iota
	fromCaller           // a parameter: it is there
	fromContext
	fromOuter
)

// symbols are the names of one block.
type symbols struct {
	parent *symbols
	level  int
	in     *function
	refs   map[string]int // cells of in, by name
	loads  map[int]source // by cell
	stores map[string]bool
	// soft is whether filters and tests that there aren't are found only when they are used.
	soft bool
}

func newSymbols(parent *symbols, in *function) *symbols {
	s := &symbols{parent: parent, in: in, refs: map[string]int{}, loads: map[int]source{}, stores: map[string]bool{}}
	if parent != nil {
		s.level = parent.level + 1
	}
	return s
}

func (s *symbols) copy() *symbols {
	c := *s
	c.refs, c.loads, c.stores = maps.Clone(s.refs), maps.Clone(s.loads), maps.Clone(s.stores)
	return &c
}

func (s *symbols) define(name string, from source) int {
	at := s.in.cell(string(rune('0'+s.level)) + name)
	s.refs[name] = at
	s.loads[at] = from
	return at
}

// find returns where a name's variable lies.
func (s *symbols) find(name string) (cell, bool) {
	up, in := 0, s.in
	for ; s != nil; s = s.parent {
		for in != s.in {
			in = in.parent
			up++
		}
		if at, ok := s.refs[name]; ok {
			return cell{up, at}, true
		}
	}
	return cell{}, false
}

// outer is find from a block's parent, counted from the block.
func (s *symbols) outer(name string) (cell, bool) {
	if s.parent == nil {
		return cell{}, false
	}
	c, ok := s.parent.find(name)
	if s.in != s.parent.in {
		c.up++
	}
	return c, ok
}

func (s *symbols) store(name string) {
	s.stores[name] = true
	if _, ok := s.refs[name]; ok {
		return
	}
	if outer, ok := s.outer(name); ok {
		s.define(name, source{from: fromOuter, cell: outer})
		return
	}
	s.define(name, source{from: fromNothing})
}

func (s *symbols) parameter(name string) int {
	s.stores[name] = true
	return s.define(name, source{from: fromCaller})
}

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
