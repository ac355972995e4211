package enginepb

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/internal/trust"
)

// Releases reports whether the assignment only ends what the engine serves.
func (a *Assignment) Releases() bool {
	return a.GetModel() == "" && a.GetReplica() == "" && len(a.GetStages()) == 0 && a.GetBackend() == nil
}

// Check returns which rule the assignment breaks that its definition can't say: a
// release has nothing but a version, anything else is whole, and addresses are of hosts.
func (a *Assignment) Check() error {
	switch {
	case a.Releases() && a.GetStage() > 0:
		return errors.New("stage: set without stages; a release has only a generation")
	case a.Releases():
		return nil
	case a.GetModel() == "":
		return errors.New("model: missing")
	case a.GetReplica() == "":
		return errors.New("replica: missing")
	case len(a.GetStages()) == 0:
		return errors.New("stages: missing; must be at least one")
	case a.GetBackend() == nil:
		return errors.New("backend: missing")
	}
	for i, s := range a.GetStages() {
		if err := s.check(); err != nil {
			return fmt.Errorf("stages[%d].%w", i, err)
		}
	}
	return nil
}

// check returns which of the stage's addresses is none of a host.
func (s *Stage) check() error {
	if err := trust.Address(s.GetEngineAddress()); err != nil {
		return fmt.Errorf("engine_address: %w", err)
	}
	if text := s.GetShardAddress(); text != "" {
		if err := trust.Address(text); err != nil {
			return fmt.Errorf("shard_address: %w", err)
		}
	}
	return nil
}

// ProcessKey names what the processes of a replica are started with, on all of its
// nodes; empty: nothing is started. Assignments that differ only in what the key
// leaves out (generation, name of the replica, whom to watch, admission, goal, drain, when it is loaded, how long it is kept without requests) are
// served by the same processes.
func (a *Assignment) ProcessKey() string {
	if a == nil || a.Releases() {
		return ""
	}
	b := proto.CloneOf(a.GetBackend())
	if b == nil {
		b = &Backend{}
	}
	b.Queue, b.MaxBodyBytes, b.Drain, b.KeepAlive, b.OnDemand, b.Goal = 0, 0, nil, nil, false, nil
	key := &Assignment{Model: a.GetModel(), Backend: b}
	for _, s := range a.GetStages() {
		stage := &Stage{Node: s.GetNode()}
		if len(a.GetStages()) > 1 {
			stage.ShardAddress, stage.Share = s.GetShardAddress(), s.GetShare()
		}
		key.Stages = append(key.Stages, stage)
	}
	text, _ := proto.MarshalOptions{Deterministic: true}.Marshal(key) // never fails: all texts came as UTF-8
	return string(text)
}

// SameProcess reports whether what runs for a serves b as it is.
func SameProcess(a, b *Assignment) bool { return a.ProcessKey() == b.ProcessKey() }
