// Package output writes what the generators of this module make.
package output

import (
	"bytes"
	"os"
)

// Write writes a file that does not have this content yet. One that has it is not touched:
// compilers and tests that run meanwhile must not find half of it.
func Write(path string, content []byte) error {
	if was, err := os.ReadFile(path); err == nil && bytes.Equal(was, content) {
		return nil
	}
	return os.WriteFile(path, content, 0o644)
}
