package ads

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// leastKept is how many changes a journal keeps at least.
const leastKept = 1 << 12

// position is where the versions that a client has, which no one but the journal
// reads, have the number of the last change that it got. No resource has that name.
const position = ""

// errBehind ends the stream of a client for whom the journal does not reach back far
// enough: it comes again, and says what it has.
var errBehind = status.Error(codes.Aborted, "the client is too far behind: let it come again with the versions that it has")

// journal serves the resources of one type, of which there are very many and few
// change: an answer costs what has changed. go-control-plane's LinearCache, which
// serves the other types, compares all that there is for every answer and every ACK.
type journal struct {
	// Constant after newJournal.
	typ string

	// mu guards the fields below.
	mu        sync.Mutex
	resources map[string]*discoveryv3.Resource // by name
	// changed has the names of what was changed, oldest first; the last is change
	// number last. More than twice as many as there are resources are not kept.
	changed []string
	last    uint64
	waiting map[*waiter]bool
}

// waiter is a client that has everything.
type waiter struct {
	request *cachev3.DeltaRequest
	answers chan<- cachev3.DeltaResponse
}

func newJournal(typ string) *journal {
	return &journal{typ: typ, resources: make(map[string]*discoveryv3.Resource), waiting: make(map[*waiter]bool)}
}

// update changes resources, and answers the clients that wait.
func (j *journal) update(changed map[string]proto.Message, removed []string) error {
	news := make([]*discoveryv3.Resource, 0, len(changed))
	for name, m := range changed {
		r, err := pack(j.typ, name, m)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		news = append(news, r)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range news {
		j.resources[r.GetName()] = r
		j.noteLocked(r.GetName())
	}
	for _, name := range removed {
		delete(j.resources, name)
		j.noteLocked(name)
	}
	for w := range j.waiting {
		j.answerLocked(w, news, removed)
	}
	clear(j.waiting)
	return nil
}

// pack returns a resource as it is sent. Its version is that of its content, so that
// it is the same after a restart.
func pack(typ, name string, m proto.Message) (*discoveryv3.Resource, error) {
	b, err := cachev3.MarshalResource(m)
	if err != nil {
		return nil, err
	}
	return &discoveryv3.Resource{Name: name, Version: cachev3.HashResource(b), Resource: &anypb.Any{TypeUrl: typ, Value: b}}, nil
}

// noteLocked writes a change down.
func (j *journal) noteLocked(name string) {
	j.last++
	j.changed = append(j.changed, name)
	if keep := max(leastKept, len(j.resources)); len(j.changed) > 2*keep {
		j.changed = slices.Clone(j.changed[len(j.changed)-keep:])
	}
}

// answerLocked gives a client what it lacks. The slices may be shared
// with other answers.
func (j *journal) answerLocked(w *waiter, news []*discoveryv3.Resource, removed []string) {
	version := strconv.FormatUint(j.last, 10)
	w.answers <- &cachev3.DeltaPassthroughResponse{
		DeltaRequest:   w.request,
		NextVersionMap: map[string]string{position: version},
		DeltaDiscoveryResponse: &discoveryv3.DeltaDiscoveryResponse{
			TypeUrl: j.typ, SystemVersionInfo: version, Resources: news, RemovedResources: removed,
		},
	}
}

// CreateDeltaWatch answers a client at once if there is something that it lacks,
// or if it has just come, and else as soon as there is.
func (j *journal) CreateDeltaWatch(r *cachev3.DeltaRequest, sub cachev3.Subscription, answers chan cachev3.DeltaResponse) (cancel func(), err error) {
	if !sub.IsWildcard() {
		return nil, fmt.Errorf(`%s: one can only subscribe to all, as "*"`, j.typ)
	}
	w := &waiter{request: r, answers: answers}
	j.mu.Lock()
	defer j.mu.Unlock()
	news, removed, err := j.sinceLocked(sub.ReturnedResources())
	if err != nil {
		return nil, err
	}
	if len(news) > 0 || len(removed) > 0 || r.GetResponseNonce() == "" {
		j.answerLocked(w, news, removed)
		return nil, nil
	}
	j.waiting[w] = true
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.waiting, w)
	}, nil
}

// sinceLocked returns what a client that has these versions lacks: those
// that it came with, or the position that it was given.
func (j *journal) sinceLocked(known map[string]string) (news []*discoveryv3.Resource, removed []string, err error) {
	at, given := known[position]
	if !given {
		news, removed = j.allButLocked(known)
		return news, removed, nil
	}
	had, err := strconv.ParseUint(at, 10, 64)
	if err != nil || had > j.last || j.last-had > uint64(len(j.changed)) {
		return nil, nil, errBehind
	}
	named := make(map[string]bool)
	for _, name := range j.changed[uint64(len(j.changed))-(j.last-had):] {
		if named[name] {
			continue
		}
		named[name] = true
		if r := j.resources[name]; r != nil {
			news = append(news, r)
		} else {
			removed = append(removed, name)
		}
	}
	return news, removed, nil
}

// allButLocked returns what there is but not in these versions, and the names of what
// there is no more.
func (j *journal) allButLocked(known map[string]string) (news []*discoveryv3.Resource, removed []string) {
	for name, r := range j.resources {
		if known[name] != r.GetVersion() {
			news = append(news, r)
		}
	}
	for name := range known {
		if j.resources[name] == nil {
			removed = append(removed, name)
		}
	}
	return news, removed
}

// CreateWatch refuses the older form of the protocol.
func (j *journal) CreateWatch(*cachev3.Request, cachev3.Subscription, chan cachev3.Response) (func(), error) {
	return nil, errors.New("only delta ADS is served")
}

// Fetch refuses to answer single requests.
func (j *journal) Fetch(context.Context, *cachev3.Request) (cachev3.Response, error) {
	return nil, errors.New("only delta ADS is served")
}
