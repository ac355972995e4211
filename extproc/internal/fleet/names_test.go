package fleet

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/probe"
)

const byName = `
endpoints:
  - {address: "gpu:80", models: [m], type: llamacpp}
`

// addresses are those of the model's endpoints in the table that was published last.
func (w *world) addresses() (all []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.tables) == 0 || w.tables[len(w.tables)-1].Models["m"] == nil {
		return nil
	}
	for _, e := range w.tables[len(w.tables)-1].Models["m"].Endpoints {
		all = append(all, e.Address)
	}
	return all
}

// known returns the addresses that Envoy was given.
func (w *world) known() (all []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		all = append(all, h.Address)
	}
	return all
}

func TestLocalFollowsHostNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := newLocal(t, byName)
		if !slices.ContainsFunc(l.Conditions(), func(c obs.Condition) bool { return c.Code == "no-fleet" && c.Severity == obs.Blocking }) {
			t.Errorf("conditions without any address: %v", l.Conditions())
		}
		expect := func(what string, condition string, want ...string) {
			t.Helper()
			time.Sleep(6 * time.Second)
			if got := w.addresses(); !slices.Equal(got, want) {
				t.Errorf("%s: endpoints %v, want %v", what, got, want)
			}
			if got := w.known(); !slices.Equal(got, want) {
				t.Errorf("%s: Envoy's hosts %v, want %v", what, got, want)
			}
			has := slices.ContainsFunc(l.Conditions(), func(c obs.Condition) bool { return c.Code == "host-names" })
			if has != (condition != "") || has && !strings.Contains(text(l.Conditions(), "host-names"), condition) {
				t.Errorf("%s: conditions %v, want %q", what, l.Conditions(), condition)
			}
		}
		dns := func(name string, addresses ...string) {
			w.set(func() {
				w.dns = map[string][]netip.Addr{}
				for _, a := range addresses {
					w.dns[name] = append(w.dns[name], netip.MustParseAddr(a))
				}
			})
		}
		l.run(t, func() {
			expect("a name that nobody knows", "gpu (no such host)")
			dns("gpu", "10.0.0.2", "10.0.0.1")
			expect("two addresses", "", "10.0.0.1:80", "10.0.0.2:80")
			dns("gpu", "10.0.0.3", "10.0.0.2")
			expect("one has moved", "", "10.0.0.2:80", "10.0.0.3:80")
			dns("gpu")
			expect("DNS is away", "gpu (no such host)", "10.0.0.2:80", "10.0.0.3:80")
			write(t, l.options.File, strings.ReplaceAll(byName, "gpu", "other"))
			expect("another name, not known: the file waits", "other (no such host)", "10.0.0.2:80", "10.0.0.3:80")
			dns("other", "10.0.0.1")
			expect("now it is known", "", "10.0.0.1:80")
			dns("other", "10.0.0.1", "169.254.0.9")
			expect("an address of no host is refused", "169.254.0.9", "10.0.0.1:80")
		})
	})
}

// text is that of the condition with a code.
func text(all []obs.Condition, code string) string {
	for _, c := range all {
		if c.Code == code {
			return c.Text
		}
	}
	return ""
}

func TestHostsHaveWeights(t *testing.T) {
	l, w := newLocal(t, three)
	if got := w.known(); !slices.Equal(got, []string{"10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"}) {
		t.Fatalf("hosts %v", got)
	}
	fast := &probe.Observation{Address: "10.0.0.1:80"}
	fast.Speed.Decode, fast.Usual.Decode = 33, 21
	slow := &probe.Observation{Address: "10.0.0.2:80"}
	slow.Speed.Decode, slow.Usual.Decode = 0.001, 21
	l.observed(fast)
	l.observed(slow)
	l.mu.Lock()
	l.publishLocked()
	l.mu.Unlock()
	for i, want := range []uint32{160, 10, 100} {
		if got := w.hosts[i]; got.Weight != want {
			t.Errorf("%+v, want the weight %d", got, want)
		}
	}
	if !slices.Equal(w.hosts[0].Models, []string{"m", "n"}) {
		t.Errorf("models of %+v", w.hosts[0])
	}
}
