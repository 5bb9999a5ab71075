package baton

import (
	"context"
	"net"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
	"github.com/baton-cluster/baton/worker"
)

// Methods between nodes.
const (
	callPrepare  = "migrate.prepare"
	callInvite   = "migrate.invite"
	callWarm     = "migrate.warm"
	callHandover = "migrate.handover"
	callConfirm  = "migrate.confirm"
	callTransfer = "migrate.transfer"
	callOrder    = "migrate.order"
	callAssign   = "assign"
	callLocal    = "node.local"
	callHash     = "node.hash"
	callServings = "node.servings"
	callConns    = "node.conns"
	callMoveConn = "node.move-connection"
	callForward  = "admin.forward"
	callKill     = "node.kill"
	callLeave    = "node.leave"
	callWhere    = "node.where"
	callSucceed  = "node.succeed"
	callEnrol    = "node.enrol"
)

// servePeers registers what this node answers to other nodes.
func (n *Node) servePeers(s *rpcnet.Services) {
	serve(s, callPrepare, func(_ context.Context, req *wire.PrepareReq) (*wire.PrepareResp, error) {
		return &wire.PrepareResp{}, n.worker.Prepare(req)
	})
	serve(s, callInvite, func(_ context.Context, req *wire.InviteReq) (*wire.InviteResp, error) {
		return n.worker.Invite(req)
	})
	serve(s, callWarm, n.worker.AwaitWarm)
	serve(s, callHandover, n.worker.Handover)
	serve(s, callConfirm, n.confirmMoves)
	serve(s, callTransfer, n.worker.Transfer)
	serve(s, callOrder, n.serveOrder)
	serve(s, callAssign, func(ctx context.Context, req *wire.AssignReq) (*wire.Location, error) {
		return n.assign(ctx, req.GetSession())
	})
	serve(s, callWhere, n.serveWhere)
	serve(s, callSucceed, n.serveSucceed)
	serve(s, callEnrol, n.enrol)
	serve(s, callHash, func(_ context.Context, req *wire.StateHashReq) (*wire.StateHashResp, error) {
		return n.stateHash(req.GetIndex())
	})
	rpcnet.RegisterRaw(s, callLocal, func(context.Context, rpcnet.Caller, []byte) ([]byte, error) { return marshal(n.local()) })
	registerAdmin(s, callServings, method(func(_ context.Context, req servingsReq) ([]Serving, error) { return n.servings(req), nil }))
	rpcnet.RegisterRaw(s, callKill, n.serveKill)
	// The user port is bound after the first call may come.
	registerAdmin(s, callConns, n.whenReady(func(context.Context, []byte) ([]byte, error) { return marshal(n.Connections()) }))
	registerAdmin(s, callMoveConn, n.whenReady(method(n.moveConnection)))
	leave := method(n.leaveByName)
	rpcnet.RegisterRaw(s, callLeave, func(ctx context.Context, _ rpcnet.Caller, body []byte) ([]byte, error) { return leave(ctx, body) })
	for method, fn := range n.leaderMethods() {
		rpcnet.RegisterRaw(s, callForward+"/"+method, func(ctx context.Context, _ rpcnet.Caller, body []byte) ([]byte, error) {
			return fn(ctx, body)
		})
	}
}

// serve registers a method whose request type has a usable zero value.
func serve[Req any, P interface {
	*Req
	proto.Message
}, Resp proto.Message](s *rpcnet.Services, method string, fn func(context.Context, P) (Resp, error)) {
	rpcnet.Register(s, method, func() P { return P(new(Req)) }, func(ctx context.Context, _ rpcnet.Caller, req P) (Resp, error) {
		return fn(ctx, req)
	})
}

// assign gives a session an owner, if this node leads.
func (n *Node) assign(ctx context.Context, session string) (*wire.Location, error) {
	if !n.cluster.IsLeader() {
		_, addr := n.cluster.Leader()
		return nil, &wire.Error{Code: wire.Code_NOT_LEADER, Message: "ask the leader", Leader: addr}
	}
	return n.director.AssignNow(ctx, session)
}

func mgmtAddr(w *wire.WorkerRow) string {
	return net.JoinHostPort(w.GetEndpoint().GetHost(), strconv.Itoa(int(w.GetEndpoint().GetMgmtPort())))
}

// directorCalls are the director's calls to workers; to its own, directly.
type directorCalls struct{ n *Node }

func (c directorCalls) Prepare(ctx context.Context, w *wire.WorkerRow, req *wire.PrepareReq) error {
	if w.GetId() == c.n.id {
		return c.n.worker.Prepare(req)
	}
	return rpcnet.Invoke(ctx, c.n.peers, mgmtAddr(w), callPrepare, req, &wire.PrepareResp{})
}

func (c directorCalls) Invite(ctx context.Context, w *wire.WorkerRow, req *wire.InviteReq) (*wire.InviteResp, error) {
	if w.GetId() == c.n.id {
		return c.n.worker.Invite(req)
	}
	resp := &wire.InviteResp{}
	return resp, rpcnet.Invoke(ctx, c.n.peers, mgmtAddr(w), callInvite, req, resp)
}

