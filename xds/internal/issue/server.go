package issue

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/internal/identity"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
)

// What a request may cost.
const (
	maxBody  = 64 << 10 // bytes
	maxRoles = 8
	maxToken = 16 << 10 // bytes
	// reviews is how many tokens the API server is asked about at a time. A thousand Pods
	// at once wait, slotFor at most, and then ask again.
	reviews   = 32
	slotFor   = 5 * time.Second
	reviewFor = 5 * time.Second
)

// retrySeconds is when who could not be served is to ask again.
const retrySeconds = 2

// ErrToken is of a token that the API server does not take.
var ErrToken = errors.New("token refused by the API server")

// Reviewer asks the API server about tokens. Its error is an ErrToken, or says why
// the API server has not answered.
type Reviewer interface {
	Review(ctx context.Context, token string) (Subject, error)
}

// Config is what a Server needs.
type Config struct {
	// Authority returns who signs now.
	Authority func() *mtls.Authority
	// Accounts say who gets what.
	Accounts Accounts
	// Life is how long a certificate lives.
	Life time.Duration
	// Reviewer asks about tokens.
	Reviewer Reviewer
	// Refused logs who got nothing, and not too often.
	Refused func(from string, err error)
}

// Server answers identity.Request.
type Server struct {
	// Constant after New.
	Config
	log     *slog.Logger
	metrics metrics

	slots chan struct{} // one for each review in progress

	// Atomic.
	away atomic.Pointer[error] // why the API server gave no answer last; nil: it did
}

// New returns the server.
func New(c Config, log *slog.Logger, reg prometheus.Registerer) *Server {
	return &Server{Config: c, log: log, metrics: newMetrics(reg), slots: make(chan struct{}, reviews)}
}

// Conditions returns what is wrong: then no new certificates are to be had, and those
// that are in force stay so.
func (s *Server) Conditions() []obs.Condition {
	if err := s.away.Load(); err != nil {
		return []obs.Condition{{
			Code: "token-review",
			Text: fmt.Sprintf("the API server does not review tokens: %v; new Pods get no certificates", *err),
			Next: "let the ServiceAccount of xds create tokenreviews.authentication.k8s.io, and see that the API server answers",
		}}
	}
	return nil
}

// refusal is an error with the status that the caller gets.
type refusal struct {
	error
	status int
}

func refuse(status int, err error) error { return refusal{err, status} }

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resp, err := s.answer(r)
	if err == nil {
		s.metrics.issued.Inc()
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(resp)
		return
	}
	status := http.StatusInternalServerError
	if e := (refusal{}); errors.As(err, &e) {
		status = e.status
	}
	s.metrics.count(status)
	s.Refused(r.RemoteAddr, fmt.Errorf("certificate: %w", err))
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(retrySeconds))
	}
	http.Error(w, err.Error(), status)
}

// answer does what costs nobody else first.
func (s *Server) answer(r *http.Request) (identity.Response, error) {
	var none identity.Response
	if r.URL.Path != identity.Path {
		return none, refuse(http.StatusNotFound, fmt.Errorf("%.100q; must be %s", r.URL.Path, identity.Path))
	}
	if r.Method != http.MethodPost {
		return none, refuse(http.StatusMethodNotAllowed, fmt.Errorf("method %.20q; must be POST", r.Method))
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" || len(token) > maxToken {
		return none, refuse(http.StatusUnauthorized, errors.New("no token; must be Authorization: Bearer TOKEN"))
	}
	keys, err := readRequest(r.Body)
	if err != nil {
		return none, refuse(http.StatusBadRequest, err)
	}
	subject, err := s.review(r.Context(), token)
	if err != nil {
		return none, err
	}
	return s.issue(subject, keys, r.RemoteAddr)
}

// readRequest returns the keys of a request by role.
func readRequest(body io.Reader) (map[mtls.Role]crypto.PublicKey, error) {
	text, err := io.ReadAll(io.LimitReader(body, maxBody+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxBody {
		return nil, fmt.Errorf("body of more than %d bytes", maxBody)
	}
	var req identity.Request
	if err := json.Unmarshal(text, &req); err != nil {
		return nil, err
	}
	if n := len(req.CSRs); n == 0 || n > maxRoles {
		return nil, fmt.Errorf("csrs: %d; must be ≥ 1 and ≤ %d", n, maxRoles)
	}
	keys := map[mtls.Role]crypto.PublicKey{}
	for role, csr := range req.CSRs {
		if keys[role], err = mtls.ReadCSR([]byte(csr)); err != nil {
			return nil, fmt.Errorf("csrs.%.100s: %w", role, err)
		}
	}
	return keys, nil
}

// review asks the API server whose a token is.
func (s *Server) review(ctx context.Context, token string) (Subject, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-time.After(slotFor):
		return Subject{}, refuse(http.StatusServiceUnavailable, fmt.Errorf("%d token reviews are in flight already; try again", reviews))
	case <-ctx.Done():
		return Subject{}, refuse(http.StatusServiceUnavailable, ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, reviewFor)
	defer cancel()
	subject, err := s.Reviewer.Review(ctx, token)
	switch {
	case errors.Is(err, ErrToken):
		s.away.Store(nil)
		return Subject{}, refuse(http.StatusUnauthorized, err)
	case err != nil:
		s.away.Store(&err)
		return Subject{}, refuse(http.StatusServiceUnavailable, fmt.Errorf("review of the token: %w", err))
	}
	s.away.Store(nil)
	return subject, nil
}

// issue signs what the subject may have: all that it asks for, or nothing.
func (s *Server) issue(subject Subject, keys map[mtls.Role]crypto.PublicKey, from string) (identity.Response, error) {
	var none identity.Response
	authority, now := s.Authority(), time.Now()
	if end := authority.End(); now.After(end) {
		return none, refuse(http.StatusServiceUnavailable, fmt.Errorf("the authority's certificate expired at %s", end.Format(time.RFC3339)))
	}
	out := identity.Response{Certificates: map[mtls.Role]string{}, Authorities: string(authority.PEM())}
	var ids []string
	for role, key := range keys {
		id, err := s.Accounts.Grant(subject, role)
		if err != nil {
			return none, refuse(http.StatusForbidden, err)
		}
		cert, err := authority.Sign(key, id, now, s.Life)
		if err != nil {
			return none, err
		}
		id.Domain = authority.Domain()
		out.Certificates[role] = string(cert)
		ids = append(ids, id.String())
	}
	s.log.Info("certificates issued", "ids", strings.Join(ids, " "), "user", subject.User, "pod", subject.Pod, "from", from, "until", now.Add(s.Life))
	return out, nil
}
