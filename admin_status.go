package baton

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"sort"
	"time"

	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// localStatus is what only the node itself knows.
type localStatus struct {
	Applied  uint64  `json:"applied"`
	FsyncP99 int64   `json:"fsync_p99_us"`
	Writes   uint64  `json:"log_writes"`
	Batch    Batch   `json:"batch"`
	Faults   []Fault `json:"faults,omitempty"`
	Keys     uint64  `json:"keys"` // newest generation in use
	LeaseUS  int64   `json:"lease_left_us"`
	// Suspects, by worker id, are the director's, where the node leads.
	Suspects  map[string]string `json:"suspects,omitempty"`
	Detection DetectionCounts   `json:"detection"`
	Conns     ConnCounts        `json:"conns"`
	Signs     bool              `json:"signs"` // it can issue certificates
	CertEnd   time.Time         `json:"certificate_end,omitzero"`
}

func (n *Node) local() localStatus {
	st := n.cluster.Stats()
	l := localStatus{
		Keys: n.keys.ring.Load().Generation(), Applied: st.Applied, FsyncP99: st.FsyncP99.Microseconds(), Writes: st.LogWrites,
		Batch: Batch{Entries: st.Entries, Commands: st.Commands},
	}
	l.Faults, l.Signs = n.Faults(), pki.CanSign(n.cfg.PKI)
	l.CertEnd, _ = n.identity.NotAfter()
	left, _ := n.leaseLeft(n.worker.Incarnation())
	l.LeaseUS = left.Microseconds()
	found := n.director.Detection()
	l.Suspects, l.Detection = found.Suspects, DetectionCounts{FalseAlarms: found.FalseAlarms, Fences: found.Fences}
	if n.serves.Load() {
		c := n.server.Stats()
		l.Conns = ConnCounts{
			Open: n.server.Conns(), Full: c.Full, Resumed: c.Resumed, ZeroRTT: c.ZeroRTT,
			Refused: c.Refused, Overflown: c.Overflown,
			WaitingMost: c.WaitingMost, WaitingMax: c.WaitingMax, SpreadUS: n.spread().Microseconds(), Standbys: n.worker.Standbys(),
		}
	}
	for _, b := range st.BatchSizes {
		l.Batch.Histogram = append(l.Batch.Histogram, BatchBucket{Max: b.Max, Entries: b.Count})
	}
	return l
}

func (n *Node) status(ctx context.Context) Status {
	locals, _ := gather(ctx, n, callLocal, n.local)
	leaderID, leaderAddr := n.cluster.Leader()
	stats := n.cluster.Stats()
	servers := n.cluster.Servers()
	voters, reachable := map[string]bool{}, 0
	for _, s := range servers {
		voters[s.ID] = s.Voter
	}
	out := Status{
		ClusterID: hex.EncodeToString(n.clusterID()), LeaderAddr: leaderAddr, Term: stats.Term, AppliedIndex: stats.Applied,
	}
	n.cluster.FSM().View(func(st *store.Store) {
		counts, c := st.Counts(), st.Cluster()
		out.FeatureLevel, out.Epoch = c.GetFeatureLevel(), c.GetEpochs()
		out.Sessions = SessionTotal{Total: counts.Sessions, Attached: counts.Attached, Migrating: counts.Migrating}
		out.ByteBudget = ByteBudget{Used: c.GetBytesUsed(), Limit: c.GetByteBudget()}
		for _, w := range st.Workers() {
			l, asked := locals[w.GetId()]
			ns := nodeStatus(w, voters[w.GetId()])
			ns.Sessions, ns.Attached = counts.Owned[w.GetId()], counts.OwnedAttached[w.GetId()]
			ns.Reachable, ns.AppliedIndex, ns.FsyncP99US, ns.LogWrites, ns.Batch = asked, l.Applied, l.FsyncP99, l.Writes, l.Batch
			ns.LeaseLeftUS = l.LeaseUS
			ns.Conns, ns.CertificateEnd = l.Conns, l.CertEnd
			out.Nodes = append(out.Nodes, ns)
		}
	})
	out.Nodes = append(out.Nodes, n.unregistered(servers)...)
	suspects := map[string]string{}
	for _, l := range locals {
		maps.Copy(suspects, l.Suspects)
		out.Detection.FalseAlarms += l.Detection.FalseAlarms
		out.Detection.Fences += l.Detection.Fences
	}
	out.Healthy = leaderID != ""
	for i := range out.Nodes {
		ns := &out.Nodes[i]
		if ns.ID == leaderID {
			out.Leader = ns.Name
		}
		why, suspected := suspects[ns.ID]
		if alive, known := n.doubt.alive(ns.ID); known && !alive {
			why, suspected = cmp.Or(why, "dead by gossip"), true
		}
		if suspected && ns.State != "fenced" {
			ns.State, ns.Suspicion = "suspect", why
		}
		ns.Faults = nonNil(locals[ns.ID].Faults)
		if ns.Voter && ns.Reachable && len(ns.Faults) == 0 {
			reachable++
		}
		out.Healthy = out.Healthy && ns.Reachable && (ns.State == "active" || ns.State == "draining") && len(ns.Faults) == 0
	}
	// Raft counts all that are configured, whether they ever registered or not.
	out.Quorum = len(voterIDs(voters))/2 + 1
	out.FailureTolerance = reachable - out.Quorum
	return out
}

