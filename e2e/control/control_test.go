//go:build kube

// Package control tests several xds in front of a real API server, with nodes and
// gateways that are fakes: what a cluster of containers would take minutes for.
//
// Run by `make test-kube`. Its one rule: xds has no more rights than its Role.
package control

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/cluster"
)

// plane is a control plane of two xds in front of a real API server, with nodes and
// gateways that are fakes.
type plane struct {
	t     *testing.T
	kube  *cluster.Cluster
	xds   []*replica
	nodes []*fakeNode
	subs  []*subscriber
}

const planeNamespace = "millrace"

// account is the rights of xds, as the comment of its package kube has them.
const account = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: xds, namespace: millrace}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: xds, namespace: millrace}
rules:
  - {apiGroups: [millrace.dev], resources: [models, policies, foreignendpoints], verbs: [list, watch]}
  - {apiGroups: [millrace.dev], resources: [models/status, policies/status, foreignendpoints/status], verbs: [patch]}
  - {apiGroups: [""], resources: [pods], verbs: [list, watch, patch]}
  - {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [millrace-xds], verbs: [get, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: xds, namespace: millrace}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: xds}
subjects: [{kind: ServiceAccount, name: xds, namespace: millrace}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: xds}
rules:
  - {apiGroups: [""], resources: [nodes], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: xds}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: xds}
subjects: [{kind: ServiceAccount, name: xds, namespace: millrace}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: millrace}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: millrace-xds, namespace: millrace}
`

func newPlane(t *testing.T, nodes ...string) *plane {
	c, err := cluster.Up(t.Context(), cluster.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Down(); err != nil {
			t.Error(err)
		}
	})
	p := &plane{t: t, kube: c}
	p.kubectl("create", "namespace", planeNamespace)
	p.kubectl("apply", "-f", filepath.Join("..", "..", "manifests", "crds"))
	p.apply(account)
	p.kubectl("wait", "--for=condition=Established", "crd/models.millrace.dev", "crd/policies.millrace.dev", "crd/foreignendpoints.millrace.dev")
	for i, name := range nodes {
		p.addNode(name, i+1)
	}
	p.startXDS()
	return p
}

// addNode makes a node with an engine's Pod that runs, as far as the API server knows.
func (p *plane) addNode(name string, at int) {
	p.apply(fmt.Sprintf(`
apiVersion: v1
kind: Node
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Pod
metadata:
  name: engine-%[1]s
  namespace: millrace
  labels: {app.kubernetes.io/name: millrace, app.kubernetes.io/component: engine}
spec:
  nodeName: %[1]s
  tolerations: [{key: node.kubernetes.io/unschedulable, operator: Exists}]
  containers: [{name: engine, image: none}]
`, name))
	p.kubectl("-n", planeNamespace, "patch", "pod", "engine-"+name, "--subresource=status", "--type=merge", "-p", `{"status":{"phase":"Running"}}`)
	p.nodes = append(p.nodes, newFakeNode(name, at))
}

// startXDS starts two xds with no more rights than they need, and all that talks to them.
func (p *plane) startXDS() {
	token := strings.TrimSpace(p.kubectl("-n", planeNamespace, "create", "token", "xds", "--duration=1h"))
	view := strings.TrimSpace(p.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
	var file struct {
		Clusters json.RawMessage `json:"clusters"`
		Contexts []struct {
			Name    string            `json:"name"`
			Context map[string]string `json:"context"`
		} `json:"contexts"`
	}
	if err := json.Unmarshal([]byte(view), &file); err != nil {
		p.t.Fatal(err)
	}
	context1 := file.Contexts[0].Context
	config := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":%s,"contexts":[{"name":"c","context":{"cluster":%q,"user":"xds"}}],"users":[{"name":"xds","user":{"token":%q}}]}`,
		file.Clusters, context1["cluster"], token)
	dir := p.t.TempDir()
	path := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	p.t.Cleanup(func() { cancel(); tasks.Wait() })
	for i := range 2 {
		name := fmt.Sprint("xds-", i)
		x := newReplica(p.t, name, append(os.Environ(), "KUBECONFIG="+path),
			"-kube", planeNamespace, "-kube-copy", filepath.Join(dir, name+".json"), "-leave", "500ms", "-settle", "8s")
		p.xds = append(p.xds, x)
		for _, n := range p.nodes {
			tasks.Go(func() { n.report(ctx, x.grpc) })
		}
		s := new(subscriber)
		p.subs = append(p.subs, s)
		tasks.Go(func() { s.follow(ctx, x.grpc, "m") })
	}
}

