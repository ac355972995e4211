package jinja

// exec is one rendering.
type exec struct {
	vars    *Dict
	options Options
	out     []byte // of the innermost capture
	spent   int
	depth   int
	// Filters and tests for those that take one by name.
	filters map[string]filter
	tests   map[string]test
}

// step is what a step, or a value in memory, costs in bytes.
const step = 16

// spend accounts for work, by the bytes that it copies.
func (e *exec) spend(n int) {
	e.spent += n
	if e.spent > maxSpent || n < 0 {
		throw(ErrLimit, "its work is more than that of copying %d bytes", maxSpent)
	}
}

// deeper is called where a template's own calls recur; leave ends the level.
func (e *exec) deeper() {
	e.depth++
	if e.depth > maxDepth {
		throw(ErrLimit, "more than %d calls in each other", maxDepth)
	}
}

func (e *exec) leave() { e.depth-- }

// scope has the variables of one call of a function.
type scope struct {
	cells  []any
	parent *scope
}

func newScope(f *function, parent *scope) *scope {
	s := &scope{cells: make([]any, len(f.cells)), parent: parent}
	for i := range s.cells {
		s.cells[i] = missing
	}
	return s
}

func (s *scope) cell(c cell) *any {
	for range c.up {
		s = s.parent
	}
	return &s.cells[c.at]
}

// begin gives a block's variables their first values.
func (e *exec) begin(s *scope, b *entry) {
	for i, at := range b.cells {
		switch from := &b.sources[i]; from.from {
		case fromNothing:
			s.cells[at] = missing
		case fromContext:
			s.cells[at] = e.lookup(from.name)
		case fromOuter:
			s.cells[at] = *s.cell(from.cell)
		}
	}
}

// end forgets a block's variables.
func (e *exec) end(s *scope, b *entry) {
	for _, at := range b.cells {
		s.cells[at] = missing
	}
}

// lookup finds a variable of the context.
func (e *exec) lookup(name string) any {
	if e.vars != nil {
		if v, ok := e.vars.Get(name); ok {
			return v
		}
	}
	if v, ok := globals[name]; ok {
		return v
	}
	return missing
}

func (e *exec) body(body []stmt, s *scope) jump {
	for _, st := range body {
		e.spend(step)
		if j := st.run(e, s); j != goesOnward {
			return j
		}
	}
	return goesOnward
}

// capture returns what a function writes.
func (e *exec) capture(write func()) string {
	outer := e.out
	e.out = nil
	write()
	out := string(e.out)
	e.out = outer
	return out
}

func (e *exec) write(s string) {
	e.spend(len(s))
	e.out = append(e.out, s...)
}

// writeText writes what a block's filter or call makes: Jinja can't write what is
// no text there.
func (e *exec) writeText(v any) {
	t, ok := text(v)
	if !ok {
		throw(errType, "a block is made a value of type %s", typeName(v))
	}
	e.write(t)
}

func (st *outputStmt) run(e *exec, s *scope) jump {
	for _, p := range st.parts {
		if t, ok := p.(*textExpr); ok {
			e.write(t.text)
			continue
		}
		e.write(e.str(p.eval(e, s)))
	}
	return goesOnward
}

func (st *assignStmt) run(e *exec, s *scope) jump {
	for _, n := range st.spaces {
		if _, ok := (*s.cell(n.cell)).(*namespace); !ok {
			throw(errType, "attribute of %s, which is not a namespace, is assigned to", quoteShort(n.id))
		}
	}
	e.assign(st.target, st.value.eval(e, s), s)
	return goesOnward
}

// assign sets a name, an attribute, or the elements of a tuple.
func (e *exec) assign(target expr, v any, s *scope) {
	switch t := target.(type) {
	case *nameExpr:
		*s.cell(t.cell) = v
	case *attributeTarget:
		n, ok := (*s.cell(t.name.cell)).(*namespace)
		if !ok {
			throw(ErrUnsupported, "attribute of %s is assigned to", quoteShort(t.name.id))
		}
		n.attrs.Set(t.attr, v)
	case *tupleExpr:
		items := e.collect(v)
		if len(items) != len(t.items) {
			throw(errValue, "%d values for %d names", len(items), len(t.items))
		}
		for i, item := range t.items {
			e.assign(item, items[i], s)
		}
	}
}

