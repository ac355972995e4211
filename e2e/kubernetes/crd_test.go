//go:build kube

package kubernetes

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"millrace.dev/millrace/e2e/cluster"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/kubeapi"
	"millrace.dev/millrace/internal/secret"
)

// repository is its root, seen from this package's folder.
var repository = filepath.Join("..", "..")

// apiServer is an API server of its own that serves Millrace's objects.
func apiServer(t *testing.T) *cluster.Cluster {
	t.Helper()
	c, err := cluster.Up(t.Context(), cluster.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Down(); err != nil {
			t.Error(err)
		}
	})
	if out, err := c.Kubectl(t.Context(), "apply", "--server-side", "-f", filepath.Join(repository, "manifests", "crds")); err != nil {
		t.Fatal(out, err)
	}
	if _, err := c.Kubectl(t.Context(), "wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestCRDs tests the CRDs on a real API server.
func TestCRDs(t *testing.T) {
	c := apiServer(t)
	for name, test := range map[string]func(*testing.T, *cluster.Cluster){
		"refuse what -check refuses": testCRDsRefuseWhatCheckRefuses,
		"take what -check takes":     testCRDsTakeWhatCheckTakes,
		"default as config does":     testCRDsDefaultAsConfigDoes,
		"are as large as for -check": testCRDsAreAsLargeAsForCheck,
		"scale":                      testModelsScale,
		"judge as -check does":       testCRDsJudgeAsCheckDoes,
	} {
		t.Run(name, func(t *testing.T) { test(t, c) })
	}
}

// document is one object of a YAML file.
type document struct {
	file, text, kind, name string
}

var (
	documentEnd = regexp.MustCompile(`(?m)^---.*\n`)
	kindOf      = regexp.MustCompile(`(?m)^kind: *(\w+)`)
	comments    = regexp.MustCompile(`(?m)^# want .*\n?`)
)

// documents returns the objects of a file.
func documents(t *testing.T, file string) []document {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return objectsIn(file, string(b))
}

func objectsIn(file, text string) []document {
	var all []document
	for _, text := range documentEnd.Split(comments.ReplaceAllString(text, ""), -1) {
		var o struct {
			Kind     string
			Metadata struct{ Name string }
		}
		_ = yaml.Unmarshal([]byte(text), &o) // what is no YAML has no name
		if m := kindOf.FindStringSubmatch(text); m != nil {
			o.Kind = m[1]
		}
		if strings.Contains(text, "\n  ") || strings.Contains(text, ":") || strings.HasPrefix(text, "- ") {
			if d := (document{file, text, o.Kind, o.Metadata.Name}); !empty(text) {
				all = append(all, d)
			}
		}
	}
	return all
}

// empty reports whether a text has nothing but comments.
func empty(text string) bool {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			return false
		}
	}
	return true
}

// answer is what an API server has to say to an object.
type answer struct {
	// Message is all of it; empty: the object is taken.
	Message string
	Details struct{ Causes []cause }
}

// cause is one fault.
type cause struct{ Reason, Message, Field string }

// refusal asks the API server for its verdict on an object, which is not kept.
func refusal(t *testing.T, c *cluster.Cluster, d document) answer {
	t.Helper()
	resource := kubeapi.Resources[d.kind]
	if resource == "" {
		resource = "models"
	}
	path := "/apis/millrace.dev/v1alpha1/namespaces/default/" + resource + "?dryRun=All&fieldValidation=Strict"
	form := "application/yaml"
	if d.file == randomFile {
		form = "application/json"
	}
	_, err := c.API(t.Context(), "POST", path, form, strings.NewReader(d.text))
	if err == nil {
		return answer{}
	}
	var a answer
	_, body, _ := strings.Cut(err.Error(), ": {")
	body = secret.Hide(body) // as -check does; what the API server quotes is what its caller sent
	if err := json.Unmarshal([]byte("{"+body), &a); err != nil || a.Message == "" {
		t.Fatalf("%s: %v", d.file, err)
	}
	return a
}

