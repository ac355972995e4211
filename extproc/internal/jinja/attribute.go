package jinja

import "strings"

type methodFunc func(e *exec, self any, a *args) any

// Methods and other attributes that Python's types have. Those with nil change
// the value: the sandbox has them undefined.
var (
	listMethods  = map[string]methodFunc{"copy": listCopy, "count": sequenceCount, "index": sequenceIndex, "append": nil, "clear": nil, "pop": nil, "reverse": nil, "insert": nil, "sort": nil, "extend": nil, "remove": nil}
	tupleMethods = map[string]methodFunc{"count": sequenceCount, "index": sequenceIndex}
	dictMethods  = map[string]methodFunc{
		"get": dictGet, "items": dictView("dict_items"), "keys": dictView("dict_keys"), "values": dictView("dict_values"), "copy": dictCopy,
		"clear": nil, "pop": nil, "popitem": nil, "setdefault": nil, "update": nil,
	}
)

// foreign are attributes that are there in Python and not here, by type.
var foreign = map[string]string{
	"str":         " encode expandtabs format_map maketrans translate ",
	"dict":        " fromkeys ",
	"bool":        " as_integer_ratio bit_count bit_length conjugate denominator from_bytes imag is_integer numerator real to_bytes ",
	"int":         " as_integer_ratio bit_count bit_length conjugate denominator from_bytes imag is_integer numerator real to_bytes ",
	"float":       " as_integer_ratio conjugate fromhex hex imag is_integer real ",
	"range":       " count index ",
	"dict_keys":   " isdisjoint mapping ",
	"dict_values": " isdisjoint mapping ",
	"dict_items":  " isdisjoint mapping ",
	"Macro":       " catch_kwargs catch_varargs caller explicit_caller ",
	"object":      " close send throw gi_frame gi_code gi_running gi_yieldfrom gi_suspended items pos sep used fromkeys mro ",
}

// own finds an attribute of a value that is not an element of it.
func (e *exec) own(v any, name string) (any, bool) {
	if strings.HasPrefix(name, "__") && strings.HasSuffix(name, "__") {
		throw(ErrUnsupported, "attribute %s", quoteShort(name))
	}
	if t := typeName(v); strings.Contains(foreign[t], " "+name+" ") {
		throw(ErrUnsupported, "attribute %s of a value of type %s", name, t)
	}
	switch v := v.(type) {
	case string:
		m, ok := stringMethods[name]
		return bound(v, name, m, ok)
	case markup:
		if _, ok := stringMethods[name]; ok {
			throw(ErrUnsupported, "attribute %s of text that is marked as safe", name)
		}
	case *list:
		m, ok := listMethods[name]
		return bound(v, name, m, ok)
	case *tuple:
		m, ok := tupleMethods[name]
		return bound(v, name, m, ok)
	case *Dict:
		m, ok := dictMethods[name]
		return bound(v, name, m, ok)
	case *namespace:
		found, ok := v.attrs.Get(name)
		if ok && strings.HasPrefix(name, "_") {
			return newUndefined(name), true
		}
		return found, ok
	case *loop:
		return v.attribute(name)
	}
	return rareAttribute(v, name)
}

func rareAttribute(v any, name string) (any, bool) {
	switch v := v.(type) {
	case *span:
		switch name {
		case "start":
			return v.start, true
		case "stop":
			return v.stop, true
		case "step":
			return v.step, true
		}
	case *macro:
		switch {
		case name == "name" && v.def.name == "":
			return nil, true
		case name == "name":
			return v.def.name, true
		case name == "arguments":
			out := &tuple{}
			for _, p := range v.def.params {
				out.items = append(out.items, p.id)
			}
			return out, true
		}
	case *cycler:
		switch name {
		case "current":
			return v.items[v.at], true
		case "next", "reset":
			return &method{self: v, name: name, call: v.move(name)}, true
		}
	}
	return nil, false
}

func (c *cycler) move(name string) func(*exec, *args) any {
	return func(e *exec, a *args) any {
		e.bind(a, name)
		if name == "reset" {
			c.at = 0
			return nil
		}
		v := c.items[c.at]
		c.at = (c.at + 1) % len(c.items)
		return v
	}
}

// bound is a method with its value.
func bound(self any, name string, m methodFunc, ok bool) (any, bool) {
	if !ok {
		return nil, false
	}
	if m == nil {
		return newUndefined(name + " changes the value: access"), true
	}
	return &method{self: self, name: name, call: func(e *exec, a *args) any { return m(e, self, a) }}, true
}

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
