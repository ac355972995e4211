package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/kubeapi"
)

// quiet gives Kubernetes' libraries a log, once: they know only one.
var quiet sync.Once

// libraries makes ours their log. What they warn of again and again is said by a condition.
func libraries(l *slog.Logger) {
	klog.SetSlogLogger(l.With("library", "client-go"))
	ctrllog.SetLogger(logr.FromSlogHandler(l.With("library", "controller-runtime").Handler()))
}

// kindNames are the kinds of objects.
var kindNames = []string{config.KindModel, config.KindPolicy, config.KindEndpoints}

// kinds returns an empty object of each kind. They are read without types: a spec that
// says nothing of a field is not one that says its zero.
func kinds() []client.Object {
	var all []client.Object
	for _, k := range kindNames {
		all = append(all, untyped(k))
	}
	return all
}

func untyped(kind string) *unstructured.Unstructured {
	u := new(unstructured.Unstructured)
	u.SetGroupVersionKind(kubeapi.GroupVersion.WithKind(kind))
	return u
}

// nodeKinds are what is watched of the nodes.
func nodeKinds() []client.Object { return []client.Object{&corev1.Node{}, &corev1.Pod{}} }

// mapper knows the resources of the kinds, so that nothing need be discovered.
func mapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper([]schema.GroupVersion{kubeapi.GroupVersion, corev1.SchemeGroupVersion})
	add := func(group schema.GroupVersion, kind, resource string, scope meta.RESTScope) {
		plural := group.WithResource(resource)
		m.AddSpecific(group.WithKind(kind), plural, plural, scope)
		m.AddSpecific(group.WithKind(kind+"List"), plural, plural, scope) // the cache asks so for the scope of a list
	}
	for _, k := range kindNames {
		add(kubeapi.GroupVersion, k, kubeapi.Resources[k], meta.RESTScopeNamespace)
	}
	add(corev1.SchemeGroupVersion, "Node", "nodes", meta.RESTScopeRoot)
	add(corev1.SchemeGroupVersion, "Pod", "pods", meta.RESTScopeNamespace)
	return m
}

// dial makes the cache and the clients. Nothing is asked for yet.
func (c *Cluster) dial(access *rest.Config) (err error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return err
	}
	resources := mapper()
	own := map[string]cache.Config{c.cfg.Namespace: {}}
	by := map[client.Object]cache.ByObject{
		&corev1.Node{}: {Transform: onlyOfNode},
		&corev1.Pod{}:  {Namespaces: own, Label: c.engines, Transform: onlyOfPod},
	}
	for _, k := range kinds() {
		by[k] = cache.ByObject{Namespaces: own, Transform: cache.TransformStripManagedFields()}
	}
	if c.cache, err = cache.New(access, cache.Options{
		Scheme: scheme, Mapper: resources, ByObject: by,
		DefaultWatchErrorHandler: func(_ context.Context, _ *toolscache.Reflector, err error) { c.missed(err) },
	}); err != nil {
		return fmt.Errorf("-kube: %w", err)
	}
	if c.client, err = client.New(access, client.Options{Scheme: scheme, Mapper: resources}); err != nil {
		return fmt.Errorf("-kube: %w", err)
	}
	if c.leases, err = kubernetes.NewForConfig(access); err != nil {
		return fmt.Errorf("-kube: %w", err)
	}
	return nil
}

// synced starts to watch what is like these, and returns once all that there is of them
// is known; false: ctx has ended.
func (c *Cluster) synced(ctx context.Context, like ...client.Object) bool {
	const every = 50 * time.Millisecond
	for _, o := range like {
		_, isNode := o.(*corev1.Node)
		_, isPod := o.(*corev1.Pod)
		news := c.objects
		if isNode || isPod {
			news = c.nodes
		}
		i, err := c.cache.GetInformer(ctx, o, cache.BlockUntilSynced(false))
		if err != nil {
			return false // ctx has ended: kinds and mapper are our own
		}
		if _, err := i.AddEventHandler(signals(news)); err != nil {
			return false
		}
		for !i.HasSynced() {
			if !wait(ctx, every) {
				return false
			}
		}
	}
	return ctx.Err() == nil
}

