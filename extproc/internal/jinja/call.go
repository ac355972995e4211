package jinja

import "strings"

// call calls a value.
func (e *exec) call(callee any, a *args) any {
	e.spend(step)
	switch c := callee.(type) {
	case *method:
		return c.call(e, a)
	case *builtin:
		return c.call(e, a)
	case *macro:
		return c.call(e, a)
	case *loop:
		return c.call(e, a)
	case *joiner:
		e.bind(a, "joiner")
		if c.used {
			return c.separator
		}
		c.used = true
		return ""
	case *undefined:
		throw(errUndef, "%s is called", quoteShort(c.what))
	}
	throw(errType, "a value of type %s is called", typeName(callee))
	return nil
}

// bind gives arguments to parameters as Python does. A parameter that ends in "="
// may be absent: it is missing then.
func (e *exec) bind(a *args, name string, params ...string) []any {
	if len(a.values) > len(params) {
		throw(errType, "%s takes %d arguments, not %d", name, len(params), len(a.values))
	}
	out := make([]any, len(params))
	copy(out, a.values)
	used := 0
	for i, p := range params {
		id := strings.TrimSuffix(p, "=")
		v, ok := a.named(id)
		switch {
		case ok && i < len(a.values):
			throw(errType, "%s: argument %s twice", name, id)
		case ok:
			used++
			out[i] = v
		case i < len(a.values):
		case len(id) == len(p):
			throw(errType, "%s: argument %s is missing", name, id)
		default:
			out[i] = missing
		}
	}
	if used < len(a.names) {
		throw(errType, "%s: an argument that it doesn't have", name)
	}
	return out
}

// positional is bind for functions whose parameters have no names.
func (e *exec) positional(a *args, name string, params ...string) []any {
	e.noKeywords(a)
	return e.bind(a, name, params...)
}

func (e *exec) noKeywords(a *args) {
	if len(a.names) > 0 {
		throw(errType, "argument %s by name", quoteShort(a.names[0]))
	}
}

func listCopy(e *exec, self any, a *args) any {
	e.positional(a, "copy")
	return newList(append([]any{}, self.(*list).items...))
}

func sequenceCount(e *exec, self any, a *args) any {
	b, n := e.positional(a, "count", "value"), 0
	for _, v := range *items(self) {
		if e.equal(v, b[0]) {
			n++
		}
	}
	return int64(n)
}

func sequenceIndex(e *exec, self any, a *args) any {
	b := e.positional(a, "index", "value", "start=", "stop=")
	if b[1] != missing {
		throw(ErrUnsupported, "index() with a start")
	}
	for i, v := range *items(self) {
		if e.equal(v, b[0]) {
			return int64(i)
		}
	}
	throw(errValue, "index() of what is not there")
	return nil
}

func dictGet(e *exec, self any, a *args) any {
	b := e.positional(a, "get", "key", "default=")
	if i := self.(*Dict).find(hashed(b[0])); i >= 0 {
		return self.(*Dict).values[i]
	}
	return given(b[1], nil)
}

// given is an argument, or what stands for it if it is absent.
func given(v, otherwise any) any {
	if v == missing {
		return otherwise
	}
	return v
}

func dictView(kind string) methodFunc {
	return func(e *exec, self any, a *args) any {
		e.positional(a, kind)
		return &view{self.(*Dict), kind}
	}
}

func dictCopy(e *exec, self any, a *args) any {
	e.positional(a, "copy")
	e.spend(4 * step * self.(*Dict).Len())
	return self.(*Dict).copy()
}
