package pool

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/inventory"
)

func TestParseNames(t *testing.T) {
	got, err := ParseNames("a/b, c/d.e")
	if diff := cmp.Diff([]Name{{"a", "b"}, {"c", "d.e"}}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, bad := range []string{"", "a", "a/", "/b", "a/b,", "a/b,a/b", "a/b/c", "A/b", "a/b?x"} {
		if got, err := ParseNames(bad); err == nil {
			t.Errorf("%q became %v", bad, got)
		}
	}
}

func TestPodOf(t *testing.T) {
	created := time.Unix(100, 0)
	full := func(change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "ns", Name: "a", UID: types.UID("u"), CreationTimestamp: metav1.NewTime(created),
				Labels: map[string]string{"app": "m", zoneLabel: "z"}, Annotations: map[string]string{},
			},
			Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c"}}},
			Status: corev1.PodStatus{PodIP: "10.0.0.1", Conditions: []corev1.PodCondition{
				{Type: corev1.ContainersReady, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionTrue},
			}},
		}
		if change != nil {
			change(p)
		}
		return p
	}
	usual := func(change func(*inventory.Pod)) inventory.Pod {
		p := inventory.Pod{
			Namespace: "ns", Name: "a", UID: "u", Created: created, IP: "10.0.0.1", Node: "n", Zone: "z",
			Labels: map[string]string{"app": "m", zoneLabel: "z"}, Ready: true,
		}
		if change != nil {
			change(&p)
		}
		return p
	}
	now := metav1.Now()
	tests := []struct {
		name   string
		pod    *corev1.Pod
		events int // for Pods that announce none
		want   inventory.Pod
	}{
		{"as it is", full(nil), 0, usual(nil)},
		{"not Ready", full(func(p *corev1.Pod) { p.Status.Conditions[1].Status = corev1.ConditionFalse }), 0, usual(func(p *inventory.Pod) { p.Ready = false })},
		{"nothing known of it", full(func(p *corev1.Pod) { p.Status.Conditions = nil }), 0, usual(func(p *inventory.Pod) { p.Ready = false })},
		{"terminating", full(func(p *corev1.Pod) { p.DeletionTimestamp = &now }), 0, usual(func(p *inventory.Pod) { p.Terminating = true })},
		{
			"ports that are active, by the newer annotation",
			full(func(p *corev1.Pod) {
				p.Annotations = map[string]string{activePorts[0]: "8000, 8001,x,0", activePorts[1]: "9000"}
			}), 0,
			usual(func(p *inventory.Pod) { p.Active = []int{8000, 8001} }),
		},
		{"no port is active", full(func(p *corev1.Pod) { p.Annotations[activePorts[1]] = "" }), 0, usual(func(p *inventory.Pod) { p.Active = []int{} })},
		{"events by annotation", full(func(p *corev1.Pod) { p.Annotations[eventsAnnotation] = "5557/kv@x" }), 0, usual(func(p *inventory.Pod) { p.Events = inventory.Announced{Port: 5557, Topic: "kv@x"} })},
		{"no events by annotation", full(func(p *corev1.Pod) {
			p.Annotations[eventsAnnotation] = "off"
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: eventsPort, ContainerPort: 1}}
		}), 5557, usual(nil)},
		{"events by the name of a port", full(func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8000}, {Name: eventsPort, ContainerPort: 5600}}
		}), 5557, usual(func(p *inventory.Pod) { p.Events.Port = 5600 })},
		{"events where the file of plugins says", full(nil), 5557, usual(func(p *inventory.Pod) { p.Events.Port = 5557 })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, podOf(tt.pod, tt.events)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestCommanded reads vLLM's flag as people write it.
func TestCommanded(t *testing.T) {
	const listens = `{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5556","topic":"kv@m"}`
	tests := []struct {
		name    string
		command []string
		want    inventory.Announced
	}{
		{"an argument of its own", []string{"vllm", "serve", eventsFlag, listens, "--port", "8000"}, inventory.Announced{Port: 5556, Topic: "kv@m"}},
		{"behind an equals sign", []string{eventsFlag + "=" + listens}, inventory.Announced{Port: 5556, Topic: "kv@m"}},
		{"in a script", []string{"sh", "-c", "vllm serve m " + eventsFlag + " '" + listens + "' --port 8000"}, inventory.Announced{Port: 5556, Topic: "kv@m"}},
		{"in a script within quotes", []string{"sh", "-c", "vllm serve m " + eventsFlag + ` "` + strings.ReplaceAll(listens, `"`, `\"`) + `"`}, inventory.Announced{Port: 5556, Topic: "kv@m"}},
		{"with a topic that is a variable's", []string{eventsFlag, strings.ReplaceAll(listens, "kv@m", "kv@$(POD_IP)@m")}, inventory.Announced{Port: 5556}},
		{"with vLLM's own default", []string{eventsFlag, `{"enable_kv_cache_events": true, "publisher": "zmq"}`}, inventory.Announced{Port: 5557}},
		{"one that connects to somebody else", []string{eventsFlag, `{"endpoint":"tcp://epp:5557"}`}, inventory.Announced{}},
		{"turned off", []string{eventsFlag, `{"enable_kv_cache_events":false,"endpoint":"tcp://*:5557"}`}, inventory.Announced{}},
		{"that goes nowhere", []string{eventsFlag, `{"publisher":"null"}`}, inventory.Announced{}},
		{"cut off", []string{eventsFlag}, inventory.Announced{}},
		{"not JSON", []string{eventsFlag, "{"}, inventory.Announced{}},
		{"nothing of the kind", []string{"llama-server"}, inventory.Announced{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, commanded(tt.command)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzCommanded(f *testing.F) {
	f.Add(eventsFlag, `{"endpoint":"tcp://*:5556"}`)
	f.Fuzz(func(t *testing.T, a, b string) {
		if got := commanded([]string{a, b}); got.Port < 0 || got.Port > 65535 {
			t.Errorf("%+v", got)
		}
	})
}

// object is an object of the given spec.
func object(name string, created int64, spec map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	u.SetNamespace("ns")
	u.SetName(name)
	u.SetCreationTimestamp(metav1.NewTime(time.Unix(created, 0)))
	return u
}

type m = map[string]any

func TestPoolOf(t *testing.T) {
	selector := map[string]string{"app": "m"}
	tests := []struct {
		name string
		spec m
		want inventory.Pool
	}{
		{
			"v1",
			m{
				"selector": m{"matchLabels": m{"app": "m"}}, "targetPorts": []any{m{"number": int64(8000)}, m{"number": int64(8001)}},
				"endpointPickerRef": m{"name": "epp", "port": m{"number": int64(9002)}},
			},
			inventory.Pool{Selector: selector, Ports: []int{8000, 8001}, Picker: inventory.Picker{Service: "epp", Port: 9002}},
		},
		{
			"v1alpha2",
			m{"selector": m{"app": "m"}, "targetPortNumber": int64(8000), "extensionRef": m{"name": "epp", "portNumber": int64(9002)}},
			inventory.Pool{Selector: selector, Ports: []int{8000}, Picker: inventory.Picker{Service: "epp", Port: 9002}},
		},
		{"without a picker", m{"selector": m{"matchLabels": m{"app": "m"}}}, inventory.Pool{Selector: selector}},
		{"with a selector of a kind that is to come", m{"selector": m{"matchExpressions": []any{}}}, inventory.Pool{}},
		{"with nothing in it", m{}, inventory.Pool{Selector: map[string]string{}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.Namespace, tt.want.Name = "ns", "p"
			if diff := cmp.Diff(tt.want, poolOf(object("p", 1, tt.spec))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestObjectives(t *testing.T) {
	of := func(name, pool string, created, priority int64) objective {
		return objectiveOf(object(name, created, m{"priority": priority, "poolRef": m{"name": pool}}))
	}
	got := objectivesOf("p", []objective{of("a", "p", 2, 5), of("a", "p", 1, -1), of("b", "other", 1, 9), of("c", "p", 1, 0), objectiveOf(object("d", 1, m{}))})
	if diff := cmp.Diff(map[string]int{"a": -1, "c": 0}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRewrites(t *testing.T) {
	target := func(name string, weight int64) m { return m{"modelRewrite": name, "weight": weight} }
	match := func(name string) m { return m{"model": m{"type": "Exact", "value": name}} }
	of := func(name, pool string, created int64, rules ...any) rewrite {
		return rewriteOf(object(name, created, m{"poolRef": m{"name": pool}, "rules": rules}))
	}
	rules, otherwise := rewritesOf("p", []rewrite{
		of("young", "p", 2,
			m{"matches": []any{match("x")}, "targets": []any{target("late", 1)}},
			m{"matches": []any{match("y"), match("z")}, "targets": []any{target("y1", 0), m{}}},
			m{"targets": []any{target("rest", 1)}},
		),
		of("old", "p", 1,
			m{"matches": []any{match("x")}, "targets": []any{target("x1", 90), target("x2", 10)}},
			m{"matches": []any{match("x")}, "targets": []any{target("second", 1)}},
			m{"matches": []any{m{"model": m{"type": "Regex", "value": ".*"}}}, "targets": []any{target("never", 1)}},
			m{"matches": []any{match("v")}},
			"no object",
		),
		of("foreign", "q", 0, m{"targets": []any{target("never", 1)}}),
	})
	want := []config.Rewrite{
		{Model: "x", To: []config.RewriteTarget{{Model: "x1", Weight: 90}, {Model: "x2", Weight: 10}}},
		{Model: "y", To: []config.RewriteTarget{{Model: "y1", Weight: 1}}},
		{Model: "z", To: []config.RewriteTarget{{Model: "y1", Weight: 1}}},
	}
	if diff := cmp.Diff(want, rules); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]config.RewriteTarget{{Model: "rest", Weight: 1}}, otherwise); diff != "" {
		t.Errorf("otherwise (-want +got):\n%s", diff)
	}
}

// TestPeersOf finds the Pods that are what one Pod is, whatever their revision.
func TestPeersOf(t *testing.T) {
	at := func(name, ip string, labels ...string) inventory.Pod {
		p := inventory.Pod{Namespace: "ns", Name: name, IP: ip, Labels: map[string]string{"app": "epp"}}
		for i := 0; i < len(labels); i += 2 {
			p.Labels[labels[i]] = labels[i+1]
		}
		return p
	}
	leaves := at("leaves", "10.0.0.5")
	leaves.Terminating = true
	elsewhere := at("elsewhere", "10.0.0.6")
	elsewhere.Namespace = "other"
	pods := []inventory.Pod{
		at("new", "10.0.0.3", "pod-template-hash", "2"), at("self", "10.0.0.1", "pod-template-hash", "1"), at("old", "10.0.0.2", "pod-template-hash", "1"),
		at("other", "10.0.0.4", "app", "engine"), at("starts", ""), leaves, elsewhere,
	}
	if diff := cmp.Diff([]string{"10.0.0.2", "10.0.0.3"}, peersOf(Name{"ns", "self"}, pods)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := peersOf(Name{"ns", "somebody"}, pods); got != nil {
		t.Errorf("who is not among the Pods has peers %v", got)
	}
	alone := inventory.Pod{Namespace: "ns", Name: "bare", IP: "10.0.0.9"}
	if got := peersOf(Name{"ns", "bare"}, append(pods, alone)); got != nil {
		t.Errorf("a Pod without labels has peers %v", got)
	}
}
