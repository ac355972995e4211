package fleet

import (
	"fmt"

	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/xds/fleetpb"
)

// check returns which rule a report breaks. before is the stream's last report.
func check(r, before *fleetpb.NodeReport) error {
	if err := trust.Message(r); err != nil {
		return err
	}
	if r.GetSeq() <= before.GetSeq() {
		return fmt.Errorf("seq: %d after %d; must grow", r.GetSeq(), before.GetSeq())
	}
	if before.GetNode() != "" && r.GetNode() != before.GetNode() {
		return fmt.Errorf("node: %q after %q; a stream belongs to one node", r.GetNode(), before.GetNode())
	}
	return nil
}
