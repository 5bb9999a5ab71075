package cluster

import (
	"context"
	"slices"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// The calls that nodes make to find, form and join a cluster.
const (
	methodFind   = "find"
	methodPledge = "pledge"
	methodJoin   = "join"
)

// serversMax bounds the servers that a pledge may name.
const serversMax = 64

// serve registers what this node answers.
func (c *Cluster) serve() {
	rpcnet.Register(c.cfg.Services, methodPropose, func() *wire.ProposeReq { return &wire.ProposeReq{} }, c.servePropose)
	rpcnet.Register(c.cfg.Services, methodFind, func() *wire.FindReq { return &wire.FindReq{} }, c.serveFind)
	rpcnet.Register(c.cfg.Services, methodPledge, func() *wire.PledgeReq { return &wire.PledgeReq{} }, c.servePledge)
	rpcnet.Register(c.cfg.Services, methodRenew, func() *wire.RenewReq { return &wire.RenewReq{} }, c.serveRenew)
	rpcnet.Register(c.cfg.Services, methodPromise, func() *wire.PromiseReq { return &wire.PromiseReq{} }, c.servePromise)
	rpcnet.Register(c.cfg.Services, methodMarker, func() *wire.MarkerReq { return &wire.MarkerReq{} }, c.serveMarker)
	rpcnet.Register(c.cfg.Services, methodTerm, func() *wire.TermReq { return &wire.TermReq{} }, c.serveTerm)
	rpcnet.Register(c.cfg.Services, methodJoin, func() *wire.JoinReq { return &wire.JoinReq{} }, c.serveJoin)
}

// serveFind says who this node is and what it knows of a cluster.
func (c *Cluster) serveFind(_ context.Context, _ rpcnet.Caller, _ *wire.FindReq) (*wire.FindResp, error) {
	_, leader := c.Leader()
	to, _ := c.record.pledge()
	return &wire.FindResp{
		Node: c.cfg.ID, Name: c.cfg.Name, Addr: c.cfg.Advertise, ClusterId: c.record.clusterID(),
		Empty: c.empty(), Expect: uint32(c.cfg.Expect), LeaderAddr: leader, Pledged: to,
		Votes: c.cfg.Voter, Last: c.lastIndex(),
	}, nil
}

// servePledge lets one node bootstrap, at most: a pledge is on the disk before
// it is given, and goes to another only once its holder cannot use it any more.
// A request without servers gives it back.
func (c *Cluster) servePledge(ctx context.Context, _ rpcnet.Caller, req *wire.PledgeReq) (*wire.PledgeResp, error) {
	node, servers := req.GetNode(), req.GetServers()
	if !idPattern.MatchString(node) || len(servers) > serversMax {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "a pledge names a node and at most %d servers", serversMax)
	}
	// This node's own round holds the lock for its calls; whoever asks meanwhile
	// is refused at once: two that waited for each other would wait for ever.
	if !c.forming.TryLock() {
		return &wire.PledgeResp{Pledged: c.cfg.ID}, nil
	}
	defer c.forming.Unlock()
	if len(servers) == 0 {
		if err := c.record.release(node); err != nil {
			return nil, err
		}
		return &wire.PledgeResp{}, nil
	}
	if !c.empty() {
		return nil, wire.Errorf(wire.Code_ALREADY_INITIALISED, "node %s has a cluster: join it", c.cfg.ID)
	}
	if !slices.Contains(servers, c.cfg.ID) {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "a pledge is asked only of the servers that it names")
	}
	if to, _ := c.record.pledge(); to != "" && to != node && c.pledgeLapsed(ctx, to) {
		if err := c.record.release(to); err != nil {
			return nil, err
		}
	}
	granted, holder, err := c.record.grant(node, servers)
	if err != nil {
		return nil, err
	}
	return &wire.PledgeResp{Granted: granted, Pledged: holder}, nil
}

// pledgeLapsed asks the holder of our pledge whether it can still use it. A
// holder needs its own pledge throughout its round; an empty one that has not,
// or has given it to another, would have to ask us again.
func (c *Cluster) pledgeLapsed(ctx context.Context, holder string) bool {
	if holder == c.cfg.ID {
		return true // and no round of ours runs: we hold the lock
	}
	answers, _, _ := c.ask(ctx)
	for _, a := range answers {
		if a.GetNode() == holder {
			return a.GetEmpty() && a.GetPledged() != holder
		}
	}
	return false
}

