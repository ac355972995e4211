// Package identity gives the programs of a Pod their certificates: it asks the mesh's
// authority for them with the token of the Pod's ServiceAccount, writes them to files
// that the programs read again by themselves, and renews them in time.
//
// Called by `millrace identity`, which runs beside the programs; xds/internal/issue is
// the other end and shares the types of the protocol. Its one rule: a file in the
// folder is whole, and of what was checked as a peer would, or it is not written.
package identity

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"millrace.dev/millrace/internal/mtls"
)

// Audience is for whom a token must be made: one that is good for the API server, or
// for somebody else, is refused, and ours is good for nobody else.
const Audience = "millrace"

// Path is where the authority takes a Request, by POST, with the token in the header
// Authorization: Bearer.
const Path = "/v1/certificate"

// Request asks for certificates of some roles.
type Request struct {
	// CSRs are requests as PKCS #10 in PEM by role. Only their keys count.
	CSRs map[mtls.Role]string `json:"csrs"`
}

// Response has what was asked for.
type Response struct {
	// Certificates are in PEM, by role: each leads to an authority.
	Certificates map[mtls.Role]string `json:"certificates"`
	// Authorities are all that are trusted, in PEM.
	Authorities string `json:"authorities"`
}

// Options say whose certificates to get, where from, and where to put them.
type Options struct {
	// Roles are those of the Pod's programs.
	Roles []mtls.Role
	// Out is the folder for the files: ROLE.pem with certificate and key, ca.pem with
	// the authorities, and for Envoy those of mtls.Secrets.
	Out string

	// Authority is the URL of the authority, Token the file with the token to show it, CA
	// the file with the authorities that it must be of.
	Authority, Token, CA string

	// CACert and CAKey are files of the authority itself, where the Pod has them: then
	// nobody is asked. Life is how long such certificates live.
	CACert, CAKey string
	Life          time.Duration
}

// watched are the files whose change is a reason to renew at once; the first has the
// authorities.
func (o Options) watched() []string {
	if o.CACert != "" {
		return []string{o.CACert, o.CAKey}
	}
	return []string{o.CA}
}

// Validate reads the names of roles and returns all that is wrong with the options; to
// check what is there takes less than to get it.
func (o *Options) Validate(roles string, check bool) error {
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
	case check:
	case here && (o.CACert == "" || o.CAKey == ""):
		errs = append(errs, errors.New("-ca-cert and -ca-key; must be given both, or neither"))
	case here && o.Authority != "":
		errs = append(errs, errors.New("-authority, -ca-key; give exactly one of them"))
	case here && o.Life < time.Minute:
		errs = append(errs, fmt.Errorf("-life: %s; must be ≥ 1m", o.Life))
	case !here && !strings.HasPrefix(o.Authority, "https://"):
		errs = append(errs, fmt.Errorf("-authority: %q; must be https://host:port", o.Authority))
	}
	return errors.Join(errs...)
}
