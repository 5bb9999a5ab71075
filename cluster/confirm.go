package cluster

import (
	"context"

	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// The calls that answer a read marker without an entry.
const (
	methodMarker = "marker" // asks the leader
	methodTerm   = "term"   // asks a voter
)

// confirm answers a read marker: whether an incarnation is current, in a state
// that holds everything that anybody was told of before the marker came. That
// takes no entry if the leader learns, after the marker came, that nobody was
// elected since, and its state machine has all that it has committed. Where it
// does not, the marker goes through the log, which is right in any case.
func (c *Cluster) confirm(cmds []*wire.Command, done func([]*wire.Result, error)) {
	runs := c.spawn(func() {
		if res := c.confirmed(cmds[0].GetReadMarker()); res != nil {
			done([]*wire.Result{res}, nil)
			return
		}
		c.prop.propose(cmds, done, false)
	})
	if !runs {
		c.prop.propose(cmds, done, false) // which tells that this node is closing
	}
}

// confirmed is nil if only the log can tell. A change of leader ends its calls.
func (c *Cluster) confirmed(m *wire.ReadMarker) *wire.Result {
	to := c.prop.to()
	ctx, cancel := context.WithTimeout(to.ctx, c.cfg.Timings.Call)
	defer cancel()
	if to.local {
		return c.judge(ctx, c.current(), m, "", 0)
	}
	if to.addr == "" {
		return nil
	}
	resp := &wire.MarkerResp{}
	req := &wire.MarkerReq{Marker: m, Term: c.raft.CurrentTerm()}
	if err := rpcnet.Invoke(ctx, c.cfg.Peers, to.addr, methodMarker, req, resp); err != nil {
		return nil
	}
	return resp.GetResult()
}

func (c *Cluster) serveMarker(ctx context.Context, from rpcnet.Caller, req *wire.MarkerReq) (*wire.MarkerResp, error) {
	return &wire.MarkerResp{Result: c.judge(ctx, c.current(), req.GetMarker(), from.Node, req.GetTerm())}, nil
}

func (c *Cluster) serveTerm(context.Context, rpcnet.Caller, *wire.TermReq) (*wire.TermResp, error) {
	return &wire.TermResp{Node: c.cfg.ID, Term: c.raft.CurrentTerm()}, nil
}

// judge answers for the leader of reign r, nil if it does not lead or cannot
// tell. The server asker was in term theirs after the marker had come.
//
// All that was acknowledged before the marker came is at or below committed: by
// this reign, because a leader commits before it answers; by earlier ones,
// because a reign begins with their entries applied; by later ones nothing, as
// none had begun.
func (c *Cluster) judge(ctx context.Context, r *reign, m *wire.ReadMarker, asker string, theirs uint64) (res *wire.Result) {
	if r == nil {
		return nil
	}
	committed := c.raft.CommitIndex()
	if !c.undisputed(ctx, r.term, asker, theirs) {
		return nil
	}
	c.fsm.View(func(s *store.Store) {
		if s.Index() >= committed {
			res = s.Confirm(m)
		}
	})
	return res
}

// undisputed reports whether a majority of the voters is still in term. Then
// nobody had been elected in a later one before they were asked: a majority
// would have been in that. (Raft's own VerifyLeader may go by an answer to what
// was sent before.) Voters change one at a time, so this holds whichever of two
// sets the other would have been elected by.
func (c *Cluster) undisputed(ctx context.Context, term uint64, asker string, theirs uint64) bool {
	if c.raft.CurrentTerm() != term {
		return false
	}
	voters := c.VoterConfigs().Logged.Voters
	var agree int
	var ask []string
	for _, id := range voters {
		switch {
		case id == c.cfg.ID || id == asker && theirs == term:
			agree++
		default:
			ask = append(ask, id)
		}
	}
	if agree > len(voters)/2 {
		return true
	}
	answers := make(chan bool, len(ask))
	for _, id := range ask {
		runs := c.spawn(func() { answers <- c.isInTerm(id, term) })
		if !runs {
			return false
		}
	}
	for range ask {
		select {
		case yes := <-answers:
			if yes {
				agree++
			}
		case <-ctx.Done():
			return false
		}
		if agree > len(voters)/2 {
			return true
		}
	}
	return false
}

// isInTerm asks a server. Its answer may not be waited for.
func (c *Cluster) isInTerm(server string, term uint64) bool {
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.Timings.Call)
	defer cancel()
	resp := &wire.TermResp{}
	err := c.invoke(ctx, server, methodTerm, &wire.TermReq{}, resp)
	return err == nil && resp.GetNode() == server && resp.GetTerm() == term
}
