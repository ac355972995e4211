// Package translate turns what xds knows into resources: Envoy's listener,
// routes, clusters and endpoints, and our own for extproc. Called by main, on
// every snapshot.
//
// Its one rule: it is pure, and the same input gives the same bytes, so that a
// restarted xds does not send its clients what they have already.
package translate

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/policy"
	"millrace.dev/millrace/internal/wire"
)

// Type URLs of the resources.
const (
	SecretType    = wire.TypePrefix + "envoy.extensions.transport_sockets.tls.v3.Secret"
	ListenerType  = wire.TypePrefix + "envoy.config.listener.v3.Listener"
	RouteType     = wire.TypePrefix + "envoy.config.route.v3.RouteConfiguration"
	ClusterType   = wire.TypePrefix + "envoy.config.cluster.v3.Cluster"
	EndpointsType = wire.TypePrefix + "envoy.config.endpoint.v3.ClusterLoadAssignment"
)

// Types lists the type URLs in the order in which changes are to be pushed: what
// is referred to comes before what refers to it.
func Types() []string {
	return []string{ClusterType, EndpointsType, RouteType, SecretType, ListenerType, wire.PolicyType, wire.ModelType, wire.EndpointType, wire.CacheType}
}

// Resources holds resources by type URL and name.
type Resources map[string]map[string]proto.Message

// Site is what stays the same while xds runs.
type Site struct {
	// Gateway is "ip:port" of Envoy's public listener.
	Gateway string
	// ExtProc has "ip:port" of each extproc, or "name:port" of all addresses of a name;
	// empty: there is none.
	ExtProc []string
	// Pickers is how many extprocs there are, where a name stands for several; 0: as many as
	// ExtProc has.
	Pickers int
	// AccessLog is the path of Envoy's access log; empty: there is none.
	AccessLog string
	// Traces is "host:port" of the OTLP receiver; empty: nothing is traced.
	Traces string
	// TLS is how Envoy reaches the other programs; nil: in cleartext.
	TLS *TLS
	// Refuse is whether Envoy refuses requests that no extproc has answered for, instead of
	// sending them by weight: where extproc asks for API keys.
	Refuse bool
	// HTTPS is a second public listener, whose clients come by TLS; nil: there is none.
	HTTPS *HTTPS
}

// Static returns the resources that don't depend on the fleet, for what is desired.
// keys sign session cookies, the first one signs.
func Static(s Site, d *desired.State, keys [][]byte) (Resources, error) {
	clusters, err := clusters(s, d)
	if err != nil {
		return nil, err
	}
	listeners, err := listeners(s, d)
	if err != nil {
		return nil, err
	}
	secrets := s.HTTPS.secrets()
	engineSecrets(secrets, d)
	return Resources{
		ListenerType:    listeners,
		SecretType:      secrets,
		RouteType:       {gatewayName: routes(d)},
		ClusterType:     clusters,
		wire.ModelType:  models(d),
		wire.PolicyType: {"default": policy.State(d.Policy.Spec, keys, max(s.Pickers, len(s.ExtProc)))},
	}, nil
}

// Faults returns every rule of the resources' own protobuf definitions that they
// break, also inside of what is packed as Any, with the object that is the reason.
func Faults(all Resources) []config.Fault {
	var faults []config.Fault
	for _, typ := range slices.Sorted(maps.Keys(all)) {
		for _, name := range slices.Sorted(maps.Keys(all[typ])) {
			for _, err := range validate(all[typ][name].ProtoReflect()) {
				f := config.Fault{Text: fmt.Sprintf("%s %q: %v", typ[len(wire.TypePrefix):], name, err)}
				f.Kind, f.Name = Object(typ, name)
				faults = append(faults, f)
			}
		}
	}
	return faults
}

// Object returns the kind and name of the object of which a resource is made. What all
// objects share is the policy's.
func Object(typ, resource string) (kind, name string) {
	switch typ {
	case ClusterType, EndpointsType:
		if model, ok := strings.CutPrefix(resource, enginesPrefix); ok {
			return config.KindModel, model
		}
	case wire.ModelType:
		return config.KindModel, resource
	}
	return config.KindPolicy, "default"
}

// validate checks m and every message that is packed in it.
func validate(m protoreflect.Message) []error {
	var errs []error
	if v, ok := m.Interface().(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			errs = append(errs, err)
		}
	}
	for _, any := range packed(m) {
		inner, err := any.UnmarshalNew()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, validate(inner.ProtoReflect())...)
	}
	return errs
}

// packed returns every Any in m.
func packed(m protoreflect.Message) []*anypb.Any {
	if any, ok := m.Interface().(*anypb.Any); ok {
		return []*anypb.Any{any}
	}
	var found []*anypb.Any
	add := func(v protoreflect.Value) { found = append(found, packed(v.Message())...) }
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case field.IsMap() && field.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { add(v); return true })
		case field.IsList() && field.Message() != nil:
			for i := range v.List().Len() {
				add(v.List().Get(i))
			}
		case !field.IsMap() && !field.IsList() && field.Message() != nil:
			add(v)
		}
		return true
	})
	return found
}

// pack returns m as Any. Its bytes depend on nothing but m: maps are sorted.
func pack(m proto.Message) *anypb.Any {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("translate: %T: %v", m, err)) // our own message, made here
	}
	return &anypb.Any{TypeUrl: wire.TypePrefix + string(m.ProtoReflect().Descriptor().FullName()), Value: b}
}

// extension returns m as a named extension.
func extension(name string, m proto.Message) *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{Name: name, TypedConfig: pack(m)}
}

// address returns "host:port" as Envoy's address.
func address(addr string) (*corev3.Address, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("address %s: port %q; must be a number up to 65535", addr, port)
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(n)},
	}}}, nil
}

// ads is where every resource comes from.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
}

// seconds returns a duration.
func seconds(s float64) *durationpb.Duration {
	return durationpb.New(time.Duration(s * float64(time.Second)))
}
