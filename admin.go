package baton

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"sort"
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
	return &Admin{cfg: cfg, peers: rpcnet.NewPeers(rpcnet.PeerConfig{
		Network: cfg.Network, Clock: cfg.Clock, TLS: id.PeerClient(rpcnet.ALPNAdmin), ALPN: rpcnet.ALPNAdmin,
		Identify: func(cs tls.ConnectionState) (string, string) { return identify(cs) }, Log: cfg.Log,
	})}, nil
}

// Close ends the connections.
func (a *Admin) Close() error {
	a.peers.Close()
	return nil
}

// ask calls method on one node after the other until one answers.
func ask[Resp any](ctx context.Context, a *Admin, method string, req any) (resp Resp, err error) {
	body, err := json.Marshal(req)
	if err != nil {
		return resp, err
	}
	for _, addr := range a.cfg.Addrs {
		var out []byte
		if out, err = a.peers.Call(ctx, addr, method, body); err == nil {
			return resp, json.Unmarshal(out, &resp)
		}
		if code := wire.CodeOf(err); code != wire.Code_UNAVAILABLE && code != wire.Code_NOT_LEADER || ctx.Err() != nil {
			return resp, err
		}
	}
	return resp, err
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

// Migrate moves a session and returns when that has ended. An error leaves the
// session where it was, but for DEADLINE_EXCEEDED and UNAVAILABLE: then
// Migrations tells.
func (a *Admin) Migrate(ctx context.Context, req MigrateRequest) (MigrationInfo, error) {
	return ask[MigrationInfo](ctx, a, "migrate", req)
}

// Migrations lists migrations, newest first.
func (a *Admin) Migrations(ctx context.Context, limit int) ([]MigrationInfo, error) {
	return ask[[]MigrationInfo](ctx, a, "migrations", migrationsReq{limit})
}

// AbortMigration calls off a migration that has not pivoted.
func (a *Admin) AbortMigration(ctx context.Context, id uint64) (MigrationInfo, error) {
	return ask[MigrationInfo](ctx, a, "abort", abortReq{id})
}

// Fence says that a node is gone for good: its sessions go to others. A node
// that is alive after all registers anew, with none.
func (a *Admin) Fence(ctx context.Context, node string) error {
	_, err := ask[struct{}](ctx, a, "fence", nodeRef{Node: node})
	return err
}

// Undrain lets a node take sessions again.
func (a *Admin) Undrain(ctx context.Context, node string) error {
	_, err := ask[struct{}](ctx, a, "undrain", nodeRef{Node: node})
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
	_, err := ask[struct{}](ctx, a, "transfer-leader", nodeRef{})
	return err
}

// DrainOptions bound a drain.
type DrainOptions struct {
	// Deadline is how long to follow the drain; 0: until ctx ends. The drain
	// itself goes on until Undrain.
	Deadline time.Duration
	By       string
}

// drainPoll is how often a drain's progress is asked for.
const drainPoll = 200 * time.Millisecond

// Drain moves all sessions off a node, and keeps new ones away until Undrain.
// It follows the drain, calling progress, and returns when the node owns
// nothing. When ctx or the deadline ends first, the drain goes on, and the
// report so far comes with the error.
func (a *Admin) Drain(ctx context.Context, node string, opt DrainOptions, progress func(DrainReport)) (DrainReport, error) {
	if opt.Deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, opt.Deadline)
		defer cancel()
	}
	began := a.cfg.Clock.Now()
	before, err := a.Migrations(ctx, 1)
	if err != nil {
		return DrainReport{}, err
	}
	var since uint64
	if len(before) > 0 {
		since = before[0].Migration
	}
	if _, err := ask[struct{}](ctx, a, "drain", nodeRef{Node: node, By: opt.By}); err != nil {
		return DrainReport{}, err
	}
	for {
		r, err := a.drainReport(ctx, node, since)
		r.TookUS = (a.cfg.Clock.Now() - began).Microseconds()
		if err == nil && progress != nil {
			progress(r)
		}
		if err == nil && r.Remaining == 0 {
			return a.judgeDrain(ctx, r)
		}
		if err != nil && !wire.CodeOf(err).Retryable() {
			return r, err
		}
		if seam.Sleep(ctx, a.cfg.Clock, drainPoll) != nil {
			return r, wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "the drain of %s goes on: %d sessions are still there", node, r.Remaining)
		}
	}
}

// drainReport counts what the migrations off node since one id came to.
func (a *Admin) drainReport(ctx context.Context, node string, since uint64) (DrainReport, error) {
	r := DrainReport{Node: node}
	st, err := a.Status(ctx)
	if err != nil {
		return r, err
	}
	for _, ns := range st.Nodes {
		if ns.Name == node || ns.ID == node {
			r.Remaining = ns.Sessions
		}
	}
	moves, err := a.Migrations(ctx, wire.EndedMigrationsMax)
	if err != nil {
		return r, err
	}
	var pauses []int64
	moved, failed := map[string]bool{}, map[string]bool{}
	for _, m := range moves {
		if m.Migration <= since || m.From != node {
			continue
		}
		switch m.State {
		case "Completed":
			moved[m.Session] = true
			pauses = append(pauses, int64(m.PauseUS))
		case "Aborted", "Failed":
			failed[m.Session] = true
		}
	}
	for id := range failed {
		if !moved[id] {
			r.Failed++
		}
	}
	r.Moved, r.PauseUS = len(moved), quantiles(pauses)
	return r, nil
}

// judgeDrain adds what a finished drain may have broken.
func (a *Admin) judgeDrain(ctx context.Context, r DrainReport) (DrainReport, error) {
	unowned, err := ask[[]SessionInfo](ctx, a, "unowned", SessionFilter{Limit: listMax})
	if err != nil {
		return r, err
	}
	r.Lost = len(unowned)
	v, err := a.Verify(ctx)
	if err != nil {
		return r, err
	}
	r.Duplicated = v.DoubleOwned
	return r, nil
}

func quantiles(us []int64) Quantiles {
	if len(us) == 0 {
		return Quantiles{}
	}
	sort.Slice(us, func(i, j int) bool { return us[i] < us[j] })
	at := func(q float64) int64 { return us[min(len(us)-1, int(q*float64(len(us))))] }
	return Quantiles{P50: at(0.5), P99: at(0.99), Max: us[len(us)-1]}
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
		return MigrationInfo{}, err
	}
	var info MigrationInfo
	return info, json.Unmarshal(out, &info)
}
