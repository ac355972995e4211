package noxds

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// engine is a server of the OpenAI API without a model.
type engine struct {
	mu      sync.Mutex
	key     string // that it asks for; empty: none
	keys    map[string]int
	served  int
	page    string // of its metrics
	mute    chan struct{}
	refused int
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	key, page, mute := e.key, e.page, e.mute
	sent := r.Header.Get("authorization")
	if r.URL.Path != "/health" {
		e.keys[sent]++
	}
	if key != "" && r.URL.Path != "/health" && sent != "Bearer "+key {
		e.refused++
		e.mu.Unlock()
		http.Error(w, `{"error":{"message":"Invalid API key"}}`, http.StatusUnauthorized)
		return
	}
	if strings.HasPrefix(r.URL.Path, "/v1/chat") {
		e.served++
	}
	e.mu.Unlock()
	switch {
	case r.URL.Path == "/health":
	case r.URL.Path == "/metrics":
		if mute != nil {
			select {
			case <-mute:
			case <-r.Context().Done():
			}
			return
		}
		_, _ = w.Write([]byte(page))
	default:
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("content-type", "application/json")
		_, _ = w.Write([]byte(`{"id":"x","object":"chat.completion","model":"smollm2","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}`))
	}
}

func (e *engine) set(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

// startEngines starts three at the ports of the fleet; c is by which TLS, nil: none.
func (f *fleet) startEngines(t *testing.T, c func(i int) *tls.Config) [3]*engine {
	t.Helper()
	var all [3]*engine
	for i, port := range f.ports.engines {
		e := &engine{keys: map[string]int{}, page: "llamacpp:requests_processing 0\n"}
		ln, err := net.Listen("tcp", rig.Address(port))
		if err != nil {
			t.Fatal(err)
		}
		s := &httptest.Server{Listener: ln, Config: &http.Server{Handler: e, ErrorLog: log.New(io.Discard, "", 0)}}
		if c == nil {
			s.Start()
		} else {
			s.TLS = c(i)
			s.StartTLS()
		}
		t.Cleanup(s.Close)
		all[i] = e
	}
	return all
}

// newOdd returns a fleet of which nothing runs yet.
func newOdd(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: t.TempDir(), engines: make([]*rig.Process, 3)}
	free := rig.MustPorts(t, 7)
	copy(f.ports.engines[:], free)
	f.ports.gateway, f.ports.admin, f.ports.extproc, f.ports.metric = free[3], free[4], free[5], free[6]
	return f
}

// pki signs certificates for 127.0.0.1.
type pki struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &pki{c, key}
}

// sign returns a certificate that ends so long from now, and its key.
func (p *pki) sign(t *testing.T, end time.Duration) (cert, key []byte) {
	t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(end), KeyUsage: x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, c, p.cert, own.Public(), p.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
}

// chat asks so many times, as a client that has a key of its own, and returns an answer's
// header.
func (f *fleet) chat(t *testing.T, n int, about string) (last http.Header) {
	t.Helper()
	for i := range n {
		_, h, err := f.ask([]rig.Message{rig.User(fmt.Sprintf("%s %d", about, i))}, 2, "authorization", "Bearer of-the-client", "x-millrace-debug", "1")
		if err != nil {
			t.Errorf("request %d %s: %v", i, about, err)
		}
		last = h
	}
	return last
}

// TestEnginesWithKeysAndTLS has three engines that serve TLS alone, ask for a certificate and a
// key, of which the certificate of one has ended: the others serve all, nothing secret is shown,
// and /readyz says what to do. Then the key becomes another one.
func TestEnginesWithKeysAndTLS(t *testing.T) {
	f, ca := newOdd(t), newPKI(t)
	const key, next, password, token = "first-of-engines", "second-of-engines", "password-of-metrics", "token-of-metrics"
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	engines := f.startEngines(t, func(i int) *tls.Config {
		end := time.Hour
		if i == 2 {
			end = -time.Minute
		}
		pair, err := tls.X509KeyPair(ca.sign(t, end))
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	})
	for _, e := range engines {
		e.set(func() { e.key = key })
	}
	cert, private := ca.sign(t, time.Hour)
	f.write(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})))
	f.write(t, "client.pem", string(cert))
	f.write(t, "client.key", string(private))
	f.write(t, "engine.key", key+"\n")
	var text strings.Builder
	text.WriteString("endpoints:\n")
	for i, port := range f.ports.engines {
		metrics := fmt.Sprintf("https://%s/metrics", rig.Address(port))
		if i == 1 {
			metrics = fmt.Sprintf("https://user:%s@%s/metrics?token=%s", password, rig.Address(port), token)
		}
		fmt.Fprintf(&text, "  - {address: %q, models: [smollm2], type: llamacpp, metrics: %q, tls: {ca: ca.pem, cert: client.pem, key: client.key}, apiKey: {file: engine.key, requests: true}}\n", rig.Address(port), metrics)
	}
	text.WriteString("policy: {explain: true}\n")
	f.write(t, "fleet.yaml", text.String())
	f.startExtproc()
	yaml := f.adapt(t, "standalone.yaml")
	begin := strings.Index(yaml, "    # transport_socket:\n")
	end := strings.Index(yaml, "    # vLLM, SGLang and llama-server have /health.")
	if begin < 0 || end < begin {
		t.Fatal("standalone.yaml has no example of TLS")
	}
	socket := strings.ReplaceAll(strings.ReplaceAll(yaml[begin:end], "    # ", "    "), "  # sni", "  # sni")
	for _, name := range []string{"ca.pem", "client.pem", "client.key"} {
		socket = strings.ReplaceAll(socket, "filename: "+name, "filename: "+filepath.Join(f.dir, name))
	}
	f.write(t, "envoy.yaml", yaml[:begin]+socket+yaml[end:])
	f.envoy = rig.StartEnvoy(t, filepath.Join(f.dir, "envoy.yaml"), 2)
	f.await(t, "Envoy has two", func() error { return f.hosts(2) })
	f.await(t, "extproc says what is wrong with one", func() error {
		b, err := rig.Get("http://" + f.admin() + "/readyz")
		if err == nil && (!strings.Contains(string(b), "1 of 3 endpoints do not answer") || !strings.Contains(string(b), "give it another certificate") || strings.Contains(string(b), "no-metrics")) {
			err = fmt.Errorf("%s", b)
		}
		return err
	})
	header := f.chat(t, 20, "with a key")
	f.write(t, "engine.key", next)
	for _, e := range engines {
		e.set(func() { e.key = next })
	}
	f.await(t, "extproc has the next key", func() error {
		_, _, err := f.ask([]rig.Message{rig.User("is it there?")}, 2)
		return err
	})
	f.chat(t, 10, "with the next key")
	served := 0
	for i, e := range engines {
		e.set(func() {
			served += e.served
			for sent := range e.keys {
				if strings.Contains(sent, "of-the-client") {
					t.Errorf("engine %d has the client's key: %q", i, sent)
				}
			}
			if i == 2 && e.served > 0 {
				t.Errorf("the engine whose certificate has ended served %d", e.served)
			}
		})
	}
	if served < 30 {
		t.Errorf("%d requests were served", served)
	}
	f.hides(t, header, key, next, password, token, "user:")
}

