//go:build kube

package kubernetes

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/e2e/rig"
)

// opened is an image as an OCI archive has it.
type opened struct {
	digest string   // of its manifest
	layers []string // digests
	config imageConfig
	files  map[string]imageFile // by path
	bytes  int64                // of the archive
}

type imageConfig struct {
	User       string
	Entrypoint []string
	Env        []string
}

type imageFile struct {
	mode fs.FileMode
	link string
	data []byte
}

// imageNames are the images that `make images` writes, with the programs in them.
var imageNames = map[string][]string{
	"xds": {"xds"}, "extproc": {"extproc"}, "millrace": {"millrace"}, "models": {"millrace"},
	"nodeagent": {"nodeagent"}, "envoy": {"envoy"}, "engine": {"engine", "python3", "python3.11"},
}

// openImage reads an archive of `make images`.
func openImage(t *testing.T, name string) opened {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatalf("%v; run make images", err)
	}
	defer f.Close()
	blobs := map[string][]byte{}
	each(t, f, func(h *tar.Header, b []byte) { blobs[h.Name] = b })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	type descriptor struct{ Digest string }
	blob := func(d descriptor) []byte { return blobs["blobs/"+strings.Replace(d.Digest, ":", "/", 1)] }
	index := rig.Decode[struct{ Manifests []descriptor }](t, blobs["index.json"])
	if len(index.Manifests) != 1 {
		t.Fatalf("%s: %d manifests", name, len(index.Manifests))
	}
	manifest := rig.Decode[struct {
		Config descriptor
		Layers []descriptor
	}](t, blob(index.Manifests[0]))
	o := opened{digest: index.Manifests[0].Digest, files: map[string]imageFile{}, bytes: st.Size()}
	o.config = rig.Decode[struct{ Config imageConfig }](t, blob(manifest.Config)).Config
	for _, l := range manifest.Layers {
		o.layers = append(o.layers, l.Digest)
		z, err := gzip.NewReader(bytes.NewReader(blob(l)))
		if err != nil {
			t.Fatalf("%s: layer %s: %v", name, l.Digest, err)
		}
		each(t, z, func(h *tar.Header, b []byte) {
			o.files[path.Clean(h.Name)] = imageFile{h.FileInfo().Mode(), h.Linkname, b}
		})
	}
	return o
}

// each calls do for each member of a tar file.
func each(t *testing.T, r io.Reader, do func(*tar.Header, []byte)) {
	t.Helper()
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		var b []byte
		if err == nil {
			b, err = io.ReadAll(in)
		}
		if err != nil {
			t.Fatal(err)
		}
		do(h, b)
	}
}

func builtImage(t *testing.T, name string) opened {
	t.Helper()
	return openImage(t, rig.Root()+"/bin/images/"+name+".tar")
}

// TestImages looks into every image: who runs it, what it can run, and whether it says
// what it is made of.
func TestImages(t *testing.T) {
	var sum int64
	holders := map[string][]string{} // images by layer
	for name, programs := range imageNames {
		o := builtImage(t, name)
		sum += o.bytes
		for _, l := range o.layers {
			holders[l] = append(holders[l], name)
		}
		t.Run(name, func(t *testing.T) {
			if o.config.User != "65532:65532" || !cmp.Equal(o.config.Entrypoint, []string{"/usr/bin/" + programs[0]}) {
				t.Errorf("runs %q as %s", o.config.Entrypoint, o.config.User)
			}
			if got := o.programs(); !cmp.Equal(got, programs) {
				t.Errorf("can run %q, want %q", got, programs)
			}
			for file, f := range o.files {
				if f.mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 || f.mode.Perm()&0o022 != 0 && f.mode.IsRegular() {
					t.Errorf("%s has mode %v", file, f.mode)
				}
			}
			o.checkLinks(t, "usr/bin/"+programs[0], name == "nodeagent" || name == "envoy")
			o.checkBill(t, "usr/bin/"+programs[0])
		})
	}
	shared := 0
	for _, names := range holders {
		if len(names) > 1 {
			shared++
		}
	}
	if len(holders[builtImage(t, "xds").layers[0]]) != len(imageNames) {
		t.Error("the lowest layer isn't the same in all images")
	}
	t.Logf("%d images, %.1f MB in all; %d layers, %d of them in several images", len(imageNames), float64(sum)/1e6, len(holders), shared)
}

// programs are what lies where programs do.
func (o opened) programs() []string {
	var all []string
	for name, f := range o.files {
		dir := path.Dir(name)
		if slices.Contains([]string{"bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin"}, dir) && !f.mode.IsDir() {
			all = append(all, path.Base(name))
		}
	}
	slices.Sort(all)
	return all
}

// checkLinks checks that a program is static, or finds its loader in the image.
func (o opened) checkLinks(t *testing.T, program string, dynamic bool) {
	t.Helper()
	e, err := elf.NewFile(bytes.NewReader(o.files[program].data))
	if err != nil {
		t.Fatalf("%s: %v", program, err)
	}
	interpreter := ""
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			b, err := io.ReadAll(p.Open())
			if err != nil {
				t.Fatal(err)
			}
			interpreter = string(bytes.TrimRight(b, "\x00"))
		}
	}
	if (interpreter != "") != dynamic {
		t.Errorf("%s has the loader %q, want one: %v", program, interpreter, dynamic)
	}
	if dynamic && o.files["usr"+interpreter].link == "" && o.files["usr"+interpreter].data == nil {
		t.Errorf("%s wants the loader %s, which isn't there", program, interpreter)
	}
}

