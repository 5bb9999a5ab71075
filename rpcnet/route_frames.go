package rpcnet

import (
	"slices"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// route returns the route of that id, nil if it was dropped.
func (c *core) route(id int) *route {
	for _, r := range []*route{c.serving, c.warm, c.hunt.attempt, c.stand.route} {
		if r != nil && r.id == id {
			return r
		}
	}
	return nil
}

// opened: the stream of a route stands, and its first frame is on its way.
func (c *core) opened(now time.Duration, id int) {
	r := c.route(id)
	if r == nil {
		return
	}
	r.opened = true
	if r == c.stand.route {
		r.deadline = now + c.cfg.silence<<quietMax
		c.due = minDue(c.due, r.deadline)
		return
	}
	if r == c.hunt.attempt {
		r.deadline = now + c.answerLimit(now, r)
		c.due = minDue(c.due, r.deadline)
	}
	c.flush(now)
}

// lost: a route's stream broke, or (not dialled) never came to stand.
func (c *core) lost(now time.Duration, id int, err error, dialled bool) {
	r := c.route(id)
	switch {
	case r == nil || c.ended != nil:
	case r == c.hunt.attempt:
		if c.refusedForGood(r, err) {
			c.end(err)
			return
		}
		c.unanswered(now, err)
	case r == c.warm && dialled && c.warmAgain():
	case r == c.warm:
		c.lostWarm(now, dialled, !dialled)
	case r == c.stand.route:
		c.lostStandby(now, err)
	case r == c.serving:
		c.book.suspect(r.addr, now+c.cfg.suspect)
		c.lostServing(now, err, nil, c.slotUnlessStanding())
	}
}

// misfit reports that a node and the client do not belong together: the node's
// certificate may have run out, or its address be another cluster's by now.
func misfit(err error) bool {
	switch wire.CodeOf(err) {
	case wire.Code_WRONG_CLUSTER, wire.Code_WRONG_VERSION, wire.Code_NOT_AUTHORISED:
		return true
	}
	return false
}

// refusedForGood reports whether err, at a first attachment, leaves no hope: what is
// asked for is refused, or no node is left that the client would fit.
func (c *core) refusedForGood(r *route, err error) bool {
	if c.attached {
		return false
	}
	if misfit(err) {
		if r.relay && !c.cfg.relay {
			return false // it may be the node behind the relay
		}
		if !slices.Contains(c.misfits, r.addr) {
			c.misfits = append(c.misfits, r.addr)
		}
		return !c.book.hasOthers(c.misfits, c.cfg.relay)
	}
	switch wire.CodeOf(err) {
	case wire.Code_BAD_REQUEST, wire.Code_BAD_SESSION_ID, wire.Code_SESSION_EXISTS, wire.Code_OPEN_TOO_LATE, wire.Code_FRAME_TOO_LARGE:
		return true
	}
	return false
}

// lostServing: nothing serves any more. With a warm route at hand the owner may
// just have handed over: then its successor gets a while to speak first.
func (c *core) lostServing(now time.Duration, err error, hint *wire.NodeInfo, wait time.Duration) {
	r := c.serving
	c.serving = nil
	c.act(action{kind: actDrop, route: r.id})
	if c.leaving == detaching {
		c.end(errDetached) // the stream's end is a detach, too
		return
	}
	if c.goneAt == 0 {
		c.goneAt = now
		c.joinCrowd(now)
	}
	if c.warm != nil && c.frozen {
		hint = c.warm.target
		wait = max(wait, c.cfg.silence)
	}
	if c.hunt.on {
		c.hunt.lastErr = err
		return
	}
	c.goHunting(now, hint, wait, "")
	if c.hunt.on {
		c.hunt.lastErr = err
	}
}

// frame takes a frame from a node.
func (c *core) frame(now time.Duration, id int, f *wire.ServerFrame) {
	r := c.route(id)
	if r == nil || c.ended != nil {
		return
	}
	if r == c.stand.route {
		c.standbyFrame(now, r, f)
		return
	}
	switch k := f.Kind.(type) {
	case *wire.ServerFrame_Attached:
		c.gotAttached(now, r, k.Attached)
	case *wire.ServerFrame_Redirect:
		c.gotRedirect(now, r, k.Redirect)
	case *wire.ServerFrame_Response:
		c.response(now, k.Response)
	case *wire.ServerFrame_Push:
		c.gotPush(now, r, k.Push)
	case *wire.ServerFrame_Pivot:
		c.gotPivot(now, r, k.Pivot)
	case *wire.ServerFrame_Warm:
		if r == c.warm {
			r.warmed = true
			c.heard(now)
		}
	case *wire.ServerFrame_Frozen:
		c.gotFrozen(now, r, k.Frozen)
	case *wire.ServerFrame_Unfrozen:
		if r == c.serving {
			c.heard(now)
			c.dropWarm()
			c.thaw(now)
		}
	case *wire.ServerFrame_Bounced:
		if r == c.warm {
			c.dropWarm() // the owner says when it goes on: until then it passes over queries
		}
	case *wire.ServerFrame_AckWanted:
		c.heard(now)
		c.sendAck()
	case *wire.ServerFrame_Standing:
		if r == c.hunt.attempt && r.stands {
			c.stands(now, r, k.Standing)
		}
	case *wire.ServerFrame_Successor:
		if r == c.serving {
			c.foretold(now, k.Successor.GetNode(), k.Successor.GetSpreadUs())
		}
	case *wire.ServerFrame_Bye:
		c.gotBye(now, r, k.Bye)
	}
}

// gotAttached: r serves from now on.
func (c *core) gotAttached(now time.Duration, r *route, a *wire.Attached) {
	if a.GetEpoch() < c.epoch || a.GetSession() != c.cfg.session {
		if r == c.hunt.attempt {
			c.failAttempt(now, wire.Errorf(wire.Code_STALE_EPOCH, "%s serves epoch %d, but %d has been seen", r.addr, a.GetEpoch(), c.epoch), 0, false)
		}
		return
	}
	c.book.trust(r.addr)
	c.moved(now, r, a)
	first := !c.attached
	c.attached = true
	if first {
		c.pushNext = a.GetPushNext()
	}
	c.epoch, c.owner, c.token = a.GetEpoch(), a.GetNode(), string(a.GetStreamToken())
	if n := int(a.GetFrameLimit()); n > 0 {
		c.frameLimit = min(n, wire.FrameBytesMax)
	}
	if c.serving != nil && c.serving != r {
		c.act(action{kind: actDrop, route: c.serving.id})
	}
	if h := c.hunt.attempt; h != nil && h != r {
		c.act(action{kind: actDrop, route: h.id})
	} else if h == r {
		c.act(action{kind: actAttempt, attempt: Attempt{Addr: r.addr, Relay: r.relay}})
	}
	if c.warm == r {
		c.warm = nil
	} else if c.warm != nil && c.warm.epoch < c.epoch {
		c.dropWarm()
	}
	// What has gone to the target while frozen is parked there: it is not sent
	// twice. Everything else is.
	if !(c.frozen && r.migration != 0) {
		c.resend()
	}
	c.serving, c.hunt, c.goneAt = r, hunt{}, 0
	c.frozen, c.frozenAt = false, 0
	r.serving, r.migration = true, 0
	c.heard(now)
	c.foretold(now, a.GetSuccessor(), a.GetSpreadUs())
	if a.GetPivoted() {
		c.act(action{kind: actSend, route: r.id, frame: &wire.ClientFrame{Kind: &wire.ClientFrame_Confirm{Confirm: &wire.Confirm{Epoch: c.epoch}}}})
	}
	if first {
		c.act(action{kind: actReady})
	}
	c.seat(now)
	c.tellPushes(now)
	c.sendLeave()
}

// moved reports a change of owner or epoch to the application, before the core
// changes over.
func (c *core) moved(now time.Duration, r *route, a *wire.Attached) {
	if !c.attached || a.GetEpoch() == c.epoch && a.GetNode().GetId() == c.owner.GetId() {
		return
	}
	since := now
	if c.goneAt > 0 {
		since = c.goneAt
	}
	if c.frozen && c.frozenAt < since {
		since = c.frozenAt
	}
	c.act(action{kind: actMove, move: Move{
		From: c.owner, To: a.GetNode(), Epoch: a.GetEpoch(), Planned: a.GetPivoted(), Pause: now - since, Gap: a.GetGap(),
	}})
}

func (c *core) gotRedirect(now time.Duration, r *route, d *wire.Redirect) {
	owner := d.GetOwner()
	c.book.learn(owner)
	err := wire.Errorf(wire.Code_NOT_OWNER, "%s says that %s owns the session", r.addr, nodeAddr(owner))
	switch {
	case r == c.warm:
		c.lostWarm(now, true, false)
		return
	case r == c.serving:
		c.lostServing(now, err, owner, 0)
		return
	}
	h := &c.hunt
	stale := d.GetEpoch() != 0 && d.GetEpoch() < c.epoch
	if stale || h.hops >= hopsMax || nodeAddr(owner) == "" || nodeAddr(owner) == r.addr && !r.relay {
		h.hint = nil
		c.failAttempt(now, err, 0, false)
		return
	}
	c.book.trust(r.addr)
	c.trustAnew(owner, d.GetEpoch())
	h.attempt = nil
	h.lastErr = err
	h.hops++
	h.hint, h.via = owner, r.addr
	c.act(action{kind: actDrop, route: r.id})
	if c.stand.standing && nodeAddr(owner) == c.stand.route.addr {
		c.waitStanding(now) // it is about to speak
		return
	}
	// An owner who lately did not answer us, and may not be relayed to (yet), is
	// asked for again after a pause: by then there may be another.
	if !c.cfg.relay && c.book.suspected(nodeAddr(owner), now) && !c.mayRelay(now, nodeAddr(owner)) {
		h.hint = nil
		h.hops = 0
		h.round++
		h.nextAt = now + c.backoff(h.round, huntMin, huntMax)
	}
	c.stepHunt(now)
}

// trustAnew ends the suspicion of a node that has become the owner since: what did not
// answer was a former process of it. It does so once for an epoch, as the node may
// be out of this client's reach.
func (c *core) trustAnew(owner *wire.NodeInfo, epoch uint64) {
	if c.attached && epoch > max(c.epoch, c.trusted) {
		c.trusted = epoch
		c.book.trust(nodeAddr(owner))
	}
}

func (c *core) gotPush(now time.Duration, r *route, p *wire.PushFrame) {
	if !r.serving || p.GetEpoch() < c.epoch || p.GetSeq() <= c.received {
		return
	}
	c.heard(now)
	missed := c.missedBefore(p.GetSeq())
	c.received = p.GetSeq()
	c.act(action{kind: actPush, push: Push{Seq: p.GetSeq(), Epoch: p.GetEpoch(), Payload: p.GetPayload(), Missed: missed}})
}

// missedBefore is how many pushes before seq should have come and did not. Which
// is the first that comes is not known, as a session that was there before may
// still hold some for this client: but none made since it attached may be missing.
func (c *core) missedBefore(seq uint64) uint64 {
	expected := c.received + 1
	if c.received == 0 {
		expected = c.pushNext
	}
	if expected == 0 || seq <= expected {
		return 0
	}
	return seq - expected
}

// gotBye: a node ends a stream, and says why.
func (c *core) gotBye(now time.Duration, r *route, b *wire.Bye) {
	err := wire.Errorf(b.GetCode(), "%s", b.GetMessage())
	wait := time.Duration(min(b.GetRetryAfterUs(), uint64(time.Minute/time.Microsecond))) * time.Microsecond
	switch {
	case r == c.warm:
		c.byeWarm(now, r, b.GetCode())
	case r == c.serving:
		c.byeServing(now, r, b, err, wait)
	case endsSession(b.GetCode()) && c.takesAsEnd(r, b.GetCode()):
		c.end(c.endErr(err))
	case c.refusedForGood(r, err):
		c.end(err)
	case misfit(err):
		c.unanswered(now, err)
	default:
		if b.GetCode() == wire.Code_SHUTTING_DOWN {
			c.book.suspect(r.addr, now+c.cfg.suspect)
		}
		if r.relay && b.GetCode() == wire.Code_UNAVAILABLE {
			c.hunt.relayAddr, c.hunt.relayAgain = nodeAddr(c.hunt.hint), now+c.cfg.suspect
		}
		c.hunt.hint = nil
		c.failAttempt(now, err, wait, false)
	}
}

// takesAsEnd reports whether a final answer to an attempt is final here.
func (c *core) takesAsEnd(r *route, code wire.Code) bool {
	switch code {
	case wire.Code_UNKNOWN_SESSION:
		// While it is being opened, an Attach may come before the Open.
		return c.attached || c.cfg.open == nil
	case wire.Code_SESSION_CLOSED, wire.Code_SESSION_EXPIRED:
		// Likewise; then it is a former session of that id that has ended.
		return c.attached || c.cfg.open == nil || r.asOpen
	case wire.Code_DISPLACED:
		return c.serving == nil
	}
	return true
}

func (c *core) byeServing(now time.Duration, r *route, b *wire.Bye, err error, wait time.Duration) {
	switch {
	case b.GetCode() == wire.Code_DISPLACED && c.hunt.on:
		// Our own next attachment displaced this one.
		c.lostServing(now, err, nil, wait)
	case endsSession(b.GetCode()):
		c.end(c.endErr(err))
	case b.GetCode() == wire.Code_OK && c.leaving == detaching:
		c.end(errDetached)
	default:
		if b.GetCode() == wire.Code_SHUTTING_DOWN {
			c.book.suspect(r.addr, now+c.cfg.suspect)
			wait = max(wait, c.slotUnlessStanding()) // all its clients are told
		}
		c.lostServing(now, err, nil, wait)
	}
}

var (
	errDetached = wire.Errorf(wire.Code_NOT_ATTACHED, "this client has left the session; resume it to go on")
	errClosed   = wire.Errorf(wire.Code_SESSION_CLOSED, "the session was closed")
)

// endErr makes a session that is gone, when it was to be closed, a closed one.
func (c *core) endErr(err error) error {
	if c.leaving == closing {
		switch wire.CodeOf(err) {
		case wire.Code_SESSION_CLOSED, wire.Code_UNKNOWN_SESSION, wire.Code_SESSION_EXPIRED:
			return errClosed
		}
	}
	return err
}
