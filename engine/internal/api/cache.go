package api

import (
	"context"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/cachelog"
	"millrace.dev/millrace/internal/wire"
)

// Snapshots are the saved states of conversations.
type Snapshots interface {
	// Restore puts what was saved of a prompt into the backend where that is faster than to
	// compute it. free is to be called once the backend has worked on the prompt.
	Restore(ctx context.Context, a *enginepb.Assignment, chain []cachelog.Link) (free func())
	// Save has the state of a prompt and its answer saved, of so many tokens in all.
	Save(a *enginepb.Assignment, chain []cachelog.Link, tokens uint64)
}

// logCache logs that the backend works on the prompt from now on, once what was saved of it is
// restored. settle is to be called in the end.
func (c *call) logCache(ctx context.Context) (settle func()) {
	free := func() {}
	if c.published() || c.way.Other {
		return free
	}
	if c.links = c.cfg.Cache.Links(c.r.Header.Get(wire.PrefixHeader)); len(c.links) > 0 {
		free = c.restoreCache(ctx)
		c.use = c.cfg.Cache.Begin(c.links)
	}
	return func() {
		free()
		c.settleCache()
	}
}

// restoreCache restores what was saved of the prompt.
func (c *call) restoreCache(ctx context.Context) (free func()) {
	if c.cfg.Snapshots == nil || !c.op.Generates || len(c.links) == 0 {
		return func() {}
	}
	return c.cfg.Snapshots.Restore(ctx, c.serving.Assignment, c.links)
}

// saveCache has the state saved that an answer has left. Of several choices, and of a prompt in
// parts, each has left another.
func (c *call) saveCache() {
	if c.cfg.Snapshots == nil || !c.op.Generates || c.way.Parts != nil || c.way.Choices > 1 || c.req.answers > 1 {
		return
	}
	c.cfg.Snapshots.Save(c.serving.Assignment, c.links, c.usage.Prompt+c.usage.Completion)
}

// answeredCache logs an answer that is whole.
func (c *call) answeredCache() {
	c.cached = true
	switch {
	case c.usage.Prompt == 0, c.published(): // the backend has not said, or does so itself
	case c.use == nil:
		c.cfg.Cache.Other(c.usage.Prompt + c.usage.Completion)
	default:
		c.cfg.Cache.Finish(c.use, c.usage.Prompt, c.usage.Cached, c.usage.Completion)
		c.saveCache()
	}
}

// settleCache takes back what was logged of a prompt that was not worked on.
func (c *call) settleCache() {
	if c.use != nil && !c.cached {
		c.cfg.Cache.Fail(c.use)
	}
}

// published reports whether the backend itself publishes what it has cached.
func (c *call) published() bool { return c.backend.Blocks(c.serving.Assignment) != nil }
