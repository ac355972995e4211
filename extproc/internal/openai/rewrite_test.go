package openai

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestRewriteModel(t *testing.T) {
	for _, tt := range []struct{ body, want string }{
		{`{"model":"a","x":{"model":"a"}}`, `{"model":"b\"c","x":{"model":"a"}}`},
		{` { "x" : [ "model" ] , "model" : "a" } `, ` { "x" : [ "model" ] , "model" : "b\"c" } `},
		{`{"model":"a","\u006dodel":"z","n":1}`, `{"model":"a","\u006dodel":"b\"c","n":1}`},
		{`{"model":null}`, `{"model":"b\"c"}`},
		{`{"x":1}`, `{"x":1}`},
		{`{"model":"a"`, `{"model":"a"`},
		{``, ``},
	} {
		if got := string(RewriteModel([]byte(tt.body), `b"c`)); got != tt.want {
			t.Errorf("RewriteModel(%s) = %s, want %s", tt.body, got, tt.want)
		}
	}
}

func FuzzRewriteModel(f *testing.F) {
	f.Add([]byte(`{"model":"a","messages":[],"\u006dodel":"b"}`), "c")
	f.Add([]byte(`{"model":{"model":1},"x":"\ud83d"}`), "\"\xff")
	f.Fuzz(func(t *testing.T, body []byte, model string) {
		var before, after map[string]any
		if json.Unmarshal(body, &before) != nil || before == nil || tooDeep(body) {
			return
		}
		if err := json.Unmarshal(RewriteModel(body, model), &after); err != nil {
			t.Fatalf("RewriteModel(%q): %v", body, err)
		}
		if _, ok := before["model"]; ok {
			name, _ := json.Marshal(model)
			var want string
			_ = json.Unmarshal(name, &want)
			before["model"] = want
		}
		if !reflect.DeepEqual(before, after) {
			t.Errorf("RewriteModel(%q) = %v, want %v", body, after, before)
		}
	})
}
