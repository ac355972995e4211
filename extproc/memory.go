package main

import (
	"millrace.dev/millrace/extproc/internal/stream"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/kvevents"
	"millrace.dev/millrace/internal/program"
)

// What extproc may take of memory, in bytes: manifests/memory.md says what of it follows from
// which setting.
const (
	own       = 64 << 20 // code, connections, metrics, queues, endpoints
	tokenizer = 32 << 20 // of a model, with what it remembers
	tenant    = 256
	aStream   = 24 << 10 // with its goroutines
	// copies is how often a body is held, at most: as it came and as it is forwarded, in
	// buffers that are larger than it.
	copies = 2
	// decoded is how many times as large as itself what is made of a body is meanwhile.
	decoded = 3
	// fleetState is what xds says of everybody, with a response on its way.
	fleetState = 144 << 20
	// blockShare is what of the memory that is given the blocks of engines' caches have,
	// blockMemory what they have otherwise.
	blockShare  = 1.0 / 6
	blockMemory = 256 << 20
)

// bound makes what is not bounded by configuration fit the memory that is given.
func bound(m *program.Memory) { blocks.SetMemory(m.Share(blockShare, blockMemory)) }

// parts returns what extproc may take of memory.
func (a *answering) parts() []program.Part {
	var bodies, body, prefixes, tenants, models int64
	for _, p := range a.pickers {
		t := p.Table()
		if t == nil {
			continue
		}
		bodies, body = max(bodies, t.Policy.MaxInFlight), max(body, t.Policy.MaxBody)
		prefixes += t.Policy.Prefixes.Bytes()
		if f := t.Policy.Flow; f != nil {
			tenants += tenant * int64(f.Tenants)
		}
		models = max(models, int64(t.Tokenizers()))
	}
	parts := []program.Part{
		{Name: "program", Most: own},
		{Name: "tokenizers", Most: tokenizer * max(1, models)},
		{Name: "bodies", Most: copies * bodies, Used: func() int64 { return copies * a.core.Bodies() }},
		{Name: "decoding", Most: decoded * stream.Decoders * body},
		{Name: "streams", Most: stream.MostStreams * aStream, Used: func() int64 { return aStream * a.core.Streams() }},
		{Name: "prefixes", Most: prefixes},
		{Name: "tenants", Most: tenants},
		blockPart(),
	}
	if a.xds {
		return append(parts, program.Part{Name: "fleet", Most: fleetState})
	}
	return append(parts, program.Part{Name: "events", Most: kvevents.Memory})
}

// blockPart is the blocks of engines' caches.
func blockPart() program.Part {
	_, most, _ := blocks.Memory()
	return program.Part{Name: "blocks", Most: most, Used: func() int64 {
		taken, _, _ := blocks.Memory()
		return taken
	}}
}
