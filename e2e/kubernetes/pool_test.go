//go:build kube

package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"millrace.dev/millrace/e2e/cluster"
	"millrace.dev/millrace/e2e/rig"
)

// extension is the module of the inference extension with its definitions and the last of
// its charts.
const extension = "sigs.k8s.io/gateway-api-inference-extension@v1.5.0"

// moduleFolder is where a module's files are.
func moduleFolder(t testing.TB, module string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", module).Output()
	if err != nil {
		t.Fatalf("go mod download %s: %v\n%s", module, err, out)
	}
	return rig.Decode[struct{ Dir string }](t, out).Dir
}

// picking is a picker of this machine that follows a pool of an API server without nodes:
// its Pods are what the test says.
type picking struct {
	api   *cluster.Cluster
	admin string
	port  int // of engines
	picks extproc.ExternalProcessorClient

	// mu guards the fields below.
	mu    sync.Mutex
	first map[string]time.Time // when an address was named first, since it was forgotten
	last  map[string]time.Time // when last
}

const poolObject = `
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: p}
spec: {selector: {matchLabels: {app: m}}, targetPorts: [{number: %d}], endpointPickerRef: {name: epp, port: {number: 9002}}}
`

// engine answers at a loopback address, as an engine of which nothing is known does.
func (p *picking) engine(t *testing.T, ip string) {
	t.Helper()
	ln, err := net.Listen("tcp", p.host(ip))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
}

// host is an engine's endpoint.
func (p *picking) host(ip string) string { return fmt.Sprintf("%s:%d", ip, p.port) }

func newPicking(t *testing.T) *picking {
	t.Helper()
	api, err := cluster.Up(t.Context(), cluster.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := api.Down(); err != nil {
			t.Error(err)
		}
	})
	ports := rig.MustPorts(t, 3)
	p := &picking{api: api, port: ports[2], first: map[string]time.Time{}, last: map[string]time.Time{}}
	p.kubectl(t, "apply", "--server-side", "-f", filepath.Join(moduleFolder(t, extension), "config", "crd", "bases"))
	p.kubectl(t, "create", "serviceaccount", "default")
	rig.Wait(t, time.Minute, "pools can be made", func() error {
		_, err := api.Apply(t.Context(), fmt.Sprintf(poolObject, p.port))
		return err
	})
	p.admin = rig.Address(ports[1])
	p.picks = p.start(t, rig.Address(ports[0]), p.admin)
	rig.Wait(t, time.Minute, "the pool is known", func() error { return rig.HasCondition(p.admin, "pool-empty") })
	return p
}

// start starts a picker that listens at an address.
func (p *picking) start(t *testing.T, listen, admin string, env ...string) extproc.ExternalProcessorClient {
	t.Helper()
	program, err := rig.Program("extproc")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-pool", "default/p", "-listen", listen, "-metrics", admin)
	cmd.Env = append(append(os.Environ(), "KUBECONFIG="+p.api.Kubeconfig()), env...)
	rig.Start(t, "extproc", cmd)
	conn, err := grpc.NewClient(listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return extproc.NewExternalProcessorClient(conn)
}

func (p *picking) kubectl(t *testing.T, args ...string) {
	t.Helper()
	if _, err := p.api.Kubectl(t.Context(), args...); err != nil {
		t.Fatal(err)
	}
}

// request sends JSON to the API server.
func (p *picking) request(t *testing.T, method, path string, body any) {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	kind := "application/json"
	if method == http.MethodPatch {
		kind = "application/merge-patch+json"
	}
	if _, err := p.api.API(t.Context(), method, "/api/v1/namespaces/default/pods"+path, kind, strings.NewReader(string(b))); err != nil {
		t.Fatal(err)
	}
}

type object = map[string]any

// create makes a Pod that is not Ready; nobody runs it.
func (p *picking) create(t *testing.T, name string) {
	t.Helper()
	p.request(t, http.MethodPost, "", object{
		"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": name, "labels": object{"app": "m"}},
		"spec": object{"nodeName": "nowhere", "containers": []any{object{"name": "c", "image": "none"}}},
	})
}

// mark says whether a Pod is Ready, as a kubelet does.
func (p *picking) mark(t *testing.T, name, ip string, ready bool) {
	t.Helper()
	status := map[bool]string{true: "True", false: "False"}[ready]
	p.request(t, http.MethodPatch, "/"+name+"/status", object{"status": object{
		"phase": "Running", "podIP": ip, "podIPs": []any{object{"ip": ip}}, "conditions": []any{object{"type": "Ready", "status": status}},
	}})
}

