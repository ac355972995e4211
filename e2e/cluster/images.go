package cluster

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"millrace.dev/millrace/e2e/rig"
)

// Images of the test's own parts. No registry has them.
const (
	pauseImage    = "millrace.test/pause:1"
	programsImage = "millrace.test/programs:1" // arguments: programs' own
	envoyImage    = "millrace.test/envoy:1"    // stock Envoy, and pid1 that starts it
)

// images returns the archives that the nodes get.
func (o Options) images(programs string) []string {
	all := []string{filepath.Join(programs, "images", "pause.tar"), filepath.Join(programs, "images", "programs.tar")}
	return append(all, o.Images...)
}

// archive writes images/NAME.tar in the bench's folder.
func (b *bench) archive(name string, entrypoint []string, files map[string]string, tags ...string) error {
	for to, from := range files {
		files[to] = filepath.Join(b.dir, from)
	}
	return Archive(filepath.Join(b.dir, "images", name+".tar"), entrypoint, files, tags...)
}

// Archive writes an image of one layer as docker archives are: files by their path in
// the image, on top of nothing.
func Archive(to string, entrypoint []string, files map[string]string, tags ...string) error {
	if len(tags) == 0 {
		return fmt.Errorf("%s: no tag", to)
	}
	layer, err := os.CreateTemp(filepath.Dir(to), "layer-")
	if err != nil {
		return err
	}
	defer func() { _, _ = layer.Close(), os.Remove(layer.Name()) }()
	sum := sha256.New()
	if err := writeLayer(io.MultiWriter(layer, sum), files); err != nil {
		return err
	}
	digest := hex.EncodeToString(sum.Sum(nil))
	type object = map[string]any
	config, err := json.Marshal(object{
		"architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z",
		"config":  object{"Entrypoint": entrypoint, "Env": []string{"PATH=/usr/local/bin:/usr/bin:/bin"}},
		"rootfs":  object{"type": "layers", "diff_ids": []string{"sha256:" + digest}},
		"history": []object{{"created_by": "millrace tests"}},
	})
	if err != nil {
		return err
	}
	configName := fmt.Sprintf("%x.json", sha256.Sum256(config))
	manifest, err := json.Marshal([]object{{"Config": configName, "RepoTags": tags, "Layers": []string{digest + ".tar"}}})
	if err != nil {
		return err
	}
	out, err := os.Create(to + ".new")
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	w := tar.NewWriter(out)
	for name, text := range map[string][]byte{configName: config, "manifest.json": manifest} {
		if err := addFile(w, name, 0o644, int64(len(text))); err != nil {
			return err
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
	info, err := layer.Stat()
	if err != nil {
		return err
	}
	if err := addFile(w, digest+".tar", 0o644, info.Size()); err != nil {
		return err
	}
	if err := copyFile(w, layer.Name()); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}

// base is what every image has. Its user is whoever the Pod says.
var base = map[string]string{
	"/etc/passwd": "root:x:0:0::/:/bin/false\nnonroot:x:65532:65532::/:/bin/false\n",
	"/etc/group":  "root:x:0:\nnonroot:x:65532:\n",
}

func writeLayer(out io.Writer, files map[string]string) error {
	w := tar.NewWriter(out)
	made := map[string]bool{"/": true, ".": true}
	var mkdir func(dir string, mode int64) error
	mkdir = func(dir string, mode int64) error {
		if made[dir] {
			return nil
		}
		if err := mkdir(path.Dir(dir), 0o755); err != nil {
			return err
		}
		made[dir] = true
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: mode})
	}
	if err := mkdir("/tmp", 0o1777); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(base)) {
		if err := mkdir(path.Dir(name), 0o755); err != nil {
			return err
		}
		if err := addFile(w, name, 0o644, int64(len(base[name]))); err != nil {
			return err
		}
		if _, err := io.WriteString(w, base[name]); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		info, err := os.Stat(files[name])
		if err != nil {
			return err
		}
		if err := mkdir(path.Dir(name), 0o755); err != nil {
			return err
		}
		if err := addFile(w, name, info.Mode(), info.Size()); err != nil {
			return err
		}
		if err := copyFile(w, files[name]); err != nil {
			return err
		}
	}
	return w.Close()
}

func addFile(w *tar.Writer, name string, mode fs.FileMode, size int64) error {
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(name, "/"), Mode: int64(mode.Perm()), Size: size})
}

// library is a line of ldd; its groups are the name in the image and the file.
var library = regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(`)

// envoyArchive returns the archive of Envoy's image, made of set-up's Envoy and the C
// library of this machine.
func envoyArchive(programs string) (string, error) {
	envoy, err := rig.Cached("envoy-*/envoy")
	if err != nil {
		return "", err
	}
	to := filepath.Join(programs, "images", filepath.Base(filepath.Dir(envoy))+".tar")
	if _, err := os.Stat(to); err == nil {
		return to, nil
	}
	out, err := exec.Command("ldd", envoy).Output()
	if err != nil {
		return "", fmt.Errorf("ldd %s: %w", envoy, err)
	}
	files := map[string]string{"/usr/local/bin/envoy": envoy, "/pid1": filepath.Join(programs, "pid1")}
	for _, m := range library.FindAllStringSubmatch(string(out), -1) {
		files[m[1]] = m[1]
	}
	return to, Archive(to, []string{"/pid1", "envoy"}, files, envoyImage)
}
