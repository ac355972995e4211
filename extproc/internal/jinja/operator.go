package jinja

import (
	"math"
	"math/big"
	"slices"
	"strings"
)

// equal is Python's ==.
func (e *exec) equal(a, b any) bool {
	e.spend(step)
	if s, ok := text(a); ok {
		t, ok := text(b)
		return ok && s == t
	}
	switch a := a.(type) {
	case nil:
		return b == nil
	case *undefined:
		_, ok := b.(*undefined)
		return ok
	case bool, int64, float64, *big.Int:
		order, ok := numbers(a, b)
		return ok && order == 0
	case *list:
		b, ok := b.(*list)
		return ok && e.equalItems(a.items, b.items)
	case *tuple:
		b, ok := b.(*tuple)
		return ok && e.equalItems(a.items, b.items)
	case *Dict:
		b, ok := b.(*Dict)
		return ok && e.equalDicts(a, b)
	case *span, *view, *method, *builtin:
		if _, same := b.(*undefined); !same && typeName(a) == typeName(b) && a != b {
			throw(ErrUnsupported, "values of type %s are compared", typeName(a))
		}
	}
	return a == b
}

func (e *exec) equalItems(a, b []any) bool {
	e.deeper()
	defer e.leave()
	return slices.EqualFunc(a, b, e.equal)
}

func (e *exec) equalDicts(a, b *Dict) bool {
	if a.Len() != b.Len() {
		return false
	}
	e.deeper()
	defer e.leave()
	for i, k := range a.keys {
		j := b.find(k)
		if j < 0 || !e.equal(a.values[i], b.values[j]) {
			return false
		}
	}
	return true
}

// numbers compares two numbers; ok is false if one of them is none.
func numbers(a, b any) (order int, ok bool) {
	x, ok1 := index(a)
	y, ok2 := index(b)
	_, big1 := a.(*big.Int)
	_, big2 := b.(*big.Int)
	if ok1 && ok2 && !big1 && !big2 {
		return compareInts(x, y), true
	}
	f, ok1 := exact(a)
	g, ok2 := exact(b)
	if !ok1 || !ok2 {
		return 0, false
	}
	return f.Cmp(g), true
}

