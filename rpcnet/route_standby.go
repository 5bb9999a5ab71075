package rpcnet

import (
	"time"

	"github.com/baton-cluster/baton/wire"
)

const (
	// standbyWithin spreads the streams to a successor that was just named: it has
	// been for all of a node's sessions, and nobody waits for them.
	standbyWithin = 500 * time.Millisecond
	// standbyAgainMin and standbyAgainMax bound the wait before a stream that the
	// successor did not take, or lost, is made again.
	standbyAgainMin = 500 * time.Millisecond
	standbyAgainMax = 30 * time.Second
	// crowdSilences is how many silences a crowd is given after it has spread.
	crowdSilences = 4
	// busyTries is how often a successor is asked that takes nobody just now, before
	// another node is. In a crowd that is often the case, and goes on for crowdBusy
	// and twice as long as the crowd was to spread.
	busyTries = 6
	crowdBusy = 20 * time.Second
	// spreadMax bounds what a node may ask for.
	spreadMax = time.Minute
)

// standby is the way to who takes the session if its owner is lost: the owner
// names it beforehand. A stream there tells nothing until that has happened; then
// its node speaks first, by Attached, or by Redirect where another has become the
// owner. With ClientConfig.Standby it is made ahead of time. Without, it is made
// when requests have been without an answer for half of what counts as silence:
// the second node is asked while the first may still answer.
//
// Nothing depends on it. The hunt goes on beside it.
type standby struct {
	next     *wire.NodeInfo // the successor, nil: none is known
	spread   time.Duration  // over how long the owner's clients are to come there
	crowd    time.Duration  // over how long the crowd comes that this client is one of
	crowdEnd time.Duration  // when it is over
	route    *route
	standing bool          // its node has taken us in
	late     bool          // it was made because of a silence, and goes with it
	at       time.Duration // when to make it, 0: it is there, or not wanted
	fails    int
}

// slot is this client's place among all that lose the owner together.
func (c *core) slot() time.Duration {
	return time.Duration(c.cfg.slot * float64(c.stand.spread))
}

// slotUnlessStanding is slot, or nothing for who has a connection already.
func (c *core) slotUnlessStanding() time.Duration {
	if c.stand.route != nil && c.stand.standing {
		return 0
	}
	return c.slot()
}

// inCrowd is over how long the crowd comes that this client is one of, or will be if
// it loses the owner now; 0: there is none. The crowd of an owner that was lost is
// not over when its successor, which has few clients yet, foretells none: who loses
// the successor's connection meanwhile comes to the same nodes as the others.
func (c *core) inCrowd(now time.Duration) time.Duration {
	if s := &c.stand; now < s.crowdEnd {
		return max(s.spread, s.crowd)
	}
	return c.stand.spread
}

// joinCrowd notes that the owner was lost, with all its clients.
func (c *core) joinCrowd(now time.Duration) {
	if s := &c.stand; s.spread > 0 {
		s.crowd = c.inCrowd(now)
		s.crowdEnd = now + 2*s.crowd + crowdBusy
	}
}

// crowded reports whether nobody else is to be asked just now: many clients have
// lost the owner together, and this one is on its way to the successor, or stands
// there. A connection to a third node would double the crowd.
func (c *core) crowded(now time.Duration) bool {
	s := &c.stand
	spread := c.inCrowd(now)
	return spread > 0 && s.route != nil && (!s.standing || c.hunt.round > 0) &&
		now < c.goneAt+spread+crowdSilences*c.cfg.silence
}

// foretold takes what the owner says of its end.
func (c *core) foretold(now time.Duration, next *wire.NodeInfo, spreadUS uint64) {
	s := &c.stand
	s.spread = time.Duration(min(spreadUS, uint64(spreadMax/time.Microsecond))) * time.Microsecond
	s.next = nil
	if nodeAddr(next) != "" && !c.cfg.relay {
		s.next = next
		c.book.learn(next)
	}
	if s.route != nil && s.route.addr != nodeAddr(s.next) {
		c.dropStandby()
	}
	s.fails = 0
	c.planStandby(now, standbyWithin)
}

// planStandby has the stream made within a while, if it is wanted and not there.
func (c *core) planStandby(now, within time.Duration) {
	s := &c.stand
	if !c.cfg.standby || s.next == nil || s.route != nil {
		s.at = 0
		return
	}
	s.at = now + 1 + c.cfg.jitter(within)
	c.due = minDue(c.due, s.at)
}

// tickStandby makes the stream when its time has come, and returns when that is.
func (c *core) tickStandby(now time.Duration) (due time.Duration) {
	s := &c.stand
	if r := s.route; r != nil && !s.standing && r.deadline > 0 {
		if r.deadline > now {
			return r.deadline
		}
		c.lostStandby(now, wire.Errorf(wire.Code_UNAVAILABLE, "%s did not answer in time", r.addr))
	}
	if s.route == nil && s.at == 0 && s.next != nil && s.fails == 0 && c.serving != nil && !c.hunt.on {
		if since, ok := c.waitingSince(); ok {
			since = max(since, c.lastHeard)
			c.tickListen(now, since)
			if at := max(since+c.silenceLimit()/2+c.slot(), c.heardBy(since)); at > now {
				return at
			}
			if c.slow(since) {
				return 0
			}
			s.late = true
			c.joinCrowd(now)
			c.goStandby(now)
			return 0
		}
	}
	if s.at > 0 && s.at <= now {
		c.goStandby(now)
	}
	return s.at
}

