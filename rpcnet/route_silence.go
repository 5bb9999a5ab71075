package rpcnet

import "time"

func (c *core) silenceLimit() time.Duration { return c.cfg.silence << c.quiet }

func (c *core) heard(now time.Duration) { c.lastHeard = now }

// silentAt is when the serving route counts as silent, if nothing is heard until
// then: a while after the oldest request that is out, or after the freeze.
func (c *core) silentAt() (at time.Duration, ok bool) {
	if c.serving == nil || c.hunt.on {
		return 0, false
	}
	since, ok := c.waitingSince()
	if !ok {
		return 0, false
	}
	return max(since, c.lastHeard) + c.silenceLimit(), true
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
