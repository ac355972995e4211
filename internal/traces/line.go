package traces

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"millrace.dev/millrace/internal/trust"
)

// line is a ResourceSpans as Line writes it.
type line struct {
	Resource struct {
		Attributes []attribute `json:"attributes"`
	} `json:"resource"`
	ScopeSpans []struct {
		Spans []struct {
			Trace      string      `json:"traceId"`
			ID         string      `json:"spanId"`
			Parent     string      `json:"parentSpanId"`
			Name       string      `json:"name"`
			Start      string      `json:"startTimeUnixNano"`
			End        string      `json:"endTimeUnixNano"`
			Attributes []attribute `json:"attributes"`
			Status     struct {
				Code int `json:"code"`
			} `json:"status"`
		} `json:"spans"`
	} `json:"scopeSpans"`
}

type attribute struct {
	Key   string `json:"key"`
	Value value  `json:"value"`
}

type value struct {
	Text   *string  `json:"stringValue"`
	Int    *string  `json:"intValue"`
	Double *float64 `json:"doubleValue"`
	Bool   *bool    `json:"boolValue"`
	List   *struct {
		Values []value `json:"values"`
	} `json:"arrayValue"`
}

func (v value) any() any {
	switch {
	case v.Text != nil:
		return *v.Text
	case v.Int != nil:
		n, err := trust.Number(*v.Int, math.MinInt64, math.MaxInt64)
		if err != nil {
			return nil
		}
		return n
	case v.Double != nil:
		return *v.Double
	case v.Bool != nil:
		return *v.Bool
	case v.List != nil:
		all := []string{}
		for _, one := range v.List.Values {
			all = append(all, fmt.Sprint(one.any()))
		}
		return all
	}
	return nil
}

// statusError is OTLP's STATUS_CODE_ERROR.
const statusError = 2

func (l *line) spans(trace string, found map[string]Span) {
	var service, node string
	for _, a := range l.Resource.Attributes {
		switch text, _ := a.Value.any().(string); a.Key {
		case "service.name":
			service = text
		case "service.instance.id":
			node = text
		}
	}
	for _, scope := range l.ScopeSpans {
		for _, s := range scope.Spans {
			if s.Trace != trace {
				continue
			}
			one := Span{Service: service, Node: node, Name: s.Name, ID: s.ID, Parent: s.Parent, Start: nanos(s.Start), End: nanos(s.End), Failed: s.Status.Code == statusError}
			if one.End.Before(one.Start) {
				one.End = one.Start
			}
			one.Attributes = make(map[string]any, len(s.Attributes))
			for _, a := range s.Attributes {
				one.Attributes[a.Key] = a.Value.any()
			}
			found[s.ID] = one
		}
	}
}

// nanos reads OTLP-JSON's 64-bit numbers, which are texts.
func nanos(text string) time.Time {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		n = 0
	}
	return time.Unix(0, n)
}
