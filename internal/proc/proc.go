// Package proc starts child processes that can't be left behind, and reports
// their state from /proc.
//
// Called by `millrace up` for the programs and by engine for its backends. Its
// one rule: a child never outlives the process that started it.
package proc

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a running child, or one that has ended.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended; set before done is closed
}

// spawn runs f on one thread that lives as long as the process. The kernel sends
// the parent-death signal when the thread that forked ends, not the process, and
// Go ends threads when it likes.
var spawn = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// Start starts cmd in a process group of its own, which is killed when its leader
// ends; the leader is killed, or gets the signal that cmd names, when this process ends
// for whatever reason. The caller must not call cmd.Wait.
func Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if cmd.SysProcAttr.Pdeathsig == 0 {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	started := make(chan error)
	spawn() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go p.wait()
	return p, nil
}

// wait waits for the process's end, and ends what is left of its group: until the
// leader is reaped nobody else's group can have its id.
func (p *Process) wait() {
	var info unix.Siginfo
	for unix.Waitid(unix.P_PID, p.PID(), &info, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	_ = unix.Kill(-p.PID(), syscall.SIGKILL)
	p.err = p.cmd.Wait()
	close(p.done)
}

// PID returns the process id, also after its end.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the process ended: nil is exit status 0. It blocks until Done.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Stop asks the process group to end with SIGTERM, kills it after grace, and
// waits. A stopped (SIGSTOP) process ends too.
func (p *Process) Stop(grace time.Duration) error {
	p.signal(syscall.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.Kill()
	}
	return p.Err()
}

// Kill kills the process group at once; it does not wait.
func (p *Process) Kill() { p.signal(syscall.SIGKILL) }

// signal reaches the whole group as long as its leader has not been reaped, so
// that the id can't belong to somebody else.
func (p *Process) signal(sig syscall.Signal) {
	select {
	case <-p.done:
	default:
		if err := unix.Kill(-p.PID(), sig); errors.Is(err, unix.ESRCH) {
			_ = p.cmd.Process.Signal(sig)
		}
	}
}
