package scrape

import "bytes"

// samples walks over the samples of a page whose names begin with a prefix, and those of
// started.
type samples struct {
	rest   []byte // of the page
	prefix string

	// Of the present one. line is its name without the prefix, and what follows; after is
	// what follows a name in quotes, which stands within the braces.
	line, after     []byte
	quoted, started bool
}

// mark is the order mark that some put before a text.
const mark = "\ufeff"

func samplesOf(page []byte, prefix string) samples {
	return samples{rest: bytes.TrimPrefix(page, []byte(mark)), prefix: prefix}
}

// next finds the next sample. It returns false at the end: that of the page, or the one that
// OpenMetrics says is it.
func (s *samples) next() bool {
	prefix := s.prefix
	for len(s.rest) > 0 {
		line := s.rest
		if n := bytes.IndexByte(line, '\n'); n >= 0 {
			line, s.rest = line[:n], s.rest[n+1:]
		} else {
			s.rest = nil
		}
		if len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
			line = blank(line)
		}
		if len(line) == 0 {
			continue
		}
		s.quoted, s.started = false, false
		switch c := line[0]; {
		case c == '#':
			if string(bytes.TrimRight(line, " \t\r")) == "# EOF" {
				s.rest = nil
				return false
			}
		case c == '{':
			if s.quote(line) && bytes.HasPrefix(s.line, []byte(prefix)) {
				s.line = s.line[len(prefix):]
				return true
			}
		case len(line) > len(started) && c == started[0] && ends(line[len(started)]) && string(line[:len(started)]) == started:
			s.line, s.started = line, true
			return true
		case prefix == "" || len(line) > len(prefix) && c == prefix[0] && string(line[:len(prefix)]) == prefix:
			s.line = line[len(prefix):]
			return true
		}
	}
	return false
}

// quote takes a line apart that begins with a name in quotes, as names do that have
// characters which others may not have.
func (s *samples) quote(line []byte) bool {
	line = blank(line[1:])
	text, rest, ok := quoted(line)
	if !ok {
		return false
	}
	if rest = blank(rest); len(rest) > 0 && rest[0] == ',' {
		rest = rest[1:]
	} else if len(rest) == 0 || rest[0] != '}' {
		return false
	}
	s.line, s.after, s.quoted = text, rest, true
	return true
}

// name returns how many bytes the name has; 0: it does not end.
func (s *samples) name() int {
	if s.quoted {
		return len(s.line)
	}
	for i, c := range s.line {
		if ends(c) {
			return i
		}
	}
	return 0
}

// behind returns the labels that follow a name of n bytes, and where there are none what
// follows it.
func (s *samples) behind(n int) (l labels, rest []byte) {
	if s.quoted {
		return labels{rest: s.after, open: true}, nil
	}
	if rest = blank(s.line[n:]); len(rest) > 0 && rest[0] == '{' {
		return labels{rest: rest[1:], open: true}, nil
	}
	return labels{}, rest
}

// ends is whether c ends a name.
func ends(c byte) bool { return c == '{' || c == ' ' || c == '\t' }

// blank returns b without the blanks before it.
func blank(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	return b
}

// labels walks over the labels of a sample.
type labels struct {
	rest []byte // behind the brace, or the last label
	open bool   // whether there are any

	name, text []byte // of the present one, as they are written
	bad        bool   // whether they make no sense
}

// next finds the next label. At their end rest is what stands behind them.
func (l *labels) next() bool {
	if !l.open || l.bad {
		return false
	}
	b := blank(l.rest)
	if len(b) > 0 && b[0] == '}' {
		l.rest = b[1:]
		return false
	}
	l.bad = true // as long as it makes no sense
	var ok bool
	if len(b) > 0 && b[0] == '"' {
		if l.name, b, ok = quoted(b); !ok {
			return false
		}
	} else {
		n := 0
		for n < len(b) && b[n] != '=' && b[n] != ' ' && b[n] != '\t' && b[n] != ',' && b[n] != '}' {
			n++
		}
		l.name, b = b[:n], b[n:]
	}
	if b = blank(b); len(l.name) == 0 || len(b) == 0 || b[0] != '=' {
		return false
	}
	if l.text, b, ok = quoted(blank(b[1:])); !ok {
		return false
	}
	b = blank(b)
	switch {
	case len(b) > 0 && b[0] == ',':
		b = b[1:]
	case len(b) == 0 || b[0] != '}':
		return false
	}
	l.rest, l.bad = b, false
	return true
}

// quoted returns what is in the quotes that begin b, as it is written, and what follows
// them.
func quoted(b []byte) (text, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '"' {
		return nil, nil, false
	}
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return b[1:i], b[i+1:], true
		}
	}
	return nil, nil, false
}
