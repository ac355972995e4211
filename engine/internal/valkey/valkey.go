// Package valkey keeps records in a Valkey or Redis server that all engines share.
//
// Each write is one script, which the server runs whole: it compares versions, and has the oldest
// records of the tenant make room. All keys of a tenant are in one slot of a cluster. The server
// ends records by its own clock, and what all tenants need is bounded by its maxmemory.
//
// Called through record.Store. Its one rule: what the server can't answer in time is not known,
// and an engine starts, and serves the rest, without it.
package valkey

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/valkey-io/valkey-go"

	"millrace.dev/millrace/engine/internal/record"
	"millrace.dev/millrace/internal/secret"
)

// Config is what a Store needs.
type Config struct {
	// URL is where the server is: redis://host:port/db, or rediss:// with TLS; further addresses
	// of a cluster by ?addr=host:port.
	URL secret.URL
	// Password is the server's, if the URL has none; empty: it wants none.
	Password secret.Text
	Limits   record.Limits
	Codec    *record.Codec
}

// answerIn bounds how long the server may take for one command, and tryEvery how often one that
// could not be reached is tried.
const (
	answerIn = 2 * time.Second
	tryEvery = time.Second
)

// Store is a server. Its methods are called from many goroutines.
type Store struct {
	cfg    Config
	option valkey.ClientOption

	// mu guards the fields below.
	mu     sync.Mutex
	client valkey.Client // nil: not reached yet
	tried  time.Time
	why    error // why it was not reached
}

// New returns a store, which is not reached yet.
func New(cfg Config) (*Store, error) {
	option, err := Parse(cfg.URL)
	if err != nil {
		return nil, err
	}
	if cfg.Password != "" {
		option.Password = string(cfg.Password)
	}
	option.DisableCache, option.DisableRetry = true, true
	option.Dialer.Timeout, option.ConnWriteTimeout = answerIn, answerIn
	option.ClientName = "millrace"
	return &Store{cfg: cfg, option: option}, nil
}

// Parse returns what a URL of a server means.
func Parse(u secret.URL) (valkey.ClientOption, error) {
	parsed, err := url.Parse(string(u))
	if err != nil || parsed.Host == "" {
		return valkey.ClientOption{}, fmt.Errorf("%q; must be such as redis://10.0.0.7:6379/0", u)
	}
	switch parsed.Scheme {
	case "redis", "rediss", "valkey", "valkeys":
	default:
		return valkey.ClientOption{}, fmt.Errorf("%q; must begin with redis:// or rediss://", u)
	}
	option, err := valkey.ParseURL(string(u))
	if err != nil {
		return option, fmt.Errorf("%q: not a URL of a server", u) // err may show the password
	}
	return option, nil
}

// reach returns the client. One that was reached once reconnects by itself.
func (s *Store) reach() (valkey.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil || s.why != nil && time.Since(s.tried) < tryEvery {
		return s.client, s.why
	}
	s.client, s.why = valkey.NewClient(s.option)
	if s.tried = time.Now(); s.why != nil {
		s.client = nil
	}
	return s.client, s.why
}

// Close ends the connections.
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		s.client.Close()
	}
}

var (
	//go:embed get.lua
	getText string
	//go:embed put.lua
	putText string
	//go:embed delete.lua
	deleteText string

	getScript    = valkey.NewLuaScript(getText)
	putScript    = valkey.NewLuaScript(putText)
	deleteScript = valkey.NewLuaScript(deleteText)
)

// keysOf returns the names of a record, and of what is kept of its tenant: ids by when they end,
// the bytes of each, and of all.
func keysOf(k record.Key) []string {
	front := "millrace:{t." + k.Tenant + "}:"
	return []string{front + "record:" + k.ID, front + "ends", front + "sizes", front + "bytes", front + "record:"}
}

// run runs a script for a record.
func (s *Store) run(ctx context.Context, script *valkey.Lua, k record.Key, args ...string) (valkey.ValkeyMessage, error) {
	if !k.Valid() {
		return valkey.ValkeyMessage{}, record.ErrNotFound
	}
	client, err := s.reach()
	if err != nil {
		return valkey.ValkeyMessage{}, fmt.Errorf("%w: %w", record.ErrUnavailable, err)
	}
	ctx, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	all := keysOf(k)
	life := strconv.FormatInt(s.cfg.Limits.TTL.Milliseconds(), 10)
	m, err := script.Exec(ctx, client, all[:4], append([]string{k.ID, all[4], life}, args...)).ToMessage()
	if err != nil && !valkey.IsValkeyNil(err) {
		return m, fmt.Errorf("%w: %w", record.ErrUnavailable, err)
	}
	return m, nil
}

// Get returns a record, which lives on: see record.Store.
func (s *Store) Get(ctx context.Context, k record.Key) (record.Record, error) {
	m, err := s.run(ctx, getScript, k)
	if err != nil {
		return record.Record{}, err
	}
	raw, err := m.ToString()
	if err != nil {
		return record.Record{}, record.ErrNotFound
	}
	r, err := s.cfg.Codec.Decode(k, []byte(raw))
	if err != nil { // of another key, or torn
		return record.Record{}, errors.Join(record.ErrNotFound, err)
	}
	return r, nil
}

// Put writes a record: see record.Store.
func (s *Store) Put(ctx context.Context, r record.Record) error {
	if int64(len(r.Value)) > s.cfg.Limits.Record {
		return record.ErrTooLarge
	}
	r.Expires = time.Now().Add(s.cfg.Limits.TTL)
	raw := string(s.cfg.Codec.Encode(r))
	m, err := s.run(ctx, putScript, r.Key, strconv.FormatUint(r.Version, 10), raw, strconv.FormatInt(s.cfg.Limits.Tenant, 10))
	if err != nil {
		return err
	}
	answer, err := m.ToString()
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", record.ErrUnavailable, err)
	case answer == "conflict":
		return record.ErrConflict
	case answer == "large":
		return record.ErrTooLarge
	case !strings.EqualFold(answer, "ok"):
		return fmt.Errorf("%w: it answers %.40q", record.ErrUnavailable, answer)
	}
	return nil
}

// Delete takes a record out: see record.Store. There is one copy, which needs no tombstone.
func (s *Store) Delete(ctx context.Context, k record.Key) error {
	m, err := s.run(ctx, deleteScript, k)
	if err != nil {
		return err
	}
	if n, err := m.AsInt64(); err != nil || n == 0 {
		return record.ErrNotFound
	}
	return nil
}
