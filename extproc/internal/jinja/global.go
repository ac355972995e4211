package jinja

// globals are the variables that every template has.
var globals = map[string]any{
	"range":           &builtin{"range", rangeOf},
	"dict":            &builtin{"dict", dictOf},
	"namespace":       &builtin{"namespace", func(e *exec, a *args) any { return &namespace{dictOf(e, a).(*Dict)} }},
	"cycler":          &builtin{"cycler", cyclerOf},
	"joiner":          &builtin{"joiner", joinerOf},
	"raise_exception": &builtin{"raise_exception", raise},
	"strftime_now":    &builtin{"strftime_now", strftimeNow},
	"lipsum":          &builtin{"lipsum", func(*exec, *args) any { throw(ErrUnsupported, "lipsum()"); return nil }},
}

// mostSpan is the longest range that Jinja's sandbox allows.
const mostSpan = 100_000

func rangeOf(e *exec, a *args) any {
	b := e.positional(a, "range", "start", "stop=", "step=")
	s := &span{step: 1}
	if b[1] == missing {
		s.stop = e.mustIndex(b[0])
	} else {
		s.start, s.stop = e.mustIndex(b[0]), e.mustIndex(b[1])
	}
	if b[2] != missing {
		s.step = e.mustIndex(b[2])
	}
	if s.step == 0 {
		throw(errValue, "range() with step 0")
	}
	for _, n := range []int64{s.start, s.stop, s.step} {
		if !small(n) {
			throw(ErrUnsupported, "range() of large integers")
		}
	}
	if s.length() > mostSpan {
		throw(errValue, "a range of more than %d", mostSpan)
	}
	return s
}

// dictOf is Python's dict().
func dictOf(e *exec, a *args) any {
	d := NewDict(len(a.names))
	if len(a.values) > 1 {
		throw(errType, "dict() of %d arguments", len(a.values))
	}
	if len(a.values) == 1 {
		switch from := a.values[0].(type) {
		case *Dict:
			d = from.copy()
		case *namespace:
			throw(errType, "dict() of a namespace")
		case *undefined:
			throw(errUndef, "dict() of %s", quoteShort(from.what))
		default:
			e.fill(d, from)
		}
	}
	for i, name := range a.names {
		d.Set(name, a.keywords[i])
	}
	e.spend(4 * step * d.Len())
	return d
}

// fill adds pairs to a dictionary.
func (e *exec) fill(d *Dict, pairs any) {
	for _, p := range e.collect(pairs) {
		pair := e.collect(p)
		if len(pair) != 2 {
			throw(errValue, "dict() of what is not pairs")
		}
		d.set(pair[0], pair[1])
	}
}

func cyclerOf(e *exec, a *args) any {
	e.noKeywords(a)
	if len(a.values) == 0 {
		throw(errValue, "cycler() of nothing")
	}
	return &cycler{items: a.values}
}

func joinerOf(e *exec, a *args) any {
	return &joiner{separator: given(e.bind(a, "joiner", "sep=")[0], ", ")}
}

// raise is raise_exception(): the template refuses a conversation.
func raise(e *exec, a *args) any {
	throw(ErrRaised, "%.200s", e.str(e.bind(a, "raise_exception", "message")[0]))
	return nil
}

func strftimeNow(e *exec, a *args) any {
	format, ok := text(e.bind(a, "strftime_now", "format")[0])
	if !ok {
		throw(errType, "strftime_now() of what is no text")
	}
	if read := e.options.Read; read != nil {
		*read = max(*read, readingOf(format))
	}
	return strftime(e.options.Now, format)
}
