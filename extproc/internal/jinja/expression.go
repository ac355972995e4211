package jinja

import "strings"

// tupleRule is how parser.tuple reads.
type tupleRule struct {
	simple     bool   // only names and literals
	conditions bool   // whether "a if b else c" may be
	namespaces bool   // whether a.b is a target
	parens     bool   // whether it is in parentheses, where () is a tuple
	end        string // a name that ends it, too
}

// tuple parses an expression, or several with commas between.
func (p *parser) tuple(rule tupleRule) expr {
	var items []expr
	isTuple := false
	for {
		if len(items) > 0 {
			p.expect(",")
		}
		if p.tupleEnds(rule.end) {
			break
		}
		items = append(items, p.element(rule))
		if p.current().kind != "," {
			break
		}
		isTuple = true
	}
	if !isTuple {
		if len(items) > 0 {
			return items[0]
		}
		if !rule.parens {
			p.fail("%s, where an expression must be", p.current())
		}
	}
	return &tupleExpr{items: items}
}

func (p *parser) tupleEnds(end string) bool {
	switch t := p.current(); t.kind {
	case kindVariableEnd, kindBlockEnd, ")":
		return true
	default:
		return end != "" && t.isName(end)
	}
}

func (p *parser) element(rule tupleRule) expr {
	switch {
	case rule.simple:
		return p.primary(rule.namespaces)
	case rule.conditions || rule.parens:
		return p.expression()
	}
	return p.or()
}

func (p *parser) expression() expr {
	defer p.deeper()()
	e := p.or()
	for p.skipName("if") {
		c := &conditionExpr{then: e, test: p.or()}
		if p.skipName("else") {
			c.otherwise = p.expression()
		}
		e = c
	}
	return e
}

func (p *parser) or() expr {
	left := p.and()
	for p.skipName("or") {
		left = &orExpr{left, p.and()}
	}
	return left
}

func (p *parser) and() expr {
	left := p.not()
	for p.skipName("and") {
		left = &andExpr{left, p.not()}
	}
	return left
}

func (p *parser) not() expr {
	if !p.current().isName("not") {
		return p.compare()
	}
	defer p.deeper()()
	p.next()
	return &notExpr{p.not()}
}

func (p *parser) compare() expr {
	first := p.sum()
	c := &compareExpr{first: first}
	for {
		t := p.current()
		op := t.kind
		switch {
		case op == "==", op == "!=", op == "<", op == "<=", op == ">", op == ">=":
			p.next()
		case t.isName("in"):
			op = "in"
			p.next()
		case t.isName("not") && p.ahead().isName("in"):
			op = "not in"
			p.next()
			p.next()
		case len(c.ops) == 0:
			return first
		default:
			return c
		}
		c.ops = append(c.ops, string(op))
		c.rest = append(c.rest, p.sum())
	}
}

func (p *parser) sum() expr {
	left := p.concat()
	for p.current().kind == "+" || p.current().kind == "-" {
		op := p.next().kind
		left = &binaryExpr{op: string(op), left: left, right: p.concat()}
	}
	return left
}

func (p *parser) concat() expr {
	first := p.product()
	if p.current().kind != "~" {
		return first
	}
	c := &concatExpr{parts: []expr{first}}
	for p.skip("~") {
		c.parts = append(c.parts, p.product())
	}
	return c
}

func (p *parser) product() expr {
	left := p.power()
	for {
		switch op := p.current().kind; op {
		case "*", "/", "//", "%":
			p.next()
			left = &binaryExpr{op: string(op), left: left, right: p.power()}
		default:
			return left
		}
	}
}

func (p *parser) power() expr {
	left := p.unary(true)
	if p.current().kind != "**" {
		return left
	}
	// Jinja makes (a ** b) ** c of a ** b ** c.
	for p.skip("**") {
		right := p.unary(true)
		left = &binaryExpr{op: "**", left: left, right: right, folded: constant(left) && !constant(right)}
	}
	return left
}

// constant is whether an expression may be one that Jinja evaluates as it compiles.
func constant(e expr) bool {
	names := false
	walkExpr(e, func(*nameExpr) { names = true })
	return !names
}

func (p *parser) unary(filters bool) expr {
	var e expr
	switch op := p.current().kind; op {
	case "-", "+":
		end := p.deeper()
		p.next()
		e = &signExpr{op == "-", p.unary(false)}
		end()
	default:
		e = p.primary(false)
	}
	e = p.postfix(e)
	if filters {
		e = p.filters(e)
	}
	return e
}

func (p *parser) primary(namespaces bool) expr {
	switch t := p.current(); t.kind {
	case kindName:
		return p.name(namespaces)
	case kindString:
		var all strings.Builder
		for p.current().kind == kindString {
			all.WriteString(p.next().value.(string))
		}
		return &constExpr{all.String()}
	case kindInteger, kindFloat:
		return &constExpr{p.next().value}
	case "(":
		p.next()
		e := p.tuple(tupleRule{parens: true})
		p.expect(")")
		return e
	case "[":
		return p.list()
	case "{":
		return p.dict()
	default:
		p.fail("%s, where an expression must be", t)
	}
	return nil
}

func (p *parser) name(namespaces bool) expr {
	t := p.next()
	switch t.text {
	case "true", "True":
		return &constExpr{true}
	case "false", "False":
		return &constExpr{false}
	case "none", "None":
		return &constExpr{nil}
	}
	if namespaces && p.skip(".") {
		return &attributeTarget{name: &nameExpr{id: t.text}, attr: p.expect(kindName).text}
	}
	return &nameExpr{id: t.text}
}

