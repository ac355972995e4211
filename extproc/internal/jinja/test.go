package jinja

import "math/big"

type test func(e *exec, v any, a *args) any

// tests are Jinja's.
var tests = map[string]test{
	"defined":   is(func(_ *exec, v any) bool { return !isUndefined(v) }),
	"undefined": is(func(_ *exec, v any) bool { return isUndefined(v) }),
	"none":      is(func(_ *exec, v any) bool { return v == nil }),
	"boolean":   is(func(_ *exec, v any) bool { _, ok := v.(bool); return ok }),
	"true":      is(func(_ *exec, v any) bool { return v == true }),
	"false":     is(func(_ *exec, v any) bool { return v == false }),
	"integer":   is(func(_ *exec, v any) bool { return isInteger(v) }),
	"float":     is(func(_ *exec, v any) bool { _, ok := v.(float64); return ok }),
	"number":    is(isNumber),
	"string":    is(func(_ *exec, v any) bool { _, ok := text(v); return ok }),
	"mapping":   is(func(_ *exec, v any) bool { _, ok := v.(*Dict); return ok }),
	"sequence":  is(isSequence),
	"iterable":  is(func(e *exec, v any) bool { _, l := v.(*loop); return l || e.tryIter(v) != nil }),
	"callable":  is(isCallable),
	"escaped":   is(func(_ *exec, v any) bool { _, ok := v.(markup); return ok }),
	"lower":     is(func(e *exec, v any) bool { return cased(e.str(v), isLower, isUpper) }),
	"upper":     is(func(e *exec, v any) bool { return cased(e.str(v), isUpper, isLower) }),
	"odd":       is(func(e *exec, v any) bool { return e.equal(e.binary("%", v, int64(2)), int64(1)) }),
	"even":      is(func(e *exec, v any) bool { return e.equal(e.binary("%", v, int64(2)), int64(0)) }),
	"divisibleby": func(e *exec, v any, a *args) any {
		return e.equal(e.binary("%", v, e.bind(a, "divisibleby", "num")[0]), int64(0))
	},
	"sameas": func(e *exec, v any, a *args) any { return same(v, e.bind(a, "sameas", "other")[0]) },
	"in":     func(e *exec, v any, a *args) any { return e.contains(e.bind(a, "in", "seq")[0], v) },
	"filter": func(e *exec, v any, a *args) any { e.bind(a, "filter"); return filters[name(v)] != nil },
	"test":   func(e *exec, v any, a *args) any { e.bind(a, "test"); return e.tests[name(v)] != nil },
	"==":     comparing("=="), "eq": comparing("=="), "equalto": comparing("=="),
	"!=": comparing("!="), "ne": comparing("!="),
	">": comparing(">"), "gt": comparing(">"), "greaterthan": comparing(">"),
	">=": comparing(">="), "ge": comparing(">="),
	"<": comparing("<"), "lt": comparing("<"), "lessthan": comparing("<"),
	"<=": comparing("<="), "le": comparing("<="),
}

func is(f func(*exec, any) bool) test {
	return func(e *exec, v any, a *args) any {
		e.bind(a, "the test")
		return f(e, v)
	}
}

func comparing(op string) test {
	return func(e *exec, v any, a *args) any { return e.compare(op, v, e.positional(a, op, "other")[0]) }
}

func isUndefined(v any) bool {
	_, ok := v.(*undefined)
	return ok
}

func isInteger(v any) bool {
	switch v.(type) {
	case int64, *big.Int:
		return true
	}
	return false
}

func isNumber(_ *exec, v any) bool {
	switch v.(type) {
	case bool, int64, float64, *big.Int:
		return true
	}
	return false
}

// isSequence is whether a value has a length and elements by key.
func isSequence(_ *exec, v any) bool {
	switch v.(type) {
	case string, markup, *list, *tuple, *Dict, *span:
		return true
	case *undefined:
		return true
	}
	return false
}

func isCallable(_ *exec, v any) bool {
	switch v.(type) {
	case *macro, *method, *builtin, *loop, *joiner, *undefined:
		return true
	}
	return false
}

// same is Python's "is", where it doesn't depend on what Python keeps in one place.
func same(a, b any) bool {
	switch a := a.(type) {
	case nil, bool:
		return a == b
	case string, markup, int64, float64, *big.Int, *tuple:
		if typeName(a) == typeName(b) {
			throw(ErrUnsupported, "sameas of values of type %s", typeName(a))
		}
		return false
	case *undefined:
		if isUndefined(b) {
			throw(ErrUnsupported, "sameas of what is undefined")
		}
		return false
	}
	return a == b
}

func name(v any) string {
	s, ok := text(v)
	if !ok {
		throw(ErrUnsupported, "the name of a filter or test of type %s", typeName(v))
	}
	return s
}
