// Package replica makes one record.Store of the files of several engines: each record is on two
// nodes, and every engine reads and writes it, wherever it is.
//
// A record's id names the node that has made it, by a hint: its owner. The other nodes follow in
// an order that the id decides (rendezvous hashing), the same for all engines. The first of them
// that answers decides which of two writes was faster, then the next one gets a copy. Who reads
// asks the first three, and the newest counts; one that lacks it is given it. So an owner that
// dies is replaced at once, and one that comes back is put right as records are used. What is
// deleted is deleted everywhere, also on nodes that are away, once they are back.
//
// Where the links between engines are cut, but not those to them, two writers may both be right,
// and the later one wins.
//
// Called through record.Store; it is alone where there are no other nodes. Its one rule: that a
// record is nowhere is said only where no more than one node that may have it did not answer.
package replica

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/engine/internal/boltdb"
	"millrace.dev/millrace/engine/internal/record"
	"millrace.dev/millrace/engine/internal/rendezvous"
)

// Copies is on how many nodes a record is.
const Copies = 2

// asked is how many nodes are asked for a record at once: one more than have it, as nodes come
// and go.
const asked = Copies + 1

// Place is where copies of records are: a file, here or on another node. Its methods fail as
// those of boltdb.DB do, with record.ErrUnavailable where the node does not answer.
type Place interface {
	// Node is its name.
	Node() string
	Load(context.Context, record.Key) ([]byte, error)
	Keep(ctx context.Context, k record.Key, raw []byte, renew bool) error
}

// Config is what a Store needs.
type Config struct {
	// Node is this node, whose file is Disk.
	Node   string
	Disk   *boltdb.DB
	Codec  *record.Codec
	Limits record.Limits
	// Others are on all other nodes that there are; nil: there are none.
	Others func() []Place
}

// Store is records on several nodes.
type Store struct{ cfg Config }

// New returns a store.
func New(cfg Config) *Store {
	if cfg.Others == nil {
		cfg.Others = func() []Place { return nil }
	}
	return &Store{cfg}
}

// HintSize is how many letters of an id are its hint.
const HintSize = 8

// Hint stands for a node in the ids of its records.
func Hint(node string) string {
	sum := sha256.Sum256([]byte(node))
	return base32.StdEncoding.EncodeToString(sum[:5])
}

// here is this node's file.
type here struct{ *Store }

func (h here) Node() string { return h.cfg.Node }

func (h here) Load(_ context.Context, k record.Key) ([]byte, error) { return h.cfg.Disk.Load(k) }

func (h here) Keep(_ context.Context, k record.Key, raw []byte, renew bool) error {
	return h.cfg.Disk.Keep(k, raw, renew)
}

// order returns where a record of an id is, or is looked for: its owner first.
func (s *Store) order(id string) []Place {
	all := append([]Place{here{s}}, s.cfg.Others()...)
	_, rest, _ := strings.Cut(id, "_")
	hint := rest[:min(HintSize, len(rest))]
	slices.SortFunc(all, func(a, b Place) int {
		if x, y := Hint(a.Node()) == hint, Hint(b.Node()) == hint; x != y {
			if x {
				return -1
			}
			return 1
		}
		return rendezvous.Compare(a.Node(), b.Node(), id)
	})
	return all
}

// found is what a place has said.
type found struct {
	place Place
	raw   []byte
	rec   record.Record
	err   error
}

// ask asks places for a record, all at once.
func (s *Store) ask(ctx context.Context, places []Place, k record.Key) []found {
	all := make([]found, len(places))
	g := errgroup.Group{}
	for i, p := range places {
		g.Go(func() error {
			f := found{place: p}
			if f.raw, f.err = p.Load(ctx, k); f.err == nil {
				if f.rec, f.err = s.cfg.Codec.Decode(k, f.raw); f.err != nil {
					f.err = errors.Join(record.ErrNotFound, f.err)
				}
			}
			all[i] = f
			return nil
		})
	}
	_ = g.Wait()
	return all
}

// newest returns the newest of what was found, a tombstone perhaps. It fails with
// record.ErrNotFound or record.ErrUnavailable.
func newest(all []found) (found, error) {
	best, away := found{err: record.ErrNotFound}, 0
	for _, f := range all {
		switch {
		case f.err == nil && (best.err != nil || f.rec.Newer(best.rec) || f.rec.Version == best.rec.Version && f.rec.Expires.After(best.rec.Expires)):
			best = f
		case errors.Is(f.err, record.ErrUnavailable):
			away++
		}
	}
	if best.err != nil && (away > 1 || away == len(all)) {
		return best, record.ErrUnavailable
	}
	return best, best.err
}

// find finds the newest of a record, and puts right those of its places that have an older one.
func (s *Store) find(ctx context.Context, k record.Key) (found, error) {
	if !k.Valid() {
		return found{}, record.ErrNotFound
	}
	order := s.order(k.ID)
	first := s.ask(ctx, order[:min(asked, len(order))], k)
	best, err := newest(first)
	if err != nil && len(order) > asked {
		best, err = newest(append(first, s.ask(ctx, order[asked:], k)...))
	}
	if err != nil {
		return best, err
	}
	s.repair(ctx, k, best, first)
	return best, nil
}