func (p *parser) list() expr {
	p.next()
	l := &listExpr{}
	for p.current().kind != "]" {
		if len(l.items) > 0 {
			p.expect(",")
		}
		if p.current().kind == "]" {
			break
		}
		l.items = append(l.items, p.expression())
	}
	p.expect("]")
	return l
}

func (p *parser) dict() expr {
	p.next()
	d := &dictExpr{}
	for p.current().kind != "}" {
		if len(d.keys) > 0 {
			p.expect(",")
		}
		if p.current().kind == "}" {
			break
		}
		d.keys = append(d.keys, p.expression())
		p.expect(":")
		d.values = append(d.values, p.expression())
	}
	p.expect("}")
	return d
}

func (p *parser) postfix(e expr) expr {
	for {
		switch p.current().kind {
		case ".":
			e = p.attribute(e)
		case "[":
			e = p.subscript(e)
		case "(":
			e = &callExpr{callee: e, arguments: p.arguments()}
		default:
			return e
		}
	}
}

func (p *parser) attribute(e expr) expr {
	p.next()
	switch t := p.next(); t.kind {
	case kindName:
		return &attributeExpr{object: e, name: t.text}
	case kindInteger:
		return &itemExpr{object: e, key: &constExpr{t.value}}
	default:
		p.fail("%s, where a name or a number must be", t)
	}
	return nil
}

func (p *parser) subscript(e expr) expr {
	p.next()
	var keys []expr
	for p.current().kind != "]" {
		if len(keys) > 0 {
			p.expect(",")
		}
		keys = append(keys, p.subscribed())
	}
	p.expect("]")
	if len(keys) == 1 {
		if s, ok := keys[0].(*sliceExpr); ok {
			s.object = e
			s.constant = constant(s)
			return s
		}
		return &itemExpr{object: e, key: keys[0]}
	}
	for _, k := range keys {
		if _, ok := k.(*sliceExpr); ok {
			p.unsupported("several slices")
		}
	}
	return &itemExpr{object: e, key: &tupleExpr{items: keys}}
}

// subscribed parses a key or a slice.
func (p *parser) subscribed() expr {
	s := &sliceExpr{}
	if !p.skip(":") {
		e := p.expression()
		if !p.skip(":") {
			return e
		}
		s.start = e
	}
	if k := p.current().kind; k != ":" && k != "]" && k != "," {
		s.stop = p.expression()
	}
	if p.skip(":") {
		if k := p.current().kind; k != "]" && k != "," {
			s.step = p.expression()
		}
	}
	return s
}

// arguments parses those of a call, in parentheses.
func (p *parser) arguments() (a arguments) {
	p.expect("(")
	ensure := func(ok bool) {
		if !ok {
			p.fail("arguments in an order that can't be")
		}
	}
	for comma := false; p.current().kind != ")"; comma = true {
		if comma {
			p.expect(",")
			if p.current().kind == ")" {
				break
			}
		}
		switch t := p.current(); {
		case t.kind == "*":
			ensure(a.star == nil && a.stars == nil)
			p.next()
			a.star = p.expression()
		case t.kind == "**":
			ensure(a.stars == nil)
			p.next()
			a.stars = p.expression()
		case t.kind == kindName && p.ahead().kind == "=":
			ensure(a.stars == nil)
			p.keyword(&a)
		default:
			ensure(a.star == nil && a.stars == nil && len(a.names) == 0)
			a.values = append(a.values, p.expression())
		}
	}
	p.expect(")")
	return a
}

func (p *parser) keyword(a *arguments) {
	name := p.next().text
	p.next()
	for _, other := range a.names {
		if other == name {
			p.fail("argument %s twice", quoteShort(name))
		}
	}
	a.names = append(a.names, name)
	a.named = append(a.named, p.expression())
}

func (p *parser) filters(e expr) expr {
	for {
		switch t := p.current(); {
		case t.kind == "|":
			p.next()
			e = p.filter(e)
		case t.isName("is"):
			e = p.test(e)
		case t.kind == "(":
			e = &callExpr{callee: e, arguments: p.arguments()}
		default:
			return e
		}
	}
}

// dotted parses a filter's or test's name.
func (p *parser) dotted() string {
	name := p.expect(kindName).text
	for p.skip(".") {
		name += "." + p.expect(kindName).text
	}
	return name
}

func (p *parser) filter(e expr) *filterExpr {
	line := p.current().line
	f := &filterExpr{subject: e, name: p.dotted(), line: line}
	if inner, ok := e.(*filterExpr); ok && inner == nil {
		f.subject = nil // a filter of a block: it has none
	}
	if p.current().kind == "(" {
		f.arguments = p.arguments()
	}
	return f
}

func (p *parser) test(e expr) expr {
	p.next()
	negated := p.skipName("not")
	t := &testExpr{subject: e, line: p.current().line}
	t.name = p.dotted()
	switch c := p.current(); {
	case c.kind == "(":
		t.arguments = p.arguments()
	case c.isName("else", "or", "and"):
	case c.isName("is"):
		p.fail("tests in a chain")
	case c.kind == kindName, c.kind == kindString, c.kind == kindInteger, c.kind == kindFloat, c.kind == "[", c.kind == "{":
		t.arguments.values = []expr{p.postfix(p.primary(false))}
	}
	if negated {
		return &notExpr{t}
	}
	return t
}
