package meter

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"millrace.dev/millrace/internal/scrape"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// at is so many milliseconds behind the beginning.
func at(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }

// world is a Meter with what came of its runs, by name.
type world struct {
	Meter[string]
	how    scrape.Counting
	got    map[string]int
	final  map[string]bool
	alone  map[string]bool
	ticket map[string]Ticket
}

func newWorld(how scrape.Counting) *world {
	w := &world{how: how, got: map[string]int{}, final: map[string]bool{}, alone: map[string]bool{}, ticket: map[string]Ticket{}}
	w.page(0, 1000, 0, 0)
	return w
}

func (w *world) begin(ms int, who string, most int) {
	w.ticket[who] = w.Begin(Run[string]{Who: who, From: at(ms), Most: most, Reserved: most}, at(ms))
}

func (w *world) leave(ms int, who string) { w.Leave(w.ticket[who], at(ms)) }

func (w *world) page(ms int, tokens, answers, requests float64) {
	for _, s := range w.Page(Page{Asked: at(ms), How: w.how, Tokens: tokens, Answers: answers, Requests: requests}, nil) {
		w.got[s.Who], w.final[s.Who], w.alone[s.Who] = s.Tokens, s.Final, s.Alone
	}
}

func TestMeter(t *testing.T) {
	const asMade, atEnd, ifWhole = scrape.AsMade, scrape.AtEnd, scrape.IfWhole
	tests := []struct {
		name string
		how  scrape.Counting
		do   func(w *world)
		want map[string]int // of all that are settled
	}{
		{"one alone, while it runs", asMade, func(w *world) {
			w.begin(0, "a", 500)
			w.page(250, 1010, 0, 1)
			w.page(500, 1020, 0, 1)
			w.leave(600, "a")
			w.page(1000, 1024, 0, 0)
		}, map[string]int{"a": 24}},
		{"one that is cut, as llama-server counts", atEnd, func(w *world) {
			w.begin(0, "a", 500)
			w.page(250, 1000, 0, 1)
			w.leave(600, "a")
			w.page(700, 1000, 0, 1) // it has not noticed
			w.page(1000, 1000, 0, 1)
			w.page(1250, 1024, 0, 0)
		}, map[string]int{"a": 24}},
		{"the engine is ahead of the gateway", atEnd, func(w *world) {
			w.begin(0, "a", 500)
			w.page(250, 1024, 0, 0)
			w.leave(260, "a")
			w.page(500, 1024, 0, 0)
		}, map[string]int{"a": 24}},
		{"two, one after the other", atEnd, func(w *world) {
			w.begin(0, "a", 500)
			w.begin(0, "b", 500)
			w.leave(100, "a")
			w.page(350, 1024, 0, 1)
			w.leave(400, "b")
			w.page(650, 1054, 0, 0)
		}, map[string]int{"a": 24, "b": 30}},
		{"two at a time share by their time", asMade, func(w *world) {
			w.begin(0, "a", 500)
			w.begin(500, "b", 500)
			w.leave(1000, "a")
			w.leave(1000, "b")
			w.page(1250, 1090, 0, 0)
			w.page(1500, 1090, 0, 0)
		}, map[string]int{"a": 60, "b": 30}},
		{"none has more than its maximum", asMade, func(w *world) {
			w.begin(0, "a", 10)
			w.begin(0, "b", 500)
			w.leave(1000, "a")
			w.leave(1000, "b")
			w.page(1250, 1090, 0, 0)
		}, map[string]int{"a": 10, "b": 80}},
		{"what is known of one is not shared", asMade, func(w *world) {
			w.begin(0, "a", 500)
			w.begin(0, "b", 500)
			w.Known(w.ticket["b"], 70, at(900))
			w.leave(1000, "a")
			w.page(1250, 1090, 0, 0)
		}, map[string]int{"a": 20}},
		{"requests of others have their share", asMade, func(w *world) {
			w.page(10, 1000, 0, 3)
			w.begin(10, "a", 500)
			w.page(260, 1040, 0, 4)
			w.leave(260, "a")
			w.page(510, 1070, 0, 3) // theirs alone
			w.page(5500, 1070, 0, 3)
		}, map[string]int{"a": 23}}, // two of them surely were others', of 40 and of 30
		{"a request that was cut is not in the counter", ifWhole, func(w *world) {
			w.begin(0, "a", 500)
			w.leave(600, "a")
			w.page(1000, 1000, 0, 0)
			w.page(9000, 1000, 0, 0)
		}, map[string]int{}},
		{"one is whole, one is cut", ifWhole, func(w *world) {
			w.begin(0, "a", 500)
			w.begin(0, "b", 500)
			w.leave(1000, "a")
			w.leave(500, "b")
			w.page(1250, 1100, 1, 0)
		}, map[string]int{"a": 133, "b": 67}}, // in all twice what one answer was
		{"the engine is started anew", asMade, func(w *world) {
			w.begin(0, "a", 500)
			w.page(250, 1010, 0, 1)
			w.leave(300, "a")
			w.page(500, 3, 0, 0)
		}, map[string]int{"a": 10}},
		{"more than it reserved, while it runs", asMade, func(w *world) {
			w.ticket["a"] = w.Begin(Run[string]{Who: "a", From: at(0), Most: 500, Reserved: 20}, at(0))
			w.page(250, 1010, 0, 1)
			w.page(500, 1030, 0, 1)
		}, map[string]int{"a": 30}},
		{"nothing is metered where nothing is counted", scrape.Uncounted, func(w *world) {
			w.begin(0, "a", 500)
			w.leave(100, "a")
			w.page(1000, 2000, 0, 0)
		}, map[string]int{}},
		{"nor where pages have long not come", asMade, func(w *world) {
			w.begin(60_000, "a", 500)
			w.leave(60_100, "a")
			w.page(61_000, 2000, 0, 0)
		}, map[string]int{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(tt.how)
			tt.do(w)
			for who, n := range tt.want {
				if got, ok := w.got[who]; !ok || math.Abs(float64(got-n)) > 1 {
					t.Errorf("%s has had %d tokens (settled: %v), want %d", who, got, ok, n)
				}
			}
			if len(w.got) != len(tt.want) {
				t.Errorf("settled: %v, want %v", w.got, tt.want)
			}
		})
	}
}

