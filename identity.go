package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"millrace.dev/millrace/internal/identity"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
)

// keepIdentity is what runs beside the programs of a Pod.
func keepIdentity(ctx context.Context, args []string, std files) error {
	var o identity.Options
	fs := newFlags("identity", std)
	roles := fs.String("roles", "", "`ROLE,…` of the Pod's programs: extproc, engine, nodeagent, envoy, xds, operator")
	fs.StringVar(&o.Out, "out", "/run/millrace/tls", "`folder` for ROLE.pem (certificate and key) and ca.pem; for Envoy certificate.json and authorities.json, too")
	fs.StringVar(&o.Authority, "authority", "", "`https://host:port` of the authority, which xds serves")
	fs.StringVar(&o.Token, "token", "/var/run/secrets/millrace/token", "`file` with a token of the Pod's ServiceAccount for audience "+identity.Audience)
	fs.StringVar(&o.CA, "ca", "/etc/millrace/ca/tls.crt", "`file` with the authorities of the mesh, one of which must have signed the authority's certificate")
	fs.StringVar(&o.CACert, "ca-cert", "", "`file` with the authorities, where the Pod has their key: nobody is asked then")
	fs.StringVar(&o.CAKey, "ca-key", "", "`file` with the key of one of them")
	fs.DurationVar(&o.Life, "life", 24*time.Hour, "with -ca-key, how long a certificate lives")
	only := fs.Bool("check", false, "check the files in -out as a peer would, and end: a startup probe")
	if err := fs.Read(args); err != nil {
		return err
	}
	if err := identityOptions(&o, *roles, *only); err != nil {
		return program.Usage(&obs.Hint{Err: err, Next: "run millrace identity -h for all flags"})
	}
	if !*only {
		return identity.Run(ctx, o, obs.Logger(std.err, "identity"))
	}
	certs, err := identity.Check(o, time.Now())
	for _, c := range certs {
		fmt.Fprintf(std.out, "%s until %s\n", c.ID, c.Until.Format(time.RFC3339))
	}
	return err
}

// identityOptions returns all that is wrong with the flags.
func identityOptions(o *identity.Options, roles string, only bool) error {
	var errs []error
	for name := range strings.SplitSeq(roles, ",") {
		role, err := mtls.ParseRole(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("-roles: %w", err))
		}
		o.Roles = append(o.Roles, role)
	}
	here := o.CACert != "" || o.CAKey != ""
	switch {
	case only:
	case here && (o.CACert == "" || o.CAKey == ""):
		errs = append(errs, errors.New("-ca-cert and -ca-key; must be given both, or neither"))
	case here && o.Authority != "":
		errs = append(errs, errors.New("-authority and -ca-key; must be one of them"))
	case here && o.Life < time.Minute:
		errs = append(errs, fmt.Errorf("-life: %s; must be ≥ 1m", o.Life))
	case !here && !strings.HasPrefix(o.Authority, "https://"):
		errs = append(errs, fmt.Errorf("-authority: %q; must be https://host:port", o.Authority))
	}
	return errors.Join(errs...)
}