// hides looks for secrets in all that is shown.
func (f *fleet) hides(t *testing.T, header http.Header, secrets ...string) {
	t.Helper()
	shown := map[string][]byte{"the log of extproc": []byte(f.extproc.Out.String()), "the log of Envoy": []byte(f.envoy.Out.String())}
	for what, url := range map[string]string{
		"/readyz": f.admin() + "/readyz", "/metrics": f.admin() + "/metrics", "Envoy's configuration": rig.Address(f.ports.admin) + "/config_dump?include_eds",
		"Envoy's counters": rig.Address(f.ports.admin) + "/stats",
	} {
		b, err := rig.Get("http://" + url)
		if err != nil {
			t.Fatal(err)
		}
		shown[what] = b
	}
	access, err := os.ReadFile(filepath.Join(f.dir, "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	shown["the access log"] = access
	var answer bytes.Buffer
	if header.Get("x-millrace-decision") == "" {
		t.Error("no explanation in an answer")
	}
	_ = header.Write(&answer)
	shown["an answer's header"] = answer.Bytes()
	for what, text := range shown {
		if len(text) == 0 && what != "the log of Envoy" {
			t.Errorf("%s is empty", what)
		}
		for _, s := range secrets {
			if bytes.Contains(text, []byte(s)) {
				t.Errorf("%s has %q", what, s)
			}
		}
	}
}

// TestEnginesWithMuteMetrics has engines of which no metrics come though they are asked for at
// the address where they live: all serve, and what /readyz counts the gauge counts. One shows
// names as Ray has them.
func TestEnginesWithMuteMetrics(t *testing.T) {
	f := newOdd(t)
	engines := f.startEngines(t, nil)
	never := make(chan struct{})
	t.Cleanup(func() { close(never) })
	for _, e := range engines[:2] {
		e.set(func() { e.mute = never })
	}
	engines[2].set(func() { engines[2].page = "ray_vllm_num_requests_running{ReplicaId=\"r\"} 0\n" })
	text := f.adapt(t, "fleet.yaml")
	last := strings.LastIndex(text, "type: llamacpp")
	f.write(t, "fleet.yaml", text[:last]+"type: vllm"+text[last+len("type: llamacpp"):])
	f.startExtproc()
	f.write(t, "envoy.yaml", f.adapt(t, "standalone.yaml"))
	f.envoy = rig.StartEnvoy(t, filepath.Join(f.dir, "envoy.yaml"), 2)
	f.await(t, "Envoy has all", func() error { return f.hosts(3) })
	ctx, stop := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { // while probes wait for metrics
		var err error
		for i := 0; ctx.Err() == nil && err == nil; i++ {
			if _, _, one := f.ask([]rig.Message{rig.User(fmt.Sprintf("mute %d", i))}, 2); one != nil {
				err = fmt.Errorf("request %d: %w", i, one)
			}
		}
		failed <- err
	}()
	f.await(t, "extproc says whose metrics don't come", func() error {
		b, err := rig.Get("http://" + f.admin() + "/readyz")
		if err != nil {
			return err
		}
		if strings.Contains(string(b), "endpoints-down") {
			return rig.Final(fmt.Errorf("an engine that serves is taken for dead: %s", b))
		}
		m, err := rig.Metrics(f.admin())
		if err == nil && (!strings.Contains(string(b), "2 of 3 endpoints return no usable metrics") || m["millrace_extproc_endpoints_without_metrics"] != 2) {
			err = errors.New(string(b))
		}
		return err
	})
	stop()
	if err := <-failed; err != nil {
		t.Error(err)
	}
	if m := rig.MustMetric(t, f.admin(), `millrace_extproc_endpoints{state="ready"}`); m != 3 {
		t.Errorf("%v engines are ready, want 3", m)
	}
}
