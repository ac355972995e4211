package config

import (
	"strconv"
	"time"
)

// Flow is what happens when all endpoints of a model are busy, and what a tenant
// may use.
//
// +kubebuilder:object:generate=true
type Flow struct {
	// Queue is how many requests for one model may wait in extproc until an endpoint
	// has a place, 0 to 65536; further ones are answered with 429, sheddable ones
	// first and critical ones last. 0: none wait there, all pass. Default 256.
	// +kubebuilder:default=256
	// +millrace:between:least="0",most="65536"
	Queue int `json:"queue"`
	// Allowance is how many requests beyond its slots an endpoint is given, so that
	// the next one is at hand when one ends, 0 to 1024. Default 1.
	// +kubebuilder:default=1
	// +millrace:between:least="0",most="1024"
	Allowance int `json:"allowance"`
	// Reserve is the share of all places that only critical requests may take, 0 to
	// 0.9. Default 0.1.
	// +kubebuilder:default=0.1
	// +millrace:between:least="0",most="0.9"
	Reserve float32 `json:"reserve"`
	// MaxWait is how long a request may wait in extproc.
	// +kubebuilder:default={}
	MaxWait MaxWait `json:"maxWait"`
	// GatewayTimeout is the max_message_timeout of Envoy's ext_proc filter, 50ms to 1h:
	// no request waits longer in extproc. One that should is forwarded to the busy endpoints,
	// a sheddable one is answered with 429. xds sets it in Envoy, too; there the default
	// is 60s. In the file of `extproc -fleet` it is 150ms, which every Envoy allows.
	// +kubebuilder:default="60s"
	// +millrace:lasts:least="50ms",most="1h"
	GatewayTimeout Duration `json:"gatewayTimeout"`
	// DegradeAt is the share of Queue from which on sheddable requests go to a smaller
	// model, 0 to 1. Default 0.5.
	// +kubebuilder:default=0.5
	// +millrace:between:least="0",most="1"
	DegradeAt float32 `json:"degradeAt"`
	// Degrade names smaller models for sheddable requests, at most 512. Default: none.
	// +kubebuilder:validation:MaxItems=512
	// +listType=map
	// +listMapKey=model
	Degrade []Degrade `json:"degrade,omitempty"`
	// Tenants is who is distinguished, and what each may use.
	// +kubebuilder:default={}
	Tenants Tenants `json:"tenants"`
}

// MaxWait is how long a request may wait in extproc, 0s to 1h, by its priority.
type MaxWait struct {
	// Critical requests. Default 50s.
	// +kubebuilder:default="50s"
	// +millrace:lasts:least="0s",most="1h"
	Critical Duration `json:"critical"`
	// Standard requests. Default 20s.
	// +kubebuilder:default="20s"
	// +millrace:lasts:least="0s",most="1h"
	Standard Duration `json:"standard"`
	// Sheddable requests. Default 5s.
	// +kubebuilder:default="5s"
	// +millrace:lasts:least="0s",most="1h"
	Sheddable Duration `json:"sheddable"`
}

// Degrade is a smaller model for sheddable requests.
//
// +millrace:rule:at="to",missing=true,holds="has(self.to)",words=`""; must be 1 to 96 printable characters without spaces`
// +millrace:rule:at="to",holds="self.to.size() == 0 || self.to != self.model",shows="quoted",words="must be another model"
type Degrade struct {
	// Model is the id of the model that they ask for. No two entries have the same.
	// +kubebuilder:validation:Required
	// +millrace:form:name=servedName
	Model string `json:"model"`
	// To is the id of the model that serves them instead.
	// +millrace:form:name=servedName
	To string `json:"to"`
}

