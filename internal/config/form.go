package config

import (
	"regexp"
	"unicode/utf8"
)

// form is what a text must look like.
type form struct {
	pattern *regexp.Regexp
	// words are for faults, after "must be".
	words string
	// most is how many characters it has at most.
	most int
}

func (f form) fits(value string) bool {
	return utf8.RuneCountInString(value) <= f.most && f.pattern.MatchString(value)
}

// The parts of each form are constants: the CRDs are generated with the same, where a
// field has the marker millrace:form with the form's name.
const (
	// A model's name is an object's, too: a subdomain as of RFC 1123.
	modelNamePattern = `^[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`
	modelNameWords   = `1 to 63 lower-case letters, digits, "-" or "."`
	modelNameMax     = 63

	nodeNamePattern = `^[a-z0-9]+(-+[a-z0-9]+)*$`
	nodeNameWords   = `1 to 63 lower-case letters, digits or "-"`
	nodeNameMax     = 63

	// RFC 9110, section 5.6.2, lower case as in HTTP/2.
	headerNamePattern = "^[a-z0-9!#$%&'*+.^_`|~-]{1,128}$"
	headerNameWords   = "the name of a header in lower case"
	headerNameMax     = 128

	// RFC 6265, section 4.1.1.
	cookieNamePattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]{0,128}$"
	cookieNameWords   = "the name of a cookie"
	cookieNameMax     = 128

	// What engines accept as the id of a model: often that of a repository, with a slash.
	servedNamePattern = `^[!-~]+$`
	servedNameWords   = "1 to 96 printable characters without spaces"
	servedNameMax     = 96

	// A failure domain or a node, whatever its people call it.
	zoneNamePattern = `^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`
	zoneNameWords   = `1 to 63 letters, digits, ".", "_", "/" or "-"`
	zoneNameMax     = 63

	// Objects of JSON. That it is one -check and xds find, an API server cannot.
	templateArgsPattern = `^\{(.|\n)*\}$`
	templateArgsWords   = "a JSON object, as vLLM's --default-chat-template-kwargs takes it"
	templateArgsMax     = 4096

	metricsURLPattern = `^https?://([A-Za-z0-9._~%!$&'()*+,;=:-]+@)?([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/([A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?([?][!-~]*)?$`
	metricsURLWords   = "a URL such as http://10.0.0.3:8000/metrics"
	metricsURLMax     = 512

	serverNamePattern = `^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?([.][A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*$`
	serverNameWords   = "the name of a host, as certificates have it"
	serverNameMax     = 253

	envNamePattern = `^[A-Za-z_][A-Za-z0-9_]*$`
	envNameWords   = "the name of an environment variable"
	envNameMax     = 128
)

var (
	modelName    = form{regexp.MustCompile(modelNamePattern), modelNameWords, modelNameMax}
	nodeName     = form{regexp.MustCompile(nodeNamePattern), nodeNameWords, nodeNameMax}
	headerName   = form{regexp.MustCompile(headerNamePattern), headerNameWords, headerNameMax}
	cookieName   = form{regexp.MustCompile(cookieNamePattern), cookieNameWords, cookieNameMax}
	servedName   = form{regexp.MustCompile(servedNamePattern), servedNameWords, servedNameMax}
	templateArgs = form{regexp.MustCompile(templateArgsPattern), templateArgsWords, templateArgsMax}
	zoneName     = form{regexp.MustCompile(zoneNamePattern), zoneNameWords, zoneNameMax}
	metricsURL   = form{regexp.MustCompile(metricsURLPattern), metricsURLWords, metricsURLMax}
	serverName   = form{regexp.MustCompile(serverNamePattern), serverNameWords, serverNameMax}
	envName      = form{regexp.MustCompile(envNamePattern), envNameWords, envNameMax}
)

// Bounds of what has no other. An API server asks for one of every text and list.
const (
	maxPath           = 4096 // characters
	maxLayout         = 128  // entries
	maxEndpointModels = 100  // models of an endpoint
	maxOneObject      = 1024 // endpoints of one object
)
