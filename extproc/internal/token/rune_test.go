package token

import (
	"math/rand/v2"
	"testing"
)

func TestASCIILetters(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 5))
	for range 20000 {
		b := make([]byte, r.IntN(40))
		for i := range b {
			b[i] = 'A' + byte(r.IntN(26)) | byte(r.IntN(2))<<5
			if r.IntN(12) == 0 {
				b[i] = byte(r.IntN(256))
			}
		}
		want := 0
		for want < len(b) && (b[want]|0x20) >= 'a' && (b[want]|0x20) <= 'z' {
			want++
		}
		got := asciiLetters(b)
		if got > want || got < want && got != len(b)&^7 {
			t.Fatalf("asciiLetters(%q) = %d, want %d", b, got, want)
		}
	}
}
