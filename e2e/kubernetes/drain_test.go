//go:build kube

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// TestReplicasLeaveACordonedNodeFirst cordons the node of the only replica of a model, and
// ends the Pod there once it has moved, all under load.
func TestReplicasLeaveACordonedNodeFirst(t *testing.T) {
	const ns = "drain"
	url := install(t, ns)
	kubectl(t, "scale", "model/smollm2", "-n", ns, "--replicas=1")
	ready(t, ns, "smollm2", "1/1")
	where := func() string {
		return kubectl(t, "get", "model/smollm2", "-n", ns, "-o", "jsonpath={.status.rows[0].nodes[0]}")
	}
	from := where()
	load := rig.StartLoad(t, url+rig.ChatPath, 2, rig.ShortQuestions)
	load.More(t, 10)
	kubectl(t, "cordon", from)
	t.Cleanup(func() { _, _ = kube.Kubectl(context.WithoutCancel(t.Context()), "uncordon", from) })
	rig.Wait(t, 2*time.Minute, "the replica is elsewhere", func() error {
		if got := kubectl(t, "get", "model/smollm2", "-n", ns, "-o", "jsonpath={.status.ready} {.status.nodes}"); !strings.HasPrefix(got, "1/1 ") || strings.Contains(got, from) {
			return errors.New("it is " + got)
		}
		return nil
	})
	load.More(t, 10)
	kubectl(t, "delete", "pods", "-n", ns, "-l", "app.kubernetes.io/component=engine", "--field-selector=spec.nodeName="+from, "--wait=false")
	load.More(t, 30)
	load.MustAllSucceed(t)
	t.Logf("from %s to %s: %s", from, where(), load)
	if got := kubectl(t, "get", "pods", "-n", ns, "-l", "serves.millrace.dev/smollm2=true", "-o", "jsonpath={.items[*].spec.nodeName}"); got != where() {
		t.Errorf("Pods on %q have the label, want those on %s", got, where())
	}

	kubectl(t, "delete", "model/smollm2", "-n", ns)
	rig.Wait(t, time.Minute, "the gateway says that nothing is served", func() error {
		resp, err := http.Post(url+rig.ChatPath, "application/json", strings.NewReader(`{"messages":[{"role":"user","content":"Hi"}]}`))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(text), `"message":"no model is served: none is desired"`) || resp.Header.Get("retry-after") == "") {
			err = fmt.Errorf("%s: %s", resp.Status, text)
		}
		return err
	})
}
