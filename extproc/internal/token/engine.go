package token

import (
	"slices"
	"strconv"
	"strings"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// Engine is who renders a model's conversations. Engines prepare messages before the
// template sees them, each kind in its own way, and some kinds in another way in each version.
type Engine struct {
	// Kind is what it is, as configuration names types: "vllm", "sglang", "llamacpp"; of
	// others nothing is known.
	Kind string
	// Version is what it calls its version; empty: not known.
	Version string
	// Args are the JSON of the arguments that it gives its template by default: the second
	// ones win; empty: none.
	Args [2]string
}

// habits is how engines of a kind and version prepare conversations. The zero value is of
// those that are not known: where kinds differ the count is an estimate.
//
// What vLLM does was read in the sources of 0.10.2, 0.11.0 to 0.11.2, 0.12, 0.13, 0.14.1, 0.16,
// 0.17.1, 0.18.1, 0.19.1, 0.20.0 to 0.23.0, 0.25.1, 0.27.1 and 0.29 to 0.32
// (vllm/entrypoints/chat_utils.py, later vllm/renderers), what SGLang does in those of 0.5.2,
// 0.5.4, 0.5.6, 0.5.8, 0.5.10, 0.5.13, 0.5.16, 0.5.20 and 0.5.23
// (sglang/srt/entrypoints/openai/serving_chat.py).
type habits struct {
	// known is whether the kind is known, vllm whether it is vLLM, else it is SGLang; read is
	// whether the version is, too.
	known, vllm, read bool
	// join is put between the texts of a list that are given as one.
	join string
	// thoughts is what becomes of an assistant's reasoning.
	thoughts thoughts
	// results is how a tool's result that is a list of texts is given: joined or as a list.
	results results
	// last is what becomes of a conversation that ends with the assistant.
	last lastTurn
	// effort is whether reasoning_effort also sets enable_thinking.
	effort option
	// developer is whether developer's messages become system's where the template has none.
	developer option
	// tools is whether developer's messages have tools, none if the request says none.
	tools option
	// harmony is whether Harmony's form is known to be made as here.
	harmony option
	// form is whether tools, and calls of them, are known to be given as vLLM does.
	form option
	// lists is whether contents are given as lists (transformers' variables only).
	lists option
}

// loops decides by a template's loops whether an engine gives it contents as lists; nil: not
// known.
type loops func(*jinja.Template, string) option

func answerOf(b bool) option {
	if b {
		return yes
	}
	return no
}

// thoughts is what becomes of an assistant message's reasoning and reasoning_content.
type thoughts int8

const (
	thoughtsUnclear thoughts = iota
	thoughtsDropped          // the template sees neither
	thoughtsNew              // it sees reasoning under both names; reasoning_content is dropped
	thoughtsEither           // it sees either under both names; reasoning wins unless empty
	thoughtsRenamed          // the same; reasoning wins unless null
	thoughtsOld              // it sees reasoning_content; reasoning is dropped
)

// results is how results of tools are given.
type results int8

const (
	resultsUnclear results = iota
	resultsAsLists
	resultsJoined
)

// lastTurn is what becomes of a last message that is the assistant's.
type lastTurn int8

const (
	lastUnclear lastTurn = iota
	lastStays
	lastAsked // it becomes the user's
)

// habitsOf returns what is known of an engine, but for lists, which loops decides.
func habitsOf(e Engine) (h habits, by loops) {
	v, ok := versionOf(e.Version)
	switch e.Kind {
	case "vllm":
		h = habits{known: true, vllm: true, join: "\n", last: lastStays}
		by = v.loops
		if ok && v.in(0, 10, 0, 33, 0) {
			h.ofVLLM(v)
		}
	case "sglang":
		h = habits{known: true, join: " "}
		if ok && v.in(0, 5, 2, 5, 24) {
			h.ofSGLang(v)
			by = v.media
		}
	}
	return h, by
}

func (h *habits) ofVLLM(v version) {
	h.read = true
	switch {
	case v.in(0, 10, 0, 11, 1):
		h.thoughts = thoughtsDropped
	case v.in(0, 11, 1, 15, 0): // vllm#28531
		h.thoughts = thoughtsEither
	case v.in(0, 16, 0, 22, 0): // vllm#33402; 0.15 lies between, and was not read
		h.thoughts = thoughtsNew
	case v.in(0, 22, 0, 33, 0): // vllm#42664
		h.thoughts = thoughtsRenamed
	}
	h.results = resultsAsLists
	if v.in(0, 20, 0, 33, 0) {
		h.results = resultsJoined
	}
	if v.in(0, 16, 0, 33, 0) {
		h.effort = answerOf(v.in(0, 22, 0, 33, 0))
	}
	h.tools = answerOf(v.in(0, 13, 0, 33, 0))
	h.developer = answerOf(v.in(0, 23, 0, 33, 0))
	h.form = answerOf(v.in(0, 32, 0, 33, 0)) // as a real one does
	h.harmony = h.form
}

// loops is whether vLLM gives a template contents as lists, by the loops that it has.
func (v version) loops(t *jinja.Template, _ string) option {
	l := t.Loops()
	switch {
	case l.Direct == l.Named && l.Direct == l.Passed:
		return answerOf(l.Direct)
	case v.in(0, 10, 0, 20, 0):
		return answerOf(l.Direct)
	case v.in(0, 23, 0, 30, 0):
		return answerOf(l.Named)
	case v.in(0, 30, 0, 33, 0):
		return answerOf(l.Passed)
	}
	return absent
}

func (h *habits) ofSGLang(v version) {
	h.read = true
	h.thoughts = thoughtsOld
	switch {
	case v.in(0, 5, 2, 5, 7):
		h.last = lastStays
	case v.in(0, 5, 8, 5, 24):
		h.last = lastAsked
	}
	switch {
	case v.in(0, 5, 2, 5, 11):
		h.results = resultsAsLists
	case v.in(0, 5, 13, 5, 24):
		h.results = resultsJoined
	}
}

// media is whether SGLang gives a template contents as lists, by its loops and words.
func (v version) media(t *jinja.Template, source string) option {
	media := slices.ContainsFunc([]string{"image", "audio", "video", "vision"}, func(s string) bool { return strings.Contains(source, s) })
	loops := t.LoopsOver("message", "msg", "m")
	if media && !loops && v.in(0, 5, 2, 5, 4) {
		return absent
	}
	return answerOf(media || loops)
}

// version is a release: 0.32.0 of vLLM, 0.5.23 of SGLang.
type version [3]int

// versionOf reads the numbers that a version begins with. Builds between releases have no
// known version.
func versionOf(text string) (v version, ok bool) {
	text, _, _ = strings.Cut(strings.TrimPrefix(text, "v"), "+")
	text, _, _ = strings.Cut(text, ".post")
	parts := strings.Split(text, ".")
	if len(parts) != len(v) {
		return v, false
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return v, false
		}
		v[i] = int(n)
	}
	return v, true
}

// in reports whether a version is at least first.minor.patch and below first.toMinor.toPatch.
func (v version) in(first, minor, patch, toMinor, toPatch int) bool {
	return v[0] == first && slices.Compare(v[1:], []int{minor, patch}) >= 0 && slices.Compare(v[1:], []int{toMinor, toPatch}) < 0
}
