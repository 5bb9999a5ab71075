package baton

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

const (
	// claimEvery is how often a start that cannot prove its predecessor's end asks
	// for its fence.
	claimEvery = 200 * time.Millisecond
	// seekEvery is how often a copied directory's node looks whether the original
	// still runs.
	seekEvery = 200 * time.Millisecond
	// seekTime bounds one such question: a connection, with a lost packet or two, and a
	// call, at the longest distances. Who does not answer knows of no twin.
	seekTime = 5 * time.Second
	// lonelyAfter is how long a node hears no leader before it looks for a twin:
	// well above an election.
	lonelyAfter = 3 * time.Second
)

// seekOriginal keeps two copies of one data directory from speaking with one
// voice: in raft, a server that votes twice. If the directory is not where it was
// last used, it asks the others, before anything here has spoken to them, whether
// they hold this node for alive, and whoever they name whether it is this node.
// If it is, this one stops; if gossip alone says so, it waits until that is over.
func (n *Node) seekOriginal(ctx context.Context) error {
	copied, err := n.lock.Copied()
	if err != nil {
		return err
	}
	if copied {
		n.cfg.Log.Warn("the data directory was copied or moved since it was last used; looking for its original", "data", n.cfg.Data)
		if err := n.until(ctx, n.originalGone); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err // and nothing is settled: who was asked may have had no time to answer
		}
	}
	return n.lock.Settle()
}

// originalGone returns once none of the nodes to join that answer holds this node
// for alive.
func (n *Node) originalGone(ctx context.Context) error {
	for {
		alive, err := n.seekTwin(ctx, n.cfg.Join)
		if err != nil || !alive {
			return err
		}
		if err := seam.Sleep(ctx, n.cfg.Clock, seekEvery); err != nil {
			return wire.Errorf(wire.Code_PREDECESSOR_ALIVE,
				"the data directory %s is a copy, and gossip still holds node %s for alive: stop the original, and start this one again", n.cfg.Data, n.cfg.Name)
		}
	}
}

// seekTwin asks the nodes at addrs once where this node is. It reports whether
// any believes it alive at another address; its error is the twin that was found.
func (n *Node) seekTwin(ctx context.Context, addrs []string) (alive bool, err error) {
	for _, addr := range addrs {
		if addr == n.mgmtAddr {
			continue
		}
		resp, err := n.where(ctx, addr, n.id, seekTime)
		if err == nil && !resp.GetSelf() && resp.GetAlive() && resp.GetAddr() != n.mgmtAddr {
			alive, addr = true, resp.GetAddr()
			resp, err = n.where(ctx, addr, n.id, seekTime)
		}
		if err == nil && resp.GetSelf() {
			return true, n.twin(resp, addr)
		}
	}
	return alive, nil
}

// watchTwin looks for a twin whenever this node has heard no leader for a while.
// One that was paused while a copy took its place, and its address in raft's
// configuration, hears of nothing by itself.
func (n *Node) watchTwin() {
	var lonely time.Duration // since when, on the clock; 0: not
	for seam.Sleep(n.ctx, n.cfg.Clock, lonelyAfter/3) == nil {
		st, now := n.cluster.Stats(), n.cfg.Clock.Now()
		if st.State == "leader" || st.State == "follower" && st.LastContact >= 0 && st.LastContact < lonelyAfter {
			lonely = 0
			continue
		}
		if lonely == 0 {
			lonely = now
		}
		if now-lonely < lonelyAfter {
			continue
		}
		addrs := append([]string(nil), n.cfg.Join...)
		for _, s := range n.cluster.Servers() {
			addrs = append(addrs, s.Addr)
		}
		if _, err := n.seekTwin(n.ctx, addrs); err != nil {
			n.fail(err)
			return
		}
		lonely = now // not more often than that
	}
}

