package mesh

import (
	"strings"
	"testing"

	"millrace.dev/millrace/internal/config"
)

const smollm2 = "apiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: smollm2}\n"

func TestDerive(t *testing.T) {
	tests := []struct {
		name, text string
		nodes      int
		weights    string
		replicas   int    // of smollm2
		fault      string // path and text of the first fault; empty: none
	}{
		{name: "a layout that was chosen stays", text: smollm2, nodes: 5, weights: "/w", replicas: 2},
		{
			name: "also beside another model", nodes: 5, weights: "/w", replicas: 2,
			text: smollm2 + "---\n" + strings.Replace(smollm2, "smollm2}", "b}", 1) + "spec: {backend: {kind: openai, url: 'http://127.0.0.1:1'}}\n",
		},
		{name: "the user chooses", text: smollm2 + "spec: {replicas: 4}\n", nodes: 5, weights: "/w", replicas: 4},
		{name: "no room", text: smollm2 + "spec: {replicas: 6}\n", nodes: 5, weights: "/w", replicas: 6, fault: "spec.replicas: the models need 6 nodes, there are 5"},
		{name: "nothing was fetched", text: smollm2, nodes: 5, replicas: 2, fault: "spec.weights: missing; set-up did not fetch"},
		{name: "weights that are not there", text: smollm2 + "spec: {weights: /nowhere.gguf}\n", nodes: 5, weights: "/w", replicas: 2, fault: "spec.weights: model smollm2: weights: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, at, err := config.Read("mesh.yaml", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			first := config.Default()
			d := deriver{nodes: tt.nodes, weights: tt.weights, cookieKey: "/key", laid: laidOut(first)}
			f, faults := d.derive(f, at)
			if got := f.Models[0].Spec.Replicas; got != tt.replicas {
				t.Errorf("%d replicas, want %d", got, tt.replicas)
			}
			text := ""
			if len(faults) > 0 {
				text = faults[0].Path + ": " + faults[0].Text
			}
			if (text == "") != (tt.fault == "") || !strings.HasPrefix(text, tt.fault) {
				t.Errorf("fault %q, want %q", text, tt.fault)
			}
			if f.Policy.Spec.Sessions.Cookie.KeyFile != "/key" {
				t.Error("no key for cookies")
			}
		})
	}
}