func (c directorCalls) AwaitWarm(ctx context.Context, w *wire.WorkerRow, req *wire.WarmReq) (*wire.WarmResp, error) {
	if w.GetId() == c.n.id {
		return c.n.worker.AwaitWarm(ctx, req)
	}
	resp := &wire.WarmResp{}
	return resp, rpcnet.Invoke(ctx, c.n.peers, mgmtAddr(w), callWarm, req, resp)
}

func (c directorCalls) Handover(ctx context.Context, w *wire.WorkerRow, req *wire.HandoverReq) (*wire.HandoverResp, error) {
	if w.GetId() == c.n.id {
		return c.n.worker.Handover(ctx, req)
	}
	resp := &wire.HandoverResp{}
	return resp, rpcnet.Invoke(ctx, c.n.peers, mgmtAddr(w), callHandover, req, resp)
}

func (c directorCalls) Confirm(ctx context.Context, w *wire.WorkerRow, req *wire.ConfirmReq) (*wire.ConfirmResp, error) {
	if w.GetId() == c.n.id {
		return c.n.confirmMoves(ctx, req)
	}
	resp := &wire.ConfirmResp{}
	return resp, rpcnet.Invoke(ctx, c.n.peers, mgmtAddr(w), callConfirm, req, resp)
}

func (c directorCalls) Order(ctx context.Context, w *wire.WorkerRow, req *wire.OrderReq) (*wire.OrderResp, error) {
	if w.GetId() == c.n.id {
		return c.n.serveOrder(ctx, req)
	}
	resp := &wire.OrderResp{}
	return resp, rpcnet.Invoke(ctx, c.n.peers, mgmtAddr(w), callOrder, req, resp)
}

// workerCalls are the worker's calls to the leader and to other workers.
type workerCalls struct{ n *Node }

func (c workerCalls) Assign(ctx context.Context, session string) (*wire.Location, error) {
	if c.n.cluster.IsLeader() {
		return c.n.director.AssignNow(ctx, session)
	}
	_, addr := c.n.cluster.Leader()
	if addr == "" {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "the cluster has no leader just now")
	}
	loc := &wire.Location{}
	return loc, rpcnet.Invoke(ctx, c.n.peers, addr, callAssign, &wire.AssignReq{Session: session}, loc)
}

func (c workerCalls) Transfer(ctx context.Context, addr string, req *wire.TransferReq) (*wire.TransferResp, error) {
	resp := &wire.TransferResp{}
	return resp, rpcnet.Invoke(ctx, c.n.peers, addr, callTransfer, req, resp)
}

func (c workerCalls) Relay(link worker.Link, first *wire.ClientFrame, to *wire.NodeInfo) error {
	st, ok := link.(*rpcnet.Stream)
	if !ok {
		return wire.Errorf(wire.Code_INTERNAL, "only streams can be relayed")
	}
	addr := net.JoinHostPort(to.GetHost(), strconv.Itoa(int(to.GetUserPort())))
	return c.n.server.Relay(st.Context(), st, first, addr, c.n.identity.RelayClient())
}

// orderMax bounds what one OrderReq may ask for.
const orderMax = 4096

// serveOrder lists the sessions that clients are connected here for, by
// connection. Before the user port is bound there are none.
func (n *Node) serveOrder(_ context.Context, req *wire.OrderReq) (*wire.OrderResp, error) {
	if !n.serves.Load() {
		return &wire.OrderResp{}, nil
	}
	sessions, last := n.server.SessionsByConn(req.GetAfter(), int(min(req.GetLimit(), orderMax)))
	return &wire.OrderResp{Sessions: sessions, Last: last}, nil
}

// stateHash is the hash of the replicated state at a log index, 0: the newest.
func (n *Node) stateHash(index uint64) (*wire.StateHashResp, error) {
	hash, at, ok := n.cluster.FSM().HashAt(index)
	if !ok {
		return nil, wire.Errorf(wire.Code_RETRY, "index %d is not applied here yet, or too long ago", index)
	}
	return &wire.StateHashResp{Index: at, Hash: hash}, nil
}

// roomRetry is how soon what must be settled is proposed again when the log had no room.
const roomRetry = 50 * time.Millisecond

// applied waits until what has committed is applied here: another node may have led then.
func (n *Node) applied(ctx context.Context) error {
	if err := n.cluster.Barrier(ctx); err != nil {
		return wire.Errorf(wire.Code_UNAVAILABLE, "it is done, but this node cannot reach a quorum any more to tell of it: list what there is (%v)", err)
	}
	return nil
}

// insist is ProposeWait for what must be settled: the log that has no room is asked again
// until ctx ends.
func (n *Node) insist(ctx context.Context, cmd *wire.Command) ([]*wire.Result, error) {
	for {
		res, err := n.cluster.ProposeWait(ctx, cmd)
		if wire.CodeOf(err) != wire.Code_OVERLOADED {
			return res, err
		}
		if err := seam.Sleep(ctx, n.cfg.Clock, roomRetry); err != nil {
			return nil, err
		}
	}
}

// allWorkers lists the registered workers.
func (n *Node) allWorkers() (rows []*wire.WorkerRow) {
	n.cluster.FSM().View(func(st *store.Store) { rows = st.Workers() })
	return rows
}
