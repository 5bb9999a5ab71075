package baton

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/baton-cluster/baton/cluster"
	"github.com/baton-cluster/baton/lease"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
	"github.com/baton-cluster/baton/worker"
)

// eagerness: without a lease a worker renews so many times as often. A worker
// that has just registered is known to the followers a moment later.
const eagerness = 8

// renewer keeps the worker's lease: it asks every voter, this node's own server
// like the others, for promises. All of it is in memory: no log entry, no sync.
type renewer struct {
	id      string
	clock   seam.Clock
	cluster *cluster.Cluster
	worker  *worker.Worker
	// over is told that the worker's incarnation has ended here.
	over func()

	mu     sync.Mutex
	holder lease.Holder

	// held is what the holder's arithmetic came to: reads take no lock for it.
	held atomic.Pointer[held]
	kick chan struct{}
	asks sync.WaitGroup
}

// held is a lease: of which incarnation, and until when.
type held struct {
	incarnation uint64
	until       time.Duration // boot time
	// slept is how far the boot clock had run ahead of the timers' when the
	// incarnation began: what it has slept since is a jump.
	slept time.Duration
}

func newRenewer(n *Node) *renewer {
	return &renewer{
		id: n.id, clock: n.cfg.Clock, cluster: n.cluster, worker: n.worker, over: n.wasFenced, kick: make(chan struct{}, 1),
	}
}

// left implements worker.Config.Lease. Both clocks are read in the call: a
// machine that slept has been away longer than its timers know, and whatever it
// was told before may be over.
func (r *renewer) left(incarnation uint64) (time.Duration, bool) {
	h := r.held.Load()
	if h == nil || h.incarnation != incarnation || incarnation == 0 {
		return 0, false
	}
	ran := r.clock.Now()
	now := seam.Boot(r.clock)
	if jumped(h.slept, now-ran) || now >= h.until {
		return 0, false
	}
	return h.until - now, true
}

// slept is how much longer the machine has been up, by its boot clock, than its
// timers ran. A reading that was interrupted is taken again.
func (r *renewer) slept() time.Duration {
	for {
		before := r.clock.Now()
		boot := seam.Boot(r.clock)
		if after := r.clock.Now(); after-before < lease.Margin/2 {
			return boot - after
		}
	}
}

func jumped(before, after time.Duration) bool { return after-before > lease.Margin }

// leaseLeft is for the worker, which is made before its renewer.
func (n *Node) leaseLeft(incarnation uint64) (time.Duration, bool) {
	if n.renewer == nil || n.cfg.ConfirmedReads {
		return 0, false
	}
	return n.renewer.left(incarnation)
}

// run renews until ctx ends.
func (r *renewer) run(ctx context.Context) {
	defer r.asks.Wait()
	slept := r.slept()
	for ctx.Err() == nil {
		now := r.slept()
		if jumped(slept, now) {
			r.fenceSelf(r.worker.Incarnation()) // before anything else is sent
		}
		slept = now
		wait := r.round(ctx, slept)
		timer := r.clock.AfterFunc(wait, r.wake)
		select {
		case <-r.kick:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func (r *renewer) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// round sends one renewal to each voter, and returns when the next is due.
func (r *renewer) round(ctx context.Context, slept time.Duration) time.Duration {
	var t time.Duration
	var in cluster.VoterConfig
	r.cluster.FSM().View(func(st *store.Store) {
		in.Index, in.Voters = st.Voters()
		t = st.Lease()
	})
	r.mu.Lock()
	now := seam.Boot(r.clock)
	if inc := r.worker.Incarnation(); inc != r.holder.Incarnation() {
		r.holder.Begin(inc, now)
		r.publish(slept)
	}
	r.holder.SetVoters(in.Index, in.Voters)
	renewals := r.holder.Renew(now, t)
	until, holds := r.holder.Until()
	r.mu.Unlock()
	for _, renewal := range renewals {
		if renewal.Server == r.id {
			r.ask(ctx, renewal, t, slept)
			continue
		}
		r.asks.Go(func() { r.ask(ctx, renewal, t, slept) })
	}
	if holds && now < until {
		return t / lease.RenewalsPerLease
	}
	return t / lease.RenewalsPerLease / eagerness
}

// ask brings one renewal to its server, and the answer to the holder.
func (r *renewer) ask(ctx context.Context, renewal lease.Renewal, t, slept time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, t) // later, a promise is worth nothing
	defer cancel()
	grant, err := r.cluster.AskRenew(ctx, r.id, renewal)
	if err != nil {
		return
	}
	r.mu.Lock()
	over := r.holder.Receive(grant)
	r.publish(slept)
	r.mu.Unlock()
	if over {
		r.fenceSelf(renewal.Incarnation)
	}
}

// publish is called under mu, after every change of the holder.
func (r *renewer) publish(slept time.Duration) {
	until, ok := r.holder.Until()
	if !ok {
		r.held.Store(nil)
		return
	}
	if h := r.held.Load(); h == nil || h.until != until || h.incarnation != r.holder.Incarnation() {
		r.held.Store(&held{r.holder.Incarnation(), until, slept})
	}
}

// fenceSelf ends an incarnation that must not serve on: a server has agreed to
// its fence, or it may have slept through one. The worker drops what it holds and
// registers anew.
func (r *renewer) fenceSelf(incarnation uint64) {
	if incarnation != 0 && r.worker.Fenced(incarnation) {
		r.held.Store(nil)
		r.over()
	}
}

// muted ends the incarnation of a worker whose server is silent, because its disk
// hangs: what its sessions write may not come back before the disk does, and their
// owner would be valid all the while. The leader hears from this node that the
// incarnation is over, and fences it as soon as its promises have run out.
func (n *Node) muted() {
	if n.serves.Load() {
		n.renewer.fenceSelf(n.worker.Incarnation())
	}
}

// askedLease is how long leases shall last by the node's configuration; 0: as
// its profile says.
func (c Config) askedLease() time.Duration {
	if c.Lease > 0 {
		return c.Lease
	}
	if c.Profile == string(cluster.ProfileWAN) {
		return leaseWAN
	}
	return lease.TDefault
}

// leaseWAN is for nodes far apart: elections there take three times as long, and
// leases shall ride through them.
const leaseWAN = 3 * time.Second

// fencing is what the director needs to fence a worker.
type fencing struct{ n *Node }

func (f fencing) MayFence() (config uint64, voters []string, may bool) {
	in, may := f.n.cluster.MayFence()
	return in.Index, in.Voters, may
}

func (f fencing) Ask(ctx context.Context, a lease.Ask) (lease.Promise, error) {
	return f.n.cluster.AskPromise(ctx, a)
}

func (f fencing) Own(incarnation uint64) lease.Promise {
	return f.n.cluster.OwnPromise(incarnation)
}

// Refused reports whether the worker's management port refuses connections (its
// machine is there, and the process is not), or the process there says itself that
// the incarnation is over.
func (f fencing) Refused(ctx context.Context, w *wire.WorkerRow) bool {
	if w.GetId() == f.n.id {
		return false
	}
	c, err := f.n.cfg.Network.Dial(ctx, mgmtAddr(w))
	if err != nil {
		return errors.Is(err, syscall.ECONNREFUSED)
	}
	_ = c.Close()
	there, err := f.n.where(ctx, mgmtAddr(w), w.GetId(), gatherTime)
	return err == nil && there.GetSelf() && there.GetIncarnation() != w.GetIncarnation()
}
