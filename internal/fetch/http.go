package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// asker is a Client's HTTP client for one request, with what was learnt on the way.
type asker struct {
	c *Client
	// linked is the hash that the place itself gave with its redirect; linkedSize the size,
	// -1 if it gave none.
	linked     string
	linkedSize int64
}

// isLinked is a hash as the header X-Linked-Etag has it: a Git LFS object's own.
var isLinked = regexp.MustCompile(`^(?:W/)?"?([0-9a-f]{64})"?$`)

// learn takes what the headers of the place say of the content behind its link.
func (a *asker) learn(h http.Header) {
	if m := isLinked.FindStringSubmatch(h.Get("X-Linked-Etag")); m != nil {
		a.linked = m[1]
	}
	if n, err := strconv.ParseInt(h.Get("X-Linked-Size"), 10, 64); err == nil && n >= 0 {
		a.linkedSize = n
	}
}

// Do asks for u with the headers. The response's body must be closed.
func (a *asker) do(ctx context.Context, u *url.URL, headers http.Header) (*http.Response, error) {
	a.linked, a.linkedSize = "", -1
	bare := *u
	bare.User = nil
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, bare.String(), nil)
	if err != nil {
		return nil, errors.New("not a URL")
	}
	req.Header = headers.Clone()
	// A packed body would have other bytes than its Range and Content-Length say.
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "millrace")
	if err := a.authorize(req, u); err != nil {
		return nil, err
	}
	client := http.Client{Transport: a.transport(), CheckRedirect: a.redirect}
	resp, err := client.Do(req)
	if err != nil {
		// Its URL may have secrets, and the caller shows where it was.
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, err
	}
	if resp.Request.URL.Host == bare.Host {
		a.learn(resp.Header)
	}
	return resp, nil
}

// authorize adds who asks: what the URL itself says, or the token of its host.
func (a *asker) authorize(req *http.Request, u *url.URL) error {
	token := ""
	if a.c.Token != nil {
		token = a.c.Token(u.Host)
	}
	if u.User == nil && token == "" {
		return nil
	}
	if u.Scheme != "https" && !isLocal(u.Hostname()) {
		return fmt.Errorf("a token or password would be sent in plain text; must be https://: %w", ErrDenied)
	}
	if u.User != nil {
		password, _ := u.User.Password()
		req.SetBasicAuth(u.User.Username(), password)
		return nil
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return nil
}

func isLocal(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// redirect follows a few, to other hosts without the token, and never from https to http.
func (a *asker) redirect(req *http.Request, via []*http.Request) error {
	if len(via) > a.c.Limits.Redirects {
		return fmt.Errorf("more than %d redirects", a.c.Limits.Redirects)
	}
	last := via[len(via)-1].URL
	if last.Scheme == "https" && req.URL.Scheme != "https" {
		return errors.New("it redirects from https to http")
	}
	if req.URL.Host != via[0].URL.Host {
		req.Header.Del("Authorization") // the standard library sends it on to subdomains
	}
	if req.Response != nil && last.Host == via[0].URL.Host {
		a.learn(req.Response.Header)
	}
	return nil
}

func (a *asker) transport() http.RoundTripper {
	if a.c.Transport != nil {
		return a.c.Transport
	}
	return &http.Transport{
		Proxy:       http.ProxyFromEnvironment,
		DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext, TLSHandshakeTimeout: 10 * time.Second,
		ResponseHeaderTimeout: a.c.Limits.Headers, MaxResponseHeaderBytes: 64 << 10,
		DisableCompression: true, DisableKeepAlives: true, ForceAttemptHTTP2: true,
	}
}

// final is an error that the same place would give again.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// wait is an error after which the server wants a pause.
type wait struct {
	error
	pause time.Duration
}

// refused turns a response without the file into an error.
func refused(resp *http.Response, most time.Duration) error {
	err := fmt.Errorf("HTTP %d", resp.StatusCode)
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return final{fmt.Errorf("%w: %w", err, ErrDenied)}
	case code == http.StatusNotFound, code == http.StatusGone:
		return final{fmt.Errorf("%w: %w", err, ErrMissing)}
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		seconds, parse := strconv.Atoi(resp.Header.Get("Retry-After"))
		if parse != nil || seconds < 0 {
			return err
		}
		if seconds > int(most/time.Second) {
			return final{fmt.Errorf("%w: it asks to come back in %d s", err, seconds)}
		}
		return wait{err, time.Duration(seconds) * time.Second}
	case code >= 500, code == http.StatusRequestTimeout:
		return err
	}
	return final{err}
}

// Text reads a small file, of at most so many bytes.
func (c *Client) Text(ctx context.Context, u *url.URL, most int64) ([]byte, http.Header, error) {
	// A page that has nothing to send on the way is done in twice the time of its headers.
	ctx, cancel := context.WithTimeout(ctx, 2*c.Limits.Headers)
	defer cancel()
	a := &asker{c: c}
	resp, err := a.do(ctx, u, http.Header{})
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, refused(resp, 0)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("more than %d bytes", most)
	}
	return b, resp.Header, err
}

// span is what a Content-Range says: bytes first to last, of total (-1: not known).
type span struct{ first, last, total int64 }

// parseSpan reads "bytes 5-9/10", "bytes 5-9/*" and "bytes */10".
func parseSpan(text string) (s span, err error) {
	bad := fmt.Errorf("content-range %.80q", text)
	rest, ok := strings.CutPrefix(text, "bytes ")
	where, total, slash := strings.Cut(rest, "/")
	if !ok || !slash {
		return s, bad
	}
	s = span{first: -1, last: -1, total: -1}
	if total != "*" {
		if s.total, err = digits(total); err != nil {
			return s, bad
		}
	}
	if where == "*" {
		return s, nil
	}
	first, last, dash := strings.Cut(where, "-")
	if s.first, err = digits(first); err != nil || !dash {
		return s, bad
	}
	if s.last, err = digits(last); err != nil || s.last < s.first || s.total >= 0 && s.last >= s.total {
		return s, bad
	}
	return s, nil
}

func digits(text string) (int64, error) {
	n, err := strconv.ParseUint(text, 10, 62)
	return int64(n), err
}
