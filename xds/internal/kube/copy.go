package kube

import (
	"encoding/json"
	"fmt"
	"os"

	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/regular"
)

// saved is the copy of what was there last, for a start without API server.
type saved struct {
	// Namespace is whose objects it has.
	Namespace string
	// Judged is whether the objects are known: none is not the same as not known.
	Judged  bool
	Objects []object
	Goods   []good
	// Holder is who had the lease with that term when it was last seen.
	Holder string
	Term   uint64
}

// maxCopy bounds a copy, in bytes: an API server's objects have a megabyte each at most.
const maxCopy = 256 << 20

// load reads a copy; ok is false without one of the namespace. One that can't be read is
// none: it is only a help.
func load(path, namespace string) (s saved, ok bool, err error) {
	if path == "" {
		return saved{}, false, nil
	}
	b, err := regular.Read(path, maxCopy)
	if os.IsNotExist(err) {
		return saved{}, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return saved{}, false, fmt.Errorf("copy: %w", err)
	}
	return s, s.Namespace == namespace, nil
}

// save writes a copy, whole or not at all.
func (s saved) save(path string) error {
	if path == "" {
		return nil
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return mtls.WriteFile(path, b)
}

// goodsOf returns the last good contents by object.
func (s saved) goodsOf() map[desired.Ref]good {
	all := make(map[desired.Ref]good, len(s.Goods))
	for _, g := range s.Goods {
		all[g.Ref] = g
	}
	return all
}
