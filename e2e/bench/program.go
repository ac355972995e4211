package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/proc"
)

// program is one process under measurement.
type program struct {
	*proc.Process
	out   rig.Buffer // what it writes
	addr  string     // where it is driven
	admin string     // where its metrics are; empty: it has none
}

// memory returns the process's resident memory, in bytes.
func (p *program) memory() float64 {
	st, err := proc.State(p.PID())
	if err != nil {
		return 0
	}
	return float64(st.RSS)
}

// ran returns the CPU time that the process has used, to the nanosecond: cpu
// counts in ticks of 10 ms.
func (p *program) ran() (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.PID()))
	if err != nil {
		return 0, err
	}
	var all time.Duration
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		ns, _, _ := strings.Cut(string(b), " ")
		n, err := strconv.ParseInt(ns, 10, 64)
		if err != nil {
			return 0, err
		}
		all += time.Duration(n)
	}
	return all, nil
}

// live returns the memory of what the process uses, in bytes: garbage is
// collected first.
func (p *program) live() (float64, error) {
	for range 2 { // what pools keep goes with the second collection
		if _, err := rig.Get("http://" + p.admin + "/debug/pprof/heap?gc=1"); err != nil {
			return 0, err
		}
	}
	return p.metric("go_memstats_heap_alloc_bytes")
}

// metric returns the value of one series.
func (p *program) metric(series string) (float64, error) { return rig.Metric(p.admin, series) }

// launch starts a program and waits until it listens on addr.
func (b *bench) launch(ctx context.Context, name, addr, path string, env []string, args ...string) (*program, error) {
	p := &program{addr: addr}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir = b.dir
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	var err error
	if p.Process, err = proc.Start(cmd); err != nil {
		return nil, err
	}
	if err := p.listens(ctx, addr); err != nil {
		p.stop()
		return nil, fmt.Errorf("%s: %w\n%s", name, err, p.out.Tail())
	}
	return p, nil
}

func (p *program) listens(ctx context.Context, addr string) error {
	return rig.PollContext(ctx, 30*time.Second, func() error {
		select {
		case <-p.Done():
			return rig.Final(fmt.Errorf("it ended: %v", p.Err()))
		default:
		}
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

func (p *program) stop() { _ = p.Stop(5 * time.Second) }

// cpu returns the CPU time that the process has used.
func (p *program) cpu() time.Duration {
	st, err := proc.State(p.PID())
	if err != nil {
		return 0
	}
	return st.CPU
}

// bare is an echo picker's host if it is to name none.
const bare = "-"

// echoPicker starts the floor.
func (b *bench) echoPicker(ctx context.Context, name, addr, dest string) (*program, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	at, err := rig.Addresses(1)
	if err != nil {
		return nil, err
	}
	p, err := b.launch(ctx, name, addr, self, []string{echoEnv + "=" + strings.Join([]string{addr, at[0], dest}, " ")})
	if p != nil {
		p.admin = at[0]
	}
	return p, err
}
