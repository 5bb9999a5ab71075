package rpcnet

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// Limits of one session's client side.
const (
	// WritesInFlightMax is half the server's reply cache, so that the replies of
	// all of them fit it while the acknowledgement of the older half travels.
	WritesInFlightMax = wire.RepliesMax / 2
	// ReadsInFlightMax bounds the owner's parked work for one client.
	ReadsInFlightMax = 512
	// callsWaitingMax bounds those that wait for a place among the above.
	callsWaitingMax = 1 << 16
	// refusalsMax is after how many refusals for lack of space a caller is told.
	refusalsMax = 4
	// mismatchesMax is after how many refusals of the oldest write as out of
	// order the session is given up: nothing it could send would be taken.
	mismatchesMax = 64
	// requestOverheadBytes is what a request's frame needs beside method and
	// payload.
	requestOverheadBytes = 512
	// bootAge is how old a reading of the boot clock may be that stands for when an
	// attempt was sent: little beside a lease, much beside the pause between an
	// answer and the next question.
	bootAge = 5 * time.Millisecond
	// pushAckDelay lets one acknowledgement stand for many pushes.
	pushAckDelay = 50 * time.Millisecond
	// retryMin and retryMax bound the wait before a refused request goes again.
	retryMin = 10 * time.Millisecond
	retryMax = 500 * time.Millisecond
)

// call is one request of the table. Invariant: a write is in the table until its
// outcome is committed (or it never left), because its successors name it; the
// caller may be long gone (released), as after a deadline.
type call struct {
	seq, prev uint64
	readOnly  bool
	confirmed bool // a query that the log is to confirm
	method    string
	payload   []byte
	deadline  time.Duration // on the session's clock, 0: none

	attempt    uint32
	route      int           // the latest attempt went there, 0: to be sent
	sentAt     time.Duration // when
	bootAt     time.Duration // of a query: not after that, on the boot clock
	retryAt    time.Duration // refused; to be sent again then. 0: not refused
	refusals   int
	mismatches int
	lastErr    error
	cancel     bool // abandoned: CancelReq stands for it
	released   bool // the caller has its answer
	settled    bool // out of the table

	reply Reply
	err   error
	done  chan struct{} // closed by the runner at release
}

// actionKind says what the runner is to do.
type actionKind uint8

const (
	actDial    actionKind = iota + 1 // open a stream to addr for route, send frame
	actSend                          // send frame on route
	actListen                        // see coreConfig.hears
	actDrop                          // finish route's stream and forget it
	actRelease                       // answer call
	actPush                          // hand push to the application
	actMove                          // tell the application of move
	actAttempt                       // report attempt
	actReady                         // the session is attached for the first time
	actEnd                           // the session has ended; core.ended says why
)

type action struct {
	kind    actionKind
	route   int
	addr    string
	crowd   time.Duration // actDial: so long are many clients dialling the same node
	silent  bool          // actDrop: nothing came back, do not use the connection again
	frame   *wire.ClientFrame
	call    *call
	push    Push
	move    Move
	attempt Attempt
}

// requests is the table of what a client instance has asked and not been
// answered. It is part of core; see there for the rules of routing.
type requests struct {
	nextSeq    uint64  // last seq given out
	lastWrite  uint64  // last write-class seq given out
	order      []*call // ascending seq; settled ones are trimmed at the head
	bySeq      map[uint64]*call
	writes     int // in the table
	reads      int
	backingOff int     // writes with retryAt set: later writes wait behind them
	dirty      bool    // something in order is to be sent
	entered    []*call // new in order since the last flush
	waitWrite  []*call // for a place in the table
	waitRead   []*call
	late       int // answers under a lease that came too late

	boot   time.Duration // the last reading of the boot clock; 0: none
	bootOn time.Duration // the session's clock before it
}

// ask takes a new call.
func (c *core) ask(now time.Duration, p *call) {
	switch {
	case c.ended != nil:
		c.release(p, Reply{}, c.ended)
		return
	case len(c.waitWrite)+len(c.waitRead) >= callsWaitingMax:
		c.release(p, Reply{}, wire.Errorf(wire.Code_TOO_MANY, "%d calls of this session wait already; wait for some of them", callsWaitingMax))
		return
	case checkMethod(p.method) != nil:
		c.release(p, Reply{}, checkMethod(p.method))
		return
	case len(p.payload)+len(p.method)+requestOverheadBytes > c.frameLimit:
		c.release(p, Reply{}, wire.Errorf(wire.Code_FRAME_TOO_LARGE, "a payload of %d bytes does not fit a frame of at most %d; send less at a time", len(p.payload), c.frameLimit))
		return
	}
	if p.deadline > 0 {
		c.due = minDue(c.due, p.deadline)
	}
	if p.readOnly {
		c.waitRead = append(c.waitRead, p)
	} else {
		c.waitWrite = append(c.waitWrite, p)
	}
	c.seat(now)
}

