// Command images builds the images of Millrace's programs as OCI archives, without a
// container engine, without root, and without anything of this machine in them.
//
// `make images` calls it. Programs are compiled from the checkout, Envoy, llama.cpp and
// the default model come from set-up's cache, libraries and Python from Debian
// packages of a lock. Its one rule: the same source gives the same bytes, so no file
// has a time, an owner or a path of the machine that built it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sync/errgroup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "images: %v\n", err)
		stop()
		os.Exit(1)
	}
}

// builder builds images of one checkout.
type builder struct {
	checkout
	cache    string // set-up's, and that of Debian packages
	images   string // the folder of the archives
	registry string
	tag      string
	debian   *archive
}

func run(ctx context.Context, args []string) error {
	var b builder
	f := flag.NewFlagSet("images", flag.ContinueOnError)
	f.StringVar(&b.root, "root", ".", "`folder` of the checkout")
	f.StringVar(&b.named, "commit", "", "what -version `says` of the checkout; none: as git describes it")
	f.StringVar(&b.cache, "cache", os.Getenv("MILLRACE_CACHE"), "set-up's `folder`")
	f.StringVar(&b.images, "out", "bin/images", "`folder` that gets NAME.tar of each image")
	f.StringVar(&b.registry, "registry", "millrace.dev", "what the images' `names` begin with")
	f.StringVar(&b.tag, "tag", "0.1.0", "the images' `tag`")
	asFolders := f.Bool("folders", false, "write each layer's files as a folder layers/NAME instead, for the Dockerfile")
	lock := f.Bool("relock", false, "write the lock of Debian packages anew, with the newest versions that apt knows, and stop there")
	if err := f.Parse(args); err != nil {
		return err
	}
	var err1, err2, err3 error
	b.root, err1 = filepath.Abs(b.root)
	b.cache, err2 = filepath.Abs(b.cache)
	b.images, err3 = filepath.Abs(b.images)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	b.out = filepath.Join(b.images, ".programs")
	if *lock {
		return b.relock(ctx)
	}
	var err error
	if b.debian, err = newArchive(b.cache, b.lockFile()); err != nil {
		return err
	}
	layers, err := b.layers(ctx)
	if err != nil {
		return err
	}
	if *asFolders {
		return b.unpack(layers)
	}
	return b.save(layers)
}

func (b builder) lockFile() string {
	return filepath.Join(b.root, "e2e", "tools", "images", "debian.lock")
}

func (b builder) relock(ctx context.Context) error {
	var names []string
	for _, more := range packages() {
		names = append(names, more...)
	}
	text, err := relock(ctx, names)
	if err != nil {
		return err
	}
	return os.WriteFile(b.lockFile(), []byte(text), 0o644)
}

// layers returns all layers by name, the bill of each image ("sbom-NAME") among them.
func (b builder) layers(ctx context.Context) (map[string]layer, error) {
	if err := b.build(ctx); err != nil {
		return nil, err
	}
	all := map[string]layer{}
	sources, err := b.sources(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range programs() {
		l, err := b.program(p.name, sources)
		if err != nil {
			return nil, err
		}
		all[p.name] = l
	}
	parts, err := b.fetched(ctx, b.cache)
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		name, l, err := p.layers()
		if err != nil {
			return nil, err
		}
		all[name] = l
	}
	for name, packages := range packages() {
		if all[name], err = b.packages(ctx, packages); err != nil {
			return nil, err
		}
	}
	if err := all["base"].files.merge(base()); err != nil {
		return nil, err
	}
	all["base"].files.bundle()
	for name, l := range all {
		if l.files, err = l.files.hashed(); err != nil {
			return nil, err
		}
		all[name] = l
	}
	for _, i := range images() {
		l, err := i.bill(all)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", i.Name, err)
		}
		all["sbom-"+i.Name] = l
	}
	return all, nil
}

// packages returns the layer of Debian packages.
func (b builder) packages(ctx context.Context, names []string) (layer, error) {
	if err := b.debian.fetch(ctx, names); err != nil {
		return layer{}, err
	}
	files, err := b.debian.unpack(ctx, names)
	if err != nil {
		return layer{}, err
	}
	l := layer{files: files}
	for _, name := range names {
		p := b.debian.lock[name]
		l.components = append(l.components, component{Kind: "deb", Name: p.name, Version: p.version, SHA256: p.sha256})
	}
	return l, nil
}

// bill checks the image's files as a whole and returns the layer of its bill.
func (i image) bill(all map[string]layer) (layer, error) {
	files := tree{}
	var components []component
	for _, name := range i.Layers {
		l, ok := all[name]
		if !ok {
			return layer{}, fmt.Errorf("no layer %s", name)
		}
		if err := files.merge(l.files); err != nil {
			return layer{}, fmt.Errorf("layer %s: %w", name, err)
		}
		components = append(components, l.components...)
	}
	if err := files.linked(); err != nil {
		return layer{}, err
	}
	sum, err := files.sum()
	if err != nil {
		return layer{}, err
	}
	text, err := billOf(i.Name, sum, components)
	return layer{files: tree{bill: {Mode: 0o644, Data: text}}}, err
}

// save writes the archives that aren't there yet.
func (b builder) save(layers map[string]layer) error {
	if err := os.MkdirAll(b.images, 0o755); err != nil {
		return err
	}
	blobs := map[string]*blob{}
	var g errgroup.Group
	g.SetLimit(2)
	made := make(map[string]chan *blob, len(layers))
	for name, l := range layers {
		done := make(chan *blob, 1)
		made[name] = done
		g.Go(func() error {
			x, err := store{filepath.Join(b.images, ".layers")}.blob(l.files)
			done <- x
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for name, done := range made {
		blobs[name] = <-done
	}
	for _, i := range images() {
		i.Layers = append(slices.Clone(i.Layers), "sbom-"+i.Name)
		var all []*blob
		for _, name := range i.Layers {
			all = append(all, blobs[name])
		}
		img, err := i.assemble(all)
		if err != nil {
			return err
		}
		digest, err := img.Digest()
		if err != nil {
			return err
		}
		name := filepath.Join(b.images, i.Name+".tar")
		if err := save(img, b.registry+"/"+i.Name, b.tag, name); err != nil {
			return err
		}
		st, err := os.Stat(name)
		if err != nil {
			return err
		}
		fmt.Printf("%-10s %6.1f MB  %s/%s:%s@%s\n", i.Name, float64(st.Size())/1e6, b.registry, i.Name, b.tag, digest)
	}
	return nil
}

// unpack writes each layer's files below a folder of its name.
func (b builder) unpack(layers map[string]layer) error {
	for name, l := range layers {
		dir := filepath.Join(b.images, "layers", name)
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if err := l.files.unpack(dir); err != nil {
			return fmt.Errorf("layer %s: %w", name, err)
		}
	}
	return nil
}
