package fleet

import (
	"errors"
	"fmt"
	"net/netip"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/fleetpb"
)

// check returns which rule a report breaks. before is the stream's last report.
func check(r, before *fleetpb.NodeReport) error {
	if err := r.ValidateAll(); err != nil {
		return err
	}
	if r.GetSeq() <= before.GetSeq() {
		return fmt.Errorf("seq: %d after %d; must grow", r.GetSeq(), before.GetSeq())
	}
	if before.GetNode() != "" && r.GetNode() != before.GetNode() {
		return fmt.Errorf("node: %q after %q; a stream belongs to one node", r.GetNode(), before.GetNode())
	}
	if r.GetEngine() == nil {
		return nil
	}
	return checkEngine(r.GetEngine(), r.GetNode())
}

// checkEngine returns which rule an engine's status breaks that the protobuf
// definition can't say. A host that isn't an IP address would make Envoy refuse
// every endpoint of the model.
func checkEngine(e *enginepb.Status, node string) error {
	if err := e.GetCache().Check(); err != nil {
		return fmt.Errorf("engine.cache: %w", err)
	}
	if a := e.GetAssignment(); a != nil {
		if err := a.Check(); err != nil {
			return fmt.Errorf("engine.assignment.%w", err)
		}
		if a.Releases() {
			return errors.New("engine.assignment: a release; must be unset then")
		}
	}
	if e.GetNode() != node {
		return fmt.Errorf("engine.node: %q; must be %q, the node's own", e.GetNode(), node)
	}
	for field, addr := range map[string]string{
		"http_address": e.GetHttpAddress(), "grpc_address": e.GetGrpcAddress(), "shard_address": e.GetShardAddress(),
	} {
		if addr == "" {
			continue
		}
		if a, err := netip.ParseAddrPort(addr); err != nil || a.Port() == 0 {
			return fmt.Errorf("engine.%s: %q; must be ip:port", field, addr)
		}
	}
	return nil
}
