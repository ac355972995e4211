package enginepb

import (
	"errors"
	"fmt"

	"millrace.dev/millrace/internal/trust"
)

// Check returns which rule the status breaks that its definition can't say. A host that is
// no IP address would make Envoy refuse every endpoint of the model.
func (s *Status) Check() error {
	if err := s.GetCache().Check(); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	if a := s.GetAssignment(); a != nil {
		if err := a.Check(); err != nil {
			return fmt.Errorf("assignment.%w", err)
		}
		if a.Releases() {
			return errors.New("assignment: a release; must be unset then")
		}
	}
	for _, a := range []struct{ field, text string }{
		{"http_address", s.GetHttpAddress()}, {"grpc_address", s.GetGrpcAddress()}, {"shard_address", s.GetShardAddress()},
	} {
		if a.text == "" {
			continue
		}
		if err := trust.Address(a.text); err != nil {
			return fmt.Errorf("%s: %w", a.field, err)
		}
	}
	return nil
}
