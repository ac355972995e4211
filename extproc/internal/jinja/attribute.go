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
