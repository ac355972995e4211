package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/internal/servertls"
	"millrace.dev/millrace/xds/scalerpb"
)

// TestScalerHasItsOwnTLS: KEDA has no identity of the mesh, so its port has a certificate of its own.
func TestScalerHasItsOwnTLS(t *testing.T) {
	c, err := servertls.SelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert := write(t, "tls.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})))
	key := write(t, "tls.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	roots := x509.NewCertPool()
	roots.AddCert(c.Leaf)
	verified := &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}
	shown := verified.Clone()
	shown.Certificates = []tls.Certificate{c}
	for _, tt := range []struct {
		name   string
		args   []string
		client credentials.TransportCredentials
		want   codes.Code // InvalidArgument: it is served, and asks for the name of a model
	}{
		{"plain text", nil, insecure.NewCredentials(), codes.InvalidArgument},
		{"TLS", []string{"-scaler-tls-cert", cert, "-scaler-tls-key", key}, credentials.NewTLS(verified), codes.InvalidArgument},
		{"plain text to a port of TLS", []string{"-scaler-tls-cert", cert, "-scaler-tls-key", key}, insecure.NewCredentials(), codes.Unavailable},
		{"a known client", []string{"-scaler-tls-cert", cert, "-scaler-tls-key", key, "-scaler-tls-client-ca", cert}, credentials.NewTLS(shown), codes.InvalidArgument},
		{"a client without certificate", []string{"-scaler-tls-cert", cert, "-scaler-tls-key", key, "-scaler-tls-client-ca", cert}, credentials.NewTLS(verified), codes.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := &logBuffer{line: make(chan struct{})}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() {
				ended <- run(ctx, append([]string{"-listen", "127.0.0.1:0", "-metrics", "127.0.0.1:0", "-settle", "0s", "-scaler", "127.0.0.1:0"}, tt.args...), log)
			}()
			defer func() {
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}()
			conn, err := grpc.NewClient(log.attr("scaler"), grpc.WithTransportCredentials(tt.client))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, err = scalerpb.NewExternalScalerClient(conn).IsActive(t.Context(), &scalerpb.ScaledObjectRef{ScalerMetadata: nil})
			if status.Code(err) != tt.want || tt.want == codes.InvalidArgument && !strings.Contains(err.Error(), "scalerMetadata.model: missing") {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}
