package token

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"math/bits"
	"unicode/utf8"
)

// Limits of what a model file may hold. They bound memory, and let a merge rule
// be packed into one word (see merges).
const (
	maxVocab  = 1 << 20
	maxMerges = 1<<24 - 2
)

// names is a set of strings numbered from 0, in one piece of memory.
type names struct {
	seed  maphash.Seed
	text  []byte
	ends  []uint32 // by number: where its text ends
	slots []uint32 // open addressing: number + 1, or 0
	dups  int      // how many numbers repeat an earlier text
}

// newNames makes room for n strings.
func newNames(n int) *names {
	return &names{seed: maphash.MakeSeed(), slots: make([]uint32, 1<<bits.Len(uint(2*n+8)))}
}

func (s *names) len() int { return len(s.ends) }

func (s *names) name(i int) []byte {
	start := uint32(0)
	if i > 0 {
		start = s.ends[i-1]
	}
	return s.text[start:s.ends[i]]
}

// add gives b the next number, even if b is there already under another.
func (s *names) add(b []byte) int {
	n := s.len()
	s.text = append(s.text, b...)
	s.ends = append(s.ends, uint32(len(s.text)))
	if 2*n > len(s.slots) {
		s.grow()
	}
	s.place(n)
	return n
}

func (s *names) place(n int) {
	at, found := s.slot(s.name(n))
	if found {
		s.dups++ // the first keeps the text
		return
	}
	s.slots[at] = uint32(n) + 1
}

func (s *names) grow() {
	s.slots = make([]uint32, 2*len(s.slots))
	s.dups = 0
	for i := range s.len() - 1 {
		s.place(i)
	}
}

func (s *names) slot(b []byte) (at int, found bool) {
	mask := len(s.slots) - 1
	for at = int(maphash.Bytes(s.seed, b)) & mask; ; at = (at + 1) & mask {
		if n := s.slots[at]; n == 0 {
			return at, false
		} else if bytes.Equal(s.name(int(n-1)), b) {
			return at, true
		}
	}
}

// find returns the number of b, -1 if it has none.
func (s *names) find(b []byte) int {
	at, ok := s.slot(b)
	if !ok {
		return -1
	}
	return int(s.slots[at] - 1)
}

// encoded is the alphabet in which byte-level vocabularies write bytes: GPT-2's
// mapping of each byte to a printable character.
var encoded = func() (out [256][]byte) {
	next := rune(256)
	for b := range 256 {
		r := rune(b)
		if r < '!' || r > '~' && r < 0xa1 || r == 0xad {
			r = next
			next++
		}
		out[b] = utf8.AppendRune(nil, r)
	}
	return out
}()

// decoded is the inverse of encoded, by character; -1 where there is none.
var decoded = func() (out [512]int16) {
	for i := range out {
		out[i] = -1
	}
	for b, e := range encoded {
		r, _ := utf8.DecodeRune(e)
		out[r] = int16(b)
	}
	return out
}()

// decode appends the bytes that a token of the byte-level alphabet stands for.
// ok is false if it has other characters.
func decode(dst, token []byte) (_ []byte, ok bool) {
	for len(token) > 0 {
		r, n := utf8.DecodeRune(token)
		if int(r) >= len(decoded) || decoded[r] < 0 {
			return dst, false
		}
		dst = append(dst, byte(decoded[r]))
		token = token[n:]
	}
	return dst, true
}

// vocabulary is what a model file says about byte-level BPE.
type vocabulary struct {
	tokens *names   // in the byte-level alphabet, by token
	ids    []uint32 // by token; nil: as they are numbered
	merges [][]byte // "left right", best first
	// wholeWords says whether a word that is a token is never cut further
	// (Hugging Face calls that ignore_merges).
	wholeWords bool
}

// newBPE builds the tables for merging. It consumes v.
func newBPE(v *vocabulary, split splitter) (*bpe, error) {
	if v.tokens.len() > maxVocab {
		return nil, fmt.Errorf("vocabulary of %d tokens; at most %d", v.tokens.len(), maxVocab)
	}
	if len(v.merges) > maxMerges {
		return nil, fmt.Errorf("%d merge rules; at most %d", len(v.merges), maxMerges)
	}
	m := &bpe{split: split, cache: newCache(), pairs: newPairs(len(v.merges))}
	if v.wholeWords {
		m.words = words(v.tokens)
	}
	real := v.tokens.len()
	m.tokens, m.real, m.numbers = v.tokens, real, v.ids
	for b, e := range encoded {
		m.bytes[b] = symbol(v.tokens, e)
	}
	if err := m.addMerges(v); err != nil {
		return nil, err
	}
	m.weigh(v.tokens, real)
	m.first = m.firstRanks()
	m.findSeams()
	for b := range m.single {
		m.single[b] = uint8(m.merge([]byte{byte(b)}))
	}
	_, m.cased = split.(o200k)
	m.lone = loneOf(split)
	return m, nil
}

