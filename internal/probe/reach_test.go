package probe

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
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

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/secret"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t, cert, key}
}

// sign returns files of a certificate for a name, or for 127.0.0.1, that ends so long from now.
func (a *authority) sign(name string, end time.Duration) (cert, key []byte) {
	a.t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(end), KeyUsage: x509.KeyUsageDigitalSignature}
	if template.DNSNames = []string{name}; name == "" {
		template.DNSNames, template.IPAddresses = nil, []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, own.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// engine serves metrics, models and health, to who has what it asks for.
type engine struct {
	*httptest.Server
	mu   sync.Mutex
	key  string // of all but health; empty: none
	name string // of the header that has it
}

func newEngine(t *testing.T, c *tls.Config) *engine {
	t.Helper()
	e := &engine{name: "authorization"}
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if r.URL.Path != "/health" && e.key != "" && r.Header.Get(e.name) != e.key {
			http.Error(w, "who are you? not "+r.Header.Get(e.name), http.StatusUnauthorized)
			return
		}
		if r.URL.Path == "/v1/models" {
			_, _ = w.Write([]byte(`{"data":[{"id":"M","max_model_len":4096}]}`))
			return
		}
		_, _ = w.Write([]byte("llamacpp:requests_processing 0\n"))
	}))
	e.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	if c != nil {
		e.TLS = c
		e.StartTLS()
	} else {
		e.Start()
	}
	t.Cleanup(e.Close)
	return e
}

func (e *engine) wants(name, key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.name, e.key = name, key
}

// observe probes an endpoint until what is observed is as it should be.
func observe(t *testing.T, spec config.Endpoint, log *slog.Logger) func(what string, ok func(o *Observation) bool) {
	t.Helper()
	seen := make(chan *Observation, 1<<10)
	p := New(Options{Program: "test", Models: true, Observed: func(o *Observation) { seen <- o }, Working: func(string) bool { return true }}, log, prometheus.NewRegistry())
	if err := p.Set([]Endpoint{{Endpoint: spec}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func(what string, ok func(o *Observation) bool) {
		t.Helper()
		late := time.After(20 * time.Second)
		var last *Observation
		for {
			select {
			case last = <-seen:
				if ok(last) {
					return
				}
			case <-late:
				t.Fatalf("%s: not observed within 20 s; last: state %v (%v), metrics: %v", what, last.State, last.Err, last.MetricsErr)
			}
		}
	}
}

func well(o *Observation) bool { return o.State == Ready && o.Sample != nil && o.MetricsErr == nil }

func put(t *testing.T, path string, text []byte) string {
	t.Helper()
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestTLS reaches engines that serve TLS, and says what is wrong where it can't.
func TestTLS(t *testing.T) {
	dir, ca, other := t.TempDir(), newAuthority(t), newAuthority(t)
	caFile := put(t, filepath.Join(dir, "ca.pem"), ca.pem())
	otherFile := put(t, filepath.Join(dir, "other.pem"), other.pem())
	clientCert, clientKey := ca.sign("client", time.Hour)
	both := put(t, filepath.Join(dir, "client.pem"), append(append([]byte{}, clientCert...), clientKey...))
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	serves := func(name string, end time.Duration, clients tls.ClientAuthType) *tls.Config {
		pair, err := tls.X509KeyPair(ca.sign(name, end))
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: clients, ClientCAs: pool}
	}
	tests := []struct {
		name   string
		server *tls.Config
		spec   config.EngineTLS
		want   string // of the reason; empty: it is well
	}{
		{"its authority", serves("", time.Hour, 0), config.EngineTLS{CA: caFile}, ""},
		{"any certificate", serves("x.example", -time.Minute, 0), config.EngineTLS{SkipVerify: true}, ""},
		{"by name", serves("engine.example", time.Hour, 0), config.EngineTLS{CA: caFile, ServerName: "engine.example"}, ""},
		{"with a certificate", serves("", time.Hour, tls.RequireAndVerifyClientCert), config.EngineTLS{CA: caFile, Cert: both}, ""},
		{"the machine's authorities", serves("", time.Hour, 0), config.EngineTLS{Enabled: true}, "set tls.ca"},
		{"another authority", serves("", time.Hour, 0), config.EngineTLS{CA: otherFile}, "set tls.ca"},
		{"another name", serves("engine.example", time.Hour, 0), config.EngineTLS{CA: caFile}, "set tls.serverName"},
		{"it has ended", serves("", -time.Minute, 0), config.EngineTLS{CA: caFile}, "give it another certificate"},
		{"without a certificate", serves("", time.Hour, tls.RequireAndVerifyClientCert), config.EngineTLS{CA: caFile}, "set tls.cert"},
		{"TLS where there is none", nil, config.EngineTLS{CA: caFile}, "leave tls out"},
		{"none where there is TLS", serves("", time.Hour, 0), config.EngineTLS{}, ""}, // it answers with a status
		{"a file that is not there", serves("", time.Hour, 0), config.EngineTLS{CA: filepath.Join(dir, "gone.pem")}, "gone.pem"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t, tt.server)
			spec := config.Endpoint{Address: e.Listener.Addr().String(), Models: []string{"m"}, Type: "llamacpp", TLS: tt.spec}
			spec.Metrics = secret.URL(strings.TrimSuffix(string(spec.HealthURL()), "health") + "metrics")
			until := observe(t, spec, slog.New(slog.DiscardHandler))
			switch {
			case tt.name == "none where there is TLS":
				until("its metrics don't come", func(o *Observation) bool { return o.MetricsErr != nil })
			case tt.want == "":
				until("it is well", well)
			default:
				until(tt.want, func(o *Observation) bool {
					return o.State == NotReady && strings.Contains(o.Err.Error(), tt.want)
				})
			}
		})
	}
}

