package session

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
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

func TestCookies(t *testing.T) {
	older, newer := []byte("an old key of 16+"), []byte("a new key of 16++")
	old := NewCookies("s", [][]byte{older}, time.Minute)
	both := NewCookies("s", [][]byte{newer, older}, time.Minute)
	id := both.New()
	good := cookieValue(both.SetCookie(id))
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
		{"signed by an older key", both, cookieValue(old.SetCookie(id)), true},
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
			got, ok := tt.reader.Read(tt.header)
			if ok != tt.ok || ok && got != id {
				t.Errorf("Read(%q) = %x, %v; want %x, %v", tt.header, got, ok, id, tt.ok)
			}
		})
	}
	if NewCookies("s", nil, 0) != nil || NewCookies("", [][]byte{older}, 0) != nil {
		t.Error("cookies without a key or a name")
	}
}

func FuzzCookieRead(f *testing.F) {
	c := NewCookies("s", [][]byte{[]byte("a key of 16 bytes")}, time.Minute)
	good := cookieValue(c.SetCookie(7))
	f.Add(good)
	f.Add("s=a.b")
	f.Fuzz(func(t *testing.T, header string) {
		if _, ok := c.Read(header); ok && !strings.Contains(header, good[2:]) && !strings.Contains(header, ".") {
			t.Errorf("Read(%q) accepts what was not signed", header)
		}
	})
}

func TestStoreRemembersPlaces(t *testing.T) {
	s, now := NewStore(100, time.Minute), time.Now()
	s.Put(1<<8, 5, Place{1, 10}, now)
	s.Put(1<<8, 6, Place{2, 20}, now)
	s.Put(1<<8, 7, Place{3, 30}, now)
	s.Put(1<<8, 8, Place{2, 25}, now)
	s.Put(1<<8, 9, Place{4, 40}, now)
	got, ok := s.Get(1<<8, now)
	want := Entry{Tail: 9, Places: [3]Place{{4, 40}, {2, 25}, {3, 30}}}
	if !ok || got != want {
		t.Errorf("Get() = %v, %v; want %v", got, ok, want)
	}
}

func TestStoreForgetsTheIdle(t *testing.T) {
	s, now := NewStore(100, time.Minute), time.Now()
	s.Put(1, 1, Place{1, 10}, now)
	now = now.Add(50 * time.Second)
	if _, ok := s.Get(1, now); !ok {
		t.Fatal("gone before its time")
	}
	now = now.Add(50 * time.Second)
	if _, ok := s.Get(1, now); !ok {
		t.Fatal("a use does not count")
	}
	now = now.Add(62 * time.Second)
	if _, ok := s.Get(1, now); ok {
		t.Error("remembered after its idle time")
	}
	s.Put(1, 2, Place{2, 5}, now)
	if got, _ := s.Get(1, now); got.Places[1].Cache != 0 {
		t.Errorf("Get() = %v: places from before the idle time came back", got)
	}
}

// TestStoreAgainstMap compares the store with a map that never forgets: what
// is remembered is right, and with room enough hardly anything is missing.
func TestStoreAgainstMap(t *testing.T) {
	const keys = 10000
	s, now := NewStore(2*keys, time.Hour), time.Now()
	all := map[Key]Entry{}
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 4 * keys {
		k := Next(Seed("m"), fmt.Append(nil, r.IntN(keys)))
		p := Place{Cache: uint32(i%5 + 1), Tokens: uint32(i)}
		s.Put(k, Key(i), p, now)
		e := all[k]
		e.Tail, e.Places[0] = Key(i), p
		all[k] = e
	}
	missing := 0
	for k, want := range all {
		got, ok := s.Get(k, now)
		if !ok {
			missing++
		} else if got.Tail != want.Tail || got.Places[0] != want.Places[0] {
			t.Fatalf("Get(%x) = %v, want %v", k, got, want)
		}
	}
	if missing > keys/50 {
		t.Errorf("%d of %d entries are missing", missing, keys)
	}
	if n := s.Len(now); n != len(all)-missing {
		t.Errorf("Len() = %d, want %d", n, len(all)-missing)
	}
	for i := range 20 * keys {
		s.Put(Next(Seed("n"), fmt.Append(nil, i)), 1, Place{1, 1}, now)
	}
	if n := s.Len(now); n > 2*keys {
		t.Errorf("Len() = %d: the store is not bounded", n)
	}
}

// TestStoreIsWholeUnderRaces checks that readers never see half of an entry.
func TestStoreIsWholeUnderRaces(t *testing.T) {
	s, now := NewStore(1, time.Hour), time.Now()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 20000 {
				k := Key((i*7+w)%12+1) << 8
				s.Put(k, k, Place{Cache: uint32(k), Tokens: uint32(k)}, now)
				if e, ok := s.Get(k, now); ok && (e.Tail != k || e.Places[0].Tokens != uint32(k) || e.Places[0].Cache != uint32(k)) {
					t.Errorf("Get(%x) = %v: torn", k, e)
				}
			}
		})
	}
	wg.Wait()
}
