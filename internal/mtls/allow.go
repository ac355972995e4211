package mtls

import (
	"errors"
	"fmt"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	edsv3 "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/health/grpc_health_v1"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/extproc/peerpb"
	"millrace.dev/millrace/xds/fleetpb"
)

// What can be asked for that is no gRPC method.
const (
	OpenAI = "the OpenAI API"
	Shard  = "a shard"
	Admin  = "the admin page"
)

// Call is what a caller asks of a server.
type Call struct {
	// Server is whose port it is.
	Server ID
	// Method is a full name of gRPC's, or one of the above.
	Method string
	// Node is the node that the call speaks for, where a message names one: the node
	// of a report, the head of a shard's replica. Empty: not known yet.
	Node string
	// Type is the type URL of the resources that are subscribed to; empty: not known yet.
	Type string
}

// grant lets callers of a role in.
type grant struct {
	role Role
	// node says which node's they must be.
	node reach
	// types is how the type URLs of what they subscribe to begin; empty: any.
	types string
}

// reach is which node's callers are let in.
type reach int

const (
	anyNode   reach = iota
	serversOf       // only those of the server's own node
	spokenFor       // only those of the node that the call speaks for
)

const (
	envoysTypes = "type.googleapis.com/envoy."
	ourTypes    = "type.googleapis.com/millrace."
)

// grants says who may ask for what. What is not in it nobody may ask for.
var grants = map[string][]grant{
	// Of extproc. Who asks for health learns whether it serves, and nothing else.
	extprocv3.ExternalProcessor_Process_FullMethodName: {{role: Envoy}},
	grpc_health_v1.Health_Check_FullMethodName:         everybody,
	grpc_health_v1.Health_Watch_FullMethodName:         everybody,
	peerpb.Peers_Follow_FullMethodName:                 {{role: ExtProc}},
	// Where there is no xds, it says which hosts there are.
	edsv3.EndpointDiscoveryService_DeltaEndpoints_FullMethodName:  {{role: Envoy, types: envoysTypes}},
	edsv3.EndpointDiscoveryService_StreamEndpoints_FullMethodName: {{role: Envoy, types: envoysTypes}},
	// Of xds. Policies hold the keys of cookies: they are extproc's alone.
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName:  {{role: Envoy, types: envoysTypes}, {role: ExtProc, types: ourTypes}},
	discoveryv3.AggregatedDiscoveryService_StreamAggregatedResources_FullMethodName: {{role: Envoy, types: envoysTypes}, {role: ExtProc, types: ourTypes}},
	fleetpb.Fleet_Report_FullMethodName:                                             {{role: NodeAgent, node: spokenFor}},
	fleetpb.Fleet_Demand_FullMethodName:                                             {{role: ExtProc}},
	fleetpb.Fleet_Decisions_FullMethodName:                                          {{role: ExtProc}},
	fleetpb.Fleet_Watch_FullMethodName:                                              {{role: Operator}},
	// Of engine.
	enginepb.Engine_Watch_FullMethodName:  {{role: NodeAgent, node: serversOf}, {role: Engine}, {role: Operator}},
	enginepb.Engine_Assign_FullMethodName: {{role: NodeAgent, node: serversOf}},
	enginepb.Records_Load_FullMethodName:  {{role: Engine}},
	enginepb.Records_Keep_FullMethodName:  {{role: Engine}},
	// KV states of conversations.
	enginepb.Snapshots_Offer_FullMethodName: {{role: Engine}},
	enginepb.Snapshots_Keep_FullMethodName:  {{role: Engine}},
	enginepb.Snapshots_Find_FullMethodName:  {{role: Engine}},
	enginepb.Snapshots_Load_FullMethodName:  {{role: Engine}},
	// An engine asks another one for the rest of an answer whose backend was lost.
	OpenAI: {{role: Envoy}, {role: Operator}, {role: Engine}},
	Shard:  {{role: Engine, node: spokenFor}},
	// Of all.
	Admin: {{role: Operator}},
}

var everybody = []grant{{role: Envoy}, {role: Operator}, {role: ExtProc}, {role: XDS}, {role: NodeAgent}, {role: Engine}}

// errNobody is why a call is refused that is in no grant.
var errNobody = errors.New("nobody may")

// Allow returns why the caller may not ask for it; nil: it may. While Node or Type
// of the call is not known yet, it returns nil for who may ask for some of them: it
// is to be called again when a message has named them.
func Allow(caller ID, c Call) error {
	err := errNobody
	if caller.Domain != c.Server.Domain {
		return refusal(caller, c, fmt.Errorf("it is not of %s", c.Server.Domain))
	}
	for _, g := range grants[c.Method] {
		if g.role != caller.Role {
			if errors.Is(err, errNobody) {
				err = errors.New("its role may not")
			}
			continue
		}
		if err = g.admits(caller, c); err == nil {
			return nil
		}
	}
	return refusal(caller, c, err)
}

// admits returns why a caller of the grant's role is not let in.
func (g grant) admits(caller ID, c Call) error {
	switch {
	case g.node == serversOf && caller.Node != c.Server.Node:
		return fmt.Errorf("it is of another node than %s", c.Server.Node)
	case g.node == spokenFor && c.Node != "" && caller.Node != c.Node:
		return fmt.Errorf("it speaks for node %s", c.Node)
	case c.Type != "" && !strings.HasPrefix(c.Type, g.types):
		return fmt.Errorf("it subscribes to %s", c.Type)
	}
	return nil
}

func refusal(caller ID, c Call, why error) error {
	return fmt.Errorf("%s may not ask %s for %s: %w", caller, c.Server, strings.TrimPrefix(c.Method, "/"), why)
}
