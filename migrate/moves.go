package migrate

import (
	"cmp"
	"context"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// move is one handoff with what runs it.
type move struct {
	req   Request
	to    *wire.Owner // placed already; nil: resolve req.Target
	epoch uint64      // if set, the move is of this epoch only
	job   *jobRun     // nil: of none
	place int         // in the job's plan, negative: of a drain
	began stamp       // the pacer's, when it began
	holds bool        // it takes up one of its job's places

	request uint64 // what an operator names it by
	order   uint64
	h       *Handoff
	ctx     context.Context
	cancel  context.CancelFunc

	// done is closed when report and err are final.
	done   chan struct{}
	report Report
	err    error
}

// startMove takes a requested move into the loop.
func (r *run) startMove(m *move) {
	switch {
	case r.ctx.Err() != nil:
		r.reject(m, notDirecting())
	case r.isMoving(m.req.Session):
		r.reject(m, wire.Errorf(wire.Code_MIGRATION_ACTIVE, "session %q is being moved already; wait for that to end", m.req.Session))
	case r.approval(&m.req) > 0 && len(r.waiting) >= approvalsMax:
		r.reject(m, wire.Errorf(wire.Code_OVERLOADED, "%d moves wait for an operator's confirmation, which is the limit; decide some", len(r.waiting)))
	case r.approval(&m.req) > 0 || r.moving() < r.cfg.MovesMax:
		r.begin(m)
	case len(r.queue) >= r.cfg.QueueMax:
		r.reject(m, wire.Errorf(wire.Code_OVERLOADED, "%d migrations are under way and %d wait, which is the limit; ask again later", len(r.moves), len(r.queue)))
	default:
		// After those of its priority that came before.
		at := len(r.queue)
		for at > 0 && r.queue[at-1].req.Priority > m.req.Priority {
			at--
		}
		r.queue = slices.Insert(r.queue, at, m)
		r.queued[m.req.Session] = m
	}
}

// startQueued begins requests that waited, while there is room.
func (r *run) startQueued() {
	for len(r.queue) > 0 && r.moving() < r.cfg.MovesMax {
		m := r.queue[0]
		r.queue = slices.Delete(r.queue, 0, 1)
		delete(r.queued, m.req.Session)
		r.begin(m)
	}
}

// reject ends a move that the loop never took.
func (r *run) reject(m *move, err *wire.Error) {
	m.report = Report{Session: m.req.Session, To: m.req.Target, State: Failed, Why: err.Error()}
	m.err = err
	close(m.done)
}

// begin makes the handoff of a move and starts it.
func (r *run) begin(m *move) {
	p := Params{
		Request: m.req, Nonce: make([]byte, wire.IDBytes),
		ClusterID: r.cfg.ClusterID(), Timeout: m.req.Deadline, Approval: r.approval(&m.req),
	}
	tok, err := Mint(r.cfg.Rand)
	if err == nil {
		_, err = io.ReadFull(r.cfg.Rand, p.Nonce)
	}
	if err != nil {
		r.reject(m, asError(err))
		return
	}
	p.Token = tok
	m.request = binary.BigEndian.Uint64(p.Nonce) >> requestShift
	r.take(m, NewHandoff(p, r.cfg.Clock.Now()))
}

// requestShift leaves a request's number below 2^53, as every number that the
// command line prints. It is random: one of a former leader names nothing here.
const requestShift = 11

// adopt takes over a migration that the log has and no director.
func (r *run) adopt(mig *wire.Migration) {
	m := &move{req: Request{Session: mig.GetSession()}, done: make(chan struct{})}
	r.cfg.Log.Info("migration without a director", "migration", mig.GetId(), "session", mig.GetSession(), "phase", mig.GetPhase())
	r.take(m, AdoptHandoff(mig, r.cfg.Clock.Now()))
}

func (r *run) take(m *move, h *Handoff) {
	r.keep.order++
	m.order, m.h = r.keep.order, h
	m.ctx, m.cancel = context.WithCancel(r.ctx)
	r.moves[m] = struct{}{}
	// An adopted one may be of a session that is moving again already (H3).
	if r.bySession[m.req.Session] == nil {
		r.bySession[m.req.Session] = m
	}
	if m.job != nil {
		m.job.busy++
		m.job.open++
		r.jobs.busy++
		m.holds = true
		m.began = r.jobs.pacer.now
	}
	r.step(m, Input{Kind: InStart})
}

// step tells a move what happened, and does what it asks for.
func (r *run) step(m *move, in Input) {
	if _, ok := r.moves[m]; !ok {
		return // it ended before this came
	}
	for _, a := range append([]Action(nil), m.h.Step(r.cfg.Clock.Now(), in)...) {
		r.do(m, a)
	}
	r.noteWaiting(m)
	if m.holds && m.h.State() >= Verifying {
		r.jobPivoted(m)
	}
}

func (r *run) do(m *move, a Action) {
	if r.ctx.Err() != nil && a.Kind != ActFinish {
		return // the term is over: nothing new is started
	}
	switch a.Kind {
	case ActCheck:
		plan, err := r.check(m)
		r.step(m, Input{Kind: InChecked, Plan: plan, Err: err})
	case ActConfirm:
		r.confirm(m, a)
	case ActPropose:
		r.out = append(r.out, proposal{a.Command, func(res *wire.Result, err error) {
			r.resolved(m, a.Command, res, err)
		}})
	case ActPrepare, ActInvite, ActAwaitWarm:
		r.call(m, a)
	case ActHandover:
		r.handOver(m, a)
	case ActLook:
		var in Input
		var news bool
		r.cfg.View(func(s *store.Store) { in, news = m.seenIn(s) })
		if news {
			r.step(m, in)
		}
	case ActFinish:
		r.finished(m)
	}
}

// resolved takes the log's answer to a move's command.
func (r *run) resolved(m *move, cmd *wire.Command, res *wire.Result, err error) {
	if wire.CodeOf(err) == wire.Code_SHUTTING_DOWN {
		// Whether it commits, nobody here will learn.
		if _, ok := r.moves[m]; ok {
			r.letGo(m)
		}
		return
	}
	r.step(m, Input{Kind: InProposed, Command: cmd, Result: res, Err: err})
}

// letGo forgets a move without an end: the next director settles it.
func (r *run) letGo(m *move) {
	m.report = r.report(m)
	m.err = wire.Errorf(wire.Code_UNAVAILABLE,
		"this director stopped in state %v; the next leader settles the move, see the list of migrations", m.h.State())
	r.drop(m)
}

func (r *run) finished(m *move) {
	m.report = r.report(m)
	m.err = m.h.Err()
	if m.err != nil {
		r.cfg.Log.Info("migration did not complete", "migration", m.report.Migration, "session", m.req.Session, "err", m.err)
	}
	switch {
	case m.holds && m.h.State() == Completed:
		r.jobPivoted(m)
	case m.holds:
		r.jobEnded(r.cfg.Clock.Now(), m)
	}
	r.drop(m)
}

func (r *run) drop(m *move) {
	m.cancel()
	delete(r.moves, m)
	delete(r.waiting, m)
	if r.bySession[m.req.Session] == m {
		delete(r.bySession, m.req.Session)
	}
	if m.job != nil {
		r.release(m)
		m.job.open--
		r.feedSoon = true // it may have been the last
	}
	close(m.done)
}

func (r *run) report(m *move) Report {
	rep := m.h.Report(r.cfg.Clock.Now(), r.cfg.Clock.Wall())
	if rep.Migration == 0 {
		rep.Request = m.request
	}
	return rep
}

// reportOf is for a caller that stops waiting. ended: m.err counts.
func (r *run) reportOf(m *move) (rep Report, ended bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-m.done:
		return m.report, true
	default:
	}
	if m.h == nil {
		return Report{Session: m.req.Session, To: m.req.Target}, false
	}
	return r.report(m), false
}

