package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"
	istioca "istio.io/api/security/v1alpha1"
)

const (
	istiodPort    = 15010
	istioAudience = "istio-ca" // of tokens for istiod

	// agentIP is the first node's.
	agentIP   = "192.0.2.11"
	agentPort = 15012
)

// agent does for all Envoys of Istio what pilot-agent does beside each: it has istiod sign
// a certificate for the account by which an Envoy presents itself, and gives it that by
// SDS. It believes whoever asks.
type agent struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer

	c      *Cluster
	istiod istioca.IstioCertificateServiceClient

	// mu guards the field below.
	mu    sync.Mutex
	known map[account]*tlsv3.Secret // certificates; they last longer than a test
	roots string                    // istiod's, in PEM; "" until a certificate was signed
}

// account is a service account.
type account struct{ namespace, name string }

// serveSecrets serves SDS on the first node until Down.
func (c *Cluster) serveSecrets() error {
	var ln net.Listener
	err := c.nodes[0].m.inNetwork(func() (err error) {
		ln, err = net.Listen("tcp", hostPort(agentIP, agentPort))
		return err
	})
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+hostPort(istiodIP, istiodPort), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return c.Dial(ctx, "tcp", address) }))
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	server := grpc.NewServer()
	secretv3.RegisterSecretDiscoveryServiceServer(server, &agent{c: c, istiod: istioca.NewIstioCertificateServiceClient(conn), known: map[account]*tlsv3.Secret{}})
	c.forwards.Go(func() {
		defer func() { _ = conn.Close() }()
		_ = server.Serve(ln) // ends with Stop
	})
	context.AfterFunc(c.closing, server.Stop)
	return nil
}

// StreamSecrets answers each question of an Envoy once; what it says of an answer has the
// answer's nonce.
func (a *agent) StreamSecrets(s secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	var node *corev3.Node
	var names []string
	for {
		req, err := s.Recv()
		if err != nil {
			return err
		}
		if req.GetNode() != nil {
			node = req.GetNode()
		}
		if req.GetErrorDetail() != nil {
			a.c.log.Warn("certificate refused", "envoy", node.GetId(), "error", req.GetErrorDetail().GetMessage())
		}
		if req.GetResponseNonce() != "" && slices.Equal(names, req.GetResourceNames()) {
			continue
		}
		names = req.GetResourceNames()
		r := &discoveryv3.DiscoveryResponse{TypeUrl: req.GetTypeUrl(), VersionInfo: "1", Nonce: "1"}
		for _, name := range names {
			secret, err := a.secret(s.Context(), node, name)
			if err != nil {
				a.c.log.Warn("no certificate", "envoy", node.GetId(), "error", err)
				return err // Envoy asks again
			}
			packed, err := anypb.New(secret)
			if err != nil {
				return err
			}
			r.Resources = append(r.Resources, packed)
		}
		if err := s.Send(r); err != nil {
			return err
		}
	}
}

// secret returns the certificate of an Envoy's account (default), or the authorities by
// which it checks others' (ROOTCA).
func (a *agent) secret(ctx context.Context, node *corev3.Node, name string) (*tlsv3.Secret, error) {
	fields := node.GetMetadata().GetFields()
	who := account{fields["NAMESPACE"].GetStringValue(), fields["SERVICE_ACCOUNT"].GetStringValue()}
	a.mu.Lock()
	defer a.mu.Unlock()
	own := a.known[who]
	if own == nil {
		var err error
		if own, err = a.signLocked(ctx, who); err != nil {
			return nil, fmt.Errorf("%s/%s: %w", who.namespace, who.name, err)
		}
		a.known[who] = own
	}
	switch name {
	case "default":
		return own, nil
	case "ROOTCA":
		return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(a.roots)}}}, nil
	}
	return nil, fmt.Errorf("secret %q; must be default or ROOTCA", name)
}

func inline(text string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}}
}

// signLocked has istiod sign a new key. Its answer ends with its own certificate.
func (a *agent) signLocked(ctx context.Context, who account) (*tlsv3.Secret, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	token, err := a.token(ctx, who)
	if err != nil {
		return nil, err
	}
	signed, err := a.istiod.CreateCertificate(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token),
		&istioca.IstioCertificateRequest{Csr: pemOf("CERTIFICATE REQUEST", csr)})
	if err != nil {
		return nil, err
	}
	chain := signed.GetCertChain()
	if len(chain) < 2 {
		return nil, fmt.Errorf("istiod: %d certificates; must be one, and its own", len(chain))
	}
	a.roots = chain[len(chain)-1]
	return &tlsv3.Secret{Name: "default", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(strings.Join(chain[:len(chain)-1], "")), PrivateKey: inline(pemOf("PRIVATE KEY", keyDER)),
	}}}, nil
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// token returns a token of an account for istiod.
func (a *agent) token(ctx context.Context, who account) (string, error) {
	b, err := a.c.API(ctx, http.MethodPost, "/api/v1/namespaces/"+who.namespace+"/serviceaccounts/"+who.name+"/token", "application/json",
		strings.NewReader(`{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["`+istioAudience+`"]}}`))
	if err != nil {
		return "", err
	}
	var r struct{ Status struct{ Token string } }
	err = json.Unmarshal(b, &r)
	return r.Status.Token, err
}
