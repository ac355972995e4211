package page

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// Guard is who may see a page.
//
// On loopback that is who is on this machine. A page of another site can have a browser ask
// there, too, by a name of its own that resolves to 127.0.0.1: such names are refused.
// Elsewhere it is who has the token, by TLS.
type Guard struct {
	// Refused is why the page is not served at all, with the way out; empty: it is.
	Refused string
	// Token is what a viewer must have; empty: none is needed, as this is loopback.
	Token string
	// Host reports whether the page is to be had under the name; nil: those of loopback.
	Host func(name string) bool
}

// LeastToken is how long a token is at least, in bytes: one that short can't be guessed.
const LeastToken = 16

// cookie is under which a browser has the token's proof. By its prefix a browser takes it only
// from here, and only by TLS.
const cookie = "__Host-millrace-page"

// protect serves inner to who may see the page.
func (g Guard) protect(inner http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", g.tokened(inner))
	mux.HandleFunc("POST /page/login", g.login)
	crossed := http.NewCrossOriginProtection()
	safe := crossed.Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := nameOf(r.Host)
		switch {
		case g.Refused != "":
			http.Error(w, g.Refused, http.StatusForbidden)
		case g.Token != "" && r.TLS == nil:
			http.Error(w, "this page is served by TLS alone", http.StatusForbidden)
		case !g.host(host):
			http.Error(w, fmt.Sprintf("%q is not a name of this page: ask for it by localhost or 127.0.0.1, or by a name in the certificate of -page-cert", host), http.StatusMisdirectedRequest)
		default:
			safe.ServeHTTP(w, r)
		}
	})
}

func (g Guard) host(name string) bool {
	if g.Host != nil {
		return g.Host(name)
	}
	return loopback(name)
}

// loopback reports whether a name is surely this machine's own.
func loopback(name string) bool {
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.IsLoopback()
}

// nameOf is the name in a Host header, without port, brackets and capitals.
func nameOf(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

// tokened serves inner to who has the token.
func (g Guard) tokened(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		open := r.URL.Path == "/page/login.html" || r.URL.Path == "/page/style.css"
		if g.Token == "" || open || g.knows(r) {
			inner.ServeHTTP(w, r)
			return
		}
		if r.URL.Path == "/page/" {
			http.Redirect(w, r, "/page/login.html", http.StatusSeeOther)
			return
		}
		http.Error(w, "the token of -page-token is missing: log in at /page/, or send it as authorization: Bearer", http.StatusUnauthorized)
	})
}

// knows reports whether a request has the token, or what proves it.
func (g Guard) knows(r *http.Request) bool {
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return same(token, g.Token)
	}
	c, err := r.Cookie(cookie)
	return err == nil && same(c.Value, g.proof())
}

// proof is what a browser is given for the token: who reads it does not learn the token, and
// it ends with it.
func (g Guard) proof() string {
	m := hmac.New(sha256.New, []byte(g.Token))
	_, _ = m.Write([]byte("millrace page")) // it never fails
	return hex.EncodeToString(m.Sum(nil))
}

// same compares without showing by its time how much is the same.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// login gives a browser the cookie for the token.
func (g Guard) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	if g.Token == "" || !same(r.PostFormValue("token"), g.Token) {
		http.Redirect(w, r, "/page/login.html?wrong", http.StatusSeeOther)
		return
	}
	http.SetCookie(w, &http.Cookie{Name: cookie, Value: g.proof(), Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, "/page/", http.StatusSeeOther)
}
