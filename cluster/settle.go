package cluster

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// settleWarn is how long a node looks for its cluster before it says so aloud.
const settleWarn = 10 * time.Second

// settlement is how far this node has come in finding its cluster.
type settlement struct {
	mu  sync.Mutex
	why error // of the last round that led nowhere
}

func (s *settlement) set(err error) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed = err != nil && (s.why == nil || s.why.Error() != err.Error())
	s.why = err
	return changed
}

func (s *settlement) last() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}

// settle goes on until this node is in its cluster's raft configuration, at its
// address: by finding itself there, by joining, or by forming the cluster. One that
// finds itself there when it starts goes on until it hears a leader: while it was
// away, a new cluster may have been made of the others.
func (c *Cluster) settle(ctx context.Context) {
	begun, warned := c.cfg.Clock.Now(), false
	for ctx.Err() == nil {
		if c.placed() {
			if err := c.record.setMember(); err != nil {
				c.fail(err)
			}
			if id, _ := c.Leader(); id != "" || !c.hadState {
				c.settled.set(nil)
				return
			}
		}
		err := c.settleOnce(ctx)
		late := err != nil && !warned && c.cfg.Clock.Now()-begun >= settleWarn
		if c.settled.set(err) || late {
			level := slog.LevelInfo
			if wire.CodeOf(err) != wire.Code_UNAVAILABLE || late {
				level, warned = slog.LevelWarn, true // waiting alone may not mend it
			}
			c.cfg.Log.Log(ctx, level, "no cluster yet", "why", err)
		}
		if seam.Sleep(ctx, c.cfg.Clock, c.cfg.Timings.Find) != nil {
			return
		}
	}
}

// placed reports whether the raft configuration has this node at its address.
func (c *Cluster) placed() bool {
	return slices.ContainsFunc(c.Servers(), func(s Server) bool {
		return s.ID == c.cfg.ID && s.Addr == c.cfg.Advertise
	})
}

// empty reports whether this node knows of no cluster: neither on its disk, nor
// from what has come since it started.
func (c *Cluster) empty() bool {
	return !c.hadState && len(c.Servers()) == 0 && c.record.clusterID() == nil
}

// settleOnce asks the peers once, and joins or forms if the answers allow it.
func (c *Cluster) settleOnce(ctx context.Context) error {
	answers, silent, refused := c.ask(ctx)
	if len(answers) == 0 && refused != nil {
		return refused
	}
	var live *wire.FindResp
	others := false // somebody has a cluster, named or not
	for _, a := range answers {
		if a.GetEmpty() {
			continue
		}
		others = true
		if len(a.GetClusterId()) == 0 {
			continue
		}
		if mine := c.record.clusterID(); mine != nil && !slices.Equal(mine, a.GetClusterId()) {
			return wire.Errorf(wire.Code_WRONG_CLUSTER, "%s belongs to cluster %x, this node to %x: correct the list of nodes to join, or remove the data directory of the wrong one",
				a.GetAddr(), a.GetClusterId(), mine)
		}
		if live != nil && !slices.Equal(live.GetClusterId(), a.GetClusterId()) {
			return wire.Errorf(wire.Code_WRONG_CLUSTER, "%s and %s belong to different clusters: correct the list of nodes to join", live.GetAddr(), a.GetAddr())
		}
		if live == nil || a.GetLeaderAddr() != "" {
			live = a
		}
	}
	switch {
	case c.current() != nil && !c.placed() && len(c.Servers()) == 1:
		return c.readdress(ctx)
	case c.placed() && live.GetLeaderAddr() != "":
		return wire.Errorf(wire.Code_UNAVAILABLE, "the cluster has a leader at %s, which does not speak to this node: if it was taken out of the cluster "+
			"(`baton raft peers` tells), remove its data directory: it then joins as a new node", live.GetLeaderAddr())
	case c.placed():
		return wire.Errorf(wire.Code_UNAVAILABLE, "no leader was heard; are a majority of the servers running?")
	case live != nil:
		return c.join(ctx, live)
	case others:
		return wire.Errorf(wire.Code_UNAVAILABLE, "a cluster is being formed; it has no leader yet")
	case !c.empty():
		return wire.Errorf(wire.Code_UNAVAILABLE, "this node's cluster does not answer: none of %s", strings.Join(c.peers(), ", "))
	}
	return c.form(ctx, answers, silent)
}

// readdress notes this node's new address in a cluster that it is alone in: there is
// nobody whom it could ask to.
func (c *Cluster) readdress(ctx context.Context) error {
	c.joining.Lock()
	defer c.joining.Unlock()
	return c.change(ctx, func() raft.Future { // a voter keeps its vote
		return c.raft.AddNonvoter(raft.ServerID(c.cfg.ID), raft.ServerAddress(c.cfg.Advertise), 0, c.cfg.Timings.Call)
	})
}