// checkBill checks that the bill of materials names every Go module of the program, every
// Debian package, and that licence texts are there.
func (o opened) checkBill(t *testing.T, program string) {
	t.Helper()
	bill := rig.Decode[struct {
		SPDXVersion string
		Packages    []struct {
			ExternalRefs []struct{ ReferenceLocator string }
		}
	}](t, o.files["usr/share/doc/millrace/sbom.spdx.json"].data)
	has := map[string]bool{} // package URLs without what follows "?"
	for _, p := range bill.Packages {
		for _, r := range p.ExternalRefs {
			url, _, _ := strings.Cut(r.ReferenceLocator, "?")
			has[url] = true
		}
	}
	if bill.SPDXVersion != "SPDX-2.3" || len(has) == 0 {
		t.Errorf("a bill of version %q with %d packages", bill.SPDXVersion, len(has))
	}
	licensed := 0
	if info, err := buildinfo.Read(bytes.NewReader(o.files[program].data)); err == nil {
		for _, m := range info.Deps {
			if !has["pkg:golang/"+m.Path+"@"+strings.ReplaceAll(m.Version, "+", "%2B")] {
				t.Errorf("the bill lacks %s %s", m.Path, m.Version)
			}
		}
	} else if program != "usr/bin/envoy" {
		t.Error(err)
	}
	for name := range o.files {
		if strings.HasPrefix(name, "usr/share/licenses/") {
			licensed++
		}
		pkg, ok := strings.CutPrefix(name, "var/lib/dpkg/status.d/")
		if !ok || o.files[name].mode.IsDir() {
			continue
		}
		if !slices.ContainsFunc(slices.Collect(maps.Keys(has)), func(url string) bool { return strings.HasPrefix(url, "pkg:deb/debian/"+pkg+"@") }) {
			t.Errorf("the bill lacks Debian's %s", pkg)
		}
	}
	if licensed < 3 {
		t.Errorf("%d licence texts", licensed)
	}
}

// TestImagesAreReproducible builds them once more from a copy of the checkout elsewhere, by
// another umask and another time zone.
func TestImagesAreReproducible(t *testing.T) {
	root, copied, out := rig.Root(), t.TempDir(), t.TempDir()
	list := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = root
	names, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names), "\x00"), "\x00") {
		b, err := os.ReadFile(filepath.Join(root, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		rig.Write(t, filepath.Join(copied, name), string(b))
	}
	// The copy is of the same commit, of which it has nothing but the files.
	version := exec.CommandContext(t.Context(), filepath.Join(root, "bin/images/.programs/millrace"), "version")
	said, err := version.Output()
	if err != nil {
		t.Fatal(err)
	}
	_, commit, _ := strings.Cut(string(said), " commit ")
	commit, _, _ = strings.Cut(commit, " ")
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `umask 077; exec "$@"`, "sh",
		filepath.Join(root, "bin/tools/images"), "-root", copied, "-commit", commit, "-out", out, "-cache", rig.Cache())
	cmd.Env = append(os.Environ(), "TZ=Asia/Tokyo", "LC_ALL=C")
	if printed, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("images: %v\n%s", err, printed)
	}
	for name := range imageNames {
		one, two := builtImage(t, name), openImage(t, filepath.Join(out, name+".tar"))
		if one.digest != two.digest {
			t.Errorf("%s: %s, and elsewhere %s\n%s", name, one.digest, two.digest, one.differ(two))
		}
	}
}

// differ names the files that aren't the same.
func (o opened) differ(other opened) string {
	var all []string
	for name, f := range o.files {
		if g, ok := other.files[name]; !ok || f.mode != g.mode || f.link != g.link || !bytes.Equal(f.data, g.data) {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return fmt.Sprintf("%d and %d files; not the same: %s", len(o.files), len(other.files), strings.Join(all, ", "))
}

// restricted is what every Pod of ours has.
const restricted = `{"runAsNonRoot": true, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
	"capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}`

// TestImagesRun runs each image in a Pod that may do nothing but read.
func TestImagesRun(t *testing.T) {
	args := map[string][]string{
		"xds": {"-version"}, "extproc": {"-version"}, "nodeagent": {"-version"}, "engine": {"-version"},
		"envoy": {"--version"}, "millrace": {"version"}, "models": {"install-models", "-to=/models"},
	}
	const ns = "images"
	namespace(t, ns)
	for name := range imageNames {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			quoted, err := json.Marshal(args[name])
			if err != nil {
				t.Fatal(err)
			}
			pod := "image-" + name
			apply(t, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": %q, "name": %q}, "spec": {
				"restartPolicy": "Never", "automountServiceAccountToken": false,
				"containers": [{"name": "it", "image": "millrace.dev/%s:0.1.0", "imagePullPolicy": "Never", "args": %s, "securityContext": %s,
					"volumeMounts": [{"name": "models", "mountPath": "/models"}]}],
				"volumes": [{"name": "models", "emptyDir": {}}]}}`, ns, pod, name, quoted, restricted))
			kubectl(t, "wait", "-n", ns, "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s", "pod/"+pod)
			t.Log(kubectl(t, "logs", "-n", ns, pod))
		})
	}
}