// call asks a worker, on a goroutine of its own.
func (r *run) call(m *move, a Action) {
	mig := m.h.Migration()
	var source, target *wire.WorkerRow
	r.cfg.View(func(s *store.Store) {
		source, target = s.Worker(mig.GetSource().GetWorker()), s.Worker(mig.GetTarget().GetWorker())
	})
	ctx := r.within(m, a.Within)
	in := Input{Kind: answerOf(a.Kind)}
	if err := stillCurrent(mig, source, target); err != nil {
		// Later, not now: a step must not happen inside a step.
		in.Err = err
		r.async(func() func() { return func() { r.called(m, in) } })
		return
	}
	attached, token := m.h.plan.Attached, m.h.p.Token
	r.async(func() func() {
		switch a.Kind {
		case ActPrepare:
			in.Err = r.cfg.Call.Prepare(ctx, target, &wire.PrepareReq{Migration: mig, Attached: attached})
		case ActInvite:
			var resp *wire.InviteResp
			resp, in.Err = r.cfg.Call.Invite(ctx, source, &wire.InviteReq{
				Migration: mig, Token: token[:], Endpoint: target.GetEndpoint(), TargetName: target.GetName(),
			})
			in.Clients = resp.GetClients()
		case ActAwaitWarm:
			var resp *wire.WarmResp
			resp, in.Err = r.cfg.Call.AwaitWarm(ctx, target, &wire.WarmReq{Migration: mig.GetId(), Clients: a.Clients})
			in.Clients = resp.GetClients()
		case ActHandover:
			in.Handover, in.Err = r.cfg.Call.Handover(ctx, source, &wire.HandoverReq{
				Migration: mig, TargetAddr: mgmtAddr(target), Warm: a.Clients,
			})
		}
		return func() { r.called(m, in) }
	})
}

