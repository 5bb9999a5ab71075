package cluster

import (
	"context"
	"sync"

	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// methodPropose brings a follower's batch to the leader.
const methodPropose = "propose"

// Propose brings commands into the log and calls done with their results, one
// for each, in order: once, on a goroutine that done should not hold up. It
// never blocks. The results are those of the leader's apply; this node's own FSM
// may learn of them later. The commands of one call apply in their order, each
// run of up to EntryBytesMax and EntryCommandsMax of them in one entry. Commands
// must not be changed afterwards.
//
// A refusal by a rule is a Result with a code. An error means: OVERLOADED,
// FRAME_TOO_LARGE, BAD_REQUEST (nothing was proposed), or SHUTTING_DOWN at Close
// (the outcome may be open). While there is no leader a proposal waits. A read
// marker by itself is answered without an entry where that can be done.
func (c *Cluster) Propose(cmds []*wire.Command, done func([]*wire.Result, error)) {
	if len(cmds) == 1 && cmds[0].GetReadMarker() != nil && cmds[0].GetGroup() == 0 {
		c.confirm(cmds, done)
		return
	}
	c.prop.propose(cmds, done, false)
}

// ProposeWait is Propose for a caller that waits. If ctx ends first, its error
// is returned and the outcome is open.
func (c *Cluster) ProposeWait(ctx context.Context, cmds ...*wire.Command) ([]*wire.Result, error) {
	type outcome struct {
		results []*wire.Result
		err     error
	}
	got := make(chan outcome, 1)
	c.Propose(cmds, func(results []*wire.Result, err error) { got <- outcome{results, err} })
	select {
	case o := <-got:
		return o.results, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// applyBatch puts a batch into this node's log.
func (c *Cluster) applyBatch(b *batch) ([]*wire.Result, error) {
	r := c.current()
	if r == nil {
		return nil, errNotLeader("")
	}
	return c.commit(r, b.list())
}

// forwardBatch brings a batch to the leader at addr.
func (c *Cluster) forwardBatch(ctx context.Context, addr string, b *batch) ([]*wire.Result, error) {
	resp := &wire.ProposeResp{}
	if err := rpcnet.Invoke(ctx, c.cfg.Peers, addr, methodPropose, &wire.ProposeReq{Commands: b.list()}, resp); err != nil {
		return nil, err
	}
	return resp.GetResults(), nil
}

// servePropose answers a follower's batch with the results of its commands, or
// with NOT_LEADER: then the follower finds out by proposing it again.
func (c *Cluster) servePropose(ctx context.Context, _ rpcnet.Caller, req *wire.ProposeReq) (*wire.ProposeResp, error) {
	type outcome struct {
		results []*wire.Result
		err     error
	}
	got := make(chan outcome, 1)
	c.prop.propose(req.GetCommands(), func(results []*wire.Result, err error) { got <- outcome{results, err} }, true)
	select {
	case o := <-got:
		if o.err != nil {
			return nil, o.err
		}
		return &wire.ProposeResp{Results: o.results}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// reroute looks where batches have to go now.
func (c *Cluster) reroute() {
	c.lead.mu.Lock()
	ready := c.lead.now != nil && c.lead.now.ready
	c.lead.mu.Unlock()
	if ready {
		c.prop.setRoute(true, "")
		return
	}
	id, addr := c.Leader()
	if id == c.cfg.ID {
		addr = "" // elected, but not ready yet
	}
	c.prop.setRoute(false, addr)
}

// Leader returns id and management address of the leader as this node knows it;
// empty if it knows none.
func (c *Cluster) Leader() (id, addr string) {
	r := c.opened.Load()
	if r == nil {
		return "", ""
	}
	a, i := r.LeaderWithID()
	return string(i), string(a)
}

// IsLeader reports whether this node leads and takes proposals into its log. It
// is a hint: another may lead already.
func (c *Cluster) IsLeader() bool { return c.current() != nil }

// LogTimeUS is the cluster's log time in microseconds: on the leader as it
// would stamp an entry now, elsewhere that of the last applied entry.
func (c *Cluster) LogTimeUS() uint64 {
	var us uint64
	c.fsm.View(func(s *store.Store) { us = s.TimeUS() })
	if r := c.current(); r != nil {
		us = max(us, r.stampUS(c.cfg.Clock))
	}
	return us
}

// Barrier returns once this node's FSM holds everything that was committed when
// Barrier was called, anywhere in the cluster.
func (c *Cluster) Barrier(ctx context.Context) error {
	results, err := c.ProposeWait(ctx, &wire.Command{Kind: &wire.Command_Tick{Tick: &wire.Tick{}}})
	if err != nil {
		return err
	}
	return c.waitApplied(ctx, results[0].GetPosition()>>store.PositionBits)
}

// waitApplied waits until this node's FSM has applied index.
func (c *Cluster) waitApplied(ctx context.Context, index uint64) error {
	// The waiter registers before it looks, so that no entry falls between.
	w := c.wait.add(index)
	defer c.wait.remove(w)
	var now uint64
	c.fsm.View(func(s *store.Store) { now = s.Index() })
	if now >= index {
		return nil
	}
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ctx.Done():
		return errClosing()
	}
}

// applied wakes those who wait for an index.
type applied struct {
	mu      sync.Mutex
	waiters map[*appliedWaiter]struct{}
}

type appliedWaiter struct {
	index uint64
	done  chan struct{}
}

func (a *applied) add(index uint64) *appliedWaiter {
	w := &appliedWaiter{index: index, done: make(chan struct{})}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waiters == nil {
		a.waiters = map[*appliedWaiter]struct{}{}
	}
	a.waiters[w] = struct{}{}
	return w
}

func (a *applied) remove(w *appliedWaiter) {
	a.mu.Lock()
	delete(a.waiters, w)
	a.mu.Unlock()
}

func (a *applied) reached(index uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for w := range a.waiters {
		if index >= w.index {
			close(w.done)
			delete(a.waiters, w)
		}
	}
}