// peers returns the addresses to ask: those given and those of the servers that
// this node knows, without its own.
func (c *Cluster) peers() []string {
	var out []string
	for _, a := range c.cfg.Join {
		out = append(out, a)
	}
	for _, s := range c.Servers() {
		out = append(out, s.Addr)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return slices.DeleteFunc(out, func(a string) bool { return a == c.cfg.Advertise || a == "" })
}

// ask sends a FindReq to all peers at once. It returns what other nodes answer,
// one for each node, the addresses that did not, and why one of those will not
// talk to this node at all.
func (c *Cluster) ask(ctx context.Context) (answers []*wire.FindResp, silent []string, refused error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timings.Call)
	defer cancel()
	addrs := c.peers()
	got, errs := make([]*wire.FindResp, len(addrs)), make([]error, len(addrs))
	var wg sync.WaitGroup
	for i, addr := range addrs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			got[i], errs[i] = c.find(ctx, addr)
		}()
	}
	wg.Wait()
	seen := map[string]bool{c.cfg.ID: true} // an address may well lead back here
	for i, resp := range got {
		if resp == nil {
			c.cfg.Log.Debug("a peer does not answer", "addr", addrs[i], "err", errs[i])
			silent = append(silent, addrs[i])
			if hopeless(errs[i]) {
				refused = errs[i]
			}
			continue
		}
		if !seen[resp.GetNode()] {
			seen[resp.GetNode()] = true
			answers = append(answers, resp)
		}
	}
	return answers, silent, refused
}

// hopeless reports a refusal that asking again will not change: the two nodes
// do not belong together.
func hopeless(err error) bool {
	switch wire.CodeOf(err) {
	case wire.Code_NOT_AUTHORISED, wire.Code_WRONG_CLUSTER, wire.Code_WRONG_VERSION, wire.Code_ID_USED:
		return true
	}
	return false
}

func (c *Cluster) find(ctx context.Context, addr string) (*wire.FindResp, error) {
	resp := &wire.FindResp{}
	err := rpcnet.Invoke(ctx, c.cfg.Peers, addr, methodFind, &wire.FindReq{
		Node: c.cfg.ID, Name: c.cfg.Name, Addr: c.cfg.Advertise, Expect: uint32(c.cfg.Expect), Empty: c.empty(),
	}, resp)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// form bootstraps the cluster if this node is the one to do it: the lowest id of
// exactly the expected number of empty nodes, with a pledge from each.
func (c *Cluster) form(ctx context.Context, answers []*wire.FindResp, silent []string) error {
	servers, err := formation(c.cfg, answers, silent)
	if err != nil {
		return err
	}
	if string(servers[0].ID) != c.cfg.ID {
		return wire.Errorf(wire.Code_UNAVAILABLE, "waiting for node %s at %s to form the cluster", servers[0].ID, servers[0].Address)
	}
	return c.bootstrap(ctx, servers)
}

// formation decides, from what empty nodes say, which servers would form the
// cluster: exactly the expected number, lowest id first. It is pure.
func formation(cfg Config, answers []*wire.FindResp, silent []string) ([]raft.Server, error) {
	if cfg.Expect == 0 {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "no node to join has a cluster yet")
	}
	servers := []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(cfg.ID), Address: raft.ServerAddress(cfg.Advertise)}}
	for _, a := range answers {
		if int(a.GetExpect()) != cfg.Expect {
			return nil, wire.Errorf(wire.Code_BAD_REQUEST, "node %s at %s expects %d nodes, this one %d: start all with the same number",
				a.GetName(), a.GetAddr(), a.GetExpect(), cfg.Expect)
		}
		if a.GetName() == cfg.Name {
			return nil, wire.Errorf(wire.Code_NAME_IN_USE, "the node at %s is named %q too: give each node a name of its own", a.GetAddr(), cfg.Name)
		}
		servers = append(servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(a.GetNode()), Address: raft.ServerAddress(a.GetAddr())})
	}
	if len(servers) < cfg.Expect {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "%d of %d expected nodes are here; no answer from %s",
			len(servers), cfg.Expect, orNobody(silent))
	}
	if len(servers) > cfg.Expect {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "%d empty nodes are here, but %d are expected: correct the number, or start the others later",
			len(servers), cfg.Expect)
	}
	// Those who are silent could be a live cluster, unless we are the majority of
	// all that were named.
	if known := len(servers) + len(silent); 2*len(servers) <= known {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "%s must answer first: they might be a live cluster", orNobody(silent))
	}
	slices.SortFunc(servers, func(a, b raft.Server) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return servers, nil
}

