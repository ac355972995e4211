package fleet

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/wire"
)

// pooledWorld is Pods that answer, and the pickers of two pools and of both together.
type pooledWorld struct {
	*world
	pools   *Pools
	pickers []*world
}

// newPools returns n pools of a world, and one more table if there are several.
func newPools(t *testing.T, n int, file string) *pooledWorld {
	t.Helper()
	w := &pooledWorld{world: &world{pages: map[string]string{}, errs: map[string]error{}, asked: map[string]int{}}}
	o := PoolsOptions{File: file, Get: w.get, Load: func(string) (pick.Counter, error) { return counter{}, nil }}
	for range n + min(n-1, 1) {
		p := new(world)
		w.pickers = append(w.pickers, p)
		o.Pickers = append(o.Pickers, p)
	}
	pools, err := NewPools(o, slog.New(slog.NewTextHandler(io.Discard, nil)), prometheus.NewPedanticRegistry())
	if err != nil {
		t.Fatal(err)
	}
	w.pools = pools
	return w
}

type counter struct{}

func (counter) Count(*openai.Request) (int, string) { return 1, pick.Certain }

// serves makes the engine at an address a vLLM of some models.
func (w *pooledWorld) serves(address string, models ...string) {
	w.set(func() {
		w.pages["http://"+address+"/metrics"] = "vllm:num_requests_running 0\n"
		w.pages["http://"+address+"/v1/models"] = `{"data":[{"id":"` + strings.Join(models, `"},{"id":"`) + `"}]}`
	})
}

// bubble runs n pools in a bubble, with f beside them.
func bubble(t *testing.T, n int, file string, f func(t *testing.T, w *pooledWorld)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newPools(t, n, file)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.pools.Run(ctx) }()
		f(t, w)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// settle waits until what was changed is taken in, and Pods have answered.
func settle() {
	time.Sleep(5 * time.Second)
	synctest.Wait()
}

func podAt(name, ip, app string) inventory.Pod {
	return inventory.Pod{Namespace: "ns", Name: name, UID: "uid-" + name, IP: ip, Ready: true, Labels: map[string]string{"app": app, "all": "1"}}
}

func poolNamed(name string, selector ...string) Pool {
	return Pool{Exists: true, Pool: inventory.Pool{
		Namespace: "ns", Name: name, Ports: []int{80}, Selector: map[string]string{selector[0]: selector[1]},
		Picker: inventory.Picker{Service: "epp-" + name, Port: 9002},
	}}
}

// listed shows a table: its models with their endpoints.
func listed(t *pick.Table) map[string]string {
	all := map[string]string{}
	for m := range t.All() {
		var names []string
		for _, e := range m.Endpoints {
			names = append(names, strings.TrimSuffix(e.Address, ":80"))
		}
		all[m.Name] = strings.Join(names, " ")
	}
	return all
}