func (p *plane) kubectl(args ...string) string {
	p.t.Helper()
	out, err := p.kube.Kubectl(p.t.Context(), args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

func (p *plane) apply(yaml string) {
	p.t.Helper()
	if _, err := p.kube.Apply(p.t.Context(), yaml); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) model(name, spec string) {
	p.t.Helper()
	p.apply(fmt.Sprintf("apiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: %s, namespace: millrace}\nspec: %s\n", name, spec))
}

// get returns a field of an object.
func (p *plane) get(object, path string) string {
	p.t.Helper()
	return p.kubectl("-n", planeNamespace, "get", object, "-o", "jsonpath="+path)
}

// eventually waits until f returns what is wanted.
func (p *plane) eventually(what, want string, within time.Duration, f func() string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), within)
	defer cancel()
	got := f()
	for got != want {
		if pause(ctx, 100*time.Millisecond); ctx.Err() != nil {
			p.t.Fatalf("%s: %q after %s, want %q", what, got, within, want)
		}
		got = f()
	}
}

// served waits until both xds push these hosts for the model.
func (p *plane) served(what string, within time.Duration, hosts ...string) {
	p.t.Helper()
	want := strings.Join(hosts, " ")
	for i, s := range p.subs {
		if p.xds[i].cmd != nil {
			p.eventually(fmt.Sprintf("%s: xds-%d pushes", what, i), want, within, s.served)
		}
	}
}

func (p *plane) holder() string {
	return p.get("lease/millrace-xds", "{.spec.holderIdentity}")
}

// leader returns the index of the xds that has the lease, and of the other.
func (p *plane) leader() (leads, follows int) {
	p.t.Helper()
	leads = slices.IndexFunc(p.xds, func(x *replica) bool { return x.name == p.holder() })
	if leads < 0 {
		p.t.Fatalf("the lease is that of %q", p.holder())
	}
	return leads, 1 - leads
}

// condition returns a condition as "Status Reason Message".
func (p *plane) condition(object, typ string) string {
	return p.get(object, fmt.Sprintf(`{range .status.conditions[?(@.type=="%s")]}{.status} {.reason} {.message}{end}`, typ))
}

const (
	hostA, hostB, hostC = "198.51.100.1", "198.51.100.2", "198.51.100.3"
)

func TestControlPlaneInACluster(t *testing.T) {
	p := newPlane(t, "node-a", "node-b", "node-c")
	steps := []struct {
		name string
		run  func(p *plane)
	}{
		{"without any model it is ready and serves nothing", nothingDesired},
		{"a model is served, and its status says so", modelIsServed},
		{"scale", scaled},
		{"wrong objects", wrongObjects},
		{"nothing is written at rest", nothingAtRest},
		{"a cordoned node is left first", cordoned},
		{"the leader is killed", leaderKilled},
		{"the API server is away", apiServerAway},
		{"a replica ends in order", endsInOrder},
		{"all models go", modelsGo},
		{"no right is missing, and none is left over", rights},
	}
	for _, s := range steps {
		ok := t.Run(s.name, func(t *testing.T) {
			outer := p.t
			p.t = t
			defer func() { p.t = outer }()
			s.run(p)
		})
		if !ok {
			return // the next ones build upon it
		}
	}
}

func nothingDesired(p *plane) {
	for _, x := range p.xds {
		p.eventually(x.name+" is ready", "200", 20*time.Second, func() string { code, _ := x.readyz(); return fmt.Sprint(code) })
	}
}

func modelIsServed(p *plane) {
	p.model("m", "{weights: m.gguf}")
	p.served("one replica", 10*time.Second, hostA)
	p.kubectl("-n", planeNamespace, "wait", "--for=condition=Ready", "--timeout=10s", "model/m")
	p.eventually("status", "1/1 AllReady 1 1", 5*time.Second, func() string {
		return p.get("model/m", "{.status.ready} {.status.reason} {.status.observedGeneration} {.status.readyReplicas}")
	})
	p.eventually("label of the Pod that serves", "true", 5*time.Second, func() string {
		return p.get("pod/engine-node-a", `{.metadata.labels.serves\.millrace\.dev/m}`)
	})
	if got := p.nodes[0].status.GetAssignment().GetBackend().GetWeights(); got != "/models/m.gguf" {
		p.t.Errorf("weights %q, want those below -models", got)
	}
}

