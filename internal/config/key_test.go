package config

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
)

func TestKey(t *testing.T) {
	key := []byte("0123456789abcdef\xff")
	tests := map[string]string{
		"hexadecimal":     hex.EncodeToString(key) + "\n",
		"base64":          base64.StdEncoding.EncodeToString(key) + "\n",
		"base64 for URLs": base64.RawURLEncoding.EncodeToString(key),
		"the bytes":       string(key),
	}
	for name, text := range tests {
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := (Cookie{KeyFile: file}).Key(); err != nil || !bytes.Equal(got, key) {
			t.Errorf("%s: %q, %v, want %q", name, got, err, key)
		}
	}
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Cookie{KeyFile: short}).Key(); err == nil {
		t.Error("took a key of 5 bytes")
	}
}