// pick asks for a decision and notes who is named.
func (p *picking) pick(ctx context.Context) ([]string, error) {
	hosts, err := decide(ctx, p.picks, "GET", "/x", "")
	if err != nil {
		return nil, err
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, host := range hosts {
		p.last[host] = now
		if _, ok := p.first[host]; !ok {
			p.first[host] = now
		}
	}
	return hosts, nil
}

// decide asks a picker who is to answer a request, as Envoy does that buffers its body, and
// returns whom it names.
func decide(ctx context.Context, picks extproc.ExternalProcessorClient, method, path, body string) ([]string, error) {
	st, err := picks.Process(ctx)
	if err != nil {
		return nil, err
	}
	err = st.Send(&extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_RequestHeaders{RequestHeaders: &extproc.HttpHeaders{
		EndOfStream: body == "",
		Headers: &core.HeaderMap{Headers: []*core.HeaderValue{
			{Key: ":method", RawValue: []byte(method)}, {Key: ":path", RawValue: []byte(path)}, {Key: "content-type", RawValue: []byte("application/json")},
		}},
	}}})
	if err != nil {
		return nil, err
	}
	m, err := st.Recv()
	if err == nil && body != "" {
		err = st.Send(&extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_RequestBody{RequestBody: &extproc.HttpBody{Body: []byte(body), EndOfStream: true}}})
		if err == nil {
			m, err = st.Recv()
		}
	}
	_ = st.CloseSend()
	if err != nil {
		return nil, err
	}
	answer := m.GetRequestHeaders().GetResponse()
	if body != "" {
		answer = m.GetRequestBody().GetResponse()
	}
	for _, h := range answer.GetHeaderMutation().GetSetHeaders() {
		if h.GetHeader().GetKey() == "x-gateway-destination-endpoint" {
			return strings.Split(string(h.GetHeader().GetRawValue()), ","), nil
		}
	}
	return nil, nil
}

