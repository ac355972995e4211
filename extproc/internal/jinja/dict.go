package jinja

import (
	"iter"
	"math"
	"math/big"
)

// Dict is a dictionary as Python has them: its keys are in the order in which
// they were added.
type Dict struct {
	keys, values []any
	index        map[any]int // by hash; nil while there are few keys
}

// few is how many keys are searched one by one.
const few = 8

// NewDict makes a dictionary with room for n keys.
func NewDict(n int) *Dict {
	return &Dict{keys: make([]any, 0, n), values: make([]any, 0, n)}
}

// Len returns how many keys there are.
func (d *Dict) Len() int { return len(d.keys) }

// Set sets the value of a key that is text. A key that is there keeps its place.
func (d *Dict) Set(key string, value any) { d.set(key, value) }

// Get returns the value of a key that is text.
func (d *Dict) Get(key string) (any, bool) {
	if i := d.find(key); i >= 0 {
		return d.values[i], true
	}
	return nil, false
}

// All returns the keys that are text, and their values, in order.
func (d *Dict) All() iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		for i, k := range d.keys {
			if s, ok := k.(string); ok && !yield(s, d.values[i]) {
				return
			}
		}
	}
}

// Update sets the keys of another dictionary.
func (d *Dict) Update(other *Dict) {
	for i, k := range other.keys {
		d.set(k, other.values[i])
	}
}

func (d *Dict) set(key, value any) {
	if i := d.find(key); i >= 0 {
		d.values[i] = value
		return
	}
	d.keys, d.values = append(d.keys, key), append(d.values, value)
	switch {
	case d.index != nil:
		d.index[hash(key)] = len(d.keys) - 1
	case len(d.keys) > few:
		d.index = make(map[any]int, 2*few)
		for i, k := range d.keys {
			d.index[hash(k)] = i
		}
	}
}

// find returns where a key is, -1 if it isn't there.
func (d *Dict) find(key any) int {
	if d.index != nil {
		if i, ok := d.index[hash(key)]; ok {
			return i
		}
		return -1
	}
	if s, ok := key.(string); ok {
		for i, k := range d.keys {
			if t, ok := k.(string); ok && t == s {
				return i
			}
		}
		return -1
	}
	want := hash(key)
	for i, k := range d.keys {
		if hash(k) == want {
			return i
		}
	}
	return -1
}

func (d *Dict) copy() *Dict {
	out := NewDict(len(d.keys))
	for i := range d.keys {
		out.set(d.keys[i], d.values[i])
	}
	return out
}

type (
	tupleHash string
	noneHash  struct{}
	bigHash   string
)

// hash is a key of Go's maps that is equal for what Python finds equal. It throws
// for what can't be a key.
func hash(v any) any {
	switch v := v.(type) {
	case nil:
		return noneHash{}
	case bool:
		if v {
			return int64(1)
		}
		return int64(0)
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<62 {
			return int64(v)
		}
		return v
	case markup:
		return string(v)
	case *big.Int:
		return bigHash(v.String())
	case *tuple:
		w := &writer{e: &exec{}}
		for _, item := range v.items {
			h := hash(item)
			if _, ok := h.(*undefined); ok {
				throw(ErrUnsupported, "a key with an undefined value")
			}
			w.repr(fromHash(h), 0)
			w.out.WriteByte(',')
		}
		return tupleHash(w.out.String())
	case *list, *Dict:
		throw(errType, "unhashable type: %s", typeName(v))
	case *view:
		if v.kind != "dict_values" { // that one alone is compared by which it is
			throw(errType, "unhashable type: %s", typeName(v))
		}
	case *undefined:
		return (*undefined)(nil)
	}
	return v
}

// fromHash makes what writer writes of a hash.
func fromHash(h any) any {
	switch h := h.(type) {
	case noneHash:
		return nil
	case tupleHash:
		return "(" + string(h)
	case bigHash:
		return string(h)
	}
	return h
}
