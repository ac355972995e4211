// Package keys knows which API keys there are, and whose each is. Called by extproc, for each
// request, while it follows the files; `millrace key` makes them.
//
// Its one rule: a key itself is kept nowhere, neither in the file nor in memory.
package keys

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"time"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/stamp"
)

const (
	// prefix is how a hash is written.
	prefix = "sha256:"
	// maxFile bounds the file, in bytes: a hundred thousand keys.
	maxFile = 10 << 20
	// maxTenant bounds a tenant's name, in bytes.
	maxTenant = 63
	// every is how often the files are checked for changes.
	every = time.Second
)

// Set is keys by their hashes: who finds out how long a look takes learns of a hash, from which
// no key follows.
type Set map[[sha256.Size]byte]string

// Parse reads a file: a line "sha256:HEX TENANT" for each key; what follows # is for people.
// It returns all faults at once, by line.
func Parse(text []byte) (Set, error) {
	all := Set{}
	var errs []error
	for i, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		hash, err := parseLine(words)
		if err == nil && all[hash] != "" {
			err = errors.New("the key is there already")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", i+1, err))
			continue
		}
		all[hash] = words[1]
	}
	if len(all) == 0 && len(errs) == 0 {
		errs = append(errs, errors.New("there is no key in it, so no client could send requests"))
	}
	return all, errors.Join(errs...)
}

func parseLine(words []string) (hash [sha256.Size]byte, err error) {
	digits, ok := strings.CutPrefix(words[0], prefix)
	b, err := hex.DecodeString(digits)
	switch {
	case !ok || err != nil || len(b) != len(hash): // a key by mistake is not shown
		return hash, fmt.Errorf("must begin with %s and %d hexadecimal digits: `millrace key -tenant NAME` prints such a line", prefix, 2*len(hash))
	case len(words) != 2 || len(words[1]) > maxTenant:
		return hash, fmt.Errorf("after the hash must come the name of a tenant, one word of at most %d bytes", maxTenant)
	}
	copy(hash[:], b)
	return hash, nil
}

// New returns a new key, which is random, and its line of the file.
func New(tenant string) (key, line string, err error) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	key = "sk-" + base64.RawURLEncoding.EncodeToString(secret)
	sum := sha256.Sum256([]byte(key))
	line = prefix + hex.EncodeToString(sum[:]) + " " + tenant
	if set, err := Parse([]byte(line)); err != nil || set[sum] != tenant {
		return "", "", fmt.Errorf("tenant %q; must be one word of at most %d bytes, without #", tenant, maxTenant)
	}
	return key, line, nil
}

// Files is the keys of files that may change. Safe for concurrent use.
type Files struct{ value *stamp.Value[Set] }

// Open reads the files, which must be in order.
func Open(log *slog.Logger, paths ...string) (*Files, error) {
	value, err := stamp.Load(paths, func() (Set, error) { return read(paths) }, func(all Set, err error) {
		if err != nil {
			log.Warn("API keys are as before", "error", err)
			return
		}
		log.Info("API keys read", "keys", len(all))
	})
	if err != nil {
		return nil, err
	}
	return &Files{value}, nil
}

// read reads all files.
func read(paths []string) (Set, error) {
	all := Set{}
	var errs []error
	for _, path := range paths {
		text, err := regular.Read(path, maxFile)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		set, err := Parse(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
		maps.Copy(all, set)
	}
	return all, errors.Join(errs...)
}

// Run follows the files until ctx ends, so that no request does. While one is bad, the keys
// before hold.
func (f *Files) Run(ctx context.Context) error {
	if f == nil {
		return nil
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			_, _ = f.value.Latest() // it says what has changed
		}
	}
}

// Tenant returns whose the key in an authorization or x-api-key header is.
func (f *Files) Tenant(header []byte) (string, bool) {
	key := bytes.TrimSpace(header)
	if scheme, rest, ok := bytes.Cut(key, []byte(" ")); ok && bytes.EqualFold(scheme, []byte("bearer")) {
		key = bytes.TrimSpace(rest)
	}
	all, _ := f.value.Known()
	tenant, ok := all[sha256.Sum256(key)]
	return tenant, ok
}

// Transport returns one that sends the key with each request; without one, t itself.
func Transport(key string, t http.RoundTripper) http.RoundTripper {
	if key == "" {
		return t
	}
	return &bearer{t, key}
}

type bearer struct {
	http.RoundTripper
	key string
}

// RoundTrip sends a copy of the request, with the key.
func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.key)
	return b.RoundTripper.RoundTrip(r)
}

// Conditions returns what is wrong.
func (f *Files) Conditions() []obs.Condition {
	if f == nil {
		return nil
	}
	_, err := f.value.Known()
	if err == nil {
		return nil
	}
	return []obs.Condition{{Code: "api-keys", Text: "the previous API keys stay in force: " + err.Error(), Next: "correct the file; it is read again by itself"}}
}
