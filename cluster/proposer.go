package cluster

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baton-cluster/baton/pool"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// route is where batches go just now. A change of route ends the one before:
// its ctx, and with it every forwarded call that may wait for a lost leader.
type route struct {
	local  bool   // this node leads, and its log time is set
	addr   string // management address of the leader, if that is another node
	ctx    context.Context
	cancel context.CancelFunc
}

func (r *route) open() bool { return r.local || r.addr != "" }

// proposer runs the queue: it cuts batches while fewer than its limit are under
// way, sends each to the log or to the leader, and proposes it again until its
// outcome is definite.
type proposer struct {
	clock seam.Clock
	call  time.Duration // bound of one forwarded batch
	// batches is how many may be under way to this node's own log.
	batches int
	// apply puts a batch into the log (this node leads) and returns its results.
	apply func(b *batch) ([]*wire.Result, error)
	// forward brings a batch to the leader.
	forward func(ctx context.Context, addr string, b *batch) ([]*wire.Result, error)
	// retry is called before a batch is sent again; it looks at the route anew.
	retry func()

	mu       sync.Mutex
	queue    queue
	route    *route
	inflight int
	// gathering: one of them has not been cut from the queue yet.
	gathering bool
	// recent is about the size of the last batches, in commands: it rises at once
	// and sinks slowly.
	recent int
	pause  time.Duration // before the next attempt; 0 after a success
	paused seam.Timer    // nil: not pausing
	closed bool
	jobs   pool.Pool // batches under way
	timers sync.WaitGroup

	batchSizes histogram // commands in each entry of this node's making
	entries    atomic.Uint64
	commands   atomic.Uint64
}

func newProposer(clock seam.Clock, t Timings) *proposer {
	p := &proposer{clock: clock, call: t.Forward, batches: t.Batches}
	p.route = newRoute(false, "")
	return p
}

func newRoute(local bool, addr string) *route {
	r := &route{local: local, addr: addr}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// errClosing tells that a proposal may or may not take effect.
func errClosing() *wire.Error {
	return wire.Errorf(wire.Code_SHUTTING_DOWN, "this node is closing; ask another whether the command took effect")
}

// errNotLeader is answered to a node that forwarded a batch here.
func errNotLeader(leader string) *wire.Error {
	return &wire.Error{Code: wire.Code_NOT_LEADER, Message: "this node is not the leader", Leader: leader}
}

// propose queues a group. done is called once, never from within propose.
func (p *proposer) propose(cmds []*wire.Command, done func([]*wire.Result, error), forwarded bool) {
	if err := p.add(cmds, done, forwarded); err != nil {
		tell := func() { done(nil, err) }
		if !p.jobs.Go(tell) {
			go tell() // Close has waited for what it owned; the caller outlived it
		}
	}
}

func (p *proposer) add(cmds []*wire.Command, done func([]*wire.Result, error), forwarded bool) error {
	g, err := newGroup(cmds, done)
	if err != nil {
		return err
	}
	g.forwarded = forwarded
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errClosing()
	}
	if forwarded && !p.route.local {
		return errNotLeader(p.route.addr)
	}
	if err := p.queue.add(g); err != nil {
		return err
	}
	p.pump()
	return nil
}

// pump starts a batch if it may. The caller holds the lock.
//
// An entry beside another must be worth its own trip to the disk: half of what
// batches were of late. Otherwise the first few commands that follow a batch's
// answers would go alone, and all others wait for them. Without another nothing
// waits, so what is held back here waits for one batch at most.
func (p *proposer) pump() {
	if p.closed || p.paused != nil || !p.route.open() || p.gathering || p.inflight >= p.most() || p.queue.empty() {
		return
	}
	if p.inflight > 0 && p.route.local && p.queue.waiting < p.recent/2 && p.queue.waitingBytes < wire.EntryBytesMax {
		return
	}
	p.inflight++
	p.gathering = true
	r := p.route
	p.jobs.Go(func() { p.run(r) })
}

// most is how many batches may be under way. The caller holds the lock.
func (p *proposer) most() int {
	if p.route.local {
		return p.batches
	}
	return forwardsMax
}

// gather cuts a batch for r, once those who are about to propose have done so:
// clients that were answered together come back together, and what the first of
// them asks for would travel alone while all others wait for it. So this
// goroutine stands back for as long as that brings more: for microseconds, and
// for none if nobody else has anything to run. nil: there is nothing to send, or
// not on r.
func (p *proposer) gather(r *route) *batch {
	for had := 0; ; {
		runtime.Gosched()
		p.mu.Lock()
		waiting := p.queue.waiting
		if waiting <= had || waiting >= wire.EntryCommandsMax || p.queue.waitingBytes >= wire.EntryBytesMax {
			break
		}
		p.mu.Unlock()
		had = waiting
	}
	defer p.mu.Unlock()
	p.gathering = false
	if p.closed || p.paused != nil || p.route != r || p.queue.empty() {
		p.inflight--
		p.pump()
		return nil
	}
	b := p.queue.next()
	p.recent = max(b.commands, p.recent-p.recent/8)
	p.pump()
	return b
}

