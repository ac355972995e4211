// Package boltdb keeps the bytes of records in one file of an embedded database, within bounds.
//
// A write is on disk when it is acknowledged, whatever becomes of the process. At every start,
// and where records have ended, what is whole is copied into a new file, which takes the place of
// the old one: so a torn file costs what is torn, and bytes of what was deleted do not stay.
//
// Used by replica. Its one rule: its time is the wall clock's of its start, and what has passed
// since: it never goes back, nor a day ahead at once, whatever that clock does.
package boltdb

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"millrace.dev/millrace/engine/internal/record"
)

// Config is what a DB needs.
type Config struct {
	// Path is the file's; its folder must be there.
	Path   string
	Limits record.Limits
	// Codec decides which bytes are a record.
	Codec *record.Codec
	Log   *slog.Logger
}

// DB is an open file. Its methods are called from many goroutines.
type DB struct {
	cfg     Config
	started time.Time // with the monotonic clock
	first   time.Time // what started is in the time of records

	// mu is held to write by who replaces the file, to read by who uses it.
	mu sync.RWMutex
	db *bolt.DB
}

// Buckets. A key of a record is its tenant, a zero byte and its id.
var (
	records = []byte("records") // its bytes, by key
	byAge   = []byte("age")     // tenant, 0, when it expires, id: nothing
	byEnd   = []byte("end")     // when it expires, key: nothing
	tenants = []byte("tenants") // tenant, 0: how many bytes it has
	meta    = []byte("meta")    // clock: the latest time; total: bytes of all
	clock   = []byte("clock")
	total   = []byte("total")
)

// lockFor bounds how long another process that has the file is waited for.
const lockFor = time.Second

func keyOf(k record.Key) []byte { return []byte(k.Tenant + "\x00" + k.ID) }

// parse returns the record's key of a key of the file.
func parse(b []byte) (record.Key, bool) {
	for i, c := range b {
		if c == 0 {
			k := record.Key{Tenant: string(b[:i]), ID: string(b[i+1:])}
			return k, k.Valid()
		}
	}
	return record.Key{}, false
}

func when(b []byte) time.Time { return time.Unix(int64(binary.BigEndian.Uint64(b)), 0) }

func stamp(t time.Time) []byte { return binary.BigEndian.AppendUint64(nil, uint64(t.Unix())) }

func number(b []byte) int64 {
	if len(b) != 8 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(b))
}

// Now is the time of records.
func (d *DB) Now() time.Time { return d.first.Add(time.Since(d.started)) }

// Load returns the bytes of a record that has not ended, perhaps of a tombstone. It fails with
// record.ErrNotFound.
func (d *DB) Load(k record.Key) ([]byte, error) {
	if !k.Valid() {
		return nil, record.ErrNotFound
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	var raw []byte
	err := d.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(records).Get(keyOf(k))
		if r, err := record.Head(k, b); err == nil && r.Expires.After(d.Now()) {
			raw = append(raw, b...)
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", record.ErrUnavailable, err)
	case raw == nil:
		return nil, record.ErrNotFound
	}
	return raw, nil
}

// Keep writes the bytes of a record that is newer than the one there, or, to renew that, is the
// same and lives longer. It fails with record.ErrConflict, record.ErrTooLarge, record.ErrTorn or
// record.ErrUnavailable.
func (d *DB) Keep(k record.Key, raw []byte, renew bool) error {
	r, err := d.cfg.Codec.Decode(k, raw)
	if err != nil {
		return err
	}
	if int64(len(r.Value)) > d.cfg.Limits.Record || needs(k, raw) > min(d.cfg.Limits.Tenant, d.cfg.Limits.Total) {
		return record.ErrTooLarge
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	err = d.db.Batch(func(tx *bolt.Tx) error {
		s := &space{tx: tx, limits: d.cfg.Limits}
		old, err := record.Head(k, s.get(k))
		if err == nil && old.Expires.After(d.Now()) && !r.Newer(old) && !(renew && r.Version == old.Version && r.Deleted == old.Deleted && r.Expires.After(old.Expires)) {
			return record.ErrConflict
		}
		if err := s.put(r, raw); err != nil {
			return err
		}
		return s.mark(d.Now())
	})
	switch {
	case err == nil || errors.Is(err, record.ErrConflict):
		return err
	default:
		return fmt.Errorf("%w: %w", record.ErrUnavailable, err)
	}
}

// Tombstones calls do with every tombstone, until it returns false.
func (d *DB) Tombstones(do func(record.Key, []byte) bool) error {
	type stone struct {
		k   record.Key
		raw []byte
	}
	var all []stone
	d.mu.RLock()
	err := d.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(records).ForEach(func(b, raw []byte) error {
			k, ok := parse(b)
			if r, err := record.Head(k, raw); ok && err == nil && r.Deleted && r.Expires.After(d.Now()) {
				all = append(all, stone{k, append([]byte(nil), raw...)})
			}
			return nil
		})
	})
	d.mu.RUnlock()
	for _, s := range all {
		if !do(s.k, s.raw) {
			break
		}
	}
	return err
}

// Size returns how many bytes all records need.
func (d *DB) Size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var n int64
	_ = d.db.View(func(tx *bolt.Tx) error { // a closed file has none
		n = number(tx.Bucket(meta).Get(total))
		return nil
	})
	return n
}

// How often records that have ended are taken out, and the file is replaced where some were.
const (
	sweepEvery   = time.Minute
	replaceEvery = time.Hour
)

// Run takes out what has ended until ctx does, then it closes the file.
func (d *DB) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	replaced := time.Now()
	for {
		select {
		case <-ctx.Done():
			return d.close()
		case <-tick.C:
		}
		if err := d.Sweep(); err != nil {
			d.cfg.Log.Warn("records that have ended stay", "file", d.cfg.Path, "err", err)
		}
		if time.Since(replaced) < replaceEvery {
			continue
		}
		replaced = time.Now()
		if err := d.Replace(); err != nil {
			d.cfg.Log.Warn("bytes of records that have ended stay", "file", d.cfg.Path, "err", err)
		}
	}
}

func (d *DB) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.db.Close()
}

// sweepAtOnce is how many records are taken out in one transaction.
const sweepAtOnce = 1000

// Sweep takes out the records that have ended.
func (d *DB) Sweep() error {
	for {
		n := 0
		d.mu.RLock()
		err := d.db.Update(func(tx *bolt.Tx) error {
			s := &space{tx: tx, limits: d.cfg.Limits}
			var all []record.Key
			c := tx.Bucket(byEnd).Cursor()
			for b, _ := c.First(); len(b) > 8 && !when(b[:8]).After(d.Now()) && len(all) < sweepAtOnce; b, _ = c.Next() {
				if k, ok := parse(b[8:]); ok {
					all = append(all, k)
				}
			}
			for _, k := range all {
				if err := s.drop(k); err != nil {
					return err
				}
			}
			n = len(all)
			return s.mark(d.Now())
		})
		d.mu.RUnlock()
		if err != nil || n < sweepAtOnce {
			return err
		}
	}
}
