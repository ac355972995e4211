package api

import "millrace.dev/millrace/internal/wire"

// logCache logs that the backend works on the prompt from now on.
func (c *call) logCache() {
	if c.published() || c.way.Other {
		return
	}
	if links := c.cfg.Cache.Links(c.r.Header.Get(wire.PrefixHeader)); len(links) > 0 {
		c.use = c.cfg.Cache.Begin(links)
	}
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
