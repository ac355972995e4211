// Package scrape reads what plain engines show of themselves: the few series of
// their metrics pages that a cost needs, and whether they are alive.
//
// fleet calls it for endpoints of a file. Its one rule: a page is walked over
// once, byte by byte, and nothing is allocated for it: an engine shows hundreds of
// series, of which ten matter.
package scrape

import (
	"bytes"
	"math"
	"strconv"
)

// Sample is what one page says of its engine. A series that is missing is 0, and
// its bit in Has is not set. Several engines behind one page (data parallel ones,
// or several models) are added up, shares are averaged.
type Sample struct {
	// Has tells which series were there.
	Has Field
	// Running and Waiting are requests.
	Running, Waiting float64
	// KV is the share of the cache that is in use, 0 to 1, and KVTokens its size in
	// tokens.
	KV, KVTokens float64

	// The rest counts since the engine's start.

	// Requests that were answered.
	Requests float64
	// Prompt tokens, of which Cached were found in the cache.
	Prompt, Cached float64
	// Output tokens.
	Output float64
	// PrefillSeconds and DecodeSeconds are what these took, added up over requests.
	PrefillSeconds, DecodeSeconds float64
}

// Field is a set of a Sample's fields.
type Field uint16

// The fields of a Sample.
const (
	Running Field = 1 << iota
	Waiting
	KV
	KVTokens
	Requests
	Prompt
	Cached
	Output
	PrefillSeconds
	DecodeSeconds
)

// Type is a kind of engine, by how it names its series.
type Type struct {
	prefix string // of all names
	series []series
	// fresh is whether Prompt leaves out what is cached.
	fresh bool
	// queued is whether PrefillSeconds has the wait in it.
	queued bool
}

// series is a name without the type's prefix, and what it means.
type series struct {
	name  string
	field Field
	// blocks is whether the value is in the labels: a block's size and their number.
	blocks bool
}

// VLLM is vLLM, from 0.6 to 0.32. What finished requests took and had lies in
// histograms, whose sums are written together.
var VLLM = &Type{prefix: "vllm:", series: []series{
	{name: "num_requests_running", field: Running},
	{name: "num_requests_waiting", field: Waiting},
	{name: "kv_cache_usage_perc", field: KV},
	{name: "gpu_cache_usage_perc", field: KV}, // before 0.10
	{name: "cache_config_info", field: KVTokens, blocks: true},
	{name: "request_prompt_tokens_sum", field: Prompt},
	{name: "request_prompt_tokens_count", field: Requests},
	{name: "prefix_cache_hits_total", field: Cached},
	{name: "request_generation_tokens_sum", field: Output},
	{name: "request_prefill_time_seconds_sum", field: PrefillSeconds},
	{name: "request_decode_time_seconds_sum", field: DecodeSeconds},
}}

// SGLang is SGLang, run with --enable-metrics. It says when the first token came,
// wait included, and what passes between tokens.
var SGLang = &Type{prefix: "sglang:", queued: true, series: []series{
	{name: "num_running_reqs", field: Running},
	{name: "num_queue_reqs", field: Waiting},
	{name: "token_usage", field: KV},
	{name: "max_total_num_tokens", field: KVTokens},
	{name: "num_requests_total", field: Requests},
	{name: "prompt_tokens_total", field: Prompt},
	{name: "cached_tokens_total", field: Cached},
	{name: "inter_token_latency_seconds_count", field: Output},
	{name: "time_to_first_token_seconds_sum", field: PrefillSeconds},
	{name: "inter_token_latency_seconds_sum", field: DecodeSeconds},
}}

// LlamaCpp is llama.cpp's server, run with --metrics. It counts no requests and
// doesn't say how full its cache is.
var LlamaCpp = &Type{prefix: "llamacpp:", fresh: true, series: []series{
	{name: "requests_processing", field: Running},
	{name: "requests_deferred", field: Waiting},
	{name: "prompt_tokens_total", field: Prompt},
	{name: "prompt_tokens_cached_total", field: Cached},
	{name: "tokens_predicted_total", field: Output},
	{name: "prompt_seconds_total", field: PrefillSeconds},
	{name: "tokens_predicted_seconds_total", field: DecodeSeconds},
}}

// Scan reads a page in Prometheus' text form. What is not understood is passed
// over.
func (t *Type) Scan(page []byte) Sample {
	var s Sample
	shares := 0.0
	prefix := t.prefix
	for len(page) > 0 {
		line := page
		if n := bytes.IndexByte(page, '\n'); n >= 0 {
			line, page = page[:n], page[n+1:]
		} else {
			page = nil
		}
		if len(line) <= len(prefix) || line[0] != prefix[0] || string(line[:len(prefix)]) != prefix {
			continue
		}
		line = line[len(prefix):]
		w := t.find(line)
		if w == nil {
			continue
		}
		v, ok := value(line[len(w.name):], w.blocks)
		if !ok {
			continue
		}
		s.Has |= w.field
		*s.at(w.field) += v
		if w.field == KV {
			shares++
		}
	}
	if shares > 0 {
		s.KV = min(1, s.KV/shares)
	}
	if t.fresh {
		s.Prompt += s.Cached
	}
	return s
}

