package cachelog

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/testing/protocmp"

	"millrace.dev/millrace/engine/enginepb"
)

// cached is what a reader makes of a cache: the tokens of each key.
func cached(c *enginepb.Cache) map[uint64]uint32 {
	all := map[uint64]uint32{}
	if c == nil {
		return all
	}
	for _, s := range c.Segments {
		for i, k := range s.GetKeys() {
			all[k] = s.GetTokens()[i]
			if s.GetTokens()[i] == 0 {
				delete(all, k)
			}
		}
	}
	return all
}

func answer(l *Log, prompt, completion uint64, chain ...Link) {
	u := l.Begin(chain)
	l.Finish(u, prompt, prompt, completion)
}

func TestConversationIsLoggedWithItsAnswer(t *testing.T) {
	var l Log
	l.Resize(10_000)
	answer(&l, 120, 30, Link{1, 40}, Link{2, 120})
	if diff := cmp.Diff(map[uint64]uint32{1: 40, 2: 150}, cached(l.Cache())); diff != "" {
		t.Errorf("after turn 1 (-want +got):\n%s", diff)
	}
	answer(&l, 200, 10, Link{1, 40}, Link{2, 120}, Link{3, 200})
	if diff := cmp.Diff(map[uint64]uint32{1: 40, 2: 150, 3: 210}, cached(l.Cache())); diff != "" {
		t.Errorf("after turn 2 (-want +got):\n%s", diff)
	}
	if got := l.Tokens(); got != 210 {
		t.Errorf("Tokens() = %d, want 210: what turns share counts once", got)
	}
}

func TestOldestIsDroppedWhenTheCacheIsFull(t *testing.T) {
	var l Log
	l.Resize(1600)
	for i := range uint64(40) {
		answer(&l, 100, 0, Link{100 + i, 100})
		answer(&l, 50, 0, Link{7, 50}) // used all the time
	}
	got := cached(l.Cache())
	if _, ok := got[100]; ok {
		t.Error("the first of 40 prompts is there, the cache holds 16")
	}
	for _, k := range []uint64{7, 139, 130, 126} {
		if _, ok := got[k]; !ok {
			t.Errorf("key %d is gone, used lately", k)
		}
	}
	if n := l.Tokens(); n < 1600 || n > 1600+1600/perCache+150 {
		t.Errorf("Tokens() = %d, want a full cache of 1600 and a segment at most", n)
	}
}

func TestUnnamedTokensEvict(t *testing.T) {
	var l Log
	l.Resize(1000)
	answer(&l, 100, 0, Link{1, 100})
	for range 20 {
		l.Other(100)
	}
	if got := cached(l.Cache()); len(got) != 0 {
		t.Errorf("%v is there after 2000 tokens of others in a cache of 1000", got)
	}
}

