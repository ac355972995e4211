package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"

	"millrace.dev/millrace/internal/proc"
)

// beatLate is the silence of a process that has beaten before, and uses no CPU,
// after which it counts as hung. A stopped process counts at once.
const beatLate = 1500 * time.Millisecond

// child is one start of a process.
type child struct {
	run  uint64
	proc *proc.Process // nil: it could not be started
	log  string        // its log file
	exit string        // how it ended, once somebody asked

	// Atomic.
	beat    atomic.Int64 // when it last beat, in ns since the epoch; 0: never
	serving atomic.Bool  // whether it listens, or answers

	// Of the supervisor's loop only.
	looked time.Time     // when /proc was last read
	cpu    time.Duration // used by then
	active time.Time     // when cpu last grew
	rss    uint64        // bytes
	hung   bool
}

// spawn starts cmd with its output appended to the log file and a pipe for its
// beats as file descriptor 3.
func spawn(run uint64, cmd *exec.Cmd, logPath string, now time.Time) (*child, *os.File) {
	c := &child{run: run, log: logPath, active: now, looked: now}
	beats, err := c.start(cmd, logPath)
	if err != nil {
		c.exit = "does not start: " + err.Error()
	}
	return c, beats
}

func (c *child) start(cmd *exec.Cmd, logPath string) (*os.File, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{w}
	if c.proc, err = proc.Start(cmd); err != nil {
		_ = r.Close()
		return nil, err
	}
	return r, nil
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

// await polls ready until it holds or the process has ended.
func (c *child) await(ctx context.Context, ready func(context.Context) bool) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ready(ctx) {
		select {
		case <-ctx.Done():
			return
		case <-c.proc.Done():
			return
		case <-tick.C:
		}
	}
	c.serving.Store(true)
}

// up reports whether the process exists.
func (c *child) up() bool {
	if c == nil || c.proc == nil {
		return false
	}
	select {
	case <-c.proc.Done():
		return false
	default:
		return true
	}
}

// look reads /proc and judges whether the process hangs. After a pause of our own
// (we were stopped, or starved) silence proves nothing.
func (c *child) look(now time.Time) {
	paused := now.Sub(c.looked) > beatLate/2
	c.looked = now
	s, err := proc.State(c.proc.PID())
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

// part is what the machine sees of c, which may be nil.
func (c *child) part(now time.Time) Part {
	if c == nil {
		return Part{}
	}
	if !c.up() {
		return Part{Run: c.run, Exit: c.ended()}
	}
	c.look(now)
	return Part{Run: c.run, Up: true, Serving: c.serving.Load(), Hung: c.hung, Idle: now.Sub(c.active)}
}

// ended says how the process ended, and what it wrote last unless it was killed.
func (c *child) ended() string {
	if c.exit == "" {
		c.exit = ending(c.proc.Err(), c.log)
	}
	return c.exit
}

func ending(err error, log string) string {
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
	if line := lastLine(log); line != "" {
		return fmt.Sprintf("%s: %q", text, line)
	}
	return text
}

// lastLine returns the last line of a file that says something, cut to a size
// fit for a status.
func lastLine(path string) string {
	const most = 200
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 4<<10)
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		n, _ := f.ReadAt(b, max(0, end-int64(len(b))))
		b = bytes.TrimSpace(b[:n])
	}
	line := b[bytes.LastIndexByte(b, '\n')+1:]
	return string(line[:min(len(line), most)])
}
