package kvevents

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/tinylib/msgp/msgp"

	"millrace.dev/millrace/internal/blocks"
)

// Kind is what an event says.
type Kind uint8

const (
	// Other is nothing that matters here.
	Other Kind = iota
	// Stored says that blocks were put into the cache.
	Stored
	// Removed says that blocks were evicted.
	Removed
	// Cleared says that the cache is empty.
	Cleared
	// Passed says that blocks were put into the cache of which nobody knows what they stand
	// for: those of a group of a kind that is not attention to all tokens, or that make no
	// sense.
	Passed
)

// Event is one change of an engine's cache.
type Event struct {
	Kind Kind
	// Group is that of a hybrid model's caches: each has blocks of its own, of the same names.
	Group int
	// Why is why it is Passed.
	Why error
	// Stored is what it says, for Stored; for Removed it has Hashes only.
	blocks.Stored
}

// Batch is what an engine says in one message.
type Batch struct {
	// Rank is the data-parallel rank that says it.
	Rank int
	// Events are in the order in which they happened.
	Events []Event

	tokens []uint32 // of all events
	hashes []uint64 // of all events, and what their blocks depend on
}

var (
	errShape = errors.New("not a batch of events")
	errTail  = errors.New("something behind the batch")
)

// Bounds of what is believed.
const (
	maxRank   = 1 << 16
	maxSize   = 1 << 16 // tokens in a block
	maxEvents = 1 << 16 // in a batch
	// maxWords is how many tokens a batch may have, and how many hashes: more than an
	// engine works on in a step. A byte of a message may stand for one.
	maxWords = 1 << 20
)

// errWords is returned for a batch with too many of them.
var errWords = fmt.Errorf("more than %d tokens or hashes in a batch", maxWords)

// Decode reads the payload of a message into b, whose memory it uses again. It knows
// both forms of vLLM: events as maps, and as arrays (before 0.20).
func (b *Batch) Decode(payload []byte) error {
	b.Rank, b.Events, b.tokens, b.hashes = 0, b.Events[:0], b.tokens[:0], b.hashes[:0]
	n, rest, err := msgp.ReadArrayHeaderBytes(payload)
	if err != nil {
		return fmt.Errorf("%w: %w", errShape, err)
	}
	if n < 2 {
		return errShape
	}
	if rest, err = msgp.Skip(rest); err != nil { // when it was
		return err
	}
	if rest, err = b.events(rest); err != nil {
		return err
	}
	for i := uint32(2); i < n; i++ {
		if i == 2 && !msgp.IsNil(rest) {
			if b.Rank, rest, err = small(rest, maxRank); err != nil {
				return fmt.Errorf("rank: %w", err)
			}
			continue
		}
		if rest, err = msgp.Skip(rest); err != nil {
			return err
		}
	}
	if len(rest) > 0 {
		return errTail
	}
	for i := range b.Events {
		b.Events[i].Rank = b.Rank
	}
	return nil
}

func (b *Batch) events(rest []byte) ([]byte, error) {
	n, rest, err := msgp.ReadArrayHeaderBytes(rest)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	if n > maxEvents {
		return nil, fmt.Errorf("events: %d; at most %d", n, maxEvents)
	}
	for i := range n {
		b.Events = append(b.Events, Event{})
		if rest, err = b.event(&b.Events[i], rest); err != nil {
			return nil, fmt.Errorf("event %d: %w", i, err)
		}
	}
	return rest, nil
}

// fields is the order of an event's fields where it is an array, after its type.
var fields = map[Kind][]string{
	Stored: {
		"block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name", "extra_keys", "group_idx",
		"kv_cache_spec_kind", "kv_cache_spec_sliding_window", "locality", "ownership", "session_id",
	},
	Removed: {"block_hashes", "medium", "group_idx", "locality", "ownership"},
}

// placed are the kinds of groups each of whose blocks stands for all tokens before its end. Blocks of
// others hold a state or a window, and kinds to come may hold anything.
var placed = map[string]bool{"full_attention": true, "mla_attention": true, "sink_full_attention": true}

// Where blocks are that prompts are looked up in.
var gpu, local = []byte("GPU"), []byte("LOCAL")

var kinds = map[string]Kind{"BlockStored": Stored, "BlockRemoved": Removed, "AllBlocksCleared": Cleared}

// event reads one event. What it says of caches other than the one that prompts are
// looked up in becomes Other, blocks that can't be placed Passed. An event of a type that
// we don't know is not read; a removal that can't be read is an error, as it leaves us
// with what is there no more.
func (b *Batch) event(e *Event, all []byte) ([]byte, error) {
	rest, err := b.read(e, all)
	if err == nil || errors.Is(err, errWords) {
		return rest, err
	}
	kind, ok := kindOf(all)
	rest, cut := msgp.Skip(all)
	switch {
	case !ok || cut != nil:
		return nil, err
	case kind == Stored:
		*e = Event{Kind: Passed, Why: err}
		return rest, nil
	case kind == Other:
		*e = Event{}
		return rest, nil
	}
	return nil, err
}

