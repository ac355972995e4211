package mesh

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/internal/state"
)

// TestMain lets the test binary play the processes of a mesh, and a mesh.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "play" {
		play(os.Args[2], os.Args[3:])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func play(part string, args []string) {
	switch part {
	case "server": // runs until it gets a signal
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		<-ctx.Done()
	case "broken": // can't start
		fmt.Println("first line")
		fmt.Println("no such model")
		os.Exit(3)
	case "orphan": // ends when its parent does; late: watches only then
		fmt.Println(os.Getpid())
		for len(args) > 0 && os.Getppid() == parent {
			sleep(context.Background(), time.Millisecond)
		}
		watchParent(context.Background(), func() {})
	case "mesh": // keeps two servers in the folder until it is killed
		s, _, err := newMeshOf(args[0], io.Discard, server("xds"), server("extproc"))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		s.Run(context.Background(), func() {})
	}
}

func server(name string) Spec { return Spec{Name: name, Role: name, Args: []string{"play", "server"}} }

func broken(name string) Spec {
	role, node, _ := strings.Cut(name, "@")
	return Spec{Name: name, Role: role, Node: node, Args: []string{"play", "broken"}}
}

// newMeshOf returns a supervisor of parts played by this binary.
func newMeshOf(dir string, out io.Writer, specs ...Spec) (*supervisor, *state.Store, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	for i := range specs {
		specs[i].Path, specs[i].Log = exe, filepath.Join(dir, specs[i].Name+".log")
	}
	store, err := state.Create(state.State{Dir: dir, Processes: rows(specs)})
	if err != nil {
		return nil, nil, err
	}
	s := newSupervisor(specs, store, &console{out: out, err: out})
	s.backoff = proc.Backoff{Min: time.Millisecond, Max: 20 * time.Millisecond, Reset: time.Minute}
	s.grace = 100 * time.Millisecond
	return s, store, nil
}

// running is a supervisor under test.
type running struct {
	*supervisor
	t     *testing.T
	store *state.Store
	dir   string
	out   *lines
	stop  func() // returns when nothing runs any more
}

func run(t *testing.T, specs ...Spec) *running {
	t.Helper()
	r := &running{t: t, dir: t.TempDir(), out: &lines{}}
	var err error
	if r.supervisor, r.store, err = newMeshOf(r.dir, r.out, specs...); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var g sync.WaitGroup
	g.Go(func() { r.Run(ctx, func() {}) })
	r.stop = func() { cancel(); g.Wait() }
	t.Cleanup(r.stop)
	return r
}

// lines collects what the console writes.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// until polls: the kernel reports no change of another's file or process.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never happened: %s", what)
		}
	}
}

func (r *running) row(name string) state.Process {
	s := r.store.State()
	return *s.Find(name)
}

func (r *running) up(names ...string) {
	r.t.Helper()
	for _, name := range names {
		until(r.t, name+" runs", func() bool { return r.row(name).PID != 0 })
	}
}

func TestADeadProcessIsRestartedAndCounted(t *testing.T) {
	r := run(t, server("xds"), server("extproc"))
	r.up("xds", "extproc")
	for want := 1; want <= 3; want++ {
		old := r.row("xds").PID
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, "xds is back and counted", func() bool {
			p := r.row("xds")
			return p.PID != 0 && p.PID != old && p.Restarts == want && p.Status == state.Running
		})
	}
	if got := r.row("extproc").Restarts; got != 0 {
		t.Errorf("extproc restarted %d times, want 0", got)
	}
	if text := r.out.String(); !strings.Contains(text, "xds ended after") || !strings.Contains(text, "signal: killed") {
		t.Errorf("told %q, want the death and its cause", text)
	}
}

func TestALogThatCannotBeOpenedStopsNothing(t *testing.T) {
	r := run(t, server("xds"))
	r.up("xds")
	old := r.row("xds").PID
	log := filepath.Join(r.dir, "xds.log")
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(log, 0o755); err != nil { // nobody can write to it, whoever runs the test
		t.Fatal(err)
	}
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "xds is back without a log", func() bool { pid := r.row("xds").PID; return pid != 0 && pid != old })
	if text := r.out.String(); !strings.Contains(text, "xds runs without a log: ") {
		t.Errorf("told %q, want that there is no log, and why", text)
	}
}

