package snapshot

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/kvfile"
	"millrace.dev/millrace/internal/regular"
)

// Folder has snapshots in files, each named by its key, "0123456789abcdef.kv", within a bound:
// the one that is worth the least makes room. It is safe for concurrent use.
//
// Beside them are folders of what is not whole yet, which are emptied at the start: "state" is
// where the backend writes and reads, "part" what is on its way here.
type Folder struct {
	// Constant after Open.
	dir  string
	most int64 // bytes

	// mu guards the fields below.
	mu    sync.Mutex
	all   map[uint64]*entry // by key of the whole prompt
	by    map[uint64]*entry // by key of any beginning: the longest that has it
	bytes int64
	names uint64 // how many temporary names were given
}

// entry is a snapshot. It is never changed but for used, which Folder.mu guards.
type entry struct {
	h    *enginepb.SnapshotHeader
	file kvfile.File // Sum is zero: not known
	used time.Time
}

func (e *entry) key() uint64 { return kvfile.Key(e.h) }

// mostEntries bounds how many snapshots there are: a header has about a KiB.
const mostEntries = 2048

// Folders and endings of files.
const (
	stateDir = "state"
	partDir  = "part"
	ending   = ".kv"
)

// Open opens a folder, or makes it. It returns how many files in it were none.
func Open(dir string, most int64) (f *Folder, torn int, err error) {
	f = &Folder{dir: dir, most: most, all: map[uint64]*entry{}, by: map[uint64]*entry{}}
	if err := os.MkdirAll(dir, 0o700); err != nil { // refuses a pipe, which RemoveAll would open, and wait
		return nil, 0, err
	}
	for _, sub := range []string{stateDir, partDir} {
		if err := os.RemoveAll(filepath.Join(dir, sub)); err != nil {
			return nil, 0, err
		}
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, 0, err
		}
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"+ending))
	if err != nil {
		return nil, 0, err
	}
	for _, name := range names {
		if err := f.adopt(name); errors.Is(err, kvfile.ErrTorn) {
			torn++
			_ = os.Remove(name)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.evictLocked()
	return f, torn, nil
}

// adopt takes in a file of an earlier run.
func (f *Folder) adopt(name string) error {
	file, err := regular.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	h, err := kvfile.Header(file)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	e := &entry{h: h, file: kvfile.File{Bytes: info.Size()}, used: time.Unix(h.GetSaved(), 0)}
	if filepath.Base(name) != fileName(e.key()) {
		return fmt.Errorf("%w: %s has another's name", kvfile.ErrTorn, name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.putLocked(e)
	return nil
}

func fileName(key uint64) string { return fmt.Sprintf("%016x%s", key, ending) }

// path is where a snapshot lies.
func (f *Folder) path(key uint64) string { return filepath.Join(f.dir, fileName(key)) }

// States is the folder where the backend writes and reads; empty: f is nil.
func (f *Folder) States() string {
	if f == nil {
		return ""
	}
	return filepath.Join(f.dir, stateDir)
}

// temporary returns the path of a file that the backend is to write.
func (f *Folder) temporary() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.names++
	return filepath.Join(f.States(), fmt.Sprint("saved-", f.names))
}

// create makes a file that nobody else has, in one of the folders.
func (f *Folder) create(sub string) (*os.File, error) {
	return os.CreateTemp(filepath.Join(f.dir, sub), "*")
}

// Put makes a whole file a snapshot. What it continues makes room for it. It reports whether it is
// kept: it may be worth less than all others.
func (f *Folder) Put(path string, h *enginepb.SnapshotHeader, file kvfile.File) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := &entry{h: h, file: file, used: time.Now()}
	if err := os.Rename(path, f.path(e.key())); err != nil {
		return false, err
	}
	f.putLocked(e)
	for _, k := range h.GetKeys()[:len(h.GetKeys())-1] {
		if old := f.all[k]; old != nil && proto.Equal(old.h.GetIdentity(), h.GetIdentity()) {
			f.removeLocked(old)
		}
	}
	f.evictLocked()
	return f.all[e.key()] == e, nil
}

// putLocked puts an entry in the index.
func (f *Folder) putLocked(e *entry) {
	if old := f.all[e.key()]; old != nil {
		f.forgetLocked(old)
	}
	f.all[e.key()] = e
	f.bytes += e.file.Bytes
	for _, k := range e.h.GetKeys() {
		if old := f.by[k]; old == nil || old.h.GetTokens() <= e.h.GetTokens() {
			f.by[k] = e
		}
	}
	f.by[e.key()] = e
}

// forgetLocked takes an entry out of the index.
func (f *Folder) forgetLocked(e *entry) {
	delete(f.all, e.key())
	f.bytes -= e.file.Bytes
	for _, k := range e.h.GetKeys() {
		if f.by[k] == e {
			delete(f.by, k)
		}
	}
}

func (f *Folder) removeLocked(e *entry) {
	f.forgetLocked(e)
	_ = os.Remove(f.path(e.key())) // what is left of it is found at the next start
}

// remove removes a snapshot that is none.
func (f *Folder) remove(e *entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all[e.key()] == e {
		f.removeLocked(e)
	}
}

// evictLocked makes room.
func (f *Folder) evictLocked() {
	for f.bytes > f.most || len(f.all) > mostEntries {
		f.removeLocked(f.leastLocked(time.Now()))
	}
}

// leastLocked is the snapshot that is worth the least.
func (f *Folder) leastLocked(now time.Time) (least *entry) {
	var worth float64
	for _, e := range f.all {
		if v := value(e.h, e.file.Bytes, now.Sub(e.used)); least == nil || v < worth {
			least, worth = e, v
		}
	}
	return least
}

// Room reports whether a snapshot of so many bytes would be kept.
func (f *Folder) Room(h *enginepb.SnapshotHeader, bytes int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	free, now := f.most-f.bytes, time.Now()
	if len(f.all) < mostEntries && bytes <= free {
		return true
	}
	worth := value(h, bytes, 0)
	for _, e := range f.all {
		if slices.Contains(h.GetKeys(), e.key()) || value(e.h, e.file.Bytes, now.Sub(e.used)) < worth {
			free += e.file.Bytes
		}
	}
	return bytes <= free
}

// has returns the snapshot of a key.
func (f *Folder) has(key uint64) *entry {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all[key]
}

// find returns the snapshot that has most of a prompt with these keys, the shortest first, and how
// many of its tokens are of the prompt. Those that can't be restored with an identity are as if
// they were not there; other is whether there was one.
func (f *Folder) find(id *enginepb.SnapshotIdentity, keys []uint64) (found *entry, tokens uint32, other bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(keys) - 1; i >= 0; i-- {
		e := f.by[keys[i]]
		if e == nil {
			continue
		}
		if !proto.Equal(e.h.GetIdentity(), id) {
			other = true
			continue
		}
		e.used = time.Now()
		return e, of(e.h, keys), other
	}
	return nil, 0, other
}

// each calls do with every snapshot.
func (f *Folder) each(do func(*entry)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.all {
		do(e)
	}
}

// Size returns how many snapshots there are, and how many bytes they have.
func (f *Folder) Size() (n int, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.all), f.bytes
}

// open opens a snapshot's file, which may have been evicted.
func (f *Folder) open(e *entry) (*os.File, error) { return regular.Open(f.path(e.key())) }

// partName is the name of what is on its way here, by its sum.
func (f *Folder) partName(sum []byte) string {
	return filepath.Join(f.dir, partDir, hex.EncodeToString(sum))
}
