package mtls

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"millrace.dev/millrace/internal/obs"
)

// Files are where a program's identity is, in PEM.
type Files struct {
	// Cert has the certificate and what leads to its authority, Key its key; both may
	// be one file, which then changes as a whole.
	Cert, Key string
	// CA has the authorities of the mesh.
	CA string
}

// Source is what a program shows of itself and whom it trusts. A nil Source is that
// of a program without TLS.
type Source struct {
	// Constant after Load.
	files Files
	id    ID
	log   *slog.Logger

	// mu guards the fields below.
	mu    sync.Mutex
	stamp string // of the files from which now was read
	now   *material
	fault string // why the files are not read now; empty: they are
	// window is when lines began to count refusals that were logged.
	window time.Time
	lines  int
}

// material is what the files said at one moment. It is never changed.
type material struct {
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
}

// leaf is the program's own certificate.
func (m *material) leaf() *x509.Certificate { return m.svid.Certificates[0] }

// Load reads the files for the first time. They are read again for a handshake,
// which is seldom, when they have changed; while they are bad, what they said before
// stays. So a rotation needs no signal, and nothing runs in between.
func Load(f Files, log *slog.Logger) (*Source, error) {
	s := &Source{files: f, log: log}
	s.stamp = s.stampOf()
	m, id, err := f.read()
	if err != nil {
		return nil, err
	}
	s.now, s.id = m, id
	return s, nil
}

// ID returns who the program is.
func (s *Source) ID() ID { return s.id }

// read returns what the files say, if it is of one piece.
func (f Files) read() (*material, ID, error) {
	svid, err := x509svid.Load(f.Cert, f.Key)
	if err != nil {
		return nil, ID{}, fmt.Errorf("-tls-cert %s, -tls-key %s: %w", f.Cert, f.Key, err)
	}
	id, err := Parse(svid.ID.String())
	if err != nil {
		return nil, ID{}, fmt.Errorf("-tls-cert %s: %w", f.Cert, err)
	}
	bundle, err := x509bundle.Load(svid.ID.TrustDomain(), f.CA)
	if err == nil && bundle.Empty() {
		err = errors.New("no certificate in it")
	}
	if err != nil {
		return nil, ID{}, fmt.Errorf("-tls-ca %s: %w", f.CA, err)
	}
	return &material{svid, bundle}, id, nil
}

// stampOf changes when the files do. It is taken before they are read: what changes
// meanwhile is read the next time.
func (s *Source) stampOf() (stamp string) {
	for _, name := range []string{s.files.Cert, s.files.Key, s.files.CA} {
		if st, err := os.Stat(name); err == nil {
			var inode uint64
			if sys, ok := st.Sys().(*syscall.Stat_t); ok {
				inode = sys.Ino // a file that was put in place of another may be as old and as large
			}
			stamp += fmt.Sprint(st.ModTime().UnixNano(), st.Size(), inode, " ")
		}
	}
	return stamp
}

// current returns what is in force now.
func (s *Source) current() *material {
	s.mu.Lock()
	defer s.mu.Unlock()
	stamp := s.stampOf()
	if stamp == s.stamp {
		return s.now
	}
	m, id, err := s.files.read()
	if err == nil && id != s.id {
		err = fmt.Errorf("-tls-cert %s: it is of %s now; must be of %s while the program runs", s.files.Cert, id, s.id)
	}
	if err != nil { // a certificate that came before its key is tried again
		if s.fault != err.Error() {
			s.log.Warn("certificate not read, the one from before stays", "err", err)
		}
		s.fault = err.Error()
		return s.now
	}
	s.log.Info("certificate read again", "id", id, "until", m.leaf().NotAfter)
	s.now, s.stamp, s.fault = m, stamp, ""
	return m
}

// Renewal returns when a stream that is opened now is to be opened anew, before its
// certificate ends and the server cuts it; zero: never.
func (s *Source) Renewal() time.Time {
	if s == nil {
		return time.Time{}
	}
	c := s.current().leaf()
	return c.NotAfter.Add(-slice(c))
}

// Conditions returns what is wrong with the files now.
func (s *Source) Conditions() []obs.Condition {
	if s == nil {
		return nil
	}
	m := s.current()
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []obs.Condition
	if s.fault != "" {
		all = append(all, obs.Condition{Code: "certificate", Text: s.fault, Next: "mend the files; until then the certificate from before is shown"})
	}
	if end := m.leaf().NotAfter; time.Now().After(end) {
		all = append(all, obs.Condition{
			Code: "certificate-expired", Text: fmt.Sprintf("the certificate of %s ended at %s: nobody takes it", s.id, end.Format(time.RFC3339)),
			Next: "put a new one into " + s.files.Cert,
		})
	}
	return all
}
