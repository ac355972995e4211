package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/internal/proc"
)

// Process is a program that a test started, with what it writes.
type Process struct {
	*proc.Process
	Name string
	Out  *Buffer // stdout and stderr
}

// Start starts a command that ends with the test; if the test fails, the end of its
// output is logged. name is for that log.
func Start(t testing.TB, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Name: name, Out: &Buffer{}}
	cmd.Stdout, cmd.Stderr = p.Out, p.Out
	var err error
	if p.Process, err = proc.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Process.Stop(5 * time.Second)
		if t.Failed() {
			t.Logf("--- %s\n%s", name, p.Out.Tail())
		}
	})
	return p
}

// StartProgram starts a program that `make build` has built.
func StartProgram(t testing.TB, name string, args ...string) *Process {
	t.Helper()
	path, err := Program(name)
	if err != nil {
		t.Fatal(err)
	}
	return Start(t, name, exec.Command(path, args...))
}

// KillAndWait kills the process and waits until it is gone.
func (p *Process) KillAndWait() {
	p.Kill()
	<-p.Done()
}

// ExitCode returns the exit code in the error with which a process ended; -1 if a
// signal ended it.
func ExitCode(err error) int {
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// Kill sends SIGKILL to one process.
func Kill(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

// Suspend stops one process with SIGSTOP: it hangs, but its sockets stay open. It
// runs again when resume is called, at the latest when the test ends.
func Suspend(t testing.TB, pid int) (resume func()) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatalf("suspend %d: %v", pid, err)
	}
	resume = func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
	t.Cleanup(resume)
	return resume
}

// markKey is the environment variable by which a mesh's processes are known.
const markKey = "MILLRACE_E2E"

// Marked returns the processes that inherited the mark of a mesh (its folder) or of
// a command (CommandMark).
func Marked(mark string) []int {
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !slices.Contains(strings.Split(string(b), "\x00"), markKey+"="+mark) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(f, "/proc/%d/environ", &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Describe names processes for a person.
func Describe(pids []int) []string {
	var lines []string
	for _, pid := range pids {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		lines = append(lines, fmt.Sprintf("%d %.120s", pid, strings.Join(args, " ")))
	}
	return lines
}
