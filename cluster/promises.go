package cluster

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/lease"
	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// The calls by which leases are renewed and fences agreed.
const (
	methodRenew   = "lease.renew"
	methodPromise = "lease.promise"
)

// withdrawnKey is where the withdrawals stand in the stable store: beside the
// term and the vote, which they resemble. Both are words that a server gave and
// must stand by after a restart; both are synced before they are spoken; both are
// few and small.
var withdrawnKey = []byte("lease-withdrawn")

// promises is this server's side of leases: lease.Server behind its lock, and
// its withdrawals on the disk.
type promises struct {
	mu     sync.Mutex // one for grants and withdrawals; the clock is read inside
	server *lease.Server

	// writing holds a token while the disk is written, once at a time; taken before
	// mu. A disk may hang: who waits must not do so on a mutex.
	writing chan struct{}
	stable  raft.StableStore
	synced  []uint64 // what the disk holds, rising
}

// openPromises reads back what this server withdrew.
func (c *Cluster) openPromises(stable raft.StableStore) error {
	data, err := stable.Get(withdrawnKey)
	if err != nil && err.Error() != "not found" { // raft's own convention; it exports no error for it
		return damagedLog(c.cfg.Dir, err)
	}
	if len(data)%8 != 0 {
		return damagedLog(c.cfg.Dir, "the withdrawals of leases are cut off")
	}
	var withdrawn []uint64
	for ; len(data) > 0; data = data[8:] {
		withdrawn = append(withdrawn, binary.BigEndian.Uint64(data))
	}
	c.promises.stable, c.promises.synced = stable, withdrawn
	c.promises.writing = make(chan struct{}, 1)
	// A server without any state has a new id, and has promised nothing.
	c.promises.server = lease.NewServer(seam.Boot(c.cfg.Clock), withdrawn, !c.hadState)
	return nil
}

// Renew answers a renewal of a worker's lease, as one server among others.
func (c *Cluster) Renew(worker string, r lease.Renewal) lease.Grant {
	p := &c.promises
	p.mu.Lock()
	now := seam.Boot(c.cfg.Clock)
	facts := c.facts(worker, r.Incarnation)
	code := p.server.Grant(now, r, facts)
	p.mu.Unlock()
	if code == wire.Code_WORKER_FENCED && facts.CaughtUp {
		c.forgetPast()
	}
	return lease.Grant{Server: c.cfg.ID, Nonce: r.Nonce, T: r.T, Code: code, Leads: c.inTouch()}
}

// facts are read after the clock, under the lock of the promises.
func (c *Cluster) facts(worker string, incarnation uint64) (f lease.Facts) {
	var applied uint64
	var in VoterConfig
	c.fsm.View(func(s *store.Store) {
		applied = s.Index()
		in.Index, in.Voters = s.Voters()
		row := s.Worker(worker)
		fenced := row.GetState() == wire.WorkerState_WORKER_STATE_FENCED
		f.Current = row.GetIncarnation() == incarnation && !fenced
		f.Past = row.GetIncarnation() > incarnation || row.GetIncarnation() == incarnation && fenced
	})
	f.Applied, f.Logged = in.Index, c.log.voters.latest(in, applied).Index
	f.CaughtUp = applied >= c.log.former.Load()
	return f
}

// inTouch reports whether this node leads and has heard a majority of late: raft
// steps down without one within its own lease, which is shorter than any T.
func (c *Cluster) inTouch() bool { return c.current() != nil && c.raft.State() == raft.Leader }

// forgetPast drops what concerns incarnations that are over.
func (c *Cluster) forgetPast() {
	var epochs uint64
	current := map[uint64]bool{}
	c.fsm.View(func(s *store.Store) {
		epochs = s.Cluster().GetEpochs()
		for _, w := range s.Workers() {
			if w.GetState() != wire.WorkerState_WORKER_STATE_FENCED {
				current[w.GetIncarnation()] = true
			}
		}
	})
	c.promises.mu.Lock()
	defer c.promises.mu.Unlock()
	c.promises.server.Forget(func(n uint64) bool { return n <= epochs && !current[n] })
}

// Promise tells how long this server's promise to an incarnation still runs, or
// withdraws it for ever if it has run out. A withdrawal is on the disk when this
// returns it.
func (c *Cluster) Promise(incarnation uint64, withdraw bool) (lease.Promise, error) {
	p := &c.promises
	p.mu.Lock()
	now := seam.Boot(c.cfg.Clock)
	got := p.server.Promise(now, incarnation)
	if withdraw {
		got = p.server.Withdraw(now, incarnation)
	}
	p.mu.Unlock()
	if !got.Withdrawn {
		return got, nil
	}
	// Not on this goroutine: the disk may hang, and this node must be able to stop.
	return got, c.await(c.ctx, func() error { return p.sync(incarnation) })
}

