package pool

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace.dev/millrace/extproc/internal/fleet"
)

// apiServer is as much of one as a Watcher asks: lists, and watches that end when
// something is set.
type apiServer struct {
	mu     sync.Mutex
	status map[string]int    // by resource.group; 0: all is well
	items  map[string]string // by resource.group: objects, with commas
	ends   chan struct{}     // closed: watches end
	rv     int               // what was watched before is compacted
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	resource := parts[len(parts)-1]
	version := "v1"
	if parts[0] == "apis" {
		resource, version = resource+"."+parts[1], parts[1]+"/"+parts[2]
	}
	a.mu.Lock()
	status, items, ends, rv := a.status[resource], a.items[resource], a.ends, strconv.Itoa(a.rv)
	a.mu.Unlock()
	w.Header().Set("content-type", "application/json")
	switch {
	case status != 0:
		w.WriteHeader(status)
		reason := map[int]string{404: "NotFound", 403: "Forbidden", 500: "InternalError"}[status]
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reason, status)
	case r.URL.Query().Get("sendInitialEvents") != "":
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
	case r.URL.Query().Get("watch") != "" && r.URL.Query().Get("resourceVersion") != rv:
		w.WriteHeader(http.StatusGone)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410}`)
	case r.URL.Query().Get("watch") != "":
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		select {
		case <-ends:
		case <-r.Context().Done():
		}
	default:
		kind := "List"
		if resource == "pods" {
			kind = "PodList"
		}
		fmt.Fprintf(w, `{"kind":%q,"apiVersion":%q,"metadata":{"resourceVersion":%q},"items":[%s]}`, kind, version, rv, items)
	}
}

func (a *apiServer) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	a.rv++
	close(a.ends) // what was watched is listed again
	a.ends = make(chan struct{})
}

const (
	onePod  = `{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"ns","name":"a","uid":"u","labels":{"app":"m"}},"status":{"podIP":"10.0.0.1","conditions":[{"type":"Ready","status":"True"}]}}`
	onePool = `{"kind":"InferencePool","apiVersion":"inference.networking.k8s.io/v1","metadata":{"namespace":"ns","name":"p"},"spec":{"selector":{"matchLabels":{"app":"m"}},"targetPorts":[{"number":8000}]}}`
	goal    = `{"kind":"InferenceObjective","apiVersion":"llm-d.ai/v1alpha2","metadata":{"namespace":"ns","name":"o"},"spec":{"priority":7,"poolRef":{"name":"p"}}}`
)

// watching follows ns/p at an API server that is as change makes it.
func watching(t *testing.T, change func(*apiServer)) (*apiServer, *Watcher, chan *fleet.Cluster) {
	t.Helper()
	a := &apiServer{
		status: map[string]int{}, rv: 1, ends: make(chan struct{}),
		items: map[string]string{"pods": onePod, "inferencepools.inference.networking.k8s.io": onePool, "inferenceobjectives.llm-d.ai": goal},
	}
	change(a)
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	b, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"contexts": []any{m{"name": "c", "context": m{"cluster": "c"}}}, "clusters": []any{m{"name": "c", "cluster": m{"server": server.URL}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", path)
	w, err := New(Options{Pools: []Name{{"ns", "p"}}}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	found := make(chan *fleet.Cluster, 100)
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx, func(c *fleet.Cluster) { found <- c }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a, w, found
}

// until waits for a cluster that is as it should be.
func until(t *testing.T, found chan *fleet.Cluster, good func(*fleet.Cluster) bool) *fleet.Cluster {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case c := <-found:
			if good(c) {
				return c
			}
		case <-timeout:
			t.Fatal("it never came to that")
		}
	}
}

func codes(w *Watcher) string {
	var all []string
	for _, c := range w.Conditions() {
		all = append(all, c.Code)
	}
	return strings.Join(all, " ")
}

// TestWhatIsOptionalNeedNotBeThere does without kinds that are not installed, and
// without rights to those that are.
func TestWhatIsOptionalNeedNotBeThere(t *testing.T) {
	_, w, found := watching(t, func(a *apiServer) {
		for _, kind := range []string{"inferencepools", "inferenceobjectives", "inferencemodelrewrites"} {
			a.status[kind+".inference.networking.x-k8s.io"] = 404
		}
		a.status["inferencemodelrewrites.llm-d.ai"] = 403
	})
	c := until(t, found, func(c *fleet.Cluster) bool { return c.Pools[0].Exists })
	if len(c.Pods) != 1 || c.Pools[0].Objectives["o"] != 7 {
		t.Errorf("%+v", c)
	}
	if got := codes(w); got != "kubernetes-right" {
		t.Errorf("conditions %q", got)
	}
}

// TestWithoutPoolsNothingIsKnown says so when no API group has pools, or Pods may not be
// seen, and finds them when that changes.
func TestWithoutPoolsNothingIsKnown(t *testing.T) {
	a, w, found := watching(t, func(a *apiServer) {
		a.status["inferencepools.inference.networking.k8s.io"] = 404
		a.status["inferencepools.inference.networking.x-k8s.io"] = 404
	})
	deadline := time.After(20 * time.Second)
	for codes(w) != "kubernetes-unseen" {
		select {
		case <-w.changed:
			w.stir()
		case <-deadline:
			t.Fatalf("conditions %q", codes(w))
		case <-found:
			t.Fatal("a cluster without pools")
		}
	}
	a.set(func() { delete(a.status, "inferencepools.inference.networking.k8s.io") })
	until(t, found, func(c *fleet.Cluster) bool { return c.Pools[0].Exists })
}

// TestTheServerIsAway keeps what was seen, and lists what changed meanwhile.
func TestTheServerIsAway(t *testing.T) {
	a, w, found := watching(t, func(*apiServer) {})
	until(t, found, func(c *fleet.Cluster) bool { return len(c.Pods) == 1 })
	a.set(func() { a.status["pods"] = 500 })
	c := until(t, found, func(*fleet.Cluster) bool { return strings.Contains(codes(w), "kubernetes-away") })
	if len(c.Pods) != 1 {
		t.Errorf("Pods are forgotten: %+v", c)
	}
	a.set(func() {
		delete(a.status, "pods")
		a.items["pods"] = strings.ReplaceAll(onePod, `"uid":"u"`, `"uid":"v"`)
	})
	until(t, found, func(c *fleet.Cluster) bool { return len(c.Pods) == 1 && c.Pods[0].UID == "v" && codes(w) == "" })
	a.set(func() { a.items["pods"] = "" })
	until(t, found, func(c *fleet.Cluster) bool { return len(c.Pods) == 0 })
}
