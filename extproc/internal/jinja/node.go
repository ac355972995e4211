package jinja

// expr is an expression of the tree. eval throws what goes wrong.
type expr interface {
	eval(e *exec, s *scope) any
	// children are the expressions in it, in the order of Jinja's own fields.
	children() []expr
}

// stmt is a statement of the tree.
type stmt interface {
	run(e *exec, s *scope) jump
}

// jump is how a statement ends.
type jump int8

const (
	goesOnward jump = iota
	breaks
	continues
)

// context is what happens to a name.
type context int8

const (
	ctxLoad context = iota
	ctxStore
	ctxParam
)

// cell is where a variable lies: so many functions up, at a place of theirs.
type cell struct{ up, at int }

type (
	textExpr  struct{ text string }
	constExpr struct{ value any }
	nameExpr  struct {
		id   string
		ctx  context
		cell cell
	}
	// attributeTarget is a namespace's attribute that is assigned to.
	attributeTarget struct {
		name *nameExpr
		attr string
	}
	tupleExpr     struct{ items []expr }
	listExpr      struct{ items []expr }
	dictExpr      struct{ keys, values []expr }
	conditionExpr struct{ test, then, otherwise expr }
	orExpr        struct{ left, right expr }
	andExpr       struct{ left, right expr }
	notExpr       struct{ inner expr }
	signExpr      struct {
		minus bool
		inner expr
	}
	binaryExpr struct {
		op          string
		left, right expr
		// folded is whether Jinja writes the left side as a number into its Python: with **
		// a minus in front of that comes last.
		folded bool
	}
	concatExpr  struct{ parts []expr }
	compareExpr struct {
		first expr
		ops   []string
		rest  []expr
	}
	attributeExpr struct {
		object expr
		name   string
	}
	itemExpr  struct{ object, key expr }
	sliceExpr struct {
		object, start, stop, step expr
		constant                  bool // whether no variable is in it
	}
	arguments struct {
		values      []expr
		names       []string
		named       []expr
		star, stars expr
	}
	callExpr struct {
		callee expr
		arguments
	}
	filterExpr struct {
		subject expr // nil: what a block captured
		name    string
		line    int
		arguments
		apply filter // nil: there is no such filter
	}
	testExpr struct {
		subject expr
		name    string
		line    int
		arguments
		holds test // nil: there is no such test
	}
)

type (
	outputStmt struct{ parts []expr }
	assignStmt struct {
		target, value expr
		spaces        []*nameExpr // of attributes in target
	}
	captureStmt struct {
		target expr
		filter *filterExpr
		body   []stmt
		enter  entry
	}
	forStmt struct {
		target, iter, test expr
		body, otherwise    []stmt
		hasElse, recursive bool
		extended           bool // whether the body uses loop
		loop               cell
		function           *function // the loop's own, if it is recursive
		testFunction       *function
		testTarget         expr
		enter, enterElse   entry
		enterTest          entry
	}
	ifStmt struct {
		test            expr
		body, otherwise []stmt
		branches        []*ifStmt
	}
	macroDef struct {
		params   []*nameExpr
		defaults []expr // of the last parameters
		body     []stmt
		function *function
		enter    entry
		// The special variables, where the body uses them.
		caller, kwargs, varargs *cell
		explicitCaller          bool
	}
	macroStmt struct {
		macroDef
		name string
		cell cell
	}
	callBlockStmt struct {
		macroDef
		call *callExpr
		// generation marks the assistant's words for training: it calls what it captures.
		generation bool
	}
	filterStmt struct {
		filter *filterExpr
		body   []stmt
		enter  entry
	}
	withStmt struct {
		targets, values []expr
		body            []stmt
		enter           entry
	}
	jumpStmt struct{ leaves bool }
)

