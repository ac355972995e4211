// Package istio makes Envoys of an Istio mesh route to the engines: of what is desired
// and of the fleet it makes Istio's own objects, and keeps those in the cluster equal to
// them. Called by main, in a cluster only.
//
// Its one rule: which objects are desired is a pure function (Static, Entries); only
// Writer does I/O, and it writes only while this xds leads.
package istio

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"

	istiov1 "istio.io/client-go/pkg/apis/networking/v1"
	"istio.io/client-go/pkg/apis/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/json"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/obs"
)

// Site is what stays the same while xds runs.
type Site struct {
	// Namespace and Name of the installation.
	Namespace, Name string
	// Namespaces in which objects may be written, with the installation's own.
	Namespaces []string
	// Front is the host of the Service that clients with sidecars call; empty: none.
	Front string
	// ExtProc has "host:port" of each extproc, as Istio's Envoys reach it; empty: they
	// route by weight alone.
	ExtProc []string
	// Refuse is as in translate.Site.
	Refuse bool
}

// Kind is a kind of objects that are written.
type Kind struct {
	schema.GroupVersionResource
	// Name of the kind.
	Name string
	// stage is when objects of the kind are written: what is referred to comes before
	// what refers to it, and goes after it.
	stage stage
}

type stage int

const (
	backendStage stage = iota // hosts, and who serves them
	filterStage               // what is added to Envoys
	routeStage                // what sends requests to hosts
)

// The kinds.
var (
	ServiceEntry    = Kind{istiov1.SchemeGroupVersion.WithResource("serviceentries"), "ServiceEntry", backendStage}
	WorkloadEntry   = Kind{istiov1.SchemeGroupVersion.WithResource("workloadentries"), "WorkloadEntry", backendStage}
	DestinationRule = Kind{istiov1.SchemeGroupVersion.WithResource("destinationrules"), "DestinationRule", backendStage}
	InferencePool   = Kind{schema.GroupVersionResource{Group: "inference.networking.k8s.io", Version: "v1", Resource: "inferencepools"}, "InferencePool", backendStage}
	EnvoyFilter     = Kind{v1alpha3.SchemeGroupVersion.WithResource("envoyfilters"), "EnvoyFilter", filterStage}
	VirtualService  = Kind{istiov1.SchemeGroupVersion.WithResource("virtualservices"), "VirtualService", routeStage}
	HTTPRoute       = Kind{schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "httproutes"}, "HTTPRoute", routeStage}
)

// Kinds lists all of them.
func Kinds() []Kind {
	return []Kind{ServiceEntry, WorkloadEntry, DestinationRule, InferencePool, EnvoyFilter, VirtualService, HTTPRoute}
}

// Object is an object as it is to be.
type Object struct {
	Kind            Kind
	Namespace, Name string
	// Labels by which it is found again.
	Labels map[string]string
	// Spec is the object's, as JSON has it.
	Spec map[string]any
	// Model is for which it is; empty: for all.
	Model string

	// hash identifies Labels and Spec.
	hash string
}

// Key names an object of some kind.
type Key struct{ Kind, Namespace, Name string }

// Key returns the object's.
func (o *Object) Key() Key { return Key{o.Kind.Name, o.Namespace, o.Name} }

// String returns "Kind namespace/name".
func (k Key) String() string { return k.Kind + " " + k.Namespace + "/" + k.Name }

// Labels of our objects.
const (
	managedByLabel = "app.kubernetes.io/managed-by"
	managedBy      = "millrace"
	// installLabel is "namespace.name" of the installation, modelLabel the model's slug.
	installLabel = "millrace.dev/installation"
	modelLabel   = "millrace.dev/model"
)

// Selector returns the labels that all objects of the installation have.
func (s Site) Selector() map[string]string {
	return map[string]string{managedByLabel: managedBy, installLabel: short(s.Namespace + "." + s.Name)}
}

// object returns an object of which the spec is any value that has a JSON form.
func (s Site) object(k Kind, namespace, name, model string, spec any) *Object {
	o := &Object{Kind: k, Namespace: namespace, Name: name, Model: model, Labels: s.Selector(), Spec: jsonOf(spec)}
	if model != "" {
		o.Labels[modelLabel] = short(slug(model))
	}
	o.hash = hashOf(o.Labels, o.Spec)
	return o
}

// jsonOf returns a value of our own making as JSON has it.
func jsonOf(v any) map[string]any {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("istio: %T: %v", v, err)) // made here
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		panic(fmt.Sprintf("istio: %T: %v", v, err)) // JSON that was made here
	}
	return m
}

