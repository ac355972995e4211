package e2e

import (
	"fmt"
	"math"
	"strings"
	"syscall"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// What TestExtProcsAgree sends: conversations that nothing but their first
// message distinguishes, from clients that ask again as soon as they have an answer.
const (
	agreeTalks = 24
	agreeTurns = 5
	agreeUsers = 3
)

// agreeBand is how far apart the shares of cached tokens may lie, by requirement.
const agreeBand = 0.02

// TestExtProcsAgree holds the same conversations through one, two and four extprocs
// behind one Envoy. Each of them gets only a part of the turns, and learns of the
// others' from what the engines report: what is found in caches must be the same.
// Those that are killed come back with the whole picture.
func TestExtProcsAgree(t *testing.T) {
	shares := map[int]float64{}
	for _, n := range []int{1, 2, 4} {
		m := own(t, "-extprocs", fmt.Sprint(n))
		m.AwaitWhole(t)
		before := m.asked(t)
		talks := m.talk(t, newTalks(agreeTalks), agreeTurns)
		var cached, prompt, moved int
		for _, k := range talks {
			cached += k.cached
			prompt += k.prompt
			moved += k.moved
		}
		shares[n] = float64(cached) / float64(prompt)
		asked := m.asked(t)
		for name := range asked {
			asked[name] -= before[name]
			if least := float64(agreeTalks*agreeTurns/n) / 2; asked[name] < least {
				t.Errorf("%s decided %.0f of %d turns, want %.0f or more", name, asked[name], agreeTalks*agreeTurns, least)
			}
		}
		t.Logf("%d extprocs: %.1f %% of %d prompt tokens cached, %d turns elsewhere than the one before; decisions %v", n, 100*shares[n], prompt, moved, asked)
		if n == 2 {
			t.Run("killed", m.comeBack)
		}
		if err := m.End(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	for n, share := range shares {
		if math.Abs(share-shares[1]) > agreeBand {
			t.Errorf("%.1f %% cached with %d extprocs, %.1f %% with one", 100*share, n, 100*shares[1])
		}
	}
}

// comeBack kills all of two extprocs, one after the other, under load: no request
// fails, and those that come after them send every conversation to where it is
// cached, though they have never seen it.
func (m *mesh) comeBack(t *testing.T) {
	talks := m.talk(t, newTalks(8), 2)
	l := m.StartLoad(t, 2)
	for _, name := range []string{"extproc@1", "extproc@2"} {
		l.More(t, 4)
		before := m.Process(t, name)
		rig.Kill(t, before.PID)
		rig.Wait(t, rig.BackLimit, name+" is started again", func() error { return m.Restarted(before) })
		rig.Wait(t, rig.BackLimit, "the mesh is whole", func() error { return m.Whole(t.Context()) })
	}
	l.MustAllSucceed(t)
	for _, k := range m.talk(t, talks, 1) {
		if k.last == 0 {
			t.Errorf("conversation %q: nothing was cached on %s; it was held on %s", k.name, k.replica, k.before)
		}
	}
	t.Log(l)
}

// talk is one conversation and what became of it.
type talk struct {
	name            string
	req             rig.Chat
	replica, before string // that of the last turn, and of the one before
	// prompt and cached are sums over all turns, last what was cached in the last one;
	// tokens. moved counts the turns that went elsewhere than the one before.
	prompt, cached, last, moved int
}

// newTalks returns n conversations that have next to nothing in common: llama.cpp puts
// one whose beginning is like another's in that one's place.
func newTalks(n int) []*talk {
	var talks []*talk
	for i := range n {
		name := fmt.Sprintf("%c%d story", 'A'+i, i)
		req := rig.Ask(2, "Begin with "+name+".")
		req.Messages = append([]rig.Message{rig.System(strings.Repeat(name+" it is. ", 4))}, req.Messages...)
		talks = append(talks, &talk{name: name, req: req})
	}
	return talks
}

// talk continues the conversations, some at a time, by so many turns each. What
// was counted before is forgotten.
func (m *mesh) talk(t *testing.T, talks []*talk, turns int) []*talk {
	t.Helper()
	url := m.URL(t, "/v1/chat/completions")
	rig.Each(len(talks), agreeUsers, func(i int) {
		k := talks[i]
		k.prompt, k.cached, k.moved = 0, 0, 0
		for range turns {
			k.turn(t, url)
		}
	})
	return talks
}

// turn asks once and appends the answer and the next question.
func (k *talk) turn(t *testing.T, url string) {
	body, a, err := rig.Complete(t.Context(), url, k.req)
	if err != nil {
		t.Errorf("%s: %v", k.name, err)
		return
	}
	k.prompt += body.Usage.Prompt
	k.cached += body.Usage.Details.Cached
	k.last = body.Usage.Details.Cached
	k.before, k.replica = k.replica, a.Header.Get("x-millrace-replica")
	if k.before != "" && k.before != k.replica {
		k.moved++
	}
	n := len(k.req.Messages)
	k.req.Messages = append(k.req.Messages, rig.Assistant(body.Choices[0].Message.Content),
		rig.User(fmt.Sprintf("Go on with part %d of %s.", n, k.name)))
}

// asked returns how many decisions each extproc has made.
func (m *mesh) asked(t *testing.T) map[string]float64 {
	t.Helper()
	n := map[string]float64{}
	for _, p := range m.State(t).Processes {
		if p.Role != "extproc" {
			continue
		}
		picks, err := rig.SumMetric(p.Addrs["metrics"], "millrace_extproc_picks_total")
		if err != nil {
			t.Fatal(err)
		}
		n[p.Name] = picks
	}
	return n
}
