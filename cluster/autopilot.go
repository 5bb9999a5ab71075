package cluster

import (
	"context"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// autopilot keeps the voters at their number while this node leads: a server
// that follows, has caught up and is willing gets a vote where one is missing,
// and that of a voter that has been dead for ReplaceAfter. It makes one change at
// a time, rarely: while the voters change, nobody is fenced.
type autopilot struct {
	dead map[string]time.Duration // voters that gossip does not call alive, since when
	// next is when the next change of the voters may come.
	next time.Duration
	last string // fault that was told
}

func (c *Cluster) pilot(ctx context.Context) {
	// A new leader knows of no deaths, and waits anew.
	a := &autopilot{dead: map[string]time.Duration{}, next: c.cfg.Clock.Now()}
	for seam.Sleep(ctx, c.cfg.Clock, c.cfg.Timings.Pilot) == nil {
		c.pilotLooks.Add(1)
		a.note(c)
		if c.cfg.Clock.Now() < a.next {
			continue
		}
		changed, err := a.step(ctx, c)
		if changed {
			a.next = c.cfg.Clock.Now() + c.cfg.Timings.VoterPace
		}
		a.tell(c, err)
	}
}

// note follows who is dead.
func (a *autopilot) note(c *Cluster) {
	now := c.cfg.Clock.Now()
	gone := map[string]time.Duration{}
	for _, s := range c.Servers() {
		if !s.Voter || s.ID == c.cfg.ID || c.alive(s.ID) {
			continue
		}
		since, known := a.dead[s.ID]
		if !known {
			since = now
		}
		gone[s.ID] = since
	}
	a.dead = gone
}

// step makes one change if one is due.
func (a *autopilot) step(ctx context.Context, c *Cluster) (changed bool, err error) {
	voters := 0
	for _, s := range c.Servers() {
		if s.Voter {
			voters++
		}
	}
	lost := a.lost(c)
	if voters >= c.cfg.TargetVoters && lost == "" {
		return false, nil
	}
	spare, ok := c.spare(ctx)
	if !ok {
		return false, nil
	}
	if voters < c.cfg.TargetVoters {
		return true, c.changing(func() error { return c.promote(ctx, spare) })
	}
	// Gossip alone is not believed: a voter that answers is alive.
	if s, err := c.server(lost); err != nil {
		return false, err
	} else if _, err := c.askServer(ctx, s); err == nil {
		delete(a.dead, lost)
		return false, nil
	}
	// The dead one's vote goes first. The spare gets it in a later step, which is
	// due as long as voters are missing, whoever leads then.
	c.cfg.Log.Warn("a voter has been dead for too long: another server gets its vote", "dead", lost, "heir", spare)
	return false, c.changing(func() error { return c.demote(ctx, lost) })
}

// lost is a voter that has been dead for ReplaceAfter, the longest dead one.
func (a *autopilot) lost(c *Cluster) (id string) {
	now := c.cfg.Clock.Now()
	if c.cfg.ReplaceAfter < 0 {
		return ""
	}
	var longest time.Duration
	for s, since := range a.dead {
		if d := now - since; d >= c.cfg.ReplaceAfter && (id == "" || d > longest || d == longest && s < id) {
			id, longest = s, d
		}
	}
	return id
}

// tell logs a fault once.
func (a *autopilot) tell(c *Cluster, err error) {
	why := ""
	if err != nil {
		why = err.Error()
	}
	if why != a.last && err != nil && wire.CodeOf(err) != wire.Code_CHANGE_UNDER_WAY {
		c.cfg.Log.Warn("the voters cannot be brought to their number yet", "why", err)
	}
	a.last = why
}