// find returns the series of a line without its prefix, or nil. Where a name would
// end tells most of them off at once.
func (t *Type) find(line []byte) *series {
	for i := range t.series {
		w := &t.series[i]
		n := len(w.name)
		if len(line) > n && ends(line[n]) && string(line[:n]) == w.name {
			return w
		}
	}
	return nil
}

// ends tells whether c ends a name.
func ends(c byte) bool { return c == '{' || c == ' ' || c == '\t' }

func (s *Sample) at(f Field) *float64 {
	switch f {
	case Running:
		return &s.Running
	case Waiting:
		return &s.Waiting
	case KV:
		return &s.KV
	case KVTokens:
		return &s.KVTokens
	case Requests:
		return &s.Requests
	case Prompt:
		return &s.Prompt
	case Cached:
		return &s.Cached
	case Output:
		return &s.Output
	case PrefillSeconds:
		return &s.PrefillSeconds
	default:
		return &s.DecodeSeconds
	}
}

// value reads what follows a name: labels or none, and a number that makes sense.
// blocks: what two of the labels say together.
func value(rest []byte, blocks bool) (float64, bool) {
	labels := rest[:0]
	if len(rest) > 0 && rest[0] == '{' {
		end := labelsEnd(rest)
		if end < 0 {
			return 0, false
		}
		labels, rest = rest[:end], rest[end:]
	}
	if blocks {
		size, ok := label(labels, `block_size="`)
		n, ok2 := label(labels, `num_gpu_blocks="`)
		return size * n, ok && ok2 && size*n <= most
	}
	return number(rest)
}

// labelsEnd returns where the labels that begin rest are over; below 0: nowhere.
// A brace inside of quotes doesn't end them.
func labelsEnd(rest []byte) int {
	quoted := false
	for i := 1; i < len(rest); i++ {
		switch c := rest[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case c == '}' && !quoted:
			return i + 1
		}
	}
	return -1
}

// label returns the number in a label, given as its name and what stands before the
// number.
func label(labels []byte, name string) (float64, bool) {
	text, ok := labelText(labels, name)
	if !ok {
		return 0, false
	}
	return number(text)
}

// labelText returns what is in a label. A longer name may end in the same way.
func labelText(labels []byte, name string) ([]byte, bool) {
	for {
		i := bytes.Index(labels, []byte(name))
		if i < 1 {
			return nil, false
		}
		before, rest := labels[i-1], labels[i+len(name):]
		if before != '{' && before != ',' {
			labels = rest
			continue
		}
		n := bytes.IndexByte(rest, '"')
		if n < 0 {
			return nil, false
		}
		return rest[:n], true
	}
}

// most is the largest number that is believed.
const most = 1e15

// number reads the first word of b, a number from 0 to most.
func number(b []byte) (float64, bool) {
	b = bytes.TrimLeft(b, " \t")
	n := 0
	for n < len(b) && b[n] != ' ' && b[n] != '\t' && b[n] != '\r' {
		n++
	}
	if n == 0 || n > 40 {
		return 0, false
	}
	v, err := strconv.ParseFloat(string(b[:n]), 64)
	return v, err == nil && v >= 0 && v <= most && !math.IsNaN(v)
}

// Since is what happened between two samples of one engine.
type Since struct {
	// Requests, Prompt, Cached, Output, PrefillMs and DecodeMs are what was added;
	// what the engine doesn't say is 0.
	Requests, Prompt, Cached, Output float64
	PrefillMs, DecodeMs              float64
}

// Since returns what happened after the sample old. Restarted is whether a counter
// went back: what was cached then is gone.
func (t *Type) Since(s, old *Sample) (d Since, restarted bool) {
	for f := Requests; f <= DecodeSeconds; f <<= 1 {
		if old.Has&f != 0 && *s.at(f) < *old.at(f) {
			return Since{}, true
		}
	}
	d = Since{
		Requests: s.Requests - old.Requests,
		Prompt:   s.Prompt - old.Prompt, Cached: s.Cached - old.Cached, Output: s.Output - old.Output,
		PrefillMs: 1000 * (s.PrefillSeconds - old.PrefillSeconds), DecodeMs: 1000 * (s.DecodeSeconds - old.DecodeSeconds),
	}
	if t.queued && (s.Waiting > 0 || old.Waiting > 0) {
		d.PrefillMs = 0
	}
	return d, false
}
