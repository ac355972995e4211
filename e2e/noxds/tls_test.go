package noxds

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// TestClustersOfModelsWithTLS has an Envoy whose models have a cluster each, engines/MODEL, as
// their engines speak TLS in different ways: one asks for a certificate and a key, one has a
// certificate that nobody has signed, one serves its metrics in plain text elsewhere. Behind each is
// a real llama-server. All serve, are healthy, have their figures read, and nothing is
// shown that is secret.
func TestClustersOfModelsWithTLS(t *testing.T) {
	f, ca, stranger := newOdd(t), newPKI(t), newPKI(t)
	const key = "key-of-the-engine"
	server := rig.StartLlamaServer(t, rig.MustAddresses(t, 1)[0])
	server.AwaitHealthy(t)

	f.write(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})))
	cert, private := ca.sign(t, time.Hour)
	f.write(t, "client.pem", string(cert))
	f.write(t, "client.key", string(private))
	f.write(t, "engine.key", key+"\n")
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	fronts := map[string]*front{
		"closed": f.serveTLS(t, 0, server.Addr, key, &tls.Config{Certificates: []tls.Certificate{pairOf(t, ca)}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}),
		"signed": f.serveTLS(t, 1, server.Addr, "", &tls.Config{Certificates: []tls.Certificate{pairOf(t, ca)}}),
		"unsure": f.serveTLS(t, 2, server.Addr, "", &tls.Config{Certificates: []tls.Certificate{pairOf(t, stranger)}}),
	}
	address := map[string]string{}
	for i, name := range []string{"closed", "signed", "unsure"} {
		address[name] = rig.Address(f.ports.engines[i])
	}
	// What the front of "signed" refuses to show stands at the server's own address.
	fronts["signed"].hides = "/metrics"
	f.write(t, "fleet.yaml", fmt.Sprintf(`endpoints:
  - {address: %q, models: [closed], type: llamacpp, tls: {ca: ca.pem, cert: client.pem, key: client.key}, apiKey: {file: engine.key, requests: true}}
  - {address: %q, models: [signed], type: llamacpp, tls: {ca: ca.pem}, metrics: "http://%s/metrics"}
  - {address: %q, models: [unsure], type: llamacpp, tls: {skipVerify: true}}
policy: {explain: true}
`, address["closed"], address["signed"], server.Addr, address["unsure"]))
	f.startExtproc()
	f.write(t, "envoy.yaml", f.withClusters(f.adapt(t, "standalone.yaml"), map[string]string{
		"closed": f.socket("client.pem", "ca.pem"), "signed": f.socket("", "ca.pem"), "unsure": f.socket("", ""),
	}))
	f.envoy = rig.StartEnvoy(t, filepath.Join(f.dir, "envoy.yaml"), 2)
	f.await(t, "Envoy has each model's engine", func() error {
		hosts, err := rig.EnvoyHosts(rig.Address(f.ports.admin), "engines/")
		if err != nil {
			return err
		}
		for name, a := range address {
			if h := hosts[a]; !h.Healthy {
				return fmt.Errorf("%s at %s is %+v of %v", name, a, h, hosts)
			}
		}
		return nil
	})
	f.await(t, "extproc has no condition", f.ready)

	var header http.Header
	for name := range fronts {
		for i := range 5 {
			c, a, err := rig.Complete(t.Context(), f.url(rig.ChatPath), rig.Chat{Model: name, Messages: []rig.Message{rig.User(fmt.Sprintf("Name a river, number %d.", i))}, MaxTokens: 4},
				"authorization", "Bearer of-the-client", "x-millrace-debug", "1")
			if err != nil {
				t.Errorf("%s, request %d: %v", name, i, err)
				continue
			}
			if c.Text() == "" {
				t.Errorf("%s, request %d: the model says nothing", name, i)
			}
			header = a.Header
		}
	}
	for name, front := range fronts {
		n, keys := front.asked()
		if n != 5 {
			t.Errorf("%s was asked %d times, want 5", name, n)
		}
		if name == "closed" && !slices.Equal(keys, []string{"Bearer " + key}) {
			t.Errorf("%s got the keys %q", name, keys)
		}
	}
	for name, a := range address {
		f.await(t, "what "+name+" has done is learned of its metrics", func() error {
			return f.measured(a)
		})
	}
	f.hides(t, header, key)
}

