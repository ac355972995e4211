package jinja

// loop is what a loop's body sees as loop. It reads one element ahead where it
// must, which shows where the elements are made as they are read.
type loop struct {
	e     *exec
	over  any
	next  func() (any, bool)
	again func(over any, depth int) string // nil: not recursive
	index int                              // from 0
	depth int                              // from 0

	size    int // 1 + the number of elements; 0: not known
	ahead   any
	peeked  bool // whether ahead is the next element, or that there is none
	ended   bool // whether there is none
	current any
	before  any
	last    []any // what changed() was called with
	asked   bool  // whether it was
}

func (l *loop) advance() (any, bool) {
	var v any
	ok := true
	switch {
	case l.peeked && !l.ended:
		v = l.ahead
		l.peeked, l.ahead = false, nil
	default:
		v, ok = l.next()
	}
	if !ok {
		return nil, false
	}
	l.index++
	l.before, l.current = l.current, v
	return v, true
}

func (l *loop) peek() (any, bool) {
	if !l.peeked || l.ended {
		v, ok := l.next()
		l.ahead, l.peeked, l.ended = v, true, !ok
	}
	return l.ahead, !l.ended
}

func (l *loop) length() int {
	if l.size == 0 {
		l.size = 1 + l.count()
	}
	return l.size - 1
}

func (l *loop) count() int {
	if n, ok := l.e.length(l.over); ok {
		return n
	}
	var rest []any
	for {
		v, ok := l.next()
		if !ok {
			break
		}
		l.e.spend(step)
		rest = append(rest, v)
	}
	l.next = each(rest)
	n := len(rest) + l.index + 1
	if l.peeked && !l.ended {
		n++
	}
	return n
}

// each iterates over a slice.
func each(items []any) func() (any, bool) {
	i := 0
	return func() (any, bool) {
		if i >= len(items) {
			return nil, false
		}
		i++
		return items[i-1], true
	}
}

// attribute is one of a loop's; ok is false if there is none of that name.
func (l *loop) attribute(name string) (v any, ok bool) {
	switch name {
	case "index":
		return int64(l.index + 1), true
	case "index0":
		return int64(l.index), true
	case "revindex":
		return int64(l.length() - l.index), true
	case "revindex0":
		return int64(l.length() - l.index - 1), true
	case "first":
		return l.index == 0, true
	case "last":
		_, more := l.peek()
		return !more, true
	case "length":
		return int64(l.length()), true
	case "depth":
		return int64(l.depth + 1), true
	case "depth0":
		return int64(l.depth), true
	case "previtem":
		if l.index == 0 {
			return newUndefined("the item before the first"), true
		}
		return l.before, true
	case "nextitem":
		if v, more := l.peek(); more {
			return v, true
		}
		return newUndefined("the item after the last"), true
	case "cycle":
		return &method{self: l, name: name, call: l.cycle}, true
	case "changed":
		return &method{self: l, name: name, call: l.changed}, true
	}
	return nil, false
}