// seat moves waiting calls into the table, as far as there is room.
func (c *core) seat(now time.Duration) {
	for len(c.waitWrite) > 0 && c.writes < WritesInFlightMax {
		p := pop(&c.waitWrite)
		p.prev = c.lastWrite
		c.writes++
		c.enter(p)
		c.lastWrite = p.seq
	}
	for len(c.waitRead) > 0 && c.reads < ReadsInFlightMax {
		p := pop(&c.waitRead)
		c.reads++
		c.enter(p)
	}
	c.flush(now)
}

// enter numbers p and puts it into the table. A lone new call on a healthy route
// is the common case; flush then has only that one to look at.
func (c *core) enter(p *call) {
	c.nextSeq++
	p.seq = c.nextSeq
	c.order = append(c.order, p)
	c.bySeq[p.seq] = p
	c.entered = append(c.entered, p)
}

// flush sends what is to be sent, in the order of seqs: on a new route
// everything unanswered. A write behind one that was refused waits until that
// one goes again, because it would be refused too.
func (c *core) flush(now time.Duration) {
	entered := c.entered
	c.entered = c.entered[:0]
	r := c.outlet()
	if r == nil {
		c.dirty = c.dirty || len(entered) > 0
		return
	}
	if !c.dirty {
		for _, p := range entered {
			if p.readOnly || c.backingOff == 0 {
				c.send(now, r, p)
			} else {
				c.dirty = true
			}
		}
		return
	}
	c.dirty = false
	behind := false
	for _, p := range c.order {
		switch {
		case p.settled || p.route == r.id && p.retryAt == 0:
		case p.retryAt > 0:
			behind = behind || !p.readOnly
		case behind && !p.readOnly:
			c.dirty = true
		default:
			c.send(now, r, p)
		}
	}
}

// send puts one attempt of p on r.
func (c *core) send(now time.Duration, r *route, p *call) {
	p.attempt++
	p.route = r.id
	p.sentAt = now
	if p.readOnly && !p.confirmed {
		p.bootAt = c.bootBefore(now)
	}
	if p.cancel {
		c.act(action{kind: actSend, route: r.id, frame: &wire.ClientFrame{Kind: &wire.ClientFrame_Cancel{
			Cancel: &wire.CancelReq{Seq: p.seq, Prev: p.prev, Ack: c.ack()}}}})
	} else {
		f := new(requestFrame)
		req := &f.req
		req.Seq, req.Attempt, req.Prev, req.Ack, req.ReadOnly = p.seq, p.attempt, p.prev, c.ack(), p.readOnly
		req.Method, req.Payload, req.PushAck, req.Confirmed = p.method, p.payload, c.delivered, p.confirmed
		if p.deadline > 0 {
			req.TimeoutUs = uint64(max(1, (p.deadline - now).Microseconds()))
		}
		if !p.readOnly { // of a query the owner looks at nothing else
			c.pushAcked, c.pushAckAt = c.delivered, 0
		}
		f.kind.Request, f.frame.Kind = req, &f.kind
		c.act(action{kind: actSend, route: r.id, frame: &f.frame})
	}
	c.due = minDue(c.due, now+c.quietAfter())
}

// bootBefore is a time on the boot clock that is not after this call. It is not
// read for that if the last reading is young: the attempt then counts as sent
// earlier than it was, and its answer as older, which is the safe side.
func (c *core) bootBefore(now time.Duration) time.Duration {
	if c.boot == 0 || now-c.bootOn > bootAge {
		c.readBoot(now)
	}
	return c.boot
}

// readBoot reads the boot clock, which is a system call.
func (c *core) readBoot(now time.Duration) time.Duration {
	c.boot, c.bootOn = c.cfg.boot(), now
	return c.boot
}

// ack is the lowest seq without an answer.
func (c *core) ack() uint64 {
	if len(c.order) > 0 {
		return c.order[0].seq
	}
	return c.nextSeq + 1
}

// ready makes p go (again) with the next flush.
func (c *core) ready(p *call) {
	if p.retryAt > 0 {
		p.retryAt = 0
		if !p.readOnly {
			c.backingOff--
		}
	}
	p.route = 0
	c.dirty = true
}

