package mesh

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/state"
)

const (
	// stopGrace is how long a process may take to end by itself. The three phases
	// and the draining together stay below the ten seconds that people wait.
	stopGrace = 2 * time.Second
	// acceptWait is how long the next phase waits for the control plane's port.
	// It only spares Envoy a retry, so that it is no error to be without it.
	acceptWait = 3 * time.Second
)

// supervisor keeps the processes of a plan up.
type supervisor struct {
	specs   []Spec
	store   *state.Store
	show    *console
	trouble *trouble
	backoff proc.Backoff  // each process gets a copy
	grace   time.Duration // that a process may take to end by itself
}

func newSupervisor(specs []Spec, store *state.Store, show *console) *supervisor {
	return &supervisor{
		specs: specs, store: store, show: show,
		trouble: newTrouble(specs), grace: stopGrace,
		backoff: proc.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second, Reset: 10 * time.Second},
	}
}

// Run starts the phases in order and keeps every process up until ctx ends. Then
// it calls drain and stops the phases in reverse. When it returns none is left.
func (s *supervisor) Run(ctx context.Context, drain func()) {
	var phases []*phase
	for n := phaseControl; n <= phaseGateway && ctx.Err() == nil; n++ {
		phases = append(phases, s.start(context.WithoutCancel(ctx), n))
		if n == phaseControl {
			s.awaitControl(ctx)
		}
	}
	<-ctx.Done()
	drain()
	for _, p := range slices.Backward(phases) {
		p.stop()
	}
}

// phase is the processes that are started and stopped together.
type phase struct {
	cancel context.CancelFunc
	group  sync.WaitGroup
}

func (p *phase) stop() {
	p.cancel()
	p.group.Wait()
}

func (s *supervisor) start(ctx context.Context, n int) *phase {
	ctx, cancel := context.WithCancel(ctx)
	p := &phase{cancel: cancel}
	for _, spec := range s.specs {
		if spec.Phase == n {
			k := &keeper{supervisor: s, spec: spec, wait: s.backoff}
			p.group.Go(func() { k.run(ctx) })
		}
	}
	return p
}

// awaitControl waits until the control plane accepts connections.
func (s *supervisor) awaitControl(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, acceptWait)
	defer cancel()
	for _, spec := range s.specs {
		if addr := spec.Addrs["grpc"]; spec.Phase == phaseControl && addr != "" {
			awaitAccept(ctx, addr)
		}
	}
}

func awaitAccept(ctx context.Context, addr string) {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err == nil {
			_ = conn.Close()
			return
		}
		if !sleep(ctx, 20*time.Millisecond) {
			return
		}
	}
}

// sleep waits and reports whether ctx still holds.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// keeper keeps one process up.
type keeper struct {
	*supervisor
	spec   Spec
	wait   proc.Backoff
	starts int
}

func (k *keeper) run(ctx context.Context) {
	for {
		began := time.Now()
		err := k.once(ctx)
		if ctx.Err() != nil {
			return
		}
		ran := time.Since(began)
		wait := k.wait.Next(ran)
		k.died(err, ran, wait)
		if !sleep(ctx, wait) {
			return
		}
	}
}

// once runs the process until it ends or ctx does, and says why it ended.
func (k *keeper) once(ctx context.Context) error {
	p, err := k.spawn()
	if err != nil {
		return err
	}
	k.set(func(row *state.Process) {
		row.PID, row.Reason, row.Restarts = p.PID(), "", k.starts
		row.Since = time.Now().UTC()
	})
	k.starts++
	select {
	case <-p.Done():
	case <-ctx.Done():
		_ = p.Stop(k.grace)
		k.set(func(row *state.Process) {
			row.PID, row.Reason, row.Since = 0, "millrace up stopped it", time.Now().UTC()
		})
		return nil
	}
	if err := p.Err(); err != nil {
		return err
	}
	return errors.New("ended by itself")
}

func (k *keeper) spawn() (*proc.Process, error) {
	cmd := exec.Command(k.spec.Path, k.spec.Args...)
	cmd.Env = append(os.Environ(), k.spec.Env...)
	log, err := regular.Append(k.spec.Log, 0, 0o644)
	if err != nil { // it matters more that the program runs
		k.show.progress("%s runs without a log: %v", k.spec.Name, err)
		return proc.Start(cmd)
	}
	defer log.Close() // the child has its own
	cmd.Stdout, cmd.Stderr = log, log
	return proc.Start(cmd)
}

// died shows a death that nobody asked for.
func (k *keeper) died(err error, ran, wait time.Duration) {
	k.set(func(row *state.Process) {
		row.PID, row.Reason, row.LastExit, row.Since = 0, err.Error(), err.Error(), time.Now().UTC()
	})
	if line := k.trouble.died(k.spec, err, ran); line != "" {
		k.show.progress("%s", line)
		return
	}
	if k.trouble.quiet(k.spec.Name) {
		return
	}
	k.show.progress("%s ended after %s: %v; starts again in %s", k.spec.Name, short(ran), err, wait)
}

// set changes the process's row. A file that can't be written is shown by the
// mesh's sweep, which tries again.
func (k *keeper) set(change func(*state.Process)) {
	_ = k.store.Update(func(s *state.State) {
		row := s.Find(k.spec.Name)
		change(row)
		if row.PID == 0 && k.spec.Role == "engine" {
			dropChildren(s, k.spec.Node)
		}
	})
}
