package migrate

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/baton-cluster/baton/lease"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

const (
	// claimTime is how long a claim stands unless it is repeated.
	claimTime = 3 * time.Second
	// probesPerLease is how often in T a suspect's port is tried.
	probesPerLease = 4
)

// Fencing is what a director needs to fence a worker: the servers' promises, and
// one more sign of whether the worker lives. Nothing but Ask and Refused may
// block.
type Fencing interface {
	// MayFence is the configuration of voters in force here, and whether a fence
	// may be appended now (lease rule L4).
	MayFence() (config uint64, voters []string, may bool)
	// Ask brings a question to a server.
	Ask(ctx context.Context, ask lease.Ask) (lease.Promise, error)
	// Own is this node's own promise to an incarnation.
	Own(incarnation uint64) lease.Promise
	// Refused reports whether the worker's management port refuses connections.
	Refused(ctx context.Context, worker *wire.WorkerRow) bool
}

// claim is what a new start of a worker says of its former incarnation.
type claim struct {
	incarnation uint64
	at          time.Duration
}

// met is when an incarnation was first seen here: it cannot have renewed much
// before.
type met struct {
	incarnation uint64
	at          time.Duration
}

// suspect is a worker that may be dead. Whatever began the suspicion only begins
// the poll of the servers' promises; the fence waits until those have run out.
type suspect struct {
	row   *wire.WorkerRow
	why   string
	since time.Duration
	// gone is the second key: gossip, a claim or an operator says so. refused is
	// another: nothing listens at its port.
	gone, refused bool
	probing       bool
	probeAt       time.Duration

	poll *lease.Poll // nil: none just now
	wake time.Duration
	// fencing: the fence is with the log. It is not proposed again before retry.
	fencing bool
	told    bool // in the log
	retry   time.Duration
	// asked are operators who wait for the outcome.
	asked []func(error)
}

// Detection is what directors have noticed since the process began.
type Detection struct {
	// Suspects are the workers suspected now, by id, and why.
	Suspects map[string]string
	// FalseAlarms counts suspicions that ended without a fence, Fences the others.
	FalseAlarms, Fences uint64
}

// watchWorkers finds whom to suspect, and whom no longer. It is called outside
// View: the promises have a lock of their own, under which the tables are read.
func (r *run) watchWorkers(now time.Duration, workers []*wire.WorkerRow) {
	k := &r.keep
	present := map[string]bool{}
	for _, w := range workers {
		id := w.GetId()
		sus := k.suspects[id]
		if sus != nil && (sus.row.GetIncarnation() != w.GetIncarnation() || w.GetState() == wire.WorkerState_WORKER_STATE_FENCED) {
			r.settle(sus, nil)
			sus = nil
		}
		if w.GetState() == wire.WorkerState_WORKER_STATE_FENCED {
			continue
		}
		present[id] = true
		if k.met[id].incarnation != w.GetIncarnation() {
			k.met[id] = met{w.GetIncarnation(), now}
			if !k.looked { // it was there before this term
				k.met[id] = met{w.GetIncarnation(), now - lease.TMax}
			}
		}
		why, gone := r.hint(now, w)
		switch {
		case why == "" && sus != nil && sus.idle():
			k.falseAlarms.Add(1)
			r.cfg.Log.Info("a suspicion was unfounded", "worker", id, "name", w.GetName(), "why", sus.why)
			delete(k.suspects, id)
		case why != "" && sus == nil:
			r.cfg.Log.Info("a worker is suspected", "worker", id, "name", w.GetName(), "why", why)
			r.cfg.times.suspected(id, w.GetIncarnation(), why)
			k.suspects[id] = &suspect{row: w, why: why, since: now, gone: gone, wake: now}
		case why != "":
			sus.gone = gone || len(sus.asked) > 0 // an operator's word counts on
		}
	}
	k.looked = true
	for id, sus := range k.suspects {
		if !present[id] {
			r.settle(sus, nil)
		}
	}
	for id := range k.met {
		if !present[id] {
			delete(k.met, id)
		}
	}
}

