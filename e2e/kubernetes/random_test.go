//go:build kube

package kubernetes

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"millrace.dev/millrace/internal/config"
)

// randomFile is the name of what random makes.
const randomFile = "random"

// random makes objects of which about half have a fault.
type random struct {
	*rand.Rand
	// bad is how likely a value is one that may be bad.
	bad float64
}

func newRandom(t *testing.T) *random {
	const seed = 1 // the same objects in each run; another seed is for whoever changes rules
	t.Logf("seed %d", seed)
	return &random{Rand: rand.New(rand.NewPCG(seed, 9))}
}

// goodValues are values that a field of the name may have.
var goodValues = map[string][]any{
	"weights": {"a.gguf", "/models/a"}, "tokenizer": {"t.json"}, "kind": {"llamacpp", "vllm", "openai"},
	"contextTokens": {128, 4096, 0}, "args": {[]any{"--dtype", "float32"}, []any{}, []any{"-O2"}}, "url": {"http://h:1", "https://[::1]:8/v1", ""}, "model": {"m", "org/m"},
	"stages": {1, 1, 2}, "shares": {[]any{1, 2.5}, []any{1}, []any{}}, "nodes": {[]any{"a", "b-1"}, []any{"a"}},
	"header": {"x-a"}, "name": {"a", "b-1"}, "keyFile": {"k"}, "idle": {"30m", "1h30m", "1.5s"}, "default": {"critical", "standard", "sheddable"},
	"maxBodyBytes": {"16Mi", 4096, "3M", "1Gi"}, "maxBytesInFlight": {"256Mi", 1 << 21, "3M", "64Gi"}, "requestTimeout": {"10m", "1s"}, "maxPerTry": {"0s", "2s"}, "hedgeAfter": {"0s", "2s", "5m"}, "hedgeOthersAfter": {"0s", "2s", "5m"},
	"critical": {2}, "standard": {1}, "sheddable": {16}, "gatewayTimeout": {"50ms", "1h"}, "to": {"b"}, "weight": {1, 9}, "max": {1, 1000},
	"reserve": {0, 0.5, 0.9}, "degradeAt": {0, 1, 0.25}, "address": {"10.0.0.1:80", "[fd00::2]:8000"}, "models": {[]any{"a", "org/b"}},
	"type": {"vllm", "sglang", "openai"}, "metrics": {"http://10.0.0.3:1/m?x=y", ""}, "node": {"n1"}, "zone": {"rack/1"}, "connect": {"10.0.0.1:5557"}, "listen": {""},
	"topic": {"kv"}, "tls": {"None", "IstioMutual"}, "namespace": {"ns"}, "api": {"Kubernetes", "Istio"}, "mode": {"EnvoyFilter", "InferencePool"},
	"hosts": {[]any{"*.a.example", "b"}}, "namespaces": {[]any{"a", "b"}}, "selector": {map[string]any{"app": "x", "a.b/c": ""}},
}

// texts, numbers and the rest are values at bounds, and beyond.
var (
	texts = []any{
		"", "a", "A b", "é", "a\nb", "a\x7fb", "x-a", "X-A", "a:b", "..", "a..b", "-", "--", "--port", "--port=1", "--tensor_parallel", "-tp", "-n2", "-np=3",
		"--kv-events-config.x=1", "--model-impl", "eager", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1", "1.2.3:4", "[::1]:1", "::1:1", "[fe80::1%e]:1", "[::ffff:1.2.3.4]:1",
		"h:80", "01.2.3.4:5", "10.0.0.1:080", "http://", "http://h", "http://h:x", "http://h/%zz", "http://[z]:1", "http://u:p@h/", "http://h/?q", "http://h/#f", "HTTP://h", "ftp://h",
		"1s", "61m", "0", "0s", "-1s", "+5m", ".5h", "1d", "9999999h", "1h 2m", "1e3s", "721h", "16Mi", "16Mb", "1023", "2Gi", "1Ki", "-1", "+4k", "99999999999999999999", "1.5Gi",
		"critical", "high", "None", "none", "Istio", "triton", "llamacpp", "*", "*.", "*.*", "a.*", "a_b", "a/b", "a/b/c", "/", strings.Repeat("a", 64), strings.Repeat("a", 97), strings.Repeat("é", 90),
	}
	numbers = []any{-1, 0, 1, 2, 16, 17, 64, 127, 128, 256, 257, 1023, 1024, 1025, 65535, 65536, 65537, 10000000, 10000001, 16777216, 16777217, 1000000000, 1000000001, 2.0}
	floats  = []any{-1, -0.25, 0, 0.5, 0.9, 0.95, 1, 1.5, 1000000, 1000001}
)

