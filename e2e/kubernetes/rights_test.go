//go:build kube

package kubernetes

import (
	"bufio"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// role is a Role or ClusterRole.
type role struct {
	Metadata struct{ Name string }
	Rules    []struct {
		APIGroups []string
		Resources []string
		Verbs     []string
	}
}

// mayOf returns the rights that an installation's roles give, as "account verb resource.group".
// Each role has its account's name; that of the whole cluster begins with the namespace.
func mayOf(t *testing.T, ns string) []string {
	t.Helper()
	var all []string
	for _, kind := range []string{"roles", "clusterroles"} {
		text := kubectl(t, "get", kind, "-n", ns, "-l", "app.kubernetes.io/instance=millrace", "-o", "json")
		for _, r := range rig.Decode[struct{ Items []role }](t, []byte(text)).Items {
			account, ofCluster := strings.CutPrefix(r.Metadata.Name, ns+"-")
			if kind == "clusterroles" && !ofCluster {
				continue // of another installation
			}
			for _, rule := range r.Rules {
				for _, group := range rule.APIGroups {
					for _, resource := range rule.Resources {
						for _, verb := range rule.Verbs {
							all = append(all, strings.TrimSuffix(account+" "+verb+" "+resource+"."+group, "."))
						}
					}
				}
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// event is what the API server's audit log has of a request.
type event struct {
	Verb       string
	RequestURI string
	User       struct{ Username string }
	ObjectRef  struct {
		Resource, Subresource, APIGroup string
	}
	ResponseStatus struct{ Code int }
}

// didOf returns what the accounts of a namespace did, as mayOf names it, and what they
// were forbidden. A program asks once for discovery and its own rights, which all may.
func didOf(t *testing.T, ns string) (did, refused []string) {
	t.Helper()
	f, err := os.Open(kube.AuditLog())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue // the last line is being written
		}
		account, ours := strings.CutPrefix(e.User.Username, "system:serviceaccount:"+ns+":")
		if !ours {
			continue
		}
		if e.ResponseStatus.Code == 403 {
			refused = append(refused, account+" "+e.Verb+" "+e.RequestURI)
		}
		resource := e.ObjectRef.Resource
		if e.ObjectRef.Subresource != "" {
			resource += "/" + e.ObjectRef.Subresource
		}
		did = append(did, strings.TrimSuffix(account+" "+e.Verb+" "+resource+"."+e.ObjectRef.APIGroup, "."))
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(did)
	return slices.Compact(did), refused
}
