package rpcnet

import (
	"time"

	"github.com/baton-cluster/baton/wire"
)

// A node that is slow is not gone. One under load that were left for it would get
// the same requests again from elsewhere, and have a handshake more to make: so
// load would make load, and a crowd would never be served. What tells the two
// apart is QUIC, which acknowledges whatever it is sent, however long the answer
// takes. So the client listens: it has the node sent something, and sees whether
// anything comes back. A node from which nothing does counts as gone as soon as it
// is silent; one that lives is given longer. (If it lives and cannot serve, cut off
// from the log, say, it says so itself.) And it may be the client that slept: then
// its timers go off before it has read what came meanwhile. So nothing is silent
// that was not listened to for a while.
const (
	// listenPart of what counts as silence passes before the client listens, and
	// again before it goes by what it heard.
	listenPart = 4
	// slowMax is how often a node that lives is let off, while the limit doubles.
	slowMax = 2
	// slowSilences is how many silences an attempt is given longer, as often, and in a
	// crowd from the beginning.
	slowSilences = 4
	// rttsSilence round trips, as long as they were lately, are no silence.
	rttsSilence = 4
)

// silenceLimit is how long the serving route may be silent.
func (c *core) silenceLimit() time.Duration {
	return max(c.cfg.silence<<c.quiet, rttsSilence*c.rtt(c.serving))
}

// quietAfter is when to look first whether the serving route is quiet. It is asked
// with each request, and so goes without the round trip.
func (c *core) quietAfter() time.Duration {
	limit := c.cfg.silence << c.quiet
	switch {
	case c.cfg.hears != nil:
		return limit / listenPart
	case c.stand.next != nil && c.stand.route == nil:
		return limit / 2
	}
	return limit
}

// answerLimit is how long an attempt may be without an answer.
func (c *core) answerLimit(now time.Duration, r *route) time.Duration {
	limit := c.cfg.silence << min(c.hunt.round, quietMax)
	if c.inCrowd(now) > 0 {
		limit = max(limit, slowSilences*c.cfg.silence)
	}
	return max(limit, rttsSilence*c.rtt(r))
}

// rtt is a route's round trip, 0 where it is not known.
func (c *core) rtt(r *route) time.Duration {
	if c.cfg.rtt == nil || r == nil {
		return 0
	}
	return c.cfg.rtt(r.id)
}

func (c *core) heard(now time.Duration) { c.lastHeard = now }

// quietSince is since when nothing was heard on the serving route that should have
// been: since the oldest request that is out, or since the freeze.
func (c *core) quietSince() (since time.Duration, ok bool) {
	if c.serving == nil || c.hunt.on {
		return 0, false
	}
	since, ok = c.waitingSince()
	return max(since, c.lastHeard), ok
}

func (c *core) waitingSince() (since time.Duration, ok bool) {
	if c.frozen {
		return c.frozenAt, true
	}
	for _, p := range c.order {
		if !p.settled && p.route == c.serving.id && p.retryAt == 0 && (!ok || p.sentAt < since) {
			since, ok = p.sentAt, true
		}
	}
	return since, ok
}

// waitingLong reports whether a request is still out that was sent before the
// hunt began.
func (c *core) waitingLong(now time.Duration) bool {
	since, ok := c.waitingSince()
	return ok && max(since, c.lastHeard)+c.silenceLimit() <= now
}

// tickSilence looks whether the serving route has fallen silent, and returns when
// to look again.
func (c *core) tickSilence(now time.Duration) (due time.Duration) {
	since, ok := c.quietSince()
	if !ok {
		return 0
	}
	due = c.tickListen(now, since)
	if at := max(since+c.silenceLimit(), c.heardBy(since)); at > now {
		return minDue(due, at)
	}
	slow := c.slow(since) && c.quiet < slowMax
	c.quiet = min(c.quiet+1, quietMax)
	c.lastHeard = now
	if slow {
		return now + c.silenceLimit()/listenPart
	}
	avoid := c.serving.addr
	if c.serving.relay {
		avoid = "" // it is the owner behind it that is silent
	}
	wait := max(0, c.slot()-c.cfg.silence/2) // when the successor's turn comes
	if c.stand.route != nil {
		wait = 0 // it is past
	}
	c.goHunting(now, nil, wait, avoid)
	return 0
}

// listens reports whether what is heard on the serving route is the owner. Through
// a relay it is not, and while frozen it is another that has to answer.
func (c *core) listens() bool { return c.cfg.hears != nil && !c.serving.relay && !c.frozen }

// tickListen listens once on the serving route, which has been quiet.
func (c *core) tickListen(now, since time.Duration) (due time.Duration) {
	if !c.listens() || c.listenedAt > since {
		return 0
	}
	if at := since + c.silenceLimit()/listenPart; at > now {
		return at
	}
	c.listenedAt = now
	c.act(action{kind: actListen, route: c.serving.id})
	c.sendAck()
	return 0
}

// heardBy is when to go by what is heard, 0: at any time.
func (c *core) heardBy(since time.Duration) time.Duration {
	if !c.listens() || c.listenedAt <= since {
		return 0
	}
	return c.listenedAt + c.silenceLimit()/listenPart
}

// slow reports whether the serving route leads to a node that lives, though it has
// been quiet.
func (c *core) slow(since time.Duration) bool {
	return c.listens() && c.listenedAt > since && c.cfg.hears(c.serving.id)
}

// tickAttempt ends an attempt that had no answer, unless the node lives, and
// returns when to look again.
func (c *core) tickAttempt(now time.Duration) (due time.Duration) {
	r := c.hunt.attempt
	switch {
	case r == nil || r.deadline == 0:
		return 0
	case r.deadline > now:
		return r.deadline
	case r.let < slowMax && (now-r.deadline > c.cfg.silence/listenPart || !r.relay && c.cfg.hears != nil && c.cfg.hears(r.id)):
		r.let++
		r.deadline = now + slowSilences*c.cfg.silence
		c.act(action{kind: actListen, route: r.id})
		return r.deadline
	}
	r.silent = true
	c.unanswered(now, wire.Errorf(wire.Code_UNAVAILABLE, "%s did not answer in time", r.addr))
	return 0
}