// measured says why extproc has no speed of an engine.
func (f *fleet) measured(address string) error {
	m, err := rig.Metrics(f.admin())
	if err != nil {
		return err
	}
	if n := m["millrace_extproc_endpoints_without_metrics"]; n != 0 {
		return fmt.Errorf("%v endpoints are without metrics", n)
	}
	for name, v := range m {
		if strings.HasPrefix(name, "millrace_extproc_endpoint") && strings.Contains(name, address) && v > 0 {
			return nil
		}
	}
	return fmt.Errorf("no series has %s", address)
}

func pairOf(t *testing.T, p *pki) tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(p.sign(t, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// front speaks TLS before an engine.
type front struct {
	key   string // that it asks for, but of those who ask for its health; empty: none
	hides string // a path that it has not

	mu   sync.Mutex
	n    int
	keys []string // that requests came with, each once
}

func (f *front) asked() (int, []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n, f.keys
}

// serveTLS starts a front at the address of an engine of the fleet.
func (f *fleet) serveTLS(t *testing.T, i int, to, key string, c *tls.Config) *front {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: to})
	e := &front{key: key}
	l, err := net.Listen("tcp", rig.Address(f.ports.engines[i]))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent := r.Header.Get("authorization")
		switch {
		case r.URL.Path == e.hides:
			http.NotFound(w, r)
			return
		case key != "" && r.URL.Path != "/health" && sent != "Bearer "+key:
			http.Error(w, `{"error":{"message":"Invalid API key"}}`, http.StatusUnauthorized)
			return
		case r.Method == http.MethodPost:
			e.mu.Lock()
			if e.n++; !slices.Contains(e.keys, sent) {
				e.keys = append(e.keys, sent)
			}
			e.mu.Unlock()
		}
		r.Header.Del("authorization")
		proxy.ServeHTTP(w, r)
	}), ErrorLog: log.New(io.Discard, "", 0)}
	go s.Serve(tls.NewListener(l, c))
	t.Cleanup(func() { _ = s.Close() })
	return e
}

// socket is how a cluster speaks TLS: with a certificate, empty for none, and an authority that
// must have signed the engine's, empty for any.
func (f *fleet) socket(cert, ca string) string {
	const at = "          "
	text := "    transport_socket:\n      name: envoy.transport_sockets.tls\n      typed_config:\n" +
		"        \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext\n        common_tls_context:\n"
	path := func(name string) string { return filepath.Join(f.dir, name) }
	if cert != "" {
		text += fmt.Sprintf(at+"tls_certificates: [{certificate_chain: {filename: %q}, private_key: {filename: %q}}]\n", path(cert), path(strings.TrimSuffix(cert, ".pem")+".key"))
	}
	if ca == "" {
		return text + at + "validation_context: {trust_chain_verification: ACCEPT_UNTRUSTED}\n"
	}
	return text + fmt.Sprintf(at+"validation_context:\n"+at+"  trusted_ca: {filename: %q}\n"+at+"  match_typed_subject_alt_names: [{san_type: IP_ADDRESS, matcher: {exact: 127.0.0.1}}]\n", path(ca))
}

// withClusters gives an Envoy a cluster of its own for each of some models, with how it speaks TLS,
// as the comments of standalone.yaml say.
func (f *fleet) withClusters(yaml string, sockets map[string]string) string {
	f.t.Helper()
	const first, next, general = "  - name: engines\n", "  - name: extproc\n", "              - match: {prefix: /v1/}\n                route: {cluster: engines,"
	begin, end := strings.Index(yaml, first), strings.Index(yaml, next)
	if begin < 0 || end < begin || !strings.Contains(yaml, general) {
		f.t.Fatal("standalone.yaml has no cluster engines before extproc, or no route to it")
	}
	cluster, routes, clusters := yaml[begin:end], "", ""
	for model, socket := range sockets {
		own := strings.Replace(cluster, first, "  - name: engines/"+model+"\n"+socket, 1)
		clusters += strings.Replace(own, "circuit_breakers: &unlimited\n", "circuit_breakers:\n", 1)
		routes += "              - match: {prefix: /v1/, headers: [{name: x-millrace-model, string_match: {exact: " + model + "}}]}\n" +
			"                route: {cluster: engines/" + model + ", timeout: 600s, idle_timeout: 600s}\n"
	}
	yaml = yaml[:end] + clusters + yaml[end:]
	return strings.Replace(yaml, general, routes+general, 1)
}
