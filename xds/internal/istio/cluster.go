package istio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/openapi"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// manager is the field manager of our writes.
const manager = "millrace-xds-istio"

// writtenAnnotation has the hash of what we wrote last, so that whoever leads sees
// whether somebody else has written since.
const writtenAnnotation = "millrace.dev/written"

// writeTimeout bounds one write.
const writeTimeout = 5 * time.Second

// Client is the way to the API server.
type Client struct {
	Objects dynamic.Interface
	Schemas openapi.Client
}

// Connect returns a Client. How often it asks is bounded by the writer.
func Connect(c *rest.Config) (Client, error) {
	c = rest.CopyConfig(c)
	c.QPS, c.UserAgent = -1, manager
	objects, err := dynamic.NewForConfig(c)
	if err != nil {
		return Client{}, err
	}
	d, err := discovery.NewDiscoveryClientForConfig(c)
	if err != nil {
		return Client{}, err
	}
	return Client{Objects: objects, Schemas: d.OpenAPIV3()}, nil
}

// cluster is the edge: it watches our objects and writes them. Its methods but write are
// for one goroutine.
type cluster struct {
	site     Site
	client   Client
	observed func(Key, *Found)
	// watches by kind and namespace.
	watches map[string]cache.SharedIndexInformer
	cancel  context.CancelFunc
	ctx     context.Context // of the watches; nil: there are none
	running []chan struct{} // closed when a watch has ended
	// owner is what goes with the installation, and our objects with it; nil: not known.
	owner *metav1.OwnerReference
}

func newCluster(site Site, c Client, observed func(Key, *Found)) *cluster {
	return &cluster{site: site, client: c, observed: observed, watches: make(map[string]cache.SharedIndexInformer)}
}

// watch reports whether all that is there of the kinds that the cluster has is known. It
// starts what is missing for that.
func (c *cluster) watch(ctx context.Context, s Schemas) bool {
	if c.ctx == nil {
		c.ctx, c.cancel = context.WithCancel(ctx)
		c.owner = c.findOwner(ctx)
	}
	synced := true
	for _, k := range Kinds() {
		if s[k.Name] == nil {
			continue
		}
		namespaces := []string{c.site.Namespace}
		if k == EnvoyFilter {
			namespaces = slices.Compact(slices.Sorted(slices.Values(append(namespaces, c.site.Namespaces...))))
		}
		for _, n := range namespaces {
			w := c.watches[k.Name+" "+n]
			if w == nil {
				w = c.start(k, n)
				c.watches[k.Name+" "+n] = w
			}
			synced = synced && w.HasSynced()
		}
	}
	return synced
}

// start watches our objects of a kind in a namespace.
func (c *cluster) start(k Kind, namespace string) cache.SharedIndexInformer {
	selector := labels.SelectorFromSet(c.site.Selector()).String()
	w := dynamicinformer.NewFilteredDynamicInformer(c.client.Objects, k.GroupVersionResource, namespace, 0, cache.Indexers{},
		func(o *metav1.ListOptions) { o.LabelSelector = selector }).Informer()
	seen := func(o any) {
		if u, ok := o.(*unstructured.Unstructured); ok {
			c.observed(Key{k.Name, u.GetNamespace(), u.GetName()}, foundOf(k, u))
		}
	}
	_, _ = w.AddEventHandler(cache.ResourceEventHandlerFuncs{ // fails only for one that has ended
		AddFunc:    seen,
		UpdateFunc: func(_, o any) { seen(o) },
		DeleteFunc: func(o any) {
			if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			if u, ok := o.(*unstructured.Unstructured); ok {
				c.observed(Key{k.Name, u.GetNamespace(), u.GetName()}, nil)
			}
		},
	})
	ended := make(chan struct{})
	c.running = append(c.running, ended)
	go func(ctx context.Context) {
		defer close(ended)
		w.RunWithContext(ctx)
	}(c.ctx)
	return w
}

// stop ends all watches.
func (c *cluster) stop() {
	if c.cancel == nil {
		return
	}
	c.cancel()
	for _, ended := range c.running {
		<-ended
	}
}

// findOwner returns a reference to xds' own Deployment; nil if there is none.
func (c *cluster) findOwner(ctx context.Context) *metav1.OwnerReference {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	gvr := schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	d, err := c.client.Objects.Resource(gvr).Namespace(c.site.Namespace).Get(ctx, c.site.Name+"-xds", metav1.GetOptions{})
	if err != nil {
		return nil // xds runs some other way, or may not look: then the objects stay
	}
	return &metav1.OwnerReference{APIVersion: "apps/v1", Kind: "Deployment", Name: d.GetName(), UID: d.GetUID()}
}

