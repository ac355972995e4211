package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"millrace.dev/millrace/internal/servertls"
)

// writePair writes a certificate that signs itself, and returns it.
func writePair(t *testing.T, cert, key string) tls.Certificate {
	t.Helper()
	c, err := servertls.SelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}),
		key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// ping asks the program whether it lives.
func (p *extproc) ping(t *testing.T, c credentials.TransportCredentials) error {
	t.Helper()
	conn, err := grpc.NewClient(p.grpc, grpc.WithTransportCredentials(c))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	return err
}

// trusting takes any certificate, and notes it in seen.
func trusting(seen *string, own ...tls.Certificate) credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		InsecureSkipVerify: true, Certificates: own,
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			*seen = string(raw[0])
			return nil
		},
	})
}

func TestSelfSigned(t *testing.T) {
	p := start(t, "-secure-serving")
	var seen string
	if err := p.ping(t, trusting(&seen)); err != nil || seen == "" {
		t.Errorf("over TLS: %v", err)
	}
	if err := p.ping(t, insecure.NewCredentials()); err == nil {
		t.Error("it answers without TLS, too")
	}
}

func TestCertificateIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	first := writePair(t, cert, key)
	p := start(t, "-tls-cert", cert, "-tls-key", key)
	p.feed(t)
	expect := func(what string, want tls.Certificate) {
		t.Helper()
		var seen string
		if err := p.ping(t, trusting(&seen)); err != nil || seen != string(want.Certificate[0]) {
			t.Errorf("%s: another certificate, or %v", what, err)
		}
	}
	expect("at first", first)
	second := writePair(t, cert, key)
	expect("after a change", second)
	if err := os.WriteFile(cert, []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("while the file is bad", second)
	p.log.await(t, "certificate not read, the one from before stays")
	if got := p.get(t, "/readyz"); !strings.Contains(got, `"code":"certificate"`) || !strings.Contains(got, cert) {
		t.Errorf("/readyz says nothing of the bad file: %s", got)
	}
	expect("after it was mended", writePair(t, cert, key))
}

func TestClientsMustShowACertificate(t *testing.T) {
	dir := t.TempDir()
	ca, key := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	known := writePair(t, ca, key)
	p := start(t, "-secure-serving", "-tls-client-ca", ca)
	stranger, err := servertls.SelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	var seen string
	for name, own := range map[string][]tls.Certificate{"none": nil, "a stranger's": {stranger}} {
		if err := p.ping(t, trusting(&seen, own...)); err == nil {
			t.Errorf("a client with the certificate %s is let in", name)
		}
	}
	if err := p.ping(t, trusting(&seen, known)); err != nil {
		t.Errorf("a client that is known: %v", err)
	}
}
