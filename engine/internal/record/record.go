// Package record is the contract of what outlives an engine: records, by tenant and id, in
// a Store, and the bytes that one is made of on disks, in servers and between engines.
//
//   - A record is written with the version that follows the one which its writer has read, and
//     refused with ErrConflict where another was faster: nobody's write is lost unseen.
//   - It lives for a time from its last write or use on, then it is as if it had never been.
//   - One that is deleted leaves a tombstone for as long, so that no copy of it comes back.
//   - A Store has bounds in bytes, for one record, a tenant and the whole: the oldest records of
//     a tenant make room for its new ones.
//
// Used by conversation, and implemented by boltdb and valkey; replica makes one of several. Its
// one rule: bytes of a record that are not exactly those that were written are no record.
package record

import (
	"context"
	"errors"
	"time"
)

// Key names a record.
type Key struct {
	// Tenant is who alone can read it, at most MaxTenant bytes of a-z, 0-9 and -; empty: where
	// there are no tenants.
	Tenant string
	// ID is unique among those of the tenant, 1 to MaxID bytes of A-Z, a-z, 0-9, _ and -.
	ID string
}

// The longest names, in bytes.
const (
	MaxTenant = 64
	MaxID     = 128
)

// Record is one record.
type Record struct {
	Key
	// Version counts its writes, the first is 1.
	Version uint64
	// Deleted is whether it is a tombstone, which has no value.
	Deleted bool
	// Expires is when it ends, in whole seconds. Who puts one leaves it to the store.
	Expires time.Time
	Value   []byte
}

// What a Store refuses.
var (
	// ErrNotFound is returned for a record that there is not, or not any more.
	ErrNotFound = errors.New("no such record")
	// ErrConflict is returned for a write of a version that is not the next one.
	ErrConflict = errors.New("the record was changed meanwhile")
	// ErrTooLarge is returned for a record over the bounds.
	ErrTooLarge = errors.New("the record is too large")
	// ErrUnavailable is returned where it can't be known whether there is such a record, or
	// none can be written.
	ErrUnavailable = errors.New("the store can't be reached")
)

// Store keeps records. Its methods are called from many goroutines.
type Store interface {
	// Get returns a record. It fails with ErrNotFound or ErrUnavailable.
	Get(context.Context, Key) (Record, error)
	// Put writes a record of the next version, durably. It fails with ErrConflict, ErrTooLarge
	// or ErrUnavailable.
	Put(context.Context, Record) error
	// Delete puts a tombstone in place of a record. It fails with ErrNotFound or
	// ErrUnavailable.
	Delete(context.Context, Key) error
}

// Limits bounds a Store.
type Limits struct {
	// TTL is how long a record lives after it was written.
	TTL time.Duration
	// Record bounds the value of one record, Tenant what all of a tenant need, Total what all
	// need; in bytes.
	Record, Tenant, Total int64
}

// Defaults are what a mesh has.
var Defaults = Limits{TTL: 30 * 24 * time.Hour, Record: 4 << 20, Tenant: 256 << 20, Total: 512 << 20}

// Valid reports whether a key can be one.
func (k Key) Valid() bool {
	if len(k.Tenant) > MaxTenant || k.ID == "" || len(k.ID) > MaxID {
		return false
	}
	for _, c := range []byte(k.Tenant) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	for _, c := range []byte(k.ID) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// Newer reports whether a record replaces another of its key: a tombstone replaces all others.
func (r Record) Newer(than Record) bool {
	if r.Deleted != than.Deleted {
		return r.Deleted
	}
	return r.Version > than.Version
}
