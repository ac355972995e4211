package record

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// The bytes of a record: what is open, then the value, or what it was sealed to, then the sum
// where it is not sealed.
//
//	0   "mrr1"
//	4   flags
//	5   version, big-endian
//	13  when it expires, in seconds from 1970 on, big-endian
//	21  value; sealed: nonce (12), ciphertext, tag (16)
//	    sum of key and all before, the first 16 bytes of SHA-256; sealed: none
//
// Key and head are what is authenticated beside a sealed value: one that was moved to another
// key, or given another life, is none.
const (
	magic    = "mrr1"
	headSize = 21
	sumSize  = 16
	// Overhead is how many bytes a record has at most beside its value.
	Overhead = headSize + 12 + 16
)

// Flags of a record.
const (
	sealed  = 1 << 0
	deleted = 1 << 1
)

// The times that a record can have: no clock is there, and 64 bits hold nanoseconds of them.
const latest = 1 << 33 // 2242

// ErrTorn is returned for bytes that are no record, or not the one of the key.
var ErrTorn = errors.New("torn or forged record")

// Codec writes and reads the bytes of records. The nil Codec seals none.
type Codec struct {
	keys []cipher.AEAD
}

// The fewest bytes that a key may have, and the most.
const (
	MinKey = 16
	MaxKey = 256
)

// NewCodec returns one that seals values with the first key, and reads what was sealed with any
// of them. What is not sealed it takes for forged. Without keys it is nil.
func NewCodec(keys ...[]byte) (*Codec, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	c := &Codec{}
	for i, key := range keys {
		if len(key) < MinKey || len(key) > MaxKey {
			return nil, fmt.Errorf("key %d: %d bytes; must be %d to %d", i+1, len(key), MinKey, MaxKey)
		}
		block, err := Cipher(key, nil, "millrace records")
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		c.keys = append(c.keys, aead)
	}
	return c, nil
}

// Cipher is AES-256 by what HKDF makes of a key and a salt for one purpose: for another it is another.
func Cipher(key, salt []byte, purpose string) (cipher.Block, error) {
	derived, err := hkdf.Key(sha256.New, key, salt, purpose, 32)
	if err != nil {
		return nil, err
	}
	return aes.NewCipher(derived)
}

// Encode returns the bytes of a record.
func (c *Codec) Encode(r Record) []byte {
	b := make([]byte, headSize, headSize+len(r.Value)+Overhead)
	copy(b, magic)
	if r.Deleted {
		b[4] |= deleted
	}
	binary.BigEndian.PutUint64(b[5:], r.Version)
	binary.BigEndian.PutUint64(b[13:], uint64(r.Expires.Unix()))
	if c != nil {
		b[4] |= sealed
		return append(b, c.keys[0].Seal(nil, nil, r.Value, about(r.Key, b))...)
	}
	b = append(b, r.Value...)
	return append(b, sum(r.Key, b)...)
}

// Decode returns the record of a key that the bytes are. It fails with ErrTorn.
func (c *Codec) Decode(k Key, b []byte) (Record, error) {
	r, err := Head(k, b)
	if err != nil {
		return r, err
	}
	head, rest := b[:headSize], b[headSize:]
	if isSealed := head[4]&sealed != 0; isSealed != (c != nil) {
		return Record{}, fmt.Errorf("%w: sealed is %t, and there is a key is %t", ErrTorn, isSealed, c != nil)
	}
	if c == nil {
		n := len(b) - sumSize
		if n < headSize || string(sum(k, b[:n])) != string(b[n:]) {
			return Record{}, ErrTorn
		}
		r.Value = append([]byte{}, b[headSize:n]...)
		return r, nil
	}
	for _, key := range c.keys {
		if value, err := key.Open([]byte{}, nil, rest, about(k, head)); err == nil {
			r.Value = value
			return r, nil
		}
	}
	return Record{}, ErrTorn
}

// Head returns what is open of a record, without its value: that it is whole is not known then.
// It fails with ErrTorn.
func Head(k Key, b []byte) (Record, error) {
	if len(b) < headSize || string(b[:4]) != magic || b[4]&^(sealed|deleted) != 0 || !k.Valid() {
		return Record{}, ErrTorn
	}
	expires := binary.BigEndian.Uint64(b[13:])
	if expires > latest {
		return Record{}, ErrTorn
	}
	r := Record{Key: k, Deleted: b[4]&deleted != 0, Version: binary.BigEndian.Uint64(b[5:]), Expires: time.Unix(int64(expires), 0)}
	if r.Version == 0 {
		return Record{}, ErrTorn
	}
	return r, nil
}

// sum is of a key and the bytes of its record.
func sum(k Key, b []byte) []byte {
	h := sha256.New()
	h.Write(about(k, b))
	return h.Sum(nil)[:sumSize]
}

// about binds bytes to a key, whose names can't contain a zero byte.
func about(k Key, b []byte) []byte {
	all := make([]byte, 0, len(k.Tenant)+len(k.ID)+2+len(b))
	all = append(append(all, k.Tenant...), 0)
	all = append(append(all, k.ID...), 0)
	return append(all, b...)
}

// NewID returns an id that nobody can guess: a prefix, a hint, and 26 random letters and
// digits.
func NewID(prefix, hint string) string { return prefix + hint + rand.Text() }
