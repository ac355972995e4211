package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"millrace.dev/millrace/internal/keypair"
	"millrace.dev/millrace/internal/regular"
)

// Certificate is what a program would show.
type Certificate struct {
	// ID is whose it is.
	ID ID
	// From and Until are the ends of its life.
	From, Until time.Time
}

// Verify returns what a certificate, its key and the authorities, each in PEM, are as
// a program's identity, or why a peer would not take it at that time.
func Verify(cert, key, authorities []byte, now time.Time) (Certificate, error) {
	svid, err := x509svid.Parse(cert, key)
	if err != nil {
		return Certificate{}, err
	}
	leaf := svid.Certificates[0]
	c := Certificate{From: leaf.NotBefore, Until: leaf.NotAfter}
	if c.ID, err = parse(svid.ID.TrustDomain().Name(), svid.ID.Path()); err != nil {
		return Certificate{}, err
	}
	bundle, err := x509bundle.Parse(svid.ID.TrustDomain(), authorities)
	if err == nil {
		err = keypair.Whole(authorities)
	}
	if err != nil {
		return Certificate{}, fmt.Errorf("authorities: %w", err)
	}
	if _, _, err = x509svid.Verify(svid.Certificates, bundle, x509svid.WithTime(now)); err != nil {
		return Certificate{}, fmt.Errorf("certificate of %s, good from %s until %s by the clock of who signed it: %w",
			c.ID, c.From.Format(time.RFC3339), c.Until.Format(time.RFC3339), err)
	}
	return c, nil
}

// Verify returns what the files are as a program's identity, or why a peer would not
// take it at that time.
func (f Files) Verify(now time.Time) (Certificate, error) {
	var text [3][]byte
	for i, name := range []string{f.Cert, f.Key, f.CA} {
		var err error
		if text[i], err = regular.Read(name, maxFile); err != nil {
			return Certificate{}, err
		}
	}
	c, err := Verify(text[0], text[1], text[2], now)
	if err != nil {
		return Certificate{}, fmt.Errorf("%s: %w", f.Cert, err)
	}
	return c, nil
}

// Anonymous returns the configuration of a client that has no identity yet, for
// connections to a server that want accepts and whose certificate one of the
// authorities, in PEM, has signed.
func Anonymous(authorities []byte, want func(ID) error) (*tls.Config, error) {
	roots, err := keypair.Certificates(authorities)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Names of hosts say nothing here: VerifyConnection checks the identity instead.
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true,
		VerifyConnection:       func(state tls.ConnectionState) error { return verifyServer(state, roots, want) },
	}, nil
}

func verifyServer(state tls.ConnectionState, roots []*x509.Certificate, want func(ID) error) error {
	if len(state.PeerCertificates) == 0 {
		return errNoCertificate
	}
	name, err := x509svid.IDFromCert(state.PeerCertificates[0])
	if err != nil {
		return fmt.Errorf("certificate of %s: %w", nameOf(state.PeerCertificates[0]), err)
	}
	if _, _, err := x509svid.Verify(state.PeerCertificates, x509bundle.FromX509Authorities(name.TrustDomain(), roots)); err != nil {
		return fmt.Errorf("certificate of %s: %w", name, err)
	}
	id, err := parse(name.TrustDomain().Name(), name.Path())
	return errors.Join(err, want(id))
}

// Anybody returns the configuration of a server that shows its identity and asks for
// none: of a port whose callers prove in another way who they are.
func (s *Source) Anybody(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: protocols, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.current().certificate(), nil },
	}
}
