package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

var (
	errNoCertificate = errors.New("it shows no certificate")
	errCleartext     = errors.New("it speaks plain text; must speak TLS with a certificate of the mesh")
)

// Client returns the configuration for connections to a server that want accepts.
// The protocols are ALPN's.
func (s *Source) Client(want func(ID) error, protocols ...string) *tls.Config {
	c := s.config(want, protocols)
	// Names of hosts say nothing here: VerifyConnection checks the identity instead.
	c.InsecureSkipVerify = true
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return s.current().certificate(), nil
	}
	return c
}

// server returns the configuration for connections of clients, each of which must
// show an identity of the mesh. What it may ask for is checked for each call.
func (s *Source) server(protocols []string) *tls.Config {
	c := s.config(nil, protocols)
	c.ClientAuth = tls.RequestClientCert // VerifyConnection requires and verifies it
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return s.current().certificate(), nil
	}
	return c
}

// config returns what both sides have in common. The peer is verified in
// VerifyConnection, which, unlike VerifyPeerCertificate, is called for resumed
// sessions too. There are none anyway, so that a new authority counts at once.
func (s *Source) config(want func(ID) error, protocols []string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             protocols,
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			id, err := s.verify(state.PeerCertificates)
			if err == nil && want != nil {
				err = want(id)
			}
			return err
		},
	}
}

func (m *material) certificate() *tls.Certificate {
	c := &tls.Certificate{PrivateKey: m.svid.PrivateKey, Leaf: m.leaf()}
	for _, cert := range m.svid.Certificates {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}

// verify returns whose the certificates are, once they lead to an authority of the mesh.
func (s *Source) verify(certs []*x509.Certificate) (ID, error) {
	if len(certs) == 0 {
		return ID{}, errNoCertificate
	}
	id, _, err := x509svid.Verify(certs, s.current().bundle)
	if err != nil {
		return ID{}, fmt.Errorf("certificate of %s: %w", nameOf(certs[0]), err)
	}
	return parse(id.TrustDomain().Name(), id.Path())
}

// nameOf says for a log whose a certificate claims to be.
func nameOf(c *x509.Certificate) string {
	if len(c.URIs) > 0 {
		return fmt.Sprintf("%.200s", c.URIs[0])
	}
	return fmt.Sprintf("%.200q", c.Subject.String())
}

// Peer returns whose a verified connection is, as long as its certificate is good.
func Peer(state *tls.ConnectionState, now time.Time) (ID, error) {
	if state == nil || len(state.PeerCertificates) == 0 || len(state.PeerCertificates[0].URIs) != 1 {
		return ID{}, errNoCertificate
	}
	c := state.PeerCertificates[0]
	id, err := parse(c.URIs[0].Host, c.URIs[0].Path)
	if err == nil && now.After(c.NotAfter) {
		err = fmt.Errorf("certificate of %s: it ended at %s", id, c.NotAfter.Format(time.RFC3339))
	}
	return id, err
}

// Listener returns ln so that only peers with an identity of the mesh get a
// connection, by one of the protocols of ALPN. What is refused is logged. The
// connections are *tls.Conn whose first use shakes hands.
func (s *Source) Listener(ln net.Listener, protocols ...string) net.Listener {
	return &listener{Listener: ln, source: s, protocols: protocols}
}

type listener struct {
	net.Listener
	source    *Source
	protocols []string
}

// Accept returns the next connection.
func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := l.source.server(l.protocols)
	verify, from := c.VerifyConnection, conn.RemoteAddr().String()
	c.VerifyConnection = func(state tls.ConnectionState) error {
		err := verify(state)
		if err != nil {
			l.source.Refused(from, err)
		}
		return err
	}
	return tls.Server(&sniffed{Conn: conn, cleartext: func() { l.source.Refused(from, errCleartext) }}, c), nil
}

// sniffed is a connection that notices when its peer does not begin with TLS.
type sniffed struct {
	net.Conn
	cleartext func() // called once; nil: it was, or need not be
}

// Read reads.
func (c *sniffed) Read(b []byte) (int, error) {
	const handshake = 22 // the kind of a TLS record
	n, err := c.Conn.Read(b)
	if n > 0 && c.cleartext != nil {
		if b[0] != handshake {
			c.cleartext()
		}
		c.cleartext = nil
	}
	return n, err
}

// How many lines of refusals are logged in how much time.
const (
	refusalLines = 20
	refusalTime  = 10 * time.Second
)

// Refused logs what somebody did not get. Somebody who tries again and again is not
// worth a line each time.
func (s *Source) Refused(from string, err error) {
	s.mu.Lock()
	now := time.Now()
	if now.Sub(s.window) > refusalTime {
		s.window, s.lines = now, 0
	}
	s.lines++
	quiet := s.lines > refusalLines
	s.mu.Unlock()
	if !quiet {
		s.log.Warn("refused", "from", from, "err", err)
	}
}

// NetConn returns the connection below.
func (c *sniffed) NetConn() net.Conn { return c.Conn }
