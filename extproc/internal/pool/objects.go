package pool

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/inventory"
)

// Annotations of Pods. What the older group says counts where the newer one says nothing.
var activePorts = []string{"llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports"}

// eventsAnnotation names the port where the engine publishes events of its KV cache, and
// behind a slash the topic that they begin with: "5557/kv@". "off" is none, whatever else
// the Pod says.
const eventsAnnotation = "millrace.dev/kv-events"

// eventsPort is the name of a container's port of which the same is true.
const eventsPort = "kv-events"

// zoneLabel is copied from a node to its Pods by Kubernetes (1.35 and later).
const zoneLabel = "topology.kubernetes.io/zone"

// podOf keeps of a Pod what decides something. events is where Pods publish that announce
// nothing; 0: nowhere.
func podOf(p *corev1.Pod, events int) inventory.Pod {
	pod := inventory.Pod{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Created: p.CreationTimestamp.Time,
		IP: p.Status.PodIP, Node: p.Spec.NodeName, Zone: p.Labels[zoneLabel], Labels: p.Labels,
		Terminating: p.DeletionTimestamp != nil,
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			pod.Ready = c.Status == corev1.ConditionTrue
		}
	}
	for _, name := range activePorts {
		if text, ok := p.Annotations[name]; ok {
			pod.Active = portsOf(text)
			break
		}
	}
	pod.Events = announced(p)
	if pod.Events.Port == 0 && p.Annotations[eventsAnnotation] == "" {
		pod.Events.Port = events
	}
	return pod
}

// revisions are labels by which Pods of one Deployment, StatefulSet or DaemonSet differ.
var revisions = []string{"pod-template-hash", "controller-revision-hash", "statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index"}

// peersOf returns the addresses of the Pods that are what self is: those of its namespace
// with the same labels, but for revisions. They may not be Ready yet: to be followed
// early does no harm.
func peersOf(self Name, pods []inventory.Pod) []string {
	i := slices.IndexFunc(pods, func(p inventory.Pod) bool { return p.Namespace == self.Namespace && p.Name == self.Name })
	if i < 0 {
		return nil
	}
	selector := maps.Clone(pods[i].Labels)
	for _, label := range revisions {
		delete(selector, label)
	}
	alike := inventory.Pool{Namespace: self.Namespace, Selector: selector}
	var all []string
	for j := range pods {
		if p := &pods[j]; j != i && p.IP != "" && !p.Terminating && alike.Has(p) {
			all = append(all, p.IP)
		}
	}
	slices.Sort(all)
	return all
}

// portsOf reads "8000,8001". What is no port is left out; none at all leaves an empty list.
func portsOf(text string) []int {
	all := []int{}
	for part := range strings.SplitSeq(text, ",") {
		if n, err := strconv.Atoi(strings.TrimSpace(part)); err == nil && n > 0 && n < 1<<16 {
			all = append(all, n)
		}
	}
	return all
}

// announced returns where a Pod says that its engine publishes: by the annotation, else by
// vLLM's own flag in a container's command, else by the name of a port.
func announced(p *corev1.Pod) inventory.Announced {
	if text := p.Annotations[eventsAnnotation]; text != "" {
		port, topic, _ := strings.Cut(text, "/")
		if ports := portsOf(port); len(ports) == 1 {
			return inventory.Announced{Port: ports[0], Topic: topic}
		}
		return inventory.Announced{}
	}
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		if a := commanded(append(slices.Clip(c.Command), c.Args...)); a.Port != 0 {
			return a
		}
	}
	for i := range p.Spec.Containers {
		for _, port := range p.Spec.Containers[i].Ports {
			if port.Name == eventsPort {
				return inventory.Announced{Port: int(port.ContainerPort)}
			}
		}
	}
	return inventory.Announced{}
}

// eventsFlag is vLLM's flag.
const eventsFlag = "--kv-events-config"

// commanded finds vLLM's flag in a command, or in a script that is one of its arguments.
// Only a publisher that listens ("tcp://*:5557") counts: what connects somewhere does not
// wait for us.
func commanded(command []string) inventory.Announced {
	for i, arg := range command {
		at := strings.Index(arg, eventsFlag)
		if at < 0 {
			continue
		}
		rest := arg[at+len(eventsFlag):]
		if rest == "" && i+1 < len(command) {
			rest = command[i+1]
		}
		begin := strings.IndexByte(rest, '{')
		if begin < 0 {
			continue
		}
		var c struct {
			Enabled   *bool  `json:"enable_kv_cache_events"`
			Publisher string `json:"publisher"`
			Endpoint  string `json:"endpoint"`
			Topic     string `json:"topic"`
		}
		text := strings.ReplaceAll(rest[begin:], `\"`, `"`) // as in a script within quotes
		if json.NewDecoder(strings.NewReader(text)).Decode(&c) != nil || c.Enabled != nil && !*c.Enabled || c.Publisher == "null" {
			continue
		}
		u, err := url.Parse(cmp.Or(strings.Replace(c.Endpoint, "://*", "://0.0.0.0", 1), "tcp://0.0.0.0:5557"))
		if err != nil || u.Hostname() != "0.0.0.0" && u.Hostname() != "::" {
			continue
		}
		if ports := portsOf(u.Port()); len(ports) == 1 {
			if strings.ContainsRune(c.Topic, '$') {
				c.Topic = "" // of a variable, which we don't know
			}
			return inventory.Announced{Port: ports[0], Topic: c.Topic}
		}
	}
	return inventory.Announced{}
}