// hint tells why a worker may be dead, if it may, and whether that is a key by
// itself.
func (r *run) hint(now time.Duration, w *wire.WorkerRow) (why string, gone bool) {
	k := &r.keep
	id, incarnation := w.GetId(), w.GetIncarnation()
	if c, ok := k.claims[id]; ok {
		if c.incarnation == incarnation && now-c.at < claimTime {
			return "a new start of it follows", true
		}
		delete(k.claims, id)
	}
	own := r.cfg.Fencing.Own(incarnation)
	if own.Withdrawn {
		return "a fence was begun", false
	}
	if now-k.met[id].at <= k.lease {
		return "", false // it has had no time to renew, nor gossip to hear of its return
	}
	if alive, known := r.cfg.Alive(id); known && !alive {
		return "dead by gossip", true
	}
	if !own.Quiet && own.Left <= k.lease/2 {
		return "missed renewals", false
	}
	return "", false
}

// idle reports that nothing but hints keeps the suspicion: nobody waits for it,
// and no server is being asked to withdraw.
func (s *suspect) idle() bool {
	return len(s.asked) == 0 && !s.fencing && (s.poll == nil || s.poll.State() < lease.PollWithdrawing)
}

// settle ends a suspicion: err is what those who asked are told.
func (r *run) settle(sus *suspect, err error) {
	for _, tell := range sus.asked {
		tell(err)
	}
	sus.asked = nil
	if r.keep.suspects[sus.row.GetId()] == sus {
		delete(r.keep.suspects, sus.row.GetId())
	}
}

// stepSuspects carries the polls on, and returns when to come again.
func (r *run) stepSuspects(now time.Duration) (due time.Duration, any bool) {
	list := make([]*suspect, 0, len(r.keep.suspects))
	for _, sus := range r.keep.suspects {
		list = append(list, sus)
	}
	slices.SortFunc(list, func(a, b *suspect) int { return cmp.Compare(a.row.GetId(), b.row.GetId()) })
	for _, sus := range list {
		r.probe(sus, now)
		r.stepPoll(sus, now)
		if !any || sus.wake < due {
			due, any = sus.wake, true
		}
	}
	return due, any
}

// stepPoll does what the poll of one suspect calls for.
func (r *run) stepPoll(sus *suspect, now time.Duration) {
	if sus.fencing {
		sus.wake = now + r.cfg.ScanEvery
		return
	}
	if now < sus.retry {
		sus.wake = sus.retry
		return
	}
	if sus.poll == nil && now < sus.wake {
		return
	}
	config, voters, may := r.cfg.Fencing.MayFence()
	if len(voters) == 0 {
		sus.wake = now + r.cfg.ScanEvery
		return
	}
	if sus.poll == nil || sus.poll.Config() != config {
		sus.poll = lease.NewPoll(now, sus.row.GetIncarnation(), config, voters)
	}
	keys := lease.Keys{Dead: sus.gone || sus.refused, T: r.keep.lease, MayFence: may}
	asks, wake := sus.poll.Step(now, keys)
	sus.wake = wake
	for _, ask := range asks {
		r.ask(sus, sus.poll, ask)
	}
	switch sus.poll.State() {
	case lease.PollAgreed:
		if may {
			r.fence(sus, now)
		}
	case lease.PollAlive:
		// It renews with a majority. Look again later: it may be this node alone
		// that it cannot reach.
		sus.poll, sus.wake = nil, now+r.keep.lease/2
		if len(sus.asked) > 0 {
			r.settle(sus, wire.Errorf(wire.Code_LEASE_HELD,
				"node %s renews its lease: it is alive, and cannot be fenced; drain it, or stop it first", sus.row.GetName()))
		}
	}
}

// askTimeMin is the least time that a question of a poll has, however short leases are.
const askTimeMin = 500 * time.Millisecond

// ask puts one question of a poll.
func (r *run) ask(sus *suspect, poll *lease.Poll, ask lease.Ask) {
	ctx, cancel := context.WithTimeout(r.ctx, max(r.keep.lease, askTimeMin))
	r.wg.Go(func() {
		defer cancel()
		got, err := r.cfg.Fencing.Ask(ctx, ask)
		if err != nil {
			return // the poll does without
		}
		r.post(func() {
			poll.Answered(r.cfg.Clock.Now(), ask, got)
			if sus.poll == poll {
				sus.wake = r.cfg.Clock.Now()
			}
		})
	})
}

// probe tries the suspect's port, for the second key.
func (r *run) probe(sus *suspect, now time.Duration) {
	if sus.probing || now < sus.probeAt || sus.gone || sus.refused {
		return
	}
	sus.probing = true
	ctx, cancel := context.WithTimeout(r.ctx, r.keep.lease)
	row, again := sus.row, r.keep.lease/probesPerLease
	r.wg.Go(func() {
		defer cancel()
		refused := r.cfg.Fencing.Refused(ctx, row)
		r.post(func() {
			sus.probing, sus.refused = false, refused
			sus.probeAt = r.cfg.Clock.Now() + again
			sus.wake = min(sus.wake, r.cfg.Clock.Now())
		})
	})
}

