package migrate

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

const (
	// deferDefault is what a deferral without a time gets.
	deferDefault = time.Second
	// deferMax bounds a deferral: nobody can put a session out of reach for good.
	deferMax = DeadlineMax
)

// Confirmation is somebody's answer to a move before commit 1. The zero value
// accepts.
type Confirmation struct {
	Verdict wire.Verdict
	Reason  string        // of a rejection or deferral
	After   time.Duration // of a deferral: ask again then; 0: a second
}

// Accept, Reject and Defer make confirmations.
func Accept() Confirmation { return Confirmation{} }

// Reject says that a session must not be moved.
func Reject(reason string) Confirmation {
	return Confirmation{Verdict: wire.Verdict_VERDICT_REJECT, Reason: reason}
}

// Defer says that a session must not be moved before after has passed.
func Defer(reason string, after time.Duration) Confirmation {
	return Confirmation{Verdict: wire.Verdict_VERDICT_DEFER, Reason: reason, After: after}
}

// Proto is c as it travels.
func (c Confirmation) Proto() *wire.MoveAnswer {
	return &wire.MoveAnswer{Verdict: c.Verdict, Reason: c.Reason, AfterUs: uint64(max(c.After, 0) / time.Microsecond)}
}

// And is the stricter of two answers; of two deferrals, the longer.
func (c Confirmation) And(d Confirmation) Confirmation {
	rank := func(v wire.Verdict) int {
		return map[wire.Verdict]int{wire.Verdict_VERDICT_DEFER: 1, wire.Verdict_VERDICT_REJECT: 2}[v]
	}
	if rank(d.Verdict) > rank(c.Verdict) || d.Verdict == c.Verdict && d.After > c.After {
		return d
	}
	return c
}

// input is the answer as the handoff takes it.
func (c Confirmation) input(nowUS uint64) Input {
	in := Input{Kind: InConfirmed, TimeUS: nowUS}
	switch c.Verdict {
	case wire.Verdict_VERDICT_REJECT:
		in.Err = wire.Errorf(wire.Code_MOVE_REJECTED, "the move was refused: %s", clip(c.Reason, whyBytesMax))
	case wire.Verdict_VERDICT_DEFER:
		in.Defer = min(c.After, deferMax)
		if in.Defer <= 0 {
			in.Defer = deferDefault
		}
		in.Err = wire.Errorf(wire.Code_MOVE_DEFERRED, "not for another %v: %s", in.Defer, clip(c.Reason, whyBytesMax))
	}
	return in
}

// confirmation reads a worker's answer. One that it does not know is no.
func confirmation(a *wire.MoveAnswer) Confirmation {
	c := Confirmation{a.GetVerdict(), a.GetReason(), time.Duration(min(a.GetAfterUs(), uint64(deferMax/time.Microsecond))) * time.Microsecond}
	if _, known := wire.Verdict_name[int32(c.Verdict)]; !known {
		return Reject("the answer cannot be read: written by a newer version?")
	}
	return c
}

// autoConfirm is the policy without another: in an emergency nobody is asked.
func autoConfirm(req Request) bool { return req.Reason == wire.Reason_REASON_EMERGENCY }

// asking gathers the moves between two workers that a pass wants confirmed: one
// call to each of the two, and one Propose for all their Begins.
type asking struct {
	source, target *wire.Owner
	moves          []*move
	within         time.Duration
}

// confirm has a move confirmed at the end of the pass.
func (r *run) confirm(m *move, a Action) {
	if r.cfg.AutoConfirm(m.req) {
		r.step(m, Confirmation{}.input(r.cfg.NowUS()))
		return
	}
	p := m.h.plan
	for _, g := range r.asks {
		if g.source.GetWorker() == p.Source.GetWorker() && g.source.GetIncarnation() == p.Source.GetIncarnation() &&
			g.target.GetWorker() == p.Target.GetWorker() && g.target.GetIncarnation() == p.Target.GetIncarnation() {
			g.moves, g.within = append(g.moves, m), min(g.within, a.Within)
			return
		}
	}
	r.asks = append(r.asks, &asking{p.Source, p.Target, []*move{m}, a.Within})
}