// TestModelsOverTLS has an engine say what it serves, over TLS and to who has its key.
func TestModelsOverTLS(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	pair, err := tls.X509KeyPair(ca.sign("", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	e := newEngine(t, &tls.Config{Certificates: []tls.Certificate{pair}})
	e.wants("authorization", "Bearer hunter2")
	spec := config.Endpoint{
		Address: e.Listener.Addr().String(), Models: []string{"M", "n"}, Type: config.TypeOpenAI,
		TLS:    config.EngineTLS{CA: put(t, filepath.Join(dir, "ca.pem"), ca.pem())},
		APIKey: config.APIKey{File: put(t, filepath.Join(dir, "key"), []byte("hunter2"))},
	}
	until := observe(t, spec, slog.New(slog.DiscardHandler))
	until("its models and its context", func(o *Observation) bool {
		return o.State == Ready && o.Context == 4096 && errors.Is(o.ModelsErr, ErrModels)
	})
	err = Ask(t.Context(), func(context.Context, *http.Request, []byte) ([]byte, error) {
		t.Error("asked without its TLS")
		return nil, nil
	}, Endpoint{Endpoint: spec})
	if !errors.Is(err, ErrModels) {
		t.Errorf("Ask() = %v, want %v", err, ErrModels)
	}
}

// TestTLSIsReadAgain has the authority replaced while it is probed.
func TestTLSIsReadAgain(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	file := put(t, filepath.Join(dir, "ca.pem"), newAuthority(t).pem())
	pair, err := tls.X509KeyPair(ca.sign("", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	e := newEngine(t, &tls.Config{Certificates: []tls.Certificate{pair}})
	spec := config.Endpoint{Address: e.Listener.Addr().String(), Models: []string{"m"}, Type: "llamacpp", TLS: config.EngineTLS{CA: file}, Metrics: secret.URL(e.URL + "/metrics")}
	until := observe(t, spec, slog.New(slog.DiscardHandler))
	until("another authority", func(o *Observation) bool { return o.State == NotReady })
	put(t, file, ca.pem())
	until("its authority", well)
}

// TestKeys sends keys and other headers, and shows them nowhere.
func TestKeys(t *testing.T) {
	const key, next = "hunter2-of-engines", "hunter3-of-engines"
	dir := t.TempDir()
	file := put(t, filepath.Join(dir, "key"), []byte(key+"\n"))
	t.Setenv("TEST_ENGINE_KEY", key)
	basic := func(user, password string) string {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.SetBasicAuth(user, password)
		return r.Header.Get("authorization")
	}
	tests := []struct {
		name, header, want string
		spec               func(e *config.Endpoint)
		refused            string // why; empty: it is not
	}{
		{"from a file", "authorization", "Bearer " + key, func(e *config.Endpoint) { e.APIKey.File = file }, ""},
		{"from the environment", "authorization", "Bearer " + key, func(e *config.Endpoint) { e.APIKey.Env = "TEST_ENGINE_KEY" }, ""},
		{"in a header of its own", "x-api-key", key, func(e *config.Endpoint) { e.APIKey = config.APIKey{File: file, Header: "x-api-key"} }, ""},
		{"further headers", "x-tenant", "a", func(e *config.Endpoint) { e.Headers = []config.EngineHeader{{Name: "x-tenant", Value: "a"}} }, ""},
		{"of the URL", "authorization", basic("user", key), func(e *config.Endpoint) {
			e.Metrics = secret.URL(strings.Replace(string(e.Metrics), "://", "://user:"+key+"@", 1))
		}, ""},
		{"none", "authorization", "Bearer " + key, func(*config.Endpoint) {}, "status 401: it asks for a key: set apiKey"},
		{"another one", "authorization", "Bearer other", func(e *config.Endpoint) { e.APIKey.File = file }, "status 401: it does not take the key of apiKey"},
		{"no file", "authorization", "Bearer " + key, func(e *config.Endpoint) { e.APIKey.File = filepath.Join(dir, "gone") }, "gone: no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := newEngine(t, nil)
			e.wants(tt.header, tt.want)
			var logged bytes.Buffer
			spec := config.Endpoint{Address: e.Listener.Addr().String(), Models: []string{"m"}, Type: "llamacpp", Metrics: secret.URL(e.URL + "/metrics")}
			tt.spec(&spec)
			t.Cleanup(func() {
				if strings.Contains(logged.String(), "hunter") {
					t.Errorf("the log has the key:\n%s", logged.String())
				}
			})
			until := observe(t, spec, slog.New(slog.NewTextHandler(&logged, nil)))
			if tt.refused == "" {
				until("its metrics", well)
			} else {
				until(tt.refused, func(o *Observation) bool {
					return o.State == Ready && o.MetricsErr != nil && strings.Contains(o.MetricsErr.Error(), tt.refused) && !strings.Contains(o.MetricsErr.Error(), "hunter")
				})
			}
		})
	}
	t.Run("another one while it runs", func(t *testing.T) {
		e := newEngine(t, nil)
		e.wants("authorization", "Bearer "+key)
		spec := config.Endpoint{Address: e.Listener.Addr().String(), Models: []string{"m"}, Type: "llamacpp", Metrics: secret.URL(e.URL + "/metrics"), APIKey: config.APIKey{File: file}}
		until := observe(t, spec, slog.New(slog.DiscardHandler))
		until("its metrics", well)
		put(t, file, []byte(next))
		e.wants("authorization", "Bearer "+next)
		until("its metrics by the next key", func(o *Observation) bool { return o.Fresh() && well(o) })
	})
}