func (b *Batch) read(e *Event, rest []byte) ([]byte, error) {
	r := reader{batch: b, event: e}
	var err error
	if msgp.NextType(rest) == msgp.ArrayType {
		rest, err = r.array(rest)
	} else {
		rest, err = r.object(rest)
	}
	if err == nil {
		err = r.finish()
	}
	return rest, err
}

// kindOf returns what an event says, and whether it is one.
func kindOf(rest []byte) (Kind, bool) {
	if n, rest, err := msgp.ReadArrayHeaderBytes(rest); err == nil {
		name, _, err := msgp.ReadStringZC(rest)
		return kinds[string(name)], n > 0 && err == nil
	}
	n, rest, err := msgp.ReadMapHeaderBytes(rest)
	if err != nil {
		return Other, false
	}
	for range n {
		var key, name []byte
		if key, rest, err = msgp.ReadStringZC(rest); err != nil {
			return Other, false
		}
		if string(key) == "type" {
			name, _, err = msgp.ReadStringZC(rest)
			return kinds[string(name)], err == nil
		}
		if rest, err = msgp.Skip(rest); err != nil {
			return Other, false
		}
	}
	return Other, false
}

// reader reads one event.
type reader struct {
	batch   *Batch
	event   *Event
	other   bool   // whether it is of another cache
	spec    []byte // the kind of its group; nil: not named
	adapter uint64 // the number of a LoRA adapter, from engines that say no name
	extra   []byte // extra_keys, which are read when all else is known
}