// TestPoolsHaveTablesOfTheirOwn divides Pods among pools, of which one may be in two, and
// models among Pods. Who does not say what it serves serves everything.
func TestPoolsHaveTablesOfTheirOwn(t *testing.T) {
	bubble(t, 2, "", func(t *testing.T, w *pooledWorld) {
		w.serves("10.0.0.1:80", "m", "lora")
		w.serves("10.0.0.2:80", "n")
		w.set(func() { w.pages["http://10.0.0.3:80/health"] = "ok" })
		first := poolNamed("first", "app", "a")
		first.Objectives = map[string]int{"fast": 3, "slow": -1, "usual": 0}
		first.Rewrites = []config.Rewrite{{Model: "alias", To: []config.RewriteTarget{{Model: "m", Weight: 1}, {Model: "unknown", Weight: 2}}}}
		w.pools.Set(&Cluster{
			Pools: []Pool{first, poolNamed("second", "all", "1")},
			Pods:  []inventory.Pod{podAt("a", "10.0.0.1", "a"), podAt("b", "10.0.0.2", "b"), podAt("c", "10.0.0.3", "a")},
		})
		settle()
		want := []map[string]string{
			{"ns/first": "10.0.0.1 10.0.0.3", "m": "10.0.0.1 10.0.0.3", "lora": "10.0.0.1 10.0.0.3", "unknown": "10.0.0.1 10.0.0.3"},
			{"ns/second": "10.0.0.1 10.0.0.2 10.0.0.3", "m": "10.0.0.1 10.0.0.3", "lora": "10.0.0.1 10.0.0.3", "n": "10.0.0.2 10.0.0.3"},
			{"pools": "10.0.0.1 10.0.0.2 10.0.0.3", "m": "10.0.0.1 10.0.0.3", "lora": "10.0.0.1 10.0.0.3", "n": "10.0.0.2 10.0.0.3", "unknown": "10.0.0.1 10.0.0.2 10.0.0.3"},
		}
		for i, p := range w.pickers {
			if diff := cmp.Diff(want[i], listed(p.table())); diff != "" {
				t.Errorf("table %d (-want +got):\n%s", i, diff)
			}
		}
		one, two := w.pickers[0].table(), w.pickers[1].table()
		if one.Models["m"].Endpoints[0].Live != two.Models["m"].Endpoints[0].Live {
			t.Error("a Pod of two pools has two loads")
		}
		if diff := cmp.Diff(map[string]string{"fast": wire.Critical, "slow": wire.Sheddable, "usual": wire.Standard}, one.Policy.Objectives); diff != "" {
			t.Errorf("objectives (-want +got):\n%s", diff)
		}
		if len(two.Policy.Objectives) != 0 || two.Policy.Rewrites["alias"] != nil || one.Policy.Rewrites["alias"] == nil {
			t.Error("what is the first pool's is the second one's")
		}
		if i, ok := w.pools.Named("ns/second"); i != 1 || !ok {
			t.Errorf("ns/second is %d, %v", i, ok)
		}
	})
}

// TestReplacedPodsInheritNothing forgets what was at an address when another Pod has it.
func TestReplacedPodsInheritNothing(t *testing.T) {
	bubble(t, 1, "", func(t *testing.T, w *pooledWorld) {
		w.serves("10.0.0.1:80", "m")
		pools := []Pool{poolNamed("p", "all", "1")}
		w.pools.Set(&Cluster{Pools: pools, Pods: []inventory.Pod{podAt("a", "10.0.0.1", "a")}})
		settle()
		before := w.pickers[0].table().Models["m"].Endpoints[0]
		r := before.Reserve(100, 100)
		before.ReportFromAnswer(pick.Report{Requests: 9, KV: 0.9}, time.Now())

		// The same Pod again, of which something else has changed.
		same := podAt("a", "10.0.0.1", "a")
		same.Labels["x"] = "y"
		w.pools.Set(&Cluster{Pools: pools, Pods: []inventory.Pod{same}})
		settle()
		if e := w.pickers[0].table().Models["m"].Endpoints[0]; e.Live != before.Live || e.KV != before.KV {
			t.Error("a Pod whose labels have changed is forgotten")
		}

		w.serves("10.0.0.1:80", "other")
		next := podAt("a", "10.0.0.1", "a") // of a StatefulSet: the same name, too
		next.UID = "uid-2"
		w.pools.Set(&Cluster{Pools: pools, Pods: []inventory.Pod{next}})
		time.Sleep(gather)
		synctest.Wait()
		e := w.pickers[0].table().Any.Endpoints[0]
		n, _ := e.InFlight()
		if e.Live == before.Live || e.KV.ID() == before.KV.ID() || n != 0 {
			t.Error("the next Pod has the load or the cache of the one before")
		}
		settle()
		if diff := cmp.Diff(map[string]string{"ns/p": "10.0.0.1", "other": "10.0.0.1"}, listed(w.pickers[0].table())); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		r.Release() // of the one before: it is nobody's any more
		if n, _ := w.pickers[0].table().Any.Endpoints[0].InFlight(); n != 0 {
			t.Errorf("%d requests in flight at the next Pod", n)
		}
	})
}

