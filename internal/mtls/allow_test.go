package mtls

import (
	"strings"
	"testing"

	"millrace.dev/millrace/internal/wire"
)

func TestParse(t *testing.T) {
	for _, uri := range []string{
		"spiffe://millrace/node/node-a/engine", "spiffe://millrace/node/node-a/nodeagent", "spiffe://a.b/xds", "spiffe://a.b/extproc",
		"spiffe://a.b/envoy", "spiffe://a.b/operator",
	} {
		if id, err := Parse(uri); err != nil || id.String() != uri {
			t.Errorf("Parse(%s) = %v, %v", uri, id, err)
		}
	}
	for _, uri := range []string{
		"", "https://millrace/xds", "spiffe://millrace", "spiffe://millrace/", "spiffe://millrace/engine", "spiffe://millrace/node/node-a/xds",
		"spiffe://millrace/node/node-a/engine/more", "spiffe://millrace/node//engine", "spiffe://millrace/node/Node/engine", "spiffe://millrace/root",
		"spiffe://millrace/xds?x=1", "spiffe://millrace:1/xds", "spiffe://user@millrace/xds", "spiffe://millrace/node/../xds",
	} {
		if id, err := Parse(uri); err == nil {
			t.Errorf("Parse(%s) = %v; want an error", uri, id)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://millrace/node/node-a/engine")
	f.Add("spiffe://millrace/xds")
	f.Fuzz(func(t *testing.T, uri string) {
		if id, err := Parse(uri); err == nil && id.String() != uri {
			t.Errorf("Parse(%q) is %q", uri, id)
		}
	})
}

// TestAllow goes through every method and every role: who is not named may not.
func TestAllow(t *testing.T) {
	id := func(path string) ID {
		id, err := Parse("spiffe://millrace" + path)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	all := []ID{
		id("/envoy"), id("/extproc"), id("/xds"), id("/operator"),
		id("/node/node-a/engine"), id("/node/node-a/nodeagent"), id("/node/node-b/engine"), id("/node/node-b/nodeagent"),
	}
	xds, extproc, engine := id("/xds"), id("/extproc"), id("/node/node-a/engine")
	const fleet, ads, eng, health = "/millrace.fleet.v1alpha1.Fleet/", "/envoy.service.discovery.v3.AggregatedDiscoveryService/", "/millrace.engine.v1alpha1.Engine/", "/grpc.health.v1.Health/"
	everyone := "/envoy /extproc /xds /operator /node/node-a/engine /node/node-a/nodeagent /node/node-b/engine /node/node-b/nodeagent"
	tests := []struct {
		name string
		call Call
		may  string
	}{
		{"Envoy alone asks for a choice", Call{Server: extproc, Method: "/envoy.service.ext_proc.v3.ExternalProcessor/Process"}, "/envoy"},
		{"replicas of extproc follow each other", Call{Server: extproc, Method: "/millrace.peer.v1alpha1.Peers/Follow"}, "/extproc"},
		{"Envoy has its hosts from extproc", Call{Server: extproc, Method: "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints", Type: wire.TypePrefix + "envoy.config.endpoint.v3.ClusterLoadAssignment"}, "/envoy"},
		{"everybody of the mesh may check health", Call{Server: extproc, Method: health + "Check"}, everyone},
		{"subscribers, before they say to what", Call{Server: xds, Method: ads + "DeltaAggregatedResources"}, "/envoy /extproc"},
		{"Envoy's resources are Envoy's", Call{Server: xds, Method: ads + "DeltaAggregatedResources", Type: wire.TypePrefix + "envoy.config.cluster.v3.Cluster"}, "/envoy"},
		{"policies hold keys of cookies", Call{Server: xds, Method: ads + "DeltaAggregatedResources", Type: wire.PolicyType}, "/extproc"},
		{"an unknown type", Call{Server: xds, Method: ads + "DeltaAggregatedResources", Type: "type.googleapis.com/x.Y"}, ""},
		{"reporters, before they say for whom", Call{Server: xds, Method: fleet + "Report"}, "/node/node-a/nodeagent /node/node-b/nodeagent"},
		{"a nodeagent reports its own node", Call{Server: xds, Method: fleet + "Report", Node: "node-a"}, "/node/node-a/nodeagent"},
		{"a person sees the fleet", Call{Server: xds, Method: fleet + "Watch"}, "/operator"},
		{"an engine is watched by its own nodeagent and its peers", Call{Server: engine, Method: eng + "Watch"}, "/operator /node/node-a/engine /node/node-a/nodeagent /node/node-b/engine"},
		{"an engine obeys its own nodeagent alone", Call{Server: engine, Method: eng + "Assign"}, "/node/node-a/nodeagent"},
		{"requests come from Envoy, and the rest of an answer to an engine from another", Call{Server: engine, Method: OpenAI}, "/envoy /operator /node/node-a/engine /node/node-b/engine"},
		{"a shard serves the head of its replica", Call{Server: engine, Method: Shard, Node: "node-b"}, "/node/node-b/engine"},
		{"the admin page", Call{Server: engine, Method: Admin}, "/operator"},
		{"what is in no grant", Call{Server: engine, Method: eng + "Erase"}, ""},
		{"another trust domain", Call{Server: ID{Domain: "other", Role: XDS}, Method: health + "Check"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			may := map[string]bool{}
			for _, path := range strings.Fields(tt.may) {
				may["spiffe://millrace"+path] = true
			}
			for _, caller := range all {
				err := Allow(caller, tt.call)
				if (err == nil) != may[caller.String()] {
					t.Errorf("Allow(%s) = %v", caller, err)
				}
				if err != nil && (!strings.Contains(err.Error(), caller.String()) || !strings.Contains(err.Error(), strings.TrimPrefix(tt.call.Method, "/"))) {
					t.Errorf("%v; names not who may not do what", err)
				}
			}
		})
	}
}
