package rig

import (
	"bytes"
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

// Mesh is one `millrace up` with all that it started.
type Mesh struct {
	Dir  string
	Proc *proc.Process
	Out  *Buffer       // stdout and stderr of millrace up
	Took time.Duration // until ready
	// Engines is how many engines Envoy has for models when all is well: the replicas
	// of the configuration. 2 unless the test sets it.
	Engines int
}

// StartMesh runs `millrace up` in dir and returns at once.
func StartMesh(dir string, flags ...string) (*Mesh, error) {
	path, err := Program("millrace")
	if err != nil {
		return nil, err
	}
	m := &Mesh{Dir: dir, Out: &Buffer{}, Engines: 2}
	args := append([]string{"up", "-listen", "127.0.0.1:0", "-dir", dir, "-cache", Cache()}, flags...)
	cmd := exec.Command(path, args...)
	cmd.Dir = Root()
	cmd.Env = append(os.Environ(), markKey+"="+dir)
	cmd.Stdout, cmd.Stderr = m.Out, m.Out
	m.Proc, err = proc.Start(cmd)
	return m, err
}

// Ready waits until the mesh says that it is ready, on its output and in its file.
func (m *Mesh) Ready() error { return m.ReadyWithin(StartLimit) }

// ReadyWithin is Ready for backends that need longer than usual.
func (m *Mesh) ReadyWithin(limit time.Duration) error {
	begin := time.Now()
	err := Poll(limit, func() error {
		select {
		case <-m.Proc.Done():
			return Final(fmt.Errorf("millrace up ended: %v", m.Proc.Err()))
		default:
		}
		if !strings.Contains(m.Out.String(), "ready http://") {
			return errors.New("no line `ready http://…`")
		}
		s, err := m.ReadState()
		if err != nil {
			return err
		}
		if !s.Ready {
			return errors.New("state.json: ready is false")
		}
		return nil
	})
	m.Took = time.Since(begin)
	if err != nil {
		return fmt.Errorf("%w\n--- output of millrace up\n%s", err, m.Out)
	}
	return nil
}

// End asks the mesh to end with sig and says which of its processes are left after
// StopLimit.
func (m *Mesh) End(sig syscall.Signal) error {
	if err := syscall.Kill(-m.Proc.PID(), sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return Poll(StopLimit, m.left)
}

// left says which processes of the mesh still run.
func (m *Mesh) left() error {
	pids := Marked(m.Dir)
	if len(pids) == 0 {
		return nil
	}
	return fmt.Errorf("%d processes are left: %s", len(pids), strings.Join(Describe(pids), "; "))
}

// Abandon kills whatever is left, so that one failure doesn't become many.
func (m *Mesh) Abandon() {
	m.Proc.Kill()
	for _, pid := range Marked(m.Dir) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// URL returns the address of a path behind Envoy.
func (m *Mesh) URL(t testing.TB, path string) string {
	t.Helper()
	return (&url.URL{Scheme: "http", Host: m.State(t).Listen, Path: path}).String()
}

// OwnMesh starts a mesh for one test with flags of its own, and ends it with the
// test: no process of it may be left. The shared mesh is ended first, so that the
// new one has the machine for itself. What the mesh logs is shown if the test fails.
func OwnMesh(t testing.TB, flags ...string) *Mesh {
	t.Helper()
	return OwnMeshWithin(t, StartLimit, flags...)
}

// OwnMeshWithin is OwnMesh for backends that need longer than usual.
func OwnMeshWithin(t testing.TB, limit time.Duration, flags ...string) *Mesh {
	t.Helper()
	PauseShared(t)
	m, err := StartMesh(t.TempDir(), flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.End(syscall.SIGTERM); err != nil {
			t.Errorf("after SIGTERM: %v", err)
			m.Abandon()
		}
	})
	m.ShowLogs(t)
	if err := m.ReadyWithin(limit); err != nil {
		t.Fatal(err)
	}
	return m
}

// one is the mesh that most tests share: it must survive all of them.
var one struct {
	sync.Mutex
	mesh *Mesh
	err  error
}

// SharedMesh returns the mesh with default flags that all tests of a package share,
// started by the first of them, once it is whole again. The package's TestMain must
// call Main.
func SharedMesh(t testing.TB) *Mesh {
	t.Helper()
	one.Lock()
	defer one.Unlock()
	if one.mesh == nil && one.err == nil {
		startShared()
	}
	if one.err != nil {
		t.Fatal(one.err)
	}
	one.mesh.ShowLogs(t)
	one.mesh.AwaitWhole(t)
	return one.mesh
}

func startShared() {
	dir, err := os.MkdirTemp("", "millrace-e2e-")
	if err != nil {
		one.err = err
		return
	}
	if one.mesh, one.err = StartMesh(dir); one.err != nil {
		return
	}
	if one.err = one.mesh.Ready(); one.err == nil {
		fmt.Printf("the mesh was ready after %.1f s\n", one.mesh.Took.Seconds())
	}
}

// PauseShared ends the shared mesh. The next test that wants it starts it again.
func PauseShared(t testing.TB) {
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
	err := m.End(syscall.SIGTERM)
	if err != nil {
		m.Abandon()
		return fmt.Errorf("the shared mesh, after SIGTERM: %w", err)
	}
	if err := m.Proc.Err(); err != nil {
		return fmt.Errorf("the shared mesh, after SIGTERM: %w\n%s", err, m.Out)
	}
	return os.RemoveAll(m.Dir)
}

// Main runs a package's tests and ends the shared mesh; it returns the exit code:
//
//	func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	if err := endShared(); err != nil {
		fmt.Println(err)
		code = 1
	}
	return code
}

// CommandMark marks what Command starts, for Marked.
const CommandMark = "command"

// Result is what a command that ended left behind.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Command runs the millrace command to its end with changed environment variables;
// an exit code is no error here.
func Command(ctx context.Context, env []string, stdin string, args ...string) (Result, error) {
	path, err := Program("millrace")
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, StartLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = Root()
	cmd.Env = append(append(os.Environ(), markKey+"="+CommandMark), env...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if exit := (&exec.ExitError{}); err != nil && !errors.As(err, &exit) {
		return Result{}, fmt.Errorf("millrace %s: %w", strings.Join(args, " "), err)
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}, ctx.Err()
}

// Millrace is Command for tests.
func Millrace(t testing.TB, stdin string, args ...string) Result {
	t.Helper()
	return MillraceEnv(t, nil, stdin, args...)
}

// MillraceEnv is Millrace with changed environment variables.
func MillraceEnv(t testing.TB, env []string, stdin string, args ...string) Result {
	t.Helper()
	got, err := Command(t.Context(), env, stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// Status is what `millrace status -json` prints of the mesh, decoded into v.
func (m *Mesh) Status(ctx context.Context, v any) error {
	got, err := Command(ctx, nil, "", "status", "-json", "-dir", m.Dir)
	if err == nil {
		err = decodeStatus(got, v)
	}
	return err
}

// StatusTable is what `millrace status` shows to a person.
func (m *Mesh) StatusTable(t testing.TB) string {
	t.Helper()
	got := Millrace(t, "", "status", "-dir", m.Dir)
	return got.Stdout + got.Stderr
}

// File returns the path of a file in the mesh's folder.
func (m *Mesh) File(elements ...string) string {
	return filepath.Join(append([]string{m.Dir}, elements...)...)
}
