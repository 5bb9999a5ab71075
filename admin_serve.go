package baton

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/baton-cluster/baton/lease"
	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// The admin API on a node: bodies are JSON. What needs the leader is forwarded
// to it, so that an operator may ask any node.

type adminMethod func(ctx context.Context, body []byte) ([]byte, error)

// forwardTime bounds a forwarded call that came without a deadline, and
// gatherTime what a node waits for each of the others.
const (
	forwardTime = 10 * time.Minute
	// leaderTime is how long a forwarded call waits for a leader, some elections,
	// and leaderPoll how often it looks.
	leaderTime = 5 * time.Second
	leaderPoll = 50 * time.Millisecond
	gatherTime = time.Second
	// fenceTime bounds an operator's fence: the longest lease, the longest wait
	// after a change of the voters, and some.
	fenceTime = 15 * time.Second
)

func (n *Node) serveAdmin(s *rpcnet.Services) {
	any := map[string]adminMethod{
		"status":   method(func(ctx context.Context, _ struct{}) (Status, error) { return n.status(ctx), nil }),
		"members":  method(func(_ context.Context, _ struct{}) ([]Member, error) { return n.memberList(), nil }),
		"sessions": method(func(_ context.Context, f SessionFilter) ([]SessionInfo, error) { return n.listSessions(f) }),
		"session":  method(func(ctx context.Context, r sessionRef) (SessionInfo, error) { return n.showSession(ctx, r.ID) }),
		"explain":  method(func(ctx context.Context, r sessionRef) (Explanation, error) { return n.explain(ctx, r.ID) }),
		"verify":   method(func(ctx context.Context, _ struct{}) (Verdict, error) { return n.verify(ctx) }),
		"servings": method(func(ctx context.Context, _ struct{}) ([]Serving, error) {
			all, _ := n.gatherServings(ctx)
			return all, nil
		}),
		"keys":        method(func(ctx context.Context, _ struct{}) (KeyRing, error) { return n.keyRing(ctx), nil }),
		"undrain":     method(n.setActive),
		"abort":       method(n.abortMigration),
		"kill":        method(n.killByName),
		"leave":       method(n.leaveByName),
		"unowned":     method(n.listUnowned),
		"conns":       method(n.listConnections),
		"regroup":     method(n.migrateConnection),
		"backup":      method(n.backups.open),
		"backup-part": n.backups.part,
	}
	for name, fn := range any {
		registerAdmin(s, name, n.whenReady(fn))
	}
	registerAdmin(s, "debug", method(n.debugInfo)) // a node that does not serve yet is of interest, too
	for name := range n.leaderMethods() {
		registerAdmin(s, name, n.whenReady(n.forward(name)))
	}
}

// leaderMethods are answered by the leader alone.
func (n *Node) leaderMethods() map[string]adminMethod {
	return map[string]adminMethod{
		"migrate":         method(n.migrateByName),
		"migrations":      method(n.listMigrations),
		"failovers":       method(n.listFailovers),
		"transfer-leader": method(n.transferLeader),
		"raft-promote":    method(n.promote),
		"raft-replace":    method(n.replace),
		"raft-remove":     method(n.removeServer),
		"drain":           method(n.startDrain),
		"fence":           method(n.fenceByName),
		"set-lease":       method(n.setLease),
		"rebalance":       method(n.rebalance),
		"jobs":            method(n.listJobs),
		"job-update":      method(n.updateJob),
		"decide":          method(n.decideMove),
		"keys-rotate":     method(n.rotateKeys),

		"join-token-create": method(n.createJoinToken),
		"join-token-revoke": method(n.revokeJoinToken),
		"join-tokens":       method(func(context.Context, struct{}) ([]JoinTokenInfo, error) { return n.joinTokens(), nil }),
	}
}

func registerAdmin(s *rpcnet.Services, name string, fn adminMethod) {
	rpcnet.RegisterRaw(s, name, func(ctx context.Context, _ rpcnet.Caller, body []byte) ([]byte, error) { return fn(ctx, body) })
}

// method decodes the body, calls fn and encodes its answer.
func method[Req, Resp any](fn func(context.Context, Req) (Resp, error)) adminMethod {
	return func(ctx context.Context, body []byte) ([]byte, error) {
		var req Req
		if len(body) > 0 {
			if err := json.Unmarshal(body, &req); err != nil {
				return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the request cannot be read: %v", err)
			}
		}
		resp, err := fn(ctx, req)
		if err != nil {
			return nil, err
		}
		return marshal(resp)
	}
}

func marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, wire.Errorf(wire.Code_INTERNAL, "the answer cannot be encoded: %v", err)
	}
	return b, nil
}

// noLeader is what a caller is told of NOT_LEADER, by which nodes say to each other that
// nothing has been done.
func noLeader(err error) error {
	if e := (*wire.Error)(nil); errors.As(err, &e) && e.Code == wire.Code_NOT_LEADER {
		return wire.Errorf(wire.Code_UNAVAILABLE, "%s", e.Message)
	}
	return err
}

// whenReady refuses calls that come before the node's parts are up.
func (n *Node) whenReady(fn adminMethod) adminMethod {
	return func(ctx context.Context, body []byte) ([]byte, error) {
		if !n.serves.Load() {
			return nil, wire.Errorf(wire.Code_NOT_LEADER, "the node is starting and has not found its cluster yet: ask again")
		}
		return fn(ctx, body)
	}
}

// forward brings a call to the leader, this node or another. During an election it
// waits for its end, as nothing has been done so far; at most leaderTime. NOT_LEADER: there
// is none.
func (n *Node) forward(name string) adminMethod {
	local := n.leaderMethods()[name]
	return func(ctx context.Context, body []byte) ([]byte, error) {
		if _, bounded := ctx.Deadline(); !bounded {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, forwardTime)
			defer cancel()
		}
		for until := n.cfg.Clock.Now() + leaderTime; ; {
			out, err := n.atLeader(ctx, name, local, body)
			if wire.CodeOf(err) != wire.Code_NOT_LEADER {
				return out, err
			}
			if n.cfg.Clock.Now() >= until || seam.Sleep(ctx, n.cfg.Clock, leaderPoll) != nil {
				return nil, wire.Errorf(wire.Code_NOT_LEADER, "the cluster has no leader just now: ask again")
			}
		}
	}
}

// atLeader asks once. NOT_LEADER: nothing has been done.
func (n *Node) atLeader(ctx context.Context, name string, local adminMethod, body []byte) ([]byte, error) {
	if n.cluster.IsLeader() {
		return local(ctx, body)
	}
	_, addr := n.cluster.Leader()
	if addr == "" {
		return nil, wire.Errorf(wire.Code_NOT_LEADER, "no leader is known")
	}
	out, err := n.peers.Call(ctx, addr, callForward+"/"+name, body)
	if rpcnet.Unsent(err) && wire.CodeOf(err) == wire.Code_UNAVAILABLE {
		err = wire.Errorf(wire.Code_NOT_LEADER, "the leader that was last heard of cannot be reached: %v", err)
	}
	return out, err
}

type sessionRef struct {
	ID string `json:"id"`
}

type leaseRef struct {
	Lease time.Duration `json:"lease"`
	By    string        `json:"by"`
}

type nodeRef struct {
	Node string `json:"node"`
	By   string `json:"by,omitempty"`
}

// workerByName finds a worker by name or id.
func (n *Node) workerByName(name string) (*wire.WorkerRow, error) {
	var found *wire.WorkerRow
	for _, r := range n.allWorkers() {
		if r.GetName() != name && r.GetId() != name {
			continue
		}
		// One that was wiped left a fenced worker of its name behind, for a while.
		if found == nil || found.GetState() == wire.WorkerState_WORKER_STATE_FENCED {
			found = r
		}
	}
	if found != nil {
		return found, nil
	}
	return nil, wire.Errorf(wire.Code_UNKNOWN_WORKER, "the cluster has no node %q: `baton status` lists them", name)
}

func (n *Node) workerName(id string) string {
	name := id
	n.cluster.FSM().View(func(st *store.Store) {
		if r := st.Worker(id); r != nil {
			name = r.GetName()
		}
	})
	return name
}

// MigrateRequest asks for one session to be moved.
type MigrateRequest struct {
	Session    string `json:"session"`
	To         string `json:"to"`     // node name or id; empty: the cluster chooses
	Reason     string `json:"reason"` // planned_maintenance, load_balancing, health_degradation, admin_request (default), user_requested, emergency
	DeadlineUS int64  `json:"deadline_us"`
	Priority   uint32 `json:"priority"` // 1 (first) to 5
	By         string `json:"by"`
	// Metadata are notes that are kept with the migration's record: at most 16,
	// keys of 64 bytes and values of 256.
	Metadata map[string]string `json:"metadata,omitempty"`
}

