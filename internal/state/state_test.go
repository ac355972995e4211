package state

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/internal/regular"
)

func newStore(t *testing.T, ps ...Process) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	st, err := Create(State{Dir: dir, Listen: "127.0.0.1:1", Ready: true, PID: os.Getpid(), Processes: ps})
	if err != nil {
		t.Fatal(err)
	}
	return st, dir
}

func TestReadSaysWhetherTheMeshRuns(t *testing.T) {
	_, dir := newStore(t, Process{Name: "xds", PID: os.Getpid()})
	s, running, err := Read(dir)
	if err != nil || running || s.Ready || s.Processes[0].PID != 0 {
		t.Errorf("Read() = %+v, %v, %v without a lock; want nothing running", s, running, err)
	}
	lock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, running, err = Read(dir)
	if err != nil || !running || !s.Ready || s.Processes[0].PID != os.Getpid() {
		t.Errorf("Read() = %+v, %v, %v with a lock; want it running", s, running, err)
	}
	if _, err := Lock(dir); !errors.Is(err, ErrRunning) {
		t.Errorf("second Lock() = %v, want ErrRunning", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if Locked(dir) {
		t.Error("locked after Close")
	}
}

// TestNobodyWaitsForTheFolder has pipes and endless devices in place of the files.
func TestNobodyWaitsForTheFolder(t *testing.T) {
	for _, name := range []string{fileName, lockName, fileName + ".tmp"} {
		for _, kind := range []string{"pipe", "device"} {
			dir := t.TempDir()
			path := filepath.Join(dir, name)
			err := os.Symlink("/dev/zero", path)
			if kind == "pipe" {
				err = errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600))
			}
			if err != nil {
				t.Fatal(err)
			}
			_, _, readErr := Read(dir)
			lock, lockErr := Lock(dir)
			lock.Close() // nil has nothing to close
			_, createErr := Create(State{Dir: dir})
			if got := map[string]error{fileName: readErr, lockName: lockErr, fileName + ".tmp": createErr}[name]; !errors.Is(got, regular.ErrKind) {
				t.Errorf("%s, a %s: %v, %v, %v; want %v", name, kind, readErr, lockErr, createErr, regular.ErrKind)
			}
			if Locked(dir) {
				t.Errorf("%s, a %s: a mesh runs", name, kind)
			}
		}
	}
}

func TestReadWithoutMesh(t *testing.T) {
	if _, _, err := Read(t.TempDir()); !errors.Is(err, ErrNone) {
		t.Errorf("Read() = %v, want ErrNone", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, fileName), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	var hint *obs.Hint
	if _, _, err := Read(dir); !errors.As(err, &hint) || !strings.Contains(hint.Next, "no mesh runs here") {
		t.Errorf("Read() of half a file = %v, %+v", err, hint)
	}
	if _, _, err := Read(dir); err == nil {
		t.Error("Read() took half a file")
	}
}

func TestADeadProcessIsNeverWrittenAsAlive(t *testing.T) {
	p, err := proc.Start(exec.Command("sleep", "60"))
	if err != nil {
		t.Fatal(err)
	}
	st, _ := newStore(t, Process{Name: "xds", PID: p.PID()})
	if got := st.State().Processes[0]; got.Status != Running {
		t.Errorf("status %q, want running", got.Status)
	}
	_ = p.Stop(time.Second)
	if err := st.Update(func(*State) {}); err != nil {
		t.Fatal(err)
	}
	if got := st.State().Processes[0]; got.PID != 0 || got.Status != Down || got.Reason == "" {
		t.Errorf("process %+v, want down with a reason", got)
	}
}

func TestAStoppedProcessIsShown(t *testing.T) {
	p, err := proc.Start(exec.Command("sleep", "60"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Stop(0) }()
	st, _ := newStore(t, Process{Name: "xds", PID: p.PID()})
	if err := syscall.Kill(p.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for st.State().Processes[0].Status != Stopped {
		if time.Now().After(deadline) {
			t.Fatalf("process %+v, want stopped", st.State().Processes[0])
		}
		_ = st.Update(func(*State) {})
	}
}

func TestUpdateTriesAgainAfterAnError(t *testing.T) {
	st, dir := newStore(t)
	if err := os.Mkdir(filepath.Join(dir, fileName+".tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := st.Update(func(s *State) { s.Model = "m" }); err == nil || st.Err() == nil {
		t.Fatal("an unwritable file was no error")
	}
	if err := os.Remove(filepath.Join(dir, fileName+".tmp")); err != nil {
		t.Fatal(err)
	}
	if err := st.Update(func(*State) {}); err != nil {
		t.Fatal(err)
	}
	if s, _, err := Read(dir); err != nil || s.Model != "m" {
		t.Errorf("Read() = %+v, %v; want the change", s, err)
	}
}

func TestStateThatCannotBeWrittenIsNotBelieved(t *testing.T) {
	p, err := proc.Start(exec.Command("sleep", "60"))
	if err != nil {
		t.Fatal(err)
	}
	st, dir := newStore(t, Process{Name: "xds", PID: p.PID()}, Process{Name: "up", PID: os.Getpid()})
	lock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if s, _, err := Read(dir); err != nil || s.Stale || !s.Ready || s.Processes[0].Status != Running {
		t.Fatalf("Read() = %+v, %v; want all well", s, err)
	}
	blocked := filepath.Join(dir, fileName+".tmp") // as a full disk does
	if err := os.Mkdir(blocked, 0o755); err != nil {
		t.Fatal(err)
	}
	_ = p.Stop(time.Second)
	if err := st.Update(func(*State) {}); err == nil {
		t.Fatal("an unwritable file was no error")
	}
	s, running, err := Read(dir)
	if err != nil || !running || !s.Stale || s.Ready {
		t.Errorf("Read() = %+v, %v, %v; want it running, stale and not known to be ready", s, running, err)
	}
	if x := s.Processes[0]; x.PID != 0 || x.Status != Down || !strings.Contains(x.Reason, "out of date") {
		t.Errorf("the process that has ended is %+v", x)
	}
	if x := s.Processes[1]; x.PID != os.Getpid() || x.Status != Running {
		t.Errorf("the process that runs still is %+v", x)
	}
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	if err := st.Update(func(*State) {}); err != nil {
		t.Fatal(err)
	}
	if s, _, err := Read(dir); err != nil || s.Stale || !s.Ready {
		t.Errorf("Read() = %+v, %v once it can be written; want all well", s, err)
	}
}

func TestAnotherProcessOfTheSameIDIsAnother(t *testing.T) {
	_, dir := newStore(t, Process{Name: "xds", PID: os.Getpid()})
	lock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	s, _, err := Read(dir)
	if err != nil || s.Processes[0].Start == 0 {
		t.Fatalf("Read() = %+v, %v; want the start of the process", s, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	start := fmt.Sprintf(`"start": %d`, s.Processes[0].Start)
	other := strings.Replace(string(text), start, `"start": 1`, 1)
	if err := os.WriteFile(filepath.Join(dir, fileName), []byte(other), 0o644); err != nil || other == string(text) {
		t.Fatalf("%v: %s", err, text)
	}
	if s, _, err = Read(dir); err != nil || s.Processes[0].PID != 0 || s.Processes[0].Status != Down {
		t.Errorf("Read() = %+v, %v; want the process of before ended", s, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"listen":"127.0.0.1:1","processes":[{"name":"xds","pid":1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := Parse(b); err == nil {
			_ = s.Find("xds")
		}
	})
}