// hashOf identifies an object's labels of ours and its spec.
func hashOf(labels map[string]string, spec map[string]any) string {
	b, err := json.Marshal([]any{ours(labels), spec})
	if err != nil {
		return "not JSON: " + err.Error()
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// ours returns the labels that we set.
func ours(labels map[string]string) map[string]string {
	all := make(map[string]string, 3)
	for _, k := range []string{managedByLabel, installLabel, modelLabel} {
		if v, ok := labels[k]; ok {
			all[k] = v
		}
	}
	return all
}

var (
	dnsName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
	notDNS  = regexp.MustCompile(`[^a-z0-9]+`)
)

// slug returns a model's id as names of hosts and objects have it: as it is where that
// can be, else what is left of it with a hash, so that no two are the same.
func slug(model string) string {
	const longest = 63
	if len(model) <= longest && dnsName.MatchString(model) {
		return model
	}
	kept := strings.Trim(notDNS.ReplaceAllString(strings.ToLower(model), "-"), "-")
	if len(kept) > 40 {
		kept = strings.Trim(kept[:40], "-")
	}
	return strings.TrimPrefix(kept+"-"+digest(model), "-")
}

// short returns a text as the value of a label.
func short(s string) string {
	const longest = 63
	if len(s) <= longest {
		return s
	}
	return strings.TrimRight(s[:longest-9], ".-_") + "-" + digest(s)
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:4])
}

// domain ends the hosts that are ours: no resolver knows it, Istio's Envoys do.
const domain = ".millrace.internal"

// Host returns the host of a model in the mesh. It has the namespace in it: two
// installations that serve the same model have nothing in common.
func (s Site) Host(model string) string { return slug(model) + "." + s.Namespace + ".models" + domain }

// pickerHost is the host of the extprocs.
func (s Site) pickerHost() string { return "extproc." + s.Namespace + domain }

// Ports of our hosts, and the names that these have.
const (
	modelPort  = 80
	pickerPort = 7200
	apiPort    = "http"
	grpcPort   = "grpc"
)

func clusterOf(host string, port int) string { return fmt.Sprintf("outbound|%d||%s", port, host) }

// picker is the name of the extprocs' cluster; empty: there is none.
func (s Site) picker() string {
	if len(s.ExtProc) == 0 {
		return ""
	}
	return clusterOf(s.pickerHost(), pickerPort)
}

// visible returns the namespaces whose Envoys are to know our hosts: nobody else in the
// mesh has to be sent each change of a weight.
func (s Site) visible(i config.Istio) []string {
	all := map[string]bool{s.Namespace: true}
	for _, g := range i.Gateways {
		all[s.gatewayNamespace(g)] = true
	}
	if i.Sidecars.Enabled {
		for _, n := range s.sidecarNamespaces(i) {
			all[n] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

func (s Site) gatewayNamespace(g config.IstioGatewayRef) string {
	if g.Namespace == "" {
		return s.Namespace
	}
	return g.Namespace
}

func (s Site) sidecarNamespaces(i config.Istio) []string {
	if len(i.Sidecars.Namespaces) == 0 {
		return []string{s.Namespace}
	}
	return i.Sidecars.Namespaces
}

// Static returns the objects that do not depend on the fleet, and what of the policy
// can't be followed.
func Static(s Site, d *desired.State) ([]*Object, []obs.Condition) {
	i := d.Policy.Spec.Istio
	if !i.On() {
		return nil, nil
	}
	b := &builder{Site: s, d: d, istio: i}
	b.backends()
	for _, g := range i.Gateways {
		b.gateway(g)
	}
	if i.Sidecars.Enabled {
		b.sidecars()
	}
	return b.objects, b.problems
}

// builder collects what Static returns.
type builder struct {
	Site
	d        *desired.State
	istio    config.Istio
	objects  []*Object
	problems []obs.Condition
}

func (b *builder) add(k Kind, namespace, name, model string, spec any) {
	b.objects = append(b.objects, b.object(k, namespace, name, model, spec))
}

// Codes of conditions.
const (
	// Unsupported is what the cluster's Istio does not know, or can't do.
	Unsupported = "istio-unsupported"
	// Forbidden is where xds may not write.
	Forbidden = "istio-forbidden"
	// NotWritten is what could not be written.
	NotWritten = "istio-not-written"
	// Edited is what somebody else had changed.
	Edited = "istio-edited"
)

func (b *builder) problem(code, next, format string, args ...any) {
	b.problems = append(b.problems, obs.Condition{Code: code, Text: fmt.Sprintf(format, args...), Next: next})
}

// allowed reports whether objects may be written in a namespace, and says so if not.
func (b *builder) allowed(namespace, who string) bool {
	if namespace == b.Namespace || slices.Contains(b.Namespaces, namespace) {
		return true
	}
	b.problem(Forbidden, "add the namespace to the chart's istio.namespaces (xds: -istio)",
		"%s is in namespace %s, where xds may write nothing; it routes by weight alone at most", who, namespace)
	return false
}

// hostPort splits an address that has been checked by whoever sent it.
func hostPort(address string) (host string, port uint32, ok bool) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, false
	}
	n, err := net.LookupPort("tcp", p)
	return host, uint32(n), err == nil && n > 0
}
