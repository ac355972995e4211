package main

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
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/stamp"
)

// selfSignedFor is how long a certificate of our own is good: longer than we run.
const selfSignedFor = 10 * 365 * 24 * time.Hour

// secure is what the flags say of TLS on the gRPC port. The zero secure is none.
type secure struct {
	// cert and key are files; empty: none, or if self, one that we sign ourselves.
	cert, key string
	// clients is the file of the authorities that sign clients' certificates; empty:
	// anybody may ask.
	clients string
	self    bool

	// Of a server that runs: what the files say, and the certificate that is none of them.
	value *stamp.Value[*tls.Config]
	own   []tls.Certificate
}

// on is whether there is TLS at all.
func (s *secure) on() bool { return s.cert != "" || s.self }

// validate returns what is wrong with the flags and the files.
func (s *secure) validate(f mtls.Files) error {
	if f.CA == "" && f.Key != "" {
		s.cert, s.key = f.Cert, f.Key
	}
	switch {
	case f.CA != "" && (s.self || s.clients != ""):
		return errors.New("-tls-ca, -secure-serving, -tls-client-ca; with -tls-ca give none of the others: the mesh's own authorities decide which clients are accepted")
	case f.CA != "":
		return nil // the program's identity is on the port
	case s.cert != "" && s.self:
		return errors.New("-secure-serving, -tls-cert; give one of them only: -secure-serving signs a certificate of its own")
	case s.clients != "" && !s.on():
		return errors.New("-tls-client-ca; needs -tls-cert and -tls-key, or -secure-serving, too")
	}
	_, err := s.read()
	return err
}

// conditions lists files that have become bad: the certificate before is in force.
func (s *secure) conditions() []obs.Condition {
	if s.value == nil {
		return nil
	}
	if _, err := s.value.Latest(); err != nil {
		return []obs.Condition{{Code: "certificate", Text: err.Error(), Next: "correct the files; until then the previous certificate is served"}}
	}
	return nil
}

// options are those of a server whose port is as secure.
func (s *secure) options(log *slog.Logger) (all []grpc.ServerOption, err error) {
	if !s.on() {
		return nil, nil
	}
	if s.self {
		cert, err := selfSigned()
		if err != nil {
			return nil, err
		}
		s.own = []tls.Certificate{cert}
	}
	s.value, err = stamp.Load([]string{s.cert, s.key, s.clients}, s.read, func(_ *tls.Config, err error) {
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

// client is how another replica is reached: it serves what this one does, by a certificate
// that nobody verifies, as gateways don't, and shows its own where it is asked for one.
func (s *secure) client() *tls.Config {
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
func (s *secure) read() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: s.own, NextProtos: []string{"h2"}}
	if s.cert != "" {
		pair, err := keypair.Read(s.cert, s.key)
		if err != nil {
			return nil, fmt.Errorf("-tls-cert %s, -tls-key %s: %w", s.cert, s.key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if s.clients == "" {
		return c, nil
	}
	text, err := regular.Read(s.clients, keypair.MaxFile)
	if err != nil {
		return nil, fmt.Errorf("-tls-client-ca: %w", err)
	}
	pool, err := keypair.PoolOf(text)
	if err != nil {
		return nil, fmt.Errorf("-tls-client-ca %s: %w", s.clients, err)
	}
	c.ClientCAs, c.ClientAuth = pool, tls.RequireAndVerifyClientCert
	return c, nil
}

// selfSigned makes a certificate that nobody can verify: it keeps listeners out, and
// is what gateways expect that ask without verifying.
func selfSigned() (tls.Certificate, error) {
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
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
