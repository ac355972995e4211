package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// pkg is a Debian package, pinned.
type pkg struct{ name, version, sha256 string }

// parseLock returns the packages of a lock, by name. Lines: name, version, SHA-256.
func parseLock(text string) (map[string]pkg, error) {
	all := map[string]pkg{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		if len(words) != 3 || len(words[2]) != sha256.Size*2 {
			return nil, fmt.Errorf("debian.lock:%d: %q; must be a name, a version and a SHA-256", n, strings.TrimSpace(line))
		}
		if _, ok := all[words[0]]; ok {
			return nil, fmt.Errorf("debian.lock:%d: %s: twice", n, words[0])
		}
		all[words[0]] = pkg{words[0], words[1], words[2]}
	}
	return all, nil
}

// archive keeps Debian packages in a folder of the cache, each under its hash.
type archive struct {
	dir  string
	lock map[string]pkg
}

// newArchive returns the archive in the cache folder, for packages of the lock file.
func newArchive(cache, lock string) (*archive, error) {
	text, err := os.ReadFile(lock)
	if err != nil {
		return nil, err
	}
	pins, err := parseLock(string(text))
	if err != nil {
		return nil, err
	}
	return &archive{dir: filepath.Join(cache, "debian"), lock: pins}, nil
}

func (a *archive) file(p pkg) string { return filepath.Join(a.dir, p.name+"_"+p.sha256[:16]+".deb") }

// fetch sees to it that the packages are there, whole.
func (a *archive) fetch(ctx context.Context, names []string) error {
	var missing []pkg
	for _, name := range names {
		p, ok := a.lock[name]
		if !ok {
			return fmt.Errorf("debian.lock: no %s; -relock writes it anew", name)
		}
		if sum, err := (file{Path: a.file(p)}).sum(); err != nil || hex.EncodeToString(sum) != p.sha256 {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if err := os.MkdirAll(a.dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(a.dir, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	args := []string{"download"}
	for _, p := range missing {
		args = append(args, p.name+"="+p.version)
	}
	if err := a.download(ctx, tmp, args); err != nil {
		return err
	}
	for _, p := range missing {
		if err := a.take(tmp, p); err != nil {
			return err
		}
	}
	return nil
}

// download has apt do it: with the lists of this machine, and where those don't know the
// version with lists of our own, which any user can update.
func (a *archive) download(ctx context.Context, dir string, args []string) error {
	first := apt(ctx, dir, args...)
	if first == nil {
		return nil
	}
	own := filepath.Join(a.dir, "apt")
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(own, d), 0o755); err != nil {
			return err
		}
	}
	options := []string{"-o", "Dir::State::Lists=" + filepath.Join(own, "lists"), "-o", "Dir::Cache=" + own, "-o", "APT::Sandbox::User="}
	if err := apt(ctx, dir, append(options, "update")...); err != nil {
		return errors.Join(first, err)
	}
	if err := apt(ctx, dir, append(options, args...)...); err != nil {
		return fmt.Errorf("%w; if Debian has a newer version, -relock takes it (this needs sources of Debian 12)", err)
	}
	return nil
}

func apt(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q"}, args...)...)
	cmd.Dir = dir
	printed, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", strings.Join(args, " "), err, lastLines(printed, 3))
	}
	return nil
}

func lastLines(b []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}

// take moves the package from the folder into the archive, if it is the pinned one.
func (a *archive) take(dir string, p pkg) error {
	found, err := filepath.Glob(filepath.Join(dir, p.name+"_*.deb"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("apt-get downloaded %q for %s: %v", found, p.name, err)
	}
	sum, err := (file{Path: found[0]}).sum()
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(sum); got != p.sha256 {
		return fmt.Errorf("%s %s: sha256 is %s, must be %s", p.name, p.version, got, p.sha256)
	}
	return os.Rename(found[0], a.file(p))
}

// unpack returns the taken files of the packages, with a record of each as Debian has it,
// which is where scanners look for them.
func (a *archive) unpack(ctx context.Context, names []string) (tree, error) {
	t := tree{}
	for _, name := range names {
		p := a.lock[name]
		control, err := exec.CommandContext(ctx, "dpkg-deb", "--field", a.file(p)).Output()
		if err != nil {
			return nil, fmt.Errorf("dpkg-deb %s: %w", a.file(p), err)
		}
		t["var/lib/dpkg/status.d/"+name] = file{Mode: 0o644, Data: control}
		b, err := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", a.file(p)).Output()
		if err != nil {
			return nil, fmt.Errorf("dpkg-deb %s: %w", a.file(p), err)
		}
		files, err := untar(bytes.NewReader(b), name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := t.merge(files); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return t, nil
}

// untar returns what is taken of a package's files.
func untar(r io.Reader, name string) (tree, error) {
	t := tree{}
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, err
		}
		to, ok := taken(name, path.Clean(h.Name))
		if !ok {
			continue
		}
		switch h.Typeflag {
		case tar.TypeReg:
			b, err := io.ReadAll(in)
			if err != nil {
				return nil, err
			}
			// No setuid, whatever a package says.
			t[to] = file{Mode: fs.FileMode(h.Mode) & 0o755, Data: b}
		case tar.TypeSymlink:
			t.link(to, h.Linkname)
		}
	}
}

// bundle puts the certificates of authorities into the one file where programs look.
func (t tree) bundle() {
	const folder = "usr/share/ca-certificates/"
	var all []byte
	for _, name := range t.names() {
		if strings.HasPrefix(name, folder) {
			all = append(all, t[name].Data...)
			delete(t, name)
		}
	}
	t["etc/ssl/certs/ca-certificates.crt"] = file{Mode: 0o644, Data: all}
}

// relock returns a lock of the newest versions that this machine's apt knows.
func relock(ctx context.Context, names []string) (string, error) {
	dir, err := os.MkdirTemp("", "relock-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := apt(ctx, dir, append([]string{"download"}, names...)...); err != nil {
		return "", err
	}
	text := "# Debian packages in the images: name, version, SHA-256. Written by `images -relock`.\n"
	names = slices.Sorted(slices.Values(names))
	for _, name := range names {
		found, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
		if err != nil || len(found) != 1 {
			return "", fmt.Errorf("apt-get downloaded %q for %s: %v", found, name, err)
		}
		version, err := exec.CommandContext(ctx, "dpkg-deb", "--field", found[0], "Version").Output()
		if err != nil {
			return "", err
		}
		sum, err := (file{Path: found[0]}).sum()
		if err != nil {
			return "", err
		}
		text += fmt.Sprintf("%s %s %x\n", name, strings.TrimSpace(string(version)), sum)
	}
	return text, nil
}