// called takes the answer of a call.
func (r *run) called(m *move, in Input) {
	if in.Kind == InHandedOver {
		r.handedOver(m)
	}
	r.step(m, in)
}

// async runs work on a goroutine that the run waits for, and what it returns in
// the loop.
func (r *run) async(work func() func()) {
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		r.post(work())
	}()
}

// within is the context of a call that is of use for d. It is cancelled when the
// move ends; that d has passed is the handoff's to notice, on the director's
// clock, so the deadline is only told.
func (r *run) within(m *move, d time.Duration) context.Context {
	return callContext{m.ctx, seam.Deadline(d)}
}

type callContext struct {
	context.Context
	deadline time.Time
}

func (c callContext) Deadline() (time.Time, bool) { return c.deadline, true }

func answerOf(call ActionKind) InputKind {
	switch call {
	case ActPrepare:
		return InPrepared
	case ActInvite:
		return InInvited
	case ActAwaitWarm:
		return InWarm
	}
	return InHandedOver
}

// stillCurrent refuses a call to a worker that has restarted or was fenced: it
// knows nothing of the migration, and the log would refuse the pivot.
func stillCurrent(m *wire.Migration, source, target *wire.WorkerRow) error {
	if !isCurrent(m.GetSource(), source) {
		return wire.Errorf(wire.Code_SOURCE_STALE, "it restarted or was fenced")
	}
	if !isCurrent(m.GetTarget(), target) {
		return wire.Errorf(wire.Code_TARGET_STALE, "the target restarted or was fenced")
	}
	return nil
}

func isCurrent(o *wire.Owner, w *wire.WorkerRow) bool {
	return w.GetIncarnation() == o.GetIncarnation() && w.GetState() != wire.WorkerState_WORKER_STATE_FENCED
}

func mgmtAddr(w *wire.WorkerRow) string {
	return net.JoinHostPort(w.GetEndpoint().GetHost(), strconv.FormatUint(uint64(w.GetEndpoint().GetMgmtPort()), 10))
}

// check finds source and target of a move in the tables, or why there are none.
func (r *run) check(m *move) (plan *Plan, err error) {
	r.cfg.View(func(s *store.Store) { plan, err = r.checkIn(m, s) })
	return plan, err
}

