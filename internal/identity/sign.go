package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/regular"
)

// maxResponse bounds what the authority answers, in bytes.
const maxResponse = 1 << 20

// longestAsk is how long the authority may take to answer.
const longestAsk = 15 * time.Second

// busy is an answer that says when to ask again.
type busy struct {
	error
	after time.Duration
}

// maxFile bounds a certificate, a key, a token or a list of authorities, in bytes.
const maxFile = 1 << 20

// sign returns certificates of the requests' keys.
func (o Options) sign(ctx context.Context, r Request, now time.Time) (Response, error) {
	if o.CACert != "" {
		return o.signHere(r, now)
	}
	ctx, cancel := context.WithTimeout(ctx, longestAsk)
	defer cancel()
	trusted, err := regular.Read(o.CA, maxFile)
	if err != nil {
		return Response{}, err
	}
	out, err := o.ask(ctx, r, trusted)
	if err != nil {
		return Response{}, err
	}
	// The authorities of the mount come first: they are there before the authority that
	// answers has read them.
	out.Authorities = join(string(trusted), out.Authorities)
	return out, nil
}

// signHere signs with the authority's own key.
func (o Options) signHere(r Request, now time.Time) (Response, error) {
	authority, err := ReadAuthority(o.CACert, o.CAKey)
	if err != nil {
		return Response{}, err
	}
	out := Response{Certificates: map[mtls.Role]string{}, Authorities: string(authority.PEM())}
	for role, csr := range r.CSRs {
		key, err := mtls.ReadCSR([]byte(csr))
		if err != nil {
			return Response{}, err
		}
		cert, err := authority.Sign(key, mtls.ID{Role: role}, now, o.Life)
		if err != nil {
			return Response{}, err
		}
		out.Certificates[role] = string(cert)
	}
	return out, nil
}

// ReadAuthority reads the files of an authority.
func ReadAuthority(cert, key string) (*mtls.Authority, error) {
	certs, err := regular.Read(cert, maxFile)
	if err != nil {
		return nil, fmt.Errorf("-ca-cert: %w", err)
	}
	secret, err := regular.Read(key, maxFile)
	if err != nil {
		return nil, fmt.Errorf("-ca-key: %w", err)
	}
	a, err := mtls.ReadAuthority(certs, secret)
	if err != nil {
		return nil, fmt.Errorf("-ca-cert %s, -ca-key %s: %w", cert, key, err)
	}
	return a, nil
}

// ask asks the authority. The token is sent to nobody who does not show a certificate
// of xds first; it is read each time, as Kubernetes replaces it.
func (o Options) ask(ctx context.Context, r Request, trusted []byte) (Response, error) {
	token, err := regular.Read(o.Token, maxFile)
	if err != nil {
		return Response{}, err
	}
	config, err := mtls.Anonymous(trusted, mtls.Is(mtls.XDS))
	if err != nil {
		return Response{}, fmt.Errorf("%s: %w", o.CA, err)
	}
	body, err := json.Marshal(r)
	if err != nil {
		return Response{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(o.Authority, "/")+Path, bytes.NewReader(body))
	if err != nil {
		return Response{}, err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Content-Type", "application/json")
	client := &http.Client{ // no proxy of the environment, no way to elsewhere
		Transport:     &http.Transport{TLSClientConfig: config, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return Response{}, err
	}
	defer resp.Body.Close()
	return decode(resp)
}

// decode reads the authority's answer.
func decode(resp *http.Response) (Response, error) {
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse+1))
	switch {
	case err != nil:
		return Response{}, err
	case len(text) > maxResponse:
		return Response{}, fmt.Errorf("answer of more than %d bytes", maxResponse)
	case resp.StatusCode != http.StatusOK:
		err := fmt.Errorf("%s: %.500s", resp.Status, strings.TrimSpace(string(text)))
		if s, bad := strconv.Atoi(resp.Header.Get("Retry-After")); bad == nil && s > 0 {
			return Response{}, busy{err, time.Duration(s) * time.Second}
		}
		return Response{}, err
	}
	var out Response
	if err := json.Unmarshal(text, &out); err != nil {
		return Response{}, fmt.Errorf("answer: %w", err)
	}
	return out, nil
}

// retryAfter returns when the authority wants to be asked again; zero: it does not say.
func retryAfter(err error) time.Duration {
	if b := (busy{}); errors.As(err, &b) {
		return b.after
	}
	return 0
}
