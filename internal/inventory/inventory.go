// Package inventory knows which endpoints exist that report nothing themselves.
//
// extproc calls it for the file of a fleet, xds for the Endpoints of its desired state;
// what else names endpoints is another function that returns Entries. Its one rule: it
// says who exists. How they are is found out by probe, and endpoints puts both together.
package inventory

import (
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
)

// Entry is one endpoint that exists.
type Entry struct {
	config.Endpoint
	// Source is the kind and name of what names it, for example "Endpoints/pool"; empty: a
	// fleet's file does.
	Source string
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

// Probed returns what a Prober is to be set to.
func Probed(entries []Entry) []config.Endpoint {
	all := make([]config.Endpoint, len(entries))
	for i, e := range entries {
		all[i] = e.Endpoint
	}
	return all
}
