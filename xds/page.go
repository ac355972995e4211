package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/internal/keypair"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/stamp"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/internal/page"
)

// live is what the flags say of the page.
type live struct {
	listen, cert, key, tokenFile string
	chat                         string

	// Set by load: the token, and the certificate as its files have it; nil: there is none.
	token string
	pair  *stamp.Value[*tls.Certificate]
	// log gets to know when the files are read again; nil: nobody serves yet.
	log *slog.Logger
}

func (l *live) flags(f *program.Flags) {
	f.Optional(&l.listen, "page", "`ip:port` of the page on another port than -metrics, where it is on loopback only; elsewhere -page-cert, -page-key and -page-token go with it")
	f.StringVar(&l.cert, "page-cert", "", "`file` with the certificate and chain of -page, in PEM; read again for each connection")
	f.StringVar(&l.key, "page-key", "", "`file` with the certificate's key")
	f.StringVar(&l.tokenFile, "page-token", "", "`file` with the token that viewers of -page must have, 16 bytes or more")
	f.StringVar(&l.chat, "page-chat", "", "`host:port` of Envoy, to which the chat of the page is forwarded; if empty, the page has no chat")
}

func (l *live) validate() error {
	var errs []error
	if (l.cert == "") != (l.key == "") {
		errs = append(errs, errors.New("-page-cert, -page-key; must be given both, or neither"))
	}
	if l.listen == "" && (l.cert != "" || l.tokenFile != "") {
		errs = append(errs, errors.New("-page; is missing, which -page-cert and -page-token are for"))
	}
	if l.listen != "" && !program.IsLoopback(l.listen) && (l.cert == "" || l.tokenFile == "") {
		errs = append(errs, fmt.Errorf("-page: %s is not on loopback: -page-cert, -page-key and -page-token must be given, too", l.listen))
	}
	if l.chat != "" {
		if _, _, err := net.SplitHostPort(l.chat); err != nil {
			errs = append(errs, fmt.Errorf("-page-chat: %q; must be host:port", l.chat))
		}
	}
	return errors.Join(errs...)
}

// load reads what the flags name.
func (l *live) load() error {
	if l.tokenFile != "" {
		text, err := regular.Read(l.tokenFile, 4<<10)
		if err != nil {
			return program.Usage(fmt.Errorf("-page-token: %w", err))
		}
		l.token = string(bytes.TrimSpace(text))
		if len(l.token) < page.LeastToken {
			return program.Usage(&obs.Hint{Err: fmt.Errorf("-page-token: %s: has %d bytes; must have at least %d", l.tokenFile, len(l.token), page.LeastToken), Next: "make one: head -c 24 /dev/urandom | base64"})
		}
	}
	if l.cert == "" {
		return nil
	}
	var err error
	l.pair, err = stamp.Load([]string{l.cert, l.key}, func() (*tls.Certificate, error) {
		pair, err := keypair.Read(l.cert, l.key)
		return &pair, err
	}, func(_ *tls.Certificate, err error) {
		switch {
		case l.log == nil:
		case err != nil:
			l.log.Warn("certificate of the page not read, the one from before stays", "err", err)
		default:
			l.log.Info("certificate of the page read again")
		}
	})
	if err != nil {
		return program.Usage(fmt.Errorf("-page-cert, -page-key: %w", err))
	}
	return nil
}

// open returns the page, which the admin page has, too, where that is on loopback, and what
// listens for it elsewhere; nil: nothing does.
func (l *live) open(env *program.Env, view func() (*fleetpb.FleetView, <-chan struct{})) (*page.Page, net.Listener, error) {
	l.log = env.Log
	p := page.New(page.Options{View: view, Gateway: l.chat}, env.Metrics)
	g := page.Guard{}
	if !program.IsLoopback(env.AdminAddress()) {
		g.Refused = fmt.Sprintf("the page is not served at %s, which is not on loopback: ask there (kubectl port-forward, ssh -L), or give xds -page, -page-cert, -page-key and -page-token", env.AdminAddress())
	}
	env.Page = p.Handler(g)
	if l.listen == "" {
		return p, nil, nil
	}
	ln, err := env.Open("page", l.listen)
	return p, ln, err
}

// serve serves the page on the port of its own, until ctx ends.
func (l *live) serve(ctx context.Context, p *page.Page, ln net.Listener) error {
	g := page.Guard{Token: l.token}
	if l.cert == "" {
		return obs.Serve(ctx, ln, p.Handler(g))
	}
	g.Host = func(name string) bool {
		now, _ := l.pair.Latest()
		return now.Leaf.VerifyHostname(name) == nil
	}
	ln = tls.NewListener(ln, &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			now, _ := l.pair.Latest()
			return now, nil
		},
	})
	return obs.Serve(ctx, ln, p.Handler(g), func(s *http.Server) { s.Protocols.SetHTTP2(true) })
}

// servePage serves the page of a fleet.
func (o *options) servePage(ctx context.Context, g *errgroup.Group, env *program.Env, nodes *fleet.Service) error {
	p, ln, err := o.live.open(env, nodes.View)
	if err != nil {
		return err
	}
	nodes.OnDecision(p.Decided)
	g.Go(func() error { return p.Run(ctx) })
	if ln != nil {
		env.Log.Info("page", "address", ln.Addr().String(), "tls", o.live.cert != "")
		g.Go(func() error { return o.live.serve(ctx, p, ln) })
	}
	return nil
}
