package baton

import (
	"context"
	"encoding/json"
	"net"
	"strconv"
	"time"

	"github.com/baton-cluster/baton/cluster"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// Changes of the servers, as an operator asks for them.

// ReplaceRequest moves a server's vote to another.
type ReplaceRequest struct {
	Node string `json:"node"`
	With string `json:"with,omitempty"` // empty: any spare
}

// removeRequest takes a server out. Leaving: it asks for itself, and stops then.
type removeRequest struct {
	Node    string `json:"node"`
	Leaving bool   `json:"leaving,omitempty"`
}

// ServerChange tells what a change of the servers came to.
type ServerChange struct {
	Node string `json:"node"`
	// Heir is the node that has the vote now, where it moved.
	Heir string `json:"heir,omitempty"`
}

// serverByName finds a server by its node's name or id.
func (n *Node) serverByName(name string) (string, error) {
	for _, w := range n.allWorkers() {
		if w.GetName() == name {
			return w.GetId(), nil
		}
	}
	for _, s := range n.cluster.Servers() {
		if s.ID == name {
			return name, nil
		}
	}
	return "", wire.Errorf(wire.Code_UNKNOWN_SERVER, "the cluster has no server %q: `baton raft peers` lists them", name)
}

func (n *Node) promote(ctx context.Context, req nodeRef) (ServerChange, error) {
	id, err := n.serverByName(req.Node)
	if err != nil {
		return ServerChange{}, err
	}
	return ServerChange{Node: n.workerName(id)}, n.cluster.Promote(ctx, id)
}

func (n *Node) replace(ctx context.Context, req ReplaceRequest) (ServerChange, error) {
	id, err := n.serverByName(req.Node)
	if err != nil {
		return ServerChange{}, err
	}
	with := ""
	if req.With != "" {
		if with, err = n.serverByName(req.With); err != nil {
			return ServerChange{}, err
		}
	}
	heir, err := n.cluster.Replace(ctx, id, with)
	return ServerChange{Node: n.workerName(id), Heir: n.workerName(heir)}, err
}

// removeServer takes a server out of raft's configuration and, where nothing is
// left of it, its worker out of the table.
func (n *Node) removeServer(ctx context.Context, req removeRequest) (ServerChange, error) {
	var row *wire.WorkerRow
	id := req.Node // of one that leaves, who may ask again after it was removed
	if !req.Leaving {
		var err error
		if id, err = n.serverByName(req.Node); err != nil {
			return ServerChange{}, err
		}
	}
	owned := 0
	n.cluster.FSM().View(func(st *store.Store) {
		row = st.Worker(id)
		owned = len(st.SessionsOf(id, "", 1))
	})
	if req.Leaving && owned > 0 {
		return ServerChange{}, wire.Errorf(wire.Code_SESSIONS_LEFT, "node %s owns sessions still", n.workerName(id))
	}
	change := ServerChange{Node: n.workerName(id)}
	if err := n.cluster.Remove(ctx, id, req.Leaving); err != nil || row == nil {
		return change, err
	}
	res, err := n.cluster.ProposeWait(ctx, &wire.Command{Kind: &wire.Command_RemoveWorker{RemoveWorker: &wire.RemoveWorker{
		Id: id, Incarnation: row.GetIncarnation(),
	}}})
	// The server is out, whatever becomes of its worker: that is fenced, its sessions find
	// other owners, and forgetGone takes it off the table.
	if err != nil || res[0].GetCode() != wire.Code_OK {
		n.cfg.Log.Info("a removed server's worker stays on record for now", "id", id, "err", err, "results", res)
	}
	return change, nil
}

// forgetEvery is how often a leader looks for workers that are gone for good.
const forgetEvery = 2 * time.Second

// forgetGone runs while this node leads: it takes workers out of the table that
// are fenced, own nothing and are no servers any more, as that of a node whose
// data directory was wiped: another server has its place. (One that was removed
// and comes back joins anew.) Who counted them would hold the cluster for ill.
func (n *Node) forgetGone(ctx context.Context) {
	for seam.Sleep(ctx, n.cfg.Clock, forgetEvery) == nil {
		servers := map[string]bool{}
		for _, s := range n.cluster.Servers() {
			servers[s.ID] = true
		}
		if !servers[n.id] {
			continue // the configuration cannot be had just now
		}
		var gone []*wire.Command
		n.cluster.FSM().View(func(st *store.Store) {
			for _, w := range st.Workers() {
				if w.GetState() != wire.WorkerState_WORKER_STATE_FENCED || servers[w.GetId()] || len(st.SessionsOf(w.GetId(), "", 1)) > 0 {
					continue
				}
				gone = append(gone, &wire.Command{Kind: &wire.Command_RemoveWorker{RemoveWorker: &wire.RemoveWorker{
					Id: w.GetId(), Incarnation: w.GetIncarnation(),
				}}})
			}
		})
		if len(gone) == 0 {
			continue
		}
		if _, err := n.cluster.ProposeWait(ctx, gone...); err != nil {
			n.cfg.Log.Debug("workers that are gone stay on record", "err", err) // until the next look
		}
	}
}

const (
	// leaveEvery is how often a leaving node asks again.
	leaveEvery = 200 * time.Millisecond
	// leaveAnswer is how long the answer to an operator has to go out before the
	// node closes. If it is lost, the operator asks again, and there is no such node.
	leaveAnswer = 200 * time.Millisecond
)

// Leave gives up the node's place for good: its sessions move to others, then its
// vote and its place in the cluster go, and its data directory cannot be used
// again. The node runs on, serving nothing, until it is closed. If ctx ends first
// the node is draining, and all else as it was. NO_TARGET: there is no other node;
// QUORUM_AT_RISK: it is needed; JOB_NOT_DONE: its drain was called off, or no session
// could be moved for half a minute.
func (n *Node) Leave(ctx context.Context) error {
	if n.soleWorker() || len(n.cluster.Servers()) < 2 {
		return wire.Errorf(wire.Code_NO_TARGET, "node %s is the last of its cluster: stop it instead", n.cfg.Name)
	}
	// One that was removed, and has not heard of it, asks again: it has no sessions, and no
	// log that would take its drain.
	undrained := n.drainFor(ctx, "leaving of "+n.cfg.Name, false)
	if undrained != nil && (wire.CodeOf(undrained) != wire.Code_JOB_NOT_DONE || n.owned() > 0) {
		return undrained
	}
	since := n.cfg.Clock.Now()
	n.leaving.Store(true)
	body, err := json.Marshal(removeRequest{Node: n.id, Leaving: true})
	if err != nil {
		return err
	}
	addrs := n.serverAddrs()
	for {
		err := n.askLeader(ctx, addrs, "raft-remove", body)
		switch code := wire.CodeOf(err); {
		case code == wire.Code_OK:
			if err := n.cluster.SetLeft(); err != nil {
				return err
			}
			leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), handOnTime)
			defer cancel()
			if err := n.members.Leave(leave); err != nil {
				n.cfg.Log.Debug("gossip was not told", "err", err)
			}
			n.left.Store(true)
			return nil
		case undrained != nil && (code == wire.Code_SESSIONS_LEFT || n.cfg.Clock.Now()-since >= drainStall):
			n.stay()
			return undrained // it is still in the cluster, or that does not answer
		case !code.Retryable() && code != wire.Code_SESSIONS_LEFT, n.ctx.Err() != nil,
			seam.Sleep(ctx, n.cfg.Clock, leaveEvery) != nil:
			n.stay()
			return err
		}
	}
}

