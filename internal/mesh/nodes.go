package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"millrace.dev/millrace/internal/drained"
	"millrace.dev/millrace/internal/nearest"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/state"
	"millrace.dev/millrace/internal/status"
)

// NodeOptions is what `millrace drain` and `millrace undrain` are asked for.
type NodeOptions struct {
	// Node is its name, Dir the mesh's folder.
	Node, Dir string
	// Force drains a node that is the only one to serve a model.
	Force bool
	// Timeout is how long it may take; 0: it is not waited for.
	Timeout time.Duration
	// Out gets a line for each step.
	Out io.Writer
}

// DrainNode has a node drained from now on, and waits until nothing is left there.
func DrainNode(ctx context.Context, o NodeOptions) error {
	s, running, err := o.read()
	if err != nil {
		return err
	}
	if !running {
		return &obs.Hint{Err: fmt.Errorf("%s: no mesh runs here", o.Dir), Next: "start it with " + obs.Command("millrace", "up", "-dir", o.Dir)}
	}
	if err := o.known(nodesOf(s)); err != nil {
		return err
	}
	r, err := status.Read(ctx, o.Dir)
	if err != nil {
		return err
	}
	if err := o.admit(r); err != nil && !o.Force {
		return err
	}
	if _, err := drained.Set(drained.In(o.Dir), o.Node, true, time.Now()); err != nil {
		return err
	}
	return o.await(ctx, o.drained)
}

// UndrainNode takes a node back, and waits until it serves again, where it has a replica.
func UndrainNode(ctx context.Context, o NodeOptions) error {
	s, running, err := o.read()
	if err != nil {
		return err
	}
	all, err := drained.Read(drained.In(o.Dir))
	if err != nil {
		return err
	}
	if err := o.known(slices.Compact(slices.Sorted(slices.Values(append(nodesOf(s), drained.Names(all)...))))); err != nil {
		return err
	}
	changed, err := drained.Set(drained.In(o.Dir), o.Node, false, time.Now())
	switch {
	case err != nil:
		return err
	case !changed:
		fmt.Fprintf(o.Out, "%s is not drained\n", o.Node)
		return nil
	case !running:
		fmt.Fprintf(o.Out, "%s is in service when the mesh runs again\n", o.Node)
		return nil
	}
	return o.await(ctx, o.back)
}

// read returns the state of the mesh.
func (o NodeOptions) read() (state.State, bool, error) {
	s, running, err := state.Read(o.Dir)
	if errors.Is(err, state.ErrNone) {
		err = &obs.Hint{Err: err, Next: "name the folder of a mesh with -dir; a node of Kubernetes is drained by kubectl"}
	}
	return s, running, err
}

// nodesOf returns the names of a mesh's nodes.
func nodesOf(s state.State) []string {
	var names []string
	for _, p := range s.Processes {
		if p.Node != "" && !slices.Contains(names, p.Node) {
			names = append(names, p.Node)
		}
	}
	return names
}

// known returns what is wrong with the node's name.
func (o NodeOptions) known(names []string) error {
	if slices.Contains(names, o.Node) {
		return nil
	}
	if near := nearest.Of(o.Node, names); near != "" {
		return program.Usage(fmt.Errorf("unknown node %q; did you mean %s?", o.Node, near))
	}
	return program.Usage(fmt.Errorf("unknown node %q; must be one of %s", o.Node, strings.Join(names, ", ")))
}

// admit returns why the node is better not drained.
func (o NodeOptions) admit(r status.Report) error {
	if !r.FromXDS() {
		return &obs.Hint{Err: errors.New("xds does not answer: whether another node serves the models of " + o.Node + " is not known"),
			Next: "try again when it does; -force drains it all the same"}
	}
	for _, n := range r.Nodes {
		if n.Node == o.Node && len(n.Sole) > 0 && n.Drain == nil {
			return &obs.Hint{
				Err:  fmt.Errorf("%s is the only node that serves %s: no other replica of it takes requests, and none can start elsewhere", o.Node, strings.Join(n.Sole, ", ")),
				Next: "undrain or add a node, or change the model's replicas or layout; -force drains it all the same: requests of the model still come there until it ends",
			}
		}
	}
	return nil
}

// readEvery is how often status is read.
const readEvery = 250 * time.Millisecond

// await reads the status until done, or the time is up. done returns what is to be shown.
func (o NodeOptions) await(ctx context.Context, done func(status.Report) (string, bool)) error {
	if o.Timeout == 0 {
		fmt.Fprintln(o.Out, "under way; millrace status shows how far it is")
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	shown := ""
	for {
		r, err := status.Read(ctx, o.Dir)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			return err
		case !r.Running:
			return &obs.Hint{Err: fmt.Errorf("%s: the mesh has ended", o.Dir), Next: "what was asked for is in force when it runs again"}
		default:
			text, ok := done(r)
			if text != shown {
				fmt.Fprintf(o.Out, "%s: %s\n", o.Node, text)
				shown = text
			}
			if ok {
				return nil
			}
		}
		if !sleep(ctx, readEvery) {
			return &obs.Hint{Err: fmt.Errorf("%s: still waiting: %s", o.Node, shown), Next: "it is under way all the same: millrace status shows how far it is"}
		}
	}
}

// drained returns how far the node is emptied, and whether there is nothing left to wait for:
// what nobody else serves does not end by itself.
func (o NodeOptions) drained(r status.Report) (string, bool) {
	if !r.FromXDS() {
		return "xds does not answer", false
	}
	for _, n := range r.Nodes {
		switch d := n.Drain; {
		case n.Node != o.Node:
		case d == nil:
			return "xds has not read it yet", false
		case d.Done:
			return "drained: " + d.Text, true
		default:
			return "draining: " + d.Text, o.Force && len(d.Serves) > 0 && len(d.Waits) == 0
		}
	}
	return "it has not reported yet: what runs there is not known", false
}

// back returns what the node does, and whether it serves again, or has nothing to serve.
func (o NodeOptions) back(r status.Report) (string, bool) {
	if !r.FromXDS() {
		return "xds does not answer", false
	}
	for _, n := range r.Nodes {
		switch {
		case n.Node != o.Node:
		case n.Drain != nil:
			return "xds has not read it yet", false
		case n.Replica == "":
			return "in service: a replica that needs a node may come there", true
		case n.State == "READY":
			return "in service, with " + n.Replica, true
		default:
			return n.Replica + ": " + n.Reason, false
		}
	}
	return "it has not reported yet", false
}
