// Package inventory lists the endpoints that send no reports.
//
// extproc calls it for the file of a fleet, whose host names Names looks up, xds for the
// Endpoints of its desired state; another source of endpoints is another function that
// returns Entries. Its one rule: it lists endpoints. Their state is observed by probe, and
// endpoints combines the two.
package inventory

import (
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
)

// Entry is one endpoint that exists.
type Entry struct {
	config.Endpoint
	// UID is the identity of what is behind the address: where it is another one, nothing
	// that was known of the address is true any more. Empty: the address is all there is.
	UID string
	// Source is the kind and name of what names it, for example "Endpoints/pool"; empty: a
	// fleet's file does.
	Source string
}

// Equal reports whether both say the same.
func (e Entry) Equal(o Entry) bool {
	return e.UID == o.UID && e.Source == o.Source && e.Endpoint.Equal(o.Endpoint)
}

// OfObjects returns the endpoints that objects of a desired state name. An address that
// several name is the first one's.
func OfObjects(objects []desired.Object[config.EndpointsSpec]) []Entry {
	var all []Entry
	seen := map[string]bool{}
	for _, o := range objects {
		for _, e := range o.Spec.Endpoints {
			if !seen[e.Address] {
				seen[e.Address] = true
				all = append(all, Entry{Endpoint: e, Source: o.Kind + "/" + o.Name})
			}
		}
	}
	return all
}
