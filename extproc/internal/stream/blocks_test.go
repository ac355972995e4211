package stream

import (
	"runtime"
	"strings"
	"testing"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/blocks"
)

// letters takes every byte of the first message for a token.
type letters struct{ exact bool }

func (l letters) Count(r *openai.Request) (int, string) {
	return len(r.Messages[0].Content), doubtful(l.exact)
}

// doubtful is a doubt, or none.
func doubtful(exact bool) string {
	if exact {
		return pick.Certain
	}
	return "template"
}

func (l letters) IDs(dst []uint32, r *openai.Request) ([]uint32, bool) {
	for _, b := range r.Messages[0].Content {
		dst = append(dst, uint32(b))
	}
	return dst, l.exact
}

const blockSize = 16

// hold makes an engine say that it holds a text, made with an adapter.
func hold(b *blocks.Set, known blocks.Knowledge, text, adapter, salt string) {
	names := blocks.NewNames(b)
	names.SetKnown(known)
	s := blocks.Stored{Root: true, Size: blockSize, Adapter: adapter}
	for i := range len(text) / blockSize {
		s.Hashes = append(s.Hashes, uint64(i)+1)
		for _, c := range []byte(text[i*blockSize : (i+1)*blockSize]) {
			s.Tokens = append(s.Tokens, uint32(c))
		}
	}
	if s.Extra = make([]uint64, len(s.Hashes)); salt != "" && len(s.Extra) > 0 {
		s.Extra[0] = blocks.Extra(0, []byte(salt))
	}
	names.Store(&s)
}

// TestTokensAreNotKeptWithTheStream has many streams wait for their answers at the same
// time: none of them holds its prompt's tokens.
func TestTokensAreNotKeptWithTheStream(t *testing.T) {
	const streams, size = 100, 64 << 10 // tokens
	f := newFleet(1, func(table *pick.Table) {
		table.Default.SetCounter(letters{true})
		table.Default.Endpoints[0].Blocks = new(blocks.Set)
		table.Default.WithBlocks = table.Default.Endpoints
	})
	hold(f.model.Endpoints[0].Blocks, blocks.Whole, strings.Repeat("x", blockSize), "", "")
	head, body := post(), bodyOf(`{"model":"m","messages":[{"role":"user","content":"`+strings.Repeat("y", size)+`"}]}`)
	live := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := live()
	var open []*Exchange
	for range streams {
		x := f.core.Begin()
		open = append(open, x)
		x.Step(&head, nil)
		if out := x.Step(&body, nil); out[0].Decision == nil || out[0].Decision.PromptTokens != size {
			t.Fatalf("%+v", out[0])
		}
	}
	if after := live(); after > before+streams*size {
		t.Errorf("%d streams hold %d KiB each", streams, (after-before)/streams>>10)
	}
	for _, x := range open {
		f.core.Finish(x)
	}
}

// takes is an engine that takes so many adapters, and has loaded m; silent is one that
// has shown nothing.
func takes(n int) func(*pick.Adapters) {
	return func(a *pick.Adapters) { a.Report(n, []string{"m"}, nil) }
}

func silent(*pick.Adapters) {}

