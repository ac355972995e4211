package session

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"testing"
	"time"
)

// Keys of the cookies in these tests, the newest first.
var (
	keys    = [][]byte{[]byte("a new key of 16++"), []byte("an old key of 16+")}
	written = regexp.MustCompile(`^[A-Za-z0-9_-]{16}\.[A-Za-z0-9_-]{22}$`)
)

// naiveRead is the twin of Read: the standard library takes the header apart, and the
// first cookie of ours that anybody with a key would have written counts. sure is
// false for headers that the library refuses whole.
func naiveRead(header string, idle time.Duration, now time.Time) (id uint64, renew, ok, sure bool) {
	all, err := http.ParseCookie(header)
	if err != nil {
		return 0, false, false, false
	}
	for _, c := range all {
		if c.Name != "s" || !written.MatchString(c.Value) {
			continue
		}
		said, err := base64.RawURLEncoding.DecodeString(c.Value[:16])
		if err != nil {
			continue
		}
		signed := slices.IndexFunc(keys, func(key []byte) bool {
			h := hmac.New(sha256.New, key)
			h.Write([]byte("s\x00" + string(said)))
			return base64.RawURLEncoding.EncodeToString(said)+"."+base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:16]) == c.Value
		})
		born := time.Unix(int64(binary.BigEndian.Uint32(said[8:]))*60, 0)
		age := now.Truncate(time.Minute).Sub(born)
		if signed >= 0 && age <= idle+time.Minute {
			return binary.BigEndian.Uint64(said), signed > 0 || age > idle/2, true, true
		}
	}
	return 0, false, false, true
}

func checkCookies(t *testing.T, header string, idle time.Duration, now time.Time) (ok bool) {
	t.Helper()
	id, renew, ok := NewCookies("s", keys, idle).Read(header, now)
	wantID, wantRenew, wantOK, sure := naiveRead(header, idle, now)
	if sure && (ok != wantOK || ok && (id != wantID || renew != wantRenew)) {
		t.Fatalf("Read(%q) = %d, %v, %v; the twin has %d, %v, %v", header, id, renew, ok, wantID, wantRenew, wantOK)
	}
	return ok
}

// TestCookiesAgainstTheirTwin reads headers of good cookies in which some bytes are
// others, and at any age.
func TestCookiesAgainstTheirTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	taken := 0
	for range 20000 {
		idle := time.Duration(r.IntN(120)) * time.Minute
		pair := cookieValue(NewCookies("s", keys[r.IntN(2):], idle).SetCookie(r.Uint64(), born))
		header := []byte([]string{"", "a=b; ", "s=x;", pair[:len(pair)-1] + "A; "}[r.IntN(4)] + pair + []string{"", "; c=d", ";"}[r.IntN(3)])
		for range r.IntN(3) * r.IntN(2) {
			header[r.IntN(len(header))] = "AZaz09-_.=;\" "[r.IntN(13)]
		}
		if checkCookies(t, string(header), idle, born.Add(time.Duration(r.IntN(200)-20)*time.Minute)) {
			taken++
		}
	}
	if taken < 3000 || taken > 17000 {
		t.Errorf("of 20000 headers %d were taken: the test tests nothing", taken)
	}
}

func FuzzCookieRead(f *testing.F) {
	f.Add(cookieValue(NewCookies("s", keys, time.Hour).SetCookie(7, born)), uint16(3))
	f.Add("a=b; s=\""+cookieValue(NewCookies("s", keys[1:], time.Hour).SetCookie(7, born))[2:]+"\"", uint16(40))
	f.Add("s=a.b", uint16(0))
	f.Fuzz(func(t *testing.T, header string, minutes uint16) {
		checkCookies(t, header, time.Hour, born.Add(time.Duration(minutes)*time.Minute))
	})
}
