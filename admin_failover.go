package baton

import (
	"context"
	"encoding/json"
	"time"

	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/wire"
)

// Failover is how the sessions of a node that was lost got new owners, by the
// leader that saw to it. Times are of its clock; zero: not, or not yet.
type Failover struct {
	Node        string `json:"node"`
	Incarnation uint64 `json:"incarnation"`
	Why         string `json:"why"`
	// SuspectedAt is when the node was first taken for dead, PromisesOutAt when
	// nothing stood in the way of a fence any more, FencedAt when that had
	// committed.
	SuspectedAt   time.Time `json:"suspected_at,omitzero"`
	PromisesOutAt time.Time `json:"promises_out_at,omitzero"`
	FencedAt      time.Time `json:"fenced_at,omitzero"`
	// AssignedAt is when the last of Sessions, those that had clients, had a new
	// owner.
	AssignedAt time.Time `json:"assigned_at,omitzero"`
	Sessions   int       `json:"sessions"`
}

// Failovers tells of the latest failovers that the present leader saw to.
func (a *Admin) Failovers(ctx context.Context) ([]Failover, error) {
	return ask[[]Failover](ctx, a, "failovers", struct{}{})
}

func (n *Node) listFailovers(context.Context, struct{}) ([]Failover, error) {
	out := []Failover{}
	for _, f := range n.director.Failovers() {
		out = append(out, Failover{
			Node: n.workerName(f.Worker), Incarnation: f.Incarnation, Why: f.Why,
			SuspectedAt: f.Suspected, PromisesOutAt: f.PromisesOut, FencedAt: f.Fenced, AssignedAt: f.Assigned, Sessions: f.Sessions,
		})
	}
	return out, nil
}

// Killed is when a node was made to end, by the clock of the node that was asked.
type Killed struct {
	Node   string    `json:"node"`
	Leader bool      `json:"leader"` // it led
	At     time.Time `json:"at"`
}

// Kill makes a node end at once, without a drain and without a word to anybody, to
// rehearse a failover. The node asked must be another one. Refused unless the
// cluster is healthy and can lose a voter (QUORUM_AT_RISK), and where the node's
// program does not allow it (Config.OnKill: NOT_AUTHORISED).
func (a *Admin) Kill(ctx context.Context, node string) (Killed, error) {
	return askOnce[Killed](ctx, a, "kill", nodeRef{Node: node})
}

// killReq is the call from node to node. Without Now it only asks whether it may
// be made.
type killReq struct {
	Now bool `json:"now"`
}

func (n *Node) killByName(ctx context.Context, ref nodeRef) (Killed, error) {
	none := Killed{}
	w, err := n.workerByName(ref.Node)
	if err != nil {
		return none, err
	}
	if w.GetId() == n.id {
		return none, wire.Errorf(wire.Code_BAD_REQUEST, "node %s cannot report its own end: ask another node", ref.Node)
	}
	st := n.status(ctx)
	if !st.Healthy || st.FailureTolerance < 1 {
		return none, wire.Errorf(wire.Code_QUORUM_AT_RISK, "the cluster is not healthy, or cannot lose a voter: see `baton status`, and rehearse when it can")
	}
	ready, _ := marshal(killReq{})
	if _, err := n.peers.Call(ctx, mgmtAddr(w), callKill, ready); err != nil {
		return none, err
	}
	now, _ := marshal(killReq{Now: true})
	_, err = n.peers.Call(ctx, mgmtAddr(w), callKill, now)
	if err == nil {
		return none, wire.Errorf(wire.Code_INTERNAL, "node %s was told to end and did not", ref.Node)
	}
	if wire.CodeOf(err) != wire.Code_UNAVAILABLE || rpcnet.Unsent(err) { // it did not break off
		return none, err
	}
	return Killed{Node: w.GetName(), Leader: st.Leader == w.GetName(), At: n.cfg.Clock.Wall()}, nil
}

// serveKill ends this node, if its program allows that.
func (n *Node) serveKill(_ context.Context, _ rpcnet.Caller, body []byte) ([]byte, error) {
	var req killReq
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the request cannot be read: %v", err)
	}
	if n.cfg.OnKill == nil {
		return nil, wire.Errorf(wire.Code_NOT_AUTHORISED, "the program of node %s does not allow drills", n.cfg.Name)
	}
	if req.Now {
		n.cfg.Log.Warn("this node ends now: a drill")
		n.cfg.OnKill()
	}
	return nil, nil
}
