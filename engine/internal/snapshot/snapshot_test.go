package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/cachelog"
	"millrace.dev/millrace/engine/internal/kvfile"
	"millrace.dev/millrace/engine/internal/supervise"
)

// fake is a backend whose state of so many tokens is so many words.
type fake struct {
	backend.Kind
	dir     string
	version string

	mu       sync.Mutex
	restored [][]byte
}

func (f *fake) States(*enginepb.Assignment) backend.States { return f }

func (f *fake) Identity(context.Context, *enginepb.Assignment) (*enginepb.SnapshotIdentity, error) {
	return &enginepb.SnapshotIdentity{WeightsSha256: bytes.Repeat([]byte{1}, 32), Backend: "fake", Version: f.version, KvTypes: "f16/f16", Layout: "layers"}, nil
}

// state is that of so many tokens.
func state(tokens uint64) []byte { return bytes.Repeat(fmt.Appendf(nil, "%05d,", tokens), int(tokens)) }

func (f *fake) Save(_ context.Context, _ *enginepb.Assignment, tokens uint64, file string) (backend.Saved, error) {
	return backend.Saved{Tokens: tokens - 1, Stalled: time.Millisecond}, os.WriteFile(filepath.Join(f.dir, file), state(tokens), 0o600)
}

func (f *fake) Restore(_ context.Context, _ *enginepb.Assignment, file string) (func(), error) {
	b, err := os.ReadFile(filepath.Join(f.dir, file))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restored = append(f.restored, b)
	return func() {}, err
}

// engine is a Service with its backend, and the server that others reach.
type engine struct {
	*Service
	fake    *fake
	a       *enginepb.Assignment
	address string
	reg     *prometheus.Registry
	stop    func()
}