func TestNothingIsLeftAfterTheStop(t *testing.T) {
	r := run(t, server("xds"), server("extproc"), server("envoy"))
	r.up("xds", "extproc", "envoy")
	before := r.store.State()
	if err := syscall.Kill(before.Find("extproc").PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	r.stop()
	for _, p := range before.Processes {
		if proc.Alive(p.PID) {
			t.Errorf("%s is alive after the stop", p.Name)
		}
	}
	for _, p := range r.store.State().Processes {
		if p.PID != 0 || p.Status != state.Down {
			t.Errorf("state %+v after the stop, want it down", p)
		}
	}
}

func TestPhasesStopInReverse(t *testing.T) {
	first, last := server("xds"), server("envoy")
	last.Phase = phaseGateway
	r := run(t, first, last)
	r.up("xds", "envoy")
	r.stop()
	xds, envoy := r.row("xds"), r.row("envoy")
	if !envoy.Since.Before(xds.Since) {
		t.Errorf("envoy went down %v, xds %v; want envoy first", envoy.Since, xds.Since)
	}
}

func TestNothingIsLeftAfterTheMeshIsKilled(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m := exec.Command(exe, "play", "mesh", dir)
	p, err := proc.Start(m)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	var pids []int
	until(t, "the mesh runs", func() bool {
		b, _ := os.ReadFile(filepath.Join(dir, "state.json"))
		s, _ := state.Parse(b)
		pids = pids[:0]
		for _, p := range s.Processes {
			if p.PID != 0 {
				pids = append(pids, p.PID)
			}
		}
		return len(pids) == 2
	})
	if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil { // it alone, not its group
		t.Fatal(err)
	}
	for _, pid := range pids {
		until(t, "the children are dead", func() bool { return !proc.Alive(pid) })
	}
}

// TestTheDeathOfTheParentIsNoticed kills a shell alone: what it has started ends by itself, also
// if it begins to watch when the shell is no more.
func TestTheDeathOfTheParentIsNoticed(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, late := range []string{"", "late"} {
		shell := exec.Command("sh", "-c", `"$0" play orphan $1 & wait`, exe, late)
		// In a group of its own, which nobody kills when the shell ends: proc.Start would.
		shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		out, err := shell.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := shell.Start(); err != nil {
			t.Fatal(err)
		}
		group := shell.Process.Pid
		t.Cleanup(func() { _ = syscall.Kill(-group, syscall.SIGKILL) })
		var orphan int
		if _, err := fmt.Fscan(out, &orphan); err != nil {
			t.Fatal(err)
		}
		if err := shell.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		// It holds the other end of the pipe as long as it lives, whoever gets its id then.
		ended := make(chan struct{})
		go func() {
			_, _ = io.Copy(io.Discard, out)
			close(ended)
		}()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Errorf("an orphan (%s) goes on", late)
		}
		_ = shell.Wait()
	}
}

func TestTroubleIsPrintedOnceForAllOfAKind(t *testing.T) {
	r := run(t, server("xds"), broken("engine@node-a"), broken("engine@node-b"))
	until(t, "the trouble is printed", func() bool { return strings.Contains(r.out.String(), "no engine stays up (2 of 2)") })
	r.stop()
	text := r.out.String()
	for _, want := range []string{"exit status 3: no such model", filepath.Join(r.dir, "engine@node-"), "still trying"} {
		if !strings.Contains(text, want) {
			t.Errorf("told\n%s\nwant %q in it", text, want)
		}
	}
	if n := strings.Count(text, "no engine stays up"); n > 2 {
		t.Errorf("told %d times, want once for each process that tips it:\n%s", n, text)
	}
}

func TestAProgramThatIsNotThereIsTrouble(t *testing.T) {
	r := run(t, server("xds"))
	r.stop()
	spec := Spec{Name: "envoy", Role: "envoy", Path: filepath.Join(r.dir, "none"), Log: filepath.Join(r.dir, "envoy.log")}
	k := &keeper{supervisor: r.supervisor, spec: spec}
	if err := k.once(t.Context()); err == nil || !strings.Contains(err.Error(), spec.Path) {
		t.Errorf("once() = %v, want an error with the path", err)
	}
}

// TestStateIsTrueWhileProcessesDie reads the file as anybody would, while the
// processes are killed again and again.
func TestStateIsTrueWhileProcessesDie(t *testing.T) {
	r := run(t, server("xds"), server("extproc"), server("envoy"))
	r.up("xds", "extproc", "envoy")
	var (
		g    sync.WaitGroup
		done atomic.Bool
	)
	g.Go(func() {
		defer done.Store(true)
		for i := range 60 {
			name := []string{"xds", "extproc", "envoy"}[i%3]
			until(t, name+" runs", func() bool { return r.row(name).PID != 0 })
			restarts := r.row(name).Restarts
			_ = syscall.Kill(r.row(name).PID, syscall.SIGKILL)
			until(t, name+" is restarted", func() bool { return r.row(name).Restarts > restarts })
		}
	})
	lock, err := state.Lock(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	reads := 0
	for ; !done.Load(); reads++ {
		checkTrue(t, r.dir)
	}
	g.Wait()
	if reads < 60 {
		t.Errorf("only %d reads while processes died", reads)
	}
}

// checkTrue fails if the file claims a process that had ended before it was
// written: then it still does so later.
func checkTrue(t *testing.T, dir string) {
	t.Helper()
	raw := readRaw(t, dir)
	for _, pid := range raw {
		if pid == 0 || proc.Alive(pid) {
			continue
		}
		until(t, "the dead process leaves the file", func() bool {
			for _, now := range readRaw(t, dir) {
				if now == pid {
					return false
				}
			}
			return true
		})
	}
}

func readRaw(t *testing.T, dir string) []int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := state.Parse(b)
	if err != nil {
		t.Fatalf("state.json: %v", err)
	}
	var pids []int
	for _, p := range s.Processes {
		pids = append(pids, p.PID)
	}
	return pids
}