func orNobody(addrs []string) string {
	if len(addrs) == 0 {
		return "nobody else: name the others with join"
	}
	return strings.Join(addrs, ", ")
}

// bootstrap collects the pledges of one round and bootstraps if it got all. A
// round that fails gives its pledges back.
func (c *Cluster) bootstrap(ctx context.Context, servers []raft.Server) error {
	var ids []string
	for _, s := range servers {
		ids = append(ids, string(s.ID))
	}
	c.forming.Lock()
	defer c.forming.Unlock()
	granted, holder, err := c.record.grant(c.cfg.ID, ids)
	if err != nil {
		return err
	}
	if !granted {
		return wire.Errorf(wire.Code_UNAVAILABLE, "this node has pledged to node %s", holder)
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timings.Call)
	defer cancel()
	var asked []raft.Server
	for _, s := range servers {
		if string(s.ID) == c.cfg.ID {
			continue
		}
		asked = append(asked, s)
		resp := &wire.PledgeResp{}
		err := rpcnet.Invoke(ctx, c.cfg.Peers, string(s.Address), methodPledge, &wire.PledgeReq{Node: c.cfg.ID, Servers: ids}, resp)
		if err == nil && !resp.GetGranted() {
			err = wire.Errorf(wire.Code_UNAVAILABLE, "node %s has pledged to node %s", s.ID, resp.GetPledged())
		}
		if err != nil {
			c.withdraw(ctx, asked)
			return err
		}
	}
	if !c.empty() {
		return wire.Errorf(wire.Code_UNAVAILABLE, "a cluster has come up meanwhile")
	}
	err = c.raft.BootstrapCluster(raft.Configuration{Servers: servers}).Error()
	if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
		return err
	}
	c.cfg.Log.Info("formed a cluster", "servers", ids)
	return nil
}

// withdraw gives pledges back after a round that failed: this node's own last,
// for a node that asks us meanwhile takes ours as proof that we still try.
func (c *Cluster) withdraw(ctx context.Context, asked []raft.Server) {
	for _, s := range asked {
		// One that is lost is found out when its holder is asked (see pledgeLapsed).
		_ = rpcnet.Invoke(ctx, c.cfg.Peers, string(s.Address), methodPledge, &wire.PledgeReq{Node: c.cfg.ID}, &wire.PledgeResp{})
	}
	if err := c.record.release(c.cfg.ID); err != nil {
		c.fail(err)
	}
}

// join asks the leader of the cluster that found describes to add this node.
func (c *Cluster) join(ctx context.Context, found *wire.FindResp) error {
	addr := found.GetLeaderAddr()
	if addr == "" {
		addr = found.GetAddr()
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timings.Call)
	defer cancel()
	req := &wire.JoinReq{Node: c.cfg.ID, Name: c.cfg.Name, Addr: c.cfg.Advertise, Voter: c.cfg.Voter, Fresh: !c.hadState && !c.record.member()}
	resp := &wire.JoinResp{}
	err := rpcnet.Invoke(ctx, c.cfg.Peers, addr, methodJoin, req, resp)
	var refusal *wire.Error
	if errors.As(err, &refusal) && refusal.Code == wire.Code_NOT_LEADER && refusal.Leader != "" {
		err = rpcnet.Invoke(ctx, c.cfg.Peers, refusal.Leader, methodJoin, req, resp)
	}
	if err != nil {
		return err
	}
	return c.record.setCluster(resp.GetClusterId())
}

// WaitReady returns once the cluster has an id, this node is in it, and a leader
// was heard; with an error if ctx ends first, which comes with what is missing,
// or if the nodes to join refuse this one for good (NOT_AUTHORISED,
// WRONG_CLUSTER, WRONG_VERSION).
func (c *Cluster) WaitReady(ctx context.Context) error {
	for {
		if c.ctx.Err() != nil {
			return errClosing()
		}
		id, _ := c.Leader()
		// (member: from then on a lost log is told from a new one.)
		if c.record.named() && c.record.member() && id != "" && c.placed() && (id != c.cfg.ID || c.IsLeader()) {
			return nil
		}
		if why := c.settled.last(); hopeless(why) {
			return why
		}
		if err := seam.Sleep(ctx, c.cfg.Clock, readyPoll); err != nil {
			why := c.settled.last()
			if why == nil {
				why = wire.Errorf(wire.Code_UNAVAILABLE, "no leader was heard; are a majority of the servers running?")
			}
			return errors.Join(why, err)
		}
	}
}
