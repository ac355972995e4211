package stream

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode/utf8"
)

// longestName bounds the name of a tenant in metrics, in bytes.
const longestName = 63

// name returns what people call the tenant of a hash, whose header has that value. The one
// before is remembered: mostly it is the same.
func (in *inbound) name(tenant uint64, value []byte) string {
	recent := &in.recent
	if recent.Tenant == tenant && !in.keyed {
		return recent.TenantName
	}
	name := "value " + digest(value)
	if len(value) <= longestName && utf8.Valid(value) {
		name = string(value)
	}
	recent.Tenant, recent.TenantName, in.keyed = tenant, name, false
	return name
}

// nameKey is name for an API key that nobody has named, which must not be shown: it has that of
// its hash.
func (in *inbound) nameKey(tenant uint64, key []byte) string {
	recent := &in.recent
	if recent.Tenant != tenant || !in.keyed {
		recent.Tenant, recent.TenantName, in.keyed = tenant, "key "+digest(key), true
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

// digest stands for a value of which no more is to be shown.
func digest(value []byte) string {
	sum := sha256.Sum256(value)
	return hex.EncodeToString(sum[:4])
}
