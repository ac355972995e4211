package mtls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// Request is a new key, and the request for a certificate of it. It says nothing of
// whose it shall be: who signs knows that from elsewhere.
type Request struct {
	Key *ecdsa.PrivateKey
	// KeyPEM is the key as PKCS #8, CSR the request as PKCS #10, both in PEM.
	KeyPEM, CSR []byte
}

// NewRequest returns a new key with its request.
func NewRequest() (*Request, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	return &Request{
		Key:    key,
		KeyPEM: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
		CSR:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
	}, nil
}

// ReadCSR returns the key of a request in PEM, whose sender has proven that it is its
// own. All else that the request says counts for nothing.
func ReadCSR(text []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("no certificate request; must be PKCS #10 in PEM")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("key of kind %s; must be ECDSA on P-256", r.PublicKeyAlgorithm)
	}
	return key, r.CheckSignature()
}