// picksOn asks for decisions, one after the other, until the test ends.
func (p *picking) picksOn(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if _, err := p.pick(ctx); err != nil && ctx.Err() == nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (p *picking) seen(of map[string]time.Time, host string) (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := of[host]
	return at, ok
}

// TestPoolFollowsPods measures how soon a Pod that becomes Ready is named, and how long one
// that terminates still is.
func TestPoolFollowsPods(t *testing.T) {
	const (
		rounds = 100
		soon   = time.Second
		gone   = 100 * time.Millisecond

		standing = "127.9.0.1"
	)
	p := newPicking(t)
	p.engine(t, standing)
	for i := range 10 {
		p.engine(t, fmt.Sprintf("127.9.1.%d", i+1))
	}
	p.create(t, "standing")
	p.mark(t, "standing", standing, true)
	rig.Wait(t, 10*time.Second, "the first Pod is named", func() error {
		if hosts, err := p.pick(t.Context()); err != nil || len(hosts) != 1 {
			return fmt.Errorf("%v: %v", hosts, err)
		}
		return nil
	})
	p.picksOn(t)
	var ready, ended []time.Duration
	for i := range rounds {
		// Addresses come again every ten Pods, each time at another Pod.
		name, ip := fmt.Sprintf("pod-%d", i), fmt.Sprintf("127.9.1.%d", i%10+1)
		host := p.host(ip)
		p.create(t, name)
		p.mu.Lock()
		delete(p.first, host)
		p.mu.Unlock()
		began := time.Now()
		p.mark(t, name, ip, true)
		rig.Wait(t, 10*time.Second, name+" is named", func() error {
			if _, ok := p.seen(p.first, host); !ok {
				return fmt.Errorf("%s was not named", host)
			}
			return nil
		})
		at, _ := p.seen(p.first, host)
		ready = append(ready, at.Sub(began))
		p.request(t, http.MethodDelete, "/"+name, object{"gracePeriodSeconds": 30})
		deleted := time.Now() // it terminates: the API server says so
		rig.Wait(t, 10*time.Second, name+" is not named any more", func() error {
			at, _ := p.seen(p.last, host)
			if other, _ := p.seen(p.last, p.host(standing)); other.Sub(at) < 2*gone {
				return fmt.Errorf("%s was named %v ago", host, other.Sub(at))
			}
			return nil
		})
		at, _ = p.seen(p.last, host)
		ended = append(ended, max(0, at.Sub(deleted)))
		p.request(t, http.MethodDelete, "/"+name, object{"gracePeriodSeconds": 0})
	}
	slices.Sort(ready)
	slices.Sort(ended)
	t.Logf("K3: Ready until named: p50 %v, p99 %v; terminating until named last: p50 %v, max %v", ready[rounds/2], ready[rounds*99/100], ended[rounds/2], ended[rounds-1])
	if got := ready[rounds*99/100]; got > soon {
		t.Errorf("a Ready Pod is named after %v (p99)", got)
	}
	if got := ended[rounds-1]; got > gone {
		t.Errorf("a Pod that terminates is named %v later", got)
	}
}

// TestPoolOutlivesTheAPIServer picks while the API server is away, and takes in what
// changed meanwhile when it is back.
func TestPoolOutlivesTheAPIServer(t *testing.T) {
	p := newPicking(t)
	for i, name := range []string{"a", "b"} {
		ip := fmt.Sprintf("127.9.0.%d", i+1)
		p.engine(t, ip)
		p.create(t, name)
		p.mark(t, name, ip, true)
	}
	named := func(want int) {
		t.Helper()
		rig.Wait(t, time.Minute, fmt.Sprintf("%d Pods are named", want), func() error {
			if hosts, err := p.pick(t.Context()); err != nil || len(hosts) != want {
				return fmt.Errorf("%v: %v", hosts, err)
			}
			return nil
		})
	}
	named(2)
	p.api.StopAPI()
	rig.Wait(t, time.Minute, "extproc says that the API server is away", func() error { return rig.HasCondition(p.admin, "kubernetes-away") })
	named(2)
	if err := p.api.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.request(t, http.MethodDelete, "/b", object{"gracePeriodSeconds": 0})
	began := time.Now()
	named(1)
	t.Logf("what changed is known %v after the API server was back", time.Since(began).Round(time.Millisecond))
	p.kubectl(t, "delete", "inferencepool", "p")
	rig.Wait(t, time.Minute, "extproc says that the pool is gone", func() error { return rig.HasCondition(p.admin, "pool-missing") })
	if hosts, err := p.pick(t.Context()); err != nil || len(hosts) != 0 {
		t.Errorf("without the pool %v are named, %v", hosts, err)
	}
}

// TestPoolReplicasAgree has a conversation's next turn go where it is cached, whichever of
// two replicas is asked: they find each other, and what one has sent where both know.
func TestPoolReplicasAgree(t *testing.T) {
	const engines, conversations = 10, 10
	p := newPicking(t)
	for i := range engines {
		name, ip := fmt.Sprintf("engine-%d", i), fmt.Sprintf("127.9.1.%d", i+1)
		p.engine(t, ip)
		p.create(t, name)
		p.mark(t, name, ip, true)
	}
	ports := rig.MustPorts(t, 3)
	var replicas []extproc.ExternalProcessorClient
	var admins []string
	for i := range 2 {
		name, ip := fmt.Sprintf("picker-%d", i), fmt.Sprintf("127.9.2.%d", i+1)
		p.request(t, http.MethodPost, "", object{
			"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": name, "labels": object{"app": "epp", "pod-template-hash": name}},
			"spec": object{"nodeName": "nowhere", "containers": []any{object{"name": "c", "image": "none"}}},
		})
		p.mark(t, name, ip, true)
		admin := rig.Address(ports[1+i])
		replicas = append(replicas, p.start(t, fmt.Sprintf("%s:%d", ip, ports[0]), admin, "POD_NAME="+name, "NAMESPACE=default"))
		admins = append(admins, admin)
	}
	for _, admin := range admins {
		rig.Wait(t, time.Minute, "replicas and engines are known", func() error {
			all, err := rig.Metrics(admin)
			if n := all["millrace_extproc_peers"]; err == nil && n != 1 {
				err = fmt.Errorf("%v peers", n)
			}
			if n := all[`millrace_extproc_endpoints{state="ready"}`]; err == nil && n != engines {
				err = fmt.Errorf("%v endpoints", n)
			}
			return err
		})
	}
	turn := func(conversation, n int) string {
		var messages []any
		for i := range n {
			messages = append(messages, object{"role": "user", "content": fmt.Sprintf("%d, %d: %s", conversation, i, strings.Repeat("a long question. ", 200))},
				object{"role": "assistant", "content": "an answer"})
		}
		b, err := json.Marshal(object{"model": "m", "messages": messages})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for c := range conversations {
		var home string
		for n := 1; n <= 4; n++ {
			hosts, err := decide(t.Context(), replicas[n%2], http.MethodPost, rig.ChatPath, turn(c, n))
			if err != nil || len(hosts) == 0 {
				t.Fatalf("turn %d: %v, %v", n, hosts, err)
			}
			if n > 1 && hosts[0] != home {
				t.Errorf("conversation %d: turn %d goes to %s, the one before went to %s", c, n, hosts[0], home)
			}
			home = hosts[0]
			other, sent := admins[(n+1)%2], float64(2*c+(n+1)/2)
			rig.Wait(t, 10*time.Second, "the other replica knows", func() error {
				got, err := rig.Metric(other, `millrace_extproc_peer_placements_total{result="received"}`)
				if err == nil && got < sent {
					err = fmt.Errorf("%v received, want %v", got, sent)
				}
				return err
			})
		}
	}
}
