package inventory

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
)

func TestOfObjects(t *testing.T) {
	object := func(name string, addresses ...string) (o desired.Object[config.EndpointsSpec]) {
		o.Kind, o.Name = config.KindEndpoints, name
		for _, a := range addresses {
			o.Spec.Endpoints = append(o.Spec.Endpoints, config.Endpoint{Address: a, Models: []string{"m"}})
		}
		return o
	}
	var got []string
	for _, e := range OfObjects([]desired.Object[config.EndpointsSpec]{object("a", "10.0.0.1:1", "10.0.0.2:1"), object("b", "10.0.0.2:1", "10.0.0.3:1")}) {
		got = append(got, e.Source+" "+e.Address)
	}
	if diff := cmp.Diff([]string{"Endpoints/a 10.0.0.1:1", "Endpoints/a 10.0.0.2:1", "Endpoints/b 10.0.0.3:1"}, got); diff != "" {
		t.Error(diff)
	}
}
