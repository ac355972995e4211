// Package doctor examines a machine for everything that a mesh needs, and says
// the way out of what it finds wrong.
//
// Called by `millrace check`. Its one rule: it changes nothing, so that it may run at
// any time, beside a working mesh, too.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/setup"
)

// Options say which mesh to examine the machine for.
type Options struct {
	// Setup is what `millrace up` would be given.
	Setup setup.Options
	// Dir is the mesh's folder, with its state.json.
	Dir string
	// Listen is the mesh's public address, "ip:port".
	Listen string
}

// ErrFailed is returned by Run when a mesh can't start here. The table has
// said why.
var ErrFailed = errors.New("a mesh can't start here; see FAIL above")

// timeout bounds one examination: a program that hangs is a finding.
const timeout = 20 * time.Second

// verdict is how bad a finding is.
type verdict string

const (
	ok   verdict = "ok"
	warn verdict = "warn" // a mesh starts, but not as it should
	fail verdict = "FAIL" // no mesh starts
)

// finding is a line of the table.
type finding struct {
	verdict verdict
	what    string // was examined
	found   string
	next    string // the way out, "" if all is well
}

// Run examines the machine and writes the table to w.
func Run(ctx context.Context, o Options, w io.Writer) error {
	if o.Setup.Cache == "" {
		o.Setup.Cache = setup.DefaultCache()
	}
	failed := false
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range examine(ctx, o) {
		failed = failed || f.verdict == fail
		fmt.Fprintf(table, "%s\t%s\t%s", f.verdict, f.what, f.found)
		if f.next != "" {
			fmt.Fprintf(table, "\t→ %s", f.next)
		}
		fmt.Fprintln(table)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if failed {
		return ErrFailed
	}
	return ctx.Err()
}

// examine checks everything, in the order in which a start would trip over it.
func examine(ctx context.Context, o Options) []finding {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	paths, need, err := setup.Inspect(ctx, o.Setup)
	p := parts{options: o.Setup, paths: paths, need: need}
	all := []finding{cpu(), memory(), files(), loopback()}
	all = append(all, p.tools(ctx)...)
	all = append(all, p.cache(err), p.disk())
	if err == nil {
		all = append(all, p.envoy(ctx), p.llama(ctx), p.model())
	}
	return append(all, mesh(o)...)
}

// broken is the finding for an error, with the way out if the error knows one.
func broken(v verdict, what string, err error) finding {
	f := finding{verdict: v, what: what, found: err.Error()}
	if h := (*obs.Hint)(nil); errors.As(err, &h) {
		f.next = h.Next
	}
	return f
}
