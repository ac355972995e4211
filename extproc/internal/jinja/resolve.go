package jinja

// resolve gives the names of a block's statements their variables.
func (s *symbols) resolve(body []stmt) {
	for _, st := range body {
		s.resolveStmt(st)
	}
}

func (s *symbols) resolveStmt(st stmt) {
	switch st := st.(type) {
	case *outputStmt:
		s.resolveExprs(st.parts)
	case *assignStmt:
		s.resolveAssign(st)
	case *captureStmt:
		s.resolveCapture(st)
	case *forStmt:
		s.resolveFor(st)
	case *ifStmt:
		s.resolveIf(st)
	case *macroStmt:
		s.resolveMacro(&st.macroDef)
		st.cell = s.cell(st.name)
	case *callBlockStmt:
		s.resolveMacro(&st.macroDef)
		if st.call != nil {
			s.resolveExpr(st.call)
		}
	case *filterStmt:
		inner := newSymbols(s, s.in)
		inner.body(st.body)
		inner.expr(st.filter)
		inner.resolve(st.body)
		inner.resolveExpr(st.filter)
		st.enter = inner.entry()
	case *withStmt:
		inner := newSymbols(s, s.in)
		for _, t := range st.targets {
			inner.target(t, false)
		}
		inner.body(st.body)
		for _, t := range st.targets {
			inner.resolveExpr(t)
		}
		s.resolveExprs(st.values)
		inner.resolve(st.body)
		st.enter = inner.entry()
	}
}

func (s *symbols) cell(name string) cell {
	c, _ := s.find(name) // it was declared
	return c
}

func (s *symbols) resolveExprs(all []expr) {
	for _, e := range all {
		s.resolveExpr(e)
	}
}

// resolveExpr gives an expression's names their variables, and finds its filters
// and tests.
func (s *symbols) resolveExpr(e expr) {
	switch e := e.(type) {
	case nil:
		return
	case *nameExpr:
		e.cell = s.cell(e.id)
	case *attributeTarget:
		e.name.cell = s.cell(e.name.id)
	case *conditionExpr:
		soft := *s // what a condition may leave aside
		soft.soft = true
		soft.resolveExprs(e.children())
		return
	case *filterExpr:
		e.apply = filters[e.name]
		if e.apply == nil && !s.soft {
			throw(errSyntax, "line %d: no filter %s", e.line, quoteShort(e.name))
		}
	case *testExpr:
		e.holds = tests[e.name]
		if e.holds == nil && !s.soft {
			throw(errSyntax, "line %d: no test %s", e.line, quoteShort(e.name))
		}
	}
	s.resolveExprs(e.children())
}

func (s *symbols) resolveAssign(st *assignStmt) {
	s.resolveExpr(st.target)
	s.resolveExpr(st.value)
	var collect func(expr)
	collect = func(e expr) {
		switch e := e.(type) {
		case *attributeTarget:
			st.spaces = append(st.spaces, e.name)
		case *tupleExpr:
			for _, item := range e.items {
				collect(item)
			}
		}
	}
	collect(st.target)
}

func (s *symbols) resolveCapture(st *captureStmt) {
	inner := newSymbols(s, s.in)
	inner.body(st.body)
	inner.resolve(st.body)
	s.resolveExpr(st.target)
	if st.filter != nil {
		inner.captureFilter(st.filter)
	}
	st.enter = inner.entry()
}

// captureFilter resolves the filter of a set block. Jinja does not declare the
// names in it: those that no block has break it.
func (s *symbols) captureFilter(f *filterExpr) {
	walkExpr(f, func(n *nameExpr) {
		if _, ok := s.find(n.id); !ok {
			throw(errSyntax, "line %d: no variable %s for a set block's filter", f.line, quoteShort(n.id))
		}
	})
	s.resolveExpr(f)
}

func (s *symbols) resolveIf(st *ifStmt) {
	soft := s.copy()
	soft.soft = true
	soft.resolveExpr(st.test)
	soft.resolve(st.body)
	for _, b := range st.branches {
		soft.resolveExpr(b.test)
		soft.resolve(b.body)
	}
	soft.resolve(st.otherwise)
}

func (s *symbols) resolveFor(st *forStmt) {
	walkStmt(st, func(n *nameExpr) {
		if n.ctx == ctxStore && n.id == "loop" {
			throw(errSyntax, "loop is assigned to in a loop")
		}
	})
	in := s.in
	if st.recursive {
		in = newFunction(s.in)
		st.function = in
	}
	body, test, otherwise := newSymbols(s, in), newSymbols(s, newFunction(s.in)), newSymbols(s, in)
	st.extended = st.recursive || undeclared(st.body, "loop")["loop"]
	if st.extended {
		st.loop = cell{0, body.parameter("loop")}
	}
	body.target(st.target, true)
	body.body(st.body)
	otherwise.body(st.otherwise)
	s.resolveExpr(st.iter)
	if st.test != nil {
		test.target(st.target, true)
		test.expr(st.test)
		st.testTarget = cloneTarget(st.target)
		test.resolveExpr(st.testTarget)
		test.resolveExpr(st.test)
		st.testFunction = test.in
		st.enterTest = test.entry()
	}
	body.resolveExpr(st.target)
	body.resolve(st.body)
	otherwise.resolve(st.otherwise)
	st.enter, st.enterElse = body.entry(), otherwise.entry()
}

func cloneTarget(e expr) expr {
	switch e := e.(type) {
	case *nameExpr:
		c := *e
		return &c
	case *tupleExpr:
		c := &tupleExpr{}
		for _, item := range e.items {
			c.items = append(c.items, cloneTarget(item))
		}
		return c
	}
	return e
}

// resolveMacro makes a function of a macro's body.
func (s *symbols) resolveMacro(m *macroDef) {
	m.function = newFunction(s.in)
	inner := newSymbols(s, m.function)
	for _, p := range m.params {
		p.cell = cell{0, inner.parameter(p.id)}
	}
	names := undeclared(m.body, "caller", "kwargs", "varargs")
	special := func(name string) *cell {
		for i, p := range m.params {
			if p.id != name {
				continue
			}
			if name == "caller" && names[name] && i < len(m.params)-len(m.defaults) {
				throw(errSyntax, "parameter caller without a default")
			}
			m.explicitCaller = m.explicitCaller || name == "caller"
			return nil
		}
		if !names[name] {
			return nil
		}
		return &cell{0, inner.parameter(name)}
	}
	m.caller, m.kwargs, m.varargs = special("caller"), special("kwargs"), special("varargs")
	inner.exprs(m.defaults)
	inner.body(m.body)
	inner.resolveExprs(m.defaults)
	inner.resolve(m.body)
	m.enter = inner.entry()
}
