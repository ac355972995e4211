// Package mtls authenticates the programs of a mesh and authorises their calls: identities
// in certificates, read from files again when they change, mutual TLS with them, and one
// table of the calls that each identity may make.
//
// Called by the program kit, by whoever dials another program, and by `millrace up`,
// which makes certificates. Its one rule: without a certificate of the mesh's own
// authority nobody gets anything, and with one only what the table says.
package mtls

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Role is what a program is to the others.
type Role string

// The roles. Those of a node have its name in their identity.
const (
	Engine    Role = "engine"
	NodeAgent Role = "nodeagent"
	XDS       Role = "xds"
	ExtProc   Role = "extproc"
	Envoy     Role = "envoy"
	Operator  Role = "operator" // a person, and `millrace up`
)

var (
	ofNode = []Role{Engine, NodeAgent}
	ofMesh = []Role{XDS, ExtProc, Envoy, Operator}
)

// ParseRole returns the role of that name.
func ParseRole(name string) (Role, error) {
	if r := Role(name); slices.Contains(ofNode, r) || slices.Contains(ofMesh, r) {
		return r, nil
	}
	return "", fmt.Errorf("role %.100q; must be one of %v", name, append(slices.Clone(ofMesh), ofNode...))
}

// OfNode reports whether a program of the role has a node.
func (r Role) OfNode() bool { return slices.Contains(ofNode, r) }

// ID is a SPIFFE identity: spiffe://DOMAIN/node/NODE/ROLE of a node's programs,
// spiffe://DOMAIN/ROLE of the others.
type ID struct {
	Domain string
	Role   Role
	Node   string // empty: of no node
}

// String returns the identity as a URI.
func (id ID) String() string {
	if id.Node != "" {
		return "spiffe://" + id.Domain + "/node/" + id.Node + "/" + string(id.Role)
	}
	return "spiffe://" + id.Domain + "/" + string(id.Role)
}

// nodeName is the contract's rule for names of nodes.
var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Parse returns the identity that a URI names.
func Parse(uri string) (ID, error) {
	id, err := spiffeid.FromString(uri)
	if err != nil {
		return ID{}, fmt.Errorf("identity %.200q: %w", uri, err)
	}
	return parse(id.TrustDomain().Name(), id.Path())
}

// parse reads the path of a well-formed identity.
func parse(domain, path string) (ID, error) {
	id := ID{Domain: domain, Role: Role(strings.TrimPrefix(path, "/"))}
	known := slices.Contains(ofMesh, id.Role)
	if rest, ok := strings.CutPrefix(path, "/node/"); ok {
		node, role, _ := strings.Cut(rest, "/")
		id.Node, id.Role = node, Role(role)
		known = slices.Contains(ofNode, id.Role) && nodeName.MatchString(node)
	}
	if !known {
		return ID{}, fmt.Errorf("identity spiffe://%s%.200s; must end in /node/NODE/engine, /node/NODE/nodeagent, /xds, /extproc, /envoy or /operator", domain, path)
	}
	return id, nil
}

// Is accepts the servers of a role, whatever their node.
func Is(role Role) func(ID) error {
	return func(id ID) error {
		if id.Role != role {
			return fmt.Errorf("%s; must be of role %s", id, role)
		}
		return nil
	}
}

// IsEngineOf accepts the engine of one node.
func IsEngineOf(node string) func(ID) error {
	return func(id ID) error {
		if id.Role != Engine || id.Node != node {
			return fmt.Errorf("%s; must be the engine of node %s", id, node)
		}
		return nil
	}
}
