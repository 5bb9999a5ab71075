package migrate

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// scansPerPeriod bounds how often Nudge makes the tables be looked through: so
// many times in ScanEvery.
const scansPerPeriod = 10

// feedsPerPeriod bounds how often jobs get to fill the places that moves have
// left: so many times in ScanEvery. Less often and places stay empty, more often
// and what could share a call and an entry goes alone.
const feedsPerPeriod = 25

// run is one term of directing. Its loop is the only goroutine that decides;
// calls to workers run on their own, and answer through the inbox, as do
// commits. Nothing that the loop does waits for a peer or for the log.
type run struct {
	cfg  *DirectorConfig
	wake chan struct{}
	wg   sync.WaitGroup // calls to workers

	nudged atomic.Bool

	inboxMu sync.Mutex
	inbox   []func()
	closed  bool

	// mu guards all below. The loop holds it while it works; reports take it.
	mu    sync.Mutex
	ctx   context.Context
	moves map[*move]struct{}
	// bySession has the moves of moves. Invariant: at most one a session, so that
	// nothing is begun twice at once.
	bySession map[string]*move
	// queue has the requests that wait for room, by priority, queued the same by
	// session.
	queue  []*move
	queued map[string]*move
	// waiting has those of moves that wait for an operator.
	waiting map[*move]bool
	// superseded are those of waiting whose sessions a drain wants to move: what it
	// empties must not wait for a person.
	superseded []*move
	// asks is what the pass wants confirmed.
	asks []*asking
	// out is what the pass has to propose for moves; one Propose takes all.
	out []proposal

	gate      gate
	lastScan  time.Duration
	scanSoon  bool
	lastFeed  time.Duration
	feedSoon  bool // a job's place is free
	keep      upkeep
	jobs      jobs
	lastFault string
}

// proposal is a command with what waits for its result.
type proposal struct {
	cmd  *wire.Command
	done func(*wire.Result, error)
}

func newRun(ctx context.Context, cfg *DirectorConfig, c *counts) *run {
	r := &run{
		cfg:       cfg,
		wake:      make(chan struct{}, 1),
		ctx:       ctx,
		moves:     map[*move]struct{}{},
		bySession: map[string]*move{},
		queued:    map[string]*move{},
		waiting:   map[*move]bool{},
		gate:      gate{inside: map[*move]time.Duration{}},
		jobs:      newJobs(),
		lastScan:  cfg.Clock.Now() - cfg.ScanEvery,
	}
	r.keep.suspects, r.keep.claims, r.keep.met = map[string]*suspect{}, map[string]claim{}, map[string]met{}
	r.keep.counts = c
	return r
}

// post hands fn to the loop. False: the loop has ended and fn will not run.
func (r *run) post(fn func()) bool {
	r.inboxMu.Lock()
	closed := r.closed
	if !closed {
		r.inbox = append(r.inbox, fn)
	}
	r.inboxMu.Unlock()
	if !closed {
		r.wakeUp()
	}
	return !closed
}

func (r *run) nudge() {
	if !r.nudged.Swap(true) {
		r.wakeUp()
	}
}

func (r *run) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default: // woken already
	}
}

