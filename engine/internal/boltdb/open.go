package boltdb

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"millrace.dev/millrace/engine/internal/record"
	"millrace.dev/millrace/internal/regular"
)

// Files beside the one that is open: the next one while it is written, and the last one that
// was torn.
const (
	nextFile = ".next"
	tornFile = ".torn"
)

// Open opens a file, or makes it. Of one that is torn, what is whole is kept; the torn one is
// kept beside it, by the name with .torn.
func Open(cfg Config) (*DB, error) {
	d := &DB{cfg: cfg, started: time.Now()}
	d.first = d.started.Round(0)
	if _, err := os.Lstat(cfg.Path); errors.Is(err, os.ErrNotExist) {
		db, err := create(cfg.Path)
		d.db = db
		return d, err
	}
	if err := regular.Check(cfg.Path); err != nil {
		return nil, err // the database would wait for ever for somebody to write into a pipe
	}
	kept, lost, clean, err := d.renew()
	if err == nil && !clean {
		cfg.Log.Warn("the file of records was torn: what was whole is kept", "file", cfg.Path, "kept", kept, "lost", lost)
	}
	if err != nil && !clean {
		return nil, fmt.Errorf("%s: %w", cfg.Path, err)
	}
	if err != nil { // the disk is full: the file as it is will do
		cfg.Log.Warn("the file of records is not copied", "file", cfg.Path, "err", err)
	}
	d.db, err = open(cfg.Path)
	return d, err
}

// Replace puts a copy of what has not ended in the place of the file. Meanwhile nothing is read
// or written.
func (d *DB) Replace() error {
	if err := d.Sweep(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.db.Close(); err != nil {
		return err
	}
	_, _, _, failed := d.renew()
	db, err := open(d.cfg.Path)
	if err == nil {
		d.db = db
	}
	return errors.Join(failed, err)
}

// renew copies what is whole of a file that nobody has open into one that takes its place. It
// returns how many records it has kept and how many of those that it could read were torn, and
// whether the file could be read to its end.
func (d *DB) renew() (kept, lost int, clean bool, err error) {
	path := d.cfg.Path
	_ = os.Remove(path + nextFile) // of a start that came to no end
	next, err := create(path + nextFile)
	if err != nil {
		clean, _ = d.readable()
		return 0, 0, clean, err
	}
	var w error
	clean, r := d.walk(func(at time.Time, batch []entry) error {
		d.first = since(at, d.first)
		n, torn, err := d.copy(next, batch)
		kept, lost, w = kept+n, lost+torn, err
		return err
	})
	if errors.Is(r, errInUse) {
		return 0, 0, false, errors.Join(r, next.Close(), os.Remove(path+nextFile))
	}
	if err := errors.Join(w, next.Close()); err != nil {
		_ = os.Remove(path + nextFile)
		clean, _ = d.readable()
		return 0, 0, clean, err
	}
	if !clean {
		if err := os.Rename(path, path+tornFile); err != nil {
			return kept, lost, clean, err
		}
	}
	if err := os.Rename(path+nextFile, path); err != nil {
		return kept, lost, clean, err
	}
	return kept, lost, clean, syncFolder(filepath.Dir(path))
}

func syncFolder(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fsync(fd), unix.Close(fd))
}

// mostAway bounds what counts of the time for which the file was not open: a clock that is years
// ahead at a start ends nothing that has more time left.
const mostAway = 24 * time.Hour

// since returns the time of records at a start: the clock's, but not before the file's latest,
// nor much behind it.
func since(latest, clock time.Time) time.Time {
	switch {
	case clock.Before(latest):
		return latest
	case latest.Unix() > 0 && clock.Sub(latest) > mostAway:
		return latest.Add(mostAway)
	}
	return clock
}

// copy writes those of a batch that are whole and have not ended.
func (d *DB) copy(to *bolt.DB, batch []entry) (kept, torn int, err error) {
	err = to.Update(func(tx *bolt.Tx) error {
		s := &space{tx: tx, limits: d.cfg.Limits}
		for _, e := range batch {
			r, err := d.cfg.Codec.Decode(e.key, e.raw)
			switch {
			case err != nil:
				torn++
				continue
			case !r.Expires.After(d.Now()):
				continue
			}
			if err := s.put(r, e.raw); err != nil {
				return err
			}
			kept++
		}
		return s.mark(d.Now())
	})
	return kept, torn, err
}

// entry is a record of a file.
type entry struct {
	key record.Key
	raw []byte
}

// copyAtOnce is about how many bytes are copied in one transaction.
const copyAtOnce = 8 << 20

var (
	errInUse = errors.New("another process has it open: give each engine a file of its own")
	errTorn  = errors.New("it is torn")
)

// readable reports whether a file can be read to its end.
func (d *DB) readable() (bool, error) {
	return d.walk(func(time.Time, []entry) error { return nil })
}

// walk calls do with all records of the file, in batches, and the latest time in it. It reports
// whether the file is whole. What the library makes of torn pages are panics and faults.
func (d *DB) walk(do func(time.Time, []entry) error) (clean bool, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			clean, err = false, fmt.Errorf("%w: %v", errTorn, r)
		}
	}()
	db, err := bolt.Open(d.cfg.Path, 0o600, &bolt.Options{Timeout: lockFor, ReadOnly: true})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return false, errInUse
	case err != nil:
		return false, err
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error { return each(tx, do) })
	return err == nil, err
}

// each calls do with all records of a transaction. Keys that do not ascend, and more of them
// than there is room for, are those of a torn file.
func each(tx *bolt.Tx, do func(time.Time, []entry) error) error {
	b, m := tx.Bucket(records), tx.Bucket(meta)
	if b == nil || m == nil {
		return errTorn
	}
	at := time.Unix(min(number(m.Get(clock)), 1<<33), 0)
	var batch []entry
	var before []byte
	size := 0
	for c, k, v := b.Cursor(), []byte(nil), []byte(nil); ; {
		if before == nil {
			k, v = c.First()
		} else {
			k, v = c.Next()
		}
		if k == nil {
			return do(at, batch)
		}
		if before != nil && bytes.Compare(before, k) >= 0 {
			return errors.Join(errTorn, do(at, batch))
		}
		before = append(before[:0], k...)
		key, ok := parse(k)
		if !ok {
			return errors.Join(errTorn, do(at, batch))
		}
		batch, size = append(batch, entry{key, append([]byte(nil), v...)}), size+len(v)
		if size > copyAtOnce {
			if err := do(at, batch); err != nil {
				return err
			}
			batch, size = nil, 0
		}
	}
}

// create makes an empty file.
func create(path string) (*bolt.DB, error) {
	db, err := open(path)
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{records, byAge, byEnd, tenants, meta} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// batchFor is how long a write waits for others that go to the disk with it.
const batchFor = 2 * time.Millisecond

func open(path string) (*bolt.DB, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockFor})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	db.MaxBatchDelay = batchFor
	return db, nil
}
