package ads

import (
	"errors"
	"maps"
	"math/rand/v2"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/internal/wire"
)

// reader is a client of a journal, as go-control-plane's server plays it.
type reader struct {
	t       *testing.T
	journal *journal
	sub     stream.Subscription
	answers chan cachev3.DeltaResponse
	cancel  func()
	// has are the versions that the client has, by name.
	has map[string]string
	// came counts the resources that came, left the names that were said to be gone.
	came, left int
}

// newReader returns a client that has nothing yet.
func newReader(t *testing.T, j *journal) *reader {
	return &reader{t: t, journal: j, has: map[string]string{}}
}

// begin opens a stream: the client says what it has.
func (r *reader) begin() {
	r.t.Helper()
	r.end()
	r.answers = make(chan cachev3.DeltaResponse, 16)
	r.sub = stream.NewDeltaSubscription([]string{"*"}, nil, maps.Clone(r.has), true)
	if err := r.watch(""); err != nil {
		r.t.Fatal(err)
	}
}

func (r *reader) end() {
	if r.cancel != nil {
		r.cancel()
	}
	r.cancel = nil
}

func (r *reader) watch(nonce string) (err error) {
	r.end()
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.journal.typ, ResponseNonce: nonce}
	r.cancel, err = r.journal.CreateDeltaWatch(req, &r.sub, r.answers)
	return err
}

// take takes one answer in and accepts it; false: there is none.
func (r *reader) take() (bool, error) {
	r.t.Helper()
	var a cachev3.DeltaResponse
	select {
	case a = <-r.answers:
	default:
		return false, nil
	}
	said, err := a.GetDeltaDiscoveryResponse()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, res := range said.GetResources() {
		r.has[res.GetName()] = res.GetVersion()
	}
	for _, name := range said.GetRemovedResources() {
		delete(r.has, name)
	}
	r.came, r.left = r.came+len(said.GetResources()), r.left+len(said.GetRemovedResources())
	r.sub.SetReturnedResources(a.GetNextVersionMap())
	return true, r.watch("n")
}

// settle takes everything in.
func (r *reader) settle() {
	r.t.Helper()
	for range 100 {
		more, err := r.take()
		if errors.Is(err, errBehind) {
			r.begin()
			continue
		}
		if err != nil {
			r.t.Fatal(err)
		}
		if !more {
			return
		}
	}
	r.t.Fatal("there is always more")
}

// TestJournalAgainstTwin lets clients that are slow, go and come again follow a journal.
// All must end with what a plain map has.
func TestJournalAgainstTwin(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		j, twin := newJournal(wire.CacheType), map[string]string{}
		var readers []*reader
		for range 3 {
			r := newReader(t, j)
			r.begin()
			readers = append(readers, r)
		}
		for step := range 400 {
			changed, removed := map[string]proto.Message{}, []string(nil)
			for range 1 + rnd.IntN(4) {
				name, m := segment(rnd.IntN(3), 1+rnd.IntN(5), step)
				if _, had := twin[name]; had && changed[name] == nil && rnd.IntN(3) == 0 {
					removed = append(removed, name)
					delete(twin, name)
					continue
				}
				changed[name] = m
			}
			for _, name := range removed {
				delete(changed, name)
			}
			for name, m := range changed {
				p, err := pack(j.typ, name, m)
				if err != nil {
					t.Fatal(err)
				}
				twin[name] = p.GetVersion()
			}
			if err := j.update(changed, removed); err != nil {
				t.Fatal(err)
			}
			switch r := readers[rnd.IntN(len(readers))]; rnd.IntN(4) {
			case 0:
				r.begin()
			case 1:
				r.settle()
			default:
				if _, err := r.take(); err != nil {
					t.Fatal(err)
				}
			}
		}
		for i, r := range readers {
			r.settle()
			if diff := cmp.Diff(twin, r.has); diff != "" {
				t.Fatalf("seed %d, client %d (-want +got):\n%s", seed, i, diff)
			}
			r.end()
		}
		if len(j.waiting) != 0 {
			t.Errorf("%d clients wait that have gone", len(j.waiting))
		}
	}
}

func TestJournalSendsOnlyWhatChanged(t *testing.T) {
	j := newJournal(wire.CacheType)
	all := map[string]proto.Message{}
	for i := range 1000 {
		name, m := segment(i, 1, 1)
		all[name] = m
	}
	put := func(changed map[string]proto.Message, removed ...string) {
		t.Helper()
		if err := j.update(changed, removed); err != nil {
			t.Fatal(err)
		}
	}
	put(all)
	r := newReader(t, j)
	expect := func(when string, came, left int) {
		t.Helper()
		r.came, r.left = 0, 0
		r.settle()
		if r.came != came || r.left != left {
			t.Errorf("%s: %d came and %d left, want %d and %d", when, r.came, r.left, came, left)
		}
	}
	r.begin()
	expect("at first", 1000, 0)
	name, m := segment(7, 1, 2)
	other, _ := segment(8, 1, 1)
	put(map[string]proto.Message{name: m}, other)
	expect("one changed, one gone", 1, 1)
	r.begin()
	expect("come again", 0, 0)
}

// TestJournalIsBounded leaves a client behind by more than the journal keeps: it begins
// anew, and the journal does not grow.
func TestJournalIsBounded(t *testing.T) {
	j := newJournal(wire.CacheType)
	r := newReader(t, j)
	r.begin()
	for i := range 3 * leastKept {
		name, m := segment(0, 1+i%3, i)
		if err := j.update(map[string]proto.Message{name: m}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(j.changed) > 2*leastKept {
		t.Errorf("%d changes are kept", len(j.changed))
	}
	if _, err := r.take(); !errors.Is(err, errBehind) {
		t.Errorf("a client that is too far behind: %v", err)
	}
	r.begin()
	r.settle()
	if len(r.has) != 3 {
		t.Errorf("the client has %v", r.has)
	}
}

func TestJournalRefuses(t *testing.T) {
	j := newJournal(wire.CacheType)
	answers := make(chan cachev3.DeltaResponse, 2)
	named := stream.NewDeltaSubscription([]string{"a"}, nil, nil, true)
	if _, err := j.CreateDeltaWatch(&discoveryv3.DeltaDiscoveryRequest{}, &named, answers); err == nil {
		t.Error("a subscription to one name is taken")
	}
	for _, at := range []string{"x", "7", "-1"} {
		made := stream.NewDeltaSubscription([]string{"*"}, nil, map[string]string{position: at}, true)
		if _, err := j.CreateDeltaWatch(&discoveryv3.DeltaDiscoveryRequest{}, &made, answers); !errors.Is(err, errBehind) {
			t.Errorf("position %q that nobody gave: %v", at, err)
		}
	}
	if _, err := j.CreateWatch(nil, nil, nil); err == nil {
		t.Error("the older form of the protocol is served")
	}
	if _, err := j.Fetch(t.Context(), nil); err == nil {
		t.Error("a single request is answered")
	}
}
