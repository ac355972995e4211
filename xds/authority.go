package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"time"

	"millrace.dev/millrace/internal/identity"
	"millrace.dev/millrace/internal/kube"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/stamp"
	"millrace.dev/millrace/xds/internal/issue"
)

// authority is what the flags say of the port that gives Pods their certificates.
type authority struct {
	listen, cert, key, accounts string
	life                        time.Duration

	// Of load.
	table issue.Accounts
}

func (a *authority) flags(f *program.Flags) {
	f.Optional(&a.listen, "authority", "`ip:port` where Pods get their certificates, by HTTPS with the token of their ServiceAccount; none: they are nobody's")
	f.StringVar(&a.cert, "ca-cert", "", "`file` with the CA certificates of the mesh, PEM: the one of -ca-key signs, all are trusted; read again when it changes")
	f.StringVar(&a.key, "ca-key", "", "`file` with the key of one of the certificates in -ca-cert")
	f.StringVar(&a.accounts, "accounts", "", "`NAMESPACE/NAME=ROLE+ROLE,…`: which ServiceAccount has which roles: extproc, engine, nodeagent, envoy, operator")
	f.DurationVar(&a.life, "certificate-life", 24*time.Hour, "how long a certificate is valid; it is renewed after half of that, so the API server may be unreachable for the other half")
}

func (a *authority) validate(f *program.Flags) error {
	if a.listen == "" {
		if a.cert != "" || a.key != "" || a.accounts != "" {
			return errors.New("-ca-cert, -ca-key, -accounts; need -authority, too")
		}
		return nil
	}
	var errs []error
	if f.TLS().CA == "" {
		errs = append(errs, errors.New("-authority; needs -tls-ca, too: it serves with the mesh's certificate"))
	}
	if a.cert == "" || a.key == "" {
		errs = append(errs, errors.New("-authority; needs -ca-cert and -ca-key, too"))
	}
	table, err := issue.ParseAccounts(a.accounts)
	if err != nil {
		errs = append(errs, fmt.Errorf("-accounts: %w", err))
	}
	a.table = table
	if a.life < time.Minute || a.life > 90*24*time.Hour {
		errs = append(errs, fmt.Errorf("-certificate-life: %s; must be ≥ 1m and ≤ 2160h", a.life))
	}
	return errors.Join(errs...)
}

// part is the authority's port while xds runs.
type part struct {
	run        func(context.Context) error
	conditions func() []obs.Condition
}

// open opens the port; nil if there is to be none.
func (a *authority) open(env *program.Env) (*part, error) {
	if a.listen == "" {
		return &part{func(context.Context) error { return nil }, func() []obs.Condition { return nil }}, nil
	}
	value, err := stamp.Load([]string{a.cert, a.key}, func() (*mtls.Authority, error) { return a.read(env) }, func(m *mtls.Authority, err error) {
		if err != nil {
			env.Log.Warn("authority not read, the one from before signs", "err", err)
			return
		}
		env.Log.Info("authority read again", "until", m.End())
	})
	if err != nil {
		return nil, program.Usage(&obs.Hint{Err: err, Next: "mount the Secret with the authority's certificates and key; every replica of xds needs it"})
	}
	config, err := kube.Config()
	if err != nil {
		return nil, program.Setup(fmt.Errorf("-authority: %w", err))
	}
	reviewer, err := issue.Cluster(config)
	if err != nil {
		return nil, program.Setup(fmt.Errorf("-authority: %w", err))
	}
	ln, err := env.Open("authority", a.listen)
	if err != nil {
		return nil, err
	}
	latest := func() *mtls.Authority { m, _ := value.Latest(); return m }
	server := issue.New(issue.Config{
		Authority: latest, Accounts: a.table, Life: a.life, Reviewer: reviewer, Refused: env.Identity.Refused,
	}, env.Log, env.Metrics)
	env.Log.Info("authority", "https", ln.Addr().String(), "until", latest().End())
	return &part{
		run: func(ctx context.Context) error {
			return obs.Serve(ctx, tls.NewListener(ln, env.Identity.Anybody("http/1.1")), server, bounded)
		},
		conditions: func() []obs.Condition { return append(a.conditions(value), server.Conditions()...) },
	}, nil
}

// bounded keeps one caller from costing much: anybody may call.
func bounded(s *http.Server) {
	s.ReadTimeout, s.WriteTimeout, s.IdleTimeout = 10*time.Second, 30*time.Second, 10*time.Second
	s.MaxHeaderBytes = 64 << 10
	s.Protocols.SetUnencryptedHTTP2(false)
}

// read reads the authority's files.
func (a *authority) read(env *program.Env) (*mtls.Authority, error) {
	m, err := identity.ReadAuthority(a.cert, a.key)
	if err == nil && m.Domain() != env.Identity.ID().Domain {
		err = fmt.Errorf("-ca-cert %s: it is of trust domain %s; must be of %s, as -tls-cert is", a.cert, m.Domain(), env.Identity.ID().Domain)
	}
	return m, err
}

// expiring is how long before its end an authority is to be replaced.
const expiring = 30 * 24 * time.Hour

// conditions returns what is wrong with the files.
func (a *authority) conditions(value *stamp.Value[*mtls.Authority]) []obs.Condition {
	m, err := value.Latest()
	var all []obs.Condition
	if err != nil {
		all = append(all, obs.Condition{Code: "authority", Text: err.Error(), Next: "correct the Secret; until then the previous authority signs"})
	}
	if end := m.End(); time.Until(end) < expiring {
		all = append(all, obs.Condition{
			Code: "authority-expiring", Text: fmt.Sprintf("the authority's certificate expires at %s, and with it all that it signed", end.Format(time.RFC3339)),
			Next: "put a new one beside it into " + a.cert + ", wait until all Pods trust it, and then swap -ca-key",
		})
	}
	return all
}
