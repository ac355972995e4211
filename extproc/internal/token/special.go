package token

import (
	"bytes"
	"cmp"
	"slices"
)

// special is a token that stands for itself wherever its text occurs.
type special struct {
	text []byte
	id   uint32
	// control says that only templates and completions' prompts are searched
	// for it. The others (user-defined tokens) are found in plain text too.
	control bool
	// left and right say whether the token eats the white space beside it.
	left, right bool
}

// specials finds special tokens in text.
type specials struct {
	all []special // longest first: that is the order in which they are looked for
	// byFirst lists, by first byte, the tokens that begin with it.
	byFirst [256][]uint16
	firsts  []byte // the first bytes that occur
	// control and user say whether there is any of the kind.
	control, user bool
}

// maxSpecials is the most special tokens a model may have.
const maxSpecials = 1 << 16

func newSpecials(all []special) *specials {
	all = slices.DeleteFunc(all, func(s special) bool { return len(s.text) == 0 })
	slices.SortStableFunc(all, func(a, b special) int { return cmp.Compare(len(b.text), len(a.text)) })
	s := &specials{all: all}
	for i, t := range all {
		first := t.text[0]
		if s.byFirst[first] == nil {
			s.firsts = append(s.firsts, first)
		}
		s.byFirst[first] = append(s.byFirst[first], uint16(i))
		s.control = s.control || t.control
		s.user = s.user || !t.control
	}
	return s
}

// hit is one occurrence of a special token.
type hit struct {
	token      uint16
	start, end int
}

// find returns the occurrences in text, in the text's order and without
// overlap. A longer token wins over a shorter one, then the earlier occurrence.
func (s *specials) find(text []byte, control bool) []hit {
	if !s.user && !(control && s.control) {
		return nil
	}
	hits := s.candidates(text, control)
	slices.SortFunc(hits, func(a, b hit) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.token, b.token))
	})
	return untangle(hits)
}

// untangle resolves overlaps among hits in the text's order, each knot of
// overlapping ones by itself.
func untangle(hits []hit) []hit {
	out := hits[:0]
	for len(hits) > 0 {
		n, end := 1, hits[0].end
		for n < len(hits) && hits[n].start < end {
			end = max(end, hits[n].end)
			n++
		}
		knot := hits[:n]
		if n > 1 {
			knot = disjoint(slices.Clone(knot))
		}
		out = append(out, knot...)
		hits = hits[n:]
	}
	return out
}

// candidates returns every occurrence, also those that overlap.
func (s *specials) candidates(text []byte, control bool) (hits []hit) {
	for _, first := range s.firsts {
		for at := 0; ; at++ {
			i := bytes.IndexByte(text[at:], first)
			if i < 0 {
				break
			}
			at += i
			for _, t := range s.byFirst[first] {
				if (control || !s.all[t].control) && bytes.HasPrefix(text[at:], s.all[t].text) {
					hits = append(hits, hit{t, at, at + len(s.all[t].text)})
				}
			}
		}
	}
	return hits
}

// disjoint keeps of overlapping hits the one of the longest token, then the
// earliest, and so on. The result is in the text's order.
func disjoint(hits []hit) []hit {
	slices.SortFunc(hits, func(a, b hit) int {
		return cmp.Or(cmp.Compare(a.token, b.token), cmp.Compare(a.start, b.start))
	})
	var taken []hit // in the text's order
	for _, h := range hits {
		i, _ := slices.BinarySearchFunc(taken, h, func(a, b hit) int { return cmp.Compare(a.start, b.start) })
		if i > 0 && taken[i-1].end > h.start || i < len(taken) && taken[i].start < h.end {
			continue
		}
		taken = slices.Insert(taken, i, h)
	}
	return taken
}

// stands says whether a token is found wherever its text is, whatever is around
// it: no other token overlaps with it, and it eats no white space.
func (s *specials) stands(token uint16) bool {
	me := &s.all[token]
	if me.left || me.right {
		return false
	}
	for i := range s.all {
		other := s.all[i].text
		if uint16(i) != token && bytes.Contains(other, me.text) {
			return false
		}
		for n := 1; n < min(len(me.text), len(other)); n++ {
			if bytes.HasSuffix(other, me.text[:n]) || bytes.HasPrefix(other, me.text[len(me.text)-n:]) {
				return false
			}
		}
	}
	return true
}

// blanks is what isspace of C's locale holds for white space.
const blanks = " \t\n\v\f\r"

// trimLeft returns the text before the token without what the token eats of it.
func (s *special) trimLeft(text []byte) []byte {
	if s.left {
		return bytes.TrimRight(text, blanks)
	}
	return text
}

// eats returns how many bytes of the text after the token it eats.
func (s *special) eats(text []byte) int {
	if s.right {
		return len(text) - len(bytes.TrimLeft(text, blanks))
	}
	return 0
}
