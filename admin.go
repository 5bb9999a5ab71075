package baton

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// AdminConfig says how an operator's program reaches a cluster.
type AdminConfig struct {
	Addrs   []string // management addresses; any node will do
	PKI     string   // directory with ca.crt, admin.crt and admin.key
	Log     *slog.Logger
	Network seam.Network
	Clock   seam.Clock
}

// Admin is an operator's view of a cluster. Its methods ask the first node that
// answers. Errors are *Error; UNAVAILABLE if no node could be reached.
type Admin struct {
	cfg   AdminConfig
	id    *pki.Identity
	peers *rpcnet.Peers
}

// DialAdmin prepares the connection. It does not fail because nodes are down;
// the calls do.
func DialAdmin(_ context.Context, cfg AdminConfig) (*Admin, error) {
	if len(cfg.Addrs) == 0 {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "no management address is given: use --addr HOST:PORT")
	}
	for _, a := range cfg.Addrs {
		if !isHostPort(a) {
			return nil, wire.Errorf(wire.Code_BAD_REQUEST, "%q is not host:port", a)
		}
	}
	id, err := pki.LoadAdmin(cfg.PKI)
	if err != nil {
		return nil, err
	}
	if cfg.Network == nil {
		cfg.Network = seam.OSNetwork{}
	}
	if cfg.Clock == nil {
		cfg.Clock = seam.OSClock{}
	}
	return &Admin{cfg: cfg, id: id, peers: rpcnet.NewPeers(rpcnet.PeerConfig{
		Network: cfg.Network, Clock: cfg.Clock, TLS: id.PeerClient(rpcnet.ALPNAdmin), ALPN: rpcnet.ALPNAdmin,
		Identify: func(cs tls.ConnectionState) (string, string) { return identify(cs) }, Log: cfg.Log,
	})}, nil
}

// Close ends the connections.
func (a *Admin) Close() error {
	a.peers.Close()
	return nil
}

// ask calls method, which may run twice, on one node after the other until one answers.
func ask[Resp any](ctx context.Context, a *Admin, method string, req any) (resp Resp, err error) {
	return askWhile[Resp](ctx, a, method, req, func(error) bool { return true })
}

// askOnce is ask for what must not run twice: after UNAVAILABLE no other node is asked,
// unless nothing was sent.
func askOnce[Resp any](ctx context.Context, a *Admin, method string, req any) (resp Resp, err error) {
	return askWhile[Resp](ctx, a, method, req, rpcnet.Unsent)
}

func askWhile[Resp any](ctx context.Context, a *Admin, method string, req any, harmless func(error) bool) (resp Resp, err error) {
	body, err := json.Marshal(req)
	if err != nil {
		return resp, err
	}
	for _, addr := range a.cfg.Addrs {
		var out []byte
		if out, err = a.peers.Call(ctx, addr, method, body); err == nil {
			return resp, json.Unmarshal(out, &resp)
		}
		code := wire.CodeOf(err)
		if again := code == wire.Code_NOT_LEADER || code == wire.Code_UNAVAILABLE && harmless(err); !again || ctx.Err() != nil {
			break
		}
	}
	return resp, noLeader(err)
}

// Status tells how the cluster is.
func (a *Admin) Status(ctx context.Context) (Status, error) {
	return ask[Status](ctx, a, "status", struct{}{})
}

// Members is gossip's view beside Raft's.
func (a *Admin) Members(ctx context.Context) ([]Member, error) {
	return ask[[]Member](ctx, a, "members", struct{}{})
}

// Sessions lists sessions by id.
func (a *Admin) Sessions(ctx context.Context, f SessionFilter) ([]SessionInfo, error) {
	return ask[[]SessionInfo](ctx, a, "sessions", f)
}

// Session tells of one session.
func (a *Admin) Session(ctx context.Context, id string) (SessionInfo, error) {
	return ask[SessionInfo](ctx, a, "session", sessionRef{id})
}

// Explain tells a session's ownership history.
func (a *Admin) Explain(ctx context.Context, id string) (Explanation, error) {
	return ask[Explanation](ctx, a, "explain", sessionRef{id})
}

// Keys describes the cluster's key ring, without any key.
func (a *Admin) Keys(ctx context.Context) (KeyRing, error) {
	return ask[KeyRing](ctx, a, "keys", struct{}{})
}