// loop runs passes until ctx ends; then it lets go of all moves, which are in
// the log for the next director, and waits for the calls that it started.
func (r *run) loop(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.ctx = ctx
	for ctx.Err() == nil {
		wait := r.pass()
		timer := r.cfg.Clock.AfterFunc(wait, r.wakeUp)
		select {
		case <-ctx.Done():
		case <-r.wake:
		}
		timer.Stop()
	}
	cancel()
	r.inboxMu.Lock()
	r.closed = true
	rest := r.inbox
	r.inbox = nil
	r.inboxMu.Unlock()
	r.mu.Lock()
	for _, fn := range rest {
		fn()
	}
	r.out = nil
	for m := range r.moves {
		r.letGo(m)
	}
	for _, m := range r.queue {
		r.reject(m, notDirecting())
	}
	r.queue = nil
	for _, sus := range r.keep.suspects {
		r.settle(sus, notDirecting())
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// pass does all that is to be done now, and returns how long nothing will be.
func (r *run) pass() time.Duration {
	r.inboxMu.Lock()
	inbox := r.inbox
	r.inbox = nil
	r.inboxMu.Unlock()

	r.mu.Lock()
	defer r.mu.Unlock()
	for _, fn := range inbox {
		fn()
	}
	now := r.cfg.Clock.Now()
	r.timeouts(now)
	slow := r.slowHandovers(now)
	if r.nudged.Swap(false) {
		r.scanSoon = true
	}
	if now >= r.scanDue() {
		r.lastScan, r.scanSoon = now, false
		r.lastFeed, r.feedSoon = now, false
		r.scan(now)
	} else if r.feedSoon && now >= r.feedDue() {
		r.lastFeed, r.feedSoon = now, false
		r.feed(now)
	}
	wake, suspects := r.stepSuspects(now)
	r.startQueued()
	r.flush()
	due := min(r.scanDue(), slow)
	if suspects {
		due = min(due, wake)
	}
	if r.feedSoon {
		due = min(due, r.feedDue())
	}
	return max(min(due, r.due())-r.cfg.Clock.Now(), 0)
}

// due is the earliest deadline of a move.
func (r *run) due() time.Duration {
	due := time.Duration(math.MaxInt64)
	for m := range r.moves {
		if at, ok := m.h.Deadline(); ok {
			due = min(due, at)
		}
	}
	return due
}

// scanDue is when the tables are to be looked through next.
func (r *run) scanDue() time.Duration {
	if r.scanSoon {
		return r.lastScan + r.cfg.ScanEvery/scansPerPeriod
	}
	return r.lastScan + r.cfg.ScanEvery
}

// feedDue is when free places of jobs are to be filled next.
func (r *run) feedDue() time.Duration { return r.lastFeed + r.cfg.ScanEvery/feedsPerPeriod }

// feed begins moves of jobs where others have left room.
func (r *run) feed(now time.Duration) {
	var starts []*move
	nowUS := r.cfg.NowUS()
	r.cfg.View(func(s *store.Store) { starts = r.planJobs(now, nowUS, s) })
	r.start(starts)
}

// start begins moves that jobs have planned.
func (r *run) start(moves []*move) {
	for _, m := range moves {
		r.begin(m)
	}
	for _, m := range r.superseded {
		r.withdraw(m, wire.Code_MOVE_REJECTED, "a drain moves the session")
	}
	r.superseded = nil
	r.upkeepFlush()
}

// timeouts tells the moves whose time has come.
func (r *run) timeouts(now time.Duration) {
	if r.due() > now {
		return
	}
	for _, m := range r.sortedMoves() {
		if at, ok := m.h.Deadline(); ok && at <= now {
			r.step(m, Input{Kind: InTime})
		}
	}
}

// scan looks through the tables once and does what they call for.
func (r *run) scan(now time.Duration) {
	var orphans []*wire.Migration
	var workers []*wire.WorkerRow
	var seen []sighting
	var starts []*move
	nowUS := r.cfg.NowUS()
	r.cfg.View(func(s *store.Store) {
		orphans = r.orphans(s)
		seen = r.sightings(s)
		workers, r.keep.lease = s.Workers(), s.Lease()
		r.planAssign(nowUS, s)
		r.planExpire(s)
		r.planTick(now, nowUS, s)
		starts = r.planJobs(now, nowUS, s)
	})
	r.watchWorkers(now, workers)
	for _, m := range orphans {
		r.adopt(m)
	}
	for i := range seen {
		r.step(seen[i].m, seen[i].in)
	}
	r.start(starts)
}

// flush proposes what the moves want committed, in one call, and has the new
// ones confirmed.
func (r *run) flush() {
	r.askAll()
	if len(r.out) == 0 {
		return
	}
	batch := r.out
	r.out = nil
	r.proposeAll(batch)
}

// proposeAll commits a batch in one Propose and hands each its result, in the
// loop.
func (r *run) proposeAll(batch []proposal) {
	cmds := make([]*wire.Command, len(batch))
	for i := range batch {
		cmds[i] = batch[i].cmd
	}
	r.cfg.Propose(cmds, func(res []*wire.Result, err error) {
		if err == nil && len(res) != len(cmds) {
			err = wire.Errorf(wire.Code_INTERNAL, "%d commands got %d results", len(cmds), len(res))
		}
		r.post(func() {
			for i := range batch {
				if err != nil {
					batch[i].done(nil, err)
				} else {
					batch[i].done(res[i], nil)
				}
			}
		})
	})
}

// fault logs a refusal that is not worth a line each time.
func (r *run) fault(msg string, err error) {
	if text := msg + ": " + err.Error(); text != r.lastFault {
		r.lastFault = text
		r.cfg.Log.Warn(msg, "err", err)
	}
}

// sortedMoves are the moves in the order in which they were asked for: nothing
// here depends on map order.
func (r *run) sortedMoves() []*move {
	ms := make([]*move, 0, len(r.moves))
	for m := range r.moves {
		ms = append(ms, m)
	}
	slices.SortFunc(ms, func(a, b *move) int {
		if a.order < b.order {
			return -1
		}
		return 1
	})
	return ms
}

func (r *run) reports() []Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	reps := make([]Report, 0, len(r.moves))
	for _, m := range r.sortedMoves() {
		reps = append(reps, r.report(m))
	}
	slices.SortStableFunc(reps, func(a, b Report) int {
		switch {
		case a.Migration < b.Migration:
			return -1
		case a.Migration > b.Migration:
			return 1
		}
		return 0
	})
	return reps
}
