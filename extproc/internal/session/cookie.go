package session

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// Sizes of a cookie's value: base64url of an id and of its signature.
const (
	idBytes   = 8
	signBytes = 16
)

var encoding = base64.RawURLEncoding.Strict()

// Cookies signs and verifies session cookies. A nil *Cookies reads and sets
// none.
type Cookies struct {
	name string
	keys [][]byte
	idle time.Duration
}

// NewCookies returns the cookies of a policy: the first key signs, all verify.
// Without a name or keys there are none, and it returns nil.
func NewCookies(name string, keys [][]byte, idle time.Duration) *Cookies {
	if name == "" || len(keys) == 0 {
		return nil
	}
	return &Cookies{name: name, keys: keys, idle: idle}
}

// New returns a fresh session id, not 0, that nobody can guess.
func (c *Cookies) New() uint64 {
	var b [idBytes]byte
	for {
		_, _ = rand.Read(b[:]) // never fails
		if id := binary.BigEndian.Uint64(b[:]); id != 0 {
			return id
		}
	}
}

// SetCookie returns the header value that gives the client session id.
func (c *Cookies) SetCookie(id uint64) string {
	var b [idBytes]byte
	binary.BigEndian.PutUint64(b[:], id)
	value := encoding.EncodeToString(b[:]) + "." + encoding.EncodeToString(c.sign(c.keys[0], b[:]))
	return fmt.Sprintf("%s=%s; Path=/; Max-Age=%d; HttpOnly; SameSite=Lax", c.name, value, int(c.idle.Seconds()))
}

// Read returns the session id of a request's Cookie header; ok is false if
// there is none that we signed.
func (c *Cookies) Read(header string) (id uint64, ok bool) {
	if c == nil {
		return 0, false
	}
	for header != "" {
		var pair string
		pair, header, _ = strings.Cut(header, ";")
		name, value, found := strings.Cut(strings.TrimSpace(pair), "=")
		if !found || name != c.name {
			continue
		}
		if id, ok := c.verify(value); ok {
			return id, true
		}
	}
	return 0, false
}

// verify checks the signature and returns the id.
func (c *Cookies) verify(value string) (uint64, bool) {
	left, right, _ := strings.Cut(strings.Trim(value, `"`), ".")
	if len(left) != encoding.EncodedLen(idBytes) || len(right) != encoding.EncodedLen(signBytes) {
		return 0, false
	}
	id, err := encoding.DecodeString(left)
	if err != nil {
		return 0, false
	}
	sig, err := encoding.DecodeString(right)
	if err != nil {
		return 0, false
	}
	for _, key := range c.keys {
		if hmac.Equal(sig, c.sign(key, id)) {
			return binary.BigEndian.Uint64(id), true
		}
	}
	return 0, false
}

// sign binds the id to the cookie's name, so that a signature is of use nowhere else.
func (c *Cookies) sign(key, id []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(c.name))
	h.Write([]byte{0})
	h.Write(id)
	return h.Sum(nil)[:signBytes]
}