func compareInts(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// exact makes a fraction of a number. It throws for what is none of the finite.
func exact(v any) (*big.Rat, bool) {
	switch v := v.(type) {
	case bool, int64:
		n, _ := index(v)
		return new(big.Rat).SetInt64(n), true
	case *big.Int:
		return new(big.Rat).SetInt(v), true
	case float64:
		finite(v)
		return new(big.Rat).SetFloat64(v), true
	}
	return nil, false
}

// compare is Python's comparison of two values.
func (e *exec) compare(op string, a, b any) bool {
	switch op {
	case "==":
		return e.equal(a, b)
	case "!=":
		return !e.equal(a, b)
	case "in":
		return e.contains(b, a)
	case "not in":
		return !e.contains(b, a)
	case ">":
		return e.less(b, a, op)
	case "<":
		return e.less(a, b, op)
	case "<=":
		return e.lessOrEqual(a, b, op)
	}
	return e.lessOrEqual(b, a, op)
}

// less is Python's <, of values that have an order.
func (e *exec) less(a, b any, op string) bool {
	order, equal := e.order(a, b, op)
	return order < 0 && !equal
}

func (e *exec) lessOrEqual(a, b any, op string) bool {
	order, equal := e.order(a, b, op)
	return order < 0 || equal
}

func (e *exec) order(a, b any, op string) (order int, equal bool) {
	e.spend(step)
	if s, ok := text(a); ok {
		if t, ok := text(b); ok {
			order = strings.Compare(s, t)
			return order, order == 0
		}
	}
	if order, ok := numbers(a, b); ok {
		return order, order == 0
	}
	x, y := items(a), items(b)
	if x == nil || y == nil || typeName(a) != typeName(b) {
		throw(errType, "%s between values of type %s and %s", op, typeName(a), typeName(b))
	}
	e.deeper()
	defer e.leave()
	for i := range min(len(*x), len(*y)) {
		if !e.equal((*x)[i], (*y)[i]) {
			return e.order((*x)[i], (*y)[i], op)
		}
	}
	order = compareInts(int64(len(*x)), int64(len(*y)))
	return order, order == 0
}

// items are those of a list or a tuple.
func items(v any) *[]any {
	switch v := v.(type) {
	case *list:
		return &v.items
	case *tuple:
		return &v.items
	}
	return nil
}

// contains is Python's "item in v".
func (e *exec) contains(v, item any) bool {
	switch v := v.(type) {
	case *Dict:
		return v.find(hashed(item)) >= 0
	case *view:
		if v.kind == "dict_keys" {
			return v.of.find(hashed(item)) >= 0
		}
	}
	if s, ok := text(v); ok {
		part, ok := text(item)
		if !ok {
			throw(errType, "'in' a text of a value of type %s", typeName(item))
		}
		e.spend(len(s) / 8)
		return strings.Contains(s, part)
	}
	next := e.iter(v)
	for {
		found, ok := next()
		if !ok {
			return false
		}
		if e.equal(found, item) {
			return true
		}
	}
}

// hashed throws for what can't be a key.
func hashed(v any) any {
	hash(v)
	return v
}

// finite refuses floats that Jinja's own compiler treats in more than one way.
func finite(f float64) float64 {
	if math.IsInf(f, 0) || math.IsNaN(f) {
		throw(ErrUnsupported, "a number beyond all bounds")
	}
	return f
}

func (e *exec) sign(minus bool, v any) any {
	switch v := v.(type) {
	case bool, int64, *big.Int:
		n := integer(v)
		if minus {
			return shrink(new(big.Int).Neg(n))
		}
		return shrink(n)
	case float64:
		if minus {
			return -v
		}
		return v
	case *undefined:
		throw(errUndef, "a sign of %s", quoteShort(v.what))
	}
	throw(errType, "a sign of a value of type %s", typeName(v))
	return nil
}

// integer makes a big integer of one, nil of what is none.
func integer(v any) *big.Int {
	switch v := v.(type) {
	case bool, int64:
		n, _ := index(v)
		return big.NewInt(n)
	case *big.Int:
		return v
	}
	return nil
}

// binary is Python's arithmetic.
func (e *exec) binary(op string, a, b any) any {
	if x, ok := a.(int64); ok {
		if y, ok := b.(int64); ok && small(x) && small(y) && (op == "+" || op == "-") {
			return x + pickInt(op == "+", y, -y)
		}
	}
	for _, v := range []any{a, b} {
		if u, ok := v.(*undefined); ok {
			if s, isText := text(a); isText && op == "%" {
				return e.percent(s, b)
			}
			throw(errUndef, "%s of %s", op, quoteShort(u.what))
		}
	}
	_, float1 := a.(float64)
	_, float2 := b.(float64)
	x, y := integer(a), integer(b)
	switch {
	case x != nil && y != nil:
		return e.integers(op, a, b, x, y)
	case (float1 || x != nil) && (float2 || y != nil):
		return floats(op, float(a), float(b))
	}
	return e.sequences(op, a, b)
}

// small is whether sums of integers can't overflow.
func small(n int64) bool { return n > -1<<60 && n < 1<<60 }

func pickInt(c bool, yes, no int64) int64 {
	if c {
		return yes
	}
	return no
}

// float makes a float of a number.
func float(v any) float64 {
	switch v := v.(type) {
	case float64:
		return v
	case int64:
		return float64(v)
	}
	f, _ := new(big.Float).SetInt(integer(v)).Float64()
	if math.IsInf(f, 0) {
		throw(errValue, "an integer too large for a float")
	}
	return f
}

// integers is arithmetic of integers, by int64 where it fits.
func (e *exec) integers(op string, a, b any, x, y *big.Int) any {
	e.spend(x.BitLen()/8 + y.BitLen()/8)
	if y.Sign() == 0 && (op == "/" || op == "//" || op == "%") {
		throw(errValue, "%s by zero", op)
	}
	z := new(big.Int)
	switch op {
	case "+":
		z.Add(x, y)
	case "-":
		z.Sub(x, y)
	case "*":
		z.Mul(x, y)
	case "/":
		if x.Sign() == 0 && y.Sign() < 0 {
			return math.Copysign(0, -1)
		}
		f, _ := new(big.Rat).SetFrac(x, y).Float64()
		if math.IsInf(f, 0) {
			throw(errValue, "the quotient of two integers is too large")
		}
		return f
	case "//", "%":
		m := new(big.Int)
		z.DivMod(x, y, m) // its remainder is never negative, Python's has the divisor's sign
		if y.Sign() < 0 && m.Sign() != 0 {
			z.Sub(z, big.NewInt(1))
			m.Add(m, y)
		}
		if op == "%" {
			z = m
		}
	case "**":
		return power(a, b, x, y)
	}
	return bounded(z)
}

// maxBits is that of maxDigits.
const maxBits = maxDigits * 10 / 3

func bounded(z *big.Int) any {
	if z.BitLen() > maxBits {
		throw(ErrUnsupported, "an integer of more than %d digits", maxDigits)
	}
	return shrink(z)
}

func power(a, b any, x, y *big.Int) any {
	if y.Sign() < 0 {
		throw(ErrUnsupported, "a power with a negative exponent")
	}
	if !y.IsInt64() || y.Int64() > maxBits && x.BitLen() > 1 || int64(x.BitLen()-1)*y.Int64() > maxBits {
		throw(ErrUnsupported, "an integer of more than %d digits", maxDigits)
	}
	return bounded(new(big.Int).Exp(x, y, nil))
}

func floats(op string, a, b float64) any {
	if b == 0 && (op == "/" || op == "//" || op == "%") {
		throw(errValue, "%s by zero", op)
	}
	switch op {
	case "+":
		return finite(a + b)
	case "-":
		return finite(a - b)
	case "*":
		return finite(a * b)
	case "/":
		return finite(a / b)
	case "**":
		throw(ErrUnsupported, "a power of a float")
	}
	// As CPython's float_divmod.
	mod := math.Mod(a, b)
	div := (a - mod) / b
	if mod != 0 && (b < 0) != (mod < 0) {
		mod += b
		div--
	} else if mod == 0 {
		mod = math.Copysign(0, b)
	}
	if op == "%" {
		return finite(mod)
	}
	whole := math.Copysign(0, a/b)
	if div != 0 {
		whole = math.Floor(div)
		if div-whole > 0.5 {
			whole++
		}
	}
	return finite(whole)
}

// sequences is + and * of texts, lists and tuples, and % of texts.
func (e *exec) sequences(op string, a, b any) any {
	x, y := items(a), items(b)
	s, isText := text(a)
	switch {
	case op == "%" && isText:
		return e.percent(s, b)
	case op == "*":
		return e.repeat(a, b)
	case op != "+":
	case x != nil && y != nil && typeName(a) == typeName(b):
		e.spend(step * (len(*x) + len(*y)))
		return sameAs(a, slices.Concat(*x, *y))
	case isText:
		if t, ok := text(b); ok {
			return e.added(a, b, s, t)
		}
	}
	throw(errType, "%s of values of type %s and %s", op, typeName(a), typeName(b))
	return nil
}

// added is two texts in one. If one of them is marked as safe, the other is escaped.
func (e *exec) added(a, b any, s, t string) any {
	e.spend(len(s) + len(t))
	_, safe1 := a.(markup)
	_, safe2 := b.(markup)
	switch {
	case safe1 && safe2:
		return markup(s + t)
	case safe1:
		return markup(s + escaper.Replace(t))
	case safe2:
		return markup(escaper.Replace(s) + t)
	}
	return s + t
}

func sameAs(a any, items []any) any {
	if _, ok := a.(*tuple); ok {
		return &tuple{items}
	}
	return &list{items}
}

func (e *exec) repeat(a, b any) any {
	n, ok := index(b)
	if !ok {
		if n, ok = index(a); ok {
			a = b
		}
	}
	x := items(a)
	s, isText := text(a)
	if !ok || !isText && x == nil {
		throw(errType, "* of values of type %s and %s", typeName(a), typeName(b))
	}
	if _, m := a.(markup); m {
		throw(ErrUnsupported, "text that is marked as safe is repeated")
	}
	n = max(n, 0)
	size := int64(len(s))
	if x != nil {
		size = step * int64(len(*x))
	}
	if size == 0 {
		n = min(n, 1)
	}
	if n > maxSpent || n*size > maxSpent {
		throw(ErrLimit, "a value is repeated %d times", n)
	}
	e.spend(int(n * size))
	if isText {
		return strings.Repeat(s, int(n))
	}
	return sameAs(a, slices.Repeat(*x, int(n)))
}

func negative(v any) bool {
	order, ok := numbers(v, int64(0))
	return ok && order < 0
}
