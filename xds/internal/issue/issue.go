// Package issue is the mesh's authority in Kubernetes: it gives a Pod the certificates
// of the roles that the Pod's ServiceAccount has, on the node where the Pod runs.
//
// xds serves it; internal/identity asks, from each Pod. Its one rule: the identity in a
// certificate comes from the API server's review of the token and from the table of
// accounts; of what the caller sends only its public key is used.
package issue

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"millrace.dev/millrace/internal/identity"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/wire"
)

// Subject is what the API server says of a token that is good.
type Subject struct {
	// User is the name of whose token it is.
	User string
	// Audiences are those of the asked ones that the token is for.
	Audiences []string
	// Pod is the Pod that the token is bound to, Node the node where it runs; empty: none.
	Pod, Node string
}

// Accounts are the roles of ServiceAccounts, by NAMESPACE/NAME.
type Accounts map[string][]mtls.Role

// ParseAccounts reads NAMESPACE/NAME=ROLE+ROLE,…
func ParseAccounts(text string) (Accounts, error) {
	a := Accounts{}
	for entry := range strings.SplitSeq(text, ",") {
		name, roles, ok := strings.Cut(entry, "=")
		namespace, account, ok2 := strings.Cut(name, "/")
		if !ok || !ok2 || namespace == "" || account == "" || strings.ContainsAny(name, ": ") || strings.Contains(account, "/") {
			return nil, fmt.Errorf("%q; must be NAMESPACE/NAME=ROLE, or NAMESPACE/NAME=ROLE+ROLE", entry)
		}
		if a[name] != nil {
			return nil, fmt.Errorf("%s twice; must be once", name)
		}
		for text := range strings.SplitSeq(roles, "+") {
			role, err := mtls.ParseRole(text)
			switch {
			case err != nil:
				return nil, fmt.Errorf("%s: %w", name, err)
			case role == mtls.XDS:
				return nil, fmt.Errorf("%s: role xds; xds signs its own certificate", name)
			case slices.Contains(a[name], role):
				return nil, fmt.Errorf("%s: role %s twice; must be once", name, role)
			}
			a[name] = append(a[name], role)
		}
	}
	return a, nil
}

// Why nothing is granted.
var (
	errAudience = fmt.Errorf("the token is for another audience; must be for %s", identity.Audience)
	errAccount  = errors.New("must be the token of a ServiceAccount")
	errNoPod    = errors.New("the token is not a Pod's; must be one that Kubernetes has projected into a Pod")
	errNoNode   = errors.New("the token does not name the node of its Pod; needs Kubernetes 1.32 or later")
)

// Grant returns the identity in a role that the subject may have, but for the trust
// domain.
func (a Accounts) Grant(s Subject, role mtls.Role) (mtls.ID, error) {
	// An API server that knows no audiences names none: it has not checked ours.
	if !slices.Contains(s.Audiences, identity.Audience) {
		return mtls.ID{}, errAudience
	}
	name, ok := strings.CutPrefix(s.User, "system:serviceaccount:")
	namespace, account, ok2 := strings.Cut(name, ":")
	if !ok || !ok2 {
		return mtls.ID{}, errAccount
	}
	name = namespace + "/" + account
	switch {
	case a[name] == nil:
		return mtls.ID{}, fmt.Errorf("ServiceAccount %s has no role in this mesh", name)
	case !slices.Contains(a[name], role):
		return mtls.ID{}, fmt.Errorf("ServiceAccount %s has not role %.100q", name, role)
	case s.Pod == "":
		return mtls.ID{}, errNoPod
	case !role.OfNode():
		return mtls.ID{Role: role}, nil
	case s.Node == "":
		return mtls.ID{}, errNoNode
	}
	id := mtls.ID{Role: role, Node: wire.NodeName(s.Node)}
	_, err := mtls.Parse(mtls.ID{Domain: "any", Role: role, Node: id.Node}.String())
	return id, err
}
