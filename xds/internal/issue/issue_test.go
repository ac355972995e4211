package issue

import (
	"strings"
	"testing"

	"millrace.dev/millrace/internal/mtls"
)

func TestParseAccounts(t *testing.T) {
	a, err := ParseAccounts("ours/r-engine=engine+nodeagent,ours/r-extproc=extproc,apps/client=envoy")
	if err != nil || len(a) != 3 || len(a["ours/r-engine"]) != 2 {
		t.Errorf("ParseAccounts() = %v, %v", a, err)
	}
	for text, want := range map[string]string{
		"":                       "must be NAMESPACE/NAME=ROLE",
		"engine=engine":          "must be NAMESPACE/NAME=ROLE",
		"ours/engine":            "must be NAMESPACE/NAME=ROLE",
		"ours/a/b=engine":        "must be NAMESPACE/NAME=ROLE",
		"ours:a/b=engine":        "must be NAMESPACE/NAME=ROLE",
		"/engine=engine":         "must be NAMESPACE/NAME=ROLE",
		"ours/engine=":           `role ""; must be one of`,
		"ours/engine=root":       `role "root"; must be one of`,
		"ours/x=xds":             "xds signs its own",
		"ours/e=engine,ours/e=x": "ours/e twice",
		"ours/e=engine+engine":   "role engine twice",
	} {
		if a, err := ParseAccounts(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseAccounts(%q) = %v, %v; want %q", text, a, err, want)
		}
	}
}

// TestGrant says who gets what: what is not the one good case of a role is refused.
func TestGrant(t *testing.T) {
	accounts := Accounts{
		"ours/engine":  {mtls.Engine, mtls.NodeAgent},
		"ours/extproc": {mtls.ExtProc},
		"apps/client":  {mtls.Envoy},
	}
	of := func(user, pod, node string, audiences ...string) Subject {
		return Subject{User: user, Audiences: audiences, Pod: pod, Node: node}
	}
	const sa = "system:serviceaccount:"
	tests := []struct {
		name    string
		subject Subject
		role    mtls.Role
		want    string // identity, or part of the error
	}{
		{"an engine", of(sa+"ours:engine", "p", "node-a", "millrace"), mtls.Engine, "spiffe:///node/node-a/engine"},
		{"its nodeagent", of(sa+"ours:engine", "p", "node-a", "millrace"), mtls.NodeAgent, "spiffe:///node/node-a/nodeagent"},
		{"a node with dots", of(sa+"ours:engine", "p", "ip-10-0-0-1.eu.internal", "millrace"), mtls.Engine, "spiffe:///node/ip-10-0-0-1-eu-internal/engine"},
		{"extproc, whatever its node", of(sa+"ours:extproc", "p", "node-a", "millrace"), mtls.ExtProc, "spiffe:///extproc"},
		{"a client of another namespace that the table has", of(sa+"apps:client", "p", "", "millrace"), mtls.Envoy, "spiffe:///envoy"},
		{"another role", of(sa+"ours:extproc", "p", "node-a", "millrace"), mtls.Engine, "has not role"},
		{"xds", of(sa+"ours:engine", "p", "node-a", "millrace"), mtls.XDS, "has not role"},
		{"an operator", of(sa+"ours:engine", "p", "node-a", "millrace"), mtls.Operator, "has not role"},
		{"no role", of(sa+"ours:engine", "p", "node-a", "millrace"), "", "has not role"},
		{"another namespace", of(sa+"theirs:engine", "p", "node-a", "millrace"), mtls.Engine, "theirs/engine has no role"},
		{"another account", of(sa+"ours:default", "p", "node-a", "millrace"), mtls.Engine, "ours/default has no role"},
		{"the API server's audience", of(sa+"ours:engine", "p", "node-a", "https://kubernetes.default.svc"), mtls.Engine, "another audience"},
		{"an API server without audiences", of(sa+"ours:engine", "p", "node-a"), mtls.Engine, "another audience"},
		{"a person", of("ours:engine", "p", "node-a", "millrace"), mtls.Engine, "of a ServiceAccount"},
		{"a person with a name like one", of("system:serviceaccount:ours/engine", "p", "node-a", "millrace"), mtls.Engine, "of a ServiceAccount"},
		{"more colons", of(sa+"ours:engine:x", "p", "node-a", "millrace"), mtls.Engine, "has no role"},
		{"a token of no Pod", of(sa+"ours:extproc", "", "", "millrace"), mtls.ExtProc, "is not a Pod's"},
		{"a Pod without a node", of(sa+"ours:engine", "p", "", "millrace"), mtls.Engine, "does not name the node"},
		{"a node that is none", of(sa+"ours:engine", "p", "a/b", "millrace"), mtls.Engine, "must end in /node/NODE/engine"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id, err := accounts.Grant(tt.subject, tt.role)
			switch {
			case err == nil && id.String() != tt.want:
				t.Errorf("Grant() = %s; want %s", id, tt.want)
			case err == nil && !strings.HasPrefix(tt.want, "spiffe:"):
				t.Errorf("Grant() = %s; want %s", id, tt.want)
			case err != nil && !strings.Contains(err.Error(), tt.want):
				t.Errorf("Grant() = %v; want %s", err, tt.want)
			}
		})
	}
}