// findSeams takes in what the merge rules make.
func (m *bpe) findSeams() {
	var buf []byte
	for _, made := range m.results {
		raw, _ := decode(buf[:0], m.tokens.name(int(made)))
		m.seams.add(raw)
		buf = raw
	}
}

// firstRanks are the ranks of pairs of bytes, which all merging begins with.
func (m *bpe) firstRanks() []uint32 {
	ranks := make([]uint32, 1<<16)
	for a := range m.bytes {
		for b := range m.bytes {
			ranks[a<<8|b] = m.pairs.rank(m.bytes[a], m.bytes[b])
		}
	}
	return ranks
}

func symbol(tokens *names, text []byte) uint32 {
	n := tokens.find(text)
	if n < 0 {
		n = tokens.add(text) // not a token, yet merge rules may go through it
	}
	return uint32(n)
}

func (m *bpe) addMerges(v *vocabulary) error {
	var joined []byte
	for rank, rule := range v.merges {
		left, right, ok := cutRule(rule)
		if !ok {
			return fmt.Errorf("merge rule %d: %q is not a pair", rank, rule)
		}
		joined = append(append(joined[:0], left...), right...)
		l, r := symbol(v.tokens, left), symbol(v.tokens, right)
		m.results = append(m.results, symbol(v.tokens, joined))
		if v.tokens.len() > maxVocab {
			return fmt.Errorf("merge rules make more than %d symbols", maxVocab)
		}
		m.pairs.put(l, r, uint32(rank))
	}
	return nil
}

// cutRule splits "left right". A left side may begin with a space.
func cutRule(rule []byte) (left, right []byte, ok bool) {
	if len(rule) < 3 {
		return nil, nil, false
	}
	i := bytes.IndexByte(rule[1:], ' ')
	if i < 0 || i+2 >= len(rule) {
		return nil, nil, false
	}
	return rule[:i+1], rule[i+2:], true
}

// weigh says how many tokens each symbol is: one, or for a symbol that is no
// token the bytes in it that are. It stays nil where all are tokens.
func (m *bpe) weigh(tokens *names, real int) {
	if tokens.len() == real {
		return
	}
	m.weights = make([]uint8, tokens.len())
	for i := range m.weights {
		m.weights[i] = 1
		if i >= real {
			m.weights[i] = m.byteTokens(tokens.name(i), real)
		}
	}
}

func (m *bpe) byteTokens(name []byte, real int) (n uint8) {
	raw, _ := decode(nil, name)
	for _, b := range raw {
		if int(m.bytes[b]) < real && n < 255 {
			n++
		}
	}
	return n
}

// words are the tokens as plain bytes.
func words(tokens *names) *names {
	out := newNames(tokens.len())
	var buf []byte
	for i := range tokens.len() {
		if raw, ok := decode(buf[:0], tokens.name(i)); ok && len(raw) > 0 {
			out.add(raw)
			buf = raw
		}
	}
	return out
}

// pairs finds the rank of a merge rule: open addressing, one word a rule, which
// holds left (20 bits), right (20 bits) and rank + 1 (24 bits).
type pairs struct {
	slots []uint64
	shift uint8
	// lefts and rights are the symbols that any rule has there, a bit each: most
	// lookups of rare text, such as Chinese, end here.
	lefts, rights []uint64
}

// setBit sets the bit of a symbol.
func setBit(set []uint64, symbol uint32) []uint64 {
	if n := int(symbol>>6) + 1; n > len(set) {
		set = append(set, make([]uint64, n-len(set))...)
	}
	set[symbol>>6] |= 1 << (symbol & 63)
	return set
}

func hasBit(set []uint64, symbol uint32) bool {
	at := int(symbol >> 6)
	return at < len(set) && set[at]>>(symbol&63)&1 != 0
}

func newPairs(n int) pairs {
	log := bits.Len(uint(2*n + 8))
	return pairs{slots: make([]uint64, 1<<log), shift: uint8(64 - log)}
}

func (p *pairs) put(left, right, rank uint32) {
	p.lefts, p.rights = setBit(p.lefts, left), setBit(p.rights, right)
	key := uint64(left)<<20 | uint64(right)
	for at := p.home(key); ; at = (at + 1) & (len(p.slots) - 1) {
		if p.slots[at] == 0 {
			p.slots[at] = key<<24 | uint64(rank+1)
			return
		}
		if p.slots[at]>>24 == key {
			return // the first of equal rules counts
		}
	}
}

func (p *pairs) home(key uint64) int {
	return int(key * 0x9e3779b97f4a7c15 >> (p.shift & 63))
}

// noRank is worse than every rank.
const noRank = ^uint32(0)

func (p *pairs) rank(left, right uint32) uint32 {
	if !hasBit(p.lefts, left) || !hasBit(p.rights, right) {
		return noRank
	}
	key := uint64(left)<<20 | uint64(right)
	for at := p.home(key); ; at = (at + 1) & (len(p.slots) - 1) {
		v := p.slots[at]
		if v == 0 {
			return noRank
		}
		if v>>24 == key {
			return uint32(v&(1<<24-1)) - 1
		}
	}
}
