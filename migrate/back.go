package migrate

import (
	"errors"
	"strings"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// This file is the handoff's way back, and its deadlines.

// callFailed goes back because a call failed, or its time ran out.
func (h *Handoff) callFailed(now time.Duration, call ActionKind, err error) {
	e := asError(err)
	who, what := h.plan.Target.GetWorker(), "prepare for the session"
	switch call {
	case ActInvite:
		who, what = h.plan.Source.GetWorker(), "invite its clients"
	case ActAwaitWarm:
		what = "see the client arrive"
		if e.Code == wire.Code_DEADLINE_EXCEEDED {
			e = wire.Errorf(wire.Code_CLIENT_CANNOT_REACH, "%s", e.Message)
		}
	case ActHandover:
		who, what = h.plan.Source.GetWorker(), "hand the session over"
	}
	if e.Code == wire.Code_UNAVAILABLE || e.Code == wire.Code_DEADLINE_EXCEEDED {
		h.blame = who
	}
	h.abort(now, wire.Errorf(e.Code, "worker %s did not %s: %s", who, what, e.Message))
}

// abort starts on the way back. The cause stays the first one.
func (h *Handoff) abort(now time.Duration, cause *wire.Error) {
	if h.cause == nil {
		h.cause = cause
	}
	if h.m != nil {
		h.proposeAbort(now)
	}
}

func (h *Handoff) proposeAbort(now time.Duration) {
	h.deadline = now + settleRetry
	if h.inFlight != nil {
		return
	}
	h.propose(&wire.Command{Kind: &wire.Command_Abort{Abort: &wire.AbortMigration{
		Migration: h.m.GetId(), Reason: clip(h.cause.Error(), whyBytesMax),
	}}})
}

// rolledBack ends it as aborted, by this director or by whatever else ended the
// migration: another director, the session's close, expiry or reassignment.
func (h *Handoff) rolledBack(now time.Duration, gone wire.Code) {
	e := h.cause
	switch {
	case gone != wire.Code_OK:
		e = wire.Errorf(gone, "session %q ended during its move", h.p.Request.Session)
	case e == nil:
		e = wire.Errorf(wire.Code_MIGRATION_ENDED, "the move was called off: %s", h.m.GetWhy())
	default:
		e = wire.Errorf(e.Code, "%s; the move was called off", e.Message)
	}
	h.err = e
	h.to(now, RolledBack)
	h.finish()
}

func (h *Handoff) forgotten(now time.Duration) {
	h.err = wire.Errorf(wire.Code_UNKNOWN_MIGRATION,
		"the log no longer remembers migration %d; the session's history tells how it ended", h.m.GetId())
	h.to(now, Forgotten)
	h.finish()
}

// refuse ends it before commit 1.
func (h *Handoff) refuse(now time.Duration, err *wire.Error) {
	h.err = err
	if h.cause != nil {
		h.err = h.cause
	}
	h.to(now, Refused)
	h.finish()
}

// late enforces the deadline of the state: see the type's comment.
func (h *Handoff) late(now time.Duration) {
	switch h.state {
	case Idle, Initiating, WaitingConfirmation:
		h.lateBefore(now)
	case Verifying:
		h.verified(now)
	case Completing:
		h.deadline = now + settleRetry
		if h.inFlight == nil {
			h.proposeEnd(now)
		}
	case Preparing, CapturingState, TransferringState, Pivoting:
		h.lateBegun(now)
	}
}

func (h *Handoff) lateBefore(now time.Duration) {
	at := h.state
	if at == Idle {
		h.to(now, Requested)
	}
	if h.NeedsApproval() {
		h.refuse(now, wire.Errorf(wire.Code_CONFIRMATION_EXPIRED, "no operator confirmed the move in time; ask for it again"))
		return
	}
	h.refuse(now, wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "the move's time ran out in state %v; ask again", at))
}

func (h *Handoff) lateBegun(now time.Duration) {
	switch {
	case h.pivotSeen:
		h.pivoted(now) // without the source's account
	case h.cause != nil:
		h.deadline = now + settleRetry
		if h.m != nil {
			h.proposeAbort(now)
		}
	case h.inCall:
		h.callFailed(now, h.calling, wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "no answer in time"))
	default:
		h.deadline = now + settleRetry
		h.abort(now, wire.Errorf(wire.Code_DEADLINE_PASSED, "the move's time ran out in state %v", h.state))
	}
}

// asError is err as a typed error; one that is none is a call that failed.
func asError(err error) *wire.Error {
	var e *wire.Error
	if errors.As(err, &e) {
		return e
	}
	return wire.Errorf(wire.Code_UNAVAILABLE, "%v", err)
}

// clip cuts s to n bytes, at a character, and leaves out what is no text: it is to be
// committed.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "")
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}
