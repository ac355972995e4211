package config

import (
	"net/url"
	"regexp"
	"slices"
	"strconv"

	"millrace.dev/millrace/internal/secret"
)

// EngineTLS is how an engine is reached that serves TLS. Files are read again when they change.
//
// +kubebuilder:object:generate=true
// +millrace:rule:at="key",when="has(self.key) && self.key.size() > 0",holds="has(self.cert) && self.cert.size() > 0",words="needs the certificate that it is of; must be with cert"
// +millrace:rule:at="skipVerify",when="has(self.ca) && self.ca.size() > 0",holds="!self.skipVerify",words="true; must be left out with ca: nothing would be verified"
type EngineTLS struct {
	// Enabled is whether it serves TLS. Default: whether one of the others is set.
	Enabled bool `json:"enabled,omitempty"`
	// CA is the path of a PEM file with the authorities that may have signed its certificate.
	// Default: those of the machine.
	// +kubebuilder:validation:MaxLength=4096
	CA string `json:"ca,omitempty"`
	// Cert and Key are the paths of PEM files with the certificate to show it, and its key.
	// Default: none is shown.
	// +kubebuilder:validation:MaxLength=4096
	Cert string `json:"cert,omitempty"`
	// Key is the path of the key of Cert; empty: it is in the same file.
	// +kubebuilder:validation:MaxLength=4096
	Key string `json:"key,omitempty"`
	// ServerName is a name that its certificate must have, and that it is asked for. Default:
	// the host name or ip of its address, which the certificate must have then.
	// +millrace:form:name=serverName,optional=true
	ServerName string `json:"serverName,omitempty"`
	// SkipVerify is whether any certificate will do. Whoever can answer at the address is
	// believed then.
	SkipVerify bool `json:"skipVerify,omitempty"`
}

// On reports whether the engine serves TLS.
func (t EngineTLS) On() bool { return t != EngineTLS{} }

// APIKey is where the key of an engine comes from. One of File and Env is set.
//
// +kubebuilder:object:generate=true
// +millrace:rule:at="file",holds="!(has(self.env) && self.env.size() > 0 && has(self.file) && self.file.size() > 0)",words="with env; must be file or env, one of them"
// +millrace:rule:at="header",holds="!has(self.header) || self.header.size() == 0 || (has(self.file) && self.file.size() > 0) || (has(self.env) && self.env.size() > 0)",words="without a key; must be with file or env"
// +millrace:rule:at="requests",holds="!has(self.requests) || !self.requests || (has(self.file) && self.file.size() > 0) || (has(self.env) && self.env.size() > 0)",words="without a key; must be with file or env"
type APIKey struct {
	// File is the path of a file with the key alone. It is read again when it changes.
	// +kubebuilder:validation:MaxLength=4096
	File string `json:"file,omitempty"`
	// Env is the name of the environment variable that has the key.
	// +millrace:form:name=envName,optional=true,hidden=true
	Env string `json:"env,omitempty"`
	// Header is the header that has it. Default: authorization, with "Bearer " before the
	// key; any other has the key as it is.
	// +millrace:form:name=headerName,optional=true
	Header string `json:"header,omitempty"`
	// Requests is whether extproc gives it to requests, too, in place of what clients have sent
	// in the header. All endpoints of a model must have the same then. Default: probes alone
	// have it.
	Requests bool `json:"requests,omitempty"`
}

// EngineHeader is a header that probes of an engine have. One of Value, File and Env is set.
//
// +kubebuilder:object:generate=true
// +millrace:rule:at="name",holds="(has(self.value) && self.value.size() > 0 ? 1 : 0) + (has(self.file) && self.file.size() > 0 ? 1 : 0) + (has(self.env) && self.env.size() > 0 ? 1 : 0) == 1",words="must be with value, file or env, one of them"
// +millrace:rule:at="value",holds="!has(self.value) || self.value.matches('^[ -~]*$')",words="must be printable characters"
type EngineHeader struct {
	// Name is the header's, in lower case.
	// +kubebuilder:validation:Required
	// +millrace:form:name=headerName
	Name string `json:"name"`
	// Value is what it says. It is not shown anywhere.
	Value secret.Text `json:"value,omitempty"`
	// File is the path of a file with the value alone. It is read again when it changes.
	// +kubebuilder:validation:MaxLength=4096
	File string `json:"file,omitempty"`
	// Env is the name of the environment variable that has the value.
	// +millrace:form:name=envName,optional=true,hidden=true
	Env string `json:"env,omitempty"`
}