// fence commits what a majority has agreed to.
func (r *run) fence(sus *suspect, now time.Duration) {
	id, incarnation := sus.row.GetId(), sus.row.GetIncarnation()
	why := sus.why
	if sus.refused {
		why += ", its port refuses connections"
	}
	if !sus.told { // it is tried until it is done
		r.cfg.Log.Warn("fencing a worker: its promises have run out", "worker", id, "name", sus.row.GetName(),
			"incarnation", incarnation, "why", why, "suspected_for", now-sus.since)
	}
	sus.told = true
	r.cfg.times.promisesOut(id, incarnation)
	sus.fencing = true
	cmd := &wire.Command{Kind: &wire.Command_FenceWorker{FenceWorker: &wire.FenceWorker{
		Id: id, Incarnation: incarnation, Reason: why, VoterConfig: sus.poll.Config(),
	}}}
	r.proposeAll([]proposal{{cmd, func(res *wire.Result, err error) {
		sus.fencing = false
		sus.retry = r.cfg.Clock.Now() + r.cfg.ScanEvery
		switch {
		case err != nil:
			r.fault("cannot fence a worker yet", err)
		case res.GetCode() == wire.Code_LEASE_OTHER_CONFIG:
			sus.poll = nil // counted among voters who are no longer in force
		default: // it is fenced, or another incarnation is current
			r.keep.fences.Add(1)
			if res.GetCode() == wire.Code_OK && !res.GetDuplicate() {
				r.cfg.times.fenced(id, incarnation)
			}
			r.settle(sus, nil)
			r.scanSoon = true
		}
	}}})
}

// Suspect has an incarnation taken for dead, whatever gossip says of its worker,
// for a new start of the same worker, which gossip cannot tell from the former.
// It holds for a few seconds, so whoever claims the place must repeat it.
func (d *Director) Suspect(worker string, incarnation uint64) {
	if r := d.cur.Load(); r != nil {
		r.post(func() {
			r.keep.claims[worker] = claim{incarnation, r.cfg.Clock.Now()}
			r.scanSoon = true
		})
	}
}

// Fence fences an incarnation of a worker because an operator says that it is
// gone for good, and returns once that has committed. The word of the operator
// takes the place of gossip's, not of the promises: those must run out.
//
// Errors are *wire.Error: LEASE_HELD (it renews: it is alive), UNKNOWN_WORKER,
// STALE_INCARNATION, NOT_LEADER, DEADLINE_EXCEEDED.
func (d *Director) Fence(ctx context.Context, worker string, incarnation uint64) error {
	r := d.cur.Load()
	if r == nil {
		return notDirecting()
	}
	done := make(chan error, 1)
	if !r.post(func() { r.fenceAsked(worker, incarnation, func(err error) { done <- err }) }) {
		return notDirecting()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "too few servers have agreed to the fence in time; it goes on while the node seems dead")
	}
}

// askedWhy is the reason of a fence that an operator asked for.
const askedWhy = "an operator says that it is gone"

func (r *run) fenceAsked(worker string, incarnation uint64, tell func(error)) {
	var row *wire.WorkerRow
	r.cfg.View(func(s *store.Store) { row, r.keep.lease = s.Worker(worker), s.Lease() })
	switch {
	case row == nil:
		tell(wire.Errorf(wire.Code_UNKNOWN_WORKER, "there is no such worker"))
		return
	case row.GetIncarnation() != incarnation:
		tell(wire.Errorf(wire.Code_STALE_INCARNATION, "it has registered anew since"))
		return
	case row.GetState() == wire.WorkerState_WORKER_STATE_FENCED:
		tell(nil)
		return
	}
	now := r.cfg.Clock.Now()
	sus := r.keep.suspects[worker]
	if sus == nil {
		r.cfg.times.suspected(worker, incarnation, askedWhy)
		sus = &suspect{row: row, since: now}
		r.keep.suspects[worker] = sus
	}
	sus.why, sus.gone, sus.wake = askedWhy, true, now
	sus.asked = append(sus.asked, tell)
}

// suspected are the suspects, and why.
func (r *run) suspected() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]string, len(r.keep.suspects))
	for id, sus := range r.keep.suspects {
		out[id] = sus.why
	}
	return out
}