// goStandby opens the stream.
func (c *core) goStandby(now time.Duration) {
	s := &c.stand
	s.at, s.standing = 0, false
	s.route = c.newRoute(nodeAddr(s.next), false)
	a := c.attachReq(false, "")
	a.Standby = true
	c.act(action{kind: actDial, route: s.route.id, addr: s.route.addr, crowd: c.inCrowd(now), frame: &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: a}}})
}

func (c *core) dropStandby() {
	s := &c.stand
	if s.route != nil {
		c.act(action{kind: actDrop, route: s.route.id})
	}
	s.route, s.standing, s.late = nil, false, false
}

// answered ends a stream that was made because of a silence: it was none.
func (c *core) answered() {
	s := &c.stand
	if c.hunt.on || !s.late && s.fails == 0 {
		return
	}
	if s.late {
		c.dropStandby()
	}
	if !c.cfg.standby {
		s.fails = 0
	}
}

// stands makes an attempt at the successor, which has found an owner in office,
// the stream that waits there. The owner is tried, unless it is the one that does
// not answer.
func (c *core) stands(now time.Duration, r *route, f *wire.Standing) {
	s, h := &c.stand, &c.hunt
	c.book.trust(r.addr)
	c.book.learn(f.GetOwner())
	c.dropStandby() // one that was dialled beside the attempt
	s.route, s.standing, s.late, s.at, s.fails = r, true, !c.cfg.standby, 0, 0
	h.attempt = nil
	c.trustAnew(f.GetOwner(), f.GetEpoch())
	addr := nodeAddr(f.GetOwner())
	speaks := addr == r.addr && f.GetEpoch() > c.epoch // it is the owner now, and is taking us in
	if speaks || addr == "" || addr == h.avoid || f.GetEpoch() < c.epoch || c.book.suspected(addr, now) {
		c.waitStanding(now)
		return
	}
	h.hops++
	h.hint, h.via = f.GetOwner(), r.addr
	c.stepHunt(now)
}

// waitStanding has the hunt wait for the successor's word, and go on after a while.
func (c *core) waitStanding(now time.Duration) {
	h := &c.hunt
	h.hint, h.hops = nil, 0
	h.round++
	h.nextAt = now + c.backoff(h.round, c.cfg.silence/2, c.cfg.silence)
	c.stepHunt(now)
}

// lostStandby is for a stream that broke, or was not taken.
func (c *core) lostStandby(now time.Duration, err error) {
	s := &c.stand
	c.act(action{kind: actAttempt, attempt: Attempt{Addr: s.route.addr, Err: err}})
	c.dropStandby()
	s.fails++
	s.at = 0
	if c.cfg.standby && s.next != nil {
		s.at = now + max(c.backoff(s.fails, standbyAgainMin, standbyAgainMax), c.cfg.jitter(s.spread+1))
		c.due = minDue(c.due, s.at)
	}
}

// standbyFrame takes a frame from the successor.
func (c *core) standbyFrame(now time.Duration, r *route, f *wire.ServerFrame) {
	s := &c.stand
	switch k := f.Kind.(type) {
	case *wire.ServerFrame_Standing:
		s.standing, s.fails = true, 0
	case *wire.ServerFrame_Attached:
		if a := k.Attached; a.GetEpoch() >= c.epoch && a.GetSession() == c.cfg.session {
			c.act(action{kind: actAttempt, attempt: Attempt{Addr: r.addr}})
			s.route, s.standing, s.late = nil, false, false
			c.gotAttached(now, r, a)
			return
		}
		c.lostStandby(now, wire.Errorf(wire.Code_STALE_EPOCH, "%s serves an epoch that is over", r.addr))
	case *wire.ServerFrame_Redirect:
		c.standbyRedirect(now, r, k.Redirect)
	case *wire.ServerFrame_Bye:
		c.lostStandby(now, wire.Errorf(k.Bye.GetCode(), "%s", k.Bye.GetMessage()))
	}
}

// standbyRedirect: the owner was lost, and another than the successor took its
// place. While a move is under way the client knows better.
func (c *core) standbyRedirect(now time.Duration, r *route, d *wire.Redirect) {
	owner := d.GetOwner()
	c.book.learn(owner)
	c.lostStandby(now, wire.Errorf(wire.Code_NOT_OWNER, "%s says that %s owns the session", r.addr, nodeAddr(owner)))
	if d.GetEpoch() <= c.epoch || c.warm != nil {
		return
	}
	c.trustAnew(owner, d.GetEpoch())
	if !c.hunt.on {
		c.goHunting(now, owner, 0, "")
		return
	}
	h := &c.hunt
	if h.attempt != nil {
		if h.attempt.addr == nodeAddr(owner) && !h.attempt.relay {
			return // it is being asked
		}
		c.act(action{kind: actDrop, route: h.attempt.id})
		h.attempt = nil
	}
	h.hint, h.via, h.nextAt = owner, r.addr, now
	c.stepHunt(now)
}

// chooseSuccessor is whom to ask first, "" for nobody special: the successor, and
// through it the owner, which we have lost, but which may be well. Where the successor stands by, nothing else is asked of it: two
// attachments of one instance would displace each other.
func (c *core) chooseSuccessor(now time.Duration) (addr string, relay bool, relayTo string) {
	s, h := &c.stand, &c.hunt
	addr = nodeAddr(s.next)
	switch {
	case addr == "" || c.book.suspected(addr, now) || s.route != nil && !s.standing:
		return "", false, ""
	case h.busy && !s.standing && (h.round < busyTries || now < c.goneAt+2*c.inCrowd(now)+crowdBusy):
		return addr, false, "" // it takes the session, so everybody else would send us there
	case s.standing && h.round == 0:
		return addr, true, c.owner.GetId()
	case !s.standing && h.round == 0:
		return addr, false, ""
	}
	return "", false, ""
}
