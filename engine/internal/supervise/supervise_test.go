package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/proc"
)

// TestMain lets the test binary play a backend or a shard.
func TestMain(m *testing.M) {
	if address := os.Getenv("MILLRACE_FAKE_LISTEN"); address != "" {
		playProcess(address)
	}
	os.Exit(m.Run())
}

// playProcess beats, and answers each connection with a token, until its
// engine has gone.
func playProcess(address string) {
	beats := os.NewFile(3, "beats")
	go func() {
		for range time.Tick(200 * time.Millisecond) {
			if _, err := beats.Write([]byte{'.'}); err != nil {
				os.Exit(0)
			}
		}
	}()
	if os.Getenv("MILLRACE_FAKE_CHILD") != "" {
		if err := exec.Command("sleep", "600").Start(); err != nil {
			os.Exit(1)
		}
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			os.Exit(1)
		}
		_, _ = c.Write([]byte("token"))
		_ = c.Close()
	}
}

// fake launches this test binary.
type fake struct {
	backend, shard string
	remote         bool // whether the backend runs elsewhere
	group          bool // whether it starts a process of its own
}

func (f fake) command(address string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "MILLRACE_FAKE_LISTEN="+address)
	return cmd, err
}

func (f fake) Process(r backend.Role, _ *enginepb.Assignment) (backend.Process, error) {
	address := f.backend
	if r == backend.Shard {
		address = f.shard
	}
	p := backend.Process{Ready: func(ctx context.Context) error { return token(ctx, address) }}
	if f.remote {
		return p, nil
	}
	var err error
	p.Cmd, err = f.command(address)
	if p.Group = f.group; f.group && err == nil {
		p.Cmd.Env = append(p.Cmd.Env, "MILLRACE_FAKE_CHILD=1")
	}
	return p, err
}

func token(ctx context.Context, address string) error {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.ReadFull(c, make([]byte, 5))
	return err
}

func (f fake) Prove(ctx context.Context, _ *enginepb.Assignment) error { return token(ctx, f.backend) }

// start runs a supervisor over fake processes until the test ends, and checks
// that nothing is left.
func start(t *testing.T) *Supervisor {
	t.Helper()
	return startRunning(t, func() int { return 0 })
}

// startRunning is start for a backend in which so many requests run.
func startRunning(t *testing.T, running func() int) *Supervisor {
	t.Helper()
	return startFake(t, fake{}, t.TempDir(), running)
}

// startFake starts a supervisor over processes of a kind, whose addresses it sets where
// there are none, with its logs in a folder.
func startFake(t *testing.T, f fake, logs string, running func() int) *Supervisor {
	t.Helper()
	ports, err := proc.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	if f.backend == "" {
		f.backend, f.shard = fmt.Sprint("127.0.0.1:", ports[0]), fmt.Sprint("127.0.0.1:", ports[1])
	}
	s := New(Config{
		Node: "node-0", Logs: logs, Log: slog.New(slog.DiscardHandler), Launcher: f,
		Running: running, Served: func() time.Time { return time.Time{} },
	})
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		snap, _ := s.Snapshot()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, p := range snap.Processes {
			if p.PID != 0 && proc.Alive(p.PID) {
				t.Errorf("process %d is left", p.PID)
			}
		}
		// One thread starts children for ever; the last ones may just be returning.
		deadline := time.Now().Add(5 * time.Second)
		for runtime.NumGoroutine() > before+1 {
			if time.Now().After(deadline) {
				t.Fatalf("%d goroutines before, %d after", before, runtime.NumGoroutine())
			}
			runtime.Gosched()
		}
	})
	return s
}

// await waits until the snapshot is as wanted.
func await(t *testing.T, s *Supervisor, state enginepb.State, reason string) *Snapshot {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		snap, changed := s.Snapshot()
		if snap.State == state && strings.Contains(snap.Reason, reason) {
			return snap
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%v %q, want %v %q", snap.State, snap.Reason, state, reason)
		}
	}
}

