package migrate

import (
	"context"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// A move that needs an operator's confirmation waits in WaitingConfirmation, in
// the memory of the director that was asked for it and beside its caller. Before
// commit 1 nothing is durable: if the director stops, the caller is told so and
// asks the next one; if the caller goes away, the request is withdrawn. So no
// answer ever comes to nobody, and no confirmation is given to anything but what
// its requester still wants.

// Decision is an operator's answer to a move that waits for one.
type Decision struct {
	Request uint64 // as Report.Request
	Confirmation
	By string
}

// Decide confirms, rejects or puts off the move that waits under d.Request. A
// move that was confirmed goes on; it returns when that has ended, or ctx has,
// with what is known. Otherwise it returns at once.
//
// Errors are *wire.Error: UNKNOWN_REQUEST (decided, expired or withdrawn already,
// or asked of another leader), BAD_REQUEST, NOT_LEADER, and for a confirmed move
// those of Migrate.
func (d *Director) Decide(ctx context.Context, dec Decision) (Report, error) {
	if len(dec.By) > ByBytesMax || !printable(dec.By) {
		return Report{}, wire.Errorf(wire.Code_BAD_REQUEST, "the operator's name has at most %d printable bytes", ByBytesMax)
	}
	r := d.cur.Load()
	if r == nil {
		return Report{}, notDirecting()
	}
	found := make(chan *move, 1)
	if !r.post(func() { found <- r.decide(dec) }) {
		return Report{}, notDirecting()
	}
	m := <-found // the loop runs all that it took, also at its end
	if m == nil {
		return Report{}, wire.Errorf(wire.Code_UNKNOWN_REQUEST,
			"no move waits for confirmation under %d: it was decided, has expired or was withdrawn, or the leader has changed; `baton migrations` lists those that wait", dec.Request)
	}
	if dec.Verdict == wire.Verdict_VERDICT_ACCEPT {
		select {
		case <-m.done:
			return m.report, m.err
		case <-ctx.Done():
		}
	}
	rep, _ := r.reportOf(m)
	return rep, nil
}

func (r *run) decide(d Decision) *move {
	for m := range r.waiting {
		if m.request != d.Request {
			continue
		}
		in := Input{Kind: InApproved, By: d.By}
		switch d.Verdict {
		case wire.Verdict_VERDICT_REJECT:
			in.Err = wire.Errorf(wire.Code_MOVE_REJECTED, "%s refused the move: %s", d.By, clip(d.Reason, whyBytesMax))
		case wire.Verdict_VERDICT_DEFER:
			in.Defer = min(max(d.After, deferDefault), deferMax)
			in.Err = wire.Errorf(wire.Code_MOVE_DEFERRED, "put off for %v by %s: %s", in.Defer, d.By, clip(d.Reason, whyBytesMax))
		}
		r.step(m, in)
		return m
	}
	return nil
}

// withdraw ends a move that waits for an operator although nobody waits for the
// move any more.
func (r *run) withdraw(m *move, code wire.Code, why string) {
	if r.waiting[m] {
		r.step(m, Input{Kind: InApproved, Err: wire.Errorf(code, "%s", why)})
	}
}

// noteWaiting keeps count of the moves that wait for an operator. They take no
// room from those that move.
func (r *run) noteWaiting(m *move) {
	if _, here := r.moves[m]; here && m.h.NeedsApproval() {
		r.waiting[m] = true
	} else {
		delete(r.waiting, m)
	}
}

// moving is how many moves take up room.
func (r *run) moving() int { return len(r.moves) - len(r.waiting) }

// approval is how long a move may wait for an operator, 0: none is asked. Of a
// job's moves the job is confirmed, as a whole.
func (r *run) approval(req *Request) time.Duration {
	if req.Job == 0 && r.cfg.Approval.Asks(req.Reason, req.Priority, req.By) {
		return r.cfg.Approval.Within
	}
	return 0
}

// approved takes the operator's word.
func (h *Handoff) approved(now time.Duration, in Input) {
	if !h.NeedsApproval() {
		return
	}
	switch {
	case in.Defer > 0:
		h.deadline = now + in.Defer + h.p.Approval
		h.deferral = asError(in.Err)
	case in.Err != nil:
		h.refuse(now, asError(in.Err))
	default:
		h.unapproved, h.deferral, h.confirmedBy = false, nil, in.By
		h.askNodes(now)
	}
}

// askNodes has source, target and hook asked, within the move's own time.
func (h *Handoff) askNodes(now time.Duration) {
	h.deadline = now + h.p.Timeout
	h.act(Action{Kind: ActConfirm, Within: h.p.Timeout})
}

// NeedsApproval reports whether the move waits for an operator.
func (h *Handoff) NeedsApproval() bool { return h.unapproved && h.state == WaitingConfirmation }
