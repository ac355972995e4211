package session

import (
	"strings"
	"testing"
	"time"
)

func TestKeys(t *testing.T) {
	a, b := Seed("a"), Seed("b")
	if a == b || a == 0 {
		t.Fatalf("Seed(a) = %x, Seed(b) = %x; want two keys", a, b)
	}
	one := Next(Next(a, []byte("x")), []byte("y"))
	if other := Next(Next(a, []byte("y")), []byte("x")); one == other {
		t.Error("the order of messages does not matter to the key")
	}
	if Named(a, "x") == Named(b, "x") || Named(a, "x") == Next(a, []byte("x")) {
		t.Error("a named session shares its key with another model or with a prefix")
	}
}

// TestKeysOfSets has a set's order and how often it has a word mean nothing, and no word take
// another away.
func TestKeysOfSets(t *testing.T) {
	seen := map[Key]string{Seed("m"): ""}
	for _, words := range []string{"a", "b", "c", "a b", "a c", "b c", "a b c"} {
		k := Together(Seed("m"), strings.Fields(words))
		if other, ok := seen[k]; ok {
			t.Errorf("%q and %q have one key", words, other)
		}
		seen[k] = words
	}
	for _, same := range []string{"b a", "a b a", "a a b b", "a b b a"} {
		if got := seen[Together(Seed("m"), strings.Fields(same))]; got != "a b" {
			t.Errorf("%q is the set %q", same, got)
		}
	}
	if Together(Seed("m"), nil) != Seed("m") {
		t.Error("no words make another key")
	}
	if a, b := Seed("a"), Seed("b"); Numbered(a, 7) == Numbered(b, 7) || Numbered(a, uint64(a)) == Numbered(b, uint64(b)) {
		t.Error("numbers of two models have one key")
	}
}

func TestKeysDoNotCollide(t *testing.T) {
	seen := map[Key]int{}
	k := Seed("m")
	for i := range 200000 {
		k = Next(k, []byte{byte(i), byte(i >> 8)})
		if j, dup := seen[k]; dup {
			t.Fatalf("prefixes %d and %d have one key", i, j)
		}
		seen[k] = i
	}
}

func cookieValue(setCookie string) string {
	pair, _, _ := strings.Cut(setCookie, ";")
	return pair
}

var born = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func TestCookiesAge(t *testing.T) {
	older, newer := []byte("an old key of 16+"), []byte("a new key of 16++")
	c := NewCookies("s", [][]byte{newer, older}, time.Hour)
	good := cookieValue(c.SetCookie(7, born))
	tests := []struct {
		name      string
		header    string
		after     time.Duration
		renew, ok bool
	}{
		{"fresh", good, 0, false, true},
		{"half its time over", good, 31 * time.Minute, true, true},
		{"at its end", good, time.Hour, true, true},
		{"stale", good, time.Hour + 2*time.Minute, false, false},
		{"of a clock that goes ahead", good, -time.Hour, false, true},
		{"of an older key", cookieValue(NewCookies("s", [][]byte{older}, time.Hour).SetCookie(7, born)), 0, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id, renew, ok := c.Read(tt.header, born.Add(tt.after))
			if ok != tt.ok || ok && (renew != tt.renew || id != 7) {
				t.Errorf("Read() = %d, %v, %v; want 7, %v, %v", id, renew, ok, tt.renew, tt.ok)
			}
		})
	}
}

func TestCookies(t *testing.T) {
	older, newer := []byte("an old key of 16+"), []byte("a new key of 16++")
	old := NewCookies("s", [][]byte{older}, time.Minute)
	both := NewCookies("s", [][]byte{newer, older}, time.Minute)
	id := both.New()
	good := cookieValue(both.SetCookie(id, born))
	tests := []struct {
		name   string
		reader *Cookies
		header string
		ok     bool
	}{
		{"our own", both, good, true},
		{"among others", both, "a=b; " + good + "; c=d", true},
		{"in quotes", both, strings.Replace(good, "=", `="`, 1) + `"`, true},
		{"signed by a key that has gone", old, good, false},
		{"signed by an older key", both, cookieValue(old.SetCookie(id, born)), true},
		{"a second one of the same name is ours", both, "s=x; " + good, true},
		{"forged signature", both, good[:len(good)-2] + "AA", false},
		{"forged id", both, "s=AAAAAAAAAAA" + good[len("s=AAAAAAAAAAA"):], false},
		{"of another name", both, "x" + good, false},
		{"empty", both, "", false},
		{"no cookies at all", nil, good, false},
		{"rubbish", both, "s=....;;;=;s", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _, ok := tt.reader.Read(tt.header, born)
			if ok != tt.ok || ok && got != id {
				t.Errorf("Read(%q) = %x, %v; want %x, %v", tt.header, got, ok, id, tt.ok)
			}
		})
	}
	if NewCookies("s", nil, 0) != nil || NewCookies("", [][]byte{older}, 0) != nil {
		t.Error("cookies without a key or a name")
	}
}