func TestFailureTakesBackWhatIsNew(t *testing.T) {
	var l Log
	answer(&l, 40, 0, Link{1, 40})
	l.Fail(l.Begin([]Link{{1, 40}, {2, 90}}))
	if diff := cmp.Diff(map[uint64]uint32{1: 40}, cached(l.Cache())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Two at a time on one prompt: one fails, the other is answered.
	a, b := l.Begin([]Link{{5, 50}}), l.Begin([]Link{{5, 50}})
	l.Fail(a)
	l.Finish(b, 50, 0, 10)
	if diff := cmp.Diff(map[uint64]uint32{1: 40, 5: 60}, cached(l.Cache())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRestartEmptiesTheLog(t *testing.T) {
	var l Log
	l.Reset(1)
	late := l.Begin([]Link{{3, 30}})
	answer(&l, 40, 0, Link{1, 40})
	before := l.Cache()
	l.Reset(2)
	l.Finish(late, 30, 0, 10)
	after := l.Cache()
	if len(cached(after)) != 0 || after.Epoch != 2 {
		t.Errorf("after a restart: epoch %d, %v", after.Epoch, cached(after))
	}
	if got := before.Add(after.Since(before)); len(got.Segments) != 0 || got.Epoch != 2 {
		t.Errorf("a reader has %v of epoch %d", cached(got), got.Epoch)
	}
	answer(&l, 40, 0, Link{1, 40})
	if id := l.Cache().Segments[0].GetId(); id <= before.Segments[0].GetId() {
		t.Errorf("segment %d after %d: ids must grow", id, before.Segments[0].GetId())
	}
}

// TestMissShowsTheCacheSmaller: the backend holds 2000 tokens, and the log was set to
// 12,000.
func TestMissShowsTheCacheSmaller(t *testing.T) {
	var l Log
	l.Resize(12_000)
	for i := range uint64(100) {
		answer(&l, 100, 0, Link{100 + i, 100})
	}
	u := l.Begin([]Link{{150, 100}, {1000, 150}})
	l.Finish(u, 150, 0, 20)
	if l.Misses() != 1 {
		t.Errorf("Misses() = %d, want 1", l.Misses())
	}
	got := cached(l.Cache())
	if _, ok := got[100]; ok {
		t.Error("a prompt is there that is older than one that was found evicted")
	}
	if _, ok := got[199]; !ok {
		t.Error("the newest prompt is gone")
	}
	if got[1000] != 170 {
		t.Errorf("the prompt of the miss has %d tokens, want 170: it is cached now", got[1000])
	}
}

// TestSharedBeginningIsNoEvidence: a backend may hold a beginning in a slot that is
// busy, so that another request has to compute it again.
func TestSharedBeginningIsNoEvidence(t *testing.T) {
	var l Log
	answer(&l, 100, 0, Link{1, 80}, Link{2, 100})
	l.Finish(l.Begin([]Link{{1, 80}, {3, 100}}), 100, 0, 0)
	if l.Misses() != 0 {
		t.Errorf("Misses() = %d, want 0", l.Misses())
	}
}

// TestReaders follow random uses by increments, some of which they get twice, and
// must know what the log knows; what must be there by a plain LRU list must be in it.
func TestReaders(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			var l Log
			size := int64(r.IntN(20_000))
			l.Resize(size)
			var naive []uint64 // keys, in the order of use
			var tokens [301]int64
			var reader, sent *enginepb.Cache
			for range 1000 {
				k := uint64(r.IntN(300)) + 1
				n := 10 + k%90
				answer(&l, n, 0, Link{k, uint32(n)})
				naive = append(naive, k)
				tokens[k] = int64(n)
				if r.IntN(8) > 0 {
					continue
				}
				now := l.Cache()
				report := now.Since(sent)
				if err := report.ValidateAll(); err != nil {
					t.Fatal(err)
				}
				if err := report.Check(); err != nil {
					t.Fatal(err)
				}
				reader = reader.Add(report)
				if r.IntN(4) == 0 {
					reader = reader.Add(report).Add(now.Since(nil))
				}
				if sent = now; r.IntN(10) == 0 {
					sent = nil // a new stream
				}
				if diff := cmp.Diff(now, reader, protocmp.Transform()); diff != "" {
					t.Fatalf("(-log +reader):\n%s", diff)
				}
				got, sum, used := cached(reader), int64(0), int64(0)
				seen := map[uint64]bool{}
				for _, k := range slices.Backward(naive) {
					if !seen[k] {
						sum += tokens[k]
					}
					seen[k] = true
					if used += tokens[k]; sum > size || used > 3*size {
						break // what was not used for so long the log may forget
					}
					if _, ok := got[k]; !ok {
						t.Fatalf("key %d is gone, %d tokens were used since in a cache of %d", k, sum, size)
					}
				}
				if len(now.Segments) > enginepb.MaxSegments {
					t.Fatalf("%d segments", len(now.Segments))
				}
			}
		})
	}
}

