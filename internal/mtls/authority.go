package mtls

import (
	"crypto"
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

	"millrace.dev/millrace/internal/keypair"
)

const (
	// backdate lets machines whose clocks go a little slow take a new certificate; one
	// of a short life is dated back by its life only.
	backdate = 5 * time.Minute
	// authorityLife is longer than a mesh runs that makes its own authority.
	authorityLife = 10 * 365 * 24 * time.Hour
)

// Authority signs the certificates of a mesh. It is never changed.
type Authority struct {
	domain string
	cert   *x509.Certificate
	key    crypto.Signer
	// trusted are all authorities of the mesh, cert among them: while one follows
	// another there are several.
	trusted []*x509.Certificate
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
	return &Authority{domain: domain, cert: cert, key: key, trusted: []*x509.Certificate{cert}}, err
}

// defaultDomain is the trust domain of an authority whose certificate names none.
const defaultDomain = "millrace"

// ReadAuthority returns the authority of some certificates, which are all trusted, and
// the key of one of them, which signs; all in PEM.
func ReadAuthority(certs, key []byte) (*Authority, error) {
	a := &Authority{domain: defaultDomain}
	var err error
	if a.trusted, err = keypair.Certificates(certs); err != nil {
		return nil, err
	}
	if a.key, err = readKey(key); err != nil {
		return nil, err
	}
	public, ok := a.key.Public().(interface{ Equal(crypto.PublicKey) bool })
	for _, c := range a.trusted {
		switch {
		case !c.IsCA:
			return nil, fmt.Errorf("certificate of %q; must be of an authority (basic constraint CA)", c.Subject)
		case ok && public.Equal(c.PublicKey):
			a.cert = c
		}
	}
	if a.cert == nil {
		return nil, errors.New("the key is of none of the certificates; must be of one of them")
	}
	if len(a.cert.URIs) > 0 && a.cert.URIs[0].Scheme == "spiffe" {
		a.domain = a.cert.URIs[0].Host
	}
	return a, nil
}

// readKey returns a key in any of the forms that tools write.
func readKey(text []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		default:
			continue
		}
		if signer, ok := key.(crypto.Signer); ok || err != nil {
			return signer, err
		}
	}
	return nil, errors.New("no private key in it; must be PEM")
}

// Domain returns the trust domain.
func (a *Authority) Domain() string { return a.domain }

// End returns when the signing certificate ends; what it signs ends no later.
func (a *Authority) End() time.Time { return a.cert.NotAfter }

// PEM returns all authorities of the mesh: what a -tls-ca file holds.
func (a *Authority) PEM() []byte {
	var text []byte
	for _, c := range a.trusted {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

// Issue returns a certificate and its new key as the text of one file: what -tls-cert
// and -tls-key may both name. It is good from a little before now until life later.
func (a *Authority) Issue(id ID, now time.Time, life time.Duration) ([]byte, error) {
	r, err := NewRequest()
	if err != nil {
		return nil, err
	}
	cert, err := a.Sign(r.Key.Public(), id, now, life)
	return append(cert, r.KeyPEM...), err
}

// Sign returns the certificate of an identity for a key, in PEM. It is good from a
// little before now until life later, or until the authority's own end.
func (a *Authority) Sign(key crypto.PublicKey, id ID, now time.Time, life time.Duration) ([]byte, error) {
	id.Domain = a.domain
	if _, err := Parse(id.String()); err != nil {
		return nil, err
	}
	t, err := template(id.String(), now, life)
	if err != nil {
		return nil, err
	}
	if t.NotAfter.After(a.cert.NotAfter) {
		t.NotAfter = a.cert.NotAfter
	}
	t.KeyUsage, t.BasicConstraintsValid = x509.KeyUsageDigitalSignature, true
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key, a.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
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
