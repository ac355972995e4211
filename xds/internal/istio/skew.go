package istio

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"k8s.io/client-go/openapi"
)

// node is what is needed of a schema of OpenAPI version 3.
type node struct {
	Properties map[string]*node `json:"properties"`
	Items      *node            `json:"items"`
	// Additional is a schema, or true or false.
	Additional json.RawMessage `json:"additionalProperties"`
	Preserve   bool            `json:"x-kubernetes-preserve-unknown-fields"`
	Kinds      []struct {
		Group   string `json:"group"`
		Version string `json:"version"`
		Kind    string `json:"kind"`
	} `json:"x-kubernetes-group-version-kind"`
}

// Schemas are the schemas of the kinds that a cluster has; a kind that it does not have
// is missing.
type Schemas map[string]*node

// ParseSchemas reads the kinds of a document of /openapi/v3.
func ParseSchemas(document []byte, into Schemas) error {
	var d struct {
		Components struct {
			Schemas map[string]*node `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(document, &d); err != nil {
		return err
	}
	for _, n := range d.Components.Schemas {
		if n == nil {
			continue
		}
		for _, k := range Kinds() {
			for _, has := range n.Kinds {
				if has.Group == k.Group && has.Version == k.Version && has.Kind == k.Name {
					into[k.Name] = n
				}
			}
		}
	}
	return nil
}

// optional are fields without which an object is as good: an Istio that does not know them
// gets the object without them, and a condition says so.
var optional = []string{
	"spec.trafficPolicy.retryBudget",
	"spec.trafficPolicy.outlierDetection.minHealthPercent",
}

// Fit returns the object as the cluster's Istio can take it, with the fields left out
// that it does not know and can do without; nil if it can't take it. unknown are the
// paths that it does not know; "kind" for the whole kind.
func (s Schemas) Fit(o *Object) (fitting *Object, unknown []string) {
	n := s[o.Kind.Name]
	if n == nil {
		return nil, []string{"kind"}
	}
	n.unknown("spec", n.Properties["spec"], o.Spec, &unknown)
	if len(unknown) == 0 {
		return o, nil
	}
	slices.Sort(unknown)
	for _, path := range unknown {
		if !slices.Contains(optional, path) {
			return nil, unknown
		}
	}
	fit := *o
	fit.Spec = without(o.Spec, unknown)
	fit.hash = hashOf(fit.Labels, fit.Spec)
	return &fit, unknown
}

// unknown adds the paths of what v has and the schema has not.
func (*node) unknown(path string, n *node, v any, to *[]string) {
	switch v := v.(type) {
	case map[string]any:
		for k, field := range v {
			at := path + "." + k
			switch {
			case n == nil || n.Preserve:
			case n.Properties[k] != nil:
				n.unknown(at, n.Properties[k], field, to)
			case !n.extensible():
				*to = append(*to, at)
			}
		}
	case []any:
		for i, item := range v {
			if n != nil && n.Items != nil {
				n.unknown(path+"["+strconv.Itoa(i)+"]", n.Items, item, to)
			}
		}
	}
}

// extensible reports whether an object of the schema may have any field. The contents of
// such fields are not compared: labels and ports are all there are.
func (n *node) extensible() bool {
	text := strings.TrimSpace(string(n.Additional))
	return text != "" && text != "false" || len(n.Properties) == 0
}

// without returns a copy of a spec without the fields at paths, none of which is in a list.
func without(spec map[string]any, paths []string) map[string]any {
	copied := jsonOf(spec)
	for _, path := range paths {
		keys := strings.Split(strings.TrimPrefix(path, "spec."), ".")
		at := copied
		for _, k := range keys[:len(keys)-1] {
			next, ok := at[k].(map[string]any)
			if !ok {
				break
			}
			at = next
		}
		delete(at, keys[len(keys)-1])
	}
	return copied
}

// fetchSchemas returns what the cluster has of the kinds, and what identifies its version.
// before is kept where that has not changed.
func fetchSchemas(c openapi.Client, before Schemas, version string) (Schemas, string, error) {
	paths, err := c.Paths()
	if err != nil {
		return before, version, err
	}
	wanted := make(map[string]openapi.GroupVersion)
	var names []string
	for _, k := range Kinds() {
		path := "apis/" + k.Group + "/" + k.Version
		if gv := paths[path]; gv != nil && wanted[path] == nil {
			wanted[path] = gv
			names = append(names, gv.ServerRelativeURL()) // it has a hash of the content in it
		}
	}
	slices.Sort(names)
	if now := strings.Join(names, " "); now == version && before != nil {
		return before, version, nil
	}
	all := Schemas{}
	for path, gv := range wanted {
		b, err := gv.Schema("application/json")
		if err != nil {
			return before, version, fmt.Errorf("%s: %w", path, err)
		}
		if err := ParseSchemas(b, all); err != nil {
			return before, version, fmt.Errorf("%s: %w", path, err)
		}
	}
	return all, strings.Join(names, " "), nil
}
