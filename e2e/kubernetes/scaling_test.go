//go:build kube

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/xds/scalerpb"
)

// zero is smollm2 for which KEDA decides how many there are.
const zero = `apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec: {replicas: 2, layout: [{stages: 1}], scaling: {mode: recommend, minReplicas: 0, maxReplicas: 2, scaleDownAfter: 5s}}
---
apiVersion: millrace.dev/v1alpha1
kind: Policy
metadata: {name: default}
spec: {flow: {maxWait: {standard: 54s}}}
`

// horizontal is an autoscaler by a metric that others would serve.
const horizontal = `apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: smollm2}
spec:
  scaleTargetRef: {apiVersion: millrace.dev/v1alpha1, kind: Model, name: smollm2}
  minReplicas: 1
  maxReplicas: 2
  metrics: [{type: External, external: {metric: {name: millrace_xds_scale_desired_replicas}, target: {type: AverageValue, averageValue: "1"}}}]
`

// TestKEDAScalesToZero speaks KEDA's protocol to the chart's Service, and does with
// the answers what KEDA's operator does: it scales the Model. No request is lost.
func TestKEDAScalesToZero(t *testing.T) {
	const ns = "keda"
	url := install(t, ns, "scaler.enabled=true")
	apply(t, in(ns, zero))
	address, err := kube.Forward("127.0.0.1:0", "millrace-scaler."+ns+":7103")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	keda := scalerpb.NewExternalScalerClient(conn)
	object := &scalerpb.ScaledObjectRef{Name: "smollm2", Namespace: ns, ScalerMetadata: map[string]string{"scalerAddress": "millrace-scaler.keda.svc:7103", "model": "smollm2"}}
	ctx, cancel := context.WithTimeout(t.Context(), 5*backLimit)
	defer cancel()
	// recommended is the metric, which KEDA has the autoscaler go by while the Model is active.
	recommended := func() (int64, error) {
		spec, err := keda.GetMetricSpec(ctx, object)
		if err != nil || len(spec.GetMetricSpecs()) != 1 {
			return 0, fmt.Errorf("metrics: %v, %w", spec, err)
		}
		r, err := keda.GetMetrics(ctx, &scalerpb.GetMetricsRequest{ScaledObjectRef: object, MetricName: spec.GetMetricSpecs()[0].GetMetricName()})
		if err != nil || len(r.GetMetricValues()) != 1 {
			return 0, fmt.Errorf("values: %v, %w", r, err)
		}
		return r.GetMetricValues()[0].GetMetricValue(), nil
	}
	rig.Wait(t, backLimit, "nobody asks, so none is needed", func() error {
		active, err := keda.IsActive(ctx, object)
		if err != nil || !active.GetResult() {
			return err
		}
		n, err := recommended()
		if err == nil {
			_, err = kube.Kubectl(ctx, "scale", "model/smollm2", "-n", ns, fmt.Sprintf("--replicas=%d", max(1, n)))
		}
		if err == nil {
			err = fmt.Errorf("active, and %d are recommended", n)
		}
		return err
	})
	wrong := &scalerpb.ScaledObjectRef{ScalerMetadata: map[string]string{"model": "smollm"}}
	if _, err := keda.IsActive(ctx, wrong); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "did you mean smollm2?") {
		t.Errorf("a wrong name: %v", err)
	}
	stream, err := keda.StreamIsActive(ctx, object)
	if err != nil {
		t.Fatal(err)
	}
	if first, err := stream.Recv(); err != nil || first.GetResult() {
		t.Fatalf("the first message of the stream: %v, %v; want inactive", first, err)
	}
	kubectl(t, "scale", "model/smollm2", "-n", ns, "--replicas=0")
	rig.Wait(t, backLimit, "none is left, and that is well", func() error {
		got, err := kube.Kubectl(ctx, "get", "model", "smollm2", "-n", ns, "-o", `jsonpath={.status.replicas} {.status.conditions[?(@.type=="Ready")].status} {.status.conditions[?(@.type=="Ready")].reason}`)
		if err == nil && got != "0 True Asleep" {
			err = errors.New(got)
		}
		return err
	})
	kubectl(t, "scale", "model/smollm2", "-n", ns, "--replicas=1")
	rig.Wait(t, backLimit, "it answers again", func() error {
		_, _, err := rig.Complete(ctx, url+rig.ChatPath, rig.ShortQuestions(0, 0))
		return err
	})
	apply(t, in(ns, horizontal))
	rig.Wait(t, backLimit, "the HorizontalPodAutoscaler can scale the Model", func() error {
		got, err := kube.Kubectl(ctx, "get", "hpa", "smollm2", "-n", ns, "-o", `jsonpath={.status.conditions[?(@.type=="AbleToScale")].status}`)
		if err == nil && got != "True" {
			err = fmt.Errorf("AbleToScale is %q", got)
		}
		return err
	})
}
