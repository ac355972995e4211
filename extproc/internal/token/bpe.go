package token

import "sync"

// bpe counts the tokens of text by byte-level byte-pair encoding. It is
// read-only but for its cache, so any number of goroutines may use it.
type bpe struct {
	split   splitter
	bytes   [256]uint32 // symbol of each byte
	pairs   pairs
	first   []uint32 // ranks of two bytes, the first above the second
	results []uint32 // by rank: what the pair becomes
	weights []uint8  // by symbol: its tokens; nil = 1 each
	tokens  *names   // by symbol, in the byte-level alphabet
	real    int      // symbols from here on are no tokens
	numbers []uint32 // by symbol below real: the token's id; nil = the symbol
	words   *names   // words that are never cut; nil = all are
	seams   seams
	single  [256]uint8 // by byte: the tokens of a word of it alone
	cased   bool       // whether the splitter cuts before capitals
	lone    lone       // bytes that are words
	cache   *cache
}

// count returns the tokens of valid UTF-8 without special tokens.
func (m *bpe) count(text []byte) (n int) {
	for len(text) >= quickLen {
		if m.lone.is(text[0], text[1]) {
			n += int(m.single[text[0]])
			text = text[1:]
		} else if k, end := quickWord(text, m.cased); end > 0 {
			n += m.cached(text, end, k)
			text = text[end:]
		} else {
			k, end := m.next(text)
			n += k
			text = text[end:]
		}
	}
	for len(text) > 0 {
		k, end := m.next(text)
		n += k
		text = text[end:]
	}
	return n
}

// next returns the tokens of the first word of a text, and its length.
func (m *bpe) next(text []byte) (n, end int) {
	if end = m.split.next(text); end == 1 {
		return int(m.single[text[0]]), 1
	}
	return m.word(text, end), end
}

// word returns the tokens of text[:n]. It gets the rest of the text too so that
// the cache's key can be read in two words.
func (m *bpe) word(text []byte, n int) int {
	if n > maxCached {
		return m.merge(text[:n])
	}
	return m.cached(text, n, keyOf(text, n))
}

// cached is word for a short one with that key.
func (m *bpe) cached(text []byte, n int, k key) int {
	if c := m.cache.get(k); c > 0 {
		return c
	}
	c := m.merge(text[:n])
	m.cache.put(k, c)
	return c
}

// part is one symbol of a word while it is merged, in a doubly linked list.
type part struct {
	symbol     uint32
	rank       uint32 // of the pair with the next one
	prev, next int32  // -1 at the ends
}

// shortWord is the longest word merged by comparing all its pairs each time,
// which beats a heap for such words.
const shortWord = 24

// merge returns the tokens of one word, which is merged part by part where it has seams.
func (m *bpe) merge(word []byte) (n int) {
	if m.words != nil && m.words.find(word) >= 0 {
		return 1
	}
	if len(word) > longWord {
		return m.sampled(word)
	}
	end := m.seams.next(word)
	if end == len(word) {
		return m.mergeWhole(word)
	}
	for ; len(word) > 0; end = m.seams.next(word) {
		if end <= maxCached && m.words == nil {
			n += m.word(word, end)
		} else {
			n += m.mergeWhole(word[:end]) // it is no word: that it may be one that is never cut means nothing
		}
		word = word[end:]
	}
	return n
}

// mergeWhole merges a word that has no seams.
func (m *bpe) mergeWhole(word []byte) int {
	if len(word) <= shortWord {
		return m.mergeShort(word)
	}
	return m.mergeLong(word)
}

// longWord is the longest word that is merged, in bytes: the work grows faster than the
// word does. Of one that is longer parts are, and its count is an estimate.
const longWord = 4 << 10

// sampled estimates the tokens of a long word by those of its beginning, middle and end.
func (m *bpe) sampled(word []byte) int {
	const part = longWord / 4
	mid, end := len(word)/2, len(word)-part
	n := m.mergeLong(word[:part]) + m.mergeLong(word[mid:mid+part]) + m.mergeLong(word[end:])
	return n * len(word) / (3 * part)
}

// cuts reports whether a text has a word that is not merged whole.
func (m *bpe) cuts(text []byte) bool {
	if !runs(text) {
		return false
	}
	for len(text) > longWord {
		end := m.split.next(text)
		if end > longWord {
			return true
		}
		text = text[end:]
	}
	return false
}

// runs reports whether a text may have a run of white space, or of anything else, that is so
// long that it makes a long word: one has white space at one of its ends, or is all of it. Such
// a run fills one of the blocks into which the text is cut here; a block of an ordinary text
// shows by its first word that it is not filled. It saves the splitting of ordinary texts.
func runs(text []byte) bool {
	const block = longWord / 4
	for ; len(text) >= block; text = text[block:] {
		blank, n := text[0] <= ' ', 1
		for n < block && (text[n] <= ' ') == blank {
			n++
		}
		if n == block {
			return true
		}
	}
	return false
}

