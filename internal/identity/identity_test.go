package identity

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/internal/mtls"
)

// mesh is an authority with its port and its files.
type mesh struct {
	dir string
	ca  *mtls.Authority
	url string
	// answer changes what the port answers; nil: nothing is changed.
	answer func(http.ResponseWriter, *Response) bool
	tokens []string // that came
}

// newMesh starts an authority whose certificate is of the role.
func newMesh(t *testing.T, role mtls.Role) *mesh {
	t.Helper()
	m := &mesh{dir: t.TempDir()}
	var err error
	if m.ca, err = mtls.NewAuthority("millrace", time.Now()); err != nil {
		t.Fatal(err)
	}
	m.write(t, "ca.crt", string(m.ca.PEM()))
	m.write(t, "token", "a-token\n")
	text, err := m.ca.Issue(mtls.ID{Role: role}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	f := mtls.In(m.dir, mtls.ID{Role: role})
	m.write(t, filepath.Base(f.Cert), string(text))
	m.write(t, filepath.Base(f.CA), string(m.ca.PEM()))
	source, err := mtls.Load(f, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.url = "https://" + ln.Addr().String()
	srv := &http.Server{Handler: http.HandlerFunc(m.serve), ErrorLog: nil}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(tls.NewListener(ln, source.Anybody("http/1.1")))
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return m
}

func (m *mesh) write(t *testing.T, name, text string) {
	t.Helper()
	if err := mtls.WriteFile(filepath.Join(m.dir, name), []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func (m *mesh) serve(w http.ResponseWriter, r *http.Request) {
	m.tokens = append(m.tokens, r.Header.Get("Authorization"))
	var req Request
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	resp := Response{Certificates: map[mtls.Role]string{}, Authorities: string(m.ca.PEM())}
	for role, csr := range req.CSRs {
		key, err := mtls.ReadCSR([]byte(csr))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		id := mtls.ID{Role: role}
		if role.OfNode() {
			id.Node = "node-a"
		}
		cert, err := m.ca.Sign(key, id, time.Now(), time.Hour)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		resp.Certificates[role] = string(cert)
	}
	if m.answer == nil || m.answer(w, &resp) {
		_ = json.NewEncoder(w).Encode(resp)
	}
}

func (m *mesh) options(roles ...mtls.Role) Options {
	return Options{
		Roles: roles, Out: filepath.Join(m.dir, "out"),
		Authority: m.url, Token: filepath.Join(m.dir, "token"), CA: filepath.Join(m.dir, "ca.crt"),
	}
}

// newKeeper returns a keeper that was started now, and its log.
func newKeeper(t *testing.T, o Options) (*keeper, *strings.Builder) {
	t.Helper()
	log := &strings.Builder{}
	k := &keeper{Options: o, log: slog.New(slog.NewTextHandler(log, nil)), spread: func() float64 { return 0 }}
	if err := k.prepare(); err != nil {
		t.Fatal(err)
	}
	k.start(time.Now())
	return k, log
}

func TestCertificatesOfAPod(t *testing.T) {
	m := newMesh(t, mtls.XDS)
	o := m.options(mtls.Engine, mtls.NodeAgent)
	if _, err := Check(o, time.Now()); err == nil {
		t.Error("Check() finds files before there are any")
	}
	k, log := newKeeper(t, o)
	now := time.Now()
	if !k.due(now) {
		t.Fatal("nothing is due at the start")
	}
	k.renew(t.Context(), now)
	certs, err := Check(o, now)
	if err != nil || len(certs) != 2 || certs[1].ID != (mtls.ID{Domain: "millrace", Role: mtls.NodeAgent, Node: "node-a"}) {
		t.Fatalf("%v, %v\n%s", certs, err, log)
	}
	if m.tokens[0] != "Bearer a-token" || strings.Contains(log.String(), "a-token") {
		t.Errorf("authorization %q, log %s", m.tokens[0], log)
	}
	if k.due(now.Add(20*time.Minute)) || !k.due(now.Add(31*time.Minute)) || !k.due(now.Add(-time.Minute)) {
		t.Error("they must be renewed at half of their life, and when the clock is set back")
	}
	// A restart keeps them; one after the mount has changed does not.
	if k, _ := newKeeper(t, o); k.due(now.Add(time.Minute)) {
		t.Error("good certificates are thrown away")
	}
	other, err := mtls.NewAuthority("millrace", now)
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, "ca.crt", string(m.ca.PEM())+string(other.PEM()))
	if !k.due(now.Add(time.Minute)) {
		t.Error("a new authority waits for half of a life")
	}
	k2, log := newKeeper(t, o)
	if !k2.due(now.Add(time.Minute)) {
		t.Error("a new authority of while nothing ran waits for half of a life")
	}
	k2.renew(t.Context(), now)
	if ca, err := os.ReadFile(filepath.Join(o.Out, "ca.pem")); err != nil || join(string(ca), string(other.PEM())) != string(ca) {
		t.Errorf("the new authority is not trusted: %v\n%s", err, log)
	}
	if k2.due(now.Add(time.Minute)) {
		t.Error("it asks again and again")
	}
}

func TestEnvoysFiles(t *testing.T) {
	m := newMesh(t, mtls.XDS)
	o := m.options(mtls.Envoy)
	k, log := newKeeper(t, o)
	k.renew(t.Context(), time.Now())
	if _, err := Check(o, time.Now()); err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	text, err := os.ReadFile(filepath.Join(o.Out, "certificate.json"))
	if err != nil || !strings.Contains(string(text), filepath.Join(o.Out, "envoy.pem")) {
		t.Errorf("certificate.json: %s, %v", text, err)
	}
}

// TestNothingBadIsWritten has an authority, or what looks like one, answer badly: what
// was there stays.
func TestNothingBadIsWritten(t *testing.T) {
	stranger, err := mtls.NewAuthority("millrace", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	says := func(status int, text string) func(http.ResponseWriter, *Response) bool {
		return func(w http.ResponseWriter, _ *Response) bool {
			w.Header().Set("Retry-After", "7")
			http.Error(w, text, status)
			return false
		}
	}
	instead := func(t *testing.T, a *mtls.Authority, id mtls.ID, life time.Duration) func(http.ResponseWriter, *Response) bool {
		return func(_ http.ResponseWriter, r *Response) bool {
			text, err := a.Issue(id, time.Now(), life)
			if err != nil {
				t.Error(err)
			}
			r.Certificates[mtls.ExtProc] = string(text)
			return true
		}
	}
	tests := []struct {
		name   string
		change func(*testing.T, *mesh)
		role   mtls.Role // of the port; empty: xds
		want   string
	}{
		{name: "refused", change: func(_ *testing.T, m *mesh) { m.answer = says(403, "no role") }, want: "403 Forbidden: no role"},
		{name: "busy", change: func(_ *testing.T, m *mesh) { m.answer = says(503, "away") }, want: "503 Service Unavailable: away"},
		{name: "no JSON", change: func(_ *testing.T, m *mesh) { m.answer = says(200, "hello") }, want: "answer: invalid character"},
		{name: "too long", change: func(_ *testing.T, m *mesh) { m.answer = says(200, strings.Repeat(" ", maxResponse+1)) }, want: "answer of more than"},
		{name: "a redirect gets no token", change: func(_ *testing.T, m *mesh) {
			m.answer = func(w http.ResponseWriter, _ *Response) bool {
				w.Header().Set("Location", "https://elsewhere.invalid/")
				w.WriteHeader(http.StatusTemporaryRedirect)
				return false
			}
		}, want: "307 Temporary Redirect"},
		{name: "nothing in it", change: func(_ *testing.T, m *mesh) {
			m.answer = func(_ http.ResponseWriter, r *Response) bool { *r = Response{}; return true }
		}, want: "certificate for role extproc: "},
		{name: "another's key", change: func(t *testing.T, m *mesh) {
			m.answer = instead(t, m.ca, mtls.ID{Role: mtls.ExtProc}, time.Hour)
		}, want: "private key"},
		{name: "by a stranger", change: func(t *testing.T, m *mesh) {
			m.answer = instead(t, stranger, mtls.ID{Role: mtls.ExtProc}, time.Hour)
		}, want: "certificate for role extproc: "},
		{name: "the port is not xds", role: mtls.Operator, change: func(*testing.T, *mesh) {}, want: "must be of role xds"},
		{name: "the port is of another authority", change: func(t *testing.T, m *mesh) { m.write(t, "ca.crt", string(stranger.PEM())) }, want: "certificate of spiffe://millrace/xds"},
		{name: "no token", change: func(t *testing.T, m *mesh) { _ = os.Remove(filepath.Join(m.dir, "token")) }, want: "token: no such file"},
		{name: "no authorities", change: func(t *testing.T, m *mesh) { m.write(t, "ca.crt", "") }, want: "ca.crt: no certificate in it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMesh(t, cmp.Or(tt.role, mtls.XDS))
			k, log := newKeeper(t, m.options(mtls.ExtProc))
			if tt.role == "" {
				k.renew(t.Context(), time.Now())
			}
			before, _ := os.ReadFile(filepath.Join(k.Out, "extproc.pem"))
			tt.change(t, m)
			for range 3 {
				k.renew(t.Context(), time.Now())
			}
			if after, _ := os.ReadFile(filepath.Join(k.Out, "extproc.pem")); string(after) != string(before) {
				t.Error("it is written")
			}
			if got := log.String(); !strings.Contains(got, tt.want) || strings.Count(got, "no new certificate") != 1 {
				t.Errorf("log %s\nlacks, once, %q", got, tt.want)
			}
			if k.due(time.Now()) || !k.due(time.Now().Add(2*longestRetry)) {
				t.Errorf("it asks again at %s", k.next)
			}
		})
	}
}

func TestRenewal(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	at := func(m int) time.Time { return now.Add(time.Duration(m) * time.Minute) }
	short := mtls.Certificate{From: at(-2), Until: at(2)} // dated back by all of its life
	for _, tt := range []struct {
		name   string
		certs  []mtls.Certificate
		issued time.Time
		spread float64
		want   time.Time
	}{
		{"half of its life", []mtls.Certificate{{From: at(-5), Until: at(1440)}}, now, 0, at(720)},
		{"a tenth earlier", []mtls.Certificate{{From: at(-5), Until: at(1440)}}, now, 1, at(648)},
		{"the first to end", []mtls.Certificate{{From: at(-5), Until: at(1440)}, {From: at(-5), Until: at(60)}}, now, 0, at(30)},
		{"a short life", []mtls.Certificate{short}, now, 0, at(1)},
		{"of before a restart", []mtls.Certificate{short}, time.Time{}, 0, at(0)},
	} {
		if got := renewal(tt.certs, tt.issued, tt.spread); !got.Equal(tt.want) {
			t.Errorf("%s: %s; want %s", tt.name, got, tt.want)
		}
	}
}

func TestBackoff(t *testing.T) {
	for _, tt := range []struct {
		failures int
		after    time.Duration
		spread   float64
		want     time.Duration
	}{
		{0, 0, 0.5, time.Second},
		{3, 0, 0.5, 8 * time.Second},
		{100, 0, 0.5, longestRetry},
		{0, 7 * time.Second, 0.5, 7 * time.Second},
		{0, time.Hour, 0.5, longestRetry},
		{1, 0, 0, time.Second},
	} {
		if got := backoff(tt.failures, tt.after, tt.spread); got != tt.want {
			t.Errorf("backoff(%d, %s, %g) = %s; want %s", tt.failures, tt.after, tt.spread, got, tt.want)
		}
	}
}

// authorityFiles are what tools make: certificate and key by form of the key.
func authorityFiles(t *testing.T) map[string][2][]byte {
	t.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	cert := func(key crypto.Signer) []byte {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		}
		der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	key := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	return map[string][2][]byte{
		"SEC 1":   {cert(ec), key("EC PRIVATE KEY", sec1)},
		"PKCS #8": {cert(ec), key("PRIVATE KEY", pkcs8)},
		"PKCS #1": {cert(rsaKey), key("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey))},
	}
}

func TestSignsItself(t *testing.T) {
	files := authorityFiles(t)
	files["while one follows another"] = [2][]byte{append(files["PKCS #1"][0], files["SEC 1"][0]...), files["SEC 1"][1]}
	files["the key is of none of the certificates"] = [2][]byte{files["PKCS #1"][0], files["SEC 1"][1]}
	for name, pair := range files {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o := Options{Roles: []mtls.Role{mtls.XDS}, Out: filepath.Join(dir, "out"), CACert: filepath.Join(dir, "tls.crt"), CAKey: filepath.Join(dir, "tls.key"), Life: 24 * time.Hour}
			for i, path := range []string{o.CACert, o.CAKey} {
				if err := os.WriteFile(path, pair[i], 0o600); err != nil {
					t.Fatal(err)
				}
			}
			k, log := newKeeper(t, o)
			k.renew(t.Context(), time.Now())
			certs, err := Check(o, time.Now())
			switch {
			case strings.Contains(name, "none"):
				if err == nil || !strings.Contains(log.String(), name) {
					t.Errorf("log %s lacks it", log)
				}
			case err != nil || certs[0].ID.String() != "spiffe://millrace/xds":
				t.Errorf("%v, %v\n%s", certs, err, log)
			case certs[0].Until.After(time.Now().Add(time.Hour)):
				t.Errorf("it ends at %s, after its authority", certs[0].Until)
			}
		})
	}
}