func (st *captureStmt) run(e *exec, s *scope) jump {
	e.begin(s, &st.enter)
	j := goesOnward
	captured := e.capture(func() { j = e.body(st.body, s) })
	if j != goesOnward {
		return j
	}
	var v any = captured
	if st.filter != nil {
		v = st.filter.of(e, s, captured)
	}
	e.assign(st.target, v, s)
	e.end(s, &st.enter)
	return goesOnward
}

func (st *filterStmt) run(e *exec, s *scope) jump {
	e.begin(s, &st.enter)
	j := goesOnward
	captured := e.capture(func() { j = e.body(st.body, s) })
	if j != goesOnward {
		return j
	}
	e.writeText(st.filter.of(e, s, captured))
	e.end(s, &st.enter)
	return goesOnward
}

func (st *withStmt) run(e *exec, s *scope) jump {
	e.begin(s, &st.enter)
	for i, t := range st.targets {
		e.assign(t, st.values[i].eval(e, s), s)
	}
	j := e.body(st.body, s)
	if j == goesOnward {
		e.end(s, &st.enter)
	}
	return j
}

func (st *jumpStmt) run(*exec, *scope) jump {
	if st.leaves {
		return breaks
	}
	return continues
}

func (st *ifStmt) run(e *exec, s *scope) jump {
	if e.isTrue(st.test.eval(e, s)) {
		return e.body(st.body, s)
	}
	for _, b := range st.branches {
		e.spend(step)
		if e.isTrue(b.test.eval(e, s)) {
			return e.body(b.body, s)
		}
	}
	return e.body(st.otherwise, s)
}

func (st *forStmt) run(e *exec, s *scope) jump {
	over := st.iter.eval(e, s)
	if !st.recursive {
		return e.iterate(st, over, s, nil, 0)
	}
	var again func(over any, depth int) string
	again = func(over any, depth int) string {
		e.deeper()
		defer e.leave()
		return e.capture(func() { e.iterate(st, over, newScope(st.function, s), again, depth) })
	}
	e.write(again(over, 0))
	return goesOnward
}

// iterate runs a loop in the scope of its body.
func (e *exec) iterate(st *forStmt, over any, s *scope, again func(any, int) string, depth int) jump {
	outer := s
	if st.recursive {
		outer = s.parent
	}
	if st.test != nil {
		over = e.chosen(st, over, outer)
	}
	l := &loop{e: e, over: over, again: again, depth: depth, index: -1}
	l.next = e.iter(over)
	empty := true
	for {
		e.spend(step)
		v, ok := l.advance()
		if !ok {
			break
		}
		e.assign(st.target, v, s)
		if st.extended {
			s.cells[st.loop.at] = l
		}
		e.begin(s, &st.enter)
		// As in Jinja a round that ends with break or continue doesn't count for else.
		j := e.body(st.body, s)
		if j == breaks {
			break
		}
		empty = empty && j == continues
	}
	e.end(s, &st.enter)
	if !st.hasElse || !empty {
		return goesOnward
	}
	e.begin(s, &st.enterElse)
	j := e.body(st.otherwise, s)
	if j == goesOnward {
		e.end(s, &st.enterElse)
	}
	return j
}

// chosen are the elements for which a loop's condition is true, found as the loop
// comes to them.
func (e *exec) chosen(st *forStmt, over any, s *scope) any {
	inner := newScope(st.testFunction, s)
	var next func() (any, bool)
	all := e.iter(over)
	return &iterator{func() (any, bool) {
		if next == nil {
			e.begin(inner, &st.enterTest)
			next = all
		}
		for {
			v, ok := next()
			if !ok {
				return nil, false
			}
			e.spend(step)
			e.assign(st.testTarget, v, inner)
			if e.isTrue(st.test.eval(e, inner)) {
				return e.rebuilt(st.testTarget, inner), true
			}
		}
	}}
}

