package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/usable"
)

// public is the certificate of the public address, which Envoy reads. Where it is a file of this
// machine, too, what is wrong with it is a condition: Envoy serves with what it had.
func (o *options) public() []obs.Condition {
	h := o.site.HTTPS
	if h == nil || o.elsewhere {
		return nil
	}
	for _, name := range []string{h.Cert, h.Key} {
		if _, err := regular.Stat(name); err != nil {
			return nil // it may be on Envoy's machine
		}
	}
	if err := usable.Certificate(h.Cert, h.Key, time.Now()); err != nil {
		return []obs.Condition{{
			Code: "public-certificate", Text: fmt.Sprintf("-https-cert %s, -https-key %s: %v; Envoy serves with what it read before", h.Cert, h.Key, err),
			Next: "put a certificate and its own key there, each by renaming",
		}}
	}
	return nil
}

// usable says what is wrong with what others read by the names that they get from here: engines and
// extprocs the files of models, Envoy its certificate and its log.
func (o *options) usable() error {
	if o.elsewhere {
		return nil
	}
	var errs []error
	if p, _ := o.source.Latest(); o.cluster.Namespace == "" && p.State != nil {
		errs = append(errs, usable.Models(p.State.File().Models))
	}
	if h := o.site.HTTPS; h != nil {
		if err := usable.Certificate(h.Cert, h.Key, time.Now()); err != nil {
			errs = append(errs, fmt.Errorf("-https-cert, -https-key: %w", err))
		}
	}
	if o.secrets != "" {
		for _, name := range []string{"certificate.json", "authorities.json"} {
			if err := regular.Check(filepath.Join(o.secrets, name)); err != nil {
				errs = append(errs, fmt.Errorf("-envoy-tls: %w", err))
			}
		}
	}
	if path := o.site.AccessLog; path != "" {
		if err := usable.Output(path); err != nil {
			errs = append(errs, fmt.Errorf("-access-log: %w", err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return &obs.Hint{Err: err, Next: "correct it; where Envoy or the nodes are other machines, add -elsewhere"}
	}
	return nil
}
