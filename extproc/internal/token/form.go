package token

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// role is one of the roles that a form knows.
type role int8

const (
	system role = iota
	user
	assistant
	tool
	roles        // their number
	unknown role = -1
)

var roleNames = [roles]string{"system", "user", "assistant", "tool"}

func roleOf(name string) role {
	for r, n := range roleNames {
		if n == name {
			return role(r)
		}
	}
	return unknown
}

// form is a chat template reduced to fixed texts around the messages' contents,
// found by rendering conversations and comparing what stands between:
//
//	head(first role) content mid(role, next role) content … tail(last role)
//
// It is read-only. A template that branches on more than roles has none, or
// has one with trips.
type form struct {
	head  [roles]fragment
	mid   [roles][roles]fragment
	shut  [roles]fragment // after the last message, without generation prompt
	ask   [roles]fragment // the same with it
	open  [roles]fragment // the same for a message that the model continues
	empty map[string]fragment
	// trim says whether a role's contents lose the white space around them.
	trim [roles]bool
	// trips are texts that make the template do something else when a content
	// holds one.
	trips [][]byte
	// strict says that roles must alternate: system?, (user, assistant)*, user.
	strict bool
	tools  bool // whether tool messages fit
	ends   bool // whether conversations fit that the assistant ends
	// noSystem, noEmpty and noEdges say that system messages, empty ones, and contents with
	// white space around them don't fit.
	noSystem, noEmpty, noEdges bool
	reads                      jinja.Reading // of the clock: of DateRead it is the form of a day
}

// fragment is a fixed text of a form.
type fragment struct {
	ok   bool
	text string
}

// Keys of form.empty: what is rendered without any message.
const (
	emptyAsk  = "ask"
	emptyOpen = "open"
	emptyShut = "shut"
)

// turn is a message of a probe.
type turn struct {
	role    role
	content string
}

// newForm derives the form of a template at a time of its engine's, nil if it has none.
func newForm(t *template, at time.Time) *form {
	f := &form{empty: map[string]fragment{}, noSystem: t.noSystem}
	if t.given() {
		f.reads = jinja.DateRead
	}
	p := &prober{template: t, form: f, at: at}
	p.derive()
	p.settleTrim()
	if !p.settleScope() {
		return nil
	}
	f.strict = !p.holds(oddProbes)
	f.tools = !f.strict && p.holds(toolProbes)
	f.ends = p.holds(endProbes)
	if !p.findTrips() || f.reads == jinja.TimeRead {
		return nil
	}
	return f
}

// settleScope finds what the form holds for, from all to a little less. It
// returns false if it doesn't hold even for that.
func (p *prober) settleScope() bool {
	for _, noSystem := range []bool{p.noSystem, true} {
		for _, noEmpty := range []bool{false, true} {
			for _, noEdges := range []bool{false, true} {
				p.form.noSystem, p.form.noEmpty, p.form.noEdges = noSystem, noEmpty, noEdges
				if p.holds(mainProbes) {
					return true
				}
			}
		}
	}
	return false
}

// prober renders probes.
type prober struct {
	*template
	form *form
	at   time.Time
}

func (p *prober) probe(turns []turn, generate bool) (string, error) {
	in := &input{generate: generate, at: p.at}
	for _, t := range turns {
		in.messages = append(in.messages, p.message(roleNames[t.role], t.content))
	}
	out, err := p.render(in)
	p.form.reads = max(p.form.reads, in.reads)
	return p.stripBOS(out), err
}

// ways are the openings after which a pair of roles is tried: some templates
// insist that roles alternate.
var ways = [][]role{{}, {user}, {system}, {user, assistant}, {system, user}, {system, user, assistant}}

// sentinel is a content that no template has in it.
func sentinel(i int) string { return fmt.Sprintf("Zq%dxW", i) }

func sentinels(seq []role) []turn {
	turns := make([]turn, len(seq))
	for i, r := range seq {
		turns[i] = turn{r, sentinel(i)}
	}
	return turns
}

