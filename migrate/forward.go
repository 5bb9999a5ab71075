package migrate

import (
	"time"

	"github.com/baton-cluster/baton/wire"
)

// This file is the handoff's way forward, in the order in which it goes.

func (h *Handoff) start(now time.Duration) {
	switch {
	case h.state == Idle:
		h.to(now, Requested)
		h.deadline = now + checkTimeout
		h.act(Action{Kind: ActCheck})
	case h.m == nil || h.inFlight != nil || h.cause != nil:
		// Told twice.
	case h.m.GetPhase() == wire.Phase_PHASE_BEGUN:
		h.abort(now, wire.Errorf(wire.Code_UNAVAILABLE, "its director is gone"))
	case h.state == Verifying:
		h.verified(now)
	}
}

func (h *Handoff) checked(now time.Duration, in Input) {
	if h.state != Initiating {
		return
	}
	if in.Err != nil {
		h.refuse(now, asError(in.Err))
		return
	}
	h.plan = in.Plan
	h.to(now, Checked)
	if h.p.Approval > 0 {
		h.unapproved = true
		h.deadline = now + h.p.Approval
		return
	}
	h.askNodes(now)
}

func (h *Handoff) confirmed(now time.Duration, in Input) {
	if h.state != WaitingConfirmation || h.unapproved || h.again != 0 {
		return
	}
	if in.Err != nil {
		h.blame = in.Blame
		h.objected(now, in)
		return
	}
	h.to(now, Accepted)
	h.total = now + h.p.Timeout
	h.deadline = now + h.p.Timeout*prepareNum/prepareDen
	r := &h.p.Request
	h.propose(&wire.Command{Kind: &wire.Command_Begin{Begin: &wire.BeginMigration{
		Nonce:       h.p.Nonce,
		Session:     r.Session,
		SourceEpoch: h.plan.SourceEpoch,
		Source:      h.plan.Source,
		Target:      h.plan.Target,
		TokenHash:   Hash(h.p.Token, h.p.ClusterID, r.Session, h.plan.SourceEpoch, h.plan.Source, h.plan.Target),
		DeadlineUs:  in.TimeUS + uint64(h.p.Timeout/time.Microsecond),
		Reason:      r.Reason,
		Priority:    r.Priority,
		By:          r.By,
		Job:         r.Job,
		ConfirmedBy: h.confirmedBy,
		Metadata:    r.Metadata,
	}}})
}

// objected takes a no. A deferral that its time allows is waited for; a job's
// move is not, because another session can have its place in the meantime.
func (h *Handoff) objected(now time.Duration, in Input) {
	if h.after = in.Defer; in.Defer > 0 && h.p.Request.Job == 0 && now+in.Defer < h.deadline {
		h.again, h.deferral = now+in.Defer, asError(in.Err)
		return
	}
	h.refuse(now, asError(in.Err))
}

func (h *Handoff) askAgain(now time.Duration) {
	h.again = 0
	h.act(Action{Kind: ActConfirm, Within: h.deadline - now})
}

// proposed takes the outcome of the one command in flight: Begin while there is
// no migration yet, End in Completing, else Abort.
func (h *Handoff) proposed(now time.Duration, in Input) {
	if h.inFlight == nil || in.Command != h.inFlight {
		return
	}
	h.inFlight = nil
	if in.Err != nil {
		// Nothing was proposed. A Begin can be given up; the others must come.
		if h.m == nil {
			h.refuse(now, asError(in.Err))
		} else {
			h.deadline = now + settleRetry
		}
		return
	}
	switch {
	case h.m == nil:
		h.begun(now, in.Result)
	case h.state == Completing:
		// MIGRATION_ENDED and UNKNOWN_MIGRATION: another director was faster.
		h.to(now, Ended)
		h.finish()
	case h.state != Verifying:
		h.abortResolved(now, in.Result)
	}
}

func (h *Handoff) begun(now time.Duration, res *wire.Result) {
	if res.GetCode() != wire.Code_OK {
		h.refuse(now, wire.Errorf(res.GetCode(), "the log refused to begin the move of session %q; nothing was changed", h.p.Request.Session))
		return
	}
	h.m = res.GetMigration()
	switch {
	case h.m.GetPhase() != wire.Phase_PHASE_BEGUN:
		h.outcome(now, h.m, wire.Code_OK)
	case h.cause != nil: // its time ran out before the log had answered
		h.proposeAbort(now)
	default:
		h.call(now, Action{Kind: ActPrepare})
	}
}

func (h *Handoff) abortResolved(now time.Duration, res *wire.Result) {
	if m := res.GetMigration(); m.GetId() == h.m.GetId() && m.GetPhase() != wire.Phase_PHASE_BEGUN {
		h.outcome(now, m, wire.Code_OK)
		return
	}
	switch res.GetCode() {
	case wire.Code_OK:
		h.rolledBack(now, wire.Code_OK)
	case wire.Code_UNKNOWN_MIGRATION:
		h.forgotten(now)
	default:
		// The log said pivoted or ended without saying which: look.
		h.deadline = now + settleRetry
		h.act(Action{Kind: ActLook})
	}
}

