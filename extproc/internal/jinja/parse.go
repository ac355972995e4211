package jinja

import (
	"slices"
	"strings"
)

// maxNesting bounds how deep expressions and statements lie in each other.
// Python's own compiler refuses what is much deeper.
const maxNesting = 64

// parser makes a tree of tokens, by the grammar of Jinja's own parser.
type parser struct {
	tokens []lexeme
	at     int
	depth  int
	loops  int // that are open around the statement, for break and continue
	nested int // for loops around it
}

func (p *parser) current() *lexeme { return &p.tokens[p.at] }

func (p *parser) next() *lexeme {
	t := &p.tokens[p.at]
	if t.kind != kindEOF {
		p.at++
	}
	return t
}

func (p *parser) ahead() *lexeme { return &p.tokens[min(p.at+1, len(p.tokens)-1)] }

func (p *parser) fail(format string, args ...any) {
	throw(errSyntax, "line %d: "+format, append([]any{p.current().line}, args...)...)
}

func (p *parser) unsupported(what string) {
	throw(ErrUnsupported, "line %d: %s", p.current().line, what)
}

func (t *lexeme) isName(names ...string) bool {
	return t.kind == kindName && slices.Contains(names, t.text)
}

func (p *parser) expect(k kind) *lexeme {
	if p.current().kind != k {
		p.fail("%s, where %s must be", p.current(), k)
	}
	return p.next()
}

func (p *parser) expectName(name string) {
	if !p.current().isName(name) {
		p.fail("%s, where %q must be", p.current(), name)
	}
	p.next()
}

// String describes a token for errors.
func (t *lexeme) String() string {
	if t.text != "" {
		return string(t.kind) + " " + quoteShort(t.text)
	}
	return string(t.kind)
}

func (p *parser) skip(k kind) bool {
	if p.current().kind != k {
		return false
	}
	p.next()
	return true
}

func (p *parser) skipName(name string) bool {
	if !p.current().isName(name) {
		return false
	}
	p.next()
	return true
}

// deeper is called where the grammar recurs; its result ends the level.
func (p *parser) deeper() func() {
	p.depth++
	if p.depth > maxNesting {
		p.unsupported("more than 64 levels of nesting")
	}
	return func() { p.depth-- }
}

// body parses statements up to a tag that is one of ends, which is then current.
// Without ends it parses to the end of the template.
func (p *parser) body(ends ...string) []stmt {
	var out []stmt
	var output []expr
	flush := func() {
		if len(output) > 0 {
			out = append(out, &outputStmt{parts: output})
			output = nil
		}
	}
	for {
		switch t := p.current(); t.kind {
		case kindEOF:
			if len(ends) > 0 {
				p.fail("the end of the template, where %s must be", strings.Join(ends, " or "))
			}
			flush()
			return out
		case kindData:
			output = append(output, &textExpr{t.text})
			p.next()
		case kindVariableBegin:
			p.next()
			output = append(output, p.tuple(tupleRule{conditions: true}))
			p.expect(kindVariableEnd)
		default:
			flush()
			p.next()
			if len(ends) > 0 && p.current().isName(ends...) {
				return out
			}
			out = append(out, p.statement())
			p.expect(kindBlockEnd)
		}
	}
}

// block is the rest of a tag's end, and what follows up to one of ends.
func (p *parser) block(ends ...string) []stmt {
	defer p.deeper()()
	p.skip(":")
	p.expect(kindBlockEnd)
	return p.body(ends...)
}

// closed is a block with one end, which is skipped.
func (p *parser) closed(end string) []stmt {
	out := p.block(end)
	p.next()
	return out
}

func (p *parser) statement() stmt {
	t := p.current()
	if t.kind != kindName {
		p.fail("%s, where a tag's name must be", t)
	}
	switch t.text {
	case "for":
		return p.forLoop()
	case "if":
		p.next()
		return p.condition()
	case "set":
		return p.set()
	case "macro":
		return p.macro()
	case "call":
		return p.callBlock()
	case "filter":
		return p.filterBlock()
	case "with":
		return p.with()
	case "print":
		return p.print()
	case "generation":
		p.next()
		call := &callBlockStmt{generation: true}
		call.body = p.function("endgeneration")
		return call
	case "break", "continue":
		p.next()
		if p.loops == 0 {
			p.fail("%s outside of a loop", t.text)
		}
		return &jumpStmt{leaves: t.text == "break"}
	case "block", "extends", "include", "from", "import", "autoescape":
		p.unsupported("tag " + t.text)
	}
	p.fail("unknown tag %s", quoteShort(t.text))
	return nil
}

// mostLoops is how many loops Python lets lie in each other.
const mostLoops = 20

func (p *parser) forLoop() stmt {
	p.next()
	f := &forStmt{target: p.target(false, kindName)}
	p.expectName("in")
	f.iter = p.tuple(tupleRule{end: "recursive"})
	if p.skipName("if") {
		f.test = p.expression()
	}
	f.recursive = p.skipName("recursive")
	loops, nested := p.loops, p.nested
	if f.recursive {
		p.nested = 0 // it is a function of its own
	}
	p.nested++
	if p.nested > mostLoops {
		p.unsupported("more than 20 loops in each other")
	}
	p.loops++
	f.body = p.block("endfor", "else")
	p.loops, p.nested = loops, nested
	if f.recursive {
		p.loops = 0
	}
	if p.next().text == "else" {
		f.otherwise = p.closed("endfor")
		f.hasElse = len(f.otherwise) > 0
	}
	p.loops = loops
	return f
}

