package attack

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// pathFlag is a flag in a program's help whose value names a file or a folder.
var pathFlag = regexp.MustCompile(`(?m)^  -([a-z0-9-]+) (file|folder|path|file,…)(?: .*)?$`)

// endsWithin is how long a program may take to end: its grace time and the margin that
// internal/program allows.
const endsWithin = 20 * time.Second

// TestFilesThatBlock puts a pipe that nobody writes to, a folder, a device without end, and a link
// to nothing under every flag of every program that names a file. No program hangs: it refuses the
// file, or serves without it and ends when it is to. Flags are those that its help
// names: a new one is tried, too.
func TestFilesThatBlock(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := syscall.Mkfifo(at("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"link": at("pipe"), "dangling": at("nothing"), "zero": "/dev/zero"} {
		if err := os.Symlink(to, at(link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(at("folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	paths := []string{"pipe", "link", "zero", "folder", "dangling"}
	programs := map[string][]string{
		"extproc":   {"-listen", "127.0.0.1:0", "-metrics", "127.0.0.1:0"},
		"xds":       {"-listen", "127.0.0.1:0", "-metrics", "127.0.0.1:0"},
		"nodeagent": {"-node", "a", "-xds", "127.0.0.1:1", "-engine", "127.0.0.1:1", "-metrics", "127.0.0.1:0"},
		"engine":    {"-node", "a", "-backend", "127.0.0.1:1", "-shard", "127.0.0.1:2", "-grace", "1s", "-metrics", "127.0.0.1:0"},
		"millrace":  {"up", "-check"},
	}
	tried, refused := 0, 0
	for name, args := range programs {
		program, err := rig.Program(name)
		if err != nil {
			t.Fatal(err)
		}
		help := exec.Command(program, "-h")
		if name == "millrace" {
			help = exec.Command(program, "up", "-h")
		}
		text, _ := help.CombinedOutput() // its exit code is 0 or that of bad flags
		flags := pathFlag.FindAllStringSubmatch(string(text), -1)
		if len(flags) < 3 {
			t.Fatalf("%s: its help names %d flags of files:\n%s", name, len(flags), text)
		}
		for _, f := range flags {
			for _, file := range paths {
				t.Run(name+" -"+f[1]+" "+file, func(t *testing.T) {
					tried++
					all := append(append([]string{}, args...), "-"+f[1], at(file))
					for _, pair := range [][2]string{{"-tls-cert", "-tls-key"}, {"-tls-key", "-tls-cert"}, {"-tls-ca", "-tls-cert"}, {"-ca-cert", "-ca-key"}, {"-ca-key", "-ca-cert"}, {"-https-cert", "-https-key"}, {"-https-key", "-https-cert"},
						{"-scaler-tls-cert", "-scaler-tls-key"}, {"-scaler-tls-key", "-scaler-tls-cert"}} {
						if pair[0] == "-"+f[1] {
							all = append(all, pair[1], at(file))
						}
					}
					if f[1] == "tls-ca" {
						all = append(all, "-tls-key", at(file))
					}
					p := rig.Start(t, name, exec.Command(program, all...))
					rig.Wait(t, endsWithin, "it serves or ends", func() error {
						select {
						case <-p.Done():
							return nil
						default:
						}
						if strings.Contains(string(p.Out.Tail()), "msg=ready") {
							return nil
						}
						return os.ErrDeadlineExceeded
					})
					select {
					case <-p.Done():
						refused++
						return
					default:
					}
					if err := syscall.Kill(p.PID(), syscall.SIGTERM); err != nil {
						t.Fatal(err)
					}
					rig.Wait(t, endsWithin, "it ends", func() error {
						select {
						case <-p.Done():
							return nil
						default:
							return os.ErrDeadlineExceeded
						}
					})
				})
			}
		}
	}
	t.Logf("%d tried, %d refused at once, none hangs", tried, refused)
}

// TestFoldersThatBlock puts a pipe, and a device without end, in place of what a mesh has in its
// folder. No command waits for it.
func TestFoldersThatBlock(t *testing.T) {
	program, err := rig.Program("millrace")
	if err != nil {
		t.Fatal(err)
	}
	commands := [][]string{{"status"}, {"down"}, {"logs"}, {"drain", "node-a"}, {"undrain", "node-a"}, {"explain", "-last"}, {"trace", "-last"}, {"plan"}, {"models", "list"}, {"chat", "-ask", "Hi"}}
	for _, name := range []string{"state.json", "lock"} {
		for _, kind := range []string{"pipe", "device"} {
			dir := t.TempDir()
			path := filepath.Join(dir, name)
			if kind == "pipe" {
				err = syscall.Mkfifo(path, 0o600)
			} else {
				err = os.Symlink("/dev/zero", path)
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, args := range commands {
				t.Run(name+" "+kind+" "+args[0], func(t *testing.T) {
					p := rig.Start(t, args[0], exec.Command(program, append([]string{args[0]}, append(slices.Clone(args[1:]), "-dir", dir)...)...))
					rig.Wait(t, endsWithin, "it ends", func() error {
						select {
						case <-p.Done():
							return nil
						default:
							return os.ErrDeadlineExceeded
						}
					})
				})
			}
		}
	}
}
