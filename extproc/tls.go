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
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
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
		return errors.New("-tls-ca with -secure-serving or -tls-client-ca; must be one of them: the mesh's own authorities say who may ask")
	case f.CA != "":
		return nil // the program's identity is on the port
	case s.cert != "" && s.self:
		return errors.New("-secure-serving with -tls-cert; must be one of them: it signs its own certificate")
	case s.clients != "" && !s.on():
		return errors.New("-tls-client-ca; goes with -tls-cert and -tls-key, or with -secure-serving")
	}
	return s.read()
}

// read returns what is wrong with the files now.
func (s *secure) read() error {
	_, err := (&keeper{secure: s}).load()
	return err
}

// conditions lists files that have become bad: the certificate before is in force.
func (s *secure) conditions() []obs.Condition {
	if err := s.read(); err != nil {
		return []obs.Condition{{Code: "certificate", Text: err.Error(), Next: "mend the files; until then the certificate from before is served"}}
	}
	return nil
}

// options are those of a server whose port is as secure.
func (s *secure) options(log *slog.Logger) ([]grpc.ServerOption, error) {
	if !s.on() {
		return nil, nil
	}
	c, err := s.credentials(log)
	return []grpc.ServerOption{grpc.Creds(c)}, err
}

// credentials returns the server's credentials. The files are read again for a
// handshake, which is seldom, if they have changed; while they are bad the certificate
// from before stays.
func (s *secure) credentials(log *slog.Logger) (credentials.TransportCredentials, error) {
	k := &keeper{secure: s, log: log}
	if s.self {
		cert, err := selfSigned()
		if err != nil {
			return nil, err
		}
		k.own = []tls.Certificate{cert}
	}
	if _, err := k.config(); err != nil {
		return nil, err
	}
	return credentials.NewTLS(&tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return k.config() },
	}), nil
}

// keeper keeps what the files say.
type keeper struct {
	// Constant.
	*secure
	log *slog.Logger
	own []tls.Certificate // nil: from files

	// mu guards the fields below.
	mu    sync.Mutex
	stamp string      // of the files as they were read last
	last  *tls.Config // the last good one
}

// config returns the configuration in force.
func (k *keeper) config() (*tls.Config, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	stamp := k.stampOf()
	if stamp == k.stamp && k.last != nil {
		return k.last, nil
	}
	c, err := k.load()
	switch {
	case err == nil:
		if k.last != nil {
			k.log.Info("certificate read again")
		}
		k.last = c
	case k.last == nil:
		return nil, err
	default:
		k.log.Warn("certificate is bad, the one from before stays", "error", err)
	}
	k.stamp = stamp
	return k.last, nil
}

// stampOf changes when the files do.
func (k *keeper) stampOf() (stamp string) {
	for _, name := range []string{k.cert, k.key, k.clients} {
		if st, err := os.Stat(name); name != "" && err == nil {
			stamp += fmt.Sprint(st.ModTime().UnixNano(), st.Size(), " ")
		}
	}
	return stamp
}

func (k *keeper) load() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: k.own, NextProtos: []string{"h2"}}
	if k.cert != "" {
		pair, err := tls.LoadX509KeyPair(k.cert, k.key)
		if err != nil {
			return nil, fmt.Errorf("-tls-cert %s, -tls-key %s: %w", k.cert, k.key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if k.clients == "" {
		return c, nil
	}
	b, err := os.ReadFile(k.clients)
	if err != nil {
		return nil, fmt.Errorf("-tls-client-ca: %w", err)
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !c.ClientCAs.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("-tls-client-ca %s: no certificate in it; must be PEM", k.clients)
	}
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
