package kube

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"millrace.dev/millrace/xds/internal/fleet"
)

// Times of the lease: a leader that dies is replaced after leaseFor, one that ends in
// order within retryEvery. Its clock and ours are never compared.
const (
	leaseFor   = 15 * time.Second
	renewFor   = 10 * time.Second
	retryEvery = 2 * time.Second
)

// lead takes part in the election until leading ends, and gives the fleet what is seen
// of the lease. Who had it when it was last seen leads: while the API server is away,
// the last leader does. Only who surely has it writes.
func (c *Cluster) lead(ctx, leading context.Context, f Fleet) error {
	leading, cancel := context.WithCancel(leading)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	c.resume(ctx, f)
	inner, err := resourcelock.New(resourcelock.LeasesResourceLock, c.cfg.Namespace, c.cfg.Lease,
		c.leases.CoreV1(), c.leases.CoordinationV1(), resourcelock.ResourceLockConfig{Identity: c.cfg.Identity})
	if err != nil {
		return err
	}
	seen := &lock{Interface: inner, seen: func(r resourcelock.LeaderElectionRecord) { c.sawLease(ctx, r, f) }}
	for leading.Err() == nil {
		e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: seen, LeaseDuration: leaseFor, RenewDeadline: renewFor, RetryPeriod: retryEvery, ReleaseOnCancel: true, Name: c.cfg.Lease,
			Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: func(context.Context) {}, OnStoppedLeading: func() {}},
		})
		if err != nil {
			return err
		}
		c.elector.Store(e)
		e.Run(leading)
		wait(leading, retryEvery)
	}
	return nil
}

// Leads reports whether this xds surely has the lease.
func (c *Cluster) Leads() bool {
	e := c.elector.Load()
	return e != nil && e.IsLeader()
}

// resume continues where the last start of this xds was: it leads if it did.
func (c *Cluster) resume(ctx context.Context, f Fleet) {
	c.mu.Lock()
	s := c.saved
	c.mu.Unlock()
	if s.Holder == c.cfg.Identity && s.Term > 0 {
		f.Post(ctx, fleet.Leads{Term: s.Term})
	}
}

// sawLease takes in the lease as it is.
func (c *Cluster) sawLease(ctx context.Context, r resourcelock.LeaderElectionRecord, f Fleet) {
	c.answered.Store(time.Now().UnixNano())
	term := uint64(0)
	if r.HolderIdentity == c.cfg.Identity {
		term = uint64(max(0, r.LeaderTransitions)) + 1
	}
	f.Post(ctx, fleet.Leads{Term: term})
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.saved.Holder != r.HolderIdentity || c.saved.Term != term {
		c.cfg.Log.Info("lease", "holder", r.HolderIdentity, "transitions", r.LeaderTransitions)
		c.saved.Holder, c.saved.Term = r.HolderIdentity, term
		c.saveLocked()
	}
}

// lock is a lease that reports what is seen of it.
type lock struct {
	resourcelock.Interface
	seen func(resourcelock.LeaderElectionRecord)
}

// Get reads the lease.
func (l *lock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	r, raw, err := l.Interface.Get(ctx)
	if err == nil {
		l.seen(*r)
	}
	return r, raw, err
}

// Create makes the lease, where nobody has.
func (l *lock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Create(ctx, r)
	if err == nil {
		l.seen(r)
	}
	return err
}

// Update takes, renews or lets go of the lease.
func (l *lock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Update(ctx, r)
	if err == nil {
		l.seen(r)
	}
	return err
}

// now is the time as objects have it.
func now() time.Time { return metav1.Now().UTC() }
