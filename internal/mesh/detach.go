package mesh

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/state"
)

// upLog is the file, in the folder of the mesh, with what a detached `millrace up` says.
const upLog = "up.log"

// detached is how a detached `millrace up` is started: what it needs to know of it.
const detached = "MILLRACE_DETACHED=1"

// Detach starts `millrace up` with args as a process of its own, which outlives this one,
// and returns when its mesh is ready, or with why it has ended. What it says is shown
// meanwhile. When ctx ends before, it is ended, too.
func Detach(ctx context.Context, o Options, args []string) error {
	o, err := o.complete()
	if err != nil {
		return err
	}
	undo, err := makeDir(o.Dir)
	if err != nil {
		return err
	}
	if state.Locked(o.Dir) {
		_, err := takeDir(o.Dir) // says who runs there
		return err
	}
	log, err := regular.Create(filepath.Join(o.Dir, upLog))
	if err != nil {
		return err
	}
	defer log.Close()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe, append([]string{"up"}, args...)...)
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, append(os.Environ(), detached)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	err = o.show(ctx, log.Name(), ended)
	switch {
	case ctx.Err() != nil:
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		return program.Interrupted()
	case err != nil:
		undo()
		return err
	}
	_, _ = fmt.Fprintf(o.Out, "pid:  %d\nend:  %s\n", cmd.Process.Pid, obs.Command("millrace", "down", "-dir", o.Dir))
	return nil
}

// showEvery is how often new lines of a log are looked for.
const showEvery = 50 * time.Millisecond

// show shows what a detached `millrace up` writes until it is ready. It returns the error
// with which it has ended before.
func (o Options) show(ctx context.Context, path string, ended <-chan error) error {
	f, err := regular.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	t := tailOf(f)
	ready := false
	copyLines := func() {
		for line, ok := t.next(); ok; line, ok = t.next() {
			ready = ready || strings.HasPrefix(line, "ready ")
			if ready {
				_, _ = io.WriteString(o.Out, line)
			} else {
				_, _ = io.WriteString(o.Progress, line)
			}
		}
	}
	for {
		copyLines()
		// The block is written at once: its last line names the logs.
		if ready {
			return nil
		}
		select {
		case err := <-ended:
			copyLines()
			return &program.Exit{Code: exitCode(err), Err: errors.New("the mesh ended before it was ready; its output above says why")}
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(showEvery):
		}
	}
}

// exitCode is that of a process that Wait has returned err of.
func exitCode(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) && e.ExitCode() > 0 {
		return e.ExitCode()
	}
	return program.ExitRuntime
}

// tail reads whole lines of a file that is still being written.
type tail struct {
	r    *bufio.Reader
	part strings.Builder
}

func tailOf(r io.Reader) *tail { return &tail{r: bufio.NewReader(r)} }

// next returns the next line; false: there is none that is whole yet.
func (t *tail) next() (line string, ok bool) {
	text, err := t.r.ReadString('\n')
	t.part.WriteString(text)
	if err != nil {
		return "", false
	}
	line = t.part.String()
	t.part.Reset()
	return line, true
}

// downWait bounds how long a mesh may take to end: requests in flight are drained first.
const downWait = 2 * time.Minute

// Down ends the mesh in dir as Ctrl-C does, and returns once nothing of it runs.
func Down(ctx context.Context, dir string, out io.Writer) error {
	s, running, err := state.Read(dir)
	switch {
	case errors.Is(err, state.ErrNone), err == nil && !running:
		fmt.Fprintf(out, "millrace: no mesh runs in %s\n", dir)
		return nil
	case err != nil:
		return fmt.Errorf("down: %w", err)
	}
	if err := syscall.Kill(s.PID, syscall.SIGTERM); err != nil {
		return fmt.Errorf("down: process %d: %w", s.PID, err)
	}
	limit := time.After(downWait)
	for state.Locked(dir) {
		select {
		case <-ctx.Done():
			return nil
		case <-limit:
			return &obs.Hint{Err: fmt.Errorf("down: process %d has not ended in %s", s.PID, downWait), Next: fmt.Sprintf("read its log, or kill -9 %d: what it started ends with it", s.PID)}
		case <-time.After(showEvery):
		}
	}
	fmt.Fprintf(out, "millrace: the mesh at http://%s has ended\n", s.Listen)
	return nil
}

// LogsOptions is what `millrace logs` is asked for.
type LogsOptions struct {
	// Dir is the mesh's folder, Name that of a process, "access", or "up"; empty: names
	// are listed.
	Dir, Name string
	// Follow is whether what is written from then on is shown, until ctx ends. Lines is how many
	// of the last lines are shown.
	Follow bool
	Lines  int
	Out    io.Writer
}

// ShowLogs shows the log of a process.
func ShowLogs(ctx context.Context, o LogsOptions) error {
	s, _, err := state.Read(o.Dir)
	if err != nil {
		return &obs.Hint{Err: fmt.Errorf("logs: %w", err), Next: "name the folder of a mesh with -dir"}
	}
	paths, err := filepath.Glob(filepath.Join(s.Logs, "*.log"))
	if err != nil {
		return err
	}
	if up := filepath.Join(s.Dir, upLog); exists(up) {
		paths = append(paths, up)
	}
	var names []string
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".log")
		if name == o.Name {
			return showLog(ctx, path, o)
		}
		names = append(names, name)
	}
	if o.Name == "" {
		_, err := fmt.Fprintln(o.Out, strings.Join(names, "\n"))
		return err
	}
	return program.Usage(&obs.Hint{Err: fmt.Errorf("logs: no log %q", o.Name), Next: "must be one of " + strings.Join(names, ", ")})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// showLog shows the last lines of a file, and what comes. A log that was cut begins anew.
func showLog(ctx context.Context, path string, o LogsOptions) error {
	f, err := regular.Open(path)
	if err != nil {
		return fmt.Errorf("logs: %w", err)
	}
	defer f.Close()
	last := make([]string, 0, o.Lines)
	t := tailOf(f)
	for line, ok := t.next(); ok; line, ok = t.next() {
		if len(last) == o.Lines && len(last) > 0 {
			last = last[:copy(last, last[1:])]
		}
		if o.Lines > 0 {
			last = append(last, line)
		}
	}
	for _, line := range last {
		if _, err := io.WriteString(o.Out, line); err != nil {
			return err
		}
	}
	for o.Follow {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(showEvery):
		}
		if st, err := f.Stat(); err == nil {
			if at, err := f.Seek(0, io.SeekCurrent); err == nil && st.Size() < at {
				if _, err := f.Seek(0, io.SeekStart); err != nil {
					return err
				}
				t = tailOf(f)
			}
		}
		for line, ok := t.next(); ok; line, ok = t.next() {
			if _, err := io.WriteString(o.Out, line); err != nil {
				return err
			}
		}
	}
	return nil
}
