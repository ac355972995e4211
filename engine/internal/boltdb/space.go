package boltdb

import (
	"bytes"
	"encoding/binary"
	"time"

	bolt "go.etcd.io/bbolt"

	"millrace.dev/millrace/engine/internal/record"
)

// space is the records of a file in one transaction: whatever is put or dropped, the indices
// and the sums are those of the records.
type space struct {
	tx     *bolt.Tx
	limits record.Limits
}

// needs is what counts of a record, in bytes: itself, and its key in every index.
func needs(k record.Key, raw []byte) int64 {
	return int64(len(raw) + 3*(len(k.Tenant)+len(k.ID)+10))
}

func (s *space) get(k record.Key) []byte { return s.tx.Bucket(records).Get(keyOf(k)) }

// put writes a record, and makes room for it.
func (s *space) put(r record.Record, raw []byte) error {
	if err := s.drop(r.Key); err != nil {
		return err
	}
	if err := s.tx.Bucket(records).Put(keyOf(r.Key), raw); err != nil {
		return err
	}
	if err := s.tx.Bucket(byAge).Put(aged(r), nil); err != nil {
		return err
	}
	if err := s.tx.Bucket(byEnd).Put(append(stamp(r.Expires), keyOf(r.Key)...), nil); err != nil {
		return err
	}
	if err := s.count(r.Tenant, needs(r.Key, raw)); err != nil {
		return err
	}
	for s.of(r.Tenant) > s.limits.Tenant {
		if err := s.dropOldest(r.Tenant, r.Key); err != nil {
			return err
		}
	}
	for number(s.tx.Bucket(meta).Get(total)) > s.limits.Total {
		if err := s.dropOldest(s.largest(), r.Key); err != nil {
			return err
		}
	}
	return nil
}

func aged(r record.Record) []byte {
	return append(append([]byte(r.Tenant+"\x00"), stamp(r.Expires)...), r.ID...)
}

// drop takes a record out, if it is there.
func (s *space) drop(k record.Key) error {
	raw := s.get(k)
	if raw == nil {
		return nil
	}
	if r, err := record.Head(k, raw); err == nil {
		if err := s.tx.Bucket(byAge).Delete(aged(r)); err != nil {
			return err
		}
		if err := s.tx.Bucket(byEnd).Delete(append(stamp(r.Expires), keyOf(k)...)); err != nil {
			return err
		}
	}
	if err := s.count(k.Tenant, -needs(k, raw)); err != nil {
		return err
	}
	return s.tx.Bucket(records).Delete(keyOf(k))
}

// dropOldest takes out the record of a tenant that ends first, but not the one of a key.
func (s *space) dropOldest(tenant string, but record.Key) error {
	own := []byte(tenant + "\x00")
	c := s.tx.Bucket(byAge).Cursor()
	for b, _ := c.Seek(own); bytes.HasPrefix(b, own); b, _ = c.Next() {
		if len(b) < len(own)+8 {
			continue
		}
		if k := (record.Key{Tenant: tenant, ID: string(b[len(own)+8:])}); k != but {
			return s.drop(k)
		}
	}
	return record.ErrTooLarge
}

// largest returns the tenant that needs the most.
func (s *space) largest() (tenant string) {
	most := int64(-1)
	c := s.tx.Bucket(tenants).Cursor()
	for b, v := c.First(); b != nil; b, v = c.Next() {
		if n := number(v); n > most {
			most, tenant = n, string(b[:len(b)-1])
		}
	}
	return tenant
}

func (s *space) of(tenant string) int64 {
	return number(s.tx.Bucket(tenants).Get([]byte(tenant + "\x00")))
}

// count adds to the sums of a tenant and of all.
func (s *space) count(tenant string, n int64) error {
	name := []byte(tenant + "\x00")
	if left := s.of(tenant) + n; left > 0 {
		if err := s.tx.Bucket(tenants).Put(name, binary.BigEndian.AppendUint64(nil, uint64(left))); err != nil {
			return err
		}
	} else if err := s.tx.Bucket(tenants).Delete(name); err != nil {
		return err
	}
	all := max(0, number(s.tx.Bucket(meta).Get(total))+n)
	return s.tx.Bucket(meta).Put(total, binary.BigEndian.AppendUint64(nil, uint64(all)))
}

// mark says how late it was, for the next start.
func (s *space) mark(now time.Time) error {
	if now.Unix() <= number(s.tx.Bucket(meta).Get(clock)) {
		return nil
	}
	return s.tx.Bucket(meta).Put(clock, stamp(now))
}