// answered takes the answer of the call in flight; others are late and ignored.
func (h *Handoff) answered(now time.Duration, in Input) {
	want := map[InputKind]ActionKind{
		InPrepared: ActPrepare, InInvited: ActInvite, InWarm: ActAwaitWarm, InHandedOver: ActHandover,
	}[in.Kind]
	if !h.inCall || h.calling != want {
		return
	}
	h.inCall = false
	if in.Kind == InHandedOver {
		h.handedOver(now, in)
		return
	}
	if h.cause != nil || h.state != Preparing {
		return // being aborted: the log's answer counts, not this one
	}
	if in.Err != nil {
		h.callFailed(now, want, in.Err)
		return
	}
	switch in.Kind {
	case InPrepared:
		h.call(now, Action{Kind: ActInvite})
	case InInvited:
		if len(in.Clients) == 0 {
			h.prepared(now)
			return
		}
		h.warm = in.Clients
		h.call(now, Action{Kind: ActAwaitWarm, Clients: h.warm})
	case InWarm:
		if n := missing(h.warm, in.Clients); n > 0 {
			h.abort(now, wire.Errorf(wire.Code_CLIENT_CANNOT_REACH,
				"%d of %d attached clients did not reach the target", n, len(h.warm)))
			return
		}
		h.warm = in.Clients
		h.prepared(now)
	}
}

func (h *Handoff) prepared(now time.Duration) {
	h.to(now, Prepared)
	h.deadline = h.total
	h.call(now, Action{Kind: ActHandover, Clients: h.warm})
}

// handedOver takes the source's account. It tells what happened and how long it
// took; whether the session moved, the log tells.
func (h *Handoff) handedOver(now time.Duration, in Input) {
	if in.Err == nil {
		h.pauseUS = in.Handover.GetPauseUs()
		h.conns = in.Handover.GetConnections()
		h.parts = Parts{
			FreezeUS:   in.Handover.GetFreezeUs(),
			TransferUS: in.Handover.GetTransferUs() - min(in.Handover.GetCommitUs(), in.Handover.GetTransferUs()),
			CommitUS:   in.Handover.GetCommitUs(),
		}
	}
	switch {
	case h.pivotSeen:
		h.account(now, in)
		h.pivoted(now)
	case h.cause != nil:
		// Being aborted: the log's answer counts.
	case in.Err != nil:
		h.callFailed(now, ActHandover, in.Err)
	case movedOn(in.Handover.GetMigration()):
		h.account(now, in)
		h.act(Action{Kind: ActLook})
	default:
		h.abort(now, wire.Errorf(wire.Code_RETRY, "the source did not hand over"))
	}
}

// account enters the states that the source went through, at the times that its
// answer tells.
func (h *Handoff) account(now time.Duration, in Input) {
	if in.Err != nil || h.state != CapturingState {
		return
	}
	entered := h.passages[len(h.passages)-1].At
	transfer := time.Duration(in.Handover.GetTransferUs()) * time.Microsecond
	h.to(max(entered, now-max(transfer, 0)), Captured)
	h.to(now, Transferred)
}

// seen takes the applied state's view. Only an end is news.
func (h *Handoff) seen(now time.Duration, in Input) {
	switch {
	case h.m == nil || h.state == Verifying || h.state == Completing:
	case in.Migration == nil:
		h.forgotten(now)
	case in.Migration.GetId() != h.m.GetId() || in.Migration.GetPhase() == wire.Phase_PHASE_BEGUN:
	default:
		h.outcome(now, in.Migration, in.Gone)
	}
}

// outcome takes the log's word on the migration: no longer begun.
func (h *Handoff) outcome(now time.Duration, m *wire.Migration, gone wire.Code) {
	h.m = m
	if !movedOn(m) {
		h.rolledBack(now, gone)
		return
	}
	h.epoch = m.GetTargetEpoch()
	h.cause = nil
	if h.inCall && h.calling == ActHandover {
		// The source is about to answer with the pause: worth a moment.
		if !h.pivotSeen {
			h.pivotSeen = true
			h.deadline = now + verifyTimeout
		}
		return
	}
	h.pivoted(now)
}

func (h *Handoff) pivoted(now time.Duration) {
	h.inCall = false // an answer that is still to come adds nothing now
	h.to(now, Pivoted)
	h.verified(now)
}

func (h *Handoff) verified(now time.Duration) {
	h.to(now, Verified)
	if h.m.GetPhase() == wire.Phase_PHASE_COMPLETED {
		h.to(now, Ended)
		h.finish()
		return
	}
	h.proposeEnd(now)
}

func (h *Handoff) proposeEnd(now time.Duration) {
	h.deadline = now + settleRetry
	h.propose(&wire.Command{Kind: &wire.Command_End{End: &wire.EndMigration{
		Migration: h.m.GetId(), PauseUs: h.pauseUS,
	}}})
}

func movedOn(m *wire.Migration) bool {
	return m.GetPhase() == wire.Phase_PHASE_PIVOTED || m.GetPhase() == wire.Phase_PHASE_COMPLETED
}

// missing counts those of want that are not in have.
func missing(want, have [][]byte) int {
	n := len(want)
	for _, w := range want {
		for _, g := range have {
			if string(w) == string(g) {
				n--
				break
			}
		}
	}
	return n
}
