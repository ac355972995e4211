package token

import (
	"bytes"
	"slices"
	"sync/atomic"
)

// AppendChat appends the ids of a chat completion's prompt to dst, as many as
// CountChat counts. Nothing is appended if they are not known; exact is as in
// CountChat.
func (m *Model) AppendChat(dst []uint32, c *Chat) (ids []uint32, exact bool) {
	if m.template == nil {
		c.Doubt = ByTemplate
		return dst, false
	}
	if m.template.channels {
		return m.appendHarmony(dst, c, today())
	}
	p, err := m.plan(c)
	if err != nil {
		c.Doubt = doubtOf(err)
		return dst, false
	}
	c.Doubt = p.doubt
	if p.cut {
		return dst, false
	}
	if !p.slow {
		if ids, ok := m.appendNative(dst, &p); ok {
			c.Doubt = p.doubt
			return ids, p.doubt == Certain
		}
	}
	slow := p // it escapes: only here
	prompt, err := m.render(c, &slow)
	if err != nil {
		c.Doubt = doubtOf(err)
		return dst, false
	}
	if m.bpe.cuts(prompt) {
		slow.doubts(ByWords)
		c.Doubt = slow.doubt
		return dst, false
	}
	if m.clocked(c, p, &slow, func(other []byte) bool { return bytes.Equal(other, prompt) }) {
		slow.doubts(ByClock)
	}
	c.Doubt = slow.doubt
	dst = m.appendTokens(m.begin(dst), prompt, true)
	return m.end(dst), slow.doubt == Certain
}

// AppendPrompt appends the ids of a completion's prompt to dst, as many as
// CountPrompt counts.
func (m *Model) AppendPrompt(dst []uint32, prompt []byte) []uint32 {
	dst, _ = m.memoizedIDs(append(dst, m.bos...), [][]byte{prompt}, nil)
	return append(dst, m.eos...)
}

// begin and end append what the backend itself puts around a chat.
func (m *Model) begin(dst []uint32) []uint32 {
	if m.addedTo == 0 {
		return dst
	}
	return append(dst, m.bos...)
}

func (m *Model) end(dst []uint32) []uint32 {
	if m.addedTo == 0 {
		return dst
	}
	return append(dst, m.eos...)
}

// appendNative is countNative for ids.
func (m *Model) appendNative(dst []uint32, p *plan) ([]uint32, bool) {
	f := m.currentForm()
	if f == nil {
		return dst, false
	}
	ids, ok := m.appendBy(f, dst, p)
	for _, other := range f.others {
		if !ok || p.doubt != Certain {
			break
		}
		if of, fits := m.appendBy(other, nil, p); !fits || !slices.Equal(of, ids[len(dst):]) {
			p.doubts(ByClock)
		}
	}
	return ids, ok
}

// appendBy is countBy for ids.
func (m *Model) appendBy(f *compiled, dst []uint32, p *plan) ([]uint32, bool) {
	if f == nil {
		return dst, false
	}
	k := counters.Get().(*counter)
	defer counters.Put(k)
	k.reset(m, f)
	k.collects, k.ids = true, m.begin(dst)
	ok := k.conversation(p)
	clear(k.pieces)
	ids := k.ids
	k.ids = nil
	if !ok {
		return dst, false
	}
	return m.end(ids), true
}

// appendTokens is tokens for ids.
func (m *Model) appendTokens(dst []uint32, text []byte, control bool) []uint32 {
	text = m.normalize(text)
	at := 0
	for _, h := range m.specials.find(text, control) {
		s := &m.specials.all[h.token]
		dst = m.bpe.appendIDs(dst, s.trimLeft(text[min(at, h.start):h.start]))
		dst = append(dst, s.id)
		at = h.end + s.eats(text[h.end:])
	}
	return m.bpe.appendIDs(dst, text[min(at, len(text)):])
}

// appendIDs is count for ids.
func (m *bpe) appendIDs(dst []uint32, text []byte) []uint32 {
	for len(text) > 0 {
		end := m.split.next(text)
		dst = m.appendWord(dst, text, end)
		text = text[end:]
	}
	return dst
}

