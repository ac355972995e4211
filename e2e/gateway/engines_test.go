package gateway

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// TestEnginesOverTLS has xds let Envoy reach an engine of somebody else that serves TLS alone and
// asks for a certificate, and one whose authority is another: both are probed by the same
// settings. Then all certificates are replaced.
func TestEnginesOverTLS(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	writeCertificate(t, dir, 1)
	writeCertificate(t, other, 2)
	now := func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
		return &tls.Config{Certificates: []tls.Certificate{c}, ClientAuth: tls.RequireAnyClientCert}, err
	}
	engine := func() *httptest.Server {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/metrics" {
				_, _ = w.Write([]byte("llamacpp:requests_processing 0\n"))
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = w.Write([]byte(`{"over":"tls"}`))
		}))
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.TLS = &tls.Config{GetConfigForClient: now}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	good, bad := engine(), engine()
	g := newGateway(t, nobody)
	endpoint := func(model string, s *httptest.Server, ca string) string {
		return fmt.Sprintf("    - {address: %q, models: [%s], type: llamacpp, tls: {ca: %q, cert: %q, key: %q}}\n", s.Listener.Addr().String(), model,
			filepath.Join(ca, "tls.crt"), filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	}
	rig.Write(t, filepath.Join(g.dir, "config.yaml"), gatewayConfig+"---\napiVersion: millrace.dev/v1alpha1\nkind: Endpoints\nmetadata: {name: pool}\nspec:\n  endpoints:\n"+
		endpoint("outside", good, dir)+endpoint("elsewhere", bad, other))
	ask := func(model string) error {
		a, err := send(t.Context(), g.url(rig.ChatPath), fmt.Sprintf(`{"model":%q}`, model), "content-type", "application/json")
		if err == nil && (a.Status != http.StatusOK || !strings.Contains(string(a.Body), "tls")) {
			err = fmt.Errorf("%d: %s", a.Status, a.Body)
		}
		return err
	}
	rig.Wait(t, 30*time.Second, "the engine answers over TLS", func() error { return ask("outside") })
	rig.Wait(t, 30*time.Second, "xds says what is wrong with the other", func() error {
		b, err := rig.Get("http://" + g.metrics + "/readyz")
		if err == nil && (!strings.Contains(string(b), bad.Listener.Addr().String()) || !strings.Contains(string(b), "set tls.ca") || strings.Contains(string(b), good.Listener.Addr().String())) {
			err = errors.New(string(b))
		}
		return err
	})
	if err := ask("elsewhere"); err == nil {
		t.Error("Envoy believes a certificate of another authority")
	}
	writeCertificate(t, dir, 3)
	good.CloseClientConnections()
	rig.Wait(t, 30*time.Second, "the engine answers by the next certificates", func() error { return ask("outside") })
	for i := range 20 {
		good.CloseClientConnections()
		if err := ask("outside"); err != nil {
			t.Errorf("request %d: %v", i, err)
		}
	}
}