func voterIDs(voters map[string]bool) (ids []string) {
	for id, v := range voters {
		if v {
			ids = append(ids, id)
		}
	}
	return ids
}

func nodeStatus(w *wire.WorkerRow, voter bool) NodeStatus {
	roles := []string{"worker"}
	if voter {
		roles = []string{"server", "worker"}
	}
	return NodeStatus{
		Name: w.GetName(), ID: w.GetId(), Incarnation: w.GetIncarnation(), Roles: roles, Voter: voter,
		State: stateName(w.GetState()), Endpoint: endpointOf(w.GetEndpoint()), Version: w.GetVersion(),
	}
}

func stateName(s wire.WorkerState) string {
	switch s {
	case wire.WorkerState_WORKER_STATE_ACTIVE:
		return "active"
	case wire.WorkerState_WORKER_STATE_DRAINING:
		return "draining"
	case wire.WorkerState_WORKER_STATE_FENCED:
		return "fenced"
	}
	return "unknown"
}

func endpointOf(e *wire.Endpoint) Endpoint {
	return Endpoint{Host: e.GetHost(), UserPort: int(e.GetUserPort()), MgmtPort: int(e.GetMgmtPort())}
}

func (n *Node) memberList() []Member {
	voters := map[string]bool{}
	for _, s := range n.cluster.Servers() {
		voters[s.ID] = s.Voter
	}
	seen := map[string]string{}
	contact := map[string]time.Duration{}
	now := n.cfg.Clock.Wall()
	for _, m := range n.members.List() {
		seen[m.ID] = string(m.State)
		contact[m.ID] = now.Sub(m.LastSeen)
	}
	out := []Member{}
	for _, w := range n.allWorkers() {
		m := Member{
			ID: w.GetId(), Name: w.GetName(), Incarnation: w.GetIncarnation(), Zone: w.GetZone(), Voter: voters[w.GetId()],
			Gossip: "unknown", State: stateName(w.GetState()), Endpoint: endpointOf(w.GetEndpoint()), Version: w.GetVersion(),
		}
		if g, ok := seen[w.GetId()]; ok {
			m.Gossip, m.LastContactUS = g, contact[w.GetId()].Microseconds()
		}
		out = append(out, m)
	}
	return out
}

// SessionFilter selects sessions.
type SessionFilter struct {
	Owner string `json:"owner,omitempty"` // node name or id; empty: all
	Limit int    `json:"limit,omitempty"` // 0: 1000; at most SessionsListMax
}

// SessionsListMax bounds a listing: one answer must fit a frame between nodes.
const SessionsListMax = 50_000

const listDefault = 1000

func (f SessionFilter) limit() int {
	if f.Limit <= 0 {
		return listDefault
	}
	return min(f.Limit, SessionsListMax)
}

func (n *Node) listSessions(f SessionFilter) ([]SessionInfo, error) {
	id := ""
	if f.Owner != "" {
		w, err := n.workerByName(f.Owner)
		if err != nil {
			return nil, err
		}
		id = w.GetId()
	}
	var rows []store.Summary
	var now uint64
	n.cluster.FSM().View(func(st *store.Store) {
		now = st.TimeUS()
		if id != "" {
			rows = st.SessionsOf(id, "", f.limit())
		} else {
			rows = st.List("", f.limit())
		}
	})
	return n.infos(rows, now), nil
}