// appendWord is word for ids. Words that are known to be one token need no merging.
func (m *bpe) appendWord(dst []uint32, text []byte, n int) []uint32 {
	word := text[:n]
	if n <= maxCached && m.cache.get(keyOf(text, n)) == 1 || m.words != nil && m.words.find(word) >= 0 {
		if symbol := m.whole(word); symbol >= 0 {
			return append(dst, m.number(uint32(symbol)))
		}
	}
	if n <= shortWord {
		var symbols [shortWord]uint32
		for _, s := range symbols[:m.short(word, &symbols)] {
			dst = m.appendSymbol(dst, s)
		}
		return dst
	}
	s := m.long(word)
	defer s.done()
	for i := int32(0); i >= 0; i = s.parts[i].next {
		dst = m.appendSymbol(dst, s.parts[i].symbol)
	}
	return dst
}

// whole returns the token that a word is, -1 if it is none.
func (m *bpe) whole(word []byte) int {
	var buf [4 * shortWord]byte
	text := buf[:0]
	for _, b := range word {
		text = append(text, encoded[b]...)
	}
	if n := m.tokens.find(text); n < m.real {
		return n
	}
	return -1
}

// number is the id of a token.
func (m *bpe) number(symbol uint32) uint32 {
	if m.numbers == nil {
		return symbol
	}
	return m.numbers[symbol]
}

// appendSymbol appends the tokens that a symbol is: itself, or those of its bytes
// that are tokens.
func (m *bpe) appendSymbol(dst []uint32, symbol uint32) []uint32 {
	if int(symbol) < m.real {
		return append(dst, m.number(symbol))
	}
	raw, _ := decode(nil, m.tokens.name(int(symbol)))
	for _, b := range raw {
		if s := m.bytes[b]; int(s) < m.real {
			dst = append(dst, m.number(s))
		}
	}
	return dst
}

// Bounds of an idMemo: texts, and ids in all of them (4 bytes each).
const (
	idTexts = 1 << 14
	mostIDs = 8 << 20
)

// idMemo remembers the ids of whole texts by what memo knows them by, so that a
// conversation's earlier turns are copied instead of merged again. Readers and
// writers take no lock; when it is full, texts go in the order of their slots.
type idMemo struct {
	// Atomic.
	slots [idTexts]atomic.Pointer[idText]
	sum   atomic.Int64 // ids in all slots
	hand  atomic.Uint32
}

// idText is a text's ids. It never changes.
type idText struct {
	hash   uint64
	length int // of the text, in bytes
	ids    []uint32
}

// memoizedIDs is memoized for ids.
func (m *Model) memoizedIDs(dst []uint32, pieces [][]byte, buf []byte) ([]uint32, []byte) {
	length := 0
	for _, p := range pieces {
		length += len(p)
	}
	if length < minMemo {
		buf = concat(pieces, buf)
		return m.appendTokens(dst, buf, true), buf
	}
	hash := m.memo.hash(pieces)
	slot := &m.ids.slots[hash%idTexts]
	if t := slot.Load(); t != nil && t.hash == hash && t.length == length {
		return append(dst, t.ids...), buf
	}
	text := pieces[0]
	if len(pieces) > 1 {
		buf = concat(pieces, buf)
		text = buf
	}
	from := len(dst)
	dst = m.appendTokens(dst, text, true)
	m.ids.put(slot, &idText{hash: hash, length: length, ids: append([]uint32(nil), dst[from:]...)})
	return dst, buf
}

// put remembers a text in its slot, and forgets others until all fit.
func (d *idMemo) put(slot *atomic.Pointer[idText], t *idText) {
	if len(t.ids) > mostIDs/8 {
		return
	}
	d.set(slot, t)
	for range idTexts {
		if d.sum.Load() <= mostIDs {
			return
		}
		if other := &d.slots[d.hand.Add(1)%idTexts]; other != slot {
			d.set(other, nil)
		}
	}
}

func (d *idMemo) set(slot *atomic.Pointer[idText], t *idText) {
	old := slot.Swap(t)
	change := 0
	if t != nil {
		change += len(t.ids)
	}
	if old != nil {
		change -= len(old.ids)
	}
	d.sum.Add(int64(change))
}