// repair gives a record to the places that should have it, and renews one that has lived for
// half of its time.
func (s *Store) repair(ctx context.Context, k record.Key, best found, places []found) {
	raw, renew := best.raw, false
	if now := s.cfg.Disk.Now(); !best.rec.Deleted && best.rec.Expires.Sub(now) < s.cfg.Limits.TTL/2 {
		r := best.rec
		r.Expires = now.Add(s.cfg.Limits.TTL)
		raw, renew = s.cfg.Codec.Encode(r), true
	}
	holders := 0
	for _, f := range places {
		has := f.err == nil && f.rec.Version == best.rec.Version && f.rec.Deleted == best.rec.Deleted
		if errors.Is(f.err, record.ErrUnavailable) || holders >= Copies && f.err != nil {
			continue
		}
		if has && !renew || f.place.Keep(ctx, k, raw, renew) == nil {
			holders++ // one that is full, or was faster, is another's to put right
		}
	}
}

// Get returns a record: see record.Store.
func (s *Store) Get(ctx context.Context, k record.Key) (record.Record, error) {
	f, err := s.find(ctx, k)
	switch {
	case err != nil:
		return record.Record{}, err
	case f.rec.Deleted:
		return record.Record{}, record.ErrNotFound
	}
	return f.rec, nil
}

// Put writes a record: see record.Store. It is durable on two nodes, or on one where no other
// answers.
func (s *Store) Put(ctx context.Context, r record.Record) error {
	if !r.Valid() {
		return record.ErrNotFound
	}
	if int64(len(r.Value)) > s.cfg.Limits.Record {
		return record.ErrTooLarge
	}
	r.Expires = s.cfg.Disk.Now().Add(s.cfg.Limits.TTL)
	raw := s.cfg.Codec.Encode(r)
	order := s.order(r.ID)
	if r.Version == 1 {
		return s.first(ctx, r.Key, raw, order)
	}
	kept := 0
	var last error
	for _, p := range order {
		err := p.Keep(ctx, r.Key, raw, false)
		switch {
		case err == nil:
			kept++
		case kept == 0 && (errors.Is(err, record.ErrConflict) || errors.Is(err, record.ErrTooLarge)):
			return err
		default:
			last = err
		}
		if kept == Copies {
			return nil
		}
	}
	return orUnavailable(kept, last)
}

// first writes a record of an id that nobody else has: to its places at once, and to others
// where those don't answer.
func (s *Store) first(ctx context.Context, k record.Key, raw []byte, order []Place) error {
	n := min(Copies, len(order))
	errs := make([]error, n)
	g := errgroup.Group{}
	for i, p := range order[:n] {
		g.Go(func() error {
			errs[i] = p.Keep(ctx, k, raw, false)
			return nil
		})
	}
	_ = g.Wait()
	kept := 0
	var last error
	for _, err := range errs {
		if err == nil {
			kept++
		} else {
			last = err
		}
	}
	for _, p := range order[n:] {
		if kept == n {
			break
		}
		if err := p.Keep(ctx, k, raw, false); err == nil {
			kept++
		}
	}
	return orUnavailable(kept, last)
}

func orUnavailable(kept int, err error) error {
	if kept > 0 {
		return nil
	}
	if errors.Is(err, record.ErrTooLarge) || errors.Is(err, record.ErrConflict) {
		return err
	}
	return errors.Join(record.ErrUnavailable, err)
}

// Delete puts a tombstone in the place of all copies: see record.Store.
func (s *Store) Delete(ctx context.Context, k record.Key) error {
	f, err := s.find(ctx, k)
	switch {
	case err != nil:
		return err
	case f.rec.Deleted:
		return record.ErrNotFound
	}
	stone := record.Record{Key: k, Version: f.rec.Version + 1, Deleted: true, Expires: s.cfg.Disk.Now().Add(s.cfg.Limits.TTL)}
	raw := s.cfg.Codec.Encode(stone)
	order := s.order(k.ID)
	errs := make([]error, len(order))
	g := errgroup.Group{}
	for i, p := range order {
		g.Go(func() error {
			errs[i] = p.Keep(ctx, k, raw, false)
			return nil
		})
	}
	_ = g.Wait()
	kept := 0
	for _, err := range errs {
		if err == nil || errors.Is(err, record.ErrConflict) {
			kept++
		}
	}
	return orUnavailable(kept, errors.Join(errs...))
}

// shareEvery is how often nodes that have come back are looked for.
const shareEvery = 2 * time.Second

// Run has nodes that were away know what was deleted meanwhile, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(shareEvery)
	defer tick.Stop()
	current := map[string]bool{} // by node: whether it has all tombstones that are here
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, p := range s.cfg.Others() {
			_, err := p.Load(ctx, probe)
			switch up := !errors.Is(err, record.ErrUnavailable); {
			case !up:
				current[p.Node()] = false
			case !current[p.Node()]:
				current[p.Node()] = s.share(ctx, p)
			}
		}
	}
}

// probe is the key of a record that nobody has.
var probe = record.Key{ID: "none"}

// share gives a place all tombstones, and reports whether it has taken them.
func (s *Store) share(ctx context.Context, p Place) bool {
	all := true
	err := s.cfg.Disk.Tombstones(func(k record.Key, raw []byte) bool {
		err := p.Keep(ctx, k, raw, false)
		all = !errors.Is(err, record.ErrUnavailable)
		return all
	})
	return err == nil && all
}