// twin is the fault of a second process of one node.
func (n *Node) twin(there *wire.WhereResp, addr string) error {
	return wire.Errorf(wire.Code_PREDECESSOR_ALIVE,
		"node %s runs at %s already, as incarnation %d: the data directory %s is a copy; stop one of the two, and wipe its directory: it then joins as a new node",
		n.cfg.Name, addr, there.GetIncarnation(), n.cfg.Data)
}

// where asks the node at addr of node id.
func (n *Node) where(ctx context.Context, addr, id string, within time.Duration) (*wire.WhereResp, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	resp := &wire.WhereResp{}
	return resp, rpcnet.Invoke(ctx, n.peers, addr, callWhere, &wire.WhereReq{Node: id}, resp)
}

func (n *Node) serveWhere(_ context.Context, req *wire.WhereReq) (*wire.WhereResp, error) {
	if req.GetNode() == n.id {
		return &wire.WhereResp{Self: true, Incarnation: n.worker.Incarnation(), Addr: n.mgmtAddr}, nil
	}
	resp := &wire.WhereResp{}
	for _, m := range n.members.List() {
		if m.ID == req.GetNode() {
			resp.Addr = m.Addr
		}
	}
	resp.Alive, resp.Known = n.members.Alive(req.GetNode())
	return resp, nil
}

// register gets the worker its first incarnation, and from then on a new one
// whenever it was fenced.
func (n *Node) register(ctx context.Context) error {
	var last uint64
	n.cluster.FSM().View(func(st *store.Store) { last = st.Worker(n.id).GetIncarnation() })
	// The local state machine may lag behind: whatever incarnation turns out to be
	// current is the one to follow.
	err := n.until(ctx, func(ctx context.Context) (err error) {
		last, err = n.follow(ctx, last, true)
		return err
	})
	if err != nil {
		return err
	}
	n.spawn(func() { n.renewer.run(n.ctx) })
	n.serves.Store(true)
	if n.ctx.Err() != nil { // it failed before it could be told that Open is over
		return cmp.Or(n.Err(), error(wire.Errorf(wire.Code_SHUTTING_DOWN, "the node stops")))
	}
	n.spawn(n.watchTwin)
	n.spawn(func() {
		for {
			select {
			case <-n.fenced:
				if n.worker.Incarnation() != 0 {
					continue // it was told twice
				}
			case <-n.ctx.Done():
				return
			}
			for n.cluster.Muted() { // it could register, and then not serve
				if seam.Sleep(n.ctx, n.cfg.Clock, claimEvery) != nil {
					return
				}
			}
			var err error
			if last, err = n.follow(n.ctx, last, false); err != nil && n.ctx.Err() == nil {
				n.fail(err)
			}
		}
	})
	return nil
}

// follow registers a new incarnation after predecessor. That one is known to have
// ended if it is fenced, or if it held the lock that this process holds (the
// cluster's state machine compares their places); else its fence is asked for,
// and waited for.
//
// Unless any incarnation will do, another one than predecessor is another process
// that has registered as this worker: the two must not fence each other in turns,
// so this one gives up.
func (n *Node) follow(ctx context.Context, predecessor uint64, any bool) (uint64, error) {
	waiting := false
	for {
		res, err := n.proposeRegister(ctx, predecessor)
		if err != nil {
			return 0, err
		}
		switch code := res.GetCode(); {
		case code == wire.Code_OK:
			return res.GetEpoch(), nil
		case code == wire.Code_PREDECESSOR_MISMATCH && any:
			predecessor = res.GetCurrent()
		case code == wire.Code_PREDECESSOR_ALIVE:
			if !waiting {
				n.cfg.Log.Warn("nothing proves that the former incarnation has ended: waiting until it is fenced", "incarnation", predecessor)
				waiting = true
			}
			if err := n.claim(ctx, predecessor); err != nil {
				return 0, err
			}
			if err := seam.Sleep(ctx, n.cfg.Clock, claimEvery); err != nil {
				return 0, err
			}
		default:
			return 0, wire.Errorf(code, "another process runs as node %s: was the data directory copied? stop one of them, and wipe its data", n.cfg.Name)
		}
	}
}

