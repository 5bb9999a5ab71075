package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/wire"
)

// Raft's transfer of leadership has a trap (v1.8.0, Raft.leadershipTransfer). It
// refuses writes until the server that is offered leadership has the whole log. An
// offer to one that has not taken notice of the offer before waits for that; for
// ever if this leadership ends meanwhile. From then on raft refuses every write
// whenever this node leads. So a server is offered leadership that answers and has
// the log, and offered it again only when it has got what it lacked the last time.
// A node that is trapped all the same stops (untrapped).

// TransferLeadership hands leadership to a voter that answers and has the log.
// NOT_LEADER if this node does not lead, NO_TARGET if there is nobody to lead,
// UNAVAILABLE if it did not come about.
func (c *Cluster) TransferLeadership(ctx context.Context) error {
	c.lead.mu.Lock()
	r := c.lead.now
	c.lead.mu.Unlock()
	if r == nil || c.raft.State() != raft.Leader {
		_, addr := c.Leader()
		return errNotLeader(addr)
	}
	heir, err := c.successor(ctx, r)
	if err != nil {
		return err
	}
	err = c.await(ctx, func() error {
		err := c.raft.LeadershipTransferToServer(raft.ServerID(heir.ID), raft.ServerAddress(heir.Addr)).Error()
		if err != nil {
			r.noteOffered(heir.ID, c.raft.LastIndex())
		}
		return err
	})
	if err != nil && !errors.Is(err, ctx.Err()) {
		return wire.Errorf(wire.Code_UNAVAILABLE, "leadership was not handed on: %v", err)
	}
	return err
}

// successor is the first voter to answer that may be offered leadership.
func (c *Cluster) successor(ctx context.Context, r *reign) (Server, error) {
	type answer struct {
		s   Server
		err error // why it may not
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)() // Close waits for those who ask
	// Until then raft hears of nobody that has the newest entries (parallel.go).
	if err := c.log.settle(ctx.Done()); err != nil {
		return Server{}, wire.Errorf(wire.Code_UNAVAILABLE, "leadership was not handed on: %v", err)
	}
	answers, asked := make(chan answer), 0
	for _, s := range c.Servers() {
		if !s.Voter || s.ID == c.cfg.ID {
			continue
		}
		ask := func() {
			w, err := c.askServer(ctx, s)
			switch {
			case err != nil:
			case !w.caughtUp() || w.last < r.lastOffered(s.ID):
				err = errors.New("it has not the whole log yet")
			case c.trans.isAway(raft.ServerID(s.ID), c.raft.CurrentTerm()) != nil:
				err = errAway // raft would wait for what is held
			}
			select {
			case answers <- answer{s, err}:
			case <-ctx.Done():
			}
		}
		if !c.spawn(ask) {
			return Server{}, errClosing()
		}
		asked++
	}
	if asked == 0 {
		return Server{}, wire.Errorf(wire.Code_NO_TARGET, "there is no other voter to lead")
	}
	var whys []string
	for range asked {
		select {
		case a := <-answers:
			if a.err == nil {
				return a.s, nil
			}
			whys = append(whys, fmt.Sprintf("server %s: %v", a.s.ID, a.err))
		case <-ctx.Done():
			return Server{}, ctx.Err()
		}
	}
	return Server{}, wire.Errorf(wire.Code_UNAVAILABLE, "leadership was not handed on: %s", strings.Join(whys, "; "))
}

// noteOffered notes that a server did not take the leadership it was offered, when
// the log ended at last.
func (r *reign) noteOffered(id string, last uint64) {
	r.offers.Lock()
	defer r.offers.Unlock()
	if r.offered == nil {
		r.offered = map[string]uint64{}
	}
	r.offered[id] = last
}

// lastOffered is where the log ended then, 0 if the server has not been asked.
func (r *reign) lastOffered(id string) uint64 {
	r.offers.Lock()
	defer r.offers.Unlock()
	return r.offered[id]
}

// untrapped looks at what came of the first entry of a leadership. It ends a node
// whose raft goes on handing on a former leadership for longer than that can take.
func (c *Cluster) untrapped(r *reign, err error) error {
	if !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		return err
	}
	now := c.cfg.Clock.Now()
	if r.trapped == 0 {
		r.trapped = now
	}
	if limit := c.cfg.Timings.RPC + c.cfg.Timings.Election; now-r.trapped > limit {
		c.fail(wire.Errorf(wire.Code_INTERNAL, "raft has refused writes for %v, as if leadership were being handed on: this node stops; start it again", limit))
	}
	return err
}
