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

// Sizes of a cookie's value in bytes: base64url of an id with the time at which it
// was given, and of the signature of both.
const (
	idBytes   = 8
	timeBytes = 4
	signBytes = 16
)

// unit is in which the time of a cookie is counted, from the year 1970 on.
const unit = time.Minute

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
func (c *Cookies) SetCookie(id uint64, now time.Time) string {
	var b [idBytes + timeBytes]byte
	binary.BigEndian.PutUint64(b[:], id)
	binary.BigEndian.PutUint32(b[idBytes:], minutes(now))
	value := encoding.EncodeToString(b[:]) + "." + encoding.EncodeToString(c.sign(c.keys[0], b[:]))
	return fmt.Sprintf("%s=%s; Path=/; Max-Age=%d; HttpOnly; SameSite=Lax", c.name, value, int(c.idle.Seconds()))
}

func minutes(t time.Time) uint32 { return uint32(t.Unix() / int64(unit/time.Second)) }

// Read returns the session id of a request's Cookie header; ok is false if there is
// none that we signed, or it is older than sessions are remembered. renew is
// whether half of its time is over, or it was signed by an older key.
func (c *Cookies) Read(header string, now time.Time) (id uint64, renew, ok bool) {
	if c == nil {
		return 0, false, false
	}
	for header != "" {
		var pair string
		pair, header, _ = strings.Cut(header, ";")
		name, value, found := strings.Cut(strings.TrimSpace(pair), "=")
		if !found || name != c.name {
			continue
		}
		if id, renew, ok := c.verify(value, now); ok {
			return id, renew, true
		}
	}
	return 0, false, false
}

// verify checks signature and age, and returns the id.
func (c *Cookies) verify(value string, now time.Time) (id uint64, renew, ok bool) {
	left, right, _ := strings.Cut(strings.Trim(value, `"`), ".")
	if len(left) != encoding.EncodedLen(idBytes+timeBytes) || len(right) != encoding.EncodedLen(signBytes) {
		return 0, false, false
	}
	payload, err := encoding.DecodeString(left)
	if err != nil {
		return 0, false, false
	}
	sig, err := encoding.DecodeString(right)
	if err != nil {
		return 0, false, false
	}
	for i, key := range c.keys {
		if !hmac.Equal(sig, c.sign(key, payload)) {
			continue
		}
		age := time.Duration(int32(minutes(now)-binary.BigEndian.Uint32(payload[idBytes:]))) * unit
		return binary.BigEndian.Uint64(payload), i > 0 || age > c.idle/2, age <= c.idle+unit
	}
	return 0, false, false
}

// sign binds what is said to the cookie's name, so that a signature is of use
// nowhere else.
func (c *Cookies) sign(key, payload []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(c.name))
	h.Write([]byte{0})
	h.Write(payload)
	return h.Sum(nil)[:signBytes]
}