// foundOf returns what we compare of an object.
func foundOf(k Kind, u *unstructured.Unstructured) *Found {
	spec, _, _ := unstructured.NestedMap(u.Object, "spec")
	weight, _, _ := unstructured.NestedInt64(u.Object, "spec", "weight")
	f := &Found{
		kind: k, hash: hashOf(u.GetLabels(), spec), written: u.GetAnnotations()[writtenAnnotation],
		leaving: u.GetDeletionTimestamp() != nil, model: u.GetLabels()[modelLabel], weight: uint32(max(0, weight)),
	}
	for _, m := range u.GetManagedFields() {
		if m.Manager != manager && m.Subresource == "" && m.FieldsV1 != nil && ownsSpec(m.FieldsV1.GetRawBytes()) {
			f.by = m.Manager
		}
	}
	return f
}

// ownsSpec reports whether a manager's fields are of the spec or of labels.
func ownsSpec(fields []byte) bool {
	var f map[string]json.RawMessage
	return json.Unmarshal(fields, &f) == nil && (f["f:spec"] != nil || f["f:metadata"] != nil)
}

// errTaken is why an object of somebody else is left alone.
var errTaken = errors.New("an object of another owner has the name")

// write does what the action says and returns the object as it is then, and how many bytes
// were sent.
func (c *cluster) write(ctx context.Context, a action) (*Found, int, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	objects := c.client.Objects.Resource(a.kind.GroupVersionResource).Namespace(a.key.Namespace)
	if a.verb == remove {
		err := objects.Delete(ctx, a.key.Name, metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			err = nil
		}
		return nil, 0, err
	}
	u := c.unstructured(a.object)
	sent, err := json.Marshal(u)
	if err != nil {
		return nil, 0, err
	}
	n := len(sent)
	if a.verb == restore {
		patch, err := json.Marshal([]any{map[string]any{"op": "replace", "path": "/spec", "value": a.object.Spec}})
		if err != nil {
			return nil, 0, err
		}
		if _, err := objects.Patch(ctx, a.key.Name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: manager}); err != nil {
			return nil, 0, err
		}
		n += len(patch)
	}
	now, err := objects.Apply(ctx, a.key.Name, u, metav1.ApplyOptions{FieldManager: manager})
	if apierrors.IsConflict(err) {
		// Somebody else has written fields of it: of an object of ours, or of theirs.
		there, listErr := objects.List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", a.key.Name).String()})
		if listErr != nil {
			return nil, 0, listErr
		}
		if slices.ContainsFunc(there.Items, c.taken) {
			return nil, 0, errTaken
		}
		now, err = objects.Apply(ctx, a.key.Name, u, metav1.ApplyOptions{FieldManager: manager, Force: true})
	}
	if err != nil {
		return nil, 0, err
	}
	return foundOf(a.kind, now), n, nil
}

// taken reports whether an object has another owner: neither its labels nor its
// annotation are ours. Who edits our objects may have removed the one or the other.
func (c *cluster) taken(u unstructured.Unstructured) bool {
	ours := labels.SelectorFromSet(c.site.Selector()).Matches(labels.Set(u.GetLabels()))
	return !ours && u.GetAnnotations()[writtenAnnotation] == ""
}

// unstructured returns the object as it is sent.
func (c *cluster) unstructured(o *Object) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"spec": o.Spec}}
	u.SetAPIVersion(o.Kind.GroupVersion().String())
	u.SetKind(o.Kind.Name)
	u.SetNamespace(o.Namespace)
	u.SetName(o.Name)
	u.SetLabels(maps.Clone(o.Labels))
	u.SetAnnotations(map[string]string{writtenAnnotation: o.hash})
	if c.owner != nil && o.Namespace == c.site.Namespace {
		u.SetOwnerReferences([]metav1.OwnerReference{*c.owner})
	}
	return u
}

// reasonOf returns why a write failed, the same for all objects with the same reason.
func reasonOf(err error) string {
	var s apierrors.APIStatus
	switch {
	case errors.Is(err, errTaken):
		return err.Error()
	case apierrors.IsForbidden(err):
		return "xds may not: forbidden by the cluster's rights"
	case errors.As(err, &s) && s.Status().Reason == metav1.StatusReasonInvalid:
		return fmt.Sprintf("refused: %v", err)
	case errors.Is(err, context.DeadlineExceeded):
		return "the API server does not answer"
	}
	return err.Error()
}