// run brings one batch to an outcome, or back into the queue.
func (p *proposer) run(r *route) {
	b := p.gather(r)
	if b == nil {
		return
	}
	var results []*wire.Result
	var err error
	if r.local {
		results, err = p.apply(b)
	} else {
		ctx, cancel := context.WithTimeout(r.ctx, p.call)
		results, err = p.forward(ctx, r.addr, b)
		cancel()
	}
	if err == nil && len(results) != b.commands {
		err = wire.Errorf(wire.Code_INTERNAL, "%d commands brought %d results", b.commands, len(results))
	}
	p.mu.Lock()
	var answered, failed []*group
	verdict := err
	switch {
	case err == nil:
		p.pause = 0
		answered = p.queue.settle(b, results)
		if r.local {
			p.batchSizes.add(uint64(b.commands))
			p.entries.Add(1)
			p.commands.Add(uint64(b.commands))
		}
	case refusedForGood(err):
		failed = p.queue.refuse(b)
	case wire.CodeOf(err) == wire.Code_REPLY_TOO_LARGE && b.commands > 1:
		p.queue.halve(b)
	default:
		failed, verdict = p.queue.requeue(b), errNotLeader(p.route.addr)
		if p.route == r && !p.closed {
			p.rest()
		}
	}
	var left []*group
	if p.closed {
		left = p.queue.takeAll()
	}
	p.mu.Unlock()
	// The batch's place is given up only after its groups were told: what they
	// propose next then shares an entry.
	finish(answered, nil)
	finish(failed, verdict)
	finish(left, errClosing())
	p.mu.Lock()
	p.inflight--
	if err == nil && r.local && b.awaited() && p.queue.empty() {
		p.announce()
	}
	p.pump()
	p.mu.Unlock()
}

// tell has the followers learn at once what is committed.
func (p *proposer) tell() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.route.local && p.queue.empty() {
		p.announce()
		p.pump()
	}
}

// announce puts an empty command into the log, because nothing else waits to
// go: with it the followers learn that the entry before is committed, which is
// at once and not when raft next speaks to them. The caller holds the lock.
func (p *proposer) announce() {
	g, err := newGroup([]*wire.Command{{Kind: &wire.Command_Tick{Tick: &wire.Tick{}}}}, func([]*wire.Result, error) {})
	if err == nil && !p.closed {
		_ = p.queue.add(g) // empty: it is always taken
	}
}

// refusedForGood reports an answer that will not change: the leader cannot read
// the commands. Anything else is worth another attempt.
func refusedForGood(err error) bool {
	switch wire.CodeOf(err) {
	case wire.Code_BAD_REQUEST, wire.Code_FRAME_TOO_LARGE:
		return true
	}
	return false
}

// rest pauses before the next attempt. The caller holds the lock.
func (p *proposer) rest() {
	if p.paused != nil {
		return
	}
	p.pause = min(max(2*p.pause, retryMin), retryMax)
	p.timers.Add(1)
	p.paused = p.clock.AfterFunc(p.pause, func() {
		defer p.timers.Done()
		p.mu.Lock()
		p.paused = nil
		closed := p.closed
		p.mu.Unlock()
		if closed {
			return
		}
		p.retry()
		p.mu.Lock()
		p.pump()
		p.mu.Unlock()
	})
}

// setRoute changes where batches go. Forwarded groups that wait here while this
// node no longer leads go back to where they came from.
func (p *proposer) setRoute(local bool, addr string) {
	p.mu.Lock()
	if p.closed || (p.route.local == local && p.route.addr == addr) {
		p.mu.Unlock()
		return
	}
	p.route.cancel()
	p.route = newRoute(local, addr)
	p.pause = 0
	if p.paused != nil && p.paused.Stop() {
		p.timers.Done()
		p.paused = nil
	}
	var told []*group
	if !local {
		told = p.queue.takeForwarded()
	}
	p.pump()
	p.mu.Unlock()
	finish(told, errNotLeader(addr))
}

// to is where batches go.
func (p *proposer) to() *route {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.route
}

// leads reports whether batches go into this node's log.
func (p *proposer) leads() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.route.local
}

// stop refuses further groups, ends the forwarded calls and tells every waiting
// group. Batches in the log end by themselves: wait waits for them.
func (p *proposer) stop() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	p.route.cancel()
	if p.paused != nil && p.paused.Stop() {
		p.timers.Done()
		p.paused = nil
	}
	told := p.queue.takeAll()
	p.mu.Unlock()
	finish(told, errClosing())
}

func (p *proposer) wait() {
	p.timers.Wait()
	p.jobs.Wait()
}

// finish calls each group's done: with its results, or with err.
func finish(groups []*group, err error) {
	for _, g := range groups {
		if err != nil {
			g.done(nil, err)
		} else {
			g.done(g.results, nil)
		}
	}
}