// cut renders a conversation and returns the texts around its contents.
func (p *prober) cut(seq []role, generate bool) []string {
	out, err := p.probe(sentinels(seq), generate)
	if err != nil {
		return nil
	}
	var parts []string
	for i := range seq {
		before, after, ok := strings.Cut(out, sentinel(i))
		if !ok || strings.Contains(after, sentinel(i)) {
			return nil
		}
		parts = append(parts, before)
		out = after
	}
	return append(parts, out)
}

// derive fills in the form from the first way that renders.
func (p *prober) derive() {
	f := p.form
	for a := range roles {
		for _, b := range []role{unknown, user, assistant} {
			if parts := p.cut(without(a, b), true); parts != nil && !f.head[a].ok {
				f.head[a] = fragment{true, parts[0]}
			}
		}
		p.deriveEnd(a)
		for b := range roles {
			p.derivePair(a, b)
		}
	}
	p.deriveEmpty()
}

func without(seq ...role) []role {
	return slices.DeleteFunc(seq, func(r role) bool { return r == unknown })
}

// derivePair prefers conversations that continue and end with a user's message,
// as nearly all do.
func (p *prober) derivePair(a, b role) {
	for _, rest := range [][]role{{user}, {assistant, user}, {}} {
		for _, way := range ways {
			parts := p.cut(slices.Concat(way, []role{a, b}, rest), true)
			if parts != nil {
				p.form.mid[a][b] = fragment{true, parts[len(way)+1]}
				return
			}
		}
	}
}

func (p *prober) deriveEnd(a role) {
	for _, way := range ways {
		seq := append(slices.Clone(way), a)
		ask, shut := p.cut(seq, true), p.cut(seq, false)
		if ask == nil || shut == nil {
			continue
		}
		n := len(way) + 1
		p.form.ask[a] = fragment{true, ask[n]}
		p.form.shut[a] = fragment{true, shut[n]}
		p.form.open[a] = fragment{true, shut[n] + opening(shut[n], ask[n])}
		return
	}
}

// opening is the generation prompt: what ask has beyond what it shares with
// shut.
func opening(shut, ask string) string {
	n := 0
	for n < len(shut) && n < len(ask) && shut[n] == ask[n] {
		n++
	}
	return ask[n:]
}

func (p *prober) deriveEmpty() {
	ask, err := p.probe(nil, true)
	shut, err2 := p.probe(nil, false)
	if err != nil || err2 != nil {
		return
	}
	p.form.empty[emptyAsk] = fragment{true, ask}
	p.form.empty[emptyShut] = fragment{true, shut}
	p.form.empty[emptyOpen] = fragment{true, shut + opening(shut, ask)}
}

// text is what the form makes of a conversation that ends with ask or shut.
func (f *form) text(turns []turn, generate bool, trim func(string) string) (string, bool) {
	if len(turns) == 0 {
		return "", true
	}
	end := &f.shut
	if generate {
		end = &f.ask
	}
	var out strings.Builder
	ok := f.head[turns[0].role].ok
	out.WriteString(f.head[turns[0].role].text)
	for i, t := range turns {
		if f.trim[t.role] {
			t.content = trim(t.content)
		}
		out.WriteString(t.content)
		next := &end[t.role]
		if i+1 < len(turns) {
			next = &f.mid[t.role][turns[i+1].role]
		}
		ok = ok && next.ok
		out.WriteString(next.text)
	}
	return out.String(), ok
}

// agrees says whether form and template make the same of a conversation.
func (p *prober) agrees(turns []turn) bool {
	for _, generate := range []bool{true, false} {
		got, ok := p.form.text(turns, generate, p.trim)
		if len(turns) == 0 {
			return true // what the probe had is out of scope
		}
		want, err := p.probe(turns, generate)
		if !ok || err != nil || got != want {
			return false
		}
	}
	return true
}

