// Package servertls is the TLS of a gRPC port by files that an operator gives, for callers that
// have no identity of the mesh: gateways that ask extproc, KEDA that asks xds. The files are
// followed. Links between our own programs have internal/mtls.
package servertls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"millrace.dev/millrace/internal/keypair"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/stamp"
)

// selfSignedFor is how long a certificate of our own is good: longer than we run.
const selfSignedFor = 10 * 365 * 24 * time.Hour

// TLS is what the flags say of a port. The zero TLS is none.
type TLS struct {
	// Prefix begins the names of its flags, PREFIXtls-cert and so on, in errors.
	Prefix string
	// Cert and Key are files; empty: none, or if Self, one that we sign ourselves.
	Cert, Key string
	// Clients is the file of the authorities that sign clients' certificates; empty:
	// anybody may ask.
	Clients string
	// Self needs the flag -secure-serving.
	Self bool

	// Of a server that runs: what the files say, and the certificate that is none of them.
	value *stamp.Value[*tls.Config]
	own   []tls.Certificate
}

// On is whether there is TLS at all.
func (s *TLS) On() bool { return s.Cert != "" || s.Key != "" || s.Self }

// Check returns what is wrong with the flags and the files.
func (s *TLS) Check() error {
	switch {
	case (s.Cert == "") != (s.Key == ""):
		return fmt.Errorf("-%stls-cert and -%[1]stls-key; must be given both, or neither", s.Prefix)
	case s.Cert != "" && s.Self:
		return errors.New("-secure-serving, -tls-cert; give one of them only: -secure-serving signs a certificate of its own")
	case s.Clients != "" && !s.On() && s.Prefix == "":
		return errors.New("-tls-client-ca; needs -tls-cert and -tls-key, or -secure-serving, too")
	case s.Clients != "" && !s.On():
		return fmt.Errorf("-%stls-client-ca; needs -%[1]stls-cert and -%[1]stls-key, too", s.Prefix)
	}
	_, err := s.read()
	return err
}

// Conditions lists files that have become bad: the certificate before is in force.
func (s *TLS) Conditions() []obs.Condition {
	if s.value == nil {
		return nil
	}
	if _, err := s.value.Latest(); err != nil {
		return []obs.Condition{{Code: "certificate", Text: err.Error(), Next: "correct the files; until then the previous certificate is served"}}
	}
	return nil
}

// Options are those of a server whose port is as secure.
func (s *TLS) Options(log *slog.Logger) (all []grpc.ServerOption, err error) {
	if !s.On() {
		return nil, nil
	}
	if s.Self {
		cert, err := SelfSigned()
		if err != nil {
			return nil, err
		}
		s.own = []tls.Certificate{cert}
	}
	s.value, err = stamp.Load([]string{s.Cert, s.Key, s.Clients}, s.read, func(_ *tls.Config, err error) {
		if err != nil {
			log.Warn("certificate not read, the one from before stays", "err", err)
			return
		}
		log.Info("certificate read again")
	})
	return []grpc.ServerOption{grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			c, _ := s.value.Latest()
			return c, nil
		},
	}))}, err
}

// Client is how another replica is reached: it serves what this one does, by a certificate
// that nobody verifies, as gateways don't, and shows its own where it is asked for one.
func (s *TLS) Client() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, // keeps listeners out; who may join is up to the network
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, _ := s.value.Latest()
			return &c.Certificates[0], nil
		},
	}
}

// read returns what the files say.
func (s *TLS) read() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: s.own, NextProtos: []string{"h2"}}
	if s.Cert != "" {
		pair, err := keypair.Read(s.Cert, s.Key)
		if err != nil {
			return nil, fmt.Errorf("-%stls-cert %s, -%[1]stls-key %[3]s: %[4]w", s.Prefix, s.Cert, s.Key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if s.Clients == "" {
		return c, nil
	}
	text, err := regular.Read(s.Clients, keypair.MaxFile)
	if err != nil {
		return nil, fmt.Errorf("-%stls-client-ca: %w", s.Prefix, err)
	}
	pool, err := keypair.PoolOf(text)
	if err != nil {
		return nil, fmt.Errorf("-%stls-client-ca %s: %w", s.Prefix, s.Clients, err)
	}
	c.ClientCAs, c.ClientAuth = pool, tls.RequireAndVerifyClientCert
	return c, nil
}

// SelfSigned makes a certificate that nobody can verify: it keeps listeners out, and
// is what gateways expect that ask without verifying.
func SelfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	number, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: "extproc"}, DNSNames: []string{"extproc", "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(selfSignedFor),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}
