package cluster

import (
	"context"
	"slices"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/wire"
)

// Changes of the servers. Only the leader makes them, one at a time, and each is
// committed before the next begins. None is made that leaves fewer voters alive
// than a majority of the new configuration.

// wouldVote is what a server must be asked before it is given a vote, or leadership.
type wouldVote struct {
	willing bool
	behind  uint64 // entries that its log lacks
	last    uint64 // of its log
}

// caughtUp: a voter that lags holds up every commit that needs it.
func (w wouldVote) caughtUp() bool { return w.behind <= promoteBehindMax }

// askServer asks a server itself. An error says that it does not answer, or that
// another node answers where it was.
func (c *Cluster) askServer(ctx context.Context, s Server) (wouldVote, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timings.Call)
	defer cancel()
	commit := c.raft.CommitIndex() // before the call: what is committed later it need not have
	resp, err := c.find(ctx, s.Addr)
	if err != nil {
		return wouldVote{}, err
	}
	if resp.GetNode() != s.ID {
		return wouldVote{}, wire.Errorf(wire.Code_UNAVAILABLE, "node %s answers where server %s was", resp.GetNode(), s.ID)
	}
	return wouldVote{willing: resp.GetVotes(), behind: commit - min(commit, resp.GetLast()), last: resp.GetLast()}, nil
}

// Promote gives a server that follows a vote, once its log has caught up. It is
// done already if the server votes. Errors: NOT_LEADER, CHANGE_UNDER_WAY,
// UNKNOWN_SERVER, BAD_REQUEST (it was started not to vote), RETRY (it has not
// caught up), UNAVAILABLE (it does not answer), QUORUM_AT_RISK.
func (c *Cluster) Promote(ctx context.Context, id string) error {
	return c.changing(func() error { return c.promote(ctx, id) })
}

func (c *Cluster) promote(ctx context.Context, id string) error {
	s, err := c.server(id)
	if err != nil || s.Voter {
		return err
	}
	w, err := c.askServer(ctx, s)
	switch {
	case err != nil:
		return wire.Errorf(wire.Code_UNAVAILABLE, "server %s does not answer at %s, so it gets no vote: %v", id, s.Addr, err)
	case !w.willing:
		return wire.Errorf(wire.Code_BAD_REQUEST, "server %s was started not to vote: start it again with --role server,worker", id)
	case !w.caughtUp():
		return wire.Errorf(wire.Code_RETRY, "server %s is %d log entries behind: ask again when it has caught up", id, w.behind)
	}
	if err := c.safe(func(v map[string]bool) { v[id] = true }); err != nil {
		return err
	}
	if err := c.change(ctx, func() raft.Future {
		return c.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(s.Addr), 0, c.cfg.Timings.Call)
	}); err != nil {
		return err
	}
	c.cfg.Log.Info("a server votes from now on", "id", id, "addr", s.Addr)
	return nil
}

// Demote takes a server's vote: it follows from then on, ready to vote again. It
// is done already if the server does not vote. Errors: NOT_LEADER,
// CHANGE_UNDER_WAY, UNKNOWN_SERVER, QUORUM_AT_RISK, BAD_REQUEST (it leads).
func (c *Cluster) Demote(ctx context.Context, id string) error {
	return c.changing(func() error { return c.demote(ctx, id) })
}

func (c *Cluster) demote(ctx context.Context, id string) error {
	s, err := c.server(id)
	if err != nil || !s.Voter {
		return err
	}
	if err := c.mayGo(id); err != nil {
		return err
	}
	if err := c.change(ctx, func() raft.Future {
		return c.raft.DemoteVoter(raft.ServerID(id), 0, c.cfg.Timings.Call)
	}); err != nil {
		return err
	}
	c.cfg.Log.Info("a server votes no more", "id", id, "addr", s.Addr)
	return nil
}

// Replace moves a server's vote to another: to with, or to any spare that is
// willing and has caught up. If the server is alive the other votes first, so
// that no moment tolerates less than before; if it is dead its vote goes first,
// because nobody may be missed while it counts. It returns the heir's id.
// Errors: as Promote's and Demote's; NO_TARGET (there is no spare).
func (c *Cluster) Replace(ctx context.Context, id, with string) (heir string, err error) {
	err = c.changing(func() error {
		s, err := c.server(id)
		if err != nil {
			return err
		}
		if !s.Voter {
			return wire.Errorf(wire.Code_BAD_REQUEST, "server %s has no vote to give", id)
		}
		if id == c.cfg.ID {
			return c.leads(id)
		}
		if heir, err = c.heir(ctx, with); err != nil {
			return err
		}
		if !c.alive(id) {
			if err := c.demote(ctx, id); err != nil {
				return err
			}
			return c.promote(ctx, heir)
		}
		if err := c.promote(ctx, heir); err != nil {
			return err
		}
		return c.demote(ctx, id)
	})
	return heir, err
}