func assign(t *testing.T, s *Supervisor, a *enginepb.Assignment) {
	t.Helper()
	if _, err := s.Assign(a); err != nil {
		t.Fatal(err)
	}
}

func TestKilledBackendIsBack(t *testing.T) {
	s := start(t)
	if v, why := s.Serving(); v != nil || why != idle {
		t.Fatalf("serving %v, %q", v, why)
	}
	assign(t, s, assignment(1, 0, 1))
	first := await(t, s, enginepb.State_READY, "")
	v, _ := s.Serving()
	if err := syscall.Kill(first.Processes[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-v.Alive.Done()
	second := await(t, s, enginepb.State_READY, "")
	p := second.Processes[0]
	if p.PID == first.Processes[0].PID || p.Restarts != 1 || second.Epoch <= first.Epoch {
		t.Errorf("after the kill %+v, epoch %d → %d", p, first.Epoch, second.Epoch)
	}
	if now, _ := s.Serving(); now == nil || now.Alive.Err() != nil || v.Open.Err() == nil {
		t.Error("the door was not closed and opened")
	}
}

func TestUndoDuringADrainKeepsItsRequests(t *testing.T) {
	s := startRunning(t, func() int { return 1 })
	assign(t, s, assignment(1, 0, 1))
	pid := await(t, s, enginepb.State_READY, "").Processes[0].PID
	before, _ := s.Serving()
	assign(t, s, other(2))
	await(t, s, enginepb.State_DRAINING, "")
	if v, _ := s.Serving(); v != nil || before.Open.Err() == nil || before.Alive.Err() != nil {
		t.Fatal("a drain must close the door, and let those go on who are inside")
	}
	assign(t, s, assignment(3, 0, 1))
	snap := await(t, s, enginepb.State_READY, "")
	now, _ := s.Serving()
	if snap.Processes[0].PID != pid || snap.Version.Generation != 3 || before.Alive.Err() != nil {
		t.Errorf("the undo has ended what runs: %+v, %v", snap, before.Alive.Err())
	}
	if now == nil || now.Open.Err() != nil || now.Alive != before.Alive {
		t.Error("the door was not opened again to the same backend")
	}
}

func TestStoppedBackendComesBackByItself(t *testing.T) {
	s := start(t)
	assign(t, s, assignment(1, 0, 1))
	pid := await(t, s, enginepb.State_READY, "").Processes[0].PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	await(t, s, enginepb.State_BROKEN, "backend stopped")
	if v, _ := s.Serving(); v != nil {
		t.Error("still serving")
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if p := await(t, s, enginepb.State_READY, "").Processes[0]; p.PID != pid || p.Restarts != 0 {
		t.Errorf("restarted: %+v", p)
	}
}

func TestBackendThatCannotStartIsNamed(t *testing.T) {
	s := start(t)
	taken, err := net.Listen("tcp", s.cfg.Launcher.(fake).backend)
	if err != nil {
		t.Fatal(err)
	}
	assign(t, s, assignment(1, 0, 1))
	await(t, s, enginepb.State_BROKEN, "backend died: exit status 1: \"listen tcp")
	_ = taken.Close()
	await(t, s, enginepb.State_READY, "")
}

// TestLogThatCannotBeWrittenStopsNothing has a backend killed whose log is on a disk that takes
// no more: a process that would end over a line it can't write is started all the same, and
// why another one ended is known.
func TestLogThatCannotBeWrittenStopsNothing(t *testing.T) {
	logs := filepath.Join(t.TempDir(), "logs") // there is no such folder, so that nobody can write
	s := startFake(t, fake{}, logs, func() int { return 0 })
	assign(t, s, assignment(1, 0, 1))
	first := await(t, s, enginepb.State_READY, "")
	if err := syscall.Kill(first.Processes[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, s, enginepb.State_BROKEN, "backend died: killed")
	await(t, s, enginepb.State_READY, "")
}

func TestWhyABackendEndedIsKnownWithoutALog(t *testing.T) {
	s := startFake(t, fake{}, filepath.Join(t.TempDir(), "logs"), func() int { return 0 })
	taken, err := net.Listen("tcp", s.cfg.Launcher.(fake).backend)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	assign(t, s, assignment(1, 0, 1))
	await(t, s, enginepb.State_BROKEN, "backend died: exit status 1: \"listen tcp")
}

// TestOutputIsNeverRefused has a log written to that can't be opened, until it can.
func TestOutputIsNeverRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs", "log")
	o := &output{path: path}
	defer o.Close()
	write := func(text string) {
		t.Helper()
		if n, err := o.Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("%d of %d bytes, %v", n, len(text), err)
		}
	}
	write(strings.Repeat("x", 3*maxTail) + "\n")
	write("the reason\n")
	if got := o.last(); got != "the reason" || len(o.tail) > maxTail {
		t.Errorf("last line %q, %d bytes kept", got, len(o.tail))
	}
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	write("there is room\n")
	if b, err := os.ReadFile(path); string(b) != "there is room\n" {
		t.Errorf("log %q, %v", b, err)
	}
}

// fakePeer is the other engine of a replica.
type fakePeer struct {
	enginepb.UnimplementedEngineServer
	status atomic.Pointer[enginepb.Status]
	news   chan struct{}
}

func (p *fakePeer) Watch(_ *enginepb.WatchRequest, stream grpc.ServerStreamingServer[enginepb.Status]) error {
	for {
		if err := stream.Send(p.status.Load()); err != nil {
			return err
		}
		select {
		case <-p.news:
		case <-time.After(100 * time.Millisecond):
		case <-stream.Context().Done():
			return nil
		}
	}
}

func (p *fakePeer) say(state enginepb.State, reason string, epoch uint64) {
	a := assignment(1, 1, 2)
	p.status.Store(&enginepb.Status{Node: "node-1", State: state, Reason: reason, Epoch: epoch, Assignment: a, Generation: 1})
	select {
	case p.news <- struct{}{}:
	default:
	}
}

func TestHeadFollowsItsPeer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	peer := &fakePeer{news: make(chan struct{})}
	peer.say(enginepb.State_STARTING, "shard is starting", 1)
	srv := grpc.NewServer()
	enginepb.RegisterEngineServer(srv, peer)
	served := make(chan error)
	go func() { served <- srv.Serve(ln) }()
	defer func() { srv.Stop(); <-served }()

	s := start(t)
	a := assignment(1, 0, 2)
	a.Stages[1].EngineAddress = ln.Addr().String()
	assign(t, s, a)
	await(t, s, enginepb.State_STARTING, "waits for node-1: shard is starting")
	peer.say(enginepb.State_READY, "", 1)
	first := await(t, s, enginepb.State_READY, "")
	peer.say(enginepb.State_BROKEN, "shard stopped", 1)
	await(t, s, enginepb.State_BROKEN, "waits for node-1: shard stopped")
	peer.say(enginepb.State_READY, "", 1)
	if again := await(t, s, enginepb.State_READY, ""); again.Epoch != first.Epoch {
		t.Error("restarted for a shard that only hung")
	}
	peer.say(enginepb.State_READY, "", 2)
	await(t, s, enginepb.State_STARTING, "")
	if again := await(t, s, enginepb.State_READY, ""); again.Epoch == first.Epoch {
		t.Error("not restarted with its shard")
	}
}

func TestSilentPeer(t *testing.T) {
	p := &peer{stage: 1, replica: "m-0"}
	now := time.Now()
	if v := p.view(now); v.Why != "has not reported yet" {
		t.Error(v)
	}
	s := &enginepb.Status{State: enginepb.State_READY, Epoch: 7, Assignment: assignment(1, 1, 2)}
	p.receive(s, now)
	if v := p.view(now.Add(peerSilent)); v.Why != "" || v.Epoch != 7 {
		t.Error(v)
	}
	if v := p.view(now.Add(peerSilent + 1)); v.Why != "silent" || v.Epoch != 7 {
		t.Error(v)
	}
	p.forgive(now.Add(time.Hour))
	if v := p.view(now.Add(time.Hour)); v.Why != "" {
		t.Errorf("%v right after our own pause", v)
	}
	if v := p.view(now.Add(time.Hour + 2*peerInterval)); v.Why != "silent" {
		t.Errorf("%v later", v)
	}
	p.receive(&enginepb.Status{State: enginepb.State_READY, Epoch: 9, Assignment: assignment(1, 0, 1)}, now)
	if v := p.view(now); v.Why != "serves something else" || v.Epoch != 7 {
		t.Error(v)
	}
}

func TestTrimFileKeepsTheNewerHalf(t *testing.T) {
	path := t.TempDir() + "/log"
	if err := trimFile(path, 10); err != nil {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, []byte("0123456789abcdef"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := trimFile(path, 10); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(path + ".old")
	if now, _ := os.ReadFile(path); err != nil || string(old) != "bcdef" || len(now) != 0 {
		t.Errorf("old %q, now %q, %v", old, now, err)
	}
	if err := errors.Join(os.WriteFile(path, []byte("0123456789abcdef"), 0o644), os.Remove(path+".old"), os.Mkdir(path+".old", 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := trimFile(path, 10); err == nil {
		t.Error("a copy that can't be made is not reported")
	}
	if now, _ := os.ReadFile(path); len(now) != 0 {
		t.Errorf("without a copy %d bytes are kept", len(now))
	}
}

// serveTokens answers at an address as a backend does, until closed.
func serveTokens(t *testing.T, address string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("token"))
			_ = c.Close()
		}
	}()
	return ln
}

func TestExternalServerIsReadyByItsAnswers(t *testing.T) {
	ln := serveTokens(t, "127.0.0.1:0")
	address := ln.Addr().String()
	s := startFake(t, fake{backend: address, remote: true}, t.TempDir(), func() int { return 0 })
	assign(t, s, assignment(1, 0, 1))
	first := await(t, s, enginepb.State_READY, "")
	if len(first.Processes) != 0 || first.Epoch == 0 {
		t.Errorf("%+v, want no process and an epoch", first)
	}
	v, _ := s.Serving()
	_ = ln.Close()
	<-v.Alive.Done()
	await(t, s, enginepb.State_STARTING, "connection refused")
	serveTokens(t, address)
	if again := await(t, s, enginepb.State_READY, ""); again.Epoch <= first.Epoch {
		t.Errorf("epoch %d, before %d", again.Epoch, first.Epoch)
	}
}

// memberOf returns the process that the backend has started.
func memberOf(t *testing.T, leader int) int {
	t.Helper()
	for range 100 {
		pids, err := proc.Group(leader)
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			if pid != leader {
				return pid
			}
		}
	}
	t.Fatal("the backend has no child")
	return 0
}

func TestGroupStopsAndEndsAsOne(t *testing.T) {
	logs := t.TempDir()
	s := startFake(t, fake{group: true}, logs, func() int { return 0 })
	assign(t, s, assignment(1, 0, 1))
	leader := await(t, s, enginepb.State_READY, "").Processes[0].PID
	member := memberOf(t, leader)
	if err := syscall.Kill(member, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	await(t, s, enginepb.State_BROKEN, "backend stopped")
	if err := syscall.Kill(leader, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if again := await(t, s, enginepb.State_READY, "").Processes[0]; again.PID == leader || proc.Alive(member) {
		t.Errorf("%+v; the child of %d is alive: %t", again, leader, proc.Alive(member))
	}
}

// TestLeftoversOfAGroupAreEnded before the next start: an engine and the group's leader
// were killed together.
func TestLeftoversOfAGroupAreEnded(t *testing.T) {
	logs := t.TempDir()
	left := exec.Command("sleep", "600")
	left.Env = append(os.Environ(), groupMark+"="+filepath.Join(logs, "backend@node-0.log"))
	p, err := proc.Start(left)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	s := startFake(t, fake{group: true}, logs, func() int { return 0 })
	assign(t, s, assignment(1, 0, 1))
	await(t, s, enginepb.State_READY, "")
	<-p.Done()
}
