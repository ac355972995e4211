package backend

import (
	"context"
	"errors"
	"time"

	"millrace.dev/millrace/engine/enginepb"
)

// States saves and restores what the KV cache of a backend has of one sequence.
type States interface {
	// Identity is what another backend must have in common with this one to restore what it
	// saves. It may take as long as reading the weights does.
	Identity(context.Context, *enginepb.Assignment) (*enginepb.SnapshotIdentity, error)
	// Save writes the state of the idle sequence that was used last of those with about so many
	// tokens, prompt and answer, to a file. It fails with ErrNoState.
	Save(ctx context.Context, a *enginepb.Assignment, tokens uint64, file string) (Saved, error)
	// Restore puts the state in a file, which is trusted, in the place of the idle sequence that
	// was used the longest ago. No other Restore takes that before free is called. It fails
	// with ErrNoState where all are in use.
	Restore(ctx context.Context, a *enginepb.Assignment, file string) (free func(), err error)
}

// Saved is what Save has saved.
type Saved struct {
	// Tokens are how many the state is of.
	Tokens uint64
	// Stalled is for how long the backend did nothing else.
	Stalled time.Duration
}

// ErrNoState is returned where no sequence is as it must be.
var ErrNoState = errors.New("no such sequence is idle")
