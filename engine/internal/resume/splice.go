package resume

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
)

// Resume has the stream be continued by what is asked with r. It is to be called when a backend was
// lost, before the first Splice.
func (s *Stream) Resume(r *Request) {
	s.fold()
	var options struct {
		Usage bool `json:"include_usage"`
	}
	_ = json.Unmarshal(r.fields["stream_options"], &options) // not said
	s.usage, s.resumed = options.Usage, true
	s.blocksAt, s.moved, s.blank = s.blocks, false, nil
}

// Splice takes whole events of the rest of a choice, and returns what is delivered of them,
// as events of the first stream.
func (s *Stream) Splice(index int, c Counts, events []byte) (out []byte) {
	for data := range dataOf(events) {
		if s.form == Message {
			out = s.spliceMessage(out, c, data)
		} else {
			out = s.spliceChunk(out, index, c, data)
		}
	}
	return out
}

// spliceChunk adds a chunk of the rest: its end and its account are made anew.
func (s *Stream) spliceChunk(out []byte, index int, c Counts, data []byte) []byte {
	var e fields
	var choices []fields
	if string(data) == "[DONE]" || json.Unmarshal(data, &e) != nil {
		return out
	}
	if json.Unmarshal(e["choices"], &choices) != nil {
		return out
	}
	var u *account
	_ = json.Unmarshal(e["usage"], &u) // null: none
	delete(e, "usage")
	delete(e, "timings") // those of the rest alone
	kept := choices[:0]
	for _, choice := range choices {
		if choice["index"] = fmt.Append(nil, index); s.delivers(index, choice) {
			kept = append(kept, choice)
		}
	}
	if len(kept) > 0 {
		e["choices"] = encode(kept)
		out = s.emit(out, e)
	}
	if u != nil {
		out = s.Account(out, index, Counts{c.Prompt, c.Delivered + u.Completion})
	}
	return out
}

// delivers reports whether a choice of a chunk says more than who speaks, which is said once.
func (s *Stream) delivers(index int, choice fields) bool {
	var d fields
	if json.Unmarshal(choice["delta"], &d) != nil || !s.choices[index].begun {
		return true
	}
	if _, ok := d["role"]; !ok {
		return true
	}
	delete(d, "role")
	if v := string(d["content"]); v == "null" || v == `""` {
		delete(d, "content")
	}
	choice["delta"] = encode(d)
	reason := string(choice["finish_reason"])
	return len(d) > 0 || reason != "" && reason != "null"
}

// emit adds a chunk, and takes it in.
func (s *Stream) emit(out []byte, e fields) []byte {
	data := s.named(e)
	s.chunk(data)
	return append(append(append(out, "data: "...), data...), "\n\n"...)
}

// named writes a chunk with what all of the answer's have the same.
func (s *Stream) named(e fields) []byte {
	maps.Copy(e, s.head)
	return encode(e)
}

// Account ends a choice of which c.Delivered tokens were delivered in all.
func (s *Stream) Account(out []byte, index int, c Counts) []byte {
	choice := s.choices[index]
	choice.completion, choice.counted, s.prompt = c.Delivered, true, max(s.prompt, c.Prompt)
	if !s.usage || s.form == Message {
		return out
	}
	data := s.named(fields{"choices": json.RawMessage("[]"), "usage": encode(map[string]any{
		"prompt_tokens": c.Prompt, "completion_tokens": c.Delivered, "total_tokens": c.Prompt + c.Delivered,
		"prompt_tokens_details": map[string]int{"cached_tokens": 0},
	})})
	return append(append(append(out, "data: "...), data...), "\n\n"...)
}

// Uncounted returns a choice that has finished and whose account was lost; false: there is none.
func (s *Stream) Uncounted() (Part, bool) {
	s.fold()
	for i, c := range s.choices {
		if c.finished && !c.counted {
			return Part{Index: i, Reasoning: c.reasoning.String(), Content: c.content.String()}, true
		}
	}
	return Part{}, false
}

// Limit ends a choice whose limit was reached when the backend was lost.
func (s *Stream) Limit(index int, c Counts) (out []byte) {
	switch s.form {
	case Message:
		out = s.stop(out)
		out = s.event(out, "message_delta", map[string]any{"delta": map[string]any{"stop_reason": "max_tokens", "stop_sequence": nil}, "usage": map[string]uint64{"output_tokens": c.Delivered}})
		return s.Account(out, index, c)
	case Text:
		out = s.emit(out, fields{"choices": encode([]any{map[string]any{"index": index, "text": "", "logprobs": nil, "finish_reason": "length"}})})
	default:
		out = s.emit(out, fields{"choices": encode([]any{map[string]any{"index": index, "delta": map[string]any{}, "finish_reason": "length"}})})
	}
	return s.Account(out, index, c)
}

// End is the last event, which was lost or left out.
func (s *Stream) End() []byte {
	switch {
	case s.Done():
		return nil
	case s.form == Message:
		return s.event(nil, "message_stop", map[string]any{})
	}
	s.done = true
	return []byte("data: [DONE]\n\n")
}

// spliceMessage adds an event of the rest of a message: the block that was open is continued.
func (s *Stream) spliceMessage(out []byte, c Counts, data []byte) []byte {
	var e event
	var all fields
	if json.Unmarshal(data, &e) != nil || json.Unmarshal(data, &all) != nil {
		return out
	}
	switch e.Type {
	case "message_start":
		if s.choices[0].begun {
			return out
		}
	case "content_block_start":
		first := !s.moved
		s.moved = true
		if first && s.open == e.Block.Type && e.Block.Type != "tool_use" {
			s.blocksAt = s.blocks - 1
			return out
		}
		out = s.stop(out)
		if first {
			s.blocksAt = s.blocks
		}
		all["index"] = fmt.Append(nil, s.blocksAt+e.Index)
		if first && s.blocks > 0 {
			s.blank = encode(all) // it is left out if it stays empty
			return out
		}
	case "content_block_delta", "content_block_stop":
		if s.blank != nil && e.Type == "content_block_stop" {
			s.blank, s.blocksAt = nil, s.blocksAt-1
			return out
		}
		if s.blank != nil {
			out = s.append(out, "content_block_start", s.blank)
			s.blank = nil
		}
		all["index"] = fmt.Append(nil, s.blocksAt+e.Index)
	case "message_delta":
		out = s.stop(out)
		var u fields
		if e.Usage != nil && json.Unmarshal(all["usage"], &u) == nil {
			u["output_tokens"] = fmt.Append(nil, c.Delivered+e.Usage.Output)
			all["usage"] = encode(u)
			s.Account(nil, 0, Counts{c.Prompt, c.Delivered + e.Usage.Output})
		}
	case "ping", "message_stop":
	default:
		return out
	}
	return s.append(out, e.Type, encode(all))
}

// stop closes the block that is open.
func (s *Stream) stop(out []byte) []byte {
	if s.open == "" {
		return out
	}
	return s.event(out, "content_block_stop", map[string]any{"index": s.blocks - 1})
}

// event adds an event of a message, and takes it in.
func (s *Stream) event(out []byte, kind string, v map[string]any) []byte {
	v["type"] = kind
	return s.append(out, kind, encode(v))
}

func (s *Stream) append(out []byte, kind string, data []byte) []byte {
	s.message(data)
	return append(append(append(append(append(out, "event: "...), kind...), "\ndata: "...), bytes.TrimSpace(data)...), "\n\n"...)
}
