package main

import (
	"errors"
	"fmt"
	"net"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/fleetpb"
)

// book is an xds that says once what the fleet is: any number of endpoints,
// whose news would cost the machine more than what is measured.
type book struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	// Constant.
	addr      string
	resources map[string][]*discoveryv3.Resource // by type
	server    *grpc.Server
}

// newBook serves a fleet of n ready engines at an address.
func (b *bench) newBook(addr string, n int) (*book, error) {
	k := &book{addr: addr, resources: map[string][]*discoveryv3.Resource{}, server: grpc.NewServer()}
	err := errors.Join(
		k.put("default", &fleetpb.PolicyState{SessionHeader: "x-session-id", MaxSessions: 100000, Candidates: 4, CandidatesCritical: 4, DefaultPriority: "standard", MaxBodyBytes: 16 << 20}),
		k.put(modelName, &fleetpb.ModelState{Name: modelName, Tokenizer: b.weights(), ContextTokens: 1 << 17, Default: true}),
	)
	for i := range n {
		host := fmt.Sprintf("10.%d.%d.%d:8000", i>>16, i>>8&255, i&255)
		err = errors.Join(err, k.put(host, &fleetpb.EndpointState{
			Address: host, Node: fmt.Sprintf("node-%04d", i), Zone: fmt.Sprintf("zone-%d", i%3), Model: modelName, Replica: fmt.Sprintf("%s-%d", modelName, i),
			State: fleetpb.EndpointState_READY, Weight: 1000, Epoch: 1, Health: 1,
			Load:  &enginepb.Load{Slots: 32, KvTotalTokens: 1 << 19, KvUsedTokens: uint64(i%100) << 11},
			Speed: &enginepb.Speed{Prefill: 5000 + float64(i%7)*10, Decode: 50 + float64(i%5)},
		}))
	}
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(k.server, k)
	go func() { _ = k.server.Serve(ln) }() // until stop
	return k, nil
}

func (k *book) stop() { k.server.Stop() }

func (k *book) put(name string, m proto.Message) error {
	inside, err := anypb.New(m)
	if err != nil {
		return err
	}
	t := inside.GetTypeUrl()
	k.resources[t] = append(k.resources[t], &discoveryv3.Resource{Name: name, Version: "1", Resource: inside})
	return nil
}

// DeltaAggregatedResources answers the first request for each type.
func (k *book) DeltaAggregatedResources(st discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	for {
		r, err := st.Recv()
		if err != nil {
			return err
		}
		if r.GetResponseNonce() != "" {
			continue
		}
		err = st.Send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: r.GetTypeUrl(), Nonce: "1", Resources: k.resources[r.GetTypeUrl()]})
		if err != nil {
			return err
		}
	}
}
