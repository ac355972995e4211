package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/xds/internal/layout"
)

// Sizes of a cookie key, in bytes.
const (
	minKey    = 16
	maxKey    = 256
	randomKey = 32
)

// wants returns the replicas that the configuration asks for.
func wants(f config.File) []layout.Want {
	var all []layout.Want
	for _, m := range f.Models {
		for i := range m.Spec.Replicas {
			l := m.Spec.LayoutOf(i)
			all = append(all, layout.Want{
				Model:   m.Metadata.Name,
				Replica: m.ReplicaName(i),
				Backend: backend(m.Spec, f.Policy.Spec.Limits),
				Shares:  l.Shares,
				Nodes:   l.Nodes,
			})
		}
	}
	return all
}

// backend returns what the configuration says of a model's backends as the
// engines read it.
func backend(s config.ModelSpec, limits config.Limits) *enginepb.Backend {
	b := &enginepb.Backend{
		Weights:       s.Weights,
		ContextTokens: uint32(s.Backend.ContextTokens),
		Slots:         uint32(s.Backend.Slots),
		Threads:       uint32(s.Backend.Threads),
		Queue:         uint32(s.Backend.Queue),
		MaxBodyBytes:  uint64(limits.MaxBodyBytes),
	}
	if s.Backend.Kind == config.LlamaCpp {
		b.Kind = enginepb.Backend_LLAMACPP
	}
	return b
}

// cookieKeys returns the keys that sign session cookies: that of the key file,
// else one that lives as long as this process.
func cookieKeys(c config.Cookie) ([][]byte, error) {
	switch {
	case c.Name == "":
		return nil, nil
	case c.KeyFile == "":
		key := make([]byte, randomKey)
		if _, err := rand.Read(key); err != nil {
			return nil, err
		}
		return [][]byte{key}, nil
	}
	text, err := os.ReadFile(c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("spec.sessions.cookie.keyFile: %w", err)
	}
	key := decodeKey(text)
	if len(key) < minKey || len(key) > maxKey {
		return nil, fmt.Errorf("spec.sessions.cookie.keyFile: %s holds a key of %d bytes; must be %d to %d", c.KeyFile, len(key), minKey, maxKey)
	}
	return [][]byte{key}, nil
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
