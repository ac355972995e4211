package stream

import (
	"crypto/sha256"
	"encoding/hex"
	"hash/maphash"
	"strings"
	"unicode/utf8"
)

// space is what names a tenant. Tenants of two of them are never the same, though their values
// have the same bytes: what a client may write into one header gives it no part in the budget or
// the fair share of who is known by another.
type space uint8

const (
	byKey      space = iota // an API key that nobody has named, or a header that holds such
	byKeyName               // the name that extproc's file of keys gives to one
	byHeader                // flow.tenants.header
	byFairness              // the fairness header of the picker protocol
	spaces
)

// tenantIDs hashes what names tenants, each space with a seed of its own.
type tenantIDs struct{ seeds [spaces]maphash.Seed }

func newTenantIDs() *tenantIDs {
	t := new(tenantIDs)
	for i := range t.seeds {
		t.seeds[i] = maphash.MakeSeed()
	}
	return t
}

// of returns the tenant that a value names; never 0.
func (t *tenantIDs) of(s space, value []byte) uint64 { return maphash.Bytes(t.seeds[s], value) | 1 }

// named is of for the name of a key.
func (t *tenantIDs) named(name string) uint64 { return maphash.String(t.seeds[byKeyName], name) | 1 }

// longestName bounds the name of a tenant in metrics, in bytes.
const longestName = 63

// name returns what people call the tenant of a hash, whose header has that value. The one
// before is remembered: mostly it is the same.
func (in *inbound) name(tenant uint64, value []byte) string {
	recent := &in.recent
	if recent.Tenant == tenant {
		return recent.TenantName
	}
	name := "value " + digest(value)
	if len(value) <= longestName && utf8.Valid(value) {
		name = string(value)
	}
	recent.Tenant, recent.TenantName = tenant, name
	return name
}

// nameKey is name for an API key that nobody has named, which must not be shown: it has that of
// its hash.
func (in *inbound) nameKey(tenant uint64, key []byte) string {
	recent := &in.recent
	if recent.Tenant != tenant {
		recent.Tenant, recent.TenantName = tenant, "key "+digest(key)
	}
	return recent.TenantName
}

// secret reports whether headers of a name, in lower case, hold keys, passwords and the like.
func secret(header string) bool {
	for _, part := range [...]string{"authorization", "cookie", "token", "secret", "password", "credential", "apikey", "api_key"} {
		if strings.Contains(header, part) {
			return true
		}
	}
	return header == "key" || strings.HasSuffix(header, "-key") || strings.HasPrefix(header, "key-") || strings.Contains(header, "-key-")
}

// ownerOf stands for a tenant where things are stored, the same at all times.
func ownerOf(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:16])
}

// digest stands for a value of which no more is to be shown.
func digest(value []byte) string {
	sum := sha256.Sum256(value)
	return hex.EncodeToString(sum[:4])
}
