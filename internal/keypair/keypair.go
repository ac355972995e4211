// Package keypair reads certificates, their keys and lists of authorities: files that make
// sense only whole, and only together.
//
// Called by whoever has TLS by files that somebody else replaces while it runs: mtls, reach,
// extproc's own port, -check. Its one rule: what is half replaced is an error. A certificate
// without its key, a chain or a list that ends within a certificate is never taken for what
// it is going to be; with stamp.Value around it, what was there before stays until it is
// whole.
package keypair

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"millrace.dev/millrace/internal/regular"
)

// MaxFile is the largest file that is read, in bytes.
const MaxFile = 1 << 20

// Read returns what two files in PEM have: a certificate with its chain, and its key. An
// empty key is in the file of the certificate. The error is one of reading, or says that one
// of them is broken, or that they are not of each other.
func Read(cert, key string) (tls.Certificate, error) {
	chain, err := regular.Read(cert, MaxFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	secret := chain
	if key != "" && key != cert {
		if secret, err = regular.Read(key, MaxFile); err != nil {
			return tls.Certificate{}, err
		}
	}
	if err := Whole(chain); err != nil {
		return tls.Certificate{}, fmt.Errorf("%s: %w", cert, err)
	}
	return tls.X509KeyPair(chain, secret)
}

// Pool returns the authorities of a file in PEM.
func Pool(path string) (*x509.CertPool, error) {
	text, err := regular.Read(path, MaxFile)
	if err != nil {
		return nil, err
	}
	pool, err := PoolOf(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return pool, nil
}

// PoolOf returns the authorities of a text in PEM.
func PoolOf(text []byte) (*x509.CertPool, error) {
	all, err := Certificates(text)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range all {
		pool.AddCert(c)
	}
	return pool, nil
}

// Certificates returns the certificates of a text in PEM, of which there is one at least.
func Certificates(text []byte) ([]*x509.Certificate, error) {
	if err := Whole(text); err != nil {
		return nil, err
	}
	var all []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errors.New("no certificate in it; must be PEM")
	}
	return all, nil
}

// ErrPart says that a text ends, or is broken, within a block.
var ErrPart = errors.New("it ends within a block of PEM, or has one that is broken: it may be half written")

// begin opens every block. Between blocks there may be anything else.
var begin = []byte("-----BEGIN ")

// Whole returns ErrPart if some block of a text in PEM is not whole. Decoders pass over such
// blocks, so that half a list would be taken for a shorter one.
func Whole(text []byte) error {
	n := 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		n++
	}
	if n != bytes.Count(text, begin) {
		return ErrPart
	}
	return nil
}