// start starts one on a folder, which knows the others by their addresses.
func start(t *testing.T, dir, version string, peers ...string) *engine {
	t.Helper()
	folder, _, err := Open(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{fake: &fake{dir: folder.States(), version: version}, reg: prometheus.NewRegistry()}
	e.a = &enginepb.Assignment{Model: "m", Replica: "m-0", Backend: &enginepb.Backend{Kind: enginepb.Backend_LLAMACPP, ContextTokens: 4096}}
	cfg := Config{
		Folder: folder, Kinds: backend.Kinds{enginepb.Backend_LLAMACPP: e.fake}, Cache: &cachelog.Log{}, Rate: 1 << 30,
		Running: func() int { return 0 }, Speed: func() backend.Speed { return backend.Speed{Prefill: 100} },
		Metrics: NewMetrics(e.reg, folder), Log: slog.New(slog.DiscardHandler),
		Snapshot: func() (*supervise.Snapshot, <-chan struct{}) {
			return &supervise.Snapshot{State: enginepb.State_READY, Assignment: e.a, Epoch: 1}, nil
		},
	}
	for _, address := range peers {
		p, err := Dial(address, address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Peers = append(cfg.Peers, p)
	}
	e.Service = New(cfg)
	if err := e.identify(t.Context(), &supervise.Snapshot{State: enginepb.State_READY, Assignment: e.a, Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	enginepb.RegisterSnapshotsServer(srv, e.Server())
	e.address = ln.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = srv.Serve(ln) })
	running.Go(func() {
		if err := e.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	e.stop = sync.OnceFunc(func() {
		cancel()
		srv.Stop()
		running.Wait()
	})
	t.Cleanup(e.stop)
	return e
}

// settled waits until all is saved and copied.
func (e *engine) settled(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if e.Settle(ctx); ctx.Err() != nil {
		t.Fatal("states are still being saved")
	}
}

// restores returns what a prompt had restored; nil: nothing.
func (e *engine) restores(t *testing.T, chain []cachelog.Link) []byte {
	t.Helper()
	e.fake.restored = nil
	e.Restore(t.Context(), e.a, chain)()
	if len(e.fake.restored) == 0 {
		return nil
	}
	return e.fake.restored[0]
}

func (e *engine) count(t *testing.T, name string) int {
	t.Helper()
	n, err := testutil.GatherAndCount(e.reg, name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var (
	first  = []cachelog.Link{{Key: 1, Tokens: 40}, {Key: 2, Tokens: 300}}
	second = append(first[:2:2], cachelog.Link{Key: 3, Tokens: 500})
	third  = append(second[:3:3], cachelog.Link{Key: 4, Tokens: 700})
)

func TestStateOfTheLastTurnIsRestored(t *testing.T) {
	e := start(t, t.TempDir(), "1")
	if got := e.restores(t, first); got != nil {
		t.Errorf("before anything was saved %d bytes are restored", len(got))
	}
	e.Save(e.a, first, 350)
	e.settled(t)
	e.Save(e.a, second, 550)
	e.settled(t)
	if n, _ := e.cfg.Folder.Size(); n != 1 {
		t.Errorf("%d snapshots of one conversation, want the last one", n)
	}
	if got := e.restores(t, third); !bytes.Equal(got, state(550)) {
		t.Errorf("%d bytes are restored, want those of turn 2", len(got))
	}
	edited := append(first[:2:2], cachelog.Link{Key: 33, Tokens: 480})
	if got := e.restores(t, edited); !bytes.Equal(got, state(550)) {
		t.Errorf("of an edited turn %d bytes are restored, want what it has in common", len(got))
	}
	if got := e.restores(t, []cachelog.Link{{Key: 77, Tokens: 900}}); got != nil {
		t.Errorf("of another conversation %d bytes are restored", len(got))
	}
	e.cfg.Cache.Finish(e.cfg.Cache.Begin(second), 500, 0, 50)
	if got := e.restores(t, second); got != nil {
		t.Errorf("of what the cache has %d bytes are restored", len(got))
	}
	e.Save(e.a, []cachelog.Link{{Key: 8, Tokens: 20}}, 30)
	e.settled(t)
	if n, _ := e.cfg.Folder.Size(); n != 1 {
		t.Error("a short one is saved, too")
	}
}

func TestStateOutlivesTheEngine(t *testing.T) {
	dir := t.TempDir()
	e := start(t, dir, "1")
	e.Save(e.a, second, 550)
	e.settled(t)
	e.stop()

	e = start(t, dir, "1")
	if c := e.cfg.Cache.Cache(); len(c.Segments) != 1 || c.Segments[0].GetKeys()[0] != 3 || c.Segments[0].GetTokens()[0] > 550 {
		t.Errorf("reported: %v, want key 3 with at most 550 tokens", c.Segments)
	}
	if got := e.restores(t, third); !bytes.Equal(got, state(550)) {
		t.Errorf("%d bytes are restored", len(got))
	}
	e.stop()

	e = start(t, dir, "2") // another build of the backend
	if c := e.cfg.Cache.Cache(); len(c.Segments) != 0 {
		t.Errorf("reported for another build: %v", c.Segments)
	}
	if got := e.restores(t, third); got != nil {
		t.Errorf("another build restores %d bytes", len(got))
	}
	if got := testutil.ToFloat64(e.cfg.Metrics.ignored.WithLabelValues(ignoredMismatch)); got != 1 {
		t.Errorf("%v were ignored for a mismatch, want 1", got)
	}
}

func TestTornSnapshotIsComputed(t *testing.T) {
	dir := t.TempDir()
	e := start(t, dir, "1")
	e.Save(e.a, second, 550)
	e.settled(t)
	path := e.cfg.Folder.path(3)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-40] ^= 4
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := e.restores(t, third); got != nil {
		t.Errorf("%d bytes of a torn file are restored", len(got))
	}
	if got := testutil.ToFloat64(e.cfg.Metrics.ignored.WithLabelValues(ignoredTorn)); got != 1 {
		t.Errorf("%v were ignored as torn, want 1", got)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the torn file is still there")
	}
	e.stop()
	if err := os.WriteFile(path, b[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, torn, err := Open(dir, 1<<20); torn != 1 || err != nil {
		t.Errorf("Open() found %d torn files, %v, want 1", torn, err)
	}
}

func TestAnotherEngineHasACopy(t *testing.T) {
	other := start(t, t.TempDir(), "1")
	stranger := start(t, t.TempDir(), "2")
	e := start(t, t.TempDir(), "1", stranger.address, other.address)
	for _, turn := range []struct {
		chain []cachelog.Link
		all   uint64
	}{{first, 350}, {second, 550}} {
		e.Save(e.a, turn.chain, turn.all)
		e.settled(t)
	}
	e.stop()
	if n, _ := stranger.cfg.Folder.Size(); n != 0 {
		t.Error("an engine of another build has a copy")
	}
	if n, _ := other.cfg.Folder.Size(); n != 1 {
		t.Errorf("%d copies, want the last one", n)
	}
	if c := other.cfg.Cache.Cache(); len(c.Segments) != 1 {
		t.Errorf("reported: %v", c.Segments)
	}
	if got := other.restores(t, third); !bytes.Equal(got, state(550)) {
		t.Errorf("%d bytes are restored at the other engine", len(got))
	}
}

func TestSnapshotIsFetched(t *testing.T) {
	owner := start(t, t.TempDir(), "1")
	owner.Save(owner.a, second, 550)
	owner.settled(t)
	e := start(t, t.TempDir(), "1", owner.address)
	if got := e.restores(t, third); !bytes.Equal(got, state(550)) {
		t.Errorf("%d bytes are restored", len(got))
	}
	if got := testutil.ToFloat64(e.cfg.Metrics.restored.WithLabelValues(fromPeer)); got != 1 {
		t.Errorf("%v were restored from a peer, want 1", got)
	}
	owner.stop()
	if got := e.restores(t, []cachelog.Link{{Key: 50, Tokens: 900}}); got != nil {
		t.Errorf("%d bytes are restored from an engine that is gone", len(got))
	}
}

// TestForgedCopiesAreRefused offers what is none, and continues what was cut.
func TestForgedCopiesAreRefused(t *testing.T) {
	owner, e := start(t, t.TempDir(), "1"), start(t, t.TempDir(), "1")
	owner.Save(owner.a, second, 550)
	owner.settled(t)
	entry := owner.cfg.Folder.has(3)
	whole, err := os.ReadFile(owner.cfg.Folder.path(3))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Dial("e", e.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	offer := &enginepb.OfferRequest{Header: entry.h, Bytes: uint64(len(whole)), Sha256: entry.file.Sum[:]}
	send := func(at int, data []byte) error {
		stream, err := p.client.Keep(t.Context())
		if err != nil {
			return err
		}
		_ = stream.Send(&enginepb.KeepPart{Offer: offer, Offset: uint64(at), Data: data})
		_, err = stream.CloseAndRecv()
		return err
	}
	bad := bytes.Clone(whole)
	bad[len(bad)/2] ^= 1
	if err := send(0, bad); err == nil {
		t.Error("a forged file is kept")
	}
	half := len(whole) / 2
	if err := send(0, whole[:half]); err == nil {
		t.Error("half a file is kept")
	}
	reply, err := p.client.Offer(t.Context(), offer)
	if err != nil || reply.GetOffset() != uint64(half) {
		t.Fatalf("Offer() = %v, %v, want %d: what is there", reply, err, half)
	}
	if err := send(half+1, whole[half+1:]); err == nil {
		t.Error("a file with a gap is kept")
	}
	if n, _ := e.cfg.Folder.Size(); n != 0 {
		t.Errorf("%d snapshots before any was whole", n)
	}
	if err := send(half, whole[half:]); err != nil {
		t.Errorf("the rest of it: %v", err)
	}
	if reply, err := p.client.Offer(t.Context(), offer); err != nil || reply.GetOffset() != offer.GetBytes() {
		t.Errorf("Offer() = %v, %v, want that all is there", reply, err)
	}
	if got := e.restores(t, third); !bytes.Equal(got, state(550)) {
		t.Errorf("%d bytes are restored", len(got))
	}
}

// TestPipeIsRefused, and not waited for.
func TestPipeIsRefused(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	link := pipe + ".link"
	if err := os.Symlink(pipe, link); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{pipe, link} {
		if _, _, err := Open(dir, 1000); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("Open(%s): %v", dir, err)
		}
	}
}

func TestWhatIsWorthLeastMakesRoom(t *testing.T) {
	dir := t.TempDir()
	f, _, err := Open(dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	put := func(key uint64, recompute uint32, size int64) bool {
		h := &enginepb.SnapshotHeader{Keys: []uint64{key}, KeyTokens: []uint32{1}, Tokens: 1, RecomputeMs: recompute}
		file, err := f.create(partDir)
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
		if !f.Room(h, size) {
			return false
		}
		kept, err := f.Put(file.Name(), h, kvfile.File{Bytes: size})
		if err != nil {
			t.Fatal(err)
		}
		return kept
	}
	for key, kept := range []bool{true, true, true} {
		if got := put(uint64(key+1), 1000, 300); got != kept {
			t.Errorf("%d is kept: %t, want %t", key, got, kept)
		}
	}
	if put(9, 100, 600) {
		t.Error("one that is worth less is kept")
	}
	if !put(10, 9000, 600) {
		t.Error("one that is worth more is not kept")
	}
	if n, bytes := f.Size(); n != 2 || bytes != 900 {
		t.Errorf("Size() = %d, %d, want 2 of 900 bytes", n, bytes)
	}
	if put(11, 1<<30, 2000) {
		t.Error("one that is larger than all may be is kept")
	}
}

func TestRestoringIsWorthIt(t *testing.T) {
	h := &enginepb.SnapshotHeader{Tokens: 3000, StateBytes: 69e6, RecomputeMs: 30000}
	p := pace{restore: firstPace}
	for _, tt := range []struct {
		name         string
		useful, have uint32
		prefill      float64
		want         bool
	}{
		{"nothing is cached", 3000, 0, 100, true},
		{"all is cached", 3000, 3000, 100, false},
		{"nearly all is cached", 3000, 2950, 100, false},
		{"a fast backend", 3000, 0, 5000, false},
		{"a speed that is not known", 3000, 0, 0, true},
	} {
		if got := worth(h, tt.useful, tt.have, tt.prefill, p) > 0; got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
	if w := wait(40 * time.Millisecond); w < 900*time.Millisecond {
		t.Errorf("after a stall of 40 ms the next one may come in %s", w)
	}
}

func TestMetricsAreClean(t *testing.T) {
	e := start(t, t.TempDir(), "1")
	problems, err := testutil.GatherAndLint(e.reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	if n := e.count(t, "millrace_engine_snapshots_ignored_total"); n != 3 {
		t.Errorf("%d reasons at the start, want 3", n)
	}
}
