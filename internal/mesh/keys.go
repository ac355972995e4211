package mesh

import (
	"os"
	"path/filepath"

	"millrace.dev/millrace/internal/keys"
	"millrace.dev/millrace/internal/regular"
)

// ownTenant is whose requests those of `millrace up` and `millrace chat` are.
const ownTenant = "millrace"

// KeyFile is where in a mesh's folder its own API key is.
func KeyFile(dir string) string { return filepath.Join(dir, "api.key") }

// ownKeys is the file with the hash of that key, for extproc.
func (o Options) ownKeys() string { return filepath.Join(o.Dir, "api.keys") }

// keyFiles are the files of the keys that clients need: the user's, and that of the mesh's own
// key; empty: none is needed.
func (o Options) keyFiles() string {
	if o.APIKeys == "" {
		return ""
	}
	return o.APIKeys + "," + o.ownKeys()
}

// ownKey makes a key of the mesh's own, where clients need one; else it removes the last one.
func (o Options) ownKey() (string, error) {
	if o.APIKeys == "" {
		for _, name := range []string{KeyFile(o.Dir), o.ownKeys()} {
			if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
				return "", err
			}
		}
		return "", nil
	}
	key, line, err := keys.New(ownTenant)
	if err != nil {
		return "", err
	}
	if err := regular.Write(KeyFile(o.Dir), []byte(key), 0o600); err != nil {
		return "", err
	}
	return key, regular.Write(o.ownKeys(), []byte(line+"\n"), 0o600)
}