// heir is the server that is named, or the first spare.
func (c *Cluster) heir(ctx context.Context, with string) (string, error) {
	if with != "" {
		s, err := c.server(with)
		if err == nil && s.Voter {
			err = wire.Errorf(wire.Code_BAD_REQUEST, "server %s has a vote already", with)
		}
		return s.ID, err
	}
	if spare, ok := c.spare(ctx); ok {
		return spare, nil
	}
	return "", wire.Errorf(wire.Code_NO_TARGET, "no server is there that could vote instead: start one more node, and ask again when it has caught up")
}

// spare finds a server without a vote that is alive, willing and caught up.
func (c *Cluster) spare(ctx context.Context) (id string, ok bool) {
	for _, s := range c.Servers() {
		if s.Voter || !c.alive(s.ID) {
			continue
		}
		if w, err := c.askServer(ctx, s); err == nil && w.willing && w.caughtUp() {
			return s.ID, true
		}
	}
	return "", false
}

// Remove takes a server out of the configuration: one that is dead, or, leaving,
// one that asks for it itself and stops then. It is done already if there is none
// such. Errors: NOT_LEADER, CHANGE_UNDER_WAY, QUORUM_AT_RISK, BAD_REQUEST (it
// leads, or is alive and not leaving).
func (c *Cluster) Remove(ctx context.Context, id string, leaving bool) error {
	return c.changing(func() error {
		s, err := c.server(id)
		if wire.CodeOf(err) == wire.Code_UNKNOWN_SERVER {
			return nil
		}
		if !leaving {
			// It would go on, ask to join when it is started next, and be back.
			if _, err := c.askServer(ctx, s); err == nil {
				return wire.Errorf(wire.Code_BAD_REQUEST, "server %s runs at %s: have it leave (baton leave), or stop it first", id, s.Addr)
			}
		}
		if s.Voter {
			if err := c.mayGo(id); err != nil {
				return err
			}
		}
		if err := c.change(ctx, func() raft.Future {
			return c.raft.RemoveServer(raft.ServerID(id), 0, c.cfg.Timings.Call)
		}); err != nil {
			return err
		}
		c.cfg.Log.Info("a server was removed", "id", id, "addr", s.Addr, "leaving", leaving)
		return nil
	})
}

// SetLeft makes this node's data directory unusable: whoever starts on it is told
// that the node has left. It is called once the node is out of the configuration.
func (c *Cluster) SetLeft() error { return c.record.setLeft() }

// changing runs fn while nobody else changes the servers, on a leader.
func (c *Cluster) changing(fn func() error) error {
	if !c.joining.TryLock() {
		return wire.Errorf(wire.Code_CHANGE_UNDER_WAY, "the servers are being changed just now, which goes one at a time: ask again in a moment")
	}
	defer c.joining.Unlock()
	if c.current() == nil {
		_, leader := c.Leader()
		return errNotLeader(leader)
	}
	return fn()
}

func (c *Cluster) server(id string) (Server, error) {
	all := c.Servers()
	if i := slices.IndexFunc(all, func(s Server) bool { return s.ID == id }); i >= 0 {
		return all[i], nil
	}
	return Server{}, wire.Errorf(wire.Code_UNKNOWN_SERVER, "there is no server %s: `baton raft peers` lists them", id)
}

// mayGo checks that a voter other than this leader may lose its vote.
func (c *Cluster) mayGo(id string) error {
	if id == c.cfg.ID {
		return c.leads(id)
	}
	return c.safe(func(v map[string]bool) { delete(v, id) })
}

func (c *Cluster) leads(id string) error {
	return wire.Errorf(wire.Code_BAD_REQUEST, "server %s leads: hand leadership on first (baton raft transfer-leader)", id)
}

// safe checks that after a change of the voters, who are there by id, as many are
// alive as a majority takes. One that gossip does not know is not counted on.
func (c *Cluster) safe(change func(voters map[string]bool)) error {
	voters := map[string]bool{}
	for _, s := range c.Servers() {
		if s.Voter {
			voters[s.ID] = true
		}
	}
	change(voters)
	alive, quorum := 0, len(voters)/2+1
	for id := range voters {
		if id == c.cfg.ID || c.alive(id) {
			alive++
		}
	}
	if alive < quorum {
		return wire.Errorf(wire.Code_QUORUM_AT_RISK, "of the %d voters that would be left, %d are alive and %d are needed: start what is down, or add a server, first",
			len(voters), alive, quorum)
	}
	return nil
}

// alive is gossip's opinion, where there is gossip.
func (c *Cluster) alive(id string) bool {
	if c.cfg.Alive == nil {
		return true
	}
	alive, known := c.cfg.Alive(id)
	return known && alive
}