// ReasonOf parses a migration's reason as the command line spells it.
func reasonOf(s string) (wire.Reason, error) {
	if s == "" {
		return wire.Reason_REASON_ADMIN_REQUEST, nil
	}
	if r, ok := wire.Reason_value["REASON_"+strings.ToUpper(s)]; ok && r != 0 {
		return wire.Reason(r), nil
	}
	return 0, wire.Errorf(wire.Code_BAD_REQUEST, "%q is no reason: use planned_maintenance, load_balancing, health_degradation, admin_request, user_requested or emergency", s)
}

func reasonName(r wire.Reason) string {
	return strings.ToLower(strings.TrimPrefix(r.String(), "REASON_"))
}

func (n *Node) migrateByName(ctx context.Context, req MigrateRequest) (MigrationInfo, error) {
	reason, err := reasonOf(req.Reason)
	if err != nil {
		return MigrationInfo{}, err
	}
	target := ""
	if req.To != "" {
		w, err := n.workerByName(req.To)
		if err != nil {
			return MigrationInfo{}, err
		}
		target = w.GetId()
	}
	if req.By == "" {
		req.By = "operator"
	}
	rep, err := n.director.Migrate(ctx, migrate.Request{
		Session: req.Session, Target: target, Reason: reason, Priority: req.Priority,
		Deadline: time.Duration(req.DeadlineUS) * time.Microsecond, By: req.By, Metadata: labelsOf(req.Metadata),
	})
	if err != nil {
		return MigrationInfo{}, err
	}
	return n.reportInfo(rep), nil
}

func (n *Node) reportInfo(r migrate.Report) MigrationInfo {
	info := MigrationInfo{
		Migration: r.Migration, Session: r.Session, State: r.State.String(), From: n.workerName(r.From), To: n.workerName(r.To),
		Epoch: r.Epoch, Reason: reasonName(r.Reason), By: r.By, Why: r.Why, PauseUS: r.PauseUS,
		ConfirmedBy: r.ConfirmedBy, Priority: r.Priority, Metadata: metadataOf(r.Metadata), Steps: []MigrationStep{},
	}
	if r.ExpiresUS > 0 {
		info.Request, info.ExpiresInUS = r.Request, r.ExpiresUS
	}
	for _, c := range r.Connections {
		info.Connections = append(info.Connections, MovedConnection{
			Client: hex.EncodeToString(c.GetClient()), Identity: c.GetIdentity(), ALPN: c.GetAlpn(),
			TLS: tls.VersionName(uint16(c.GetTlsVersion())), CipherSuite: tls.CipherSuiteName(uint16(c.GetCipherSuite())),
			RTTUS: c.GetTransport().GetSmoothedRttUs(), BytesSent: c.GetTransport().GetBytesSent(),
			BytesReceived: c.GetTransport().GetBytesReceived(), PacketsLost: c.GetTransport().GetPacketsLost(),
		})
	}
	if r.Parts != (migrate.Parts{}) {
		parts := PauseParts(r.Parts)
		info.Parts = &parts
	}
	for _, s := range r.Steps {
		at, _ := time.Parse(time.RFC3339Nano, s.At)
		info.Steps = append(info.Steps, MigrationStep{State: s.State.String(), At: at, TookUS: s.TookUS})
	}
	return info
}

type migrationsReq struct {
	Limit int `json:"limit"`
}

// listMigrations tells of those that wait for an operator, of those under way as the director sees them, and of
// all others as the log has them, newest first.
func (n *Node) listMigrations(_ context.Context, req migrationsReq) ([]MigrationInfo, error) {
	if req.Limit <= 0 {
		req.Limit = 100
	}
	active := map[uint64]migrate.Report{}
	running := n.director.Active()
	for _, r := range running {
		active[r.Migration] = r
	}
	var rows []*wire.Migration
	n.cluster.FSM().View(func(st *store.Store) { rows = st.Migrations(req.Limit) })
	out := make([]MigrationInfo, 0, len(rows))
	for _, r := range waitingMoves(running) {
		out = append(out, n.reportInfo(r))
	}
	for _, m := range rows {
		if r, ok := active[m.GetId()]; ok {
			out = append(out, n.reportInfo(r))
			continue
		}
		out = append(out, n.migrationInfo(m))
	}
	return out, nil
}

