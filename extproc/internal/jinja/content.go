package jinja

// Engines examine a template's tree to know whether contents are to be given to it as
// lists of parts or as texts. What follows answers their questions.

// Loops is where a template has loops over the contents of messages.
type Loops struct {
	// Direct is over the content of what a loop over messages, or a part of them, runs over.
	Direct bool
	// Named is Direct, or a loop over a variable named content.
	Named bool
	// Passed is Direct, or a loop over a variable named content outside of macros, or in one
	// over a parameter that is given a message's content.
	Passed bool
}

// Loops returns where the template loops over contents. The rules are those of vLLM's
// _iter_nodes_assign_content_item: of versions 0.10 to 0.19 (Direct), 0.23 to 0.29 (Named),
// 0.30 to 0.32 (Passed). What they stumble over, such as a namespace's attribute that is
// given messages, they take for a template of texts.
func (t *Template) Loops() Loops {
	c := contents{body: t.body, messages: map[string]bool{"messages": true}}
	if !c.findMessages() || !c.findItems() {
		return Loops{}
	}
	var l Loops
	for _, loop := range c.loops {
		_, simple := loop.target.(*nameExpr)
		named := isNamed(loop.iter, "content")
		switch {
		case c.overContent(loop.iter):
			if !simple {
				return Loops{}
			}
			l.Direct = true
		case named && !simple:
			return Loops{Direct: l.Direct}
		case named:
			l.Named = true
		}
	}
	l.Passed = l.Direct || c.passed()
	l.Named = l.Named || l.Direct
	return l
}

// LoopsOver reports whether a loop runs over the content of a variable with one of the
// names, as SGLang looks for it.
func (t *Template) LoopsOver(names ...string) bool {
	found := false
	visit(t.body, func(s stmt) {
		if loop, ok := s.(*forStmt); ok {
			for _, name := range names {
				found = found || elements(loop.iter, name, "content")
			}
		}
	}, nil)
	return found
}

// contents is a search for loops over contents.
type contents struct {
	body     []stmt
	loops    []*forStmt
	messages map[string]bool // variables with all messages, or some
	items    map[string]bool // variables with one
}

// findMessages finds what variables messages are assigned to.
func (c *contents) findMessages() bool {
	ok := true
	for added := true; added && ok; {
		added = false
		visit(c.body, func(s stmt) {
			a, is := s.(*assignStmt)
			if !is || !c.has(c.messages, a.value, "") {
				return
			}
			name, is := a.target.(*nameExpr)
			if !is {
				ok = false
			} else if !c.messages[name.id] {
				c.messages[name.id], added = true, true
			}
		}, nil)
	}
	return ok
}

// findItems finds the loops, and the variables of those over messages.
func (c *contents) findItems() bool {
	c.items = map[string]bool{}
	ok := true
	visit(c.body, func(s stmt) {
		loop, is := s.(*forStmt)
		if !is {
			return
		}
		c.loops = append(c.loops, loop)
		if !c.has(c.messages, loop.iter, "") {
			return
		}
		if name, is := loop.target.(*nameExpr); is {
			c.items[name.id] = true
		} else {
			ok = false
		}
	}, nil)
	return ok
}

// has reports whether an expression is one of the variables, a part of it, or a field.
func (c *contents) has(names map[string]bool, x expr, field string) bool {
	for name := range names {
		if elements(x, name, field) {
			return true
		}
	}
	return false
}

func (c *contents) overContent(x expr) bool { return c.has(c.items, x, "content") }

// passed reports whether a loop is over a variable named content outside of macros, or in
// a macro over a parameter that is given a message's content.
func (c *contents) passed() bool {
	inMacro, found := map[*forStmt]bool{}, false
	visit(c.body, func(s stmt) {
		m, ok := s.(*macroStmt)
		if !ok {
			return
		}
		given := c.given(m)
		visit(m.body, func(s stmt) {
			if loop, ok := s.(*forStmt); ok {
				inMacro[loop] = true
				if n, ok := loop.iter.(*nameExpr); ok && given[n.id] {
					found = true
				}
			}
		}, nil)
	}, nil)
	for _, loop := range c.loops {
		found = found || !inMacro[loop] && isNamed(loop.iter, "content")
	}
	return found
}

// given returns the parameters of a macro that some call gives a message's content.
func (c *contents) given(m *macroStmt) map[string]bool {
	out := map[string]bool{}
	visit(c.body, nil, func(x expr) {
		call, ok := x.(*callExpr)
		if !ok || !isNamed(call.callee, m.name) {
			return
		}
		for i, v := range call.values {
			if i < len(m.params) && c.overContent(v) {
				out[m.params[i].id] = true
			}
		}
		for i, v := range call.named {
			if c.overContent(v) {
				out[call.names[i]] = true
			}
		}
	})
	return out
}

func isNamed(x expr, name string) bool {
	n, ok := x.(*nameExpr)
	return ok && n.id == name && n.ctx == ctxLoad
}

// elements reports whether an expression is a variable, or a field of it, perhaps filtered
// or sliced.
func elements(x expr, name, field string) bool {
	switch x := x.(type) {
	case *filterExpr:
		return x.subject != nil && elements(x.subject, name, field)
	case *testExpr:
		return elements(x.subject, name, field)
	case *sliceExpr:
		return elements(x.object, name, field)
	case *itemExpr:
		key, ok := x.key.(*constExpr)
		return ok && field != "" && key.value == any(field) && isNamed(x.object, name)
	case *attributeExpr:
		return field != "" && x.name == field && isNamed(x.object, name)
	}
	return field == "" && isNamed(x, name)
}

// visit calls onStmt for each statement and onExpr for each expression, inner ones too.
func visit(body []stmt, onStmt func(stmt), onExpr func(expr)) {
	for _, s := range body {
		if onStmt != nil {
			onStmt(s)
		}
		exprs, inner := parts(s)
		for _, x := range exprs {
			visitExpr(x, onExpr)
		}
		visit(inner, onStmt, onExpr)
	}
}

func visitExpr(x expr, f func(expr)) {
	if x == nil || f == nil {
		return
	}
	f(x)
	for _, inner := range x.children() {
		visitExpr(inner, f)
	}
}

// parts are the expressions and the statements that are directly in one.
func parts(s stmt) (exprs []expr, inner []stmt) {
	switch s := s.(type) {
	case *outputStmt:
		return s.parts, nil
	case *assignStmt:
		return some(s.target, s.value), nil
	case *captureStmt:
		exprs = some(s.target)
		if s.filter != nil {
			exprs = append(exprs, s.filter)
		}
		return exprs, s.body
	case *forStmt:
		return some(s.target, s.iter, s.test), append(append([]stmt{}, s.body...), s.otherwise...)
	case *ifStmt:
		inner = append(inner, s.body...)
		for _, b := range s.branches {
			inner = append(inner, b)
		}
		return some(s.test), append(inner, s.otherwise...)
	case *macroStmt:
		return s.defaults, s.body
	case *callBlockStmt:
		exprs = append(exprs, s.defaults...)
		if s.call != nil {
			exprs = append(exprs, s.call)
		}
		return exprs, s.body
	case *filterStmt:
		return some(s.filter), s.body
	case *withStmt:
		return append(append([]expr{}, s.targets...), s.values...), s.body
	}
	return nil, nil
}