// sync returns once the disk holds the withdrawal of incarnation.
func (p *promises) sync(incarnation uint64) error {
	p.writing <- struct{}{}
	defer func() { <-p.writing }()
	if slices.Contains(p.synced, incarnation) {
		return nil
	}
	p.mu.Lock()
	list := p.server.Withdrawals()
	p.mu.Unlock()
	var data []byte
	for _, n := range list {
		data = binary.BigEndian.AppendUint64(data, n)
	}
	if err := p.stable.Set(withdrawnKey, data); err != nil {
		return wire.Errorf(wire.Code_INTERNAL, "a withdrawal cannot be written: %v", err)
	}
	p.synced = list
	return nil
}

// OwnPromise is what this server would say of an incarnation, for this process
// alone: a withdrawal may not be on the disk yet. It never waits for the disk.
func (c *Cluster) OwnPromise(incarnation uint64) lease.Promise {
	c.promises.mu.Lock()
	defer c.promises.mu.Unlock()
	return c.promises.server.Promise(seam.Boot(c.cfg.Clock), incarnation)
}

// MayFence tells the voter configuration in which a leader is to count
// withdrawals, and whether L4 lets it append a fence now.
func (c *Cluster) MayFence() (in VoterConfig, may bool) {
	v := c.VoterConfigs()
	return v.Applied, v.Settled() && seam.Boot(c.cfg.Clock) >= v.AppliedAt+lease.VoterWait
}

func (c *Cluster) serveRenew(_ context.Context, _ rpcnet.Caller, req *wire.RenewReq) (*wire.RenewResp, error) {
	g := c.Renew(req.GetWorker(), lease.Renewal{
		Server: c.cfg.ID, Incarnation: req.GetIncarnation(), Nonce: req.GetNonce(), T: micros(req.GetLeaseUs()), Config: req.GetVoterConfig(),
	})
	return &wire.RenewResp{Nonce: g.Nonce, Code: g.Code, LeaseUs: req.GetLeaseUs(), Leads: g.Leads}, nil
}

func (c *Cluster) servePromise(_ context.Context, _ rpcnet.Caller, req *wire.PromiseReq) (*wire.PromiseResp, error) {
	p, err := c.Promise(req.GetIncarnation(), req.GetWithdraw())
	if err != nil {
		return nil, err
	}
	left := uint64((p.Left + time.Microsecond - 1) / time.Microsecond)
	return &wire.PromiseResp{LeftUs: left, Withdrawn: p.Withdrawn, Quiet: p.Quiet}, nil
}

// AskRenew brings a renewal to its server: this node's own answers like any
// other.
func (c *Cluster) AskRenew(ctx context.Context, worker string, r lease.Renewal) (lease.Grant, error) {
	if r.Server == c.cfg.ID {
		return c.Renew(worker, r), nil
	}
	resp := &wire.RenewResp{}
	err := c.invoke(ctx, r.Server, methodRenew, &wire.RenewReq{
		Worker: worker, Incarnation: r.Incarnation, Nonce: r.Nonce, LeaseUs: uint64(r.T / time.Microsecond), VoterConfig: r.Config,
	}, resp)
	return lease.Grant{Server: r.Server, Nonce: resp.GetNonce(), T: micros(resp.GetLeaseUs()), Code: resp.GetCode(), Leads: resp.GetLeads()}, err
}

// AskPromise brings a poll's question to its server.
func (c *Cluster) AskPromise(ctx context.Context, a lease.Ask) (lease.Promise, error) {
	if a.Server == c.cfg.ID {
		return c.Promise(a.Incarnation, a.Withdraw)
	}
	resp := &wire.PromiseResp{}
	err := c.invoke(ctx, a.Server, methodPromise, &wire.PromiseReq{Incarnation: a.Incarnation, Withdraw: a.Withdraw}, resp)
	return lease.Promise{Left: micros(resp.GetLeftUs()), Withdrawn: resp.GetWithdrawn(), Quiet: resp.GetQuiet()}, err
}

// invoke calls a server by its id.
func (c *Cluster) invoke(ctx context.Context, server, method string, req, resp proto.Message) error {
	for _, s := range c.Servers() {
		if s.ID == server {
			return rpcnet.Invoke(ctx, c.cfg.Peers, s.Addr, method, req, resp)
		}
	}
	return wire.Errorf(wire.Code_UNAVAILABLE, "server %s is not in this node's configuration", server)
}

// micros is us as a duration; one that none has is the longest.
func micros(us uint64) time.Duration {
	return time.Duration(min(us, uint64(maxTime/time.Microsecond))) * time.Microsecond
}
