package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"millrace.dev/millrace/internal/proc"
)

// program is one process under measurement.
type program struct {
	*proc.Process
	log   string // path of what it says
	addr  string // where it is driven
	admin string // where its metrics are; empty: it has none
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
		resp, err := http.Get("http://" + p.admin + "/debug/pprof/heap?gc=1")
		if err != nil {
			return 0, err
		}
		resp.Body.Close()
	}
	return p.metric("go_memstats_heap_alloc_bytes")
}

// metric returns the value of a metric without labels.
func (p *program) metric(name string) (float64, error) {
	resp, err := http.Get("http://" + p.admin + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, fmt.Errorf("no metric %s: %v", name, lines.Err())
}

// launch starts a program and waits until it listens on addr.
func (b *bench) launch(ctx context.Context, name, addr, path string, env []string, args ...string) (*program, error) {
	p := &program{log: filepath.Join(b.dir, name+".log"), addr: addr}
	f, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir = b.dir
	cmd.Stdout, cmd.Stderr = f, f
	if p.Process, err = proc.Start(cmd); err != nil {
		return nil, err
	}
	if err := p.listens(ctx, addr); err != nil {
		p.stop()
		return nil, fmt.Errorf("%s: %w\n%s", name, err, p.said())
	}
	return p, nil
}

func (p *program) listens(ctx context.Context, addr string) error {
	return wait(ctx, 30*time.Second, func() error {
		select {
		case <-p.Done():
			return fmt.Errorf("it ended: %v", p.Err())
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

// said returns the end of its log.
func (p *program) said() string {
	b, _ := os.ReadFile(p.log)
	return string(b[max(0, len(b)-2000):])
}

// cpu returns the CPU time that the process has used.
func (p *program) cpu() time.Duration {
	st, err := proc.State(p.PID())
	if err != nil {
		return 0
	}
	return st.CPU
}

// wait asks cond until it returns nil, and returns its last answer when the
// limit has passed.
func wait(ctx context.Context, limit time.Duration, cond func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("after %v: %w", limit, err), context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// addresses returns n free loopback addresses.
func addresses(n int) ([]string, error) {
	ports, err := proc.FreePorts(n)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, p := range ports {
		all = append(all, net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
	}
	return all, nil
}

// bare is an echo picker's host if it is to name none.
const bare = "-"

// echoPicker starts the floor.
func (b *bench) echoPicker(ctx context.Context, name, addr, dest string) (*program, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	at, err := addresses(1)
	if err != nil {
		return nil, err
	}
	p, err := b.launch(ctx, name, addr, self, []string{echoEnv + "=" + strings.Join([]string{addr, at[0], dest}, " ")})
	if p != nil {
		p.admin = at[0]
	}
	return p, err
}
