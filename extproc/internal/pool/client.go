package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"millrace.dev/millrace/internal/kube"
)

// kind is a kind of objects that is followed.
type kind struct {
	gvr schema.GroupVersionResource
	// pools is whether it is one of pools; optional whether extproc does without it.
	pools, optional bool
	// convert keeps of an object what decides something; nil: it is a Pod.
	convert func(*unstructured.Unstructured) any
}

// pause is how long the kind is left alone if it is absent.
func (k *kind) pause() time.Duration {
	if k.pools {
		return soon
	}
	return seldom
}

// name is how people call the kind.
func (k *kind) name() string {
	if k.gvr.Group == "" {
		return k.gvr.Resource
	}
	return k.gvr.Resource + "." + k.gvr.Group
}

func custom[T any](group, version, resource string, convert func(*unstructured.Unstructured) T) *kind {
	return &kind{
		gvr: schema.GroupVersionResource{Group: group, Version: version, Resource: resource}, optional: true,
		convert: func(u *unstructured.Unstructured) any { return convert(u) },
	}
}

func poolKind(group, version string) *kind {
	k := custom(group, version, "inferencepools", poolOf)
	k.pools = true
	return k
}

// Groups of the inference extension's kinds.
const (
	groupStable  = "inference.networking.k8s.io"
	groupTrial   = "inference.networking.x-k8s.io"
	groupRouter  = "llm-d.ai"
	versionTrial = "v1alpha2"
)

var pods = &kind{gvr: schema.GroupVersionResource{Version: "v1", Resource: "pods"}}

// kinds are all that are followed. Of pools those of the first group count that has them.
var kinds = []*kind{
	pods,
	poolKind(groupStable, "v1"),
	poolKind(groupTrial, versionTrial),
	custom(groupTrial, versionTrial, "inferenceobjectives", objectiveOf),
	custom(groupRouter, versionTrial, "inferenceobjectives", objectiveOf),
	custom(groupTrial, versionTrial, "inferencemodelrewrites", rewriteOf),
	custom(groupRouter, versionTrial, "inferencemodelrewrites", rewriteOf),
}

// client reaches an API server.
type client struct {
	core    *rest.RESTClient
	dynamic dynamic.Interface
}

func newClient() (*client, error) {
	c, err := kube.Config()
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	c.UserAgent = "millrace-extproc"
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	typed := rest.CopyConfig(c)
	typed.APIPath, typed.GroupVersion = "/api", &corev1.SchemeGroupVersion
	typed.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	typed.ContentType, typed.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
	core, err := rest.RESTClientFor(typed)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	objects, err := dynamic.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	return &client{core, objects}, nil
}

// parameters writes the options of lists and watches of Pods.
var parameters = runtime.NewParameterCodec(func() *runtime.Scheme {
	s := runtime.NewScheme()
	metav1.AddToGroupVersion(s, corev1.SchemeGroupVersion)
	return s
}())

// pause is between two tries to reach the API server: 10 s at most, so that what changed
// while it was away is soon known.
var pause = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.3, Steps: 6, Cap: 10 * time.Second}

// soon and seldom are how long a kind is left alone that is not there, or not for us: one
// of pools, which must be, and others.
const soon, seldom = 5 * time.Second, 30 * time.Second

// follow keeps a shelf true to the objects of a kind in a namespace until ctx ends.
func (c *client) follow(ctx context.Context, k kindOf, s *shelf, log *slog.Logger) error {
	list, open := c.dynamicCalls(k)
	var expected runtime.Object = &unstructured.Unstructured{}
	if k.kind == pods {
		list, open = c.podCalls(k)
		expected = &corev1.Pod{}
	}
	note := func(err error) {
		level := slog.LevelInfo
		if k.optional && missing(explain(err)) {
			level = slog.LevelDebug // most clusters have one of the API groups
		}
		if was, now := s.note(explain(err)); was != now {
			log.Log(ctx, level, "kubernetes changed", "kind", k.name(), "namespace", k.namespace, "error", now, "was", was)
		}
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			all, err := list(ctx, o)
			note(err)
			if absent(explain(err)) {
				select {
				case <-ctx.Done():
				case <-time.After(k.pause()):
				}
			}
			return all, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			one, err := open(ctx, o)
			note(err)
			return one, err
		},
	}
	// Nothing of client-go's own log: what it says is in our conditions.
	quiet := logr.Discard()
	backoff := pause
	r := cache.NewReflectorWithOptions(lw, expected, s, cache.ReflectorOptions{Logger: &quiet, Name: k.name(), Backoff: &backoff})
	r.RunWithContext(klog.NewContext(ctx, quiet))
	return nil
}

