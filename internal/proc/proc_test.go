package proc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary play the parent that is killed.
func TestMain(m *testing.M) {
	if os.Getenv("MILLRACE_PROC_TEST") == "parent" {
		playParent()
	}
	os.Exit(m.Run())
}

// playParent starts a child that would run for a minute, prints its id and waits
// to be killed.
func playParent() {
	p, err := Start(exec.Command("sleep", "60"))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(p.PID())
	_ = p.Err()
	os.Exit(0)
}

func TestChildDiesWithItsKilledParent(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(exe)
	parent.Env = append(os.Environ(), "MILLRACE_PROC_TEST=parent")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(parent)
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if !Alive(child) {
		t.Fatalf("child %d does not run", child)
	}
	if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil { // the parent alone, not its group
		t.Fatal(err)
	}
	_ = p.Err()
	waitGone(t, child)
}

// waitGone polls until pid has ended: no signal reports the end of a process
// that is not our child.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for Alive(pid) {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("process %d still runs", pid)
		}
	}
}

func TestStopKillsWhatIgnoresSIGTERM(t *testing.T) {
	cmd := exec.Command("sh", "-c", `trap '' TERM; echo up; while :; do sleep 1; done`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := p.Stop(10 * time.Millisecond); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("Stop() = %v, want killed", err)
	}
	if Alive(p.PID()) {
		t.Error("alive after Stop")
	}
}

func TestStateSeesAStoppedProcess(t *testing.T) {
	p, err := Start(exec.Command("sleep", "60"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Stop(0) }()
	if err := syscall.Kill(p.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		s, err := State(p.PID())
		if err != nil {
			t.Fatal(err)
		}
		if s.Parent != os.Getpid() {
			t.Fatalf("parent %d, want %d", s.Parent, os.Getpid())
		}
		if s.State == 'T' {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("state %c, want T", s.State)
		}
	}
}

func TestBackoffDoublesAndForgets(t *testing.T) {
	b := Backoff{Min: 100 * time.Millisecond, Max: 300 * time.Millisecond, Reset: time.Minute}
	var got []time.Duration
	for _, ran := range []time.Duration{time.Hour, 0, 0, 0, time.Hour, 0} {
		got = append(got, b.Next(ran)/time.Millisecond)
	}
	if s := fmt.Sprint(got); s != "[100ns 200ns 300ns 300ns 100ns 200ns]" {
		t.Errorf("waits %s", s)
	}
}

func TestFreePortsAreDistinctAndFree(t *testing.T) {
	ports, err := FreePorts(20)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, p := range ports {
		if seen[p] || p < firstPort || p > lastPort || !free(p) {
			t.Errorf("port %d: taken twice, out of range or in use", p)
		}
		seen[p] = true
	}
}

func FuzzParseStat(f *testing.F) {
	self, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(self)
	f.Add([]byte("1 (a) b) S 1"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseStat(b); err == nil && s.State == 0 {
			t.Error("a stat without a state")
		}
	})
}

// TestGroupEndsWithItsLeader: what the leader has started does not outlive it.
func TestGroupEndsWithItsLeader(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 60 & echo $!; wait")
	cmd.Env = append(os.Environ(), "MILLRACE_PROC_MARK="+t.Name())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	for what, find := range map[string]func() ([]int, error){
		"Group": func() ([]int, error) { return Group(p.PID()) }, "Marked": func() ([]int, error) { return Marked("MILLRACE_PROC_MARK=" + t.Name()) },
	} {
		if pids, err := find(); err != nil || len(pids) != 2 || !slices.Contains(pids, child) {
			t.Errorf("%s: %v %v, want %d and %d", what, pids, err, p.PID(), child)
		}
	}
	if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	deadline := time.Now().Add(5 * time.Second)
	for Alive(child) {
		if time.Now().After(deadline) {
			t.Fatal("the leader's child is alive")
		}
	}
}
