package page

import (
	"context"
	"fmt"
	"mime"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"

	"millrace.dev/millrace/internal/wire"
)

// The page's chat goes to Envoy by way of xds, and not straight from the browser: Envoy would
// have to allow pages of this origin (cors.origins), which opens it to each of them, and the
// page's policy would have to name Envoy's address. So the page talks to where it comes from
// alone. What is forwarded is as narrow as can be: to one address, that the operator names; two
// operations; of whoever may see the page (Guard), and of no other site's page
// (http.CrossOriginProtection, and the content type, for which a browser asks first); nothing of
// it is logged or kept.

const (
	// mostChats bounds the chats that run at a time, and mostChatBytes what each sends.
	mostChats     = 8
	mostChatBytes = 256 << 10
	// chatLasts bounds how long one may take.
	chatLasts = 10 * time.Minute
)

// chatting serves the two operations; without a gateway nothing is forwarded.
func (p *Page) chatting(mux *http.ServeMux) {
	if p.options.Gateway == "" {
		off := func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "there is no chat: give xds -page-chat, the host:port of Envoy", http.StatusNotFound)
		}
		mux.HandleFunc("POST /page/chat", off)
		mux.HandleFunc("GET /page/models", off)
		return
	}
	running := make(chan struct{}, mostChats)
	mux.Handle("POST /page/chat", limited(running, p.forward("/v1/chat/completions")))
	mux.Handle("GET /page/models", p.forward("/v1/models"))
}

// limited serves chats that are JSON, so many at a time, of so many bytes.
func limited(running chan struct{}, inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			http.Error(w, "content-type; must be application/json", http.StatusUnsupportedMediaType)
			return
		}
		select {
		case running <- struct{}{}:
			defer func() { <-running }()
		default:
			http.Error(w, fmt.Sprintf("%d chats run by this page already; ask Envoy itself", mostChats), http.StatusTooManyRequests)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), chatLasts)
		defer cancel()
		r.Body = http.MaxBytesReader(w, r.Body, mostChatBytes)
		inner.ServeHTTP(w, r.WithContext(ctx))
	})
}

// forward asks Envoy for a path, and passes the answer through as it comes.
func (p *Page) forward(path string) http.Handler {
	to := &url.URL{Scheme: "http", Host: p.options.Gateway, Path: path}
	return &httputil.ReverseProxy{
		FlushInterval: -1, // each event at once
		Transport:     &http.Transport{MaxIdleConns: mostChats, IdleConnTimeout: wire.ClientIdle, DisableCompression: true},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL, r.Out.Host = to, ""
			sent := http.Header{}
			for _, name := range []string{"Content-Type", "Accept", wire.SessionHeader} {
				if v := r.In.Header.Get(name); v != "" {
					sent.Set(name, v)
				}
			}
			if key := r.In.Header.Get(keyHeader); key != "" { // authorization is the page's own token
				sent.Set("Authorization", "Bearer "+key)
			}
			r.Out.Header = sent
		},
		ModifyResponse: func(r *http.Response) error {
			for _, name := range []string{"Set-Cookie", "Server", "Access-Control-Allow-Origin"} {
				r.Header.Del(name)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, fmt.Sprintf("Envoy at %s does not answer: %v", p.options.Gateway, err), http.StatusBadGateway)
		},
	}
}

// keyHeader has the API key that the page's viewer gives, for Envoy.
const keyHeader = "X-Api-Key"
