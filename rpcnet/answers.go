package rpcnet

import (
	"time"

	"github.com/baton-cluster/baton/wire"
)

// response takes an answer, from whichever of the session's streams: the first
// one for a seq counts. One from an epoch that is over does not: its sender may
// have been paused since (a committed answer comes again in the new epoch).
func (c *core) response(now time.Duration, resp *wire.Response) {
	if resp.GetEpoch() < c.epoch {
		return
	}
	c.epoch = resp.GetEpoch()
	c.heard(now)
	c.quiet = 0
	c.answered()
	p := c.bySeq[resp.GetSeq()]
	if p == nil || !c.inTime(now, p, resp) {
		return
	}
	switch {
	case resp.GetSettled() || resp.GetCode() == wire.Code_OK:
		c.settle(p)
		c.readyBehind(p)
		if resp.GetCode() != wire.Code_OK {
			c.release(p, Reply{}, errorOf(resp))
			break
		}
		c.release(p, Reply{
			Payload: resp.GetPayload(), Epoch: resp.GetEpoch(), Seq: p.seq, Change: resp.GetChange(),
			Node: c.ownerName(), Attempts: int(p.attempt), Leased: resp.GetLeaseLeftUs() > 0, At: now,
		}, nil)
	case endsSession(resp.GetCode()) && !(resp.GetCode() == wire.Code_DISPLACED && c.hunt.on):
		c.end(c.endErr(errorOf(resp)))
		return
	default:
		c.refused(now, p, errorOf(resp))
	}
	c.seat(now)
}

func errorOf(resp *wire.Response) *wire.Error {
	return &wire.Error{Code: resp.GetCode(), Message: resp.GetMessage()}
}

// inTime reports whether an answer may be taken: any but one that was given under
// the owner's lease and comes when that may have run out. Somebody may have
// fenced the owner since and written; such a query goes again, confirmed by the
// log. What was left of the lease when the answer was made cannot have passed if
// less has passed since this attempt was sent, on the clock that goes on while
// this machine sleeps; that clocks run at different rates is allowed for in the
// lease's length, for this clock as for the owner's (ARCHITECTURE.md, "Leases").
func (c *core) inTime(now time.Duration, p *call, resp *wire.Response) bool {
	left := time.Duration(resp.GetLeaseLeftUs()) * time.Microsecond
	if left == 0 || !p.readOnly {
		return true
	}
	if resp.GetAttempt() != p.attempt {
		return false // of a former attempt: the latest one gets an answer too
	}
	if c.readBoot(now)-p.bootAt < left {
		return true
	}
	c.late++
	p.confirmed = true
	c.ready(p)
	c.flush(now)
	return false
}

// refused handles an answer that left seq unconsumed.
func (c *core) refused(now time.Duration, p *call, err *wire.Error) {
	p.refusals++
	p.lastErr = err
	switch err.Code {
	case wire.Code_SEQ_MISMATCH:
		// An earlier write is on its way, or was itself refused.
		if p.mismatches++; p.mismatches > mismatchesMax && c.order[0] == p {
			c.end(wire.Errorf(wire.Code_SEQ_MISMATCH, "the session's record of this client's writes is not what this client wrote: %s; resume the session anew", err.Message))
			return
		}
	case wire.Code_REPLY_GONE:
		// The seq is past; nothing will ever settle it further.
		c.settle(p)
		c.release(p, Reply{}, err)
		return
	case wire.Code_BUDGET_EXCEEDED, wire.Code_OUTBOX_FULL, wire.Code_TOO_MANY:
		// May pass soon, but a caller who could make room should hear of it.
		if p.refusals >= refusalsMax && !p.cancel {
			c.abandon(now, p, err)
			return
		}
	case wire.Code_NOT_OWNER, wire.Code_MOVED, wire.Code_STALE_EPOCH, wire.Code_STALE_INCARNATION,
		wire.Code_NOT_ATTACHED, wire.Code_DISPLACED, wire.Code_SHUTTING_DOWN, wire.Code_UNAVAILABLE, wire.Code_NO_OWNER:
		c.reroute(now)
	default:
		if !err.Retryable() && !p.cancel {
			c.abandon(now, p, err)
			return
		}
	}
	if p.retryAt == 0 && !p.readOnly {
		c.backingOff++
	}
	p.retryAt = now + c.backoff(p.refusals, retryMin, retryMax)
	c.due = minDue(c.due, p.retryAt)
}

// abandon answers p's caller with why. A read, and a write that never left, are
// forgotten. Any other write has to be settled, or its successors could never
// run: a cancel takes its place until the server has committed the one or the
// other outcome.
func (c *core) abandon(now time.Duration, p *call, why error) {
	if c.ended != nil || p.settled || p.cancel {
		return
	}
	c.release(p, Reply{}, why)
	switch {
	case p.seq == 0:
		drop(&c.waitWrite, p)
		drop(&c.waitRead, p)
		return
	case p.readOnly:
		c.settle(p)
	case p.attempt == 0:
		c.unlink(p)
	default:
		p.cancel = true
		p.payload = nil
		p.deadline = 0
		c.ready(p)
	}
	c.seat(now)
}
