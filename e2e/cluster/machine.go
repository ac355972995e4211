package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"millrace.dev/millrace/internal/proc"
)

// machine is where processes run: namespaces of their own, or, without init, this
// machine.
type machine struct {
	// Constant after start.
	name string
	logs string // folder
	init *proc.Process

	// mu guards processes.
	mu        sync.Mutex
	processes map[string]*proc.Process // by name, running or ended
}

// stopGrace is how long a process may take to end when asked.
const stopGrace = 3 * time.Second

// newMachine starts PID 1 of a new machine.
func newMachine(name, pid1, logs string) (*machine, error) {
	m := &machine{name: name, logs: logs}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = read.Close() }()
	cmd := exec.Command(pid1, "node", name)
	cmd.Stdout, cmd.Stderr = write, write
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS}
	m.init, err = proc.Start(cmd)
	_ = write.Close()
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", name, err)
	}
	if line, err := bufio.NewReader(read).ReadString('\n'); err != nil || line != "up\n" {
		m.end()
		return nil, fmt.Errorf("machine %s: PID 1: %s", name, strings.TrimSpace(line))
	}
	return m, nil
}

// path returns the path by which this machine's processes reach a file of the
// machine, in a folder that only the machine has.
func (m *machine) path(name string) string {
	if m.init == nil {
		return name
	}
	return filepath.Join("/proc", strconv.Itoa(m.init.PID()), "root", name)
}

// command returns a command that runs on the machine. Its working folder is / there.
func (m *machine) command(name string, args ...string) *exec.Cmd {
	if m.init == nil {
		return exec.Command(name, args...)
	}
	enter := []string{"-t", strconv.Itoa(m.init.PID()), "-m", "-n", "-p", "-u", "-w", "--", name}
	return exec.Command("nsenter", append(enter, args...)...)
}

// run runs a command on the machine to its end.
func (m *machine) run(name string, args ...string) error {
	out, err := m.command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %s %s: %w: %s", m.name, filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// runAll runs commands, one a line, to their end.
func (m *machine) runAll(commands string) error {
	for line := range strings.Lines(commands) {
		if words := strings.Fields(line); len(words) > 0 {
			if err := m.run(words[0], words[1:]...); err != nil {
				return err
			}
		}
	}
	return nil
}

// start starts a process that is known by a name until the machine ends, and whose
// output goes to a log of that name.
func (m *machine) start(name, program string, args ...string) error {
	log, err := os.OpenFile(filepath.Join(m.logs, m.name+"."+name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := m.command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := proc.Start(cmd)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", m.name, name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.processes == nil {
		m.processes = map[string]*proc.Process{}
	}
	m.processes[name] = p
	return nil
}

// process returns a process that was started, nil if none was.
func (m *machine) process(name string) *proc.Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.processes[name]
}

// stop kills a process and waits for its end.
func (m *machine) stop(name string) {
	if p := m.process(name); p != nil {
		p.Kill()
		<-p.Done()
	}
}

// end ends all processes of the machine, and with them its mounts and interfaces.
func (m *machine) end() {
	if m.init != nil {
		m.init.Kill() // the kernel kills the others, and PID 1 ends after them
		<-m.init.Done()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.processes {
		if m.init == nil {
			_ = p.Stop(stopGrace)
		}
		<-p.Done()
	}
	m.processes = nil
}

// alive is whether the machine's PID 1 runs.
func (m *machine) alive() bool {
	if m.init == nil {
		return true
	}
	select {
	case <-m.init.Done():
		return false
	default:
		return true
	}
}

// dial connects from the machine's network to an address of digits.
func (m *machine) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if m.init == nil {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	var conn net.Conn
	err := m.inNetwork(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// inNetwork calls f on a thread that is in the machine's network namespace. A socket
// stays in the namespace in which it was made.
func (m *machine) inNetwork(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine, and nobody else
		// runs on it in the wrong namespace.
		runtime.LockOSThread()
		if !m.alive() {
			done <- fmt.Errorf("%s: %w", m.name, errEnded)
			return
		}
		ns, err := os.Open(filepath.Join("/proc", strconv.Itoa(m.init.PID()), "ns/net"))
		if err != nil {
			done <- err
			return
		}
		err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		_ = ns.Close()
		if err != nil {
			done <- fmt.Errorf("enter the network of %s: %w", m.name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// errEnded is returned when a machine was to be used that has ended.
var errEnded = errors.New("has ended")
