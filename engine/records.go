package main

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"millrace.dev/millrace/engine/internal/record"
	"millrace.dev/millrace/engine/internal/valkey"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/secret"
	"millrace.dev/millrace/internal/usable"
)

// records is where responses and conversations are stored, by flags.
type records struct {
	file, url, passwordFile, keyFile, peers string
	limits                                  record.Limits
}

func (r *records) flags(f *program.Flags) {
	f.StringVar(&r.file, "records", "", "`file` of responses and conversations; if it and -records-url are empty, none are stored")
	f.StringVar(&r.url, "records-url", "", "`URL` of a Valkey or Redis server that has them for all engines, such as redis://10.0.0.7:6379/0")
	f.StringVar(&r.passwordFile, "records-password-file", "", "`file` with the password of that server")
	f.StringVar(&r.keyFile, "records-key-file", "", "`file` with the key that records are sealed with, 16 to 256 bytes in hexadecimal, in base64 or as they are")
	f.StringVar(&r.peers, "records-peers", "", "engines that have copies of each other's records, `node=ip:port` of their Engine service, with commas in between; this node may be one")
	r.limits = record.Defaults
	f.DurationVar(&r.limits.TTL, "records-ttl", r.limits.TTL, "how long a record lives after its last use")
	f.Int64Var(&r.limits.Record, "records-max-bytes", r.limits.Record, "largest record, in `bytes`")
	f.Int64Var(&r.limits.Tenant, "records-tenant-bytes", r.limits.Tenant, "`bytes` that the records of one tenant may need; the oldest make room")
	f.Int64Var(&r.limits.Total, "records-total-bytes", r.limits.Total, "`bytes` that all records of -records may need; the oldest of the largest tenant make room")
}

// mostRecord is the largest record that may be allowed, in bytes: less than a message may have.
const mostRecord = 32 << 20

func (r *records) validate() error {
	var errs []error
	if r.file != "" && r.url != "" {
		errs = append(errs, errors.New("-records, -records-url: both are given; must be one"))
	}
	if r.url != "" {
		if _, err := valkey.Parse(secret.URL(r.url)); err != nil {
			errs = append(errs, fmt.Errorf("-records-url: %w", err))
		}
	}
	if _, err := addresses(r.peers, ""); err != nil {
		errs = append(errs, fmt.Errorf("-records-peers: %w", err))
	}
	l := r.limits
	if l.TTL < time.Minute {
		errs = append(errs, fmt.Errorf("-records-ttl: %s; must be ≥ 1m", l.TTL))
	}
	if l.Record < 4096 || l.Record > mostRecord {
		errs = append(errs, fmt.Errorf("-records-max-bytes: %d; must be 4096 to %d", l.Record, mostRecord))
	}
	if l.Tenant < l.Record || l.Total < l.Tenant {
		errs = append(errs, fmt.Errorf("-records-tenant-bytes: %d, -records-total-bytes: %d; must be ≥ -records-max-bytes, and the latter ≥ the former", l.Tenant, l.Total))
	}
	return errors.Join(errs...)
}

// usable says what is wrong with the files.
func (r *records) usable() error {
	var errs []error
	if r.file != "" {
		if err := usable.Folder(filepath.Dir(r.file)); err != nil {
			errs = append(errs, fmt.Errorf("-records: %w", err))
		}
	}
	if _, err := r.codec(); err != nil {
		errs = append(errs, err)
	}
	if _, err := r.password(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// addresses reads the addresses of engines by node, but for that of one node.
func addresses(peers, but string) (map[string]string, error) {
	all := map[string]string{}
	for one := range strings.SplitSeq(peers, ",") {
		if one = strings.TrimSpace(one); one == "" {
			continue
		}
		node, address, ok := strings.Cut(one, "=")
		if !ok || !nodeName.MatchString(node) || address == "" {
			return nil, fmt.Errorf("%q; must be such as node-b=10.0.0.3:7001", one)
		}
		if node != but {
			all[node] = address
		}
	}
	return all, nil
}

// maxSecret bounds the files of keys and passwords, in bytes.
const maxSecret = 4 << 10

// codec is what seals records.
func (r *records) codec() (*record.Codec, error) {
	key, err := r.key()
	if err != nil || key == nil {
		return nil, err
	}
	c, err := record.NewCodec(key)
	if err != nil {
		return nil, fmt.Errorf("-records-key-file: %s: %w", r.keyFile, err)
	}
	return c, nil
}

// key is that by which everything is sealed that is stored; nil: nothing is.
func (r *records) key() ([]byte, error) {
	if r.keyFile == "" {
		return nil, nil
	}
	text, err := regular.Read(r.keyFile, maxSecret)
	if err != nil {
		return nil, fmt.Errorf("-records-key-file: %w", err)
	}
	key := []byte(strings.TrimSpace(string(text)))
	for _, decode := range []func(string) ([]byte, error){hex.DecodeString, base64.StdEncoding.DecodeString} {
		if b, err := decode(string(key)); err == nil && len(b) >= record.MinKey {
			key = b
			break
		}
	}
	return key, nil
}

func (r *records) password() (secret.Text, error) {
	if r.passwordFile == "" {
		return "", nil
	}
	text, err := regular.Read(r.passwordFile, maxSecret)
	if err != nil {
		return "", fmt.Errorf("-records-password-file: %w", err)
	}
	return secret.Text(strings.TrimSpace(string(text))), nil
}