// checkSays returns what -check says to an object by itself, by "PATH: TEXT".
func checkSays(d document) []string {
	_, err := config.Parse("f.yaml", []byte(d.text))
	var all []string
	for _, f := range config.Faults(err) {
		if !strings.Contains(f.Text, "the id of a model that is served") { // other objects know
			all = append(all, strings.TrimPrefix(f.Path+": "+f.Text, ": "))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// same reports whether an API server's cause is a fault of -check, in the same words.
// Where a rule is about entries of a list, or the name, its message begins with the rest
// of the path.
func (c cause) same(fault string) bool {
	rest, ok := strings.CutPrefix(fault, strings.TrimPrefix(c.Field, "<nil>"))
	// CEL quotes as Go does, but for control characters without a letter.
	message := strings.ReplaceAll(c.Message, "\x7f", `\x7f`)
	return ok && strings.HasSuffix(message, ": "+strings.TrimPrefix(rest, ": "))
}

// compare returns what only one of both says.
func compare(faults []string, causes []cause) (check []string, server []cause) {
	for _, f := range faults {
		if !slices.ContainsFunc(causes, func(c cause) bool { return c.same(f) }) {
			check = append(check, f)
		}
	}
	for _, c := range causes {
		if !slices.ContainsFunc(faults, c.same) && !c.more(faults) {
			server = append(server, c)
		}
	}
	return check, server
}

// more reports whether a cause adds nothing to the faults of -check: it is about the form
// of what must be left out, or about a backend of no kind, or /scale's own rule about
// replicas.
func (c cause) more(faults []string) bool {
	if c.Field == ".spec.replicas" {
		return slices.ContainsFunc(faults, func(f string) bool { return strings.HasPrefix(f, "spec.replicas: -") })
	}
	return slices.ContainsFunc(faults, func(f string) bool {
		path, text, _ := strings.Cut(f, ": ")
		return strings.HasPrefix(c.Field, path) && strings.Contains(text, "must be left out") ||
			path == "spec.backend.kind" && strings.HasPrefix(c.Field, "spec.backend.")
	})
}

// Reasons why an API server refuses in words of its own.
const (
	unknownFields = "it knows unknown fields before it knows rules, and only those"
	typesFirst    = "it checks types first, and then no rules"
	sizesFirst    = "it checks sizes and keys of lists first, and then no rules"
	itsNames      = "names of objects are its own matter"
	itsYAML       = "it reads JSON, which has no NaN, and kubectl's YAML"
	itsKinds      = "apiVersion and kind say where an object goes"
	itsLists      = "it keeps the entries of lists different itself"
)

// inOwnWords are the files whose objects are refused by both, but not in the same words.
var inOwnWords = map[string]string{
	"api-version-missing.yaml": itsKinds, "api-version.yaml": itsKinds, "kind-missing.yaml": itsKinds, "kind.yaml": itsKinds, "kind-near.yaml": itsKinds,
	"not-an-object.yaml": itsKinds, "not-yaml.yaml": itsYAML, "key-twice.yaml": itsYAML, "share-nan.yaml": itsYAML, "flow.yaml": itsYAML,
	"model-name.yaml": itsNames, "model-name-missing.yaml": itsNames,
	"unknown-far.yaml": unknownFields, "unknown-near.yaml": unknownFields, "rewrites.yaml": unknownFields, "endpoints.yaml": unknownFields,
	"duration-object.yaml": typesFirst, "requesttimeout-form.yaml": typesFirst, "wrong-types.yaml": typesFirst, "wrong-scalars.yaml": typesFirst, "istio.yaml": typesFirst,
	"duration-number.yaml": typesFirst, "layout-null.yaml": typesFirst, "model-name-dots.yaml": itsNames, "policy-name-missing.yaml": itsNames,
	"nodes-twice.yaml": itsLists,
}

// testCRDsRefuseWhatCheckRefuses holds for every bad file that the API server refuses its
// objects with the words that -check prints, and takes those that have no fault alone.
func testCRDsRefuseWhatCheckRefuses(t *testing.T, c *cluster.Cluster) {
	files, err := filepath.Glob(filepath.Join(repository, "internal", "config", "testdata", "bad", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	same, own := 0, map[string]int{}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			for _, d := range documents(t, file) {
				want, got := checkSays(d), refusal(t, c, d)
				why := inOwnWords[filepath.Base(file)]
				if (len(want) > 0) != (got.Message != "") {
					t.Errorf("-check says %q, the API server %q\n%s", want, got.Message, d.text)
				}
				check, server := compare(want, got.Details.Causes)
				switch differ := len(check)+len(server) > 0; {
				case differ && why == "":
					t.Errorf("only -check says %q\nonly the API server says %+v %s", check, server, got.Message)
				case differ:
					own[why]++
				default:
					same += len(want)
				}
			}
		})
	}
	t.Logf("%d faults in the same words; objects refused in other words, by reason: %v", same, own)
}

// examples are the files and documents whose objects must apply as they are.
func examples(t *testing.T) []document {
	t.Helper()
	var all []document
	for _, pattern := range []string{"internal/config/testdata/good/*.yaml", "manifests/*.yaml"} {
		files, err := filepath.Glob(filepath.Join(repository, filepath.FromSlash(pattern)))
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, err)
		}
		for _, file := range files {
			all = append(all, documents(t, file)...)
		}
	}
	mesh, err := os.ReadFile(filepath.Join(repository, "manifests", "mesh.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range documentEnd.Split(string(mesh), -1) {
		if _, object, ok := strings.Cut(text, "# apiVersion:"); ok { // an example in comments
			text = regexp.MustCompile(`(?m)^# `).ReplaceAllString("# apiVersion:"+object, "")
			all = append(all, objectsIn("mesh.yaml, in comments", regexp.MustCompile(`(?m)^( +)# (\w+:)`).ReplaceAllString(text, "$1$2"))...)
		}
	}
	blocks := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```")
	err = filepath.WalkDir(repository, func(path string, e os.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".md" {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range blocks.FindAllStringSubmatch(string(b), -1) {
			if strings.Contains(m[1], "apiVersion: millrace.dev") {
				all = append(all, objectsIn(path, m[1])...)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(d document) bool { return kubeapi.Resources[d.kind] == "" })
}

// testCRDsTakeWhatCheckTakes holds that files of `millrace up` apply to a cluster as they
// are: every good file, and every example of the documentation.
func testCRDsTakeWhatCheckTakes(t *testing.T, c *cluster.Cluster) {
	all := examples(t)
	kinds := map[string]int{}
	for _, d := range all {
		kinds[d.kind]++
		if got := refusal(t, c, d); got.Message != "" {
			t.Errorf("%s: %s\n%s", d.file, got.Message, d.text)
		}
		if want := checkSays(d); len(want) > 0 {
			t.Errorf("%s: -check says %q\n%s", d.file, want, d.text)
		}
	}
	if len(kinds) < len(kubeapi.Resources) {
		t.Errorf("examples of %v only", kinds)
	}
	if out, err := c.Kubectl(t.Context(), "apply", "--validate=strict", "--namespace=kube-system", "-f", filepath.Join(repository, "manifests", "mesh.yaml")); err != nil {
		t.Error(out, err)
	}
	t.Logf("%d objects apply as they are: %v", len(all), kinds)
}

// storedSpec creates an object and returns its spec as the API server keeps it.
func storedSpec(t *testing.T, c *cluster.Cluster, kind, name, spec string) []byte {
	t.Helper()
	text := fmt.Sprintf(`{"apiVersion":"millrace.dev/v1alpha1","kind":%q,"metadata":{"name":%q},"spec":%s}`, kind, name, spec)
	b, err := c.API(t.Context(), "POST", "/apis/millrace.dev/v1alpha1/namespaces/kube-public/"+kubeapi.Resources[kind], "application/json", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var o struct{ Spec json.RawMessage }
	if err := json.Unmarshal(b, &o); err != nil {
		t.Fatal(err)
	}
	return o.Spec
}

// testCRDsDefaultAsConfigDoes holds that what an object leaves out is the same in a file
// and in a cluster, and that the API server has it written out.
func testCRDsDefaultAsConfigDoes(t *testing.T, c *cluster.Cluster) {
	const (
		// What depends on other fields, an API server can't default: xds does.
		model     = `{"weights":"/a.gguf","default":true,"replicas":2,"backend":{"contextTokens":4096},"layout":[{},{"stages":2}]}`
		endpoints = `{"endpoints":[{"address":"10.0.0.1:1","models":["a"],"node":"n"}]}`
		policy    = `{"rewrites":[{"model":"c","to":[{"model":"a"}]}],"istio":{"gateways":[{"name":"g"}]}}`
	)
	objects := []config.Object{
		{Kind: config.KindModel, Name: "a", Spec: []byte(model)},
		{Kind: config.KindEndpoints, Name: "e", Spec: []byte(endpoints)},
		{Kind: config.KindPolicy, Name: "default", Spec: []byte(policy)},
	}
	f, outcomes := config.Merge("/", objects)
	for _, o := range outcomes {
		if len(o.Faults)+len(o.Conflicts) > 0 {
			t.Fatalf("%+v", o)
		}
	}
	var m config.ModelSpec
	var e config.EndpointsSpec
	var p config.PolicySpec
	for i, into := range []any{&m, &e, &p} {
		o := objects[i]
		spec := storedSpec(t, c, o.Kind, o.Name, string(o.Spec))
		if err := json.Unmarshal(spec, into); err != nil {
			t.Fatalf("%v in %s", err, spec)
		}
		objects[i].Spec = spec
	}
	for name, diff := range map[string]string{
		"Model": cmp.Diff(f.Models[0].Spec, m), "Endpoints": cmp.Diff(f.Endpoints[0].Spec, e), "Policy": cmp.Diff(f.Policy.Spec, p),
	} {
		if diff != "" {
			t.Errorf("%s as stored (-config +API server):\n%s", name, diff)
		}
	}
	if again, _ := config.Merge("/", objects); !cmp.Equal(f, again) {
		t.Errorf("what is stored means something else (-given +stored):\n%s", cmp.Diff(f, again))
	}
}

// testCRDsAreAsLargeAsForCheck holds that lists and texts of the largest size are taken by
// both, and larger ones by none. An API server has words of its own for sizes.
func testCRDsAreAsLargeAsForCheck(t *testing.T, c *cluster.Cluster) {
	list := func(n int, entry string) string {
		var all []string
		for i := range n {
			all = append(all, strings.ReplaceAll(entry, "N", fmt.Sprint(i)))
		}
		return "[" + strings.Join(all, ",") + "]"
	}
	text := func(n int, _ string) string { return fmt.Sprintf("%q", strings.Repeat("é", n)) }
	for _, tt := range []struct {
		kind, spec string // in which VALUE is what has a size
		most       int
		value      func(n int, entry string) string
		entry      string
	}{
		{config.KindModel, `{"weights":"a","replicas":1024,"layout":VALUE}`, 128, list, `{}`},
		{config.KindModel, `{"weights":"a","layout":[{"stages":256,"nodes":VALUE}]}`, 256, list, `"n-N"`},
		{config.KindModel, `{"weights":"a","layout":[{"stages":256,"shares":VALUE}]}`, 256, list, `N.5`},
		{config.KindModel, `{"weights":"a","backend":{"kind":"vllm","args":VALUE}}`, 128, list, `"-xN"`},
		{config.KindModel, `{"weights":"a","backend":{"kind":"vllm","args":["--x",VALUE]}}`, 2048, text, ""},
		{config.KindModel, `{"weights":VALUE}`, 4096, text, ""},
		{config.KindModel, `{"replicas":0,"tokenizer":VALUE}`, 4096, text, ""},
		{config.KindModel, `{"backend":{"kind":"openai","url":"http://a","model":VALUE}}`, 512, text, ""},
		{config.KindEndpoints, `{"endpoints":VALUE}`, 1024, list, `{"address":"10.0.0.1:1N","models":["a"]}`},
		{config.KindEndpoints, `{"endpoints":[{"address":"10.0.0.1:1","models":VALUE}]}`, 100, list, `"m-N"`},
		{config.KindEndpoints, `{"endpoints":[{"address":"10.0.0.1:1","models":["m"],"type":"vllm","kvEvents":{"listen":"10.0.0.1:2","topic":VALUE}}]}`, 200, text, ""},
		{config.KindPolicy, `{"sessions":{"cookie":{"keyFile":VALUE}}}`, 4096, text, ""},
		{config.KindPolicy, `{"rewrites":VALUE}`, 512, list, `{"model":"a-N","to":[{"model":"smollm2"}]}`},
		{config.KindPolicy, `{"rewrites":[{"model":"a","to":VALUE}]}`, 16, list, `{"model":"m-N"}`},
		{config.KindPolicy, `{"flow":{"degrade":VALUE}}`, 512, list, `{"model":"m-N","to":"smollm2"}`},
		{config.KindPolicy, `{"istio":{"gateways":VALUE}}`, 64, list, `{"name":"g-N"}`},
		{config.KindPolicy, `{"istio":{"gateways":[{"name":"g","hosts":VALUE}]}}`, 16, list, `"h-N"`},
		{config.KindPolicy, `{"istio":{"sidecars":{"namespaces":VALUE}}}`, 64, list, `"n-N"`},
	} {
		for _, n := range []int{tt.most, tt.most + 1} {
			spec := strings.Replace(tt.spec, "VALUE", tt.value(n, tt.entry), 1)
			name := map[string]string{config.KindPolicy: "default"}[tt.kind]
			if name == "" {
				name = "large"
			}
			d := document{file: randomFile, kind: tt.kind, text: fmt.Sprintf(`{"apiVersion":"millrace.dev/v1alpha1","kind":%q,"metadata":{"name":%q},"spec":%s}`, tt.kind, name, spec)}
			says, got := checkSays(d), refusal(t, c, d)
			if large := n > tt.most; (len(says) > 0) != large || (got.Message != "") != large {
				t.Errorf("%s with %d: -check says %.200q, the API server %.200q", tt.spec, n, says, got.Message)
			}
		}
	}
}

// testModelsScale holds that what scales Deployments scales Models.
func testModelsScale(t *testing.T, c *cluster.Cluster) {
	storedSpec(t, c, config.KindModel, "scaled", `{"weights":"a.gguf","replicas":1}`)
	run := func(args ...string) string {
		t.Helper()
		out, err := c.Kubectl(t.Context(), append(args, "--namespace=kube-public")...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	run("scale", "model/scaled", "--replicas=3")
	status := `{"status":{"replicas":2,"readyReplicas":1,"ready":"1/3","nodes":"node-a,node-b","reason":"Starting","message":"scaled-2 loads on node-c",` +
		`"selector":"serves.millrace.dev/scaled=true","rows":[{"name":"scaled-0","nodes":["node-a"],"state":"Ready","weight":100}],` +
		`"conditions":[{"type":"Ready","status":"True","reason":"SomeReady","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}],` +
		`"inForce":{"generation":1,"spec":{"weights":"before.gguf","any":{"thing":1}}}}}`
	run("patch", "model/scaled", "--subresource=status", "--type=merge", "-p", status)
	if got, want := run("get", "--raw", "/apis/millrace.dev/v1alpha1/namespaces/kube-public/models/scaled/scale"), `"spec":{"replicas":3},"status":{"replicas":2,"selector":"serves.millrace.dev/scaled=true"}`; !strings.Contains(got, want) {
		t.Errorf("scale is %s, want %s", got, want)
	}
	wide := run("get", "mdl", "scaled", "-o", "wide")
	columns := regexp.MustCompile(`(?s)^NAME +READY +BACKEND +NODES +STATUS +AGE +MESSAGE\nscaled +1/3 +llamacpp +node-a,node-b +Starting +\d+s +scaled-2 loads on node-c$`)
	if !columns.MatchString(wide) {
		t.Errorf("kubectl get mdl -o wide:\n%s", wide)
	}
	if got := run("get", "mdl", "scaled", "-o", "jsonpath={.status.inForce.spec.any.thing}"); got != "1" {
		t.Errorf("status.inForce.spec.any.thing is %q: pruned", got)
	}
	for resource, short := range map[string]string{"models": "mdl", "policies": "mpol", "foreignendpoints": "fep"} {
		if got := run("api-resources", "--categories=millrace", "--no-headers"); !regexp.MustCompile(`(?m)^` + resource + ` +` + short + ` `).MatchString(got) {
			t.Errorf("category millrace has no %s, short %s:\n%s", resource, short, got)
		}
		if got := run("explain", short, "--recursive"); !strings.Contains(got, "status") {
			t.Errorf("explain %s:\n%s", short, got)
		}
	}
	t.Log("\n" + wide)
}

// testCRDsJudgeAsCheckDoes judges random objects by -check and by the API server.
func testCRDsJudgeAsCheckDoes(t *testing.T, c *cluster.Cluster) {
	r := newRandom(t)
	verdicts := map[string]int{}
	for range 1500 {
		d := r.object(t)
		want, got := checkSays(d), refusal(t, c, d)
		if (len(want) > 0) != (got.Message != "") {
			t.Errorf("-check says %q, the API server %q\n%s", want, got.Message, d.text)
			continue
		}
		check, server := compare(want, got.Details.Causes)
		verdict := "refused by both, in the same words"
		switch {
		case got.Message == "":
			verdict = "taken by both"
		case itsOwn(got):
			verdict = "refused by both, the API server in words of its own"
		case len(check)+len(server) > 0:
			t.Errorf("only -check says %q\nonly the API server says %+v %s\n%s", check, server, got.Message, d.text)
		}
		verdicts[d.kind+": "+verdict]++
	}
	for _, v := range slices.Sorted(maps.Keys(verdicts)) {
		t.Logf("%s: %d", v, verdicts[v])
	}
}

// itsOwn reports whether an API server refuses an object for types, sizes or lists, of
// which it has words of its own.
func itsOwn(a answer) bool {
	own := []string{"FieldValueTypeInvalid", "FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueDuplicate", "FieldValueNotSupported"}
	return slices.ContainsFunc(a.Details.Causes, func(c cause) bool {
		return slices.Contains(own, c.Reason) || strings.Contains(c.Message, "must be of type") ||
			strings.Contains(c.Message, "type conversion error") // a duration of more than 290 years
	})
}