func scaled(p *plane) {
	p.kubectl("-n", planeNamespace, "scale", "model/m", "--replicas=2")
	p.served("two replicas", 10*time.Second, hostA, hostB)
	p.eventually("rows", "m-0 node-a Ready m-1 node-b Ready ", 5*time.Second, func() string {
		return p.get("model/m", "{range .status.rows[*]}{.name} {.nodes[0]} {.state} {end}")
	})
	p.eventually("what scalers read", "2 serves.millrace.dev/m=true", 5*time.Second, func() string {
		return p.get("model/m", "{.status.replicas} {.status.selector}")
	})
	p.kubectl("-n", planeNamespace, "scale", "model/m", "--replicas=4")
	p.eventually("a replica without a node", "False Unplaced m-3: it needs 1 free node, and there is none", 10*time.Second, func() string {
		return p.condition("model/m", "Planned")
	})
	p.kubectl("-n", planeNamespace, "scale", "model/m", "--replicas=2")
	p.served("two replicas again", 10*time.Second, hostA, hostB)
}

func wrongObjects(p *plane) {
	p.model("m", "{weights: m.gguf, replicas: 2, default: true}")
	p.model("other", "{weights: n.gguf, replicas: 0, default: true}")
	p.eventually("a second default", "False Conflict spec.default: true; is already so for the model m", 10*time.Second, func() string {
		return p.condition("model/other", "Accepted")
	})
	p.apply("apiVersion: millrace.dev/v1alpha1\nkind: Policy\nmetadata: {name: default, namespace: millrace}\nspec: {rewrites: [{model: x, to: [{model: nobody}]}]}\n")
	p.eventually("a rewrite to nobody", `False MissingModel spec.rewrites[0].to[0].model: "nobody"; must be the id of a model that is served`, 10*time.Second, func() string {
		return p.condition("policy/default", "Accepted")
	})
	p.kubectl("-n", planeNamespace, "delete", "policy/default", "model/other")
	p.served("all that is good", 10*time.Second, hostA, hostB)
	p.eventually("the good one", "True Valid ", 10*time.Second, func() string { return p.condition("model/m", "Accepted") })
}

// requests returns what xds has asked the API server for, as "verb resource/subresource
// code", from a position of the audit log, and the position of its end.
func (p *plane) requests(from int) (all []string, to int) {
	p.t.Helper()
	b, err := os.ReadFile(p.kube.AuditLog())
	if err != nil {
		p.t.Fatal(err)
	}
	for _, line := range strings.Split(string(b[min(from, len(b)):]), "\n") {
		var e struct {
			Verb string
			User struct{ Username string }
			Ref  struct{ Resource, Subresource string } `json:"objectRef"`
			Code struct{ Code int }                     `json:"responseStatus"`
		}
		if json.Unmarshal([]byte(line), &e) != nil || e.User.Username != "system:serviceaccount:millrace:xds" {
			continue
		}
		what := e.Ref.Resource
		if e.Ref.Subresource != "" {
			what += "/" + e.Ref.Subresource
		}
		all = append(all, fmt.Sprintf("%s %s %d", e.Verb, what, e.Code.Code))
	}
	return all, len(b)
}

func nothingAtRest(p *plane) {
	pause(p.t.Context(), 4*time.Second)
	_, from := p.requests(0)
	pause(p.t.Context(), 5*time.Second)
	all, _ := p.requests(from)
	for _, r := range all {
		if strings.HasPrefix(r, "patch ") {
			p.t.Errorf("at rest: %s", r)
		}
	}
}

func cordoned(p *plane) {
	for _, s := range p.subs {
		s.reset()
	}
	p.kubectl("cordon", "node-a")
	p.served("the replica has moved", 20*time.Second, hostB, hostC)
	for i, s := range p.subs {
		if s.fewest() < 2 {
			p.t.Errorf("xds-%d has pushed %d hosts meanwhile, want 2 at least", i, s.fewest())
		}
	}
	p.eventually("label of the Pod that serves no more", "", 10*time.Second, func() string {
		return p.get("pod/engine-node-a", `{.metadata.labels.serves\.millrace\.dev/m}`)
	})
	p.kubectl("uncordon", "node-a")
}

