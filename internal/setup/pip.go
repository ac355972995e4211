package setup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"millrace.dev/millrace/internal/regular"
)

// fetch returns the path of the archive in the cache's download folder. One that
// an interrupted set-up left there complete is not fetched again.
func (i installer) fetch(ctx context.Context, a archive) (string, error) {
	folder := filepath.Join(i.cache, downloadFolder, a.SHA256[:16])
	if file, ok := downloaded(ctx, folder, a); ok {
		return file, nil
	}
	tmp := filepath.Join(i.tmp, "pip-"+a.SHA256[:16])
	out := filepath.Join(tmp, "out")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return "", err
	}
	doing := "download "
	if a.Source {
		doing = "download and read " // pip asks a source for its metadata, which takes longer
	}
	t := i.show.Begin(doing+a.title(), a.Size, func() int64 { return grown(tmp, a) })
	if err := i.pip(ctx, a, tmp, out); err != nil {
		return "", fmt.Errorf("%s: %w", a.title(), err)
	}
	i.show.End(t)
	if err := os.MkdirAll(filepath.Dir(folder), 0o755); err != nil {
		return "", err
	}
	if err := os.RemoveAll(folder); err != nil {
		return "", err
	}
	if err := os.Rename(out, folder); err != nil {
		return "", err
	}
	file, ok := downloaded(ctx, folder, a)
	if !ok {
		return "", hint(fmt.Errorf("%s: pip downloaded another file than the pinned one", a.title()), untrustedHint)
	}
	return file, nil
}

// downloaded returns the one file of folder, and whether it is the archive.
func downloaded(ctx context.Context, folder string, a archive) (string, bool) {
	entries, err := os.ReadDir(folder)
	if err != nil || len(entries) != 1 {
		return "", false
	}
	file := filepath.Join(folder, entries[0].Name())
	sum, err := hashFile(ctx, file)
	return file, err == nil && sum == a.SHA256
}

// pip downloads the archive into out. Its temporary files stay below tmp: on the
// cache's own disk, and gone with it.
func (i installer) pip(ctx context.Context, a archive, tmp, out string) error {
	wanted := filepath.Join(tmp, "requirements.txt")
	line := fmt.Sprintf("%s==%s --hash=sha256:%s\n", a.Project, a.Version, a.SHA256)
	if err := regular.Write(wanted, []byte(line), 0o644); err != nil {
		return err
	}
	// By project, never ":all:": building from source must not spread to what
	// pip needs to read the source's metadata.
	form := "--only-binary=" + a.Project
	if a.Source {
		form = "--no-binary=" + a.Project
	}
	cmd := exec.Command(i.python.Path, "-m", "pip", "download", "--no-deps", "--require-hashes", form,
		"--no-cache-dir", "--no-input", "--progress-bar=off", "--disable-pip-version-check",
		"--requirement", wanted, "--dest", out)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "PIP_REQUIRE_VIRTUALENV=0")
	printed, err := output(ctx, cmd)
	if err != nil {
		return pipFault(a, printed, err)
	}
	return nil
}

// grown is how much of the archive is there, in bytes: pip's own progress is
// for terminals only, so we read the file that it writes.
func grown(tmp string, a archive) int64 {
	prefix := underscored(a.Project)
	var most int64
	_ = filepath.WalkDir(tmp, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasPrefix(underscored(d.Name()), prefix) {
			return nil // files come and go meanwhile
		}
		if info, err := d.Info(); err == nil {
			most = max(most, info.Size())
		}
		return nil
	})
	return min(most, a.Size)
}

// underscored is a project's or file's name in the spelling that wheels use.
func underscored(s string) string { return strings.ReplaceAll(s, "-", "_") }

var (
	pipWant = regexp.MustCompile(`Expected sha256 ([0-9a-f]{64})`)
	pipGot  = regexp.MustCompile(`Got +([0-9a-f]{64})`)
)

// noNetwork are parts of what pip says when it can't reach its index.
var noNetwork = []string{
	"Failed to establish a new connection", "Name or service not known", "Temporary failure in name resolution",
	"Network is unreachable", "Connection refused", "ConnectTimeoutError", "ReadTimeoutError", "ProxyError",
	"Connection aborted", "No route to host",
}

// pipFault makes one clear error of what pip printed.
func pipFault(a archive, printed string, err error) error {
	want, got := pipWant.FindStringSubmatch(printed), pipGot.FindStringSubmatch(printed)
	switch {
	case want != nil && got != nil:
		return hint(mismatch("the downloaded file", want[1], got[1]), untrustedHint)
	case strings.Contains(printed, "No space left on device"):
		return fmt.Errorf("pip: %w", errFull)
	case containsAny(printed, noNetwork):
		return hint(errors.New("pip can't reach its package index"),
			"connect this machine to the network, or set pip's proxy or index (PIP_INDEX_URL, HTTPS_PROXY), and start again: what is complete is kept")
	case strings.Contains(printed, "No matching distribution found"):
		return hint(errors.New("pip's package index doesn't have it for this Python"),
			"see `python3 -m pip config list`: the index must carry this package; Python must be 3.10 or newer on x86-64 Linux with glibc")
	}
	return hint(fmt.Errorf("pip: %s: %w", lastLine(printed), err), "run `python3 -m pip download --no-deps "+a.Project+"` by hand to see what is wrong")
}

func containsAny(s string, subs []string) bool {
	for _, sub := range subs {
		if strings.Contains(s, sub) {
			return true
		}
	}
	return false
}

// lastLine returns the last line that says something, without pip's "ERROR: ".
func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.TrimPrefix(strings.TrimSpace(lines[len(lines)-1]), "ERROR: ")
}
