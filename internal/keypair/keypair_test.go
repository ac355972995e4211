package keypair

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pair returns a certificate and its key in PEM.
func pair(t testing.TB, serial int64) (cert, key []byte) {
	t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, own.Public(), own)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
}

func join(texts ...[]byte) []byte { return bytes.Join(texts, nil) }

func TestRead(t *testing.T) {
	one, oneKey := pair(t, 1)
	two, twoKey := pair(t, 2)
	half := two[:len(two)/2]
	tests := []struct {
		name      string
		cert, key []byte // no key: both are one file
		want      string // of the error; empty: none
	}{
		{"a pair", one, oneKey, ""},
		{"both in one file", join(one, oneKey), nil, ""},
		{"a chain", join(one, two), oneKey, ""},
		{"words between blocks", join([]byte("# mine\n"), one, []byte("# its authority\n"), two), oneKey, ""},
		{"the next certificate before its key", two, oneKey, "private key does not match"},
		{"the next key before its certificate", one, twoKey, "private key does not match"},
		{"half a certificate", half, twoKey, "half written"},
		{"half a chain", join(one, half), oneKey, "half written"},
		{"half a key", one, oneKey[:len(oneKey)/2], "key"},
		{"one file whose key is to come", one, nil, "key"},
		{"nothing yet", nil, oneKey, "certificate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			cert, key := filepath.Join(dir, "cert"), ""
			if err := os.WriteFile(cert, tt.cert, 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.key != nil {
				key = filepath.Join(dir, "key")
				if err := os.WriteFile(key, tt.key, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := Read(cert, key)
			if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Read() = %v; want %q", err, tt.want)
			}
		})
	}
}

// TestPoolIsWhole cuts a list of three authorities at every byte: it is never taken for a list
// in which one is broken.
func TestPoolIsWhole(t *testing.T) {
	var all [][]byte
	for i := range 3 {
		cert, _ := pair(t, int64(i))
		all = append(all, cert)
	}
	text := join(all...)
	path := filepath.Join(t.TempDir(), "ca.pem")
	for n := range len(text) + 1 {
		certs, err := Certificates(text[:n])
		if len(certs)*len(all[0])/2 > n {
			t.Fatalf("%d certificates of %d bytes", len(certs), n)
		}
		if begun := bytes.Count(text[:n], begin); err == nil && begun != len(certs) {
			t.Fatalf("%d bytes have the beginning of %d certificates, and are taken for %d", n, begun, len(certs))
		}
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Pool(path); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, text[:len(text)-40], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Pool(path); !errors.Is(err, ErrPart) || !strings.Contains(err.Error(), path) {
		t.Errorf("Pool() = %v; want ErrPart with the name of the file", err)
	}
}

func FuzzCertificates(f *testing.F) {
	cert, key := pair(f, 1)
	f.Add(cert)
	f.Add(join(key, cert))
	f.Add(cert[:len(cert)-3])
	f.Add([]byte("-----BEGIN -----BEGIN CERTIFICATE-----"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if all, err := Certificates(text); err == nil && len(all) > bytes.Count(text, begin) {
			t.Errorf("%d certificates of %d blocks", len(all), bytes.Count(text, begin))
		}
	})
}