// serveJoin adds a node to the raft configuration, or notes its new address.
func (c *Cluster) serveJoin(ctx context.Context, _ rpcnet.Caller, req *wire.JoinReq) (*wire.JoinResp, error) {
	if !idPattern.MatchString(req.GetNode()) || req.GetName() == "" || req.GetAddr() == "" {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "a node that joins names its id, name and address")
	}
	if !c.joining.TryLock() {
		return nil, wire.Errorf(wire.Code_RETRY, "another node is joining: try again in a moment")
	}
	defer c.joining.Unlock()
	if c.current() == nil {
		_, leader := c.Leader()
		return nil, errNotLeader(leader)
	}
	id := c.record.clusterID()
	if err := c.forgotten(req); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(c.Servers(), func(s Server) bool { return s.ID == req.GetNode() && s.Addr == req.GetAddr() }) {
		return &wire.JoinResp{ClusterId: id}, nil
	}
	if err := c.makeRoom(ctx, req); err != nil {
		return nil, err
	}
	sid, addr := raft.ServerID(req.GetNode()), raft.ServerAddress(req.GetAddr())
	// It learns first. (A voter that comes back at another address keeps its vote.)
	// Where a vote is missing it gets it once it has caught up: see autopilot.
	err := c.change(ctx, func() raft.Future { return c.raft.AddNonvoter(sid, addr, 0, c.cfg.Timings.Call) })
	if err != nil {
		return nil, err
	}
	c.cfg.Log.Info("a node joined", "id", req.GetNode(), "name", req.GetName(), "addr", req.GetAddr())
	return &wire.JoinResp{ClusterId: id}, nil
}

// forgotten refuses a node that has the id of one that was here, and nothing of
// what that one knew: it may have voted, and must not vote again.
func (c *Cluster) forgotten(req *wire.JoinReq) error {
	var row *wire.WorkerRow
	c.fsm.View(func(st *store.Store) { row = st.Worker(req.GetNode()) })
	if !req.GetFresh() || row == nil {
		return nil
	}
	return wire.Errorf(wire.Code_ID_USED, "node id %s was in use in this cluster, and its data is gone: it may have voted, so it cannot come back; "+
		"remove the data directory whole, its %s too: the node then joins as a new one", req.GetNode(), nodeFile)
}

// lastIndex is the index of the newest entry in this node's log.
func (c *Cluster) lastIndex() uint64 {
	if r := c.opened.Load(); r != nil {
		return r.LastIndex()
	}
	return 0
}

// change makes one change of the servers and waits until it is committed.
func (c *Cluster) change(ctx context.Context, fn func() raft.Future) error {
	if err := c.await(ctx, func() error { return fn().Error() }); err != nil {
		return wire.Errorf(wire.Code_UNAVAILABLE, "the servers could not be changed: %v", err)
	}
	c.prop.tell() // until they have heard, servers promise workers nothing
	return nil
}

// makeRoom checks that the joiner is where it says, removes a server that it
// replaces (a node whose disk was wiped has a new id), and refuses a name that
// another live node has.
func (c *Cluster) makeRoom(ctx context.Context, req *wire.JoinReq) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timings.Call)
	defer cancel()
	// A voter that cannot be reached could cost the cluster its majority.
	there, err := c.find(ctx, req.GetAddr())
	if err != nil {
		return wire.Errorf(wire.Code_UNAVAILABLE, "node %s cannot be reached at %s: %v", req.GetName(), req.GetAddr(), err)
	}
	if there.GetNode() != req.GetNode() {
		return wire.Errorf(wire.Code_BAD_REQUEST, "node %s answers at %s, where %s claims to be", there.GetNode(), req.GetAddr(), req.GetNode())
	}
	for _, s := range c.Servers() {
		if s.ID == req.GetNode() {
			continue
		}
		gone := s.Addr == req.GetAddr() // another node answers there now
		if !gone {
			name, answers := c.nameOf(ctx, s)
			if name != req.GetName() {
				continue
			}
			if answers || !c.dead(s.ID) {
				return wire.Errorf(wire.Code_NAME_IN_USE, "the name %q belongs to node %s at %s, which is not known to be dead: choose another name, or wait",
					req.GetName(), s.ID, s.Addr)
			}
			gone = true
		}
		if gone {
			c.cfg.Log.Warn("removing a server that another node replaces", "id", s.ID, "addr", s.Addr, "by", req.GetNode())
			if err := c.change(ctx, func() raft.Future { return c.raft.RemoveServer(raft.ServerID(s.ID), 0, c.cfg.Timings.Call) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// nameOf returns a server's name, and whether the server itself answered. Names
// are not in raft's configuration; the workers' table has those that registered.
func (c *Cluster) nameOf(ctx context.Context, s Server) (name string, answers bool) {
	if s.ID == c.cfg.ID {
		return c.cfg.Name, true
	}
	var row *wire.WorkerRow
	c.fsm.View(func(st *store.Store) { row = st.Worker(s.ID) })
	if row != nil && c.dead(s.ID) {
		return row.GetName(), false
	}
	if resp, err := c.find(ctx, s.Addr); err == nil && resp.GetNode() == s.ID {
		return resp.GetName(), true
	}
	return row.GetName(), false
}

// dead reports whether gossip knows a node to be dead.
func (c *Cluster) dead(id string) bool {
	if c.cfg.Alive == nil {
		return false
	}
	alive, known := c.cfg.Alive(id)
	return known && !alive
}

// acquaintance is what raft's preambles are judged by.
func (c *Cluster) acquaintance() acquaintance {
	a := acquaintance{self: c.cfg.ID, clusterID: c.record.clusterID(), servers: map[string]string{}}
	for _, s := range c.Servers() {
		a.servers[s.ID] = s.Addr
	}
	_, a.pledged = c.record.pledge()
	return a
}