// RotateKeys begins a new generation of the cluster's keys: from now on the
// nodes seal with it, each as soon as it has heard of it, and still open what
// the former ones sealed, for a week. Address tokens follow as nodes restart.
// Repeated with the same Nonce it is the same rotation. Refusals: BAD_REQUEST.
func (a *Admin) RotateKeys(ctx context.Context, req KeyRotation) (KeyRing, error) {
	if len(req.Nonce) == 0 {
		var err error
		if req.Nonce, err = newNonce(); err != nil {
			return KeyRing{}, err
		}
	}
	if req.By == "" {
		req.By = "operator"
	}
	return ask[KeyRing](ctx, a, "keys-rotate", req)
}

// Migrate moves a session and returns when that has ended. An error leaves the
// session where it was, but for DEADLINE_EXCEEDED and UNAVAILABLE: then
// Migrations tells.
func (a *Admin) Migrate(ctx context.Context, req MigrateRequest) (MigrationInfo, error) {
	return askOnce[MigrationInfo](ctx, a, "migrate", req)
}

// Migrations lists migrations, newest first.
func (a *Admin) Migrations(ctx context.Context, limit int) ([]MigrationInfo, error) {
	return ask[[]MigrationInfo](ctx, a, "migrations", migrationsReq{limit})
}

// AbortMigration calls off a migration that has not pivoted.
func (a *Admin) AbortMigration(ctx context.Context, id uint64) (MigrationInfo, error) {
	return ask[MigrationInfo](ctx, a, "abort", abortReq{id})
}

// Fence says that a node is gone for good: its sessions go to others, once the
// promises that its lease rests on have run out. A node that still renews its
// lease is alive, and is not fenced: LEASE_HELD.
func (a *Admin) Fence(ctx context.Context, node string) error {
	_, err := ask[struct{}](ctx, a, "fence", nodeRef{Node: node})
	return err
}

// SetLease changes how long leases last: a shorter one makes failover faster and
// bears shorter pauses. 200 ms to 5 s.
func (a *Admin) SetLease(ctx context.Context, d time.Duration) error {
	_, err := ask[struct{}](ctx, a, "set-lease", leaseRef{Lease: d, By: "an operator"})
	return err
}

// Verify compares state hashes and serving intervals across the live nodes.
func (a *Admin) Verify(ctx context.Context) (Verdict, error) {
	return ask[Verdict](ctx, a, "verify", struct{}{})
}

// Servings lists what the reachable nodes remember of having served.
func (a *Admin) Servings(ctx context.Context) ([]Serving, error) {
	return ask[[]Serving](ctx, a, "servings", struct{}{})
}

// TransferLeader makes the leader hand leadership to another voter.
func (a *Admin) TransferLeader(ctx context.Context) error {
	_, err := askOnce[struct{}](ctx, a, "transfer-leader", nodeRef{})
	return err
}

// Migrate moves a session from a program that runs a node; target is a node's
// name or id, or empty to let the cluster choose.
func (n *Node) Migrate(ctx context.Context, session, target string) (MigrationInfo, error) {
	body, err := marshal(MigrateRequest{Session: session, To: target, By: "node " + n.cfg.Name})
	if err != nil {
		return MigrationInfo{}, err
	}
	out, err := n.forward("migrate")(ctx, body)
	if err != nil {
		return MigrationInfo{}, noLeader(err)
	}
	var info MigrationInfo
	return info, json.Unmarshal(out, &info)
}

// Promote gives a node's server a vote, once it has caught up. RETRY: it has not.
func (a *Admin) Promote(ctx context.Context, node string) (ServerChange, error) {
	return askOnce[ServerChange](ctx, a, "raft-promote", nodeRef{Node: node})
}

// Replace moves a server's vote to another one. NO_TARGET: there is no spare.
func (a *Admin) Replace(ctx context.Context, req ReplaceRequest) (ServerChange, error) {
	return askOnce[ServerChange](ctx, a, "raft-replace", req)
}

// RemoveServer takes a dead node out of the cluster. BAD_REQUEST if it runs: see
// Leave. QUORUM_AT_RISK if too few voters would be left.
func (a *Admin) RemoveServer(ctx context.Context, node string) (ServerChange, error) {
	return askOnce[ServerChange](ctx, a, "raft-remove", removeRequest{Node: node})
}

// Leave has a node give up its place for good and stop; empty: the one at the only
// address. See Node.Leave.
func (a *Admin) Leave(ctx context.Context, node string) (ServerChange, error) {
	if node == "" && len(a.cfg.Addrs) > 1 {
		return ServerChange{}, wire.Errorf(wire.Code_BAD_REQUEST, "name the node that is to leave: there are %d addresses, and another might answer", len(a.cfg.Addrs))
	}
	return askOnce[ServerChange](ctx, a, "leave", nodeRef{Node: node})
}
