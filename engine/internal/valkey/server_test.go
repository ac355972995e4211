//go:build redis

package valkey

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/engine/internal/record"
	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/internal/secret"
)

// serve starts a real server at a port until the test ends; stop kills it.
func serve(t *testing.T, port int, args ...string) (stop func()) {
	t.Helper()
	program, err := filepath.Glob(filepath.Join(os.Getenv("MILLRACE_CACHE"), "redis-*", "redis-server"))
	if err != nil || len(program) == 0 {
		t.Fatal("there is no redis-server: make redis fetches it, into $MILLRACE_CACHE")
	}
	cmd := exec.Command(program[0], append([]string{"--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir(), "--logfile", "redis.log"}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	t.Cleanup(stop)
	for end := time.Now().Add(20 * time.Second); ; {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
			return stop
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func port(t *testing.T) int {
	t.Helper()
	ports, err := proc.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}

func store(t *testing.T, port int, l record.Limits, key string) *Store {
	t.Helper()
	var keys [][]byte
	if key != "" {
		keys = append(keys, []byte(key))
	}
	codec, err := record.NewCodec(keys...)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{URL: secret.URL(fmt.Sprintf("redis://127.0.0.1:%d/0", port)), Limits: l, Codec: codec})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestRedis(t *testing.T) {
	at := port(t)
	serve(t, at)
	s := store(t, at, record.Defaults, "")
	ctx, k := t.Context(), record.Key{Tenant: "t", ID: "a"}
	put := func(k record.Key, version uint64, value string) error {
		return s.Put(ctx, record.Record{Key: k, Version: version, Value: []byte(value)})
	}
	if _, err := s.Get(ctx, k); !errors.Is(err, record.ErrNotFound) {
		t.Errorf("before it was written: %v", err)
	}
	for _, w := range []struct {
		version uint64
		want    error
	}{{2, record.ErrConflict}, {1, nil}, {1, record.ErrConflict}, {2, nil}, {1, record.ErrConflict}} {
		if err := put(k, w.version, fmt.Sprint("v\x00", w.version)); !errors.Is(err, w.want) {
			t.Errorf("version %d: %v, want %v", w.version, err, w.want)
		}
	}
	if r, err := s.Get(ctx, k); err != nil || r.Version != 2 || string(r.Value) != "v\x002" {
		t.Errorf("Get() = %+v, %v", r, err)
	}
	if r, err := s.Get(ctx, record.Key{Tenant: "u", ID: "a"}); !errors.Is(err, record.ErrNotFound) {
		t.Errorf("another tenant sees %+v, %v", r, err)
	}
	if err := put(record.Key{ID: "large"}, 1, strings.Repeat("x", int(record.Defaults.Record)+1)); !errors.Is(err, record.ErrTooLarge) {
		t.Errorf("a large one: %v", err)
	}
	if err := s.Delete(ctx, k); err != nil {
		t.Error(err)
	}
	if err := s.Delete(ctx, k); !errors.Is(err, record.ErrNotFound) {
		t.Errorf("deleted again: %v", err)
	}
	if err := put(k, 3, "back"); !errors.Is(err, record.ErrConflict) {
		t.Errorf("a write of what was deleted meanwhile: %v", err)
	}
}

// TestRedisBounds has the oldest of a tenant make room, and time end records.
func TestRedisBounds(t *testing.T) {
	at := port(t)
	serve(t, at)
	s := store(t, at, record.Limits{TTL: time.Hour, Record: 2000, Tenant: 10_000}, "")
	ctx := t.Context()
	has := func(tenant string, i int) bool {
		_, err := s.Get(ctx, record.Key{Tenant: tenant, ID: fmt.Sprintf("r%02d", i)})
		return err == nil
	}
	for i := range 20 {
		for _, tenant := range []string{"", "b"} {
			if err := s.Put(ctx, record.Record{Key: record.Key{Tenant: tenant, ID: fmt.Sprintf("r%02d", i)}, Version: 1, Value: make([]byte, 1000)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	n := 0
	for i := range 20 {
		if has("", i) && has("b", i) {
			n++
		}
	}
	if n < 7 || n > 9 || !has("", 19) || has("", 0) {
		t.Errorf("%d of 20 are there", n)
	}
	short := store(t, at, record.Limits{TTL: 50 * time.Millisecond, Record: 2000, Tenant: 10_000}, "")
	k := record.Key{Tenant: "s", ID: "a"}
	if err := short.Put(ctx, record.Record{Key: k, Version: 1}); err != nil {
		t.Fatal(err)
	}
	names := keysOf(k)
	client, err := short.reach()
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; {
		n, err := client.Do(ctx, client.B().Exists().Key(names[:4]...).Build()).AsInt64()
		if err != nil || time.Now().After(end) {
			t.Fatalf("%d of its keys are there, %v", n, err)
		}
		if n == 0 {
			break
		}
	}
}

// TestRedisKeyAndLoss seals, refuses what is sealed otherwise, and is there again with the server.
func TestRedisKeyAndLoss(t *testing.T) {
	at := port(t)
	stop := serve(t, at)
	s, other := store(t, at, record.Defaults, "a key of 16 bytes and more"), store(t, at, record.Defaults, "another key of 16 bytes and more")
	ctx, k := t.Context(), record.Key{ID: "a"}
	if err := s.Put(ctx, record.Record{Key: k, Version: 1, Value: []byte("what was said")}); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Get(ctx, k); err != nil || string(r.Value) != "what was said" {
		t.Errorf("Get() = %+v, %v", r, err)
	}
	if r, err := other.Get(ctx, k); !errors.Is(err, record.ErrNotFound) {
		t.Errorf("with another key: %+v, %v", r, err)
	}
	stop()
	if _, err := s.Get(ctx, k); !errors.Is(err, record.ErrUnavailable) {
		t.Errorf("while the server is down: %v", err)
	}
	serve(t, at)
	for end := time.Now().Add(20 * time.Second); ; {
		_, err := s.Get(ctx, k)
		if errors.Is(err, record.ErrNotFound) { // nothing was saved
			break
		}
		if time.Now().After(end) {
			t.Fatalf("when the server is back: %v", err)
		}
	}
}