func TestMemoryIsBounded(t *testing.T) {
	var l Log // of unknown size
	for i := range uint64(50_000) {
		u := l.Begin([]Link{{i * 2, 1}, {i*2 + 1, 2}})
		if i%3 == 0 {
			l.Fail(u)
		} else {
			l.Finish(u, 2, 0, 1)
		}
	}
	const most = enginepb.MaxSegments * enginepb.MaxEntries
	if len(l.places) > most || len(l.segments) > enginepb.MaxSegments {
		t.Errorf("%d keys in %d segments; must be %d at most", len(l.places), len(l.segments), most)
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, header string
		want         []Link
		wantErr      string
	}{
		{name: "none"},
		{name: "two", header: "00000000000000ff.12,ffffffffffffffff.40", want: []Link{{0xff, 12}, {1<<64 - 1, 40}}},
		{name: "as long as the one before", header: "0000000000000001.12,0000000000000002.12", want: []Link{{1, 12}, {2, 12}}},
		{name: "short key", header: "ff.12", wantErr: "16 hexadecimal digits"},
		{name: "upper case", header: "00000000000000FF.12", wantErr: "16 hexadecimal digits"},
		{name: "no tokens", header: "00000000000000ff", wantErr: "16 hexadecimal digits"},
		{name: "sign", header: "00000000000000ff.-1", wantErr: "must be a number"},
		{name: "too many tokens", header: "00000000000000ff.16777216", wantErr: "up to 16777215"},
		{name: "shrinking", header: "0000000000000001.12,0000000000000002.11", wantErr: "must not shrink"},
		{name: "too many", header: strings.TrimSuffix(strings.Repeat("0000000000000001.1,", 65), ","), wantErr: "65 beginnings"},
		{name: "empty pair", header: "0000000000000001.1,", wantErr: "beginning 2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.header)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("error %v, want %q", err, tt.wantErr)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("error %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("")
	f.Add("00000000000000ff.12,ffffffffffffffff.40")
	f.Add("00000000000000ff.,.")
	f.Fuzz(func(t *testing.T, header string) {
		links, err := Parse(header)
		if err != nil {
			return
		}
		last := uint32(0)
		for _, l := range links {
			if l.Tokens < last || l.Tokens > maxTokens {
				t.Errorf("%d tokens after %d", l.Tokens, last)
			}
			last = l.Tokens
		}
		if len(links) > maxLinks {
			t.Errorf("%d links", len(links))
		}
		var l Log
		l.Finish(l.Begin(links), 1<<63, 1<<63, 1<<63)
		if err := l.Cache().Since(nil).Check(); err != nil {
			t.Error(err)
		}
	})
}

// TestTurnsKnownByOtherBeginningsCountOnce lets a conversation grow whose turns name
// other beginnings each time, as extproc does for long prompts.
func TestTurnsKnownByOtherBeginningsCountOnce(t *testing.T) {
	var l Log
	l.Resize(100_000)
	end := uint32(0)
	for turn := range uint32(12) {
		var chain []Link
		end = 1000 * (turn + 1)
		for at := uint32(100); at <= end; at += 100 {
			if at+500 > end || at%1000 == 0 || at%(100<<(turn/4)) == 0 {
				chain = append(chain, Link{uint64(at), at})
			}
		}
		answer(&l, uint64(end), 0, chain...)
	}
	if got := l.Tokens(); got != uint64(end) {
		t.Errorf("Tokens() = %d of one conversation of %d", got, end)
	}
}

func TestAnswerInOtherPiecesCountsOnce(t *testing.T) {
	var l Log
	l.Resize(100_000)
	answer(&l, 100, 300, Link{1, 100})
	answer(&l, 500, 0, Link{1, 100}, Link{2, 200}, Link{3, 300}, Link{4, 500})
	if got := l.Tokens(); got != 500 {
		t.Errorf("Tokens() = %d, want 500", got)
	}
}

func TestWhatWasNotBegunDoesNotCount(t *testing.T) {
	var l Log
	l.Resize(100_000)
	answer(&l, 100, 0, Link{1, 100})
	l.Fail(l.Begin([]Link{{1, 100}, {2, 5000}, {3, 9000}}))
	if got := l.Tokens(); got != 100 {
		t.Errorf("Tokens() = %d, want the 100 of before", got)
	}
}

// checkLog checks that a log's sums are those of what it holds.
func checkLog(t *testing.T, l *Log) {
	t.Helper()
	live, ids := int64(0), uint64(0)
	last := map[uint64]place{}
	for _, s := range l.segments {
		if s.live < 0 || s.id <= ids || len(s.keys) > enginepb.MaxEntries {
			t.Fatalf("segment %d after %d: %d tokens, %d keys", s.id, ids, s.live, len(s.keys))
		}
		live, ids = live+s.live, s.id
		for i, k := range s.keys {
			if last[k] = (place{at: s, tokens: s.tokens[i]}); s.tokens[i] == 0 {
				delete(last, k)
			}
		}
	}
	if live != l.live || len(l.segments) > enginepb.MaxSegments {
		t.Fatalf("%d segments of %d tokens, %d are counted", len(l.segments), live, l.live)
	}
	for k, p := range l.places {
		if q := last[k]; q.at != p.at || q.tokens != p.tokens {
			t.Fatalf("key %d is cached to be in a segment with %d tokens, which was last named with %d", k, p.tokens, q.tokens)
		}
	}
	if len(l.places) != len(last) {
		t.Fatalf("%d keys are known, %d were named", len(l.places), len(last))
	}
}

// keepLog does what a script says to a log that a reader follows by increments, some of
// which are lost and some come twice.
func keepLog(t *testing.T, script []byte) {
	var l Log
	var open []*Use
	var reader, sent *enginepb.Cache
	for len(script) >= 4 {
		op, a, b := script[0], int(script[1]), int(script[2])
		switch {
		case op < 100:
			var chain []Link
			each := uint32(1 + a) // tokens of a link
			if b%4 == 0 {
				each = uint32(1 + b) // nobody but us need write headers
			}
			for i := range script[3] % 8 {
				chain = append(chain, Link{uint64(a)<<8 | uint64(i), each * uint32(i+1)})
			}
			open = append(open, l.Begin(chain))
		case op < 200 && len(open) > 0:
			u := open[a%len(open)]
			open = slices.DeleteFunc(open, func(o *Use) bool { return o == u })
			if op%4 == 0 {
				l.Fail(u)
			} else {
				l.Finish(u, uint64(b)*8, uint64(script[3])*8, uint64(a))
			}
		case op < 215:
			l.Other(uint64(a) * uint64(b))
		case op < 225:
			l.Resize(int64(a) * int64(b))
		case op == 255:
			l.Reset(uint64(a % 3))
		default:
			now := l.Cache()
			report := now.Since(sent)
			if err := report.Check(); err != nil {
				t.Fatal(err)
			}
			if reader = reader.Add(report); a%4 == 0 {
				reader = reader.Add(report)
			}
			if sent = now; b%8 == 0 {
				sent = nil // a new stream
			}
			if diff := cmp.Diff(now, reader, protocmp.Transform(), cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("(-log +reader):\n%s", diff)
			}
		}
		checkLog(t, &l)
		script = script[4:]
	}
}

// TestContradictingLengths has a key of ten tokens that comes back with a thousand, and
// takes along what another one is found not to have brought.
func TestContradictingLengths(t *testing.T) {
	var l Log
	l.Resize(1600)
	answer(&l, 10, 0, Link{3, 10})
	u := l.Begin([]Link{{1, 100}})
	l.Begin([]Link{{3, 1000}})
	l.Fail(u)
	checkLog(t, &l)
}

// TestLogAddsUp begins, ends and breaks off uses in any order.
func TestLogAddsUp(t *testing.T) {
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 5))
		script := make([]byte, 2000)
		for i := range script {
			script[i] = byte(r.Uint32())
		}
		keepLog(t, script)
	}
}

func FuzzLog(f *testing.F) {
	f.Add([]byte{0, 1, 9, 3, 0, 1, 20, 7, 150, 0, 3, 4, 230, 1, 1, 0, 220, 9, 9, 0, 0, 2, 2, 2, 152, 0, 0, 0, 255, 1, 0, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) < 1<<12 {
			keepLog(t, script)
		}
	})
}

// TestAnswersToTheSamePromptCountOnce asks the same again and again: the backend keeps
// one answer behind the prompt.
func TestAnswersToTheSamePromptCountOnce(t *testing.T) {
	var l Log
	l.Resize(10_000)
	for i := range uint64(20) {
		answer(&l, 100, 400+i, Link{1, 40}, Link{2, 100})
	}
	if got := l.Tokens(); got != 519 {
		t.Errorf("Tokens() = %d, want 519: the prompt and the last answer", got)
	}
	answer(&l, 100, 50, Link{1, 40}, Link{2, 100})
	if got := l.Tokens(); got != 150 {
		t.Errorf("Tokens() = %d after a short answer, want 150", got)
	}
}
