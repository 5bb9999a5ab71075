package matrix

import (
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// frame takes what came on a stream.
func (c *client) frame(now time.Duration, l *link, f *wire.ServerFrame) {
	var r *route
	for _, known := range []*route{c.serving, c.warm, c.attempt} {
		if known != nil && known.link == l {
			r = known
		}
	}
	if r == nil {
		return
	}
	if debug && f.GetResponse() == nil {
		c.w.logf("client from %s: %v", r.node, f)
	}
	switch k := f.GetKind().(type) {
	case nil:
		c.lost(now, r, "", 0)
	case *wire.ServerFrame_Attached:
		c.attached(now, r, k.Attached)
	case *wire.ServerFrame_Redirect:
		if r == c.attempt {
			c.drop(r)
			c.attempt, c.hint, c.huntAt = nil, k.Redirect.GetOwner().GetId(), now
			if c.round++; c.round%4 == 0 {
				c.hint, c.huntAt = "", now+100*time.Millisecond // they send us in circles
			}
			return
		}
		c.lost(now, r, k.Redirect.GetOwner().GetId(), 0)
	case *wire.ServerFrame_Response:
		c.response(now, k.Response)
	case *wire.ServerFrame_Pivot:
		if r == c.serving && k.Pivot.GetEpoch() >= c.epoch {
			c.goWarm(now, k.Pivot)
		}
	case *wire.ServerFrame_Frozen:
		if r == c.serving && !c.frozen {
			c.frozen, c.frozenAt, c.heardAt = true, now, now
			c.resend()
		}
	case *wire.ServerFrame_Unfrozen:
		if r == c.serving {
			c.heardAt = now
			c.thaw()
		}
	case *wire.ServerFrame_Bounced:
		if r == c.warm {
			c.drop(c.warm)
			c.warm = nil
			if c.frozen {
				c.resend()
			}
		}
	case *wire.ServerFrame_Bye:
		c.bye(now, r, k.Bye)
	}
}

func (c *client) thaw() {
	c.drop(c.warm)
	c.warm = nil
	if c.frozen {
		c.frozen = false
		c.resend()
	}
}

func (c *client) goWarm(now time.Duration, p *wire.Pivot) {
	c.heardAt = now
	if c.warm != nil && c.warm.migration == p.GetMigration() {
		return
	}
	c.drop(c.warm)
	c.warm = &route{node: p.GetTarget().GetId(), migration: p.GetMigration(), link: c.w.dial(p.GetTarget().GetId(), &wire.ClientFrame{
		Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
			Version: wire.Version, Session: sessionID, Instance: c.instance, Epoch: c.epoch,
			Token: p.GetToken(), Migration: p.GetMigration(),
		}},
	}, c.take)}
}

func (c *client) attached(now time.Duration, r *route, a *wire.Attached) {
	if a.GetEpoch() < c.epoch {
		if r == c.attempt {
			c.failAttempt(now)
		}
		return
	}
	c.epoch, c.everServed = a.GetEpoch(), true
	if !(c.frozen && r.migration != 0) {
		c.resend() // else it is parked there already
	}
	if c.serving != r {
		c.drop(c.serving)
	}
	if c.attempt != r {
		c.drop(c.attempt)
	}
	if c.warm == r {
		c.warm = nil
	}
	if c.leave {
		c.leave = false
	}
	c.serving, c.attempt, c.hunting, c.round, c.avoid = r, nil, false, 0, ""
	c.frozen, c.heardAt, r.migration = false, now, 0
}

// lost ends a stream.
func (c *client) lost(now time.Duration, r *route, hint string, wait time.Duration) {
	switch r {
	case c.attempt:
		c.failAttempt(now)
	case c.warm:
		c.drop(r)
		c.warm = nil
	case c.serving:
		c.drop(r)
		c.serving = nil
		if c.warm != nil && c.frozen {
			hint, wait = c.warm.node, max(wait, silence) // it is about to speak first
		}
		c.goHunting(now, hint, wait)
	}
}

func (c *client) bye(now time.Duration, r *route, b *wire.Bye) {
	switch b.GetCode() {
	case wire.Code_SESSION_CLOSED, wire.Code_SESSION_EXPIRED, wire.Code_UNKNOWN_SESSION, wire.Code_BAD_SECRET, wire.Code_CLIENT_GONE:
		if r != c.warm {
			c.finish(wire.Errorf(b.GetCode(), "%s", b.GetMessage()))
			return
		}
	case wire.Code_DISPLACED:
		if r == c.serving && !c.hunting {
			c.finish(wire.Errorf(b.GetCode(), "%s", b.GetMessage()))
			return
		}
	case wire.Code_OK:
		if r == c.serving && c.leave {
			c.finish(errLeft)
			return
		}
	}
	c.lost(now, r, "", 0)
}

var errLeft = errors.New("detached")

// response takes an answer; the first one for a seq counts, and none of an epoch
// that is over.
func (c *client) response(now time.Duration, resp *wire.Response) {
	if resp.GetEpoch() < c.epoch {
		return
	}
	c.epoch, c.heardAt = resp.GetEpoch(), now
	i := slices.IndexFunc(c.calls, func(p *incr) bool { return p.seq == resp.GetSeq() })
	if i < 0 {
		return
	}
	if resp.GetSettled() || resp.GetCode() == wire.Code_OK {
		c.calls = slices.Delete(c.calls, i, i+1)
		n, err := strconv.Atoi(string(resp.GetPayload()))
		if resp.GetCode() != wire.Code_OK || err != nil {
			c.w.t.Errorf("call %d was answered %v", resp.GetSeq(), resp)
		}
		c.mu.Lock()
		c.acked++
		c.replies = append(c.replies, n)
		c.mu.Unlock()
		return
	}
	c.calls[i].retryAt = now + 20*time.Millisecond
	switch resp.GetCode() {
	case wire.Code_NOT_OWNER, wire.Code_MOVED, wire.Code_STALE_EPOCH, wire.Code_STALE_INCARNATION,
		wire.Code_NOT_ATTACHED, wire.Code_DISPLACED, wire.Code_SHUTTING_DOWN, wire.Code_UNAVAILABLE, wire.Code_NO_OWNER:
		c.goHunting(now, "", 0)
	}
}
