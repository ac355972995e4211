package istio

import (
	"math"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/internal/translate"
	"millrace.dev/millrace/xds/internal/weight"
)

// unlimited is for limits that would only get in the way: what engines take is bounded
// by the engines.
const unlimited = 1 << 20

// backends adds the hosts of the models and of the extprocs.
//
// Engines that serve TLS are left out: which authority signed their certificates, and under
// which names, is said for each, and Istio has one such setting for all that serve a model.
func (b *builder) backends() {
	exportTo := b.visible(b.istio)
	for _, o := range b.d.Endpoints {
		for _, e := range o.Spec.Endpoints {
			if e.TLS.On() {
				b.problem(Unsupported, "send its requests through the mesh's own gateway, or let it serve plain text behind a sidecar",
					"endpoint %s serves TLS, as settings of its own say; Istio's Envoys send it nothing", e.Address)
			}
		}
	}
	for _, m := range b.d.Models {
		name := b.Name + "-" + slug(m.Name)
		b.add(ServiceEntry, b.Namespace, name, m.Name, b.modelHost(m.Name, exportTo))
		b.add(DestinationRule, b.Namespace, name, m.Name, &networking.DestinationRule{
			Host: b.Host(m.Name), TrafficPolicy: b.traffic(m.Name), ExportTo: exportTo,
		})
	}
	if b.picker() == "" {
		return
	}
	entry, ok := b.pickers(exportTo)
	if !ok {
		b.problem(Unsupported, "name each extproc as host:port in -istio-extproc", "-istio-extproc names no address; Istio's Envoys route by weight alone")
		return
	}
	policy := b.traffic("")
	if b.istio.TLS == config.TLSIstioMutual {
		policy.Tls = mutual()
	}
	b.add(ServiceEntry, b.Namespace, b.Name+"-extproc", "", entry)
	b.add(DestinationRule, b.Namespace, b.Name+"-extproc", "", &networking.DestinationRule{
		Host: b.pickerHost(), TrafficPolicy: policy, ExportTo: exportTo,
	})
}

// modelHost is a host whose endpoints are the WorkloadEntries with its labels. Engines
// speak HTTP/2, servers of somebody else HTTP/1.1.
func (b *builder) modelHost(model string, exportTo []string) *networking.ServiceEntry {
	protocol := "HTTP2"
	if translate.ServedByOthers(b.d, model) {
		protocol = "HTTP"
	}
	return &networking.ServiceEntry{
		Hosts:            []string{b.Host(model)},
		Location:         networking.ServiceEntry_MESH_INTERNAL,
		Resolution:       networking.ServiceEntry_STATIC,
		Ports:            []*networking.ServicePort{{Number: modelPort, Name: apiPort, Protocol: protocol}},
		WorkloadSelector: &networking.WorkloadSelector{Labels: b.serves(model)},
		ExportTo:         exportTo,
	}
}

// serves returns the labels of a model's WorkloadEntries. Pods don't have them: a host
// selects Pods, too.
func (s Site) serves(model string) map[string]string {
	return map[string]string{installLabel: short(s.Namespace + "." + s.Name), modelLabel: short(slug(model))}
}

// pickers is the host of the extprocs, by address or by name.
func (b *builder) pickers(exportTo []string) (*networking.ServiceEntry, bool) {
	e := &networking.ServiceEntry{
		Hosts: []string{b.pickerHost()}, Location: networking.ServiceEntry_MESH_INTERNAL, Resolution: networking.ServiceEntry_STATIC,
		Ports:    []*networking.ServicePort{{Number: pickerPort, Name: grpcPort, Protocol: "GRPC"}},
		ExportTo: exportTo,
	}
	for _, a := range b.ExtProc {
		host, port, ok := hostPort(a)
		if !ok {
			return nil, false
		}
		if _, err := netip.ParseAddr(host); err != nil {
			e.Resolution = networking.ServiceEntry_DNS
		}
		w := &networking.WorkloadEntry{Address: host, Ports: map[string]uint32{grpcPort: port}}
		if b.istio.TLS == config.TLSIstioMutual {
			w.ServiceAccount = b.Name + "-extproc" // whoever else has the address is not asked
		}
		e.Endpoints = append(e.Endpoints, w)
	}
	return e, true
}

