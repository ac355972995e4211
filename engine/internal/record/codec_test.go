package record

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

func codec(t testing.TB, keys ...string) *Codec {
	t.Helper()
	var all [][]byte
	for _, k := range keys {
		all = append(all, []byte(k))
	}
	c, err := NewCodec(all...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const (
	older = "an old key of 16+"
	newer = "a new key of 16++"
)

var sample = Record{Key: Key{Tenant: "a", ID: "resp_1"}, Version: 3, Expires: time.Unix(1_800_000_000, 0), Value: []byte("what was said")}

func TestCodec(t *testing.T) {
	for name, c := range map[string]*Codec{"open": codec(t), "sealed": codec(t, newer)} {
		for _, r := range []Record{sample, {Key: sample.Key, Version: 4, Deleted: true, Expires: sample.Expires}} {
			b := c.Encode(r)
			got, err := c.Decode(r.Key, b)
			if err != nil || got.Version != r.Version || got.Deleted != r.Deleted || !got.Expires.Equal(r.Expires) || !bytes.Equal(got.Value, r.Value) || got.Key != r.Key {
				t.Errorf("%s: %+v, %v; want %+v", name, got, err, r)
			}
			if shows := bytes.Contains(b, []byte("what was said")); shows != (c == nil && !r.Deleted) {
				t.Errorf("%s: the value shows is %t", name, shows)
			}
		}
	}
}

// TestTornAndForged changes each bit, cuts at each byte, and moves a record to another key.
func TestTornAndForged(t *testing.T) {
	for name, c := range map[string]*Codec{"open": codec(t), "sealed": codec(t, newer)} {
		b := c.Encode(sample)
		for i := range len(b) * 8 {
			b[i/8] ^= 1 << (i % 8)
			if r, err := c.Decode(sample.Key, b); !errors.Is(err, ErrTorn) {
				t.Errorf("%s: with bit %d changed: %+v, %v", name, i, r, err)
			}
			b[i/8] ^= 1 << (i % 8)
		}
		for i := range b {
			if r, err := c.Decode(sample.Key, b[:i]); !errors.Is(err, ErrTorn) {
				t.Errorf("%s: cut at %d: %+v, %v", name, i, r, err)
			}
		}
		for _, k := range []Key{{Tenant: "b", ID: "resp_1"}, {Tenant: "a", ID: "resp_2"}, {ID: "aresp_1"}, {}} {
			if r, err := c.Decode(k, b); !errors.Is(err, ErrTorn) {
				t.Errorf("%s: as %+v: %+v, %v", name, k, r, err)
			}
		}
	}
}

func TestKeysOfCodecs(t *testing.T) {
	old, both, none := codec(t, older), codec(t, newer, older), codec(t)
	if _, err := both.Decode(sample.Key, old.Encode(sample)); err != nil {
		t.Errorf("sealed with an older key: %v", err)
	}
	for name, pair := range map[string][2]*Codec{"key that has gone": {both, old}, "no key": {old, none}, "not sealed": {none, old}} {
		if r, err := pair[1].Decode(sample.Key, pair[0].Encode(sample)); !errors.Is(err, ErrTorn) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	if _, err := NewCodec([]byte("short")); err == nil {
		t.Error("a key of 5 bytes was taken")
	}
}

// FuzzDecode has whatever is taken be exactly what is written of it.
func FuzzDecode(f *testing.F) {
	open, sealed := codec(f), codec(f, newer)
	f.Add("a", "resp_1", open.Encode(sample))
	f.Add("a", "resp_1", sealed.Encode(sample))
	f.Add("", "x", []byte("mrr1"))
	f.Fuzz(func(t *testing.T, tenant, id string, b []byte) {
		k := Key{Tenant: tenant, ID: id}
		if r, err := open.Decode(k, b); err == nil && !bytes.Equal(open.Encode(r), b) {
			t.Errorf("%q is taken for %+v", b, r)
		}
		if r, err := sealed.Decode(k, b); err == nil && (r.Version != sample.Version || k != sample.Key) {
			t.Errorf("%q is taken for %+v", b, r)
		}
		if _, err := Head(k, b); err != nil && !errors.Is(err, ErrTorn) {
			t.Errorf("%q: %v", b, err)
		}
	})
}
