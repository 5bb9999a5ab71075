package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/baton-cluster/baton"
)

// sleepTTL is for how long a sleeper's session outlives its client.
const sleepTTL = 2 * time.Minute

// sleep leaves a session and comes back to it, again and again. While less time
// has passed than its TTL, the session must be there with its state: whoever led
// meanwhile, and whatever their wall clocks said. Once more has passed, it may be
// gone, and must be gone for good.
func (c *client) sleep(id string) {
	c.run(func(rng *rand.Rand) {
		for n := 0; c.ctx.Err() == nil; n++ {
			c.oneLife(rng, fmt.Sprint(id, "-", n))
		}
	})
}

// oneLife is a session from its opening to its expiry.
func (c *client) oneLife(rng *rand.Rand, id string) {
	s := c.openSleeper(id)
	bumps := int64(0)
	for s != nil && c.ctx.Err() == nil {
		if !c.bumpOnce(s, &bumps) {
			_ = s.Detach(c.within(callTime))
			return // an outcome is unknown: the rest would be guessing
		}
		left := time.Now()
		if s.Detach(c.within(callTime)) != nil || !c.rest(rng, sleepTTL*5/4) {
			return
		}
		again, err := c.c.Resume(c.within(time.Minute), id, s.Secret())
		switch code := baton.CodeOf(err); {
		case err == nil:
			s = again
		case code == baton.CodeOf(baton.ErrSessionExpired) || code == baton.CodeOf(baton.ErrUnknownSession):
			if asleep := time.Since(left); asleep < time.Duration(float64(sleepTTL)*(1-2*driftMax)) {
				c.w.violation("%s: expired after %v of %v", id, asleep, sleepTTL)
			}
			return
		default:
			return
		}
	}
}

func (c *client) openSleeper(id string) *baton.Session {
	s, err := c.c.Open(c.within(time.Minute), baton.OpenOptions{ID: id, TTL: sleepTTL})
	if err != nil {
		return nil
	}
	return s
}

// bumpOnce reports whether the outcome is known.
func (c *client) bumpOnce(s *baton.Session, bumps *int64) bool {
	r, err := s.Call(c.within(callTime), "bump", nil)
	if err != nil {
		return false
	}
	*bumps++
	if got, _ := strconv.ParseInt(string(r.Payload), 10, 64); got != *bumps {
		c.w.violation("%s: a sleeper's bump %d came to %d", s.ID(), *bumps, got)
	}
	return true
}

func (c *client) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(c.ctx, d)
	context.AfterFunc(ctx, cancel)
	return ctx
}
