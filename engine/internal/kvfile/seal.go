package kvfile

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/record"
)

// Secret is what files are sealed with. Each has a key of its own, made of the secret and the salt
// in its header, so that blocks can be numbered from 0 in each. The nil Secret seals nothing.
type Secret struct{ key []byte }

// saltSize is how many random bytes a file's key is made with.
const saltSize = 32

// NewSecret returns the secret of a key; nil if that is empty.
func NewSecret(key []byte) *Secret {
	if len(key) == 0 {
		return nil
	}
	return &Secret{key}
}

// seal seals the blocks of one file, in order. The nil seal leaves them as they are.
type seal struct {
	aead  cipher.AEAD
	bound []byte // what is authenticated beside each: the file's head
	next  uint64
}

// seal gives a file its salt.
func (s *Secret) seal(h *enginepb.SnapshotHeader) (*seal, error) {
	if h.Salt = nil; s == nil {
		return nil, nil
	}
	h.Salt = make([]byte, saltSize)
	_, _ = rand.Read(h.Salt) // never fails
	return s.derive(h.Salt)
}

// open returns the seal of a file. One that is not sealed is forged where there is a secret.
func (s *Secret) open(h *enginepb.SnapshotHeader) (*seal, error) {
	switch sealed := len(h.GetSalt()) > 0; {
	case sealed != (s != nil):
		return nil, torn("sealed is %t, and there is a key is %t", sealed, s != nil)
	case s == nil:
		return nil, nil
	}
	return s.derive(h.GetSalt())
}

func (s *Secret) derive(salt []byte) (*seal, error) {
	block, err := record.Cipher(s.key, salt, "millrace snapshots")
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	return &seal{aead: aead}, err
}

// about binds the blocks to the head of their file.
func (s *seal) about(head []byte) *seal {
	if s != nil {
		sum := sha256.Sum256(head)
		s.bound = sum[:]
	}
	return s
}

// nonce is the number of the next block.
func (s *seal) nonce() []byte {
	n := binary.BigEndian.AppendUint64(make([]byte, 4, 12), s.next)
	s.next++
	return n
}

// close appends a block as it is in the file.
func (s *seal) close(to, block []byte) []byte {
	if s == nil {
		return append(to, block...)
	}
	return s.aead.Seal(to, s.nonce(), block, s.bound)
}

// open returns the block that b is; it is in b's place.
func (s *seal) open(b []byte) ([]byte, error) {
	if s == nil {
		return b, nil
	}
	block, err := s.aead.Open(b[:0], s.nonce(), b, s.bound)
	if err != nil {
		return nil, torn("a block's seal is wrong")
	}
	return block, nil
}