// settleTrim finds out which roles' contents are trimmed.
func (p *prober) settleTrim() {
	for r := range roles {
		seq := []turn{{r, "\n  spaced \n "}}
		for _, way := range ways {
			turns := append(sentinels(way), seq...)
			if p.agrees(turns) {
				break
			}
			p.form.trim[r] = true
			if p.agrees(turns) {
				break
			}
			p.form.trim[r] = false
		}
	}
}

// The probes that a form must pass: those of ordinary conversations, of odd
// ones, and of those with tools.
var (
	mainProbes = [][]role{
		{user}, {system, user}, {user, assistant, user}, {system, user, assistant, user},
		{user, assistant, user, assistant, user},
		{system, user, assistant, user, assistant, user, assistant, user},
	}
	oddProbes = [][]role{
		{user, user}, {system, system, user}, {user, system}, {assistant, user}, {system},
		{user, assistant, assistant, user}, {system, user, system, assistant, user}, {user, user, user, assistant, user},
	}
	endProbes = [][]role{
		{user, assistant}, {system, user, assistant}, {user, assistant, user, assistant},
	}
	toolProbes = [][]role{
		{user, assistant, tool}, {user, assistant, tool, assistant, user}, {system, user, assistant, tool, tool, assistant, user},
		{user, assistant, tool, user}, {user, assistant, tool, assistant, tool, tool, user, assistant, user},
	}
)

// probeContents are tried in every probe, shifted from message to message.
var probeContents = []string{"Hello there.", "", " \n two\n\nlines \t\n", "x", "émoji 🙂 {\"a\": [1]}", "0", "\n\nled by lines", "\r\nended by one\n", "\x1f\u00a0odd\u2003"}

func (p *prober) holds(probes [][]role) bool {
	for _, seq := range probes {
		for shift := range probeContents {
			if !p.agrees(p.within(seq, shift)) {
				return false
			}
		}
	}
	return true
}

// within makes a conversation of what is in the form's scope.
func (p *prober) within(seq []role, shift int) []turn {
	var turns []turn
	for i, r := range seq {
		t := turn{r, p.fitting(probeContents[(i+shift)%len(probeContents)], "not empty")}
		if r != system || !p.form.noSystem {
			turns = append(turns, t)
		}
	}
	return turns
}

// fitting is a content if it is in the form's scope, else one that is.
func (p *prober) fitting(content, otherwise string) string {
	bare := strings.TrimFunc(content, jinja.IsSpace)
	if p.form.noEmpty && bare == "" || p.form.noEdges && bare != content {
		return otherwise
	}
	return content
}

// maxTrips is how many trips a form may have. With more the template is one
// that the form doesn't suit.
const maxTrips = 16

// findTrips looks for texts of the template's own source that make it branch
// when a message holds one.
func (p *prober) findTrips() bool {
	return p.trip(p.literals())
}

// trip halves a list until it has the texts that are to blame.
func (p *prober) trip(texts []string) bool {
	if p.agrees(p.dialogue(texts)) {
		return true
	}
	if len(texts) > 1 {
		half := len(texts) / 2
		return p.trip(texts[:half]) && p.trip(texts[half:])
	}
	text := ""
	if len(texts) == 1 {
		text = strings.TrimSpace(texts[0])
	}
	p.form.trips = append(p.form.trips, []byte(text))
	return text != "" && len(p.form.trips) <= maxTrips
}

// dialogue has each text once in every ordinary role, alone and amid others.
func (p *prober) dialogue(texts []string) []turn {
	var turns []turn
	if !p.form.noSystem {
		turns = append(turns, turn{system, "a " + strings.Join(texts, " ") + " b"})
	}
	for _, s := range texts {
		amid := "a " + s + " b"
		alone := p.fitting(s, amid)
		turns = append(turns, turn{user, alone}, turn{assistant, alone}, turn{user, amid}, turn{assistant, amid})
	}
	return append(turns, turn{user, "end"})
}