// listUnowned lists sessions without a valid owner.
func (n *Node) listUnowned(ctx context.Context, f SessionFilter) ([]SessionInfo, error) {
	if err := n.current(ctx); err != nil {
		return nil, err
	}
	var rows []store.Summary
	var now uint64
	n.cluster.FSM().View(func(st *store.Store) {
		now = st.TimeUS()
		rows = st.Ownerless("", f.limit())
	})
	return n.infos(rows, now), nil
}

func (n *Node) infos(rows []store.Summary, now uint64) []SessionInfo {
	out := make([]SessionInfo, 0, len(rows))
	for _, r := range rows {
		out = append(out, n.info(r, now))
	}
	return out
}

func (n *Node) info(s store.Summary, now uint64) SessionInfo {
	i := SessionInfo{
		ID: s.ID, Incarnation: s.Owner.GetIncarnation(), Epoch: s.Epoch, Attached: s.Attached,
		TTLS: int64(s.TTLUS / 1e6), ExpiresInS: -1, Bytes: s.Bytes, Migration: s.Migration,
	}
	if s.Valid {
		i.Owner = n.workerName(s.Owner.GetWorker())
	}
	if s.Attached == 0 {
		i.ExpiresInS = max(0, int64(s.ExpiresUS)-int64(now)) / 1e6
	}
	return i
}

// current makes this node's state machine as new as the cluster's, so that an
// operator who asks any node is told what holds.
func (n *Node) current(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, gatherTime)
	defer cancel()
	if err := n.cluster.Barrier(ctx); err != nil {
		return wire.Errorf(wire.Code_UNAVAILABLE, "this node cannot reach a quorum: ask another node")
	}
	return nil
}

func (n *Node) row(ctx context.Context, id string) (row *wire.SessionRow, sum store.Summary, now uint64, err error) {
	if err := wire.CheckSessionID(id); err != nil {
		return nil, sum, 0, err
	}
	if err := n.current(ctx); err != nil {
		return nil, sum, 0, err
	}
	var gone wire.Code
	n.cluster.FSM().View(func(st *store.Store) {
		row = st.Row(id)
		sum, _ = st.Session(id)
		now = st.TimeUS()
		gone = st.Location(id).GetGone()
	})
	if row == nil {
		return nil, sum, 0, wire.Errorf(gone, "there is no session %q", id)
	}
	return row, sum, now, nil
}

func (n *Node) showSession(ctx context.Context, id string) (SessionInfo, error) {
	row, sum, now, err := n.row(ctx, id)
	if err != nil {
		return SessionInfo{}, err
	}
	i := n.info(sum, now)
	var last *wire.ClientWindow
	for _, c := range row.GetClients() {
		if last == nil || c.GetAttached() > last.GetAttached() {
			last = c
		}
	}
	i.NextSeq, i.AckedSeq = last.GetLast()+1, last.GetAck()
	i.StateHash = fmt.Sprintf("%016x", stateDigest(row))
	return i, nil
}

// stateDigest hashes a session's keys and values.
func stateDigest(row *wire.SessionRow) uint64 {
	return wire.Digest(&wire.Write{Changes: row.GetState()})
}

func (n *Node) explain(ctx context.Context, id string) (Explanation, error) {
	row, _, _, err := n.row(ctx, id)
	if err != nil {
		return Explanation{}, err
	}
	e := Explanation{ID: id}
	for _, h := range row.GetHistory() {
		e.Changes = append(e.Changes, OwnerChange{
			Epoch: h.GetEpoch(), Owner: n.workerName(h.GetOwner().GetWorker()), Incarnation: h.GetOwner().GetIncarnation(),
			From: n.workerName(h.GetFrom()), Index: h.GetIndex(), At: time.UnixMicro(h.GetWallUs()).UTC(),
			Reason: h.GetReason(), By: h.GetBy(), Migration: h.GetMigration(), PauseUS: h.GetPauseUs(),
		})
	}
	n.noteMigrations(&e)
	sort.SliceStable(e.Changes, func(i, j int) bool { return e.Changes[i].Epoch < e.Changes[j].Epoch })
	return e, nil
}

// nonNil makes an empty list print as one.
func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
