package reach

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/secret"
	"millrace.dev/millrace/internal/stamp"
)

// Key is the key of engines, for requests. It is safe for concurrent use.
type Key struct {
	// Constant after Keys.Of.
	spec config.APIKey
	log  *slog.Logger

	// Atomic.
	value atomic.Pointer[stamp.Value[secret.Text]] // nil: it could not be read yet
}

// Header returns the header that a request gets; an empty name: the key is not known, or there
// is none. k may be nil.
func (k *Key) Header() (name string, value secret.Text) {
	if k == nil {
		return "", ""
	}
	v := k.value.Load()
	if v == nil {
		return "", ""
	}
	text, _ := v.Known()
	return headerOf(k.spec, text)
}

// refresh reads the key again if its file has changed, or was not there. It returns why it is
// not known, or why the one before is sent; nil: it is as its file says.
func (k *Key) refresh() (unknown, stale error) {
	if v := k.value.Load(); v != nil {
		_, err := v.Latest()
		return nil, err
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
		return err, nil
	}
	k.value.Store(v)
	return nil, nil
}

// every is how often files are checked for changes.
const every = time.Second

// Keys is the keys that there are, each once, so that who has the same is the same. It is safe
// for concurrent use.
type Keys struct {
	// Constant after NewKeys.
	log *slog.Logger

	// mu guards the fields below, and is held while files are read.
	mu     sync.Mutex
	all    map[config.APIKey]*Key
	faults []string // why keys are not known
	stale  []string // why files are not taken, while the keys before are sent
}

// NewKeys returns none yet.
func NewKeys(log *slog.Logger) *Keys { return &Keys{log: log, all: map[config.APIKey]*Key{}} }

// Of returns the key that requests get by a setting; nil: none.
func (k *Keys) Of(spec config.APIKey) *Key {
	if !spec.Requests {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	one := k.all[spec]
	if one == nil {
		one = &Key{spec: spec, log: k.log}
		k.all[spec] = one
		k.refreshLocked()
	}
	return one
}

// Run reads again what has changed, until ctx ends.
func (k *Keys) Run(ctx context.Context) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			k.mu.Lock()
			k.refreshLocked()
			k.mu.Unlock()
		}
	}
}

func (k *Keys) refreshLocked() {
	k.faults, k.stale = nil, nil
	for _, one := range k.all {
		unknown, stale := one.refresh()
		if unknown != nil {
			k.faults = append(k.faults, unknown.Error())
		}
		if stale != nil {
			k.stale = append(k.stale, stale.Error())
		}
	}
	slices.Sort(k.faults)
	slices.Sort(k.stale)
}

// Conditions returns what is wrong.
func (k *Keys) Conditions() []obs.Condition {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []obs.Condition
	if len(k.faults) > 0 {
		all = append(all, obs.Condition{
			Code: "engine-key", Text: "requests go to engines without their key: " + strings.Join(k.faults, "; "),
			Next: "correct apiKey of the endpoints, or write the file: it is read as soon as it is there",
		})
	}
	if len(k.stale) > 0 {
		all = append(all, obs.Condition{
			Code: "engine-key-stale", Text: "requests go to engines with the key of before: " + strings.Join(k.stale, "; "),
			Next: "correct the file: it is read as soon as it changes",
		})
	}
	return all
}
