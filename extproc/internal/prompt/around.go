package prompt

import (
	"slices"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/internal/apis"
)

// changed reports whether fields of a request change its prompt of n tokens in a way that is
// not known: some engines follow them, others don't know them.
func (t *tokenizer) changed(r *openai.Request, n int) bool {
	items := r.API.Row().Items
	if items || !t.model.FollowsAround() {
		before, after := t.model.Around()
		cut := r.Truncates && r.Most < n && (r.Most > 0 || !items)
		return cut || r.Special && len(before)+len(after) > 0
	}
	// How much room the engine has is not known here; vLLM joins results of tools in a way of its own.
	return r.Truncates && r.Most == 0 || r.API.Row().Dialect == apis.Anthropic && slices.ContainsFunc(r.Messages, blocks)
}

func blocks(m openai.Message) bool { return m.Blocks }

// around returns how many of a prompt's n tokens there are with those that the request wants
// put around it, and without those that it wants cut. vLLM puts its own around texts, which
// are counted, and only where it is asked to around conversations.
func (t *tokenizer) around(r *openai.Request, n int, text bool) int {
	if !t.model.FollowsAround() {
		return n
	}
	if before, after := t.model.Around(); r.Special && text {
		n -= len(before) + len(after)
	} else if r.Special && r.API.Row().Counted == apis.Conversation {
		n += len(before) + len(after)
	}
	if r.Most > 0 {
		n = min(n, r.Most)
	}
	return n
}

// putAround is around for the tokens from start on. Which of them are cut is known where the
// request does not say it: the first ones, but for those that are put around.
func (t *tokenizer) putAround(ids []uint32, start int, r *openai.Request) ([]uint32, bool) {
	if !t.model.FollowsAround() || !r.Special && r.Most == 0 {
		return ids, true
	}
	before, after := t.model.Around()
	body := slices.Clone(ids[start:])
	switch {
	case r.API.Row().Counted == apis.Conversation:
		if !r.Special {
			before, after = nil, nil
		}
	case len(r.Prompts) == 1 && r.Prompts[0].Text != nil:
		body = body[len(before) : len(body)-len(after)]
		if r.Special {
			before, after = nil, nil
		}
	default:
		before, after = nil, nil // of a list of tokens
	}
	if room := r.Most - len(before) - len(after); r.Most > 0 && len(body) > room {
		switch {
		case r.Side != 0 && t.model.FollowsSides(): // then those that are put around are cut, too
			all := slices.Concat(before, body, after)
			if r.Side == 'l' {
				return append(ids[:start], all[len(all)-r.Most:]...), true
			}
			return append(ids[:start], all[:r.Most]...), true
		case r.Side != 0, room < 0:
			return ids[:start], false
		}
		body = body[len(body)-room:]
	}
	return append(append(append(ids[:start], before...), body...), after...), true
}
