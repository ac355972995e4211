package prefix

import (
	"math/bits"

	"millrace.dev/millrace/extproc/internal/session"
)

// piece is by how many bytes of a message or of a text a prefix grows. Two
// prompts have in common what ends before the piece in which they differ.
const piece = 512

// Of a prompt in more than MaxLinks pieces these stay: the last ones, which the next
// turn begins with, the ends of the last messages, and of the others so many, evenly
// spread.
const (
	lastPieces   = 12
	lastMessages = 12
	spreadPieces = MaxLinks - lastPieces - lastMessages
)

// endBit marks the end of a message while links are made.
const endBit = 1 << 31

// Maker makes the links of a prompt from its messages, in order.
type Maker struct {
	links []Link // Tokens counts bytes until Links
	key   session.Key
	size  uint32
}

// NewMaker returns the Maker of a prompt for a model whose empty prompt has the key
// seed. It puts the links into memory, which it overwrites.
func NewMaker(seed session.Key, memory []Link) Maker {
	return Maker{links: memory[:0], key: seed}
}

// Key is that of all that was added.
func (m *Maker) Key() session.Key { return m.key }

// Add appends a message or a text.
func (m *Maker) Add(b []byte) {
	m.Part(b)
	m.End()
}

// Part appends a part of a message.
func (m *Maker) Part(b []byte) {
	for len(b) > 0 {
		n := min(piece, len(b))
		m.Piece(b[:n], uint32(n))
		b = b[n:]
	}
}

// Mix has what follows be something else than without it. It counts as no bytes.
func (m *Maker) Mix(name string) { m.key = session.Named(m.key, name) }

// Piece appends a piece that counts as so many bytes.
func (m *Maker) Piece(b []byte, size uint32) {
	m.key = session.Next(m.key, b)
	m.size += size
	m.links = append(m.links, Link{Key: m.key, Tokens: m.size})
}

// End says that a message ends here: the next turn begins with it.
func (m *Maker) End() {
	if n := len(m.links); n > 0 {
		m.links[n-1].Tokens |= endBit
	}
}

// Links returns at most MaxLinks links of a prompt of so many tokens. How many a
// prefix has is taken to follow its bytes.
func (m *Maker) Links(tokens int) []Link {
	n, step := len(m.links), 1
	if n > MaxLinks {
		step = 1 << bits.Len(uint((n-1)/spreadPieces))
	}
	perByte := float64(tokens) / float64(max(1, m.size))
	messages, kept := 0, n
	for i := n - 1; i >= 0; i-- {
		l := m.links[i]
		end := l.Tokens&endBit != 0 && messages < lastMessages
		if end {
			messages++
		}
		if step > 1 && i < n-lastPieces && (i+1)%step != 0 && !end {
			continue
		}
		kept--
		m.links[kept] = Link{Key: l.Key, Tokens: uint32(float64(l.Tokens&^endBit)*perByte + 0.5)}
	}
	return append(m.links[:0], m.links[kept:]...)
}
