// Package reach knows how engines are reached that somebody else runs: with which keys and
// other headers, and by which TLS.
//
// probe opens a Door for each endpoint, extproc a Key for those whose requests have one. Its
// one rule: what files say is read when they are there, and again when they change; while one
// is bad, what it said before holds, and what it says is shown nowhere.
package reach

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"strings"
	"sync"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/keypair"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/secret"
	"millrace.dev/millrace/internal/stamp"
)

// maxSecret bounds a file with a key for requests, in bytes.
const maxSecret = 16 << 10

// Door is the way to one endpoint. It is safe for concurrent use.
type Door struct {
	// Constant after New.
	spec  config.Endpoint
	files []string
	log   *slog.Logger

	// mu guards the field below.
	mu    sync.Mutex
	value *stamp.Value[*material] // nil: it could not be read yet
}

// material is what files said at one moment. It is never changed.
type material struct {
	headers map[string]secret.Text // by canonical name
	tls     *tls.Config            // nil: the usual one
}

// New returns the way to an endpoint; nil: there is nothing special about it.
func New(e config.Endpoint, log *slog.Logger) *Door {
	if !e.TLS.On() && e.APIKey == (config.APIKey{}) && len(e.Headers) == 0 {
		return nil
	}
	d := &Door{spec: e, log: log.With("endpoint", e.Address)}
	d.files = []string{e.TLS.CA, e.TLS.Cert, e.TLS.Key, e.APIKey.File}
	for _, h := range e.Headers {
		d.files = append(d.files, h.File)
	}
	return d
}

// Check returns why an endpoint can't be reached in the way that is said; nil: it can be tried.
func Check(e config.Endpoint) error {
	d := New(e, slog.New(slog.DiscardHandler))
	if d == nil {
		return nil
	}
	_, err := d.read()
	return err
}

// latest returns what holds now.
func (d *Door) latest() (*material, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.value == nil {
		v, err := stamp.Load(d.files, d.read, d.note)
		if err != nil {
			return nil, err
		}
		d.value = v
	}
	m, _ := d.value.Latest() // what is wrong now has been logged
	return m, nil
}

// Fault returns why files of it are not taken now, while what they said before holds; nil:
// they are, or there is nothing special about it.
func (d *Door) Fault() error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.value == nil {
		return nil // that it can't be reached says so
	}
	_, err := d.value.Known()
	return err
}

func (d *Door) note(_ *material, err error) {
	if err != nil {
		d.log.Warn("keys and certificates for an engine are as before", "error", err)
		return
	}
	d.log.Info("keys and certificates for an engine read again")
}

// Request returns r with what the endpoint asks for.
func (d *Door) Request(r *http.Request) (*http.Request, error) {
	m, err := d.latest()
	if err != nil || len(m.headers) == 0 {
		return r, err
	}
	with := *r
	with.Header = maps.Clone(r.Header)
	for name, value := range m.headers {
		with.Header[name] = []string{string(value)}
	}
	return &with, nil
}

// TLS returns how a connection is made.
func (d *Door) TLS() (*tls.Config, error) {
	m, err := d.latest()
	if err != nil {
		return nil, err
	}
	return m.tls, nil
}

// read reads all files.
func (d *Door) read() (*material, error) {
	m := &material{headers: map[string]secret.Text{}}
	var errs []error
	take := func(at, name, file, env string, value secret.Text) {
		text, err := textOf(file, env, value)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", at, err))
			return
		}
		m.headers[http.CanonicalHeaderKey(name)] = text
	}
	for _, h := range d.spec.Headers {
		take("headers."+h.Name, h.Name, h.File, h.Env, h.Value)
	}
	if k := d.spec.APIKey; k != (config.APIKey{}) {
		text, err := textOf(k.File, k.Env, "")
		if err != nil {
			errs = append(errs, fmt.Errorf("apiKey: %w", err))
		} else {
			name, value := headerOf(k, text)
			m.headers[http.CanonicalHeaderKey(name)] = value
		}
	}
	if t := d.spec.TLS; t.On() {
		var err error
		if m.tls, err = tlsOf(t); err != nil {
			errs = append(errs, fmt.Errorf("tls.%w", err))
		}
	}
	return m, errors.Join(errs...)
}

// headerOf returns the header that has a key.
func headerOf(k config.APIKey, key secret.Text) (name string, value secret.Text) {
	if k.Header == "" || k.Header == "authorization" {
		return "authorization", "Bearer " + key
	}
	return k.Header, key
}

// textOf returns a secret from where it is.
func textOf(file, env string, value secret.Text) (secret.Text, error) {
	at := "env " + env
	switch {
	case file != "":
		b, err := regular.Read(file, maxSecret)
		if err != nil {
			return "", err
		}
		at, value = file, secret.Text(strings.TrimSpace(string(b)))
	case env != "":
		text, ok := os.LookupEnv(env)
		if !ok {
			return "", fmt.Errorf("the environment has no %s", env)
		}
		value = secret.Text(strings.TrimSpace(text))
	case value != "":
		return value, nil
	}
	if value == "" || strings.ContainsFunc(string(value), func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", fmt.Errorf("%s: must be one line of printable characters", at)
	}
	return value, nil
}

// tlsOf returns how connections are made by what the files say now.
func tlsOf(t config.EngineTLS) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, InsecureSkipVerify: t.SkipVerify, NextProtos: []string{"http/1.1"}}
	if t.CA != "" {
		pool, err := keypair.Pool(t.CA)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		c.RootCAs = pool
	}
	if t.Cert != "" {
		pair, err := keypair.Read(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("cert: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
