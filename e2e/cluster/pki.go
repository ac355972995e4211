package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority is the cluster's certificate authority, and the folder of all that it
// has issued.
type authority struct {
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// lifetime of certificates: a cluster of tests lives for minutes.
const lifetime = 30 * 24 * time.Hour

// newAuthority makes ca.crt and ca.key, and sa.key and sa.pub that sign and check
// tokens of service accounts.
func newAuthority(dir string) (*authority, error) {
	a := &authority{dir: dir}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test cluster"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lifetime),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	if err := a.write("ca", der, a.key); err != nil {
		return nil, err
	}
	sa, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(sa.Public())
	if err != nil {
		return nil, err
	}
	if err := a.writePEM("sa.pub", "PUBLIC KEY", public); err != nil {
		return nil, err
	}
	return a, a.writePEM("sa.key", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(sa))
}

// issue makes NAME.crt and NAME.key for a subject, good for clients and for servers
// at hosts, which are names and addresses.
func (a *authority) issue(name string, subject pkix.Name, hosts ...string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: subject,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	return a.write(name, der, key)
}

// kubeconfig issues a client's certificate and writes NAME.conf, which connects to a
// server with it. It returns the file's path.
func (a *authority) kubeconfig(name, server string, subject pkix.Name) (string, error) {
	if err := a.issue(name, subject); err != nil {
		return "", err
	}
	return a.connect(name+".conf", name, server)
}

// connect writes a configuration for clients that connects to a server as one that
// has a certificate.
func (a *authority) connect(file, name, server string) (string, error) {
	type object = map[string]any
	config := object{
		"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": []object{{"name": "c", "cluster": object{"server": "https://" + server, "certificate-authority": a.path("ca.crt")}}},
		"users":    []object{{"name": "u", "user": object{"client-certificate": a.path(name + ".crt"), "client-key": a.path(name + ".key")}}},
		"contexts": []object{{"name": "c", "context": object{"cluster": "c", "user": "u"}}},
	}
	b, err := json.MarshalIndent(config, "", " ")
	if err != nil {
		return "", err
	}
	return a.path(file), os.WriteFile(a.path(file), b, 0o600)
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) write(name string, der []byte, key *ecdsa.PrivateKey) error {
	k, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err := a.writePEM(name+".key", "EC PRIVATE KEY", k); err != nil {
		return err
	}
	return a.writePEM(name+".crt", "CERTIFICATE", der)
}

func (a *authority) writePEM(name, kind string, der []byte) error {
	return os.WriteFile(a.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
