//go:build kube

package kubernetes

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// role is a Role, or a ClusterRole, which has no namespace.
type role struct {
	Metadata struct{ Name, Namespace string }
	Rules    []struct {
		APIGroups []string
		Resources []string
		Verbs     []string
	}
}

// right returns "account verb resource.group", with " in namespace" where there is one.
func right(account, verb, resource, group, namespace string) string {
	text := strings.TrimSuffix(account+" "+verb+" "+resource+"."+group, ".")
	if namespace != "" {
		text += " in " + namespace
	}
	return text
}

// mayOf returns the rights that the roles of the installations in a namespace give. Each
// role there has its account's name; one of the whole cluster, or in another namespace, has
// the installation's namespace before it.
func mayOf(t *testing.T, ns string) []string {
	t.Helper()
	var all []string
	text := kubectl(t, "get", "roles,clusterroles", "-A", "-l", "app.kubernetes.io/name=millrace", "-o", "json")
	for _, r := range rig.Decode[struct{ Items []role }](t, []byte(text)).Items {
		account, elsewhere := strings.CutPrefix(r.Metadata.Name, ns+"-")
		if !elsewhere && r.Metadata.Namespace != ns {
			continue // of another installation
		}
		for _, rule := range r.Rules {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						all = append(all, right(account, verb, resource, group, r.Metadata.Namespace))
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
		Resource, Subresource, APIGroup, Namespace string
	}
	ResponseStatus struct{ Code int }
}

// didOf returns what the accounts of a namespace did, as mayOf names it, and what they
// were forbidden. A program asks once for discovery and its own rights, which all may. What
// is applied and was not there takes the right to create it, too.
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
		verbs := []string{e.Verb}
		if e.Verb == "patch" && e.ResponseStatus.Code == 201 {
			verbs = append(verbs, "create")
		}
		for _, verb := range verbs {
			did = append(did, right(account, verb, resource, e.ObjectRef.APIGroup, e.ObjectRef.Namespace))
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(did)
	return slices.Compact(did), refused
}

// streamed returns the right that client-go uses instead of one to list: it has the list
// come on the watch, and falls back to a list where the API server can't do that.
func streamed(right string) string { return strings.Replace(right, " list ", " watch ", 1) }

// otherKinds are objects of the kinds besides Model, so that all have a status.
const otherKinds = `apiVersion: millrace.dev/v1alpha1
kind: Endpoints
metadata: {name: elsewhere}
spec: {endpoints: [{address: "192.0.2.99:8000", models: [elsewhere]}]}
---
apiVersion: millrace.dev/v1alpha1
kind: Policy
metadata: {name: default}
spec: {}
`

// rightsUsed prints what each account of a namespace may, and compares it with the audit
// log: nothing that was asked is forbidden, and nothing that may be asked is not.
func rightsUsed(t *testing.T, ns string) {
	t.Helper()
	apply(t, in(ns, otherKinds))
	for _, account := range strings.Fields(kubectl(t, "get", "serviceaccounts", "-n", ns, "-o", "jsonpath={.items[*].metadata.name}")) {
		t.Logf("%s:\n%s", account, kubectl(t, "auth", "can-i", "--list", "-n", ns, "--as", "system:serviceaccount:"+ns+":"+account))
	}
	may := mayOf(t, ns)
	rig.Wait(t, time.Minute, "every right is used", func() error {
		did, refused := didOf(t, ns)
		if len(refused) > 0 {
			return rig.Final(fmt.Errorf("forbidden: %q", refused))
		}
		var unused []string
		for _, right := range may {
			if !slices.Contains(did, right) && !slices.Contains(did, streamed(right)) {
				unused = append(unused, right)
			}
		}
		if len(unused) > 0 {
			return fmt.Errorf("unused: %q; did %q", unused, did)
		}
		return nil
	})
	t.Logf("%d rights, all used (lists come on watches): %q", len(may), may)
}
