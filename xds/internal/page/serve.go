package page

import (
	"embed"
	"encoding/json"
	"io/fs"
	"net/http"

	"millrace.dev/millrace/internal/recent"
)

// assets are the files of the page, as they are served: nothing is built, nothing is fetched
// from elsewhere.
//
//go:embed assets
var assets embed.FS

// policy is what a browser may do with the page: run and fetch what comes from here, and
// nothing that is written into the page itself.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// Handler returns what serves the page, to be mounted at /: it has / and /page/ alone. g is who
// may see it.
func (p *Page) Handler(g Guard) http.Handler {
	files, err := fs.Sub(assets, "assets")
	if err != nil {
		panic(err) // a name that is no path
	}
	inner := http.NewServeMux()
	inner.Handle("GET /page/", http.StripPrefix("/page", http.FileServerFS(files)))
	inner.HandleFunc("GET /page/stream", p.stream)
	inner.HandleFunc("GET /page/fleet.json", func(w http.ResponseWriter, _ *http.Request) { answer(w, p.current().body) })
	inner.HandleFunc("GET /page/events.json", func(w http.ResponseWriter, _ *http.Request) { answer(w, all(p.events)) })
	inner.HandleFunc("GET /page/decisions.json", func(w http.ResponseWriter, _ *http.Request) { answer(w, all(p.decisions)) })
	p.chatting(inner)
	mux := http.NewServeMux()
	mux.Handle("/page/", g.protect(inner))
	mux.Handle("GET /{$}", http.RedirectHandler("/page/", http.StatusFound))
	return headers(mux)
}

// headers adds what every answer has.
func headers(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store") // another xds may have other files under the same address
		inner.ServeHTTP(w, r)
	})
}

func answer(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}

// all is a list as JSON, the oldest first.
func all(l *recent.List[json.RawMessage]) []byte {
	items, _ := l.Since(0)
	if items == nil {
		items = []json.RawMessage{}
	}
	return encode(items)
}
