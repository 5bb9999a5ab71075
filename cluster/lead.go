package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/fsm"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// reign is one leadership of this node, from raft's notice that it leads to its
// notice that it does not.
type reign struct {
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // all of it has ended
	wg     sync.WaitGroup

	// Log time (S4): the FSM's at the start, plus what has passed since by this
	// node's monotonic clock. Never a date: a leader whose clock is a day off
	// expires nothing, and without a leader time stands still.
	// Invariant: set before ready, constant from then on.
	baseUS uint64
	start  time.Duration
	// term is raft's. Invariant: as with log time.
	term  uint64
	ready bool // guarded by leadership.mu

	trapped time.Duration // since when raft has refused to begin it; 0: it has not
	offers  sync.Mutex
	offered map[string]uint64 // guarded by offers; see noteOffered
}

// leadership follows raft's notices. It must read every one, and at once:
// raft's main loop waits for its reader.
type leadership struct {
	mu   sync.Mutex
	now  *reign        // nil: not leading
	last chan struct{} // closed when the reign before has ended
	fns  []func(context.Context)
}

// watchLeadership reads raft's notices until ctx ends.
func (c *Cluster) watchLeadership(ctx context.Context, notices <-chan bool) {
	for {
		select {
		case leads := <-notices:
			c.endReign()
			if leads {
				c.beginReign(ctx)
			}
			c.reroute()
		case <-ctx.Done():
			c.endReign()
			return
		}
	}
}

func (c *Cluster) beginReign(ctx context.Context) {
	r := &reign{done: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(ctx)
	c.lead.mu.Lock()
	before := c.lead.last
	c.lead.now, c.lead.last = r, r.done
	c.lead.mu.Unlock()
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		defer close(r.done)
		defer r.wg.Wait()
		if before != nil {
			<-before // two reigns never overlap in what they run
		}
		c.reignOver(r)
	}()
}

func (c *Cluster) endReign() {
	c.lead.mu.Lock()
	r := c.lead.now
	c.lead.now = nil
	c.lead.mu.Unlock()
	if r != nil {
		r.cancel()
	}
}

// reignOver makes a new leader fit to propose: every earlier entry is applied
// here, log time is set, the cluster has a name. Then it runs what runs while
// this node leads.
func (c *Cluster) reignOver(r *reign) {
	err := c.untilDone(r.ctx, "become leader", func() error {
		r.term = c.raft.CurrentTerm()
		if err := c.raft.Barrier(0).Error(); err != nil {
			return c.untrapped(r, err)
		}
		if c.raft.CurrentTerm() != r.term {
			return errNotLeader("") // the barrier may be of another leadership
		}
		c.fsm.View(func(s *store.Store) { r.baseUS = s.TimeUS() })
		r.start = c.cfg.Clock.Now()
		return c.nameCluster(r)
	})
	if err != nil {
		return
	}
	c.lead.mu.Lock()
	if c.lead.now != r {
		c.lead.mu.Unlock()
		return
	}
	r.ready = true
	for _, fn := range c.lead.fns {
		r.run(fn)
	}
	c.lead.mu.Unlock()
	c.cfg.Log.Info("leading", "term", c.raft.CurrentTerm())
	c.reroute()
	<-r.ctx.Done()
}

func (r *reign) run(fn func(context.Context)) {
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		fn(r.ctx)
	}()
}

// WhileLeader runs fn each time this node leads, and at once if it leads now.
// fn's ctx ends when it no longer does; fn must then return. By the time it
// starts, every entry of earlier leaders is applied here and log time runs.
// (Config.Lead is the same, without a leadership that it could miss.)
func (c *Cluster) WhileLeader(fn func(ctx context.Context)) {
	c.lead.mu.Lock()
	defer c.lead.mu.Unlock()
	c.lead.fns = append(c.lead.fns, fn)
	if r := c.lead.now; r != nil && r.ready && r.ctx.Err() == nil {
		r.run(fn)
	}
}

// nameCluster commits InitCluster if the log has none.
func (c *Cluster) nameCluster(r *reign) error {
	var row *wire.ClusterRow
	c.fsm.View(func(s *store.Store) { row = s.Cluster() })
	if len(row.GetClusterId()) > 0 {
		return nil
	}
	id := make([]byte, wire.IDBytes)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	cmds := []*wire.Command{{Kind: &wire.Command_InitCluster{InitCluster: &wire.InitCluster{
		ClusterId: id, ByteBudget: c.cfg.ByteBudget, FeatureLevel: wire.FeatureLevel,
		LeaseUs: uint64(c.cfg.Lease / time.Microsecond),
	}}}}
	if c.cfg.Birth != nil {
		more, err := c.cfg.Birth(id)
		if err != nil {
			return err
		}
		cmds = append(cmds, more...)
	}
	results, err := c.commit(r, cmds)
	if err != nil {
		return err
	}
	if code := results[0].GetCode(); code != wire.Code_OK && code != wire.Code_ALREADY_INITIALISED {
		return wire.Errorf(code, "the cluster could not be named")
	}
	return nil
}

// stampUS is log time now, by this reign.
func (r *reign) stampUS(clock seam.Clock) uint64 {
	return r.baseUS + uint64(max(clock.Now()-r.start, 0).Microseconds())
}

// current returns the reign if it is ready, else nil.
func (c *Cluster) current() *reign {
	c.lead.mu.Lock()
	defer c.lead.mu.Unlock()
	if r := c.lead.now; r != nil && r.ready {
		return r
	}
	return nil
}

// commit puts commands into the log as one entry and returns what applying them
// here answered. Any error but BAD_REQUEST and FRAME_TOO_LARGE leaves the
// outcome open: the entry may commit later.
func (c *Cluster) commit(r *reign, cmds []*wire.Command) ([]*wire.Result, error) {
	data, err := fsm.EncodeEntry(&wire.Entry{
		TimeUs:   r.stampUS(c.cfg.Clock),
		WallUs:   c.cfg.Clock.Wall().UnixMicro(),
		Commands: cmds,
	})
	if err != nil {
		return nil, err
	}
	future := c.raft.Apply(data, 0)
	if err := future.Error(); err != nil {
		return nil, err
	}
	// Raft puts what the FSM returned, errors too, into the response.
	switch resp := future.Response().(type) {
	case []*wire.Result:
		return resp, nil
	case error:
		return nil, resp
	}
	return nil, wire.Errorf(wire.Code_INTERNAL, "the state machine returned no results")
}

// untilDone repeats fn, with a growing pause, until it succeeds or ctx ends.
func (c *Cluster) untilDone(ctx context.Context, what string, fn func() error) error {
	pause := retryMin
	for {
		err := ctx.Err()
		if err != nil {
			return err
		}
		if err = fn(); err == nil {
			return nil
		}
		if errors.Is(err, raft.ErrRaftShutdown) {
			return err
		}
		c.cfg.Log.Debug("trying again", "what", what, "err", err)
		if err := seam.Sleep(ctx, c.cfg.Clock, pause); err != nil {
			return err
		}
		pause = min(2*pause, retryMax)
	}
}
