package probe

import (
	"encoding/json"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/secret"
)

// versionPage is where an endpoint says which version its engine is. SGLang's page has more
// than the model's, and costs its scheduler a question: once a minute is seldom enough.
func versionPage(e *config.Endpoint) secret.URL {
	switch e.Type {
	case config.TypeVLLM:
		return e.URL("/version")
	case "sglang":
		return e.URL("/get_server_info")
	}
	return ""
}

// mostVersion is the longest version that is believed, in bytes.
const mostVersion = 64

// versionIn reads such a page; empty: it does not say.
func versionIn(page []byte) string {
	var p struct {
		Version string `json:"version"`
	}
	if json.Unmarshal(page, &p) != nil || len(p.Version) > mostVersion {
		return ""
	}
	for _, c := range p.Version {
		if c < '!' || c > '~' {
			return ""
		}
	}
	return p.Version
}