// Fields of objects, whatever their version.
func field[T any](o map[string]any, path ...string) (value T) {
	for _, name := range path[:len(path)-1] {
		next, ok := o[name].(map[string]any)
		if !ok {
			return value
		}
		o = next
	}
	value, _ = o[path[len(path)-1]].(T)
	return value
}

// poolOf reads an InferencePool of either group: v1 says targetPorts and matchLabels,
// earlier ones say targetPortNumber and the labels themselves.
func poolOf(u *unstructured.Unstructured) inventory.Pool {
	p := inventory.Pool{Namespace: u.GetNamespace(), Name: u.GetName(), Selector: map[string]string{}}
	labels := field[map[string]any](u.Object, "spec", "selector", "matchLabels")
	if labels == nil {
		labels = field[map[string]any](u.Object, "spec", "selector")
	}
	for key, value := range labels {
		if text, ok := value.(string); ok {
			p.Selector[key] = text
		} else {
			return inventory.Pool{Namespace: p.Namespace, Name: p.Name} // not a selector that we know
		}
	}
	for _, port := range field[[]any](u.Object, "spec", "targetPorts") {
		if m, ok := port.(map[string]any); ok {
			p.Ports = append(p.Ports, int(field[int64](m, "number")))
		}
	}
	if n := field[int64](u.Object, "spec", "targetPortNumber"); n != 0 && p.Ports == nil {
		p.Ports = []int{int(n)}
	}
	ref := []string{"spec", "endpointPickerRef"}
	if field[map[string]any](u.Object, ref...) == nil {
		ref = []string{"spec", "extensionRef"}
	}
	if name := field[string](u.Object, append(slices.Clip(ref), "name")...); name != "" {
		port := cmp.Or(field[int64](u.Object, append(slices.Clip(ref), "port", "number")...), field[int64](u.Object, append(slices.Clip(ref), "portNumber")...))
		p.Picker = inventory.Picker{Service: name, Port: int(port)}
	}
	return p
}

// objective is an InferenceObjective.
type objective struct {
	name, pool string
	priority   int
	created    time.Time
}

func objectiveOf(u *unstructured.Unstructured) objective {
	return objective{
		name: u.GetName(), pool: field[string](u.Object, "spec", "poolRef", "name"),
		priority: int(field[int64](u.Object, "spec", "priority")), created: u.GetCreationTimestamp().Time,
	}
}

// objectivesOf returns the priorities of a pool's objectives. Of two of one name, which are
// of different groups, the older one counts.
func objectivesOf(pool string, all []objective) map[string]int {
	slices.SortStableFunc(all, func(a, b objective) int { return a.created.Compare(b.created) })
	priorities := map[string]int{}
	for _, o := range all {
		if _, ok := priorities[o.name]; !ok && o.pool == pool {
			priorities[o.name] = o.priority
		}
	}
	return priorities
}

// rewrite is an InferenceModelRewrite.
type rewrite struct {
	name, pool string
	rules      []rule
	created    time.Time
}

// rule is one of its rules; without models it is for all that no other is for.
type rule struct {
	models []string
	to     []config.RewriteTarget
}

// Bounds of rules.
const (
	maxTargets = 16
	maxWeight  = 1_000_000
)

func rewriteOf(u *unstructured.Unstructured) rewrite {
	w := rewrite{name: u.GetName(), pool: field[string](u.Object, "spec", "poolRef", "name"), created: u.GetCreationTimestamp().Time}
	for _, item := range field[[]any](u.Object, "spec", "rules") {
		m, _ := item.(map[string]any)
		var r rule
		matches := field[[]any](m, "matches")
		for _, match := range matches {
			if o, ok := match.(map[string]any); ok {
				if value := field[string](o, "model", "value"); value != "" && cmp.Or(field[string](o, "model", "type"), "Exact") == "Exact" {
					r.models = append(r.models, value)
				}
			}
		}
		for _, target := range field[[]any](m, "targets") {
			if o, ok := target.(map[string]any); ok && len(r.to) < maxTargets {
				weight := min(max(1, field[int64](o, "weight")), maxWeight)
				if name := field[string](o, "modelRewrite"); name != "" {
					r.to = append(r.to, config.RewriteTarget{Model: name, Weight: int(weight)})
				}
			}
		}
		if len(r.to) > 0 && (len(r.models) > 0 || len(matches) == 0) {
			w.rules = append(w.rules, r)
		}
	}
	return w
}

// rewritesOf returns a pool's rules: those for a model, and what holds otherwise. Of
// several for one model that of the oldest object counts, and of an object the first.
func rewritesOf(pool string, all []rewrite) (rules []config.Rewrite, otherwise []config.RewriteTarget) {
	slices.SortStableFunc(all, func(a, b rewrite) int { return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.name, b.name)) })
	seen := map[string]bool{}
	for _, w := range all {
		if w.pool != pool {
			continue
		}
		for _, r := range w.rules {
			if len(r.models) == 0 && otherwise == nil {
				otherwise = r.to
			}
			for _, model := range r.models {
				if !seen[model] {
					seen[model] = true
					rules = append(rules, config.Rewrite{Model: model, To: r.to})
				}
			}
		}
	}
	return rules, otherwise
}
