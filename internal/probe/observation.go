package probe

import (
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/scrape"
)

// State is whether an endpoint takes requests, as far as can be seen from outside.
type State uint8

const (
	// Ready endpoints answer.
	Ready State = iota
	// Suspect ones have been silent once or twice.
	Suspect
	// NotReady ones say that they are not well, nobody is there, or they hang.
	NotReady
)

// String returns the state's name.
func (s State) String() string { return [...]string{"ready", "suspect", "not_ready"}[s] }

// Speed is in tokens per second of one request; 0: not known.
type Speed struct{ Prefill, Decode float64 }

// Observation is how one endpoint is at one moment. It is not changed once it is
// published.
type Observation struct {
	// Address is the endpoint's, UID what is behind it.
	Address, UID string
	// State, and Err why it is not Ready; nil: it is.
	State State
	Err   error
	// Epoch is another one after each start of the engine that is noticed: its caches are
	// empty then. It is that of the engine's process, in milliseconds, where its metrics
	// say so, and the same for everybody who probes. 0: no start is known of.
	Epoch uint64
	// Sample is what its metrics said last; nil: nothing yet, or not since a restart, or they
	// don't come now. Asked is when they were asked for, if they have come just now; else zero.
	Sample *scrape.Sample
	Asked  time.Time
	// Done is what its engine has done since the sample before; nil: nothing, or it is not
	// known. Company is how many requests ran at a time meanwhile.
	Done    *scrape.Since
	Company float64
	// KVTokens is how many tokens its KV cache holds, as its metrics said last; 0: not known,
	// or it was seen to hold more.
	KVTokens float64
	// Context is how long one sequence may be, in tokens, as it says itself; 0: it doesn't.
	Context int
	// Version is what its engine calls its version; empty: it doesn't say.
	Version string
	// Slots is how many requests it works on at a time; 0: not known.
	Slots int
	// Speed is the endpoint's own, Usual that of all engines of its model together.
	Speed, Usual Speed
	// Adapters is which LoRA adapters its metrics show; nil: none yet, or not since a
	// restart, or its type shows none.
	Adapters *scrape.Adapters
	// MetricsErr is why its metrics do not come; nil: they do, or it has none.
	MetricsErr error
	// ModelsErr is which of its entry's models it does not list; nil: it lists them, or does
	// not say. It may answer requests for others all the same.
	ModelsErr error
	// FilesErr is why files with its keys and certificates are not taken now, while what they
	// said before is used; nil: they are.
	FilesErr error
	// EventsErr is why what its engine publishes does not come, or is refused; nil: it comes,
	// it publishes nothing, or is not Ready.
	EventsErr error
	// Cache is what its engine publishes of its KV cache, as a log; nil: it publishes
	// nothing, or the Prober keeps Sets.
	Cache *enginepb.Cache
	// Blocks is the same as a Set, which continues to change; nil like Cache.
	Blocks *blocks.Set
}

// Fresh reports whether its metrics have come just now.
func (o *Observation) Fresh() bool { return !o.Asked.IsZero() }
