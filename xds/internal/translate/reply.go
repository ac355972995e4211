package translate

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// reply is how one kind of Envoy's own answers is said in the API's form.
type reply struct {
	// from and below bound the status.
	from, below uint32
	// kind and code are the error's type and code in the OpenAI API.
	kind, code string
	// again is when the client is to come back, in seconds; empty: not.
	again string
	// message is said where Envoy says nothing; empty: what Envoy says.
	message string
}

// errorReplies covers every status from 400 up. The first that matches holds.
var errorReplies = []reply{
	{from: 403, below: 404, kind: "invalid_request_error", code: "upgrade_not_supported", message: "connections can't be upgraded here (websocket and the like): send the request without the header Upgrade"},
	{from: 404, below: 405, kind: "invalid_request_error", code: "not_found"},
	{from: 405, below: 406, kind: "invalid_request_error", code: "method_not_allowed"},
	{from: 408, below: 409, kind: "invalid_request_error", code: "request_timeout"},
	{from: 413, below: 414, kind: "invalid_request_error", code: "request_too_large"},
	{from: 429, below: 430, kind: "rate_limit_error", code: "rate_limit_exceeded", again: "1"},
	{from: 431, below: 432, kind: "invalid_request_error", code: "headers_too_large"},
	{from: 400, below: 500, kind: "invalid_request_error", code: "invalid_request"},
	{from: 503, below: 504, kind: "server_error", code: "unavailable", again: "1"},
	{from: 504, below: 505, kind: "server_error", code: "timeout"},
	{from: 500, below: 600, kind: "server_error", code: "internal_error"},
}

// messagesPath is a pattern of the paths of Anthropic's API.
const messagesPath = "(/v1)?/messages.*"

// replies gives Envoy's own answers the form of the API that was asked: Anthropic's
// on its paths, else OpenAI's. What is JSON already, from extproc or a route, stays
// as it is.
func replies() *hcmv3.LocalReplyConfig {
	c := &hcmv3.LocalReplyConfig{Mappers: []*hcmv3.ResponseMapper{{
		Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{
			ExtensionFilter: &accesslogv3.ExtensionFilter{
				Name: "envoy.access_loggers.extension_filters.cel",
				ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: pack(&celv3.ExpressionFilter{
					Expression: `response.headers["content-type"].startsWith("application/json")`,
				})},
			},
		}},
		BodyFormatOverride: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{
				TextFormatSource: text("%LOCAL_REPLY_BODY%"),
			},
			ContentType: "application/json",
		},
	}}}
	for _, r := range errorReplies {
		c.Mappers = append(c.Mappers, r.mapper(anthropicBody(r.text(), anthropicType(r)), onPath(messagesPath)))
	}
	for _, r := range errorReplies {
		c.Mappers = append(c.Mappers, r.mapper(errorBody(r.text(), r.kind, r.code)))
	}
	return c
}

// text is the error's message, as a format of Envoy's.
func (r reply) text() string {
	if r.message != "" {
		return r.message
	}
	return "%LOCAL_REPLY_BODY%"
}

// anthropicType is the class of an error in Anthropic's API.
func anthropicType(r reply) string {
	switch r.from {
	case 404:
		return "not_found_error"
	case 413:
		return "request_too_large"
	case 503:
		return "overloaded_error"
	case 504:
		return "timeout_error"
	case 500:
		return "api_error"
	}
	return r.kind
}

// mapper gives the reply a body where the filters match, too.
func (r reply) mapper(body *structpb.Struct, more ...*accesslogv3.AccessLogFilter) *hcmv3.ResponseMapper {
	m := &hcmv3.ResponseMapper{
		Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{
			AndFilter: &accesslogv3.AndFilter{Filters: append([]*accesslogv3.AccessLogFilter{
				status(accesslogv3.ComparisonFilter_GE, r.from),
				status(accesslogv3.ComparisonFilter_LE, r.below-1),
			}, more...)},
		}},
		BodyFormatOverride: &corev3.SubstitutionFormatString{
			Format:      &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: body},
			ContentType: "application/json",
		},
	}
	if r.again != "" {
		m.HeadersToAdd = []*corev3.HeaderValueOption{set("retry-after", r.again)}
	}
	return m
}

// status is a filter on the response's status. A value that can be changed at
// run time must have a key, which nobody sets.
func status(op accesslogv3.ComparisonFilter_Op, code uint32) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{
		StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: &accesslogv3.ComparisonFilter{
			Op:    op,
			Value: &corev3.RuntimeUInt32{DefaultValue: code, RuntimeKey: "millrace.unused"},
		}},
	}}
}

// onPath is a filter on the whole of the request's path.
func onPath(pattern string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_HeaderFilter{
		HeaderFilter: &accesslogv3.HeaderFilter{Header: &routev3.HeaderMatcher{
			Name: ":path",
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: pattern}},
			}},
		}},
	}}
}

// anthropicBody is an error in the form of Anthropic's API.
func anthropicBody(message, kind string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		"type": structpb.NewStringValue("error"),
		"error": structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			"type":    structpb.NewStringValue(kind),
			"message": structpb.NewStringValue(message),
		}}),
	}}
}

// errorBody is an error in the form of the OpenAI API.
func errorBody(message, kind, code string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		"error": structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			"message": structpb.NewStringValue(message),
			"type":    structpb.NewStringValue(kind),
			"param":   structpb.NewNullValue(),
			"code":    structpb.NewStringValue(code),
		}}),
	}}
}

func text(s string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}}
}

func set(header, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: header, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}
