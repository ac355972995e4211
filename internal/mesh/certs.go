package mesh

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"millrace.dev/millrace/internal/mtls"
)

// trustDomain is that of every mesh of one machine.
const trustDomain = "millrace"

// certificates are a mesh's own: an authority whose key is in memory only, and a
// certificate with its key in one file for each program, which is replaced whole
// while it has half of its life left.
type certificates struct {
	// Constant after newCertificates.
	dir       string // folder
	life      time.Duration
	authority *mtls.Authority
	ids       []mtls.ID

	issued time.Time // of all; its wall clock counts, which a sleeping machine does not stop
}

// newCertificates makes the folder with all that the programs of a mesh need.
func newCertificates(dir string, nodes int, life time.Duration, now time.Time) (*certificates, error) {
	authority, err := mtls.NewAuthority(trustDomain, now)
	if err != nil {
		return nil, err
	}
	c := &certificates{dir: dir, life: life, authority: authority}
	for _, role := range []mtls.Role{mtls.XDS, mtls.ExtProc, mtls.Envoy, mtls.Operator} {
		c.ids = append(c.ids, mtls.ID{Role: role})
	}
	for _, node := range nodeNames(nodes) {
		for _, role := range []mtls.Role{mtls.Engine, mtls.NodeAgent} {
			c.ids = append(c.ids, mtls.ID{Role: role, Node: node})
		}
	}
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
		return nil, err
	}
	if err := mtls.WriteFile(mtls.In(dir, mtls.ID{}).CA, authority.PEM()); err != nil {
		return nil, err
	}
	if err := c.issue(now); err != nil {
		return nil, err
	}
	secrets, err := mtls.Secrets(mtls.In(dir, mtls.ID{Role: mtls.Envoy}))
	for name, text := range secrets {
		err = errors.Join(err, mtls.WriteFile(filepath.Join(dir, name), text))
	}
	return c, err
}

// issue writes new certificates for all.
func (c *certificates) issue(now time.Time) error {
	for _, id := range c.ids {
		text, err := c.authority.Issue(id, now, c.life)
		if err == nil {
			err = mtls.WriteFile(mtls.In(c.dir, id).Cert, text)
		}
		if err != nil {
			return err
		}
	}
	c.issued = now.Round(0)
	return nil
}

// due reports whether it is time for new ones: half of their life is over, or the
// clock has been set to before they began.
func (c *certificates) due(now time.Time) bool {
	age := now.Round(0).Sub(c.issued)
	return age >= c.life/2 || age < 0
}

// run replaces the certificates in time until ctx ends. What can't be written is
// shown, and tried again.
func (c *certificates) run(ctx context.Context, show *console) error {
	every := min(max(c.life/20, 100*time.Millisecond), 10*time.Second)
	for shown := ""; sleep(ctx, every); {
		if !c.due(time.Now()) {
			continue
		}
		if err := c.issue(time.Now()); err == nil {
			shown = ""
		} else if text := err.Error(); text != shown {
			show.progress("certificates are not replaced: %v", err)
			shown = text
		}
	}
	return nil
}