// TestChangesOfPodsAreSeenAtOnce takes a change in within the time that changes are
// gathered.
func TestChangesOfPodsAreSeenAtOnce(t *testing.T) {
	bubble(t, 1, "", func(t *testing.T, w *pooledWorld) {
		pools := []Pool{poolNamed("p", "all", "1")}
		var pods []inventory.Pod
		check := func(what string, want int) {
			t.Helper()
			w.pools.Set(&Cluster{Pools: pools, Pods: slices.Clone(pods)})
			time.Sleep(gather)
			synctest.Wait()
			if got := len(w.pickers[0].table().Any.Endpoints); got != want {
				t.Errorf("%s: %d endpoints, want %d", what, got, want)
			}
		}
		check("no Pods", 0)
		pods = append(pods, podAt("a", "10.0.0.1", "a"), podAt("b", "10.0.0.2", "b"))
		check("two Pods", 2)
		pods[0].Ready = false
		check("one is not Ready any more", 1)
		pods[0].Ready, pods[1].Terminating = true, true
		check("it is Ready again, the other one terminates", 1)
		pools = []Pool{poolNamed("p", "app", "b")}
		check("another selector", 0)
		pools = []Pool{{Pool: inventory.Pool{Namespace: "ns", Name: "p"}}}
		check("the pool is deleted", 0)
		if codes := w.codes(); codes != "pool-missing" {
			t.Errorf("conditions %q", codes)
		}
		pools = []Pool{poolNamed("p", "all", "1")}
		pools[0].Ports = []int{80, 81}
		check("it is there again, with two ports", 2)
		var many []inventory.Pod
		for i := range 1000 {
			many = append(many, podAt(fmt.Sprint(i), fmt.Sprintf("10.0.%d.%d", i/250, i%250+1), "a"))
		}
		pods = many
		check("a thousand at once", 2000)
	})
}

func (w *pooledWorld) codes() string {
	var all []string
	for _, c := range w.pools.Conditions() {
		all = append(all, c.Code)
	}
	return strings.Join(all, " ")
}

// TestPodsAreAskedUntilTheyAnswer learns what a Pod serves when it answers, and again when
// that changes.
func TestPodsAreAskedUntilTheyAnswer(t *testing.T) {
	bubble(t, 1, "", func(t *testing.T, w *pooledWorld) {
		w.set(func() { w.errs["10.0.0.1:80"] = scrape.ErrGone })
		w.pools.Set(&Cluster{Pools: []Pool{poolNamed("p", "all", "1")}, Pods: []inventory.Pod{podAt("a", "10.0.0.1", "a")}})
		settle()
		if diff := cmp.Diff(map[string]string{"ns/p": "10.0.0.1"}, listed(w.pickers[0].table())); diff != "" {
			t.Errorf("of one that does not answer (-want +got):\n%s", diff)
		}
		w.serves("10.0.0.1:80", "m")
		w.set(func() { delete(w.errs, "10.0.0.1:80") })
		time.Sleep(askMost + askMost/8)
		settle()
		if m := w.pickers[0].table().Models["m"]; m == nil || w.pickers[0].table().Default != m {
			t.Errorf("it answers, and is known as %v", listed(w.pickers[0].table()))
		}
		w.set(func() {
			w.pages["http://10.0.0.1:80/metrics"] += "vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"new\",waiting_lora_adapters=\"\"} 1\n"
		})
		w.serves2("10.0.0.1:80", "m", "new")
		time.Sleep(askAgain + askAgain/8)
		settle()
		if w.pickers[0].table().Models["new"] == nil {
			t.Errorf("of a new adapter nobody knows: %v", listed(w.pickers[0].table()))
		}
	})
}

// serves2 changes the models alone.
func (w *pooledWorld) serves2(address string, models ...string) {
	w.set(func() {
		w.pages["http://"+address+"/v1/models"] = `{"data":[{"id":"` + strings.Join(models, `"},{"id":"`) + `"}]}`
	})
}

const poolsText = `
apiVersion: millrace.dev/v1alpha1
kind: Policy
metadata: {name: default}
spec:
  sessions: {header: x-chat}
  flow: {gatewayTimeout: 30s}
`

func TestPoolsReadTheirFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.yaml")
	write(t, path, poolsText)
	bubble(t, 1, path, func(t *testing.T, w *pooledWorld) {
		w.pools.Set(&Cluster{Pools: []Pool{poolNamed("p", "all", "1")}})
		settle()
		p := w.pickers[0].table().Policy
		if p.SessionHeader != "x-chat" || p.Flow.GatewayTimeout != 30*time.Second || !p.Picker || p.Cookies != nil {
			t.Errorf("policy %+v", p)
		}
		write(t, path, strings.Replace(poolsText, "x-chat", "x-other", 1))
		settle()
		if p := w.pickers[0].table().Policy; p.SessionHeader != "x-other" {
			t.Errorf("the file has changed, and the header is %q", p.SessionHeader)
		}
		write(t, path, "kind: Nothing")
		settle()
		if p := w.pickers[0].table().Policy; p.SessionHeader != "x-other" || !strings.Contains(w.codes(), wire.ConfigRefused) {
			t.Errorf("the file is bad: header %q, conditions %q", p.SessionHeader, w.codes())
		}
	})
	if err := CheckPools(path); err == nil {
		t.Error("a bad file was taken")
	}
	write(t, path, poolsText+"---\napiVersion: millrace.dev/v1alpha1\nkind: Endpoints\nmetadata: {name: e}\nspec: {endpoints: [{address: \"10.0.0.1:80\", models: [m]}]}\n")
	if err := CheckPools(path); err == nil || !strings.Contains(err.Error(), "Pods") {
		t.Errorf("endpoints beside pools: %v", err)
	}
}

// TestAskedAs finds the pool whose Service was asked.
func TestAskedAs(t *testing.T) {
	w := newPools(t, 3, "")
	third := poolNamed("third", "all", "1")
	third.Picker = inventory.Picker{Service: "epp-first", Port: 9004}
	w.pools.Set(&Cluster{Pools: []Pool{poolNamed("first", "a", "b"), poolNamed("second", "a", "b"), third}})
	tests := []struct {
		host string
		port int
		want int // below 0: nobody knows
	}{
		{"epp-first.ns.svc.cluster.local", 9002, 0}, {"epp-second.ns", 9002, 1}, {"epp-second.ns.svc", 0, 1},
		{"epp-first.ns.svc.cluster.local", 9004, 2}, {"epp-first.ns.svc.cluster.local", 0, -1}, {"epp-first.other.svc", 9002, -1},
		{"epp-first", 9002, -1}, {"", 0, -1}, {"epp-second.ns.svc", 1, -1},
	}
	for _, tt := range tests {
		if got, ok := w.pools.AskedAs(tt.host, tt.port); ok != (tt.want >= 0) || ok && got != tt.want {
			t.Errorf("AskedAs(%q, %d) = %d, %v; want %d", tt.host, tt.port, got, ok, tt.want)
		}
	}
}

// TestPlacedElsewhere takes in what another replica has sent to a Pod that is there.
func TestPlacedElsewhere(t *testing.T) {
	bubble(t, 1, "", func(t *testing.T, w *pooledWorld) {
		w.serves("10.0.0.1:80", "m")
		w.pools.Set(&Cluster{Pools: []Pool{poolNamed("p", "app", "a")}, Pods: []inventory.Pod{podAt("a", "10.0.0.1", "a")}})
		settle()
		all := map[string]prefix.Placement{
			"10.0.0.1:80": {Chain: []prefix.Link{{Key: 5, Tokens: 50}}, Name: 6, Tokens: 60},
			"10.0.0.2:80": {Name: 7, Tokens: 70},
		}
		for address, what := range all {
			w.pools.Placed(1, func(int) (string, prefix.Placement) { return address, what })
		}
		table := w.pickers[0].table()
		index, cache := table.Policy.Prefixes, table.Models["m"].Endpoints[0].KV
		for key, tokens := range map[session.Key]uint32{5: 50, 6: 60} {
			if m, ok := index.Get(key, time.Now()); !ok || m.Cache != cache.ID() || m.Tokens != tokens {
				t.Errorf("key %d: %+v, %v", key, m, ok)
			}
		}
		if m, ok := index.Get(7, time.Now()); ok {
			t.Errorf("at a Pod that is not there: %+v", m)
		}
	})
}