// traffic is how the host of a model is used; that of the extprocs for "".
//
// Locality is switched off: Istio's would send all to the endpoints nearby as soon as
// there is outlier detection, whatever they weigh. Outlier detection is as in our own
// Envoy, and what may be retried, too: as many as there are requests.
func (b *builder) traffic(model string) *networking.TrafficPolicy {
	p := &networking.TrafficPolicy{
		LoadBalancer: &networking.LoadBalancerSettings{
			LbPolicy:          &networking.LoadBalancerSettings_Simple{Simple: networking.LoadBalancerSettings_ROUND_ROBIN},
			LocalityLbSetting: &networking.LocalityLoadBalancerSetting{Enabled: wrapperspb.Bool(false)},
		},
		ConnectionPool: &networking.ConnectionPoolSettings{
			Tcp: &networking.ConnectionPoolSettings_TCPSettings{MaxConnections: unlimited, ConnectTimeout: durationpb.New(500 * time.Millisecond)},
			Http: &networking.ConnectionPoolSettings_HTTPSettings{
				Http1MaxPendingRequests: unlimited, Http2MaxRequests: unlimited, MaxRetries: unlimited,
			},
		},
		OutlierDetection: &networking.OutlierDetection{
			ConsecutiveGatewayErrors: wrapperspb.UInt32(5),
			Consecutive_5XxErrors:    wrapperspb.UInt32(0),
			Interval:                 durationpb.New(time.Second),
			BaseEjectionTime:         durationpb.New(2 * time.Second),
			MaxEjectionPercent:       50,
			MinHealthPercent:         1,
		},
		Tls: &networking.ClientTLSSettings{Mode: networking.ClientTLSSettings_DISABLE},
	}
	if model == "" {
		// Requests do well without extproc, and would wait for one that hangs: where no
		// host is healthy, none is asked.
		p.OutlierDetection.MinHealthPercent = 0
		return p
	}
	p.ConnectionPool.Http.IdleTimeout = durationpb.New(wire.OurIdle)
	if translate.ServedByOthers(b.d, model) {
		p.ConnectionPool.Http.IdleTimeout = durationpb.New(wire.ClientIdle)
	}
	p.RetryBudget = &networking.TrafficPolicy_RetryBudget{Percent: wrapperspb.Double(100), MinRetryConcurrency: 64}
	switch {
	case b.istio.TLS != config.TLSIstioMutual:
	case translate.ServedByOthers(b.d, model):
		p.Tls = nil // Istio finds out by itself which endpoint has a sidecar: theirs have none
	default:
		p.Tls = mutual()
	}
	return p
}

func mutual() *networking.ClientTLSSettings {
	return &networking.ClientTLSSettings{Mode: networking.ClientTLSSettings_ISTIO_MUTUAL}
}

// levels is how many weights there are: a weight is written as so many parts of that of
// a model's fastest endpoint when all is well with it.
const levels = 64

// slack is how far a weight may be from what is written, in levels, without being
// written again: one that wavers between two levels is written once.
const slack = 1

// Level returns the weight that is to be written where the one before is written: 1 to
// levels, as Istio takes 0 for unset. before is 0 if there is none.
func Level(before, exact uint32) uint32 {
	x := min(float64(exact)*levels/weight.Full, levels)
	if before >= 1 && before <= levels && math.Abs(x-float64(before)) <= slack {
		return before
	}
	return uint32(max(1, math.Round(x)))
}

// Entry is one endpoint as Istio is to know it.
type Entry struct {
	Name, Model, Address string
	Foreign              bool
	// Exact is its weight in the fleet, 1 to weight.Full.
	Exact uint32
}

// Entries returns the endpoints that take requests, in the order of the fleet. One that
// takes none has no entry: Istio takes weight 0 for unset.
func Entries(s Site, d *desired.State, snap *fleet.Snapshot) []Entry {
	if !d.Policy.Spec.Istio.On() {
		return nil
	}
	known := make(map[string]bool, len(d.Models))
	for _, m := range d.Models {
		known[m.Name] = true
	}
	owner := make(map[string]bool, len(snap.Endpoints)) // addresses that an engine of ours has claimed
	all := make([]Entry, 0, len(snap.Endpoints))
	for i := range snap.Endpoints {
		e := &snap.Endpoints[i]
		if e.Foreign == nil && owner[e.Address] {
			continue // a second claim to an address, which the fleet has refused
		}
		owner[e.Address] = true
		if e.Foreign != nil && e.Foreign.TLS.On() {
			continue // nobody there takes the plain text that Istio's Envoys would send
		}
		if e.Membership >= fleet.Leaving && known[e.Model] {
			all = append(all, Entry{
				Name:  s.Name + "-" + slug(e.Model) + "-" + digest(e.Address),
				Model: e.Model, Address: e.Address, Foreign: e.Foreign != nil, Exact: max(1, e.Weight),
			})
		}
	}
	return all
}

// Workload returns the object of an entry with the weight that is to be written.
func Workload(s Site, d *desired.State, e Entry, level uint32) (*Object, bool) {
	host, port, ok := hostPort(e.Address)
	if !ok {
		return nil, false
	}
	w := &networking.WorkloadEntry{Address: host, Ports: map[string]uint32{apiPort: port}, Labels: s.serves(e.Model), Weight: level}
	if d.Policy.Spec.Istio.TLS == config.TLSIstioMutual && !e.Foreign {
		w.ServiceAccount = s.Name + "-engine"
	}
	return s.object(WorkloadEntry, s.Namespace, e.Name, e.Model, w), true
}
