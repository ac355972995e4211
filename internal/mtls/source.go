package mtls

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"millrace.dev/millrace/internal/keypair"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/stamp"
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
	value *stamp.Value[*material]

	// mu guards the fields below.
	mu sync.Mutex
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
// stays.
func Load(f Files, log *slog.Logger) (*Source, error) {
	s := &Source{files: f, log: log}
	var err error
	s.value, err = stamp.Load([]string{f.Cert, f.Key, f.CA}, s.read, s.note)
	return s, err
}

// ID returns who the program is.
func (s *Source) ID() ID { return s.id }

// read returns what the files say, if they are still of the same program.
func (s *Source) read() (*material, error) {
	m, id, err := s.files.read()
	switch {
	case err != nil:
		return nil, err
	case s.id == ID{}:
		s.id = id // the first time
	case id != s.id:
		return nil, fmt.Errorf("-tls-cert %s: it is of %s now; must be of %s while the program runs", s.files.Cert, id, s.id)
	}
	return m, nil
}

func (s *Source) note(m *material, err error) {
	if err != nil {
		s.log.Warn("certificate not read, the one from before stays", "err", err)
		return
	}
	s.log.Info("certificate read again", "id", s.id, "until", m.leaf().NotAfter)
}

// read returns what the files say, if it is of one piece.
func (f Files) read() (*material, ID, error) {
	svid, err := f.svid()
	if err != nil {
		return nil, ID{}, fmt.Errorf("-tls-cert %s, -tls-key %s: %w", f.Cert, f.Key, err)
	}
	id, err := Parse(svid.ID.String())
	if err != nil {
		return nil, ID{}, fmt.Errorf("-tls-cert %s: %w", f.Cert, err)
	}
	bundle, err := f.bundle(svid.ID.TrustDomain())
	if err == nil && bundle.Empty() {
		err = errors.New("no certificate in it")
	}
	if err != nil {
		return nil, ID{}, fmt.Errorf("-tls-ca %s: %w", f.CA, err)
	}
	return &material{svid, bundle}, id, nil
}

// maxFile is the largest file with certificates or keys, in bytes.
const maxFile = keypair.MaxFile

func (f Files) svid() (*x509svid.SVID, error) {
	cert, err := regular.Read(f.Cert, maxFile)
	if err != nil {
		return nil, err
	}
	key, err := regular.Read(f.Key, maxFile)
	if err == nil {
		err = keypair.Whole(cert)
	}
	if err != nil {
		return nil, err
	}
	return x509svid.Parse(cert, key) // which verifies that the key is the certificate's
}

func (f Files) bundle(of spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	b, err := regular.Read(f.CA, maxFile)
	if err == nil {
		err = keypair.Whole(b)
	}
	if err != nil {
		return nil, err
	}
	return x509bundle.Parse(of, b)
}

// current returns what is in force now.
func (s *Source) current() *material {
	m, _ := s.value.Latest()
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
	m, err := s.value.Latest()
	var all []obs.Condition
	if err != nil {
		all = append(all, obs.Condition{Code: "certificate", Text: err.Error(), Next: "correct the files; until then the previous certificate is used"})
	}
	if end := m.leaf().NotAfter; time.Now().After(end) {
		all = append(all, obs.Condition{
			Code: "certificate-expired", Text: fmt.Sprintf("the certificate of %s expired at %s: no other program accepts it", s.id, end.Format(time.RFC3339)),
			Next: "put a new one into " + s.files.Cert, Severity: obs.Blocking,
		})
	}
	return all
}
