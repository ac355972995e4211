package wire

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// maxNode is the longest name of a node, in bytes.
const maxNode = 63

// NodeName returns the name in Millrace of a node of Kubernetes: the same, with "-" for
// each ".". Of one that is too long the end is a hash of the whole.
func NodeName(name string) string {
	short := strings.ReplaceAll(name, ".", "-")
	if len(short) <= maxNode {
		return short
	}
	sum := sha256.Sum256([]byte(name))
	end := "-" + hex.EncodeToString(sum[:4])
	return short[:maxNode-len(end)] + end
}
