package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// writeCertificate makes a certificate for the loopback address, with that serial number,
// and puts it into place by renaming, the key first.
func writeCertificate(t *testing.T, dir string, serial int64) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}, &x509.Certificate{SerialNumber: big.NewInt(serial)}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		name, kind string
		bytes      []byte
	}{{"tls.key", "PRIVATE KEY", secret}, {"tls.crt", "CERTIFICATE", der}} {
		path := filepath.Join(dir, f.name)
		rig.Write(t, path+".new", string(pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.bytes})))
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestGatewayHTTPS shows that clients come by TLS to a second address, by HTTP/2 and HTTP/1.1,
// and that a certificate is replaced without a restart, also when the key has come long before
// the certificate, at the start and later.
func TestGatewayHTTPS(t *testing.T) {
	dir, at := t.TempDir(), rig.MustAddresses(t, 1)[0]
	writeCertificate(t, dir, 9)
	mixed, err := os.ReadFile(filepath.Join(dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	first := writeCertificate(t, dir, 1)
	right, err := os.ReadFile(filepath.Join(dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	rig.Replace(t, filepath.Join(dir, "tls.key"), string(mixed)) // no pair while Envoy starts
	g := newGateway(t, nobody, "-https", at, "-https-cert", filepath.Join(dir, "tls.crt"), "-https-key", filepath.Join(dir, "tls.key"))
	// get lists the models with whoever has that certificate.
	get := func(trusted *x509.Certificate, http2 bool) error {
		roots := x509.NewCertPool()
		roots.AddCert(trusted)
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: http2}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Get("https://" + at + "/v1/models")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK || (resp.ProtoMajor == 2) != http2 {
			return fmt.Errorf("%s by %s", resp.Status, resp.Proto)
		}
		return nil
	}
	g.must(t, 200) // in plain text: Envoy has its listeners
	rig.Wait(t, 20*time.Second, "xds says what is wrong", func() error { return g.says("public-certificate") })
	rig.Replace(t, filepath.Join(dir, "tls.key"), string(right))
	for _, http2 := range []bool{true, false} {
		rig.Wait(t, 20*time.Second, "an answer by TLS", func() error { return get(first, http2) })
	}
	// The first half of the next pair changes nothing.
	rig.Replace(t, filepath.Join(dir, "tls.key"), string(mixed))
	rig.Wait(t, 20*time.Second, "xds says what is wrong", func() error { return g.says("public-certificate") })
	for range 5 {
		if err := get(first, true); err != nil {
			t.Errorf("while the next pair has come by half: %v", err)
		}
	}
	g.must(t, 200) // in plain text, as before
	second := writeCertificate(t, dir, 2)
	rig.Wait(t, 20*time.Second, "the second certificate is shown", func() error { return get(second, true) })
	if get(first, true) == nil {
		t.Error("the first certificate is shown again")
	}
}

// says returns nil once a condition of that code is on xds' page.
func (g *gateway) says(code string) error {
	b, err := rig.Get("http://" + g.metrics + "/readyz")
	if err == nil && !strings.Contains(string(b), code) {
		err = errors.New(string(b))
	}
	return err
}