// askAll sends out what confirm gathered.
func (r *run) askAll() {
	asks := r.asks
	r.asks = nil
	for _, g := range asks {
		var source, target *wire.WorkerRow
		r.cfg.View(func(s *store.Store) {
			source, target = s.Worker(g.source.GetWorker()), s.Worker(g.target.GetWorker())
		})
		req := &wire.ConfirmReq{}
		for _, m := range g.moves {
			req.Offers = append(req.Offers, m.offer())
		}
		ctx, done := r.untilAllEnd(g)
		r.async(func() func() {
			defer done()
			answers, blame, err := r.askBoth(ctx, source, target, req)
			return func() { r.asked(g, answers, blame, err) }
		})
	}
}

func (m *move) offer() *wire.MoveOffer {
	p := m.h.plan
	return &wire.MoveOffer{
		Session: m.req.Session, Source: p.Source, Target: p.Target, SourceEpoch: p.SourceEpoch, Attached: p.Attached,
		Reason: m.req.Reason, Priority: m.req.Priority, By: m.req.By, Job: m.req.Job,
	}
}

// untilAllEnd is a context that ends when all moves of g have.
func (r *run) untilAllEnd(g *asking) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.ctx)
	var left atomic.Int64
	left.Store(int64(len(g.moves)))
	for _, m := range g.moves {
		context.AfterFunc(m.ctx, func() {
			if left.Add(-1) == 0 {
				cancel()
			}
		})
	}
	return callContext{ctx, seam.Deadline(g.within)}, cancel
}

// answer is what both said. busy is the target if it alone put the move off: then
// another may take the session at once.
type answer struct {
	Confirmation
	busy string
}

// askBoth asks source and target at once. blame is who did not answer.
func (r *run) askBoth(ctx context.Context, source, target *wire.WorkerRow, req *wire.ConfirmReq) (answers []answer, blame string, err error) {
	var wg sync.WaitGroup
	var resp [2]*wire.ConfirmResp
	var errs [2]error
	rows := [2]*wire.WorkerRow{source, target}
	for i, w := range rows {
		wg.Go(func() { resp[i], errs[i] = r.cfg.Call.Confirm(ctx, w, req) })
	}
	wg.Wait()
	for i, e := range errs {
		if e == nil && len(resp[i].GetAnswers()) != len(req.GetOffers()) {
			e = wire.Errorf(wire.Code_UNAVAILABLE, "%d moves got %d answers", len(req.GetOffers()), len(resp[i].GetAnswers()))
		}
		if e != nil {
			return nil, rows[i].GetId(), wire.Errorf(asError(e).Code, "worker %s did not confirm the move: %s", rows[i].GetId(), asError(e).Message)
		}
	}
	answers = make([]answer, len(req.GetOffers()))
	for i := range answers {
		from, to := confirmation(resp[0].GetAnswers()[i]), confirmation(resp[1].GetAnswers()[i])
		answers[i].Confirmation = from.And(to)
		if from.Verdict == wire.Verdict_VERDICT_ACCEPT && to.Verdict == wire.Verdict_VERDICT_DEFER {
			answers[i].busy = target.GetId()
		}
	}
	return answers, "", nil
}

// asked takes the workers' answers, and asks the hook about what they accept.
func (r *run) asked(g *asking, answers []answer, blame string, err error) {
	for i, m := range g.moves {
		switch {
		case err != nil:
			r.step(m, Input{Kind: InConfirmed, Err: err, Blame: blame})
		case answers[i].Verdict != wire.Verdict_VERDICT_ACCEPT || r.cfg.Confirm == nil:
			in := answers[i].input(r.cfg.NowUS())
			in.Blame = answers[i].busy
			r.step(m, in)
		default:
			r.askHook(m, g.within)
		}
	}
}

func (r *run) askHook(m *move, d time.Duration) {
	if _, ok := r.moves[m]; !ok {
		return
	}
	req, plan := m.req, *m.h.plan
	ctx := r.within(m, d)
	r.async(func() func() {
		c, err := r.cfg.Confirm(ctx, req, plan)
		return func() {
			in := c.input(r.cfg.NowUS())
			if err != nil {
				in = Input{Kind: InConfirmed, Err: err}
			}
			r.step(m, in)
		}
	})
}