type (
	lister func(context.Context, metav1.ListOptions) (runtime.Object, error)
	opener func(context.Context, metav1.ListOptions) (watch.Interface, error)
)

func (c *client) podCalls(k kindOf) (lister, opener) {
	request := func(o *metav1.ListOptions) *rest.Request {
		return c.core.Get().Namespace(k.namespace).Resource(k.gvr.Resource).VersionedParams(o, parameters)
	}
	return func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			all := &corev1.PodList{}
			return all, request(&o).Do(ctx).Into(all)
		}, func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			return request(&o).Watch(ctx)
		}
}

func (c *client) dynamicCalls(k kindOf) (lister, opener) {
	r := c.dynamic.Resource(k.gvr).Namespace(k.namespace)
	return func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return r.List(ctx, o) },
		func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return r.Watch(ctx, o) }
}

// deniedError is that the API server does not have something, or not for us.
type deniedError struct{ status int32 }

// Error says so.
func (e *deniedError) Error() string {
	if e.status == 404 {
		return "not known to the API server"
	}
	return "not allowed"
}

// explain makes of an error what decides something.
func explain(err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return &deniedError{404}
	case apierrors.IsForbidden(err):
		return &deniedError{403}
	case apierrors.IsResourceExpired(err), apierrors.IsGone(err), errors.Is(err, context.Canceled):
		return nil // it is listed again
	}
	return err
}

// shelf has the objects of a kind in a namespace, as a Reflector brings them, converted.
type shelf struct {
	// Constant.
	changed func()
	convert func(*unstructured.Unstructured) any // nil: of Pods
	events  int                                  // port of Pods that announce none

	// mu guards the fields below.
	mu      sync.Mutex
	objects map[string]any // by name
	listed  bool           // whether they were seen once
	err     error          // of the last try to see them
}

// note takes in how a try went, and returns what is different.
func (s *shelf) note(err error) (was, now string) {
	s.mu.Lock()
	was, now = text(s.err), text(err)
	s.err = err
	s.mu.Unlock()
	if was != now {
		s.changed()
	}
	return was, now
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// key is an object's in the shelf.
func key(o any) string {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		return gone.Key
	}
	if m, ok := o.(metav1.Object); ok {
		return m.GetName()
	}
	return ""
}

// kept is what is kept of an object.
func (s *shelf) kept(o any) any {
	switch o := o.(type) {
	case *corev1.Pod:
		return podOf(o, s.events)
	case *unstructured.Unstructured:
		return s.convert(o)
	default:
		return nil
	}
}

// put keeps an object. What decides nothing changes nothing.
func (s *shelf) put(o any) error {
	name, now := key(o), s.kept(o)
	s.mu.Lock()
	same := reflect.DeepEqual(s.objects[name], now)
	if now != nil {
		s.objects[name] = now
	}
	s.mu.Unlock()
	if !same {
		s.changed()
	}
	return nil
}

// Add is a ReflectorStore's.
func (s *shelf) Add(o any) error { return s.put(o) }

// Update is a ReflectorStore's.
func (s *shelf) Update(o any) error { return s.put(o) }

// Delete is a ReflectorStore's.
func (s *shelf) Delete(o any) error {
	s.mu.Lock()
	delete(s.objects, key(o))
	s.mu.Unlock()
	s.changed()
	return nil
}

// Replace is a ReflectorStore's: these are all objects.
func (s *shelf) Replace(all []any, _ string) error {
	objects := make(map[string]any, len(all))
	for _, o := range all {
		if now := s.kept(o); now != nil {
			objects[key(o)] = now
		}
	}
	s.mu.Lock()
	s.objects, s.listed = objects, true
	s.mu.Unlock()
	s.changed()
	return nil
}

// Resync is a ReflectorStore's.
func (s *shelf) Resync() error { return nil }

// all returns the objects in the order of their names.
func (s *shelf) all() []any {
	s.mu.Lock()
	defer s.mu.Unlock()
	objects := make([]any, 0, len(s.objects))
	for _, name := range slices.Sorted(maps.Keys(s.objects)) {
		objects = append(objects, s.objects[name])
	}
	return objects
}

// each calls f for all objects, in any order.
func (s *shelf) each(f func(any)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.objects {
		f(o)
	}
}

// state returns whether the objects were seen, and how the last try went.
func (s *shelf) state() (listed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listed, s.err
}
