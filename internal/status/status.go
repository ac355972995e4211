package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/state"
)

// watchEvery is how often -watch looks.
const watchEvery = time.Second

// Options is what `millrace status` is asked for.
type Options struct {
	// Dir is the mesh's folder.
	Dir string
	// JSON asks for one JSON object (with Watch: one a line) instead of a table.
	JSON bool
	// Watch asks for a look every second until ctx ends.
	Watch bool
	// Out gets the report.
	Out io.Writer
	// Terminal is whether Out is a screen, which Watch draws anew each time. Width is how
	// many columns it has; 0: any number.
	Terminal bool
	Width    int
}

// errDown is the error of a report on a mesh that does not run.
var errDown = errors.New("no mesh runs here")

// Run looks once, or until ctx ends. It is an error if no mesh runs, so that a
// script can ask.
func Run(ctx context.Context, o Options) error {
	for {
		err := once(ctx, o)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil || !o.Watch {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchEvery):
		}
	}
}

func once(ctx context.Context, o Options) error {
	r, err := gather(ctx, o.Dir)
	if errors.Is(err, state.ErrNone) {
		return &obs.Hint{Err: fmt.Errorf("status: %w", err), Next: "start one with `" + obs.Command("millrace", "up", "-dir", o.Dir) + "`, or name its folder with -dir"}
	}
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	if err := show(o, r); err != nil {
		return err
	}
	if !r.Running {
		return &obs.Hint{Err: fmt.Errorf("status: %s: %w", o.Dir, errDown), Next: "start one with `" + obs.Command("millrace", "up", "-dir", o.Dir) + "`"}
	}
	return nil
}

// Read returns what is known of the mesh in a folder now.
func Read(ctx context.Context, dir string) (Report, error) { return gather(ctx, dir) }

// FromXDS reports whether xds has answered: else nothing is known of drains.
func (r Report) FromXDS() bool { return r.Source == fromXDS }

func show(o Options, r Report) error {
	switch {
	case o.JSON && o.Watch:
		return json.NewEncoder(o.Out).Encode(r)
	case o.JSON:
		enc := json.NewEncoder(o.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	case o.Watch && o.Terminal:
		const home = "\x1b[H\x1b[J" // to the top left, clear below
		if _, err := io.WriteString(o.Out, home); err != nil {
			return err
		}
	}
	return write(o.Out, r, time.Now(), o.Width)
}