// absolute makes the paths absolute, starting at dir.
func (e *Endpoint) absolute(dir string) {
	for _, path := range []*string{&e.TLS.CA, &e.TLS.Cert, &e.TLS.Key, &e.APIKey.File} {
		*path = under(dir, *path)
	}
	e.Headers = slices.Clone(e.Headers)
	for i := range e.Headers {
		e.Headers[i].File = under(dir, e.Headers[i].File)
	}
}

// validateAccess checks how an endpoint is reached.
func (e Endpoint) validateAccess(at string, r *rules) {
	for path, text := range map[string]string{".tls.ca": e.TLS.CA, ".tls.cert": e.TLS.Cert, ".tls.key": e.TLS.Key, ".apiKey.file": e.APIKey.File} {
		r.short(at+path, text, maxPath)
	}
	if e.TLS.Key != "" && e.TLS.Cert == "" {
		r.broken(at+".tls.key", "needs the certificate that it is of; must be with cert")
	}
	if e.TLS.SkipVerify && e.TLS.CA != "" {
		r.broken(at+".tls.skipVerify", "true; must be left out with ca: nothing would be verified")
	}
	if e.TLS.ServerName != "" {
		r.matches(at+".tls.serverName", e.TLS.ServerName, serverName)
	}
	e.APIKey.validate(at+".apiKey", r)
	r.between(at+".headers", len(e.Headers), 0, maxHeaders)
	for i, h := range e.Headers {
		h.validate(at+".headers["+strconv.Itoa(i)+"]", r)
		if slices.ContainsFunc(e.Headers[:i], func(o EngineHeader) bool { return o.Name == h.Name }) {
			r.broken(at+".headers["+strconv.Itoa(i)+"].name", "%q; must be in the list once", h.Name)
		}
	}
	if e.Health != "" {
		if _, err := url.ParseRequestURI(string(e.Health)); err != nil || !metricsURL.fits(string(e.Health)) {
			r.broken(at+".health", "must be %s", metricsURL.words)
		}
	}
}

// Bounds of the headers of probes of an endpoint, and of what one says, in characters.
const (
	maxHeaders     = 16
	maxHeaderValue = 512
)

// headerValue is what a header may say.
var headerValue = regexp.MustCompile(`^[ -~]*$`)

// What stands in the place of a secret is not shown: it may be one by mistake.

func (k APIKey) validate(at string, r *rules) {
	none := k.File == "" && k.Env == ""
	if k.File != "" && k.Env != "" {
		r.broken(at+".file", "with env; must be file or env, one of them")
	}
	if k.Header != "" && none {
		r.broken(at+".header", "without a key; must be with file or env")
	}
	if k.Requests && none {
		r.broken(at+".requests", "without a key; must be with file or env")
	}
	validateEnv(at, k.Env, r)
	if k.Header != "" {
		r.matches(at+".header", k.Header, headerName)
	}
}

func (h EngineHeader) validate(at string, r *rules) {
	r.matches(at+".name", h.Name, headerName)
	n := 0
	for _, set := range []bool{h.Value != "", h.File != "", h.Env != ""} {
		if set {
			n++
		}
	}
	if n != 1 {
		r.broken(at+".name", "must be with value, file or env, one of them")
	}
	validateEnv(at, h.Env, r)
	r.short(at+".value", string(h.Value), maxHeaderValue)
	r.short(at+".file", h.File, maxPath)
	if !headerValue.MatchString(string(h.Value)) {
		r.broken(at+".value", "must be printable characters")
	}
}

func validateEnv(at, env string, r *rules) {
	if env != "" && !envName.fits(env) {
		r.broken(at+".env", "must be %s", envName.words)
	}
}

// validateKeys checks that the endpoints of each model have the same key for requests, or none
// has one: Envoy may try any of them, and what is meant for one is not for another.
func validateKeys(endpoints []Endpoint, r *rules) {
	first := map[string]int{} // by model: its first endpoint
	for i, e := range endpoints {
		for _, m := range e.Models {
			k, seen := first[m]
			if !seen {
				first[m] = i
				continue
			}
			if a, b := endpoints[k].APIKey, e.APIKey; (a.Requests || b.Requests) && a != b {
				r.broken("endpoints["+strconv.Itoa(i)+"].apiKey", "another one than that of %s, and requests get it; must be the same for all endpoints of %s", endpoints[k].Address, m)
				break
			}
		}
	}
}