// claim asks the leader to fence the former incarnation. A leader that cannot be
// reached is no fault: it is asked again. PREDECESSOR_ALIVE: the former
// incarnation answers, so this process is a second one.
func (n *Node) claim(ctx context.Context, predecessor uint64) error {
	req := &wire.SucceedReq{Worker: n.id, Incarnation: predecessor, Addr: n.mgmtAddr}
	if n.cluster.IsLeader() {
		_, err := n.serveSucceed(ctx, req)
		return err
	}
	_, addr := n.cluster.Leader()
	if addr == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*gatherTime)
	defer cancel()
	err := rpcnet.Invoke(ctx, n.peers, addr, callSucceed, req, &wire.SucceedResp{})
	if wire.CodeOf(err) == wire.Code_PREDECESSOR_ALIVE {
		return err
	}
	return nil
}

// serveSucceed has the director fence a worker's incarnation for its successor,
// unless it answers at its address.
func (n *Node) serveSucceed(ctx context.Context, req *wire.SucceedReq) (*wire.SucceedResp, error) {
	if !n.cluster.IsLeader() {
		_, addr := n.cluster.Leader()
		return nil, &wire.Error{Code: wire.Code_NOT_LEADER, Message: "ask the leader", Leader: addr}
	}
	var row *wire.WorkerRow
	n.cluster.FSM().View(func(st *store.Store) { row = st.Worker(req.GetWorker()) })
	if row.GetIncarnation() != req.GetIncarnation() || row.GetState() == wire.WorkerState_WORKER_STATE_FENCED {
		return &wire.SucceedResp{}, nil // the log will say so
	}
	if at := mgmtAddr(row); at != req.GetAddr() && row.GetId() != n.id {
		there, err := n.where(ctx, at, row.GetId(), gatherTime)
		if err == nil && there.GetSelf() && there.GetIncarnation() == req.GetIncarnation() {
			return nil, wire.Errorf(wire.Code_PREDECESSOR_ALIVE,
				"node %s runs at %s already, as incarnation %d: was its data directory copied? stop one of the two, and wipe its directory: it then joins as a new node",
				row.GetName(), at, req.GetIncarnation())
		}
	}
	n.director.Suspect(row.GetId(), req.GetIncarnation())
	return &wire.SucceedResp{}, nil
}

// proposeRegister is idempotent by its nonce and compare-and-set on the
// predecessor. Its result is OK, PREDECESSOR_MISMATCH or PREDECESSOR_ALIVE.
func (n *Node) proposeRegister(ctx context.Context, predecessor uint64) (*wire.Result, error) {
	nonce := make([]byte, wire.IDBytes)
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	place, err := n.lock.Place()
	if err != nil {
		return nil, err
	}
	res, err := n.insist(ctx, &wire.Command{Kind: &wire.Command_RegisterWorker{RegisterWorker: &wire.RegisterWorker{
		Id: n.id, Name: n.cfg.Name, Nonce: nonce, Predecessor: predecessor, Endpoint: n.endpoint(),
		Zone: n.cfg.Zone, Capacity: n.cfg.Capacity, Version: n.cfg.Version, Place: place,
	}}})
	if err != nil {
		return nil, fmt.Errorf("registering the worker: %w", err)
	}
	switch code := res[0].GetCode(); code {
	case wire.Code_OK:
		n.worker.SetIncarnation(res[0].GetEpoch())
		n.renewer.wake()
		n.cfg.Log.Info("registered", "incarnation", res[0].GetEpoch())
	case wire.Code_PREDECESSOR_MISMATCH, wire.Code_PREDECESSOR_ALIVE:
	default:
		return nil, wire.Errorf(code, "the cluster refused to register this worker")
	}
	return res[0], nil
}