func leaderKilled(p *plane) {
	leads, follows := p.leader()
	for _, s := range p.subs {
		s.reset()
	}
	p.xds[leads].end(syscall.SIGKILL)
	p.eventually("the other leads", p.xds[follows].name, 30*time.Second, p.holder)
	if got := p.subs[follows].fewest(); got < 2 {
		p.t.Errorf("%d hosts were pushed meanwhile, want 2 at least", got)
	}
	p.kubectl("-n", planeNamespace, "scale", "model/m", "--replicas=3")
	p.served("the new leader directs", 20*time.Second, hostA, hostB, hostC)
	p.xds[leads].start()
	p.served("both push the same", 20*time.Second, hostA, hostB, hostC)
	p.kubectl("-n", planeNamespace, "wait", "--for=jsonpath={.status.ready}=3/3", "--timeout=20s", "model/m")
}

func apiServerAway(p *plane) {
	leads, follows := p.leader()
	starts := func() (n int) {
		for _, node := range p.nodes {
			n += node.started()
		}
		return n
	}
	before := starts()
	for _, s := range p.subs {
		s.reset()
	}
	p.kube.StopAPI()
	pause(p.t.Context(), 17*time.Second) // the lease is over
	for _, x := range []int{leads, follows} {
		p.xds[x].end(syscall.SIGKILL)
		p.xds[x].start()
		p.eventually(p.xds[x].name+" is ready without the API server", "200", 30*time.Second, func() string {
			code, _ := p.xds[x].readyz()
			return fmt.Sprint(code)
		})
		if _, body := p.xds[x].readyz(); !strings.Contains(body, "desired-from-copy") {
			p.t.Errorf("%s does not say that it works from a copy: %s", p.xds[x].name, body)
		}
	}
	p.served("as before", 10*time.Second, hostA, hostB, hostC)
	for i, s := range p.subs {
		if s.fewest() < 3 {
			p.t.Errorf("xds-%d has pushed %d hosts meanwhile, want 3", i, s.fewest())
		}
	}
	if got := starts(); got != before {
		p.t.Errorf("%d processes were started while the API server was away", got-before)
	}
	if err := p.kube.StartAPI(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	p.kubectl("-n", planeNamespace, "scale", "model/m", "--replicas=2")
	p.served("changes are taken again", time.Minute, hostB, hostC) // where they have moved
	p.kubectl("-n", planeNamespace, "wait", "--for=jsonpath={.status.ready}=2/2", "--timeout=60s", "model/m")
}

func endsInOrder(p *plane) {
	leads, follows := p.leader()
	began := time.Now()
	p.xds[leads].end(syscall.SIGTERM)
	p.eventually("the other leads", p.xds[follows].name, 10*time.Second, p.holder)
	p.t.Logf("the lease changed hands %s after SIGTERM", time.Since(began).Round(time.Millisecond))
	p.xds[leads].start()
	p.served("both push the same", 20*time.Second, hostB, hostC)
}

func modelsGo(p *plane) {
	p.kubectl("-n", planeNamespace, "delete", "model/m")
	p.served("nothing", 20*time.Second)
	p.eventually("nodes are free", "true", 10*time.Second, func() string {
		free := true
		for _, n := range p.nodes {
			n.mu.Lock()
			free = free && n.status.GetAssignment() == nil
			n.mu.Unlock()
		}
		return fmt.Sprint(free)
	})
}

// rights compares the audit log with the Role.
func rights(p *plane) {
	all, _ := p.requests(0)
	used := map[string]bool{}
	for _, r := range all {
		verb, rest, _ := strings.Cut(r, " ")
		what, code, _ := strings.Cut(rest, " ")
		if code == "403" {
			p.t.Errorf("forbidden: %s %s", verb, what)
		}
		used[verb+" "+what] = true
	}
	want := []string{
		"get leases", "list foreignendpoints", "list models", "list nodes", "list pods", "list policies", "patch models/status", "patch pods",
		"patch policies/status", "update leases", "watch foreignendpoints", "watch models", "watch nodes", "watch pods", "watch policies",
	}
	for _, w := range want {
		if !used[w] {
			p.t.Errorf("never used: %s", w)
		}
		delete(used, w)
	}
	for u := range used {
		p.t.Errorf("used, and not in the comment of xds/internal/kube: %s", u)
	}
}