func (r *reader) array(rest []byte) ([]byte, error) {
	n, rest, err := msgp.ReadArrayHeaderBytes(rest)
	if err != nil || n == 0 {
		return nil, errors.Join(errShape, err)
	}
	name, rest, err := msgp.ReadStringZC(rest)
	if err != nil {
		return nil, err
	}
	r.event.Kind = kinds[string(name)]
	names := fields[r.event.Kind]
	for i := range int(n) - 1 {
		field := ""
		if i < len(names) {
			field = names[i]
		}
		if rest, err = r.field(field, rest); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

// object reads an event that is a map, in whatever order.
func (r *reader) object(rest []byte) ([]byte, error) {
	n, rest, err := msgp.ReadMapHeaderBytes(rest)
	if err != nil {
		return nil, err
	}
	for range n {
		var key []byte
		if key, rest, err = msgp.ReadStringZC(rest); err != nil {
			return nil, err
		}
		if string(key) == "type" {
			var name []byte
			name, rest, err = msgp.ReadStringZC(rest)
			r.event.Kind = kinds[string(name)]
		} else {
			rest, err = r.field(string(key), rest)
		}
		if err != nil {
			return nil, err
		}
	}
	return rest, nil
}

// field reads one field.
func (r *reader) field(name string, rest []byte) (_ []byte, err error) {
	e := r.event
	if msgp.IsNil(rest) {
		if name == "parent_block_hash" {
			e.Root = true
		}
		return msgp.ReadNilBytes(rest)
	}
	switch name {
	case "block_hashes":
		e.Hashes, rest, err = r.batch.hashList(rest)
	case "parent_block_hash":
		e.Parent, rest, err = hash(rest)
	case "token_ids":
		e.Tokens, rest, err = r.batch.tokenList(rest)
	case "block_size":
		e.Size, rest, err = small(rest, maxSize)
	case "lora_id":
		r.adapter, rest, err = hash(rest)
	case "lora_name":
		e.Adapter, rest, err = msgp.ReadStringBytes(rest)
	case "medium", "locality":
		var where []byte
		where, rest, err = msgp.ReadStringZC(rest)
		r.other = r.other || !bytes.EqualFold(where, gpu) && !bytes.EqualFold(where, local)
	case "group_idx":
		e.Group, rest, err = small(rest, maxRank)
	case "kv_cache_spec_kind":
		r.spec, rest, err = msgp.ReadStringZC(rest)
	case "extra_keys":
		from := rest
		if rest, err = msgp.Skip(rest); err == nil {
			r.extra = from[:len(from)-len(rest)]
		}
	default:
		return msgp.Skip(rest)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return rest, nil
}

// maxSpec bounds the name of a group's kind, in bytes.
const maxSpec = 64

// otherKind is the kind of a group whose blocks can't be placed.
type otherKind []byte

func (k otherKind) Error() string { return fmt.Sprintf("blocks of a group of kind %q", []byte(k)) }

// errGroup is returned for blocks of which nobody knows what they hold: the first group is the
// one with attention to all tokens, in releases that name no kinds.
var errGroup = errors.New("blocks of another group than the first, whose kind is not named")

// finish checks the event as a whole.
func (r *reader) finish() error {
	e := r.event
	if r.other && e.Kind != Cleared {
		e.Kind = Other
	}
	if e.Kind != Stored {
		return nil
	}
	switch {
	case r.spec != nil && !placed[string(r.spec)]:
		*e = Event{Kind: Passed, Why: otherKind(bytes.Clone(r.spec[:min(len(r.spec), maxSpec)]))}
		return nil
	case r.spec == nil && e.Group > 0:
		*e = Event{Kind: Passed, Why: errGroup}
		return nil
	}
	if e.Size == 0 || len(e.Tokens) != e.Size*len(e.Hashes) {
		return fmt.Errorf("%d blocks of %d tokens, and %d tokens", len(e.Hashes), e.Size, len(e.Tokens))
	}
	if e.Adapter == "" && r.adapter > 0 {
		e.Adapter = fmt.Sprintf("#%d", r.adapter)
	}
	var err error
	if r.extra != nil {
		e.Extra, err = r.batch.extraList(r.extra, e)
	}
	return err
}

// extraList reads what blocks depend on beside their tokens. The name of the adapter
// is in there, too, which is known already.
func (b *Batch) extraList(rest []byte, e *Event) ([]uint64, error) {
	n, rest, err := msgp.ReadArrayHeaderBytes(rest)
	if err != nil || int(n) != len(e.Hashes) {
		return nil, fmt.Errorf("extra_keys: not one for each of %d blocks", len(e.Hashes))
	}
	from := len(b.hashes)
	if from+int(n) > maxWords {
		return nil, errWords
	}
	for range n {
		var h uint64
		if h, rest, err = extraOf(rest, e.Adapter); err != nil {
			return nil, fmt.Errorf("extra_keys: %w", err)
		}
		b.hashes = append(b.hashes, h)
	}
	return b.hashes[from:len(b.hashes):len(b.hashes)], nil
}

// extraOf is a hash of one block's extra keys; 0: there are none. Of keys that are texts,
// such as a request's salt, the text counts.
func extraOf(rest []byte, adapter string) (h uint64, _ []byte, err error) {
	if msgp.IsNil(rest) {
		rest, err = msgp.ReadNilBytes(rest)
		return 0, rest, err
	}
	n, rest, err := msgp.ReadArrayHeaderBytes(rest)
	if err != nil {
		return 0, nil, err
	}
	named := adapter == ""
	for range n {
		from := rest
		if rest, err = msgp.Skip(rest); err != nil {
			return 0, nil, err
		}
		key := from[:len(from)-len(rest)]
		if text, _, err := msgp.ReadStringZC(key); err == nil {
			if key = text; !named && string(text) == adapter {
				named = true // a salt may be the same text
				continue
			}
		}
		h = blocks.Extra(h, key)
	}
	return h, rest, nil
}

func (b *Batch) hashList(rest []byte) ([]uint64, []byte, error) {
	n, rest, err := msgp.ReadArrayHeaderBytes(rest)
	if err != nil {
		return nil, nil, err
	}
	from := len(b.hashes)
	if from+int(n) > maxWords {
		return nil, nil, errWords
	}
	for range n {
		var h uint64
		if h, rest, err = hash(rest); err != nil {
			return nil, nil, err
		}
		b.hashes = append(b.hashes, h)
	}
	return b.hashes[from:len(b.hashes):len(b.hashes)], rest, nil
}

func (b *Batch) tokenList(rest []byte) ([]uint32, []byte, error) {
	n, rest, err := msgp.ReadArrayHeaderBytes(rest)
	if err != nil {
		return nil, nil, err
	}
	from := len(b.tokens)
	if from+int(n) > maxWords {
		return nil, nil, errWords
	}
	for range n {
		var id uint32
		if id, rest, err = msgp.ReadUint32Bytes(rest); err != nil {
			return nil, nil, err
		}
		b.tokens = append(b.tokens, id)
	}
	return b.tokens[from:len(b.tokens):len(b.tokens)], rest, nil
}

// hash reads the engine's name for a block: a number, or bytes of a hash, of which
// the last eight say as much.
func hash(rest []byte) (uint64, []byte, error) {
	switch msgp.NextType(rest) {
	case msgp.BinType:
		b, rest, err := msgp.ReadBytesZC(rest)
		if err != nil {
			return 0, nil, err
		}
		if len(b) < 8 {
			return xxhash.Sum64(b), rest, nil
		}
		return binary.BigEndian.Uint64(b[len(b)-8:]), rest, nil
	case msgp.IntType:
		n, rest, err := msgp.ReadInt64Bytes(rest)
		return uint64(n), rest, err
	default:
		return msgp.ReadUint64Bytes(rest)
	}
}

// small reads a whole number from 0 to most.
func small(rest []byte, most int) (int, []byte, error) {
	n, rest, err := msgp.ReadInt64Bytes(rest)
	if err == nil && (n < 0 || n > int64(most)) {
		err = fmt.Errorf("%d; must be 0 to %d", n, most)
	}
	return int(n), rest, err
}

// What memory is kept for the next batch at most.
const (
	keptTokens = 1 << 18
	keptEvents = 1 << 10
)

// trim lets go of what a large batch took.
func (b *Batch) trim() {
	if cap(b.tokens) > keptTokens || cap(b.hashes) > keptTokens || cap(b.Events) > keptEvents {
		*b = Batch{}
	}
}