func oneOf(r *random, all []any) any { return all[r.IntN(len(all))] }

// object returns an object of any kind.
func (r *random) object(t *testing.T) document {
	t.Helper()
	r.bad = [...]float64{0, 0.02, 0.1}[r.IntN(3)]
	kinds := map[string]reflect.Type{
		config.KindModel: reflect.TypeFor[config.ModelSpec](), config.KindPolicy: reflect.TypeFor[config.PolicySpec](), config.KindEndpoints: reflect.TypeFor[config.EndpointsSpec](),
	}
	kind := [...]string{config.KindModel, config.KindModel, config.KindPolicy, config.KindEndpoints}[r.IntN(4)]
	name := map[string][]any{config.KindModel: {"a", "smollm2", "qwen2.5-7b"}, config.KindPolicy: {"default"}, config.KindEndpoints: {"pool"}}
	if r.Float64() < r.bad {
		name[kind] = []any{"other", strings.Repeat("a", 64), "a.b"}
	}
	n, _ := oneOf(r, name[kind]).(string)
	b, err := json.Marshal(map[string]any{"apiVersion": config.APIVersion, "kind": kind, "metadata": map[string]any{"name": n}, "spec": r.value("", kinds[kind])})
	if err != nil {
		t.Fatal(err)
	}
	return document{file: randomFile, text: string(b), kind: kind, name: n}
}

// value returns a value of a type, for the field of a name.
func (r *random) value(name string, typ reflect.Type) any {
	values, ok := goodValues[name]
	bad := r.Float64() < r.bad
	switch kind := typ.Kind(); {
	case bad && r.IntN(10) == 0:
		return oneOf(r, []any{nil, true, "x", 1, []any{}, map[string]any{}})
	case kind == reflect.Struct && typ != reflect.TypeFor[config.Duration]():
		return r.fields(typ)
	case kind == reflect.Slice && typ.Elem().Kind() == reflect.Struct || kind == reflect.Slice && bad:
		all := []any{}
		for range r.IntN(3) {
			all = append(all, r.value("", typ.Elem()))
		}
		return all
	case kind == reflect.Bool:
		return r.IntN(2) == 0
	case !bad && ok:
		return oneOf(r, values)
	case kind == reflect.Int && !bad:
		return 1 + r.IntN(4)
	case kind == reflect.Int:
		return oneOf(r, numbers)
	case kind == reflect.Float32:
		return oneOf(r, floats)
	case kind == reflect.Int64: // a size
		return oneOf(r, append(numbers[:len(numbers):len(numbers)], texts...))
	case kind == reflect.Map:
		key, _ := oneOf(r, texts).(string)
		return map[string]any{key: oneOf(r, texts)}
	default:
		return oneOf(r, texts)
	}
}

// fields returns some fields of a struct; what it can't do without more often.
func (r *random) fields(typ reflect.Type) any {
	all := map[string]any{}
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		often := strings.Contains(" weights address models endpoints model to name ", " "+name+" ") && r.Float64() > r.bad
		if name != "-" && (often || r.IntN(3) == 0) {
			all[name] = r.value(name, typ.Field(i).Type)
		}
	}
	return all
}
