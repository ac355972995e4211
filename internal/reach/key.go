package reach

import (
	"log/slog"
	"sync"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/secret"
	"millrace.dev/millrace/internal/stamp"
)

// Key is the key of engines, for requests. It is safe for concurrent use.
type Key struct {
	// Constant after keys.
	spec config.APIKey
	log  *slog.Logger

	// mu guards the field below.
	mu    sync.Mutex
	value *stamp.Value[secret.Text] // nil: it could not be read yet
}

// Header returns the header that a request gets; an empty name: the key is not known, or there
// is none. k may be nil.
func (k *Key) Header() (name string, value secret.Text) {
	if k == nil {
		return "", ""
	}
	k.mu.Lock()
	v := k.value
	k.mu.Unlock()
	if v == nil {
		return "", ""
	}
	text, _ := v.Known()
	return headerOf(k.spec, text)
}

// Refresh reads the key again if its file has changed, or was not there. It returns why it is
// not known; nil: it is.
func (k *Key) Refresh() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.value != nil {
		_, _ = k.value.Latest() // it says what is wrong
		return nil
	}
	read := func() (secret.Text, error) { return textOf(k.spec.File, k.spec.Env, "") }
	v, err := stamp.Load([]string{k.spec.File}, read, func(_ secret.Text, err error) {
		if err != nil {
			k.log.Warn("key for engines is as before", "error", err)
			return
		}
		k.log.Info("key for engines read again", "file", k.spec.File)
	})
	if err != nil {
		return err
	}
	k.value = v
	return nil
}

// Keys is the keys that there are, each once, so that who has the same is the same. It is not
// safe for concurrent use.
type Keys struct {
	log *slog.Logger
	all map[config.APIKey]*Key
}

// NewKeys returns none yet.
func NewKeys(log *slog.Logger) *Keys { return &Keys{log: log, all: map[config.APIKey]*Key{}} }

// Of returns the key that requests get by a setting; nil: none.
func (k *Keys) Of(spec config.APIKey) *Key {
	if !spec.Requests {
		return nil
	}
	if k.all[spec] == nil {
		k.all[spec] = &Key{spec: spec, log: k.log}
		_ = k.all[spec].Refresh() // it is tried again
	}
	return k.all[spec]
}

// Refresh reads again what has changed, and returns what is not known.
func (k *Keys) Refresh() []error {
	var errs []error
	for _, one := range k.all {
		if err := one.Refresh(); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}