// TestWhatEnginesSayOfTheirBlocks sends a prompt, as if a second time, to a fleet of
// which the slowest endpoint says what it holds.
func TestWhatEnginesSayOfTheirBlocks(t *testing.T) {
	text := strings.Repeat("An old story, told again. ", 40) // 1040 tokens
	tests := []struct {
		name    string
		known   blocks.Knowledge
		holds   string
		counter pick.Counter
		sent    int // where we have sent it before; below 0: nowhere
		extra   string
		// shows is what the engine has shown of adapters, if the model may be one; of is the
		// adapter of what it holds.
		shows  func(a *pick.Adapters)
		of     string
		salt   string // of what it holds
		want   int    // the endpoint
		cached int
	}{
		{name: "it holds the beginning, and nobody else does", known: blocks.Whole, holds: text[:1000], counter: letters{true}, sent: -1, want: 2, cached: 992},
		{name: "it holds all: a token is worked on all the same", known: blocks.Whole, holds: text, counter: letters{true}, sent: -1, want: 2, cached: 1024},
		{name: "it has evicted what we sent", known: blocks.Whole, counter: letters{true}, sent: 2, want: 0},
		{name: "not all that it holds is known: what we sent counts", known: blocks.Parts, counter: letters{true}, sent: 2, want: 2, cached: 1039},
		{name: "nothing is known: what we sent counts", known: blocks.Nothing, counter: letters{true}, sent: 2, want: 2, cached: 1039},
		{name: "tokens are not certain: what we sent counts", known: blocks.Whole, counter: letters{}, sent: 2, want: 2, cached: 1039},
		{name: "tokens are not certain, and it holds them", known: blocks.Whole, holds: text, counter: letters{}, sent: -1, want: 2, cached: 1024},
		{name: "tokens cannot be told", known: blocks.Whole, holds: text, counter: quarters{}, sent: -1, want: 0},
		{name: "the model is an adapter", known: blocks.Whole, holds: text, counter: letters{true}, sent: -1, shows: takes(2), of: "m", want: 2, cached: 1024},
		{name: "it holds what the base made of it", known: blocks.Whole, holds: text, counter: letters{true}, sent: -1, shows: takes(2), want: 0},
		{name: "the engine takes no adapters", known: blocks.Whole, holds: text, counter: letters{true}, sent: -1, shows: takes(0), want: 2, cached: 1024},
		{name: "the engine has not shown whether the model is an adapter: what we sent counts", known: blocks.Whole, counter: letters{true}, sent: 2, shows: silent, want: 2, cached: 1039},
		{name: "it has not, and says that it is one", known: blocks.Whole, holds: text, counter: letters{true}, sent: -1, shows: silent, of: "m", want: 2, cached: 1024},
		{name: "it has not, and holds what the base made of it", known: blocks.Whole, holds: text, counter: letters{true}, sent: -1, shows: silent, want: 0},
		{name: "the client keeps its cache to itself", known: blocks.Whole, holds: text, counter: letters{true}, sent: -1, extra: `"cache_salt":"s",`, want: 0},
		{name: "it holds the client's own", known: blocks.Whole, holds: text[:1000], salt: "s", counter: letters{true}, sent: -1, extra: `"cache_salt":"s",`, want: 2, cached: 992},
		{name: "it holds the client's own, whose salt is written otherwise", known: blocks.Whole, holds: text, salt: "é\"", counter: letters{true}, sent: -1, extra: `"cache_salt":"\u00e9\"",`, want: 2, cached: 1024},
		{name: "it holds the client's own of an adapter with the salt's name", known: blocks.Whole, holds: text, salt: "m", counter: letters{true}, sent: -1, shows: takes(2), of: "m", extra: `"cache_salt":"m",`, want: 2, cached: 1024},
		{name: "it holds another client's own", known: blocks.Whole, holds: text, salt: "t", counter: letters{true}, sent: -1, extra: `"cache_salt":"s",`, want: 0},
		{name: "it holds another client's own, and this one shares", known: blocks.Whole, holds: text, salt: "t", counter: letters{true}, sent: -1, want: 0},
		{name: "no salt", known: blocks.Whole, holds: text, counter: letters{true}, sent: -1, extra: `"cache_salt":null,`, want: 2, cached: 1024},
		{name: "it names no salts: what we sent counts", known: blocks.Whole, holds: text, counter: letters{true}, sent: 2, extra: `"cache_salt":"s",`, want: 2, cached: 1039},
		{name: "what else separates caches", known: blocks.Whole, holds: text, counter: letters{true}, sent: -1, extra: `"extra_key":"s",`, want: 0},
		{name: "several salts", known: blocks.Whole, holds: text, counter: letters{true}, sent: -1, extra: `"cache_salt":["s"],`, want: 0},
		{name: "an adapter of the request's own", known: blocks.Whole, holds: text, counter: letters{true}, sent: -1, extra: `"lora_path":"a",`, want: 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(3, func(table *pick.Table) {
				m := table.Default
				m.SetCounter(tt.counter)
				m.Endpoints[2].Prior = pick.Speed{Prefill: 3, Decode: 22} // slower, but not by much
				m.Endpoints[2].Blocks = new(blocks.Set)
				m.WithBlocks = m.Endpoints[2:]
				if tt.shows != nil {
					m.Endpoints[2].Base, m.Endpoints[2].Adapters = "base", new(pick.Adapters)
					tt.shows(m.Endpoints[2].Adapters)
				}
			})
			head, body := post(), bodyOf(`{`+tt.extra+`"model":"m","messages":[{"role":"user","content":"`+text+`"}],"max_tokens":4}`)
			decide := func() *Decision {
				x := f.core.Begin()
				defer f.core.Finish(x)
				x.Step(&head, nil)
				d := *x.Step(&body, nil)[0].Decision
				c := *d.Choice
				c.List = append([]pick.Candidate(nil), c.List...)
				d.Choice = &c
				return &d
			}
			if tt.sent >= 0 {
				for i, e := range f.model.Endpoints {
					if i != tt.sent {
						e.State = pick.NotReady
					}
				}
				decide()
				for _, e := range f.model.Endpoints {
					e.State = pick.Ready
				}
			}
			if tt.known != blocks.Nothing {
				hold(f.model.Endpoints[2].Blocks, tt.known, tt.holds, tt.of, tt.salt)
			}
			first := decide().Choice.List[0]
			if first.Address != f.model.Endpoints[tt.want].Address || first.Cached != tt.cached {
				t.Errorf("to %s with %d tokens cached, want %s with %d", first.Address, first.Cached, f.model.Endpoints[tt.want].Address, tt.cached)
			}
		})
	}
}