// signals returns what signals every change.
func signals(news chan<- struct{}) toolscache.ResourceEventHandler {
	signal := func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { signal() }, UpdateFunc: func(any, any) { signal() }, DeleteFunc: func(any) { signal() },
	}
}

// listKind returns the objects of a kind as the cache has them.
func (c *Cluster) listKind(ctx context.Context, kind string) ([]unstructured.Unstructured, error) {
	list := new(unstructured.UnstructuredList)
	list.SetGroupVersionKind(kubeapi.GroupVersion.WithKind(kind + "List"))
	err := c.cache.List(ctx, list, client.InNamespace(c.cfg.Namespace))
	return list.Items, errEnded(ctx, err)
}

// list returns all objects. Those that are being deleted are none any more.
func (c *Cluster) list(ctx context.Context) ([]object, error) {
	var all []object
	for _, kind := range kindNames {
		items, err := c.listKind(ctx, kind)
		if err != nil {
			return nil, err
		}
		for _, u := range items {
			if u.GetDeletionTimestamp() == nil {
				all = append(all, objectOf(kind, u))
			}
		}
	}
	return all, nil
}

// objectOf returns an object as it is judged.
func objectOf(kind string, u unstructured.Unstructured) object {
	o := object{
		Ref: desired.Ref{Kind: kind, Name: u.GetName()}, UID: string(u.GetUID()), Generation: u.GetGeneration(), Created: u.GetCreationTimestamp().UTC(),
	}
	if spec, ok := u.Object["spec"]; ok {
		o.Spec, _ = json.Marshal(spec) // it came as JSON
	}
	if inForce, ok, _ := unstructured.NestedMap(u.Object, "status", "inForce"); ok {
		generation, _, _ := unstructured.NestedInt64(inForce, "generation")
		spec, _ := json.Marshal(inForce["spec"])
		o.InForce = &content{Generation: generation, Spec: spec}
	}
	return o
}

// statusOf decodes the status of an object into s.
func statusOf(u unstructured.Unstructured, s any) {
	if b, err := json.Marshal(u.Object["status"]); err == nil {
		_ = json.Unmarshal(b, s) // what doesn't fit is written anew
	}
}

// listNodes returns the nodes and the engines' Pods as the cache has them.
func (c *Cluster) listNodes(ctx context.Context) ([]corev1.Node, []corev1.Pod, error) {
	var nodes corev1.NodeList
	var pods corev1.PodList
	if err := c.cache.List(ctx, &nodes); err != nil {
		return nil, nil, errEnded(ctx, err)
	}
	if err := c.cache.List(ctx, &pods, client.InNamespace(c.cfg.Namespace)); err != nil {
		return nil, nil, errEnded(ctx, err)
	}
	return nodes.Items, pods.Items, nil
}

// onlyOfNode takes away what nobody reads of a node: images are most of it.
func onlyOfNode(o any) (any, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	kept := &corev1.Node{ObjectMeta: only(n.ObjectMeta), Spec: corev1.NodeSpec{Unschedulable: n.Spec.Unschedulable, Taints: n.Spec.Taints}}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady { // without the time of its heartbeat
			kept.Status.Conditions = []corev1.NodeCondition{{Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message}}
		}
	}
	return kept, nil
}

// onlyOfPod takes away what nobody reads of a Pod.
func onlyOfPod(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	return &corev1.Pod{
		ObjectMeta: only(p.ObjectMeta), Status: corev1.PodStatus{Phase: p.Status.Phase},
		Spec: corev1.PodSpec{NodeName: p.Spec.NodeName, Tolerations: p.Spec.Tolerations},
	}, nil
}

func only(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion,
		Labels: m.Labels, DeletionTimestamp: m.DeletionTimestamp,
	}
}
