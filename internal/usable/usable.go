// Package usable finds whether what flags and configuration name can be used, without using it: files,
// folders, certificates, models, addresses. It is behind every -check.
//
// Its one rule: what it finds in order can be used now, by this user on this machine; it
// changes nothing and asks no other machine.
package usable

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/keypair"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/weights"
)

// Address says whether a program could listen at an address. One that is in use can be had
// later, by whoever replaces what listens there.
func Address(address string) (inUse bool, err error) {
	ln, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return true, nil
	case err != nil:
		return false, err
	}
	return false, ln.Close()
}

// Folder says why a folder can't be written to.
func Folder(path string) error {
	st, err := regular.Stat(path)
	switch {
	case err != nil:
		return err
	case !st.IsDir():
		return fmt.Errorf("%s: a file; must be a folder", path)
	}
	if err := unix.Access(path, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("%s: can't be written to: %w", path, err)
	}
	return nil
}

// NewFolder says why a folder that need not be there yet can't be made, or written to.
func NewFolder(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	for {
		switch err := Folder(path); {
		case errors.Is(err, fs.ErrNotExist) && filepath.Dir(path) != path:
			path = filepath.Dir(path)
		default:
			return err
		}
	}
}

// Output says why a file can't be written: its folder is to be there.
func Output(path string) error {
	st, err := regular.Stat(path)
	switch {
	case err != nil:
		return Folder(filepath.Dir(path))
	case st.IsDir():
		return fmt.Errorf("%s: a folder; must be a file", path)
	}
	if err := unix.Access(path, unix.W_OK); err != nil {
		return fmt.Errorf("%s: can't be written to: %w", path, err)
	}
	return nil
}

// Certificate says why a certificate and its key can't be served.
func Certificate(cert, key string, now time.Time) error {
	pair, err := keypair.Read(cert, key)
	if err != nil {
		return err
	}
	if end := pair.Leaf.NotAfter; now.After(end) {
		return fmt.Errorf("%s: expired on %s", cert, end.UTC().Format(time.DateOnly))
	}
	return nil
}

// Models says all that is wrong with the files of models.
func Models(all []config.Model) error {
	var errs []error
	for _, m := range all {
		errs = append(errs, Model(m))
	}
	return errors.Join(errs...)
}

// Model says why the files of a model are none that a backend and extproc can read; weights
// that nobody has named are set-up's.
func Model(m config.Model) error {
	if path := m.Spec.Tokenizer; path != "" {
		if err := regular.Check(path); err != nil {
			return &obs.Hint{Err: fmt.Errorf("model %s: tokenizer: %w", m.Metadata.Name, err), Next: "set spec.tokenizer to a GGUF or tokenizer.json, or leave it out"}
		}
	}
	if m.Spec.Weights == "" {
		return nil
	}
	check, next := weights.Check, "set spec.weights to a whole GGUF file, or fetch that one again; only the model "+config.DefaultModel+" may leave it out"
	if m.Spec.Backend.Kind == config.VLLM {
		check, next = weights.CheckFolder, "set spec.weights to the folder of a model, with its config.json, weights and tokenizer"
	}
	if err := check(m.Spec.Weights); err != nil {
		return &obs.Hint{Err: fmt.Errorf("model %s: weights: %w", m.Metadata.Name, err), Next: next}
	}
	return nil
}
