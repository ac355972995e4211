package epdriver

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
)

// Shares of a body: what many sessions have in common, and what no other request
// has. The rest is the session's own history.
const (
	sharedPart = 0.5
	uniquePart = 0.1
	// envelope is about what the JSON around the texts takes, in bytes.
	envelope = 260
)

// Corpus makes chat requests of several sessions that share system prompts.
type Corpus struct {
	model    string
	shared   []string // system prompts
	sessions []string // histories
	unique   string   // where each request's own text is cut from
	cut      int      // its length, in bytes
	cold     bool     // whether nothing is shared
}

// NewCorpus returns requests for a model, each of about size bytes, the same ones
// every time.
func NewCorpus(model string, size, sessions, prompts int) *Corpus {
	rest := max(size-envelope, 64)
	c := &Corpus{model: model, cut: max(int(float64(rest)*uniquePart), 24)}
	common := int(float64(rest) * sharedPart)
	for i := range prompts {
		c.shared = append(c.shared, text(uint64(i), common))
	}
	for i := range sessions {
		c.sessions = append(c.sessions, text(1<<40+uint64(i), max(rest-common-c.cut, 8)))
	}
	c.unique = text(1<<50, 1<<20)
	return c
}

// NewColdCorpus returns requests of which no two share a text.
func NewColdCorpus(model string, size int) *Corpus {
	cut := max(size-envelope, 64)
	return &Corpus{model: model, unique: text(1<<51, 4<<20+2*cut), cut: cut, cold: true}
}

// next returns a random session's name and its next request.
func (c *Corpus) next(r *rand.Rand) (session string, body []byte) {
	if c.cold {
		return "cold-" + strconv.FormatUint(r.Uint64(), 36), c.stranger(r)
	}
	i := r.IntN(len(c.sessions))
	return "session-" + strconv.Itoa(i), c.Request(i, r)
}

// Request returns a chat request of the session with that number.
func (c *Corpus) Request(session int, r *rand.Rand) []byte {
	h := c.sessions[session%len(c.sessions)]
	at := r.IntN(len(c.unique) - c.cut)
	return fmt.Appendf(nil, `{"model":%q,"max_tokens":128,"temperature":0.7,"messages":[{"role":"system","content":"%s"},{"role":"user","content":"%s"},{"role":"assistant","content":"%s"},{"role":"user","content":"%s"}]}`,
		c.model, c.shared[session%len(c.shared)], h[:len(h)/2], h[len(h)/2:], c.unique[at:at+c.cut])
}

// stranger returns a request that nobody made before.
func (c *Corpus) stranger(r *rand.Rand) []byte {
	at := r.IntN(len(c.unique) - c.cut)
	s := c.unique[at : at+c.cut]
	return fmt.Appendf(nil, `{"model":%q,"max_tokens":128,"temperature":0.7,"messages":[{"role":"system","content":"%s"},{"role":"user","content":"%s"}]}`,
		c.model, s[:len(s)/2], s[len(s)/2:])
}

const vocabulary = "the model serves a request for tokens and the cache keeps blocks of every prompt while queues grow under load so routing must weigh memory speed distance price and age before it picks one host among many others that look alike yet differ in heat clock power and batch depth"

// text returns n bytes of English-looking words, with nothing that JSON escapes.
func text(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 1))
	words := strings.Fields(vocabulary)
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(words[r.IntN(len(words))])
		if r.IntN(9) == 0 {
			b.WriteString(" " + strconv.Itoa(r.IntN(100000)))
		}
		b.WriteByte(' ')
	}
	return b.String()[:n]
}

// Any returns a request of the session with that number, or one that nobody made before
// where nothing is shared.
func (c *Corpus) Any(session int, r *rand.Rand) []byte {
	if c.cold {
		return c.stranger(r)
	}
	return c.Request(session, r)
}

// Cold is whether no two requests share a text.
func (c *Corpus) Cold() bool { return c.cold }
