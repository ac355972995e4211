package mesh

import (
	"fmt"
	"path/filepath"
	"strconv"

	"millrace.dev/millrace/internal/config"
)

// Snapshots is how many bytes each engine may need for the KV states of conversations, which it
// saves after each turn and copies to another engine; 0: none are saved.
type Snapshots int64

// DefaultSnapshots is some ten long conversations of a small model.
const DefaultSnapshots Snapshots = 512 << 20

// leastSnapshots is less than any state that is worth saving.
const leastSnapshots = 1 << 20

// MarshalText writes it as a size.
func (s Snapshots) MarshalText() ([]byte, error) { return config.Bytes(s).MarshalText() }

// UnmarshalText reads a number of bytes, or a size such as 2Gi.
func (s *Snapshots) UnmarshalText(text []byte) error { return (*config.Bytes)(s).UnmarshalText(text) }

func (s Snapshots) check() error {
	if s != 0 && s < leastSnapshots {
		return fmt.Errorf("-snapshots: %d; must be 0, or %d bytes or more", s, leastSnapshots)
	}
	return nil
}

// flags are those of an engine.
func (s Snapshots) flags(dir, node string) []string {
	if s == 0 {
		return nil
	}
	return []string{"-snapshots", filepath.Join(dir, "snapshots-"+node), "-snapshots-bytes", strconv.FormatInt(int64(s), 10)}
}
