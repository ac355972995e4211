package fleetpb

import (
	"fmt"

	"millrace.dev/millrace/engine/enginepb"
)

// Version returns the version of the assignment that is refused.
func (r *Refusal) Version() enginepb.Version {
	return enginepb.Version{Epoch: r.GetControlEpoch(), Generation: r.GetGeneration()}
}

// Check returns which rule the report breaks that its definition can't say.
func (r *NodeReport) Check() error {
	e := r.GetEngine()
	if e == nil {
		return nil
	}
	if err := e.Check(); err != nil {
		return fmt.Errorf("engine.%w", err)
	}
	if e.GetNode() != r.GetNode() {
		return fmt.Errorf("engine.node: %q; must be %q, the node's own", e.GetNode(), r.GetNode())
	}
	return nil
}

// Check returns which rule the directive breaks that its definition can't say.
func (d *Directive) Check() error {
	if d.GetAssignment() == nil {
		return nil
	}
	return d.GetAssignment().Check()
}