func (m *bpe) mergeShort(word []byte) int {
	var symbols [shortWord]uint32
	n := m.short(word, &symbols)
	if m.weights == nil {
		return n
	}
	tokens := 0
	for _, s := range symbols[:n] {
		tokens += m.weight(s)
	}
	return tokens
}

// short merges a short word into the first of symbols, and returns how many.
func (m *bpe) short(word []byte, symbols *[shortWord]uint32) int {
	var ranks [shortWord]uint32
	n := len(word)
	for i, b := range word {
		symbols[i] = m.bytes[b]
	}
	for i := range n - 1 {
		ranks[i] = m.first[int(word[i])<<8|int(word[i+1])]
	}
	for n > 1 {
		best, at := noRank, 0
		for i, r := range ranks[:n-1] {
			if r < best {
				best, at = r, i
			}
		}
		if best == noRank {
			break
		}
		symbols[at] = m.results[best]
		copy(symbols[at+1:n-1], symbols[at+2:n])
		n--
		if at+1 < n {
			copy(ranks[at+1:n-1], ranks[at+2:n])
			ranks[at] = m.pairs.rank(symbols[at], symbols[at+1])
		}
		if at > 0 {
			ranks[at-1] = m.pairs.rank(symbols[at-1], symbols[at])
		}
	}
	return n
}

// weight returns how many tokens a symbol is.
func (m *bpe) weight(symbol uint32) int {
	if m.weights == nil {
		return 1
	}
	return int(m.weights[symbol])
}

// scratch is the memory of mergeLong.
type scratch struct {
	parts []part
	queue []uint64 // a heap of rank<<32 | position, so the leftmost of equals wins
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// maxScratch is the most parts whose memory is kept for the next long word.
const maxScratch = 1 << 16

// mergeLong merges with a heap: n log n where mergeShort is n².
func (m *bpe) mergeLong(word []byte) int {
	s := m.long(word)
	defer s.done()
	n := 0
	for i := int32(0); i >= 0; i = s.parts[i].next {
		n += m.weight(s.parts[i].symbol)
	}
	return n
}

// done gives the memory back.
func (s *scratch) done() {
	if cap(s.parts) <= maxScratch {
		scratches.Put(s)
	}
}

// long merges a word; what comes of it is the list of parts from the first on.
func (m *bpe) long(word []byte) *scratch {
	s := scratches.Get().(*scratch)
	s.parts, s.queue = s.parts[:0], s.queue[:0]
	for i, b := range word {
		s.parts = append(s.parts, part{symbol: m.bytes[b], rank: noRank, prev: int32(i) - 1, next: int32(i) + 1})
	}
	s.parts[len(word)-1].next = -1
	for i := range len(word) - 1 {
		if r := m.first[int(word[i])<<8|int(word[i+1])]; r != noRank {
			s.parts[i].rank = r
			s.push(uint64(r)<<32 | uint64(i))
		}
	}
	for len(s.queue) > 0 {
		m.join(s)
	}
	return s
}

// join merges the best pair, unless it has changed since it was queued.
func (m *bpe) join(s *scratch) {
	top := s.pop()
	at, rank := int32(uint32(top)), uint32(top>>32)
	p := &s.parts[at]
	if p.rank != rank {
		return
	}
	gone := &s.parts[p.next]
	p.symbol, p.next = m.results[rank], gone.next
	gone.rank = noRank
	if p.next >= 0 {
		s.parts[p.next].prev = at
	}
	m.rate(s, at)
	if p.prev >= 0 {
		m.rate(s, p.prev)
	}
}

// rate finds the rank of the pair that begins at a part, and queues it.
func (m *bpe) rate(s *scratch, at int32) {
	p := &s.parts[at]
	p.rank = noRank
	if p.next < 0 {
		return
	}
	if r := m.pairs.rank(p.symbol, s.parts[p.next].symbol); r != noRank {
		p.rank = r
		s.push(uint64(r)<<32 | uint64(uint32(at)))
	}
}

func (s *scratch) push(v uint64) {
	s.queue = append(s.queue, v)
	q := s.queue
	for i := len(q) - 1; i > 0; {
		up := (i - 1) / 2
		if q[up] <= v {
			return
		}
		q[i], q[up] = q[up], v
		i = up
	}
}

func (s *scratch) pop() uint64 {
	q := s.queue
	top, last := q[0], q[len(q)-1]
	q = q[:len(q)-1]
	s.queue = q
	i := 0
	for {
		child := 2*i + 1
		if child >= len(q) {
			break
		}
		if child+1 < len(q) && q[child+1] < q[child] {
			child++
		}
		if q[child] >= last {
			break
		}
		q[i] = q[child]
		i = child
	}
	if len(q) > 0 {
		q[i] = last
	}
	return top
}
