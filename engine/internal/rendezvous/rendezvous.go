// Package rendezvous orders nodes by a key: for each key another order, and for one key the same at
// all engines, whichever of the nodes they know (rendezvous hashing). Called by replica, for
// records, and snapshot, for copies of KV states.
package rendezvous

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"strings"
)

// Compare compares two nodes, for slices.SortFunc: the first in order is to have what the key is of.
func Compare(a, b, key string) int {
	return cmp.Or(cmp.Compare(score(b, key), score(a, key)), strings.Compare(a, b))
}

func score(node, key string) uint64 {
	sum := sha256.Sum256([]byte(node + "\x00" + key))
	return binary.BigEndian.Uint64(sum[:])
}
