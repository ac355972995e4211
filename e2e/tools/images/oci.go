package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// assemble returns the OCI image of the layers.
func (i image) assemble(layers []*blob) (v1.Image, error) {
	var all []v1.Layer
	for _, l := range layers {
		all = append(all, l)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, all...)
	if err != nil {
		return nil, err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Created = "linux", "amd64", v1.Time{Time: epoch}
	for n := range c.History {
		c.History[n] = v1.History{Created: v1.Time{Time: epoch}, CreatedBy: i.Layers[n]}
	}
	c.Config = v1.Config{
		User: user, WorkingDir: "/", Entrypoint: []string{"/" + binaries + i.Program},
		Env: i.env(),
		Labels: map[string]string{
			"org.opencontainers.image.title":    i.Name,
			"org.opencontainers.image.licenses": "Apache-2.0",
			"dev.millrace.sbom":                 "/" + bill,
		},
	}
	return mutate.ConfigFile(img, c)
}

// save writes the image as an OCI layout in a tar file, with Docker's own list of what is
// in it: ctr, skopeo, podman, and docker load of any age read it.
func save(img v1.Image, reference, tag, name string) error {
	blobs, index, list, err := contents(img, reference, tag)
	if err != nil {
		return err
	}
	blobs["index.json"] = bytesContent(index)
	blobs["manifest.json"] = bytesContent(list)
	blobs["oci-layout"] = bytesContent([]byte(`{"imageLayoutVersion":"1.0.0"}`))
	names := slices.Sorted(maps.Keys(blobs))
	// The index first: whether a file is the same is seen at its beginning.
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(isIndex(b), isIndex(a)) })
	if same(name, blobs, index) {
		return nil
	}
	return replaceFile(name, func(w io.Writer) error {
		out := tar.NewWriter(w)
		for _, name := range names {
			if err := blobs[name].add(out, name); err != nil {
				return err
			}
		}
		return out.Close()
	})
}

func isIndex(name string) int {
	if name == "index.json" {
		return 1
	}
	return 0
}

// content is a blob of an image file.
type content struct {
	size int64
	open func() (io.ReadCloser, error)
}

func (c content) add(out *tar.Writer, name string) error {
	r, err := c.open()
	if err != nil {
		return err
	}
	defer r.Close()
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: c.size, ModTime: epoch, Format: tar.FormatUSTAR}
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(out, r)
	return err
}

func blobPath(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

func bytesContent(b []byte) content {
	return content{int64(len(b)), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
}

// contents returns the blobs of an image file, its index and Docker's list.
func contents(img v1.Image, reference, tag string) (blobs map[string]content, index, list []byte, err error) {
	manifest, err := img.RawManifest()
	if err != nil {
		return nil, nil, nil, err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, nil, nil, err
	}
	digest, err1 := img.Digest()
	configName, err2 := img.ConfigName()
	layers, err3 := img.Layers()
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, nil, nil, err
	}
	blobs = map[string]content{blobPath(digest): bytesContent(manifest), blobPath(configName): bytesContent(config)}
	var paths []string
	for _, l := range layers {
		h, err1 := l.Digest()
		size, err2 := l.Size()
		if err := errors.Join(err1, err2); err != nil {
			return nil, nil, nil, err
		}
		blobs[blobPath(h)] = content{size, l.Compressed}
		paths = append(paths, blobPath(h))
	}
	index, err1 = json.Marshal(v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1, Digest: digest, Size: int64(len(manifest)),
			Platform:    &v1.Platform{OS: "linux", Architecture: "amd64"},
			Annotations: map[string]string{"io.containerd.image.name": reference + ":" + tag, "org.opencontainers.image.ref.name": tag},
		}},
	})
	list, err2 = json.Marshal([]map[string]any{{"Config": blobPath(configName), "RepoTags": []string{reference + ":" + tag}, "Layers": paths}})
	return blobs, index, list, errors.Join(err1, err2)
}

// same reports whether the image file has this index, which names everything in it, and
// has the length that it must have.
func same(name string, contents map[string]content, index []byte) bool {
	const block, end = 512, 1024
	size := int64(end)
	for _, c := range contents {
		size += block + (c.size+block-1)/block*block
	}
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() != size {
		return false
	}
	in := tar.NewReader(f)
	h, err := in.Next()
	if err != nil || h.Name != "index.json" || h.Size != int64(len(index)) {
		return false
	}
	b, err := io.ReadAll(in)
	return err == nil && bytes.Equal(b, index)
}
