package issue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace.dev/millrace/internal/identity"
	"millrace.dev/millrace/internal/mtls"
)

// apiServer knows tokens by their text; others it does not take.
type apiServer map[string]Subject

func (a apiServer) Review(_ context.Context, token string) (Subject, error) {
	switch s, ok := a[token]; {
	case token == "away":
		return Subject{}, errors.New("connection refused")
	case !ok:
		return Subject{}, fmt.Errorf("%w: expired", ErrToken)
	default:
		return s, nil
	}
}

var engine = Subject{User: "system:serviceaccount:ours:engine", Audiences: []string{"millrace"}, Pod: "p", Node: "node-a"}

func newServer(t testing.TB, r Reviewer) (*Server, *mtls.Authority, *prometheus.Registry) {
	t.Helper()
	ca, err := mtls.NewAuthority("millrace", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	return New(Config{
		Authority: func() *mtls.Authority { return ca }, Life: time.Hour, Reviewer: r, Refused: func(string, error) {},
		Accounts: Accounts{"ours/engine": {mtls.Engine, mtls.NodeAgent}},
	}, slog.New(slog.DiscardHandler), reg), ca, reg
}

func post(s *Server, token string, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, identity.Path, bytes.NewReader(body))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// request returns a request for roles, and its keys.
func request(t testing.TB, roles ...mtls.Role) ([]byte, map[mtls.Role][]byte) {
	t.Helper()
	req, keys := identity.Request{CSRs: map[mtls.Role]string{}}, map[mtls.Role][]byte{}
	for _, role := range roles {
		r, err := mtls.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		req.CSRs[role], keys[role] = string(r.CSR), r.KeyPEM
	}
	body, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	return body, keys
}

func TestServer(t *testing.T) {
	s, ca, reg := newServer(t, apiServer{"good": engine, "other": {User: "system:serviceaccount:theirs:engine", Audiences: []string{"millrace"}, Pod: "p", Node: "n"}})
	good, keys := request(t, mtls.Engine, mtls.NodeAgent)
	w := post(s, "good", good)
	var resp identity.Response
	if err := json.Unmarshal(w.Body.Bytes(), &resp); err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	for role, key := range keys {
		c, err := mtls.Verify([]byte(resp.Certificates[role]), key, ca.PEM(), time.Now())
		if want := (mtls.ID{Domain: "millrace", Role: role, Node: "node-a"}); err != nil || c.ID != want {
			t.Errorf("certificate of %v, %v; want %v", c.ID, err, want)
		}
	}
	greedy, _ := request(t, mtls.Engine, mtls.Operator)
	many := []byte(`{"csrs":{"a":"","b":"","c":"","d":"","e":"","f":"","g":"","h":"","i":""}}`)
	tests := []struct {
		name, token string
		body        []byte
		code        int
		want        string
	}{
		{"no token", "", good, 401, "no token"},
		{"a long token", strings.Repeat("x", maxToken+1), good, 401, "no token"},
		{"a token that has expired", "old", good, 401, "expired"},
		{"a token of another namespace", "other", good, 403, "theirs/engine has no role"},
		{"one role too many: none at all", "good", greedy, 403, "has not role"},
		{"no JSON", "good", []byte("csr"), 400, "invalid character"},
		{"nothing asked", "good", []byte("{}"), 400, "csrs: 0; must be ≥ 1"},
		{"too much asked", "good", many, 400, "csrs: 9; must be ≥ 1 and ≤ 8"},
		{"no CSR", "good", []byte(`{"csrs":{"engine":"x"}}`), 400, "csrs.engine: no certificate request"},
		{"a long body", "good", make([]byte, maxBody+1), 400, "body of more than"},
		{"the API server is away", "away", good, 503, "connection refused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := post(s, tt.token, tt.body)
			if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.want) {
				t.Errorf("%d %s; want %d %s", w.Code, w.Body, tt.code, tt.want)
			}
			if again := w.Header().Get("Retry-After"); (again != "") != (tt.code == 503) {
				t.Errorf("Retry-After: %q", again)
			}
		})
	}
	if len(s.Conditions()) != 1 {
		t.Error("no condition while the API server is away")
	}
	if post(s, "old", good); len(s.Conditions()) != 0 {
		t.Error("a condition although the API server answers")
	}
	r := httptest.NewRequest(http.MethodGet, identity.Path, nil)
	w = httptest.NewRecorder()
	if s.ServeHTTP(w, r); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", w.Code)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v, %v", problems, err)
	}
	if got := testutil.ToFloat64(s.metrics.issued); got != 1 {
		t.Errorf("%v issued", got)
	}
}

// stuck is an API server that does not answer.
type stuck struct{}

func (stuck) Review(ctx context.Context, _ string) (Subject, error) {
	<-ctx.Done()
	return Subject{}, ctx.Err()
}

// TestAThousandAtOnce has all wait and be sent away while the API server hangs: they
// hold nothing but their turn.
func TestAThousandAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := newServer(t, stuck{})
		body, _ := request(t, mtls.Engine)
		codes := make(chan int, 1000)
		began := time.Now()
		for range cap(codes) {
			go func() { codes <- post(s, "good", body).Code }()
		}
		for range cap(codes) {
			if code := <-codes; code != http.StatusServiceUnavailable {
				t.Fatalf("%d; want 503", code)
			}
		}
		if took := time.Since(began); took > slotFor+reviewFor {
			t.Errorf("the last one waited %s", took)
		}
	})
}

func FuzzRequest(f *testing.F) {
	good, _ := request(f, mtls.Engine)
	f.Add("good", good)
	f.Add("old", []byte(`{"csrs":{"engine":"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"}}`))
	f.Add("", []byte("{}"))
	s, ca, _ := newServer(f, apiServer{"good": engine})
	f.Fuzz(func(t *testing.T, token string, body []byte) {
		w := post(s, token, body)
		if w.Code != http.StatusOK {
			return
		}
		if token != "good" {
			t.Fatalf("token %q is taken", token)
		}
		var resp identity.Response
		if err := json.Unmarshal(w.Body.Bytes(), &resp); err != nil || resp.Authorities != string(ca.PEM()) {
			t.Fatal(err)
		}
		for role := range resp.Certificates {
			if role != mtls.Engine && role != mtls.NodeAgent {
				t.Fatalf("certificate for role %q", role)
			}
		}
	})
}
