package identity

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/stamp"
)

// tick is how often it is checked whether there is something to do.
const tick = time.Second

// The first and the longest wait before an authority that gave nothing is asked again.
const (
	firstRetry   = time.Second
	longestRetry = 30 * time.Second
)

// keeper keeps the files.
type keeper struct {
	Options
	log    *slog.Logger
	spread func() float64 // in [0, 1): keeps a thousand Pods apart

	watched  stamp.Files // as they were at the last attempt
	last     time.Time   // of the last attempt; wall clocks count, which a sleeping machine does not stop
	next     time.Time   // when to ask
	failures int         // since it succeeded last
	fault    string      // the last failure
}

// Run gets certificates for the folder, and renews them until ctx ends: at half of
// their life, and when the authorities change. Those that are there from before a
// restart, and still good, are kept.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	k := &keeper{Options: o, log: log, spread: rand.Float64}
	if err := k.prepare(); err != nil {
		return err
	}
	k.start(time.Now())
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		if k.due(time.Now()) {
			k.renew(ctx, time.Now())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// prepare makes the folder, and what in it never changes.
func (k *keeper) prepare() error {
	if err := os.MkdirAll(k.Out, 0o700); err != nil {
		return err
	}
	if !slices.Contains(k.Roles, mtls.Envoy) {
		return nil
	}
	secrets, err := mtls.Secrets(mtls.In(k.Out, mtls.ID{Role: mtls.Envoy}))
	for name, text := range secrets {
		err = errors.Join(err, mtls.WriteFile(filepath.Join(k.Out, name), text))
	}
	return err
}

// start looks for certificates of before a restart. They are kept if the authorities
// are still those of the mount.
func (k *keeper) start(now time.Time) {
	k.watched, k.last, k.next = stamp.Of(k.Options.watched()...), now.Round(0), now.Round(0)
	certs, err := verifyAll(k.Options, now)
	mount, err2 := regular.Read(k.Options.watched()[0], maxFile)
	known, err3 := regular.Read(mtls.In(k.Out, mtls.ID{}).CA, maxFile)
	if errors.Join(err, err2, err3) != nil || join(string(known)) != join(string(known), string(mount)) {
		return
	}
	k.next = renewal(certs, time.Time{}, k.spread())
	k.log.Info("certificates of before are good", "until", certs[0].Until, "renewal", k.next)
}

// due reports whether it is time to ask: also when the authorities have changed, and
// when the clock has been set back.
func (k *keeper) due(now time.Time) bool {
	now = now.Round(0)
	return !now.Before(k.next) || now.Before(k.last) || k.watched.Changed()
}

// renew asks for new certificates and writes them.
func (k *keeper) renew(ctx context.Context, now time.Time) {
	k.watched, k.last = stamp.Of(k.Options.watched()...), now.Round(0)
	certs, err := k.get(ctx, now)
	if err == nil {
		k.failures, k.fault, k.next = 0, "", renewal(certs, now.Round(0), k.spread())
		for _, c := range certs {
			k.log.Info("certificate", "id", c.ID, "until", c.Until, "renewal", k.next)
		}
		return
	}
	if ctx.Err() != nil {
		return
	}
	wait := backoff(k.failures, retryAfter(err), k.spread())
	k.failures++
	k.next = time.Now().Round(0).Add(wait)
	if text := err.Error(); text != k.fault {
		k.log.Warn("no new certificate, asking again and again", "err", err)
		k.fault = text
	}
}

// get gets certificates and writes them.
func (k *keeper) get(ctx context.Context, now time.Time) ([]mtls.Certificate, error) {
	keys, req := map[mtls.Role][]byte{}, Request{CSRs: map[mtls.Role]string{}}
	for _, role := range k.Roles {
		r, err := mtls.NewRequest()
		if err != nil {
			return nil, err
		}
		keys[role], req.CSRs[role] = r.KeyPEM, string(r.CSR)
	}
	resp, err := k.sign(ctx, req, now)
	if err != nil {
		return nil, err
	}
	files, certs, err := check(k.Roles, keys, resp, time.Now())
	if err != nil {
		return nil, err
	}
	// Whom to trust comes first: a peer may have a new certificate before this one has.
	if err := mtls.WriteFile(mtls.In(k.Out, mtls.ID{}).CA, []byte(resp.Authorities)); err != nil {
		return nil, err
	}
	for role, text := range files {
		if err := mtls.WriteFile(mtls.In(k.Out, mtls.ID{Role: role}).Cert, text); err != nil {
			return nil, err
		}
	}
	return certs, nil
}

// check returns the text of each role's file, once a peer would take it.
func check(roles []mtls.Role, keys map[mtls.Role][]byte, r Response, now time.Time) (map[mtls.Role][]byte, []mtls.Certificate, error) {
	files := map[mtls.Role][]byte{}
	var certs []mtls.Certificate
	for _, role := range roles {
		c, err := mtls.Verify([]byte(r.Certificates[role]), keys[role], []byte(r.Authorities), now)
		if err == nil && c.ID.Role != role {
			err = fmt.Errorf("it is of %s", c.ID)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("certificate for role %s: %w", role, err)
		}
		files[role] = append([]byte(r.Certificates[role]), keys[role]...)
		certs = append(certs, c)
	}
	return files, certs, nil
}

// renewal returns when certificates are to be renewed: when the first of them has half
// of its life behind it, or up to a tenth of that earlier. Their life begins when they
// were issued, if that is known: they are dated back.
func renewal(certs []mtls.Certificate, issued time.Time, spread float64) time.Time {
	var first time.Time
	for _, c := range certs {
		from := c.From
		if !issued.IsZero() {
			from = issued
		}
		half := c.Until.Sub(from) / 2
		at := from.Add(half - time.Duration(spread*float64(half)/10))
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first
}

// backoff returns how long to wait before the authority is asked again.
func backoff(failures int, after time.Duration, spread float64) time.Duration {
	wait := max(min(firstRetry<<min(failures, 10), longestRetry), min(after, longestRetry))
	return wait/2 + time.Duration(spread*float64(wait))
}

// Check returns what the folder has, or why a program that starts now would be
// refused by its peers.
func Check(o Options, now time.Time) ([]mtls.Certificate, error) {
	certs, err := verifyAll(o, now)
	if err == nil && slices.Contains(o.Roles, mtls.Envoy) {
		_, err = os.Stat(filepath.Join(o.Out, "certificate.json"))
	}
	return certs, err
}

func verifyAll(o Options, now time.Time) ([]mtls.Certificate, error) {
	var certs []mtls.Certificate
	for _, role := range o.Roles {
		f := mtls.In(o.Out, mtls.ID{Role: role})
		c, err := f.Verify(now)
		if err == nil && c.ID.Role != role {
			err = fmt.Errorf("%s: it is of %s", f.Cert, c.ID)
		}
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// join returns the certificates of two texts in PEM, each once.
func join(texts ...string) string {
	var all strings.Builder
	seen := map[string]bool{}
	for _, text := range texts {
		for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == "CERTIFICATE" && !seen[string(block.Bytes)] {
				seen[string(block.Bytes)] = true
				_ = pem.Encode(&all, block) // a Builder takes all
			}
		}
	}
	return all.String()
}
