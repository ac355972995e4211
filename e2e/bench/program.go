package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"millrace.dev/millrace/internal/proc"
)

// program is one process under measurement.
type program struct {
	*proc.Process
	log string // path of what it says
}

// launch starts a program and waits until it listens on addr.
func (b *bench) launch(ctx context.Context, name, addr, path string, env []string, args ...string) (*program, error) {
	p := &program{log: filepath.Join(b.dir, name+".log")}
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

// echoPicker starts the floor.
func (b *bench) echoPicker(ctx context.Context, name, addr, dest string) (*program, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return b.launch(ctx, name, addr, self, []string{echoEnv + "=" + addr + " " + dest})
}
