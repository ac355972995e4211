package boltdb

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/engine/internal/record"
)

// file opens a file of a folder within limits.
func file(t testing.TB, path string, l record.Limits) *DB {
	t.Helper()
	d, err := Open(Config{Path: path, Limits: l, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// keep writes a record that ends after a while, and returns what became of it.
func keep(d *DB, tenant, id string, version uint64, life time.Duration, value string) error {
	k := record.Key{Tenant: tenant, ID: id}
	return d.Keep(k, (*record.Codec)(nil).Encode(record.Record{Key: k, Version: version, Expires: d.Now().Add(life), Value: []byte(value)}), false)
}

// all does something many times at once: writes go to the disk together.
func all(t testing.TB, n int, do func(i int) error) {
	t.Helper()
	g := errgroup.Group{}
	for i := range n {
		g.Go(func() error { return do(i) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// value returns what a record says; "": there is none.
func value(t testing.TB, d *DB, tenant, id string) string {
	t.Helper()
	k := record.Key{Tenant: tenant, ID: id}
	raw, err := d.Load(k)
	if errors.Is(err, record.ErrNotFound) {
		return ""
	}
	r, err2 := (*record.Codec)(nil).Decode(k, raw)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return string(r.Value)
}

func TestVersions(t *testing.T) {
	d := file(t, filepath.Join(t.TempDir(), "r"), record.Defaults)
	defer d.close()
	for _, w := range []struct {
		version uint64
		want    error
	}{{1, nil}, {1, record.ErrConflict}, {2, nil}, {1, record.ErrConflict}, {4, nil}} {
		if err := keep(d, "t", "a", w.version, time.Hour, fmt.Sprint(w.version)); !errors.Is(err, w.want) {
			t.Errorf("version %d: %v, want %v", w.version, err, w.want)
		}
	}
	if got := value(t, d, "t", "a"); got != "4" {
		t.Errorf("it is %q", got)
	}
	if got := value(t, d, "u", "a"); got != "" {
		t.Errorf("another tenant sees %q", got)
	}
	k := record.Key{Tenant: "t", ID: "a"}
	stone := (*record.Codec)(nil).Encode(record.Record{Key: k, Version: 5, Deleted: true, Expires: d.Now().Add(time.Hour)})
	if err := d.Keep(k, stone, false); err != nil {
		t.Fatal(err)
	}
	if err := keep(d, "t", "a", 9, time.Hour, "back"); !errors.Is(err, record.ErrConflict) {
		t.Errorf("what is deleted comes back: %v", err)
	}
	n := 0
	if err := d.Tombstones(func(got record.Key, raw []byte) bool { n++; return got == k && bytes.Equal(raw, stone) }); err != nil || n != 1 {
		t.Errorf("%d tombstones, %v", n, err)
	}
	if err := d.Keep(k, stone[:len(stone)-1], false); !errors.Is(err, record.ErrTorn) {
		t.Errorf("a torn record: %v", err)
	}
}

// TestBounds has the oldest of a tenant make room, and the largest tenant for others.
func TestBounds(t *testing.T) {
	d := file(t, filepath.Join(t.TempDir(), "r"), record.Limits{Record: 1000, Tenant: 5000, Total: 8000})
	defer d.close()
	write := func(tenant string, n int) {
		for i := range n {
			if err := keep(d, tenant, fmt.Sprintf("r%02d", i), 1, time.Hour+time.Duration(i)*time.Second, strings.Repeat("x", 900)); err != nil {
				t.Fatalf("%s %d: %v", tenant, i, err)
			}
		}
	}
	count := func(tenant string) (n int) {
		for i := range 20 {
			if value(t, d, tenant, fmt.Sprintf("r%02d", i)) != "" {
				n++
			}
		}
		return n
	}
	write("a", 12)
	if n := count("a"); n != 5 || value(t, d, "a", "r11") == "" || value(t, d, "a", "r07") == "" {
		t.Errorf("%d of a are there", n)
	}
	write("b", 4)
	if a, b := count("a"), count("b"); a != 4 || b != 4 || d.Size() > 8000 {
		t.Errorf("a has %d, b %d, in %d bytes", a, b, d.Size())
	}
	if err := keep(d, "a", "large", 1, time.Hour, strings.Repeat("x", 1001)); !errors.Is(err, record.ErrTooLarge) {
		t.Errorf("a large one: %v", err)
	}
}

func TestTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r")
	synctest.Test(t, func(t *testing.T) {
		d := file(t, path, record.Defaults)
		if err := errors.Join(keep(d, "t", "short", 1, time.Hour, "s"), keep(d, "t", "long", 1, 72*time.Hour, "l")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour + time.Second)
		if s, l := value(t, d, "t", "short"), value(t, d, "t", "long"); s != "" || l != "l" {
			t.Errorf("after an hour they are %q and %q", s, l)
		}
		before := d.Size()
		if err := errors.Join(d.Sweep(), d.close()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * 365 * 24 * time.Hour) // the clock is ahead at the next start
		d = file(t, path, record.Defaults)
		defer d.close()
		if s, l := value(t, d, "t", "short"), value(t, d, "t", "long"); s != "" || l != "l" || d.Size() >= before {
			t.Errorf("with a clock years ahead they are %q and %q in %d bytes, before %d", s, l, d.Size(), before)
		}
	})
}

func TestClockGoesBack(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, tt := range []struct{ latest, clock, want time.Duration }{
		{0, time.Minute, time.Minute}, {0, -24 * time.Hour, 0}, {0, 20 * 365 * 24 * time.Hour, mostAway},
	} {
		if got := since(now.Add(tt.latest), now.Add(tt.clock)); !got.Equal(now.Add(tt.want)) {
			t.Errorf("%v behind the file's: %v, want %v", tt.clock, got.Sub(now), tt.want)
		}
	}
}

// TestDeletionDeletes looks for the bytes in the file itself.
func TestDeletionDeletes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r")
	d := file(t, path, record.Defaults)
	defer d.close()
	secret := strings.Repeat("very secret ", 40)
	all(t, 50, func(i int) error { return keep(d, "t", fmt.Sprint("r", i), 1, time.Hour, secret) })
	all(t, 50, func(i int) error {
		k := record.Key{Tenant: "t", ID: fmt.Sprint("r", i)}
		return d.Keep(k, (*record.Codec)(nil).Encode(record.Record{Key: k, Version: 2, Deleted: true, Expires: d.Now().Add(time.Hour)}), false)
	})
	if err := keep(d, "t", "other", 1, time.Hour, "stays"); err != nil {
		t.Fatal(err)
	}
	if err := d.Replace(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || bytes.Contains(b, []byte("very secret")) {
		t.Errorf("what was deleted is in the file, or %v", err)
	}
	if got := value(t, d, "t", "other"); got != "stays" {
		t.Errorf("what was not deleted is %q", got)
	}
}

// TestTornFile cuts and changes a file: what is opened has no record that is not one that was
// written, and takes new ones.
func TestTornFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r")
	d := file(t, path, record.Defaults)
	all(t, 200, func(i int) error {
		return keep(d, "t", fmt.Sprint("r", i), 1, time.Hour, strings.Repeat(fmt.Sprint("value ", i, " "), 20))
	})
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(7, 7))
	kept := 0
	for round := range 45 {
		b := bytes.Clone(whole)
		if round%3 == 0 {
			b = b[:r.IntN(len(b))]
		} else {
			for range 1 + r.IntN(20) {
				b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			}
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		d := file(t, path, record.Defaults)
		for i := range 200 {
			got := value(t, d, "t", fmt.Sprint("r", i))
			if got != "" && got != strings.Repeat(fmt.Sprint("value ", i, " "), 20) {
				t.Fatalf("round %d: record %d is %q", round, i, got)
			}
			if got != "" {
				kept++
			}
		}
		if err := keep(d, "t", "new", 1, time.Hour, "new"); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := d.close(); err != nil {
			t.Fatal(err)
		}
	}
	if kept < 1000 {
		t.Errorf("of 9000 records only %d were kept", kept)
	}
}

func TestInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r")
	d := file(t, path, record.Defaults)
	defer d.close()
	if _, err := Open(Config{Path: path, Limits: record.Defaults, Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second one: %v", err)
	}
}
