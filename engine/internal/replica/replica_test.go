package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"millrace.dev/millrace/engine/internal/boltdb"
	"millrace.dev/millrace/engine/internal/record"
)

// mesh is nodes that reach each other, but for those that are down.
type mesh struct {
	stores []*Store
	down   []atomic.Bool
}

// node is one of them, as the others reach it.
type node struct {
	m *mesh
	i int
}

func (n node) Node() string { return fmt.Sprintf("node-%d", n.i) }

func (n node) Load(_ context.Context, k record.Key) ([]byte, error) {
	if n.m.down[n.i].Load() {
		return nil, record.ErrUnavailable
	}
	return n.m.stores[n.i].cfg.Disk.Load(k)
}

func (n node) Keep(_ context.Context, k record.Key, raw []byte, renew bool) error {
	if n.m.down[n.i].Load() {
		return record.ErrUnavailable
	}
	return n.m.stores[n.i].cfg.Disk.Keep(k, raw, renew)
}

func newMesh(t *testing.T, nodes int) *mesh {
	t.Helper()
	m := &mesh{down: make([]atomic.Bool, nodes)}
	limits := record.Defaults
	for i := range nodes {
		d, err := boltdb.Open(boltdb.Config{Path: filepath.Join(t.TempDir(), "r"), Limits: limits, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		m.stores = append(m.stores, New(Config{Node: node{m, i}.Node(), Disk: d, Limits: limits, Others: func() []Place {
			var all []Place
			for j := range nodes {
				if j != i {
					all = append(all, node{m, j})
				}
			}
			return all
		}}))
	}
	return m
}

func (m *mesh) copies(k record.Key) (n int) {
	for _, s := range m.stores {
		if _, err := s.cfg.Disk.Load(k); err == nil {
			n++
		}
	}
	return n
}

// TestOwnerIsLost has others read, change and delete what a node that is lost has made, which
// is put right when it is back.
func TestOwnerIsLost(t *testing.T) {
	m, ctx := newMesh(t, 4), t.Context()
	for i := range 8 {
		k := record.Key{Tenant: "t", ID: record.NewID("resp_", Hint("node-0"))}
		put := func(s, version int) error {
			return m.stores[s].Put(ctx, record.Record{Key: k, Version: uint64(version), Value: []byte(fmt.Sprint(version))})
		}
		if err := put(0, 1); err != nil {
			t.Fatal(err)
		}
		if n := m.copies(k); n != Copies {
			t.Errorf("%d copies", n)
		}
		m.down[0].Store(true)
		for s := 1; s < 4; s++ {
			if r, err := m.stores[s].Get(ctx, k); err != nil || string(r.Value) != "1" {
				t.Errorf("at %d: %+v, %v", s, r, err)
			}
		}
		if err := errors.Join(put(1+i%3, 2), put(1+(i+1)%3, 3)); err != nil {
			t.Error(err)
		}
		if err := put(2, 3); !errors.Is(err, record.ErrConflict) {
			t.Errorf("a second writer: %v", err)
		}
		m.down[0].Store(false)
		for s := range 4 {
			if r, err := m.stores[s].Get(ctx, k); err != nil || string(r.Value) != "3" {
				t.Errorf("when it is back, at %d: %+v, %v", s, r, err)
			}
		}
		if r, err := m.stores[0].cfg.Disk.Load(k); err != nil {
			t.Errorf("the owner has %q, %v", r, err)
		}
	}
}

// TestDeletedWhileAway has a node that comes back not bring back what was deleted.
func TestDeletedWhileAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, ctx := newMesh(t, 2), t.Context()
		k := record.Key{ID: record.NewID("resp_", Hint("node-0"))}
		if err := m.stores[0].Put(ctx, record.Record{Key: k, Version: 1, Value: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		m.down[0].Store(true)
		run, stop := context.WithCancel(ctx)
		ended := make(chan error)
		go func() { ended <- m.stores[1].Run(run) }()
		if err := m.stores[1].Delete(ctx, k); err != nil {
			t.Fatal(err)
		}
		time.Sleep(shareEvery * 3 / 2)
		m.down[0].Store(false)
		time.Sleep(2 * shareEvery)
		m.down[1].Store(true) // the only other one that knows
		if r, err := m.stores[0].Get(ctx, k); !errors.Is(err, record.ErrNotFound) {
			t.Errorf("Get() = %+v, %v", r, err)
		}
		if err := m.stores[0].Delete(ctx, k); !errors.Is(err, record.ErrNotFound) {
			t.Errorf("Delete() = %v", err)
		}
		stop()
		<-ended
	})
}

// TestNobodyKnows has what can't be known not be said.
func TestNobodyKnows(t *testing.T) {
	m, ctx := newMesh(t, 4), t.Context()
	k := record.Key{ID: record.NewID("resp_", Hint("node-0"))}
	if _, err := m.stores[1].Get(ctx, k); !errors.Is(err, record.ErrNotFound) {
		t.Errorf("with all up: %v", err)
	}
	m.down[0].Store(true)
	if _, err := m.stores[1].Get(ctx, k); !errors.Is(err, record.ErrNotFound) {
		t.Errorf("with one down: %v", err)
	}
	m.down[2].Store(true)
	if _, err := m.stores[1].Get(ctx, k); !errors.Is(err, record.ErrUnavailable) {
		t.Errorf("with two down: %v", err)
	}
}

func TestRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, ctx := newMesh(t, 2), t.Context()
		k := record.Key{ID: record.NewID("resp_", Hint("node-1"))}
		if err := m.stores[0].Put(ctx, record.Record{Key: k, Version: 1}); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			time.Sleep(record.Defaults.TTL * 2 / 3)
			if _, err := m.stores[0].Get(ctx, k); err != nil {
				t.Fatalf("of one that is used: %v", err)
			}
		}
		time.Sleep(record.Defaults.TTL + time.Second)
		if _, err := m.stores[1].Get(ctx, k); !errors.Is(err, record.ErrNotFound) {
			t.Errorf("of one that is not: %v", err)
		}
	})
}
