package translate

import (
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jsonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/json_to_metadata/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/wire"
)

// Where a mesh has several models and extproc is away, Envoy reads from the body
// which one is meant: else all requests would reach the default one's engines,
// which refuse the others. In a mesh of one model no route switches this on. Where
// extproc has named the model, the request's route switches the reading off.

// modelFilter is the name of the filter that reads the model.
const modelFilter = "envoy.filters.http.json_to_metadata"

// severalModels is whether a request's model matters to Envoy.
func severalModels(d *desired.State) bool { return len(d.Models) > 1 }

// modelReader returns the filter, switched off but on routes that want it.
func modelReader() *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: modelFilter, Disabled: true, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(readModel(jsonTypes))}}
}

// jsonTypes is a regular expression of the types of bodies that hold JSON, noType
// one of none.
const (
	jsonTypes = "application/json.*"
	noType    = "-"
)

// readModel reads the model of bodies whose type matches the regular expression.
func readModel(types string) *jsonv3.JsonToMetadata {
	return &jsonv3.JsonToMetadata{RequestRules: &jsonv3.JsonToMetadata_MatchRules{
		AllowContentTypes:      []string{noType}, // else application/json is allowed in any case
		AllowContentTypesRegex: &matcherv3.RegexMatcher{Regex: types},
		Rules: []*jsonv3.JsonToMetadata_Rule{{
			Selectors: []*jsonv3.JsonToMetadata_Selector{{Selector: &jsonv3.JsonToMetadata_Selector_Key{Key: wire.FactModel}}},
			OnPresent: &jsonv3.JsonToMetadata_KeyValuePair{MetadataNamespace: wire.BodyNamespace, Key: wire.FactModel},
		}},
	}}
}

// modelRead is the configuration of routes: whether the filter has to read.
func modelRead(on bool) *anypb.Any {
	types := jsonTypes
	if !on {
		types = noType
	}
	return pack(&routev3.FilterConfig{Config: pack(readModel(types))})
}

// named restricts what matches to requests whose body names the model.
func named(m *routev3.RouteMatch, model string) *routev3.RouteMatch {
	m.DynamicMetadata = []*matcherv3.MetadataMatcher{{
		Filter: wire.BodyNamespace,
		Path:   []*matcherv3.MetadataMatcher_PathSegment{{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: wire.FactModel}}},
		Value: &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{
			StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: model}},
		}},
	}}
	return m
}