// readyBehind makes those writes go at once that were refused only because p was
// not settled yet.
func (c *core) readyBehind(p *call) {
	if p.readOnly || c.backingOff == 0 {
		return
	}
	for _, q := range c.order {
		if !q.settled && !q.readOnly && q.retryAt > 0 && wire.CodeOf(q.lastErr) == wire.Code_SEQ_MISMATCH {
			c.ready(q)
		}
	}
}

// resend makes everything unanswered go (again) with the next flush.
func (c *core) resend() {
	for _, p := range c.order {
		if !p.settled {
			c.ready(p)
		}
	}
	c.dirty = true
}

// unlink takes a write that never left out of the chain of writes.
func (c *core) unlink(p *call) {
	c.settle(p)
	if c.lastWrite == p.seq {
		c.lastWrite = p.prev
	}
	for _, q := range c.order {
		if !q.readOnly && q.prev == p.seq {
			q.prev = p.prev
		}
	}
}

// settle takes p out of the table.
func (c *core) settle(p *call) {
	if p.settled {
		return
	}
	p.settled = true
	delete(c.bySeq, p.seq)
	if p.readOnly {
		c.reads--
	} else {
		c.writes--
		if p.retryAt > 0 {
			c.backingOff--
		}
	}
	p.payload = nil
	for len(c.order) > 0 && c.order[0].settled {
		pop(&c.order)
	}
	if len(c.order) > 2*(c.writes+c.reads)+64 { // one old call must not keep all since
		c.order = slices.DeleteFunc(c.order, func(q *call) bool { return q.settled })
	}
}

// release answers p's caller, once.
func (c *core) release(p *call, reply Reply, err error) {
	if p.released {
		return
	}
	p.released = true
	p.reply, p.err = reply, err
	c.act(action{kind: actRelease, call: p})
}

// tickCalls retries and expires calls, and returns when it is next needed.
func (c *core) tickCalls(now time.Duration) (due time.Duration) {
	for _, list := range [][]*call{c.waitWrite, c.waitRead, c.order} {
		for _, p := range append([]*call(nil), list...) {
			switch {
			case p.settled:
			case !p.released && p.deadline > 0 && p.deadline <= now:
				c.abandon(now, p, expired(p, context.DeadlineExceeded))
			case p.retryAt > 0 && p.retryAt <= now:
				c.ready(p)
			}
			if p.settled {
				continue
			}
			if !p.released && p.deadline > now {
				due = minDue(due, p.deadline)
			}
			if p.retryAt > now {
				due = minDue(due, p.retryAt)
			}
		}
	}
	c.flush(now)
	return due
}

// expired is what the caller of p is told when its time is up. It is both a
// DEADLINE_EXCEEDED and cause.
func expired(p *call, cause error) error {
	what := "no answer came in time"
	switch {
	case p.attempt == 0:
		what = "the request never left: no node that serves the session was reached in time"
	case !p.readOnly:
		what = fmt.Sprintf("no answer came in time, after %d attempts; whether the write took effect is not known", p.attempt)
	}
	if p.lastErr != nil {
		what += "; the last refusal was: " + p.lastErr.Error()
	}
	return &deadlineError{refusal: wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "%s", what), cause: cause}
}

// deadlineError is a typed refusal and the context's error in one.
type deadlineError struct {
	refusal *wire.Error
	cause   error
}

func (e *deadlineError) Error() string   { return e.refusal.Error() }
func (e *deadlineError) Unwrap() []error { return []error{e.refusal, e.cause} }

// endsSession reports whether a refusal is about the session as a whole, and
// final.
func endsSession(code wire.Code) bool {
	switch code {
	case wire.Code_UNKNOWN_SESSION, wire.Code_SESSION_CLOSED, wire.Code_SESSION_EXPIRED, wire.Code_BAD_SECRET,
		wire.Code_CLIENT_GONE, wire.Code_DISPLACED:
		return true
	}
	return false
}

// pop takes the first of a list. An emptied list keeps its memory: most lists
// hold one call at a time.
func pop(list *[]*call) *call {
	l := *list
	p := l[0]
	l[0] = nil
	if *list = l[1:]; len(l) == 1 {
		*list = l[:0]
	}
	return p
}

// drop removes p from a list.
func drop(list *[]*call, p *call) {
	for i, q := range *list {
		if q == p {
			*list = append((*list)[:i], (*list)[i+1:]...)
			return
		}
	}
}

// minDue is the earlier of two times, where 0 is never.
func minDue(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
