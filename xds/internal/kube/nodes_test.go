package kube

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"millrace.dev/millrace/xds/internal/fleet"
)

func kubeNode(name string, edit func(*corev1.Node)) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	edit(&n)
	return n
}

func enginePod(node string, edit func(*corev1.Pod)) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "engine-" + node}, Spec: corev1.PodSpec{NodeName: node}}
	p.Status.Phase = corev1.PodRunning
	edit(&p)
	return p
}

func taint(key, value string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Value: value, Effect: effect})
	}
}

func TestClusterNodes(t *testing.T) {
	gone := metav1.Now()
	tests := []struct {
		name string
		node func(*corev1.Node)
		pod  func(*corev1.Pod)
		want fleet.ClusterNode
	}{
		{name: "all is well", want: fleet.ClusterNode{Engine: true}},
		{name: "cordoned", node: func(n *corev1.Node) { n.Spec.Unschedulable = true }, want: fleet.ClusterNode{Engine: true, Cordoned: "cordoned"}},
		{name: "cordoned, as the scheduler says it", node: taint(corev1.TaintNodeUnschedulable, "", corev1.TaintEffectNoSchedule), want: fleet.ClusterNode{Engine: true}},
		{
			name: "about to be scaled away", node: taint("ToBeDeletedByClusterAutoscaler", "1", corev1.TaintEffectNoSchedule),
			want: fleet.ClusterNode{Engine: true, Cordoned: "taint ToBeDeletedByClusterAutoscaler=1:NoSchedule"},
		},
		{
			name: "a taint that says go", node: taint("maintenance", "now", corev1.TaintEffectNoExecute),
			want: fleet.ClusterNode{Engine: true, Cordoned: "taint maintenance=now:NoExecute", Leaving: "taint maintenance=now:NoExecute"},
		},
		{name: "a taint that is tolerated", node: taint("gpu", "yes", corev1.TaintEffectNoExecute), want: fleet.ClusterNode{Engine: true}},
		{name: "a taint that is but a preference", node: taint("x", "", corev1.TaintEffectPreferNoSchedule), want: fleet.ClusterNode{Engine: true}},
		{
			name: "not reached by Kubernetes", node: func(n *corev1.Node) {
				n.Status.Conditions[0] = corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown", Message: "Kubelet stopped posting node status."}
				taint(corev1.TaintNodeUnreachable, "", corev1.TaintEffectNoExecute)(n)
			},
			want: fleet.ClusterNode{Engine: true, NotReady: "NodeStatusUnknown: Kubelet stopped posting node status."},
		},
		{
			name: "being deleted", node: func(n *corev1.Node) { n.DeletionTimestamp = &gone },
			want: fleet.ClusterNode{Engine: true, Cordoned: "being deleted", Leaving: "the node is being deleted"},
		},
		{name: "its Pod ends", pod: func(p *corev1.Pod) { p.DeletionTimestamp = &gone }, want: fleet.ClusterNode{Leaving: "the engine's Pod is ending"}},
		{name: "its Pod does not run yet", pod: func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }, want: fleet.ClusterNode{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.node == nil {
				tt.node = func(*corev1.Node) {}
			}
			if tt.pod == nil {
				tt.pod = func(*corev1.Pod) {}
			}
			pod := enginePod("n.example", tt.pod)
			pod.Spec.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}}
			got := clusterNodes([]corev1.Node{kubeNode("n.example", tt.node)}, []corev1.Pod{pod})
			if diff := cmp.Diff(map[string]fleet.ClusterNode{"n-example": tt.want}, got, cmpopts.IgnoreUnexported(fleet.ClusterNode{})); diff != "" {
				t.Errorf("node (-want +got):\n%s", diff)
			}
		})
	}
	again := []corev1.Pod{enginePod("n", func(p *corev1.Pod) { p.DeletionTimestamp = &gone }), enginePod("n", func(*corev1.Pod) {})}
	if got := clusterNodes([]corev1.Node{kubeNode("n", func(*corev1.Node) {})}, again)["n"]; got.Leaving != "" || !got.Engine {
		t.Errorf("one Pod ends and its successor runs: %+v", got)
	}
}

func TestLabelsOfWhatPodsServe(t *testing.T) {
	snap := &fleet.Snapshot{Endpoints: []fleet.Endpoint{
		{Model: "a", Nodes: []string{"x", "y"}, Membership: fleet.Healthy},
		{Model: "b", Nodes: []string{"x"}, Membership: fleet.Healthy},
		{Model: "c", Nodes: []string{"x"}, Membership: fleet.Absent},
		{Model: "d", Nodes: []string{"x"}, Membership: fleet.Healthy, Foreign: &fleet.Foreign{}},
	}}
	models := serves(snap)
	had := map[string]string{"app": "x", servesPrefix + "b": "true", servesPrefix + "old": "true"}
	want := map[string]string{servesPrefix + "a": "true", servesPrefix + "old": ""}
	if diff := cmp.Diff(want, labelChanges(had, models["x"])); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if got := labelChanges(map[string]string{servesPrefix + "a": "true"}, models["y"]); len(got) != 0 {
		t.Errorf("changes %v where all is as it should be", got)
	}
}
