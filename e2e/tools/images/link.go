package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// linked says which programs and libraries of an image can't be loaded there: they need
// a library, or a version of one, that it doesn't have. What set-up and the nodeagent's
// C compiler made here needs the C library of this machine, which may be newer.
func (t tree) linked() error {
	var objects []*object
	for _, name := range t.names() {
		f := t[name]
		if !f.Mode.IsRegular() {
			continue
		}
		o, err := f.object(name)
		if err != nil {
			return err
		}
		if o != nil {
			objects = append(objects, o)
		}
	}
	return unresolved(objects)
}

// unresolved says what the objects need and none of them offers.
func unresolved(objects []*object) error {
	offers := map[string]map[string]bool{} // versions by library
	for _, o := range objects {
		offers[o.soname] = o.offers
	}
	var errs []error
	for _, o := range objects {
		for lib, versions := range o.needs {
			have, ok := offers[lib]
			if !ok {
				errs = append(errs, fmt.Errorf("/%s needs %s, which the image lacks", o.name, lib))
				continue
			}
			for _, v := range versions {
				if !have[v] {
					errs = append(errs, fmt.Errorf("/%s needs %s of %s, which the image's hasn't: build on Debian 12", o.name, v, lib))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// object is a program or library.
type object struct {
	name, soname string
	needs        map[string][]string // versions by library
	offers       map[string]bool     // versions
}

// object returns what f is, nil if it is no ELF file.
func (f file) object(name string) (*object, error) {
	r, err := f.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	magic := make([]byte, len(elf.ELFMAG))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != elf.ELFMAG {
		return nil, nil // too short, or something else
	}
	var e *elf.File
	if f.Path != "" {
		e, err = elf.Open(f.Path)
	} else {
		e, err = elf.NewFile(bytes.NewReader(f.Data))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer e.Close()
	o := &object{name: name, soname: path.Base(name), needs: map[string][]string{}, offers: map[string]bool{}}
	if names, err := e.DynString(elf.DT_SONAME); err == nil && len(names) > 0 {
		o.soname = names[0]
	}
	libraries, err := e.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for _, lib := range libraries {
		o.needs[lib] = nil
	}
	versions, err := e.DynamicVersions()
	if err == nil {
		for _, v := range versions {
			o.offers[v.Name] = true
		}
	}
	needs, err := e.DynamicVersionNeeds()
	if err != nil {
		return o, nil // it has no versions
	}
	for _, n := range needs {
		for _, v := range n.Needs {
			if v.Flags&elf.VER_FLG_WEAK == 0 && !strings.HasPrefix(n.Name, "ld-linux") {
				o.needs[n.Name] = append(o.needs[n.Name], v.Dep)
			}
		}
	}
	return o, nil
}