// Tenants is who is distinguished, and what each may use.
type Tenants struct {
	// Header names the tenant of a request; who may set it is who is trusted. Empty: the
	// request's API key does (authorization or x-api-key). Use is kept by a hash
	// of the value. Metrics show the value of those who use most, but of keys, and of headers
	// such as authorization, only a hash. Requests without any are one tenant.
	// +millrace:form:name=headerName,optional=true
	Header string `json:"header,omitempty"`
	// RequestsPerMinute is what one tenant may send, 0 to 1000000000; more is answered
	// with 429. Default 0: as much as it likes.
	// +kubebuilder:default=0
	// +millrace:between:least="0",most="1000000000"
	RequestsPerMinute int `json:"requestsPerMinute"`
	// TokensPerMinute is the same in tokens, of prompts and answers.
	// +kubebuilder:default=0
	// +millrace:between:least="0",most="1000000000"
	TokensPerMinute int `json:"tokensPerMinute"`
	// AssumedMaxTokens is how many tokens an answer is charged in advance whose request names
	// no limit (max_tokens and the like), 0 to 1000000000; what was not generated comes back
	// when that is known. 0: as many as answers have on average. Default 1024.
	// +kubebuilder:default=1024
	// +millrace:between:least="0",most="1000000000"
	AssumedMaxTokens int `json:"assumedMaxTokens"`
	// Max is how many tenants' use is remembered, 1 to 10000000. Default 10000.
	// +kubebuilder:default=10000
	// +millrace:between:least="1",most="10000000"
	Max int `json:"max"`
}

// newFlow returns what holds without a file.
func newFlow() Flow {
	return Flow{
		Queue: 256, Allowance: 1, Reserve: 0.1, DegradeAt: 0.5,
		MaxWait:        MaxWait{Duration{50 * time.Second}, Duration{20 * time.Second}, Duration{5 * time.Second}},
		GatewayTimeout: Duration{time.Minute},
		Tenants:        Tenants{Max: 10_000, AssumedMaxTokens: 1024},
	}
}

// everyGateway is a wait that Envoy allows without configuration: its default for
// message_timeout is 200 ms.
const everyGateway = 150 * time.Millisecond

func (f Flow) validate(path string, r *rules) {
	r.between(path+".queue", f.Queue, 0, 65536)
	r.between(path+".allowance", f.Allowance, 0, 1024)
	r.within(path+".reserve", f.Reserve, 0, 0.9)
	const longest = time.Hour
	r.lasts(path+".maxWait.critical", f.MaxWait.Critical, 0, longest)
	r.lasts(path+".maxWait.standard", f.MaxWait.Standard, 0, longest)
	r.lasts(path+".maxWait.sheddable", f.MaxWait.Sheddable, 0, longest)
	r.lasts(path+".gatewayTimeout", f.GatewayTimeout, 50*time.Millisecond, longest)
	r.within(path+".degradeAt", f.DegradeAt, 0, 1)
	if f.Tenants.Header != "" {
		r.matches(path+".tenants.header", f.Tenants.Header, headerName)
	}
	r.between(path+".tenants.requestsPerMinute", f.Tenants.RequestsPerMinute, 0, 1e9)
	r.between(path+".tenants.tokensPerMinute", f.Tenants.TokensPerMinute, 0, 1e9)
	r.between(path+".tenants.assumedMaxTokens", f.Tenants.AssumedMaxTokens, 0, 1e9)
	r.between(path+".tenants.max", f.Tenants.Max, 1, 10_000_000)
	seen := make(map[string]bool, len(f.Degrade))
	r.between(path+".degrade", len(f.Degrade), 0, maxRewrites)
	for i, d := range f.Degrade {
		at := path + ".degrade[" + strconv.Itoa(i) + "]"
		r.matches(at+".model", d.Model, servedName)
		r.matches(at+".to", d.To, servedName)
		if seen[d.Model] {
			r.broken(at+".model", "%q; must be in the list once", d.Model)
		}
		if seen[d.Model] = true; d.To == d.Model && d.To != "" {
			r.broken(at+".to", "%q; must be another model", d.To)
		}
	}
}

// within checks a number, which must not be NaN either.
func (r *rules) within(path string, value, least, most float32) {
	if !(value >= least && value <= most) {
		r.broken(path, "%g; must be ≥ %s and ≤ %s", value, decimal(least), decimal(most))
	}
}

// decimal is a bound without an exponent, as the CRDs have it.
func decimal(v float32) string { return strconv.FormatFloat(float64(v), 'f', -1, 32) }

// validateDegrade checks that the models are there that requests are to go to.
func validateDegrade(path string, all []Degrade, known func(model string) bool, r *rules) {
	for i, d := range all {
		if d.To != "" && !known(d.To) {
			r.broken(path+"["+strconv.Itoa(i)+"].to", "%q; must be the id of a model that is served", d.To)
		}
	}
}