func (r *run) checkIn(m *move, s *store.Store) (*Plan, error) {
	sum, ok := s.Session(m.req.Session)
	if !ok {
		code := s.Location(m.req.Session).GetGone()
		if code == wire.Code_OK {
			code = wire.Code_UNKNOWN_SESSION
		}
		return nil, wire.Errorf(code, "there is no session %q", m.req.Session)
	}
	if !sum.Valid {
		return nil, wire.Errorf(wire.Code_NO_OWNER, "session %q has no valid owner and is about to get one; ask again", sum.ID)
	}
	if mig := s.Migration(sum.Migration); mig.GetPhase() == wire.Phase_PHASE_BEGUN {
		return nil, wire.Errorf(wire.Code_MIGRATION_ACTIVE, "session %q is being moved already, by migration %d; wait for that to end", sum.ID, sum.Migration)
	}
	if m.epoch != 0 && sum.Epoch != m.epoch {
		return nil, wire.Errorf(wire.Code_STALE_EPOCH, "session %q has moved since this was planned", sum.ID)
	}
	to := m.to
	if to == nil {
		var err error
		if to, err = r.target(m, s, &sum); err != nil {
			return nil, err
		}
	}
	return &Plan{Source: sum.Owner, Target: to, SourceEpoch: sum.Epoch, Attached: sum.Attached > 0}, nil
}

// target finds the worker that a request names by id or name, or places the
// session if it names none.
func (r *run) target(m *move, s *store.Store, sum *store.Summary) (*wire.Owner, error) {
	if m.req.Target == "" {
		p := newPlacer(s, r.cfg.Alive, nil)
		p.policy = r.cfg.Placement
		if to := p.elsewhere(sum.ID, sum.Owner.GetWorker()); to != nil {
			return to, nil
		}
		return nil, wire.Errorf(wire.Code_NO_TARGET, "no other worker is active and alive; start one, or end a drain")
	}
	w := s.Worker(m.req.Target)
	if w == nil {
		for _, o := range s.Workers() {
			if o.GetName() == m.req.Target && (w == nil || w.GetState() == wire.WorkerState_WORKER_STATE_FENCED) {
				w = o // a name may be taken over from a fenced one
			}
		}
	}
	switch {
	case w == nil:
		return nil, wire.Errorf(wire.Code_UNKNOWN_WORKER, "no worker has the id or name %q; see the cluster's status", m.req.Target)
	case w.GetId() == sum.Owner.GetWorker():
		return nil, wire.Errorf(wire.Code_SAME_NODE, "session %q is on worker %q already", sum.ID, m.req.Target)
	case w.GetState() == wire.WorkerState_WORKER_STATE_FENCED:
		return nil, wire.Errorf(wire.Code_WORKER_FENCED, "worker %q is fenced; choose another, or restart it", m.req.Target)
	case w.GetState() == wire.WorkerState_WORKER_STATE_DRAINING:
		return nil, wire.Errorf(wire.Code_TARGET_DRAINING, "worker %q is being drained; choose another, or end the drain", m.req.Target)
	}
	return &wire.Owner{Worker: w.GetId(), Incarnation: w.GetIncarnation()}, nil
}

// orphans are the migrations that are begun or pivoted without a move here.
func (r *run) orphans(s *store.Store) []*wire.Migration {
	ours := make(map[string]bool, len(r.moves))
	for m := range r.moves {
		// By nonce: the result of a Begin may still be on its way.
		ours[string(m.h.p.Nonce)] = true
	}
	return s.ActiveBut(func(nonce []byte) bool { return ours[string(nonce)] }, r.cfg.AssignBatch)
}

// sighting is what the applied state says of a move.
type sighting struct {
	m  *move
	in Input
}

// sightings are the news in the applied state about the moves. They are told
// outside of the view: a step may need a view of its own.
func (r *run) sightings(s *store.Store) []sighting {
	var all []sighting
	for m := range r.moves {
		if in, news := m.seenIn(s); news {
			all = append(all, sighting{m, in})
		}
	}
	slices.SortFunc(all, func(a, b sighting) int { return cmp.Compare(a.m.order, b.m.order) })
	return all
}

// seenIn looks for the end of a move's migration. That it is still begun is no
// news, nor is what s says if it lags behind the result that the move has.
func (m *move) seenIn(s *store.Store) (in Input, news bool) {
	mig := m.h.Migration()
	if mig == nil || s.Index() < mig.GetId()>>store.PositionBits {
		return in, false
	}
	if s.Phase(mig.GetId()) == wire.Phase_PHASE_BEGUN {
		return in, false
	}
	in = Input{Kind: InSeen, Migration: s.Migration(mig.GetId())}
	if _, ok := s.Session(m.req.Session); !ok {
		in.Gone = s.Location(m.req.Session).GetGone()
	}
	return in, true
}