func (n *Node) migrationInfo(m *wire.Migration) MigrationInfo {
	epoch := m.GetTargetEpoch()
	if epoch == 0 {
		epoch = m.GetSourceEpoch()
	}
	return MigrationInfo{
		Migration: m.GetId(), Session: m.GetSession(), State: migrate.StateOf(m.GetPhase()).String(),
		From: n.workerName(m.GetSource().GetWorker()), To: n.workerName(m.GetTarget().GetWorker()), Epoch: epoch,
		Reason: reasonName(m.GetReason()), By: m.GetBy(), Why: m.GetWhy(), PauseUS: m.GetPauseUs(),
		ConfirmedBy: m.GetConfirmedBy(), Priority: m.GetPriority(), Metadata: metadataOf(m.GetMetadata()), Steps: []MigrationStep{},
	}
}

type abortReq struct {
	Migration uint64 `json:"migration"`
}

func (n *Node) abortMigration(ctx context.Context, req abortReq) (MigrationInfo, error) {
	res, err := n.cluster.ProposeWait(ctx, &wire.Command{Kind: &wire.Command_Abort{Abort: &wire.AbortMigration{Migration: req.Migration, Reason: "aborted by an operator"}}})
	if err != nil {
		return MigrationInfo{}, err
	}
	switch code := res[0].GetCode(); code {
	case wire.Code_OK:
		return n.migrationInfo(res[0].GetMigration()), nil
	case wire.Code_MIGRATION_PIVOTED:
		return MigrationInfo{}, wire.Errorf(code, "migration %d has pivoted already: the session is at its target", req.Migration)
	default:
		return MigrationInfo{}, wire.Errorf(code, "there is no migration %d", req.Migration)
	}
}

func (n *Node) setActive(ctx context.Context, req nodeRef) (struct{}, error) {
	return struct{}{}, n.setState(ctx, req, wire.WorkerState_WORKER_STATE_ACTIVE)
}

func (n *Node) setState(ctx context.Context, req nodeRef, state wire.WorkerState) error {
	w, err := n.workerByName(req.Node)
	if err != nil {
		return err
	}
	return n.one(ctx, &wire.Command{Kind: &wire.Command_SetWorkerState{SetWorkerState: &wire.SetWorkerState{
		Id: w.GetId(), State: state, By: req.By,
	}}}, fmt.Sprintf("node %s is fenced: it must register again first", req.Node))
}

func (n *Node) fenceByName(ctx context.Context, req nodeRef) (struct{}, error) {
	w, err := n.workerByName(req.Node)
	if err != nil {
		return struct{}{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, fenceTime)
	defer cancel()
	return struct{}{}, n.director.Fence(ctx, w.GetId(), w.GetIncarnation())
}

// setLease changes how long leases last.
func (n *Node) setLease(ctx context.Context, req leaseRef) (struct{}, error) {
	return struct{}{}, n.one(ctx, &wire.Command{Kind: &wire.Command_SetLease{SetLease: &wire.SetLease{
		LeaseUs: uint64(req.Lease / time.Microsecond), By: req.By,
	}}}, fmt.Sprintf("a lease lasts %v to %v", lease.TMin, lease.TMax))
}

// one proposes a single command and turns a refusal into an error.
func (n *Node) one(ctx context.Context, cmd *wire.Command, refused string) error {
	res, err := n.cluster.ProposeWait(ctx, cmd)
	if err != nil {
		return err
	}
	if code := res[0].GetCode(); code != wire.Code_OK {
		return wire.Errorf(code, "%s", refused)
	}
	return nil
}

func (n *Node) transferLeader(ctx context.Context, _ nodeRef) (struct{}, error) {
	return struct{}{}, n.cluster.TransferLeadership(ctx)
}

// gather asks every registered worker, this one directly, all at once.
func gather[T any](ctx context.Context, n *Node, method string, self func() T) (answers map[string]T, unreachable []string) {
	ctx, cancel := context.WithTimeout(ctx, gatherTime)
	defer cancel()
	answers = make(map[string]T)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, w := range n.allWorkers() {
		if w.GetId() == n.id {
			v := self()
			mu.Lock()
			answers[w.GetId()] = v
			mu.Unlock()
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			var v T
			body, err := n.peers.Call(ctx, mgmtAddr(w), method, nil)
			if err == nil {
				err = json.Unmarshal(body, &v)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				unreachable = append(unreachable, w.GetName())
				return
			}
			answers[w.GetId()] = v
		}()
	}
	wg.Wait()
	return answers, unreachable
}
