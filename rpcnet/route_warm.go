package rpcnet

import (
	"time"

	"github.com/baton-cluster/baton/wire"
)

// This file is the client's way to a migration's target, and what is sent over it while
// the owner is frozen.

// gotPivot: the owner wants to hand the session over to a target. The owner goes
// on serving while the stream to the target is made.
func (c *core) gotPivot(now time.Duration, r *route, p *wire.Pivot) {
	if r != c.serving || p.GetEpoch() < c.epoch {
		return
	}
	c.heard(now)
	if c.warm != nil {
		if c.warm.migration == p.GetMigration() {
			return
		}
		c.dropWarm()
	}
	c.book.learn(p.GetTarget())
	relay := c.cfg.relay
	addr := nodeAddr(p.GetTarget())
	if relay {
		addr = r.addr
	}
	c.goWarm(&route{addr: addr, relay: relay, migration: p.GetMigration(), target: p.GetTarget(), token: p.GetToken(), epoch: p.GetEpoch()})
}

// goWarm opens a stream to a migration's target.
func (c *core) goWarm(r *route) {
	c.nextRoute++
	r.id = c.nextRoute
	c.warm = r
	relayTo := ""
	if r.relay {
		relayTo = r.target.GetId()
	}
	a := c.attachReq(r.relay, relayTo)
	a.Token, a.Migration, a.Secret, a.Fresh = r.token, r.migration, nil, false
	c.act(action{kind: actDial, route: r.id, addr: r.addr, frame: &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: a}}})
}

// warmAgain tries the way to the target once more, if it broke before the target had
// answered: a connection that was at hand may be to a node that has been restarted
// since, which shows when it is used.
func (c *core) warmAgain() bool {
	w := c.warm
	if w.warmed || w.again {
		return false
	}
	c.dropWarm()
	c.goWarm(&route{addr: w.addr, relay: w.relay, migration: w.migration, target: w.target, token: w.token, epoch: w.epoch, again: true})
	return true
}

// lostWarm: unless that is final, a target that cannot be reached directly is tried
// through a relay: through another node first, as the owner is going, and then through
// the owner, which is the one node that is known to be in reach. suspect: the node
// that was asked did not answer.
func (c *core) lostWarm(now time.Duration, final, suspect bool) {
	w := c.warm
	c.dropWarm()
	owner := ""
	if c.serving != nil {
		owner = c.serving.addr
	}
	if final || w.relay && (w.addr == owner || c.cfg.relay) {
		return
	}
	if suspect {
		c.book.suspect(w.addr, now+c.cfg.suspect)
	}
	via := owner
	if addr, ok := c.book.pick(now, nodeAddr(w.target), owner); ok && !w.relay {
		via = addr
	}
	if via == "" {
		return
	}
	c.goWarm(&route{addr: via, relay: true, migration: w.migration, target: w.target, token: w.token, epoch: w.epoch})
}

// dropWarm gives up the way to the target. What was sent there while frozen is parked
// for that stream alone, and goes again over whatever comes after it.
func (c *core) dropWarm() {
	if c.warm == nil {
		return
	}
	c.act(action{kind: actDrop, route: c.warm.id})
	c.warm = nil
	if c.frozen {
		c.resend()
	}
}

// gotFrozen: the owner takes no more requests; they go to the target.
func (c *core) gotFrozen(now time.Duration, r *route, f *wire.Frozen) {
	if r != c.serving {
		return
	}
	c.heard(now)
	if c.warm != nil && c.warm.migration != f.GetMigration() {
		c.dropWarm()
	}
	if !c.frozen {
		c.frozen, c.frozenAt = true, now
	}
	c.due = minDue(c.due, now+c.silenceLimit())
	c.resend()
	c.flush(now)
}

// thaw sends everything to the owner again: the move is off.
func (c *core) thaw(now time.Duration) {
	if !c.frozen {
		return
	}
	c.frozen, c.frozenAt = false, 0
	c.resend()
	c.flush(now)
	c.tellPushes(now)
	c.sendLeave()
}

// byeWarm: RETRY is what a relay says whose own connection was to a former process.
func (c *core) byeWarm(now time.Duration, r *route, code wire.Code) {
	// After CONNECTION_FULL the next stream is on another connection.
	if (code == wire.Code_RETRY || code == wire.Code_CONNECTION_FULL) && c.warmAgain() {
		return
	}
	c.lostWarm(now, code != wire.Code_UNAVAILABLE, !r.relay)
}