func (p *parser) condition() stmt {
	s := &ifStmt{}
	s.test = p.tuple(tupleRule{})
	s.body = p.block("elif", "else", "endif")
	for p.current().isName("elif") {
		p.next()
		branch := &ifStmt{test: p.tuple(tupleRule{})}
		branch.body = p.block("elif", "else", "endif")
		s.branches = append(s.branches, branch)
	}
	if p.next().text == "else" {
		s.otherwise = p.closed("endif")
	}
	return s
}

func (p *parser) set() stmt {
	p.next()
	target := p.target(true, "")
	if p.skip("=") {
		return &assignStmt{target: target, value: p.tuple(tupleRule{conditions: true})}
	}
	s := &captureStmt{target: target}
	for p.current().kind == "|" {
		p.next()
		s.filter = p.filter(s.filter)
	}
	s.body = p.closed("endset")
	return s
}

// signature parses a macro's parameters.
func (p *parser) signature(m *macroDef) {
	p.expect("(")
	for p.current().kind != ")" {
		if len(m.params) > 0 {
			p.expect(",")
		}
		name := p.assignable()
		if p.skip("=") {
			m.defaults = append(m.defaults, p.expression())
		} else if len(m.defaults) > 0 {
			p.fail("a parameter without a default after one with it")
		}
		for _, other := range m.params {
			if other.id == name {
				p.fail("two parameters %s", quoteShort(name))
			}
		}
		m.params = append(m.params, &nameExpr{id: name, ctx: ctxParam})
	}
	p.expect(")")
}

// assignable parses a name that may be assigned to.
func (p *parser) assignable() string {
	t := p.expect(kindName)
	if constantName(t.text) {
		p.fail("%s can't be assigned to", t.text)
	}
	return t.text
}

func constantName(name string) bool {
	switch name {
	case "true", "false", "none", "True", "False", "None":
		return true
	}
	return false
}

// function parses a body that becomes a function: loops around it are not its own.
func (p *parser) function(end string) []stmt {
	loops, nested := p.loops, p.nested
	p.loops, p.nested = 0, 0
	out := p.closed(end)
	p.loops, p.nested = loops, nested
	return out
}

func (p *parser) macro() stmt {
	p.next()
	s := &macroStmt{}
	s.name = p.assignable()
	p.signature(&s.macroDef)
	s.body = p.function("endmacro")
	return s
}

func (p *parser) callBlock() stmt {
	p.next()
	s := &callBlockStmt{}
	if p.current().kind == "(" {
		p.signature(&s.macroDef)
	}
	call, ok := p.expression().(*callExpr)
	if !ok {
		p.fail("no call, where one must be")
	}
	s.call = call
	s.body = p.function("endcall")
	return s
}

func (p *parser) filterBlock() stmt {
	p.next()
	s := &filterStmt{filter: p.filter(nil)}
	for p.current().kind == "|" {
		p.next()
		s.filter = p.filter(s.filter)
	}
	s.body = p.closed("endfilter")
	return s
}

func (p *parser) with() stmt {
	p.next()
	s := &withStmt{}
	for p.current().kind != kindBlockEnd {
		if len(s.targets) > 0 {
			p.expect(",")
		}
		target := p.target(false, "")
		setContext(target, ctxParam)
		s.targets = append(s.targets, target)
		p.expect("=")
		s.values = append(s.values, p.expression())
	}
	s.body = p.closed("endwith")
	return s
}

func (p *parser) print() stmt {
	p.next()
	s := &outputStmt{}
	for p.current().kind != kindBlockEnd {
		if len(s.parts) > 0 {
			p.expect(",")
		}
		s.parts = append(s.parts, p.expression())
	}
	return s
}

// target parses what is assigned to: a name, a tuple of them, or with namespaces
// an attribute of one. end is the kind of what ends a tuple: kindName for "in".
func (p *parser) target(namespaces bool, end kind) expr {
	rule := tupleRule{simple: true, namespaces: namespaces}
	if end == kindName {
		rule.end = "in"
	}
	t := p.tuple(rule)
	setContext(t, ctxStore)
	if !assigns(t) {
		p.fail("this can't be assigned to")
	}
	return t
}

func assigns(e expr) bool {
	switch e := e.(type) {
	case *nameExpr:
		return !constantName(e.id)
	case *attributeTarget:
		return true
	case *tupleExpr:
		return !slices.ContainsFunc(e.items, func(item expr) bool { return !assigns(item) })
	}
	return false
}

func setContext(e expr, ctx context) {
	switch e := e.(type) {
	case *nameExpr:
		e.ctx = ctx
	case *tupleExpr:
		for _, item := range e.items {
			setContext(item, ctx)
		}
	}
}