func (*textExpr) children() []expr        { return nil }
func (*constExpr) children() []expr       { return nil }
func (*nameExpr) children() []expr        { return nil }
func (*attributeTarget) children() []expr { return nil }
func (x *tupleExpr) children() []expr     { return x.items }
func (x *listExpr) children() []expr      { return x.items }
func (x *conditionExpr) children() []expr { return some(x.test, x.then, x.otherwise) }
func (x *orExpr) children() []expr        { return []expr{x.left, x.right} }
func (x *andExpr) children() []expr       { return []expr{x.left, x.right} }
func (x *notExpr) children() []expr       { return []expr{x.inner} }
func (x *signExpr) children() []expr      { return []expr{x.inner} }
func (x *binaryExpr) children() []expr    { return []expr{x.left, x.right} }
func (x *concatExpr) children() []expr    { return x.parts }
func (x *compareExpr) children() []expr   { return append([]expr{x.first}, x.rest...) }
func (x *attributeExpr) children() []expr { return []expr{x.object} }
func (x *itemExpr) children() []expr      { return []expr{x.object, x.key} }
func (x *sliceExpr) children() []expr     { return some(x.object, x.start, x.stop, x.step) }
func (x *callExpr) children() []expr      { return append([]expr{x.callee}, x.arguments.children()...) }
func (x *testExpr) children() []expr      { return append(some(x.subject), x.arguments.children()...) }
func (x *filterExpr) children() []expr    { return append(some(x.subject), x.arguments.children()...) }
func (x *dictExpr) children() (all []expr) {
	for i := range x.keys {
		all = append(all, x.keys[i], x.values[i])
	}
	return all
}

func (a *arguments) children() []expr {
	all := append(append([]expr{}, a.values...), a.named...)
	return append(all, some(a.star, a.stars)...)
}

// some are those that are there.
func some(all ...expr) (out []expr) {
	for _, e := range all {
		if e != nil {
			out = append(out, e)
		}
	}
	return out
}

// walkExpr calls f for each name in an expression.
func walkExpr(e expr, f func(*nameExpr)) {
	if e == nil {
		return
	}
	if n, ok := e.(*nameExpr); ok {
		f(n)
	}
	for _, c := range e.children() {
		walkExpr(c, f)
	}
}

func walkExprs(all []expr, f func(*nameExpr)) {
	for _, e := range all {
		walkExpr(e, f)
	}
}

// walk calls f for each name in statements, those of inner ones too.
func walk(body []stmt, f func(*nameExpr)) {
	for _, s := range body {
		walkStmt(s, f)
	}
}

func walkStmt(s stmt, f func(*nameExpr)) {
	switch s := s.(type) {
	case *outputStmt:
		walkExprs(s.parts, f)
	case *assignStmt:
		walkExprs([]expr{s.target, s.value}, f)
	case *captureStmt:
		walkExpr(s.target, f)
		walkFilter(s.filter, f)
		walk(s.body, f)
	case *forStmt:
		walkExprs([]expr{s.target, s.iter}, f)
		walk(s.body, f)
		walk(s.otherwise, f)
		walkExpr(s.test, f)
	case *ifStmt:
		walkExpr(s.test, f)
		walk(s.body, f)
		for _, b := range s.branches {
			walkStmt(b, f)
		}
		walk(s.otherwise, f)
	case *macroStmt:
		s.walk(f)
	case *callBlockStmt:
		if s.call != nil {
			walkExpr(s.call, f)
		}
		s.walk(f)
	case *filterStmt:
		walk(s.body, f)
		walkFilter(s.filter, f)
	case *withStmt:
		walkExprs(s.targets, f)
		walkExprs(s.values, f)
		walk(s.body, f)
	}
}

func (m *macroDef) walk(f func(*nameExpr)) {
	for _, p := range m.params {
		f(p)
	}
	walkExprs(m.defaults, f)
	walk(m.body, f)
}

func walkFilter(x *filterExpr, f func(*nameExpr)) {
	if x != nil {
		walkExpr(x, f)
	}
}

// undeclared says which of names a body reads before it assigns them.
func undeclared(body []stmt, names ...string) map[string]bool {
	open, out := map[string]bool{}, map[string]bool{}
	for _, n := range names {
		open[n] = true
	}
	walk(body, func(n *nameExpr) {
		if len(out) == len(names) {
			return
		}
		if n.ctx == ctxLoad && open[n.id] {
			out[n.id] = true
		} else {
			delete(open, n.id)
		}
	})
	return out
}
