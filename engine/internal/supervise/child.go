package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/proc"
)

// beatLate is the silence of a process that has beaten before, and uses no CPU,
// after which it counts as hung. A stopped process counts at once.
const beatLate = 1500 * time.Millisecond

// child is one start of a process, or one attachment to a server that runs
// elsewhere.
type child struct {
	run    uint64
	spec   backend.Process
	proc   *proc.Process // nil: it could not be started, or it runs elsewhere
	output *output       // nil: it has none here
	exit   string        // how it ended, once somebody asked
	remote bool          // whether it runs elsewhere
	// done is closed when it has ended; nil: it never began. lose closes that of a
	// remote one, with the reason.
	done <-chan struct{}
	lose func(why string)

	// Atomic.
	beat    atomic.Int64           // when it last beat, in ns since the epoch; 0: never
	serving atomic.Bool            // whether it listens, or answers
	missing atomic.Pointer[string] // what a remote one lacks to serve; nil: nothing

	// Of the supervisor's loop only.
	checked time.Time     // when /proc was last read
	cpu     time.Duration // used by then
	active  time.Time     // when cpu last grew
	rss     uint64        // bytes
	hung    bool
	group   []int     // the processes of a group, found at counted
	counted time.Time //
}

// outputFor is how long what has been written is still read after the process has ended.
const outputFor = 2 * time.Second

// spawn starts a process with its output appended to the log file, as far as that can be
// written, and a pipe for its beats as file descriptor 3.
func spawn(run uint64, p backend.Process, logPath string, now time.Time) (*child, *os.File) {
	c := &child{run: run, spec: p, output: &output{path: logPath}, active: now, checked: now}
	beats, err := c.start(p.Cmd, logPath)
	if err != nil {
		c.exit = "does not start: " + err.Error()
	}
	return c, beats
}

func (c *child) start(cmd *exec.Cmd, logPath string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = c.output, c.output, []*os.File{w}
	cmd.WaitDelay = outputFor
	if c.spec.Group {
		if err := c.clear(cmd, logPath); err != nil {
			_ = r.Close()
			return nil, err
		}
	}
	if c.proc, err = proc.Start(cmd); err != nil {
		_ = r.Close()
		return nil, err
	}
	c.done = c.proc.Done()
	return r, nil
}

// groupMark is the variable that marks the processes of a group, by its log file.
const groupMark = "MILLRACE_GROUP"

// clear ends what an earlier life of this engine has left of its group, which would
// keep memory and ports, and marks the one that is to be started.
func (c *child) clear(cmd *exec.Cmd, logPath string) error {
	path, err := filepath.Abs(logPath)
	if err != nil {
		return err
	}
	mark := groupMark + "=" + path
	left, err := proc.Marked(mark)
	if err != nil {
		return err
	}
	for _, pid := range left {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, mark)
	return nil
}

// pid is its process id; 0: it has none here.
func (c *child) pid() int {
	if c.proc == nil {
		return 0
	}
	return c.proc.PID()
}

// kill ends the process, with its group; a remote one is let go.
func (c *child) kill() {
	if c.remote {
		c.lose("was given up")
		return
	}
	c.proc.Kill()
}

// readBeats returns when the process has closed its end.
func (c *child) readBeats(r *os.File) {
	defer r.Close()
	b := make([]byte, 64)
	for {
		if _, err := r.Read(b); err != nil {
			return
		}
		c.beat.Store(time.Now().UnixNano())
	}
}

// await polls until the process is ready or has ended, and reports the former.
func (c *child) await(ctx context.Context) bool {
	const every = 50 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := c.spec.Ready(ctx)
		if err == nil {
			break
		}
		if c.remote {
			tick.Reset(remoteEvery)
			why := err.Error()
			c.missing.Store(&why)
		}
		select {
		case <-ctx.Done():
			return false
		case <-c.done:
			return false
		case <-tick.C:
		}
	}
	c.serving.Store(true)
	return true
}

// up reports whether the process exists.
func (c *child) up() bool {
	if c == nil || c.done == nil {
		return false
	}
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// check reads /proc and judges whether the process hangs. After a pause of our own
// (we were stopped, or starved) silence proves nothing.
func (c *child) check(now time.Time) {
	paused := now.Sub(c.checked) > beatLate/2
	c.checked = now
	s, err := c.state(now)
	if err != nil {
		return
	}
	if s.CPU != c.cpu || paused {
		c.cpu, c.active = s.CPU, now
	}
	c.rss = s.RSS
	beat := c.beat.Load()
	late := beat != 0 && now.Sub(time.Unix(0, beat)) > beatLate
	c.hung = s.State == 'T' || c.serving.Load() && late && s.State != 'R' && now.Sub(c.active) > beatLate
}

// groupEvery is how often the processes of a group are checked for: that reads all
// of /proc.
const groupEvery = 2 * time.Second

// state is that of the process; of a group the sum, stopped if any of it is.
func (c *child) state(now time.Time) (proc.Stat, error) {
	sum, err := proc.State(c.pid())
	if err != nil || !c.spec.Group {
		return sum, err
	}
	if now.Sub(c.counted) >= groupEvery {
		if c.group, err = proc.Group(c.pid()); err != nil {
			return sum, err
		}
		c.counted = now
	}
	for _, pid := range c.group {
		s, err := proc.State(pid)
		if err != nil || pid == c.pid() {
			continue // it has ended meanwhile
		}
		sum.CPU += s.CPU
		sum.RSS += s.RSS
		if s.State == 'T' {
			sum.State = 'T'
		}
	}
	return sum, nil
}

// part is what the machine sees of c, which may be nil.
func (c *child) part(now time.Time) Part {
	if c == nil {
		return Part{}
	}
	if !c.up() {
		return Part{Run: c.run, Exit: c.ended()}
	}
	p := Part{Run: c.run, Up: true, Serving: c.serving.Load(), Opaque: c.spec.Opaque || c.remote}
	if c.remote {
		if why := c.missing.Load(); why != nil {
			p.Missing = *why
		}
		return p
	}
	c.check(now)
	p.Hung, p.Idle = c.hung, now.Sub(c.active)
	return p
}

// ended says how the process ended, and what it wrote last unless it was killed.
func (c *child) ended() string {
	if c.exit == "" {
		c.exit = ending(c.proc.Err(), c.output)
	}
	return c.exit
}

func ending(err error, out *output) string {
	text := "ended by itself"
	if err != nil {
		text = "died: " + err.Error()
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			text = "died: " + s.Signal().String()
			if s.Signal() == syscall.SIGKILL {
				return text
			}
		}
	}
	if line := out.last(); line != "" {
		return fmt.Sprintf("%s: %q", text, line)
	}
	return text
}
