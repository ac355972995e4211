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
