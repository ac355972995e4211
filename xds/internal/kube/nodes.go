package kube

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/internal/fleet"
)

// clusterNodes returns what Kubernetes says of the nodes, by our names, from its nodes
// and the engines' Pods.
func clusterNodes(nodes []corev1.Node, engines []corev1.Pod) map[string]fleet.ClusterNode {
	pods := make(map[string][]corev1.Pod, len(engines)) // by Kubernetes' name of the node
	for _, p := range engines {
		pods[p.Spec.NodeName] = append(pods[p.Spec.NodeName], p)
	}
	var tolerated []corev1.Toleration // by an engine anywhere: all are of one DaemonSet
	if len(engines) > 0 {
		tolerated = engines[0].Spec.Tolerations
	}
	all := make(map[string]fleet.ClusterNode, len(nodes))
	for _, n := range nodes {
		all[wire.NodeName(n.Name)] = clusterNode(n, pods[n.Name], tolerated)
	}
	return all
}

func clusterNode(n corev1.Node, pods []corev1.Pod, tolerated []corev1.Toleration) fleet.ClusterNode {
	c := fleet.ClusterNode{NotReady: notReady(n)}
	ending := false
	for _, p := range pods {
		switch {
		case p.DeletionTimestamp != nil:
			ending = true
		case p.Status.Phase == corev1.PodRunning:
			c.Engine = true
		}
	}
	if n.Spec.Unschedulable {
		c.Cordoned = "cordoned"
	}
	if n.DeletionTimestamp != nil {
		c.Cordoned, c.Leaving = "being deleted", "the node is being deleted"
	}
	for _, t := range n.Spec.Taints {
		if why := fmt.Sprintf("taint %s=%s:%s", t.Key, t.Value, t.Effect); !ownBusiness(t) && !tolerates(tolerated, t) {
			switch t.Effect {
			case corev1.TaintEffectNoSchedule:
				c.Cordoned = why
			case corev1.TaintEffectNoExecute:
				c.Cordoned, c.Leaving = why, why
			}
		}
	}
	if ending && !c.Engine {
		c.Leaving = "the engine's Pod is ending"
	}
	return c
}

// ownBusiness reports whether a taint says what we know better: whether the node can be
// reached is shown by its nodeagent, and pressure by its telemetry. A DaemonSet's Pods
// tolerate them, too.
func ownBusiness(t corev1.Taint) bool {
	switch t.Key {
	case corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, corev1.TaintNodeUnschedulable,
		corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure, corev1.TaintNodePIDPressure, corev1.TaintNodeNetworkUnavailable:
		return true
	}
	return false
}

func tolerates(all []corev1.Toleration, t corev1.Taint) bool {
	for _, o := range all {
		if (o.Effect == "" || o.Effect == t.Effect) && (o.Key == t.Key || o.Key == "" && o.Operator == corev1.TolerationOpExists) &&
			(o.Operator == corev1.TolerationOpExists || o.Value == t.Value) {
			return true
		}
	}
	return false
}

// notReady returns why Kubernetes doesn't reach a node; empty: it does, or has not tried.
func notReady(n corev1.Node) string {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			return c.Reason + ": " + c.Message
		}
	}
	return ""
}

// servesPrefix begins the label of an engine's Pod that says which model it serves.
const servesPrefix = "serves.millrace.dev/"

// serves returns which models the replicas on each node serve that take requests.
func serves(snap *fleet.Snapshot) map[string]map[string]bool {
	all := make(map[string]map[string]bool) // by our name of the node
	for _, e := range snap.Endpoints {
		if e.Foreign != nil || e.Membership != fleet.Healthy {
			continue
		}
		for _, n := range e.Nodes {
			if all[n] == nil {
				all[n] = make(map[string]bool)
			}
			all[n][e.Model] = true
		}
	}
	return all
}

// labelChanges returns how the labels of an engine's Pod are to change, by label; "": it
// goes.
func labelChanges(labels map[string]string, models map[string]bool) map[string]string {
	changes := make(map[string]string)
	for m := range models {
		if labels[servesPrefix+m] != "true" {
			changes[servesPrefix+m] = "true"
		}
	}
	for l := range labels {
		if len(l) > len(servesPrefix) && l[:len(servesPrefix)] == servesPrefix && !models[l[len(servesPrefix):]] {
			changes[l] = ""
		}
	}
	return changes
}
