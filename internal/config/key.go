package config

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"

	"millrace.dev/millrace/internal/regular"
)

// Sizes of a cookie key, in bytes.
const (
	minKey = 16
	maxKey = 256
	// A file may hold the key in hexadecimal, with white space around it.
	maxKeyFile = 4 << 10
)

// Key reads KeyFile: the key in hexadecimal, in base64, or as it is.
func (c Cookie) Key() ([]byte, error) {
	text, err := regular.Read(c.KeyFile, maxKeyFile)
	if err != nil {
		return nil, err
	}
	key := decodeKey(text)
	if len(key) < minKey || len(key) > maxKey {
		return nil, fmt.Errorf("%s holds a key of %d bytes; must be %d to %d", c.KeyFile, len(key), minKey, maxKey)
	}
	return key, nil
}

// decodeKey returns the key that a file's text stands for: hexadecimal, base64,
// or the bytes themselves.
func decodeKey(text []byte) []byte {
	line := bytes.TrimSpace(text)
	if key, err := hex.DecodeString(string(line)); err == nil && len(key) >= minKey {
		return key
	}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding} {
		if key, err := enc.DecodeString(string(line)); err == nil && len(key) >= minKey {
			return key
		}
	}
	return text
}
