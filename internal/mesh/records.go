package mesh

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/secret"
)

// Records is where the engines store responses and conversations.
type Records struct {
	// Where is a file of each engine's own, copied to one other node (RecordsInFiles, and empty),
	// nowhere (NoRecords), or the URL of a Valkey or Redis server that they share.
	Where string
	// PasswordFile has the password of that server, KeyFile the key that records are sealed with;
	// empty: there is none.
	PasswordFile, KeyFile string
	// TTL is how long a record lives after its last use; 0: 720h.
	TTL time.Duration
}

// What Records.Where may be beside a URL.
const (
	RecordsInFiles = "file"
	NoRecords      = "off"
)

// mostSecret bounds the files of keys and passwords, in bytes.
const mostSecret = 4 << 10

// complete makes the paths absolute, and returns what is wrong.
func (r *Records) complete() error {
	var errs []error
	switch u, err := url.Parse(r.Where); {
	case r.Where == "" || r.Where == RecordsInFiles || r.Where == NoRecords:
	case err != nil || u.Host == "" || u.Scheme != "redis" && u.Scheme != "rediss":
		errs = append(errs, fmt.Errorf("-records: %q; must be %s, %s, or a URL such as redis://10.0.0.7:6379/0", secret.URL(r.Where), RecordsInFiles, NoRecords))
	case u.User != nil:
		errs = append(errs, errors.New("-records: the URL has a user or a password, which every user of this machine could see: give -records-password-file"))
	}
	if r.TTL != 0 && r.TTL < time.Minute {
		errs = append(errs, fmt.Errorf("-records-ttl: %s; must be ≥ 1m", r.TTL))
	}
	for name, path := range map[string]*string{"-records-password-file": &r.PasswordFile, "-records-key-file": &r.KeyFile} {
		if *path == "" {
			continue
		}
		if _, err := regular.Read(*path, mostSecret); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		errs = append(errs, absolute(path))
	}
	return errors.Join(errs...)
}

// flags are those of an engine.
func (r Records) flags(dir, node string) []string {
	if r.Where == NoRecords {
		return nil
	}
	all := []string{"-records-key-file", r.KeyFile, "-records-password-file", r.PasswordFile}
	if r.TTL > 0 {
		all = append(all, "-records-ttl", r.TTL.String())
	}
	if r.Where == "" || r.Where == RecordsInFiles {
		return append(all, "-records", filepath.Join(dir, "records-"+node+".db"))
	}
	return append(all, "-records-url", r.Where)
}

// share has each engine know the others, for copies of its records and snapshots.
func (b *planner) share(nodes []string) {
	w := b.in.Records.Where
	records := w == "" || w == RecordsInFiles
	var all []string
	for _, node := range nodes {
		all = append(all, node+"="+b.plan.Engines[node])
	}
	for i := range b.plan.Specs {
		s := &b.plan.Specs[i]
		if s.Role != "engine" || len(all) < 2 {
			continue
		}
		if records {
			s.Args = append(s.Args, "-records-peers", strings.Join(all, ","))
		}
		if b.in.Snapshots > 0 {
			s.Args = append(s.Args, "-snapshots-peers", strings.Join(all, ","))
		}
	}
}
