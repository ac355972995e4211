package mesh

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"millrace.dev/millrace/envoy"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/regular"
)

// writeFiles writes what the programs of a plan read.
func writeFiles(p Plan, file config.File) error {
	if err := freshLogs(p.Logs); err != nil {
		return err
	}
	text, err := config.Marshal(file)
	if err != nil {
		return fmt.Errorf("effective configuration: %w", err)
	}
	if err := regular.Write(p.Config, text, 0o644); err != nil {
		return err
	}
	o := envoy.Options{XDS: p.XDS, Admin: p.Admin}
	if p.TLS != "" {
		o.TLS = &mtls.EnvoyServer{Folder: p.TLS, Server: mtls.ID{Domain: trustDomain, Role: mtls.XDS}, Protocol: "h2"}
	}
	if text, err = envoy.Bootstrap(o); err != nil {
		return err
	}
	if err := regular.Write(p.Bootstrap, text, 0o644); err != nil {
		return err
	}
	if key := file.Policy.Spec.Sessions.Cookie.KeyFile; key != "" {
		return makeKey(key)
	}
	return nil
}

// makeKey writes a new key for signing cookies, unless the file is there: then
// cookies of an earlier run still hold.
func makeKey(path string) error {
	f, err := regular.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails, crypto/rand
	_, err = f.WriteString(hex.EncodeToString(key))
	return errors.Join(err, f.Close())
}
