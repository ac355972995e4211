package mtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

const (
	// backdate lets machines whose clocks go a little slow take a new certificate; one
	// of a short life is dated back by its life only.
	backdate = 5 * time.Minute
	// authorityLife is longer than a mesh runs that makes its own authority.
	authorityLife = 10 * 365 * 24 * time.Hour
)

// Authority signs the certificates of a mesh. Its key is nowhere but in memory.
type Authority struct {
	domain string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
}

// NewAuthority returns a new authority of a trust domain.
func NewAuthority(domain string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t, err := template(ID{Domain: domain}.String(), now, authorityLife)
	if err != nil {
		return nil, err
	}
	t.URIs[0].Path = ""
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	t.Subject = pkix.Name{CommonName: "authority of " + domain}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &Authority{domain: domain, cert: cert, key: key}, err
}

// PEM returns the authority's certificate: what a -tls-ca file holds.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Issue returns a certificate and its new key as the text of one file: what -tls-cert
// and -tls-key may both name. It is good from a little before now until life later.
func (a *Authority) Issue(id ID, now time.Time, life time.Duration) ([]byte, error) {
	id.Domain = a.domain
	if _, err := Parse(id.String()); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t, err := template(id.String(), now, life)
	if err != nil {
		return nil, err
	}
	t.KeyUsage, t.BasicConstraintsValid = x509.KeyUsageDigitalSignature, true
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})...), nil
}

func template(uri string, now time.Time, life time.Duration) (*x509.Certificate, error) {
	number, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: number, URIs: []*url.URL{u}, NotBefore: now.Add(-min(backdate, life)), NotAfter: now.Add(life),
	}, nil
}

// In returns the files of a program in a folder that has those of a whole mesh.
func In(dir string, id ID) Files {
	name := string(id.Role)
	if id.Node != "" {
		name += "@" + id.Node
	}
	file := filepath.Join(dir, name+".pem")
	return Files{Cert: file, Key: file, CA: filepath.Join(dir, "ca.pem")}
}

// WriteFile writes a secret file whole: who reads it finds the text before or this
// one, and who watches its folder sees it move.
func WriteFile(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}