// TestMeterAlone says whose number of tokens is exact.
func TestMeterAlone(t *testing.T) {
	w := newWorld(scrape.AtEnd)
	w.begin(0, "a", 500)
	w.leave(100, "a")
	w.page(400, 1024, 0, 0)
	w.begin(400, "b", 500)
	w.begin(400, "c", 500)
	w.leave(500, "b")
	w.leave(500, "c")
	w.page(900, 1054, 0, 0)
	if !w.alone["a"] || w.alone["b"] || w.alone["c"] {
		t.Errorf("alone were %v, want only a", w.alone)
	}
}

// engine makes tokens for requests by chance, some of which are cut: it lets go of them a while
// later. It is the twin that knows what each has had.
type engine struct {
	how    scrape.Counting
	shown  int
	made   map[string]int
	wanted map[string]int // at most; absent: it is gone
	cut    map[string]int // when their clients left, in milliseconds
}

func (e *engine) run(ms int, ended func(who string)) {
	for who, most := range e.wanted {
		e.made[who]++
		if e.how == scrape.AsMade {
			e.shown++
		}
		left, cut := e.cut[who]
		if e.made[who] < most && (!cut || ms < left+400) {
			continue
		}
		if e.how == scrape.AtEnd {
			e.shown += e.made[who]
		}
		delete(e.wanted, who)
		if !cut {
			ended(who)
		}
	}
}

// TestSharesAreWhatTheCounterShows runs engines under requests of which many are cut: in sum
// what requests are charged is what was made, however it is shared.
func TestSharesAreWhatTheCounterShows(t *testing.T) {
	for _, how := range []scrape.Counting{scrape.AsMade, scrape.AtEnd} {
		for seed := range uint64(30) {
			r := rand.New(rand.NewPCG(seed, 5))
			w := newWorld(how)
			e := &engine{how: how, shown: 1000, made: map[string]int{}, wanted: map[string]int{}, cut: map[string]int{}}
			names, all := 0, []string{}
			for ms := 10; ms < 60_000; ms += 10 {
				if ms < 50_000 && r.IntN(20) == 0 && len(e.wanted) < 8 {
					who := string(rune('a'+names%26)) + time.Duration(names).String()
					names++
					all = append(all, who)
					e.wanted[who] = 1 + r.IntN(300)
					w.begin(ms, who, e.wanted[who])
				}
				e.run(ms, func(who string) { w.leave(ms, who) })
				for who := range e.wanted {
					if _, gone := e.cut[who]; !gone && r.IntN(200) == 0 {
						e.cut[who] = ms
						w.leave(ms, who)
					}
				}
				if ms%250 == 0 {
					w.page(ms, float64(e.shown), 0, float64(len(e.wanted)))
				}
			}
			made, charged := 0, 0
			for _, who := range all {
				made += e.made[who]
				charged += w.got[who]
				if !w.final[who] {
					t.Fatalf("seed %d: %s is not settled", seed, who)
				}
			}
			if off := math.Abs(float64(charged-made)) / float64(made); off > 0.03 || charged > made+len(all) {
				t.Errorf("counting %d, seed %d: %d requests are charged %d tokens, made were %d", how, seed, len(all), charged, made)
			}
			if n := w.Pending(); n != 0 || len(w.free) != len(w.runs) {
				t.Errorf("%d are pending, %d of %d places are free", n, len(w.free), len(w.runs))
			}
		}
	}
}

func TestMeterIsBounded(t *testing.T) {
	w := newWorld(scrape.AtEnd)
	n := 0
	for range 3 * mostRuns {
		if w.Begin(Run[string]{Most: 1}, at(1)) != 0 {
			n++
		}
	}
	if n != mostRuns || len(w.runs) != mostRuns {
		t.Errorf("%d requests are metered, want %d", n, mostRuns)
	}
}