// rebuilt is what a loop's condition gives on: the target's own values.
func (e *exec) rebuilt(target expr, s *scope) any {
	t, ok := target.(*tupleExpr)
	if !ok {
		return target.eval(e, s)
	}
	out := &tuple{}
	for _, item := range t.items {
		out.items = append(out.items, e.rebuilt(item, s))
	}
	return out
}

func (st *macroStmt) run(e *exec, s *scope) jump {
	*s.cell(st.cell) = &macro{def: st.named(st.name), scope: s}
	return goesOnward
}

func (st *callBlockStmt) run(e *exec, s *scope) jump {
	caller := &macro{def: st.named(""), scope: s}
	if st.generation {
		e.write(e.str(caller.call(e, &args{})))
		return goesOnward
	}
	a := st.call.arguments.eval(e, s, func() any { return st.call.callee.eval(e, s) })
	if _, twice := a.named("caller"); twice {
		throw(errSyntax, "argument caller twice")
	}
	a.names, a.keywords = append(a.names, "caller"), append(a.keywords, caller)
	e.writeText(e.call(a.callee, a))
	return goesOnward
}

func (x *textExpr) eval(*exec, *scope) any  { return x.text }
func (x *constExpr) eval(*exec, *scope) any { return x.value }

func (x *nameExpr) eval(_ *exec, s *scope) any {
	v := *s.cell(x.cell)
	if v == missing {
		return newUndefined(x.id)
	}
	return v
}

func (x *attributeTarget) eval(*exec, *scope) any { return nil }

func (e *exec) evalAll(all []expr, s *scope) []any {
	out := make([]any, len(all))
	for i, x := range all {
		out[i] = x.eval(e, s)
	}
	e.spend(step * len(all))
	return out
}

func (x *tupleExpr) eval(e *exec, s *scope) any { return &tuple{e.evalAll(x.items, s)} }
func (x *listExpr) eval(e *exec, s *scope) any  { return &list{e.evalAll(x.items, s)} }

func (x *dictExpr) eval(e *exec, s *scope) any {
	d := NewDict(len(x.keys))
	for i := range x.keys {
		k := x.keys[i].eval(e, s)
		d.set(k, x.values[i].eval(e, s))
	}
	e.spend(step * len(x.keys))
	return d
}

func (x *conditionExpr) eval(e *exec, s *scope) any {
	if e.isTrue(x.test.eval(e, s)) {
		return x.then.eval(e, s)
	}
	if x.otherwise == nil {
		return newUndefined("an if without else")
	}
	return x.otherwise.eval(e, s)
}

func (x *orExpr) eval(e *exec, s *scope) any {
	if v := x.left.eval(e, s); e.isTrue(v) {
		return v
	}
	return x.right.eval(e, s)
}

func (x *andExpr) eval(e *exec, s *scope) any {
	if v := x.left.eval(e, s); !e.isTrue(v) {
		return v
	}
	return x.right.eval(e, s)
}

func (x *notExpr) eval(e *exec, s *scope) any { return !e.isTrue(x.inner.eval(e, s)) }

func (x *signExpr) eval(e *exec, s *scope) any { return e.sign(x.minus, x.inner.eval(e, s)) }

func (x *binaryExpr) eval(e *exec, s *scope) any {
	e.spend(step)
	left := x.left.eval(e, s)
	if x.folded && negative(left) {
		throw(ErrUnsupported, "a power of a negative number")
	}
	return e.binary(x.op, left, x.right.eval(e, s))
}

func (x *concatExpr) eval(e *exec, s *scope) any {
	var few [4]string
	parts, size := few[:0], 0
	for _, p := range x.parts {
		t := e.str(p.eval(e, s))
		parts, size = append(parts, t), size+len(t)
	}
	e.spend(size)
	return joined(parts, size)
}

