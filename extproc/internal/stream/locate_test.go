package stream

import (
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
)

func TestLocate(t *testing.T) {
	long := strings.Repeat("An old story. ", 100)
	chat := `{"model":"m","messages":[{"role":"user","content":"` + long + `"}]}`
	cookie := func(f *fleet, id uint64, age time.Duration) string {
		s, _, _ := strings.Cut(f.table.Policy.Cookies.SetCookie(id, epoch.Add(-age)), ";")
		return s
	}
	tests := []struct {
		name  string
		path  string
		head  func(*fleet, *RequestHead)
		blind bool
		// sent records a use of the prompt at endpoint 1 before, under the client's name, if any.
		sent bool
		// What is expected.
		session string // its first word
		named   bool
		cookie  bool
		chain   bool
		match   uint32 // the tokens of the first one; 0: none
	}{
		{name: "a new conversation", session: "prefix", chain: true, cookie: true, named: true},
		{name: "a known one", sent: true, session: "prefix", chain: true, cookie: true, named: true, match: 400},
		{name: "the client names it", head: func(_ *fleet, h *RequestHead) { h.Session = "s1" }, session: "s1", named: true, chain: true},
		{name: "the client names a known one", sent: true, head: func(_ *fleet, h *RequestHead) { h.Session = "s1" }, session: "s1", named: true, chain: true, match: 400},
		{name: "nobody knows the body, but its name", sent: true, blind: true, head: func(_ *fleet, h *RequestHead) { h.Session = "s1" }, session: "s1", named: true, match: 400},
		{name: "a name that is not for logs", head: func(_ *fleet, h *RequestHead) { h.Session = "a b" }, session: "header", named: true, chain: true},
		{name: "a cookie", head: func(f *fleet, h *RequestHead) { h.Cookie = cookie(f, 7, 0) }, session: "cookie", named: true, chain: true},
		{name: "a cookie that is to be renewed", head: func(f *fleet, h *RequestHead) { h.Cookie = cookie(f, 7, time.Minute) }, session: "cookie", named: true, chain: true, cookie: true},
		{name: "embeddings leave nothing behind", path: "/v1/embeddings", sent: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(2)
			in := f.inputOf(chat, func(h *RequestHead) {
				if tt.path != "" {
					h.Path = tt.path
				}
				if tt.head != nil {
					tt.head(f, h)
				}
			})
			var r openai.Request
			if err := r.Parse(in.api, in.body); err != nil {
				t.Fatal(err)
			}
			u, n := understood{model: f.model, blind: tt.blind}, counted{prompt: 400}
			var found prefix.Found
			if tt.sent {
				l := located{named: session.Named(f.model.Seed, "s1")}
				l.chain, _ = chainOf(f.model.Seed, &r, n.prompt, nil)
				record(f.table.Policy, &l, n.prompt, f.model.Endpoints[1], epoch)
			}
			l := locate(in, &u, &n, &r, nil, &found)
			if first, _, _ := strings.Cut(l.session, ":"); first != tt.session {
				t.Errorf("session %q, want %q", l.session, tt.session)
			}
			if (l.named != 0) != tt.named || (l.cookie != 0) != tt.cookie || (len(l.chain) > 0) != tt.chain {
				t.Errorf("locate() = %+v", l)
			}
			if tt.match == 0 {
				if len(found.Matches) > 0 {
					t.Errorf("found %+v, want nothing", found.Matches)
				}
			} else if len(found.Matches) == 0 || found.Matches[0].Tokens != tt.match || found.Matches[0].Cache != f.model.Endpoints[1].KV.ID() {
				t.Errorf("found %+v, want %d tokens at endpoint 1", found.Matches, tt.match)
			}
		})
	}
}
