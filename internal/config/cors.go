package config

import (
	"regexp"
	"time"
)

// CORS is which web pages may ask the gateway from a browser. It lets pages read answers; it
// is no protection of the gateway: who is no browser asks anyway.
//
// +kubebuilder:object:generate=true
type CORS struct {
	// Origins are those of the pages, such as https://chat.example.com, at most 64; "*" is
	// any. Default: none, and browsers show no page an answer.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +millrace:each:form:name=origin
	// +millrace:once
	Origins []string `json:"origins,omitempty"`
	// MaxAge is how long a browser may ask without asking first whether it may, 0s to 24h.
	// Default 10m.
	// +kubebuilder:default="10m"
	// +millrace:lasts:least="0s",most="24h"
	MaxAge Duration `json:"maxAge"`
}

// maxOrigins bounds the list of origins.
const maxOrigins = 64

const (
	originPattern = `^(\*|https?://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?)$`
	originWords   = `"*" or scheme and host in lower case, such as https://chat.example.com, without a path`
	originMax     = 270
)

// What may stand in front of the API's paths: segments, of which none is empty, dots only,
// or v1 alone.
const (
	pathPrefixPattern = `^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+$`
	pathPrefixWords   = `segments of letters, digits and "-._~" behind a "/" each, without one at the end, such as /llm or /team-a/llm`
	pathPrefixMax     = 128
	maxPathPrefixes   = 16
)

var pathPrefix = form{regexp.MustCompile(pathPrefixPattern), pathPrefixWords, pathPrefixMax}

var origin = form{regexp.MustCompile(originPattern), originWords, originMax}

func (c CORS) validate(path string, r *rules) {
	r.between(path+".origins", len(c.Origins), 0, maxOrigins)
	r.eachOnce(path+".origins", c.Origins, origin)
	r.lasts(path+".maxAge", c.MaxAge, 0, 24*time.Hour)
}