func joined(parts []string, size int) string {
	out := make([]byte, 0, size)
	for _, p := range parts {
		out = append(out, p...)
	}
	return string(out)
}

func (x *compareExpr) eval(e *exec, s *scope) any {
	left := x.first.eval(e, s)
	for i, op := range x.ops {
		e.spend(step)
		right := x.rest[i].eval(e, s)
		if !e.compare(op, left, right) {
			return false
		}
		left = right
	}
	return true
}

func (x *attributeExpr) eval(e *exec, s *scope) any { return e.attribute(x.object.eval(e, s), x.name) }

func (x *itemExpr) eval(e *exec, s *scope) any {
	object := x.object.eval(e, s)
	return e.item(object, x.key.eval(e, s))
}

func (x *sliceExpr) eval(e *exec, s *scope) any {
	object := x.object.eval(e, s)
	if x.constant && !sliceable(object) {
		throw(ErrUnsupported, "a slice of a constant that has none") // Jinja makes it undefined where it is all that a {{ }} has, else an error
	}
	var bounds [3]any
	for i, b := range []expr{x.start, x.stop, x.step} {
		if b != nil {
			bounds[i] = b.eval(e, s)
		}
	}
	return e.slice(object, bounds)
}

func (x *callExpr) eval(e *exec, s *scope) any {
	a := x.arguments.eval(e, s, func() any { return x.callee.eval(e, s) })
	return e.call(a.callee, a)
}

func (x *filterExpr) eval(e *exec, s *scope) any { return x.of(e, s, nil) }

// of applies a filter, the innermost of a chain without a subject to what was captured.
func (x *filterExpr) of(e *exec, s *scope, captured any) any {
	subject := captured
	if inner, ok := x.subject.(*filterExpr); ok {
		subject = inner.of(e, s, captured)
	} else if x.subject != nil {
		subject = x.subject.eval(e, s)
	}
	a := x.arguments.eval(e, s, nil)
	if x.apply == nil {
		throw(errType, "no filter %s", quoteShort(x.name))
	}
	e.spend(step)
	return x.apply(e, subject, a)
}

func (x *testExpr) eval(e *exec, s *scope) any {
	subject := x.subject.eval(e, s)
	a := x.arguments.eval(e, s, nil)
	if x.holds == nil {
		throw(errType, "no test %s", quoteShort(x.name))
	}
	e.spend(step)
	return x.holds(e, subject, a)
}

// args are the arguments of a call.
type args struct {
	callee   any
	values   []any
	names    []string
	keywords []any
}

func (a *args) named(name string) (any, bool) {
	for i, n := range a.names {
		if n == name {
			return a.keywords[i], true
		}
	}
	return nil, false
}

func (x *arguments) eval(e *exec, s *scope, callee func() any) *args {
	a := &args{}
	if callee != nil {
		a.callee = callee()
	}
	if len(x.values) > 0 {
		a.values = e.evalAll(x.values, s)
	}
	if len(x.named) > 0 {
		a.names, a.keywords = append([]string{}, x.names...), e.evalAll(x.named, s)
	}
	if x.star != nil {
		a.values = append(a.values, e.collect(x.star.eval(e, s))...)
	}
	if x.stars != nil {
		e.spread(a, x.stars.eval(e, s))
	}
	return a
}

// spread adds the arguments of **v.
func (e *exec) spread(a *args, v any) {
	d, ok := v.(*Dict)
	if !ok {
		throw(errType, "** of a value of type %s", typeName(v))
	}
	for i, k := range d.keys {
		name, ok := k.(string)
		if !ok {
			throw(errType, "** of a key of type %s", typeName(k))
		}
		if _, twice := a.named(name); twice {
			throw(errType, "argument %s twice", quoteShort(name))
		}
		a.names, a.keywords = append(a.names, name), append(a.keywords, d.values[i])
	}
}
