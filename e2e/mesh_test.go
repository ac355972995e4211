// Package e2e tests all programs together: the built binaries, a real Envoy and
// a real model, started by `millrace up` as a user starts them.
//
// Its one rule: a test reads what anybody can read (state.json, logs, admin
// ports, /proc) and never reaches into a program.
package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/internal/proc"
)

// Deadlines of the whole mesh. They bound a broken one: a healthy one needs a
// tenth of them.
const (
	startLimit = 2 * time.Minute
	stopLimit  = 20 * time.Second
	backLimit  = time.Minute
)

// markKey is the environment variable by which a mesh's processes are known.
const markKey = "MILLRACE_E2E"

// mesh is one `millrace up` with all that it started.
type mesh struct {
	dir  string
	proc *proc.Process
	out  *buffer // stdout and stderr of millrace up
	took time.Duration
}

// root is the repository's root, where bin/ and the cache are.
var root = func() string {
	wd, err := os.Getwd()
	if err != nil {
		return ".."
	}
	return filepath.Dir(wd)
}()

// program returns the path of a built program, in bin/ or where MILLRACE_BIN says.
func program(name string) (string, error) {
	path := filepath.Join(cmp.Or(os.Getenv("MILLRACE_BIN"), filepath.Join(root, "bin")), name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w; run `make build` first", err)
	}
	return path, nil
}

// cache is set-up's folder, filled by `make setup`.
func cache() string {
	if dir := os.Getenv("MILLRACE_CACHE"); dir != "" {
		return dir
	}
	return filepath.Join(root, ".cache")
}

// start runs `millrace up` in dir and returns at once.
func start(dir string, flags ...string) (*mesh, error) {
	path, err := program("millrace")
	if err != nil {
		return nil, err
	}
	m := &mesh{dir: dir, out: &buffer{}}
	args := append([]string{"up", "-listen", "127.0.0.1:0", "-dir", dir, "-cache", cache()}, flags...)
	cmd := exec.Command(path, args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), markKey+"="+dir)
	cmd.Stdout, cmd.Stderr = m.out, m.out
	m.proc, err = proc.Start(cmd)
	return m, err
}

// ready waits until the mesh says that it is ready, on its output and in its file.
func (m *mesh) ready() error {
	begin := time.Now()
	err := poll(startLimit, func() error {
		select {
		case <-m.proc.Done():
			return fatal{fmt.Errorf("millrace up ended: %v", m.proc.Err())}
		default:
		}
		if !strings.Contains(m.out.String(), "ready http://") {
			return errors.New("no line `ready http://…`")
		}
		s, err := m.read()
		if err != nil {
			return err
		}
		if !s.Ready {
			return errors.New("state.json: ready is false")
		}
		return nil
	})
	m.took = time.Since(begin)
	if err != nil {
		return fmt.Errorf("%w\n--- output of millrace up\n%s", err, m.out)
	}
	return nil
}

// end asks the mesh to end with sig and reports what is left of it.
func (m *mesh) end(sig syscall.Signal) error {
	if err := syscall.Kill(-m.proc.PID(), sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return poll(stopLimit, m.left)
}

// left tells which processes of the mesh still run.
func (m *mesh) left() error {
	pids := marked(m.dir)
	if len(pids) == 0 {
		return nil
	}
	return fmt.Errorf("%d processes are left: %s", len(pids), strings.Join(describe(pids), "; "))
}

// abandon kills whatever is left, so that one failure doesn't become many.
func (m *mesh) abandon() {
	m.proc.Kill()
	for _, pid := range marked(m.dir) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// own starts a mesh for one test with flags of its own, and ends it with it.
func own(t *testing.T, flags ...string) *mesh {
	t.Helper()
	pause(t)
	m, err := start(t.TempDir(), flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.end(syscall.SIGTERM); err != nil {
			t.Errorf("after SIGTERM: %v", err)
			m.abandon()
		}
	})
	m.watchLogs(t)
	if err := m.ready(); err != nil {
		t.Fatal(err)
	}
	return m
}

// one is the mesh that most tests share: it must survive all of them.
var one struct {
	sync.Mutex
	mesh *mesh
	err  error
}

// shared returns the mesh of all tests, started by the first of them, once it is
// whole again.
func shared(t *testing.T) *mesh {
	t.Helper()
	one.Lock()
	defer one.Unlock()
	if one.mesh == nil && one.err == nil {
		startShared()
	}
	if one.err != nil {
		t.Fatal(one.err)
	}
	one.mesh.watchLogs(t)
	one.mesh.whole(t)
	return one.mesh
}

func startShared() {
	dir, err := os.MkdirTemp("", "millrace-e2e-")
	if err != nil {
		one.err = err
		return
	}
	if one.mesh, one.err = start(dir); one.err != nil {
		return
	}
	if one.err = one.mesh.ready(); one.err == nil {
		fmt.Printf("the mesh was ready after %.1f s\n", one.mesh.took.Seconds())
	}
}

// pause ends the shared mesh, so that a mesh with other flags has the machine
// for itself. The next test that wants the shared one starts it again.
func pause(t *testing.T) {
	t.Helper()
	one.Lock()
	defer one.Unlock()
	if err := endShared(); err != nil {
		t.Error(err)
	}
}

// endShared ends the shared mesh; none of its processes may be left.
func endShared() error {
	m := one.mesh
	if m == nil {
		return nil
	}
	one.mesh = nil
	err := m.end(syscall.SIGTERM)
	if err != nil {
		m.abandon()
		return fmt.Errorf("the shared mesh, after SIGTERM: %w", err)
	}
	if err := m.proc.Err(); err != nil {
		return fmt.Errorf("the shared mesh, after SIGTERM: %w\n%s", err, m.out)
	}
	return os.RemoveAll(m.dir)
}

func TestMain(m *testing.M) {
	code := m.Run()
	if err := endShared(); err != nil {
		fmt.Println(err)
		code = 1
	}
	os.Exit(code)
}

// result is what a command that ended left behind.
type result struct {
	stdout, stderr string
	code           int
}

// millrace runs the command to its end.
func millrace(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	return runWith(t, nil, stdin, args...)
}

// runWith runs the command with changed environment variables.
func runWith(t *testing.T, env []string, stdin string, args ...string) result {
	t.Helper()
	got, err := command(t.Context(), env, stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// command runs the millrace command; an exit code is no error here.
func command(ctx context.Context, env []string, stdin string, args ...string) (result, error) {
	path, err := program("millrace")
	if err != nil {
		return result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = root
	cmd.Env = append(append(os.Environ(), markKey+"=command"), env...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if exit := (&exec.ExitError{}); err != nil && !errors.As(err, &exit) {
		return result{}, fmt.Errorf("millrace %s: %w", strings.Join(args, " "), err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}, ctx.Err()
}

// url returns the address of a path behind Envoy.
func (m *mesh) url(t *testing.T, path string) string {
	t.Helper()
	return (&url.URL{Scheme: "http", Host: m.state(t).Listen, Path: path}).String()
}

// buffer collects the output of a process while tests read it.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// fatal ends a poll early: waiting longer won't help.
type fatal struct{ error }

// poll asks cond every 50 ms until it returns nil, and returns its last answer
// when the limit has passed.
func poll(limit time.Duration, cond func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; <-tick.C {
		err := cond()
		if f := (fatal{}); err == nil || errors.As(err, &f) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %w", limit, err)
		}
	}
}

// waitFor fails the test unless cond returns nil within the limit; it returns
// how long that took.
func waitFor(t *testing.T, limit time.Duration, what string, cond func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	if err := poll(limit, cond); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return time.Since(begin)
}