// stay ends a leave that led to nothing.
func (n *Node) stay() {
	n.leaving.Store(false)
	if n.worker.Incarnation() == 0 {
		n.wasFenced() // what came meanwhile was passed over
	}
}

// serverAddrs are the other servers' addresses.
func (n *Node) serverAddrs() (addrs []string) {
	for _, s := range n.cluster.Servers() {
		if s.ID != n.id {
			addrs = append(addrs, s.Addr)
		}
	}
	return addrs
}

// askLeader brings an admin call to a leader that is not this node: leadership is
// handed on first. It asks all that might know one, as a node that is no longer
// in the configuration hears of none.
func (n *Node) askLeader(ctx context.Context, addrs []string, name string, body []byte) (err error) {
	if n.cluster.IsLeader() {
		if err := n.cluster.TransferLeadership(ctx); err != nil {
			return err
		}
	}
	err = wire.Errorf(wire.Code_UNAVAILABLE, "no other server answers")
	for _, addr := range addrs {
		call, cancel := context.WithTimeout(ctx, removeTime)
		_, err = n.peers.Call(call, addr, callForward+"/"+name, body)
		cancel()
		if code := wire.CodeOf(err); !code.Retryable() || code == wire.Code_CHANGE_UNDER_WAY {
			return err
		}
	}
	return err
}

// removeTime bounds one request to be removed.
const removeTime = 10 * time.Second

// Left reports that the node has given up its place: see Leave.
func (n *Node) Left() bool { return n.left.Load() }

// leaveByName has a node leave and stop.
func (n *Node) leaveByName(ctx context.Context, req nodeRef) (ServerChange, error) {
	if req.Node != "" && req.Node != n.cfg.Name && req.Node != n.id {
		w, err := n.workerByName(req.Node)
		if err != nil {
			return ServerChange{}, err
		}
		var out ServerChange
		body, err := json.Marshal(nodeRef{Node: w.GetId()})
		if err == nil {
			body, err = n.peers.Call(ctx, mgmtAddr(w), callLeave, body)
		}
		if err == nil {
			err = json.Unmarshal(body, &out)
		}
		return out, err
	}
	if err := n.Leave(ctx); err != nil {
		return ServerChange{}, err
	}
	n.spawn(func() {
		_ = seam.Sleep(n.ctx, n.cfg.Clock, leaveAnswer)
		go func() { _ = n.Close() }()
	})
	return ServerChange{Node: n.cfg.Name}, nil
}

// unregistered lists servers that have not registered a worker.
func (n *Node) unregistered(servers []cluster.Server) (out []NodeStatus) {
	for _, s := range servers {
		var row *wire.WorkerRow
		n.cluster.FSM().View(func(st *store.Store) { row = st.Worker(s.ID) })
		if row != nil {
			continue
		}
		ns := NodeStatus{Name: s.ID, ID: s.ID, Roles: []string{"server"}, Voter: s.Voter, State: "joining"}
		host, port, err := net.SplitHostPort(s.Addr)
		if err == nil {
			ns.Endpoint = Endpoint{Host: host, MgmtPort: portOf(port)}
		}
		out = append(out, ns)
	}
	return out
}

func portOf(s string) int {
	p, _ := strconv.ParseUint(s, 10, 16)
	return int(p)
}
