package store

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"sort"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// twin is the store written as dumbly as possible: plain maps of plain rows,
// everything copied, everything searched, nothing kept that can be worked out.
// The property tests hold the store against it.
type twin struct {
	cluster    *wire.ClusterRow
	index      uint64
	wall       int64
	workers    map[string]*wire.WorkerRow
	sessions   map[string]*wire.SessionRow
	migrations map[uint64]*wire.Migration
	closed     map[string]*wire.Closed // by session NUL nonce
	jobs       map[uint64]*wire.Job
}

func newTwin() *twin {
	return &twin{
		cluster: &wire.ClusterRow{}, workers: map[string]*wire.WorkerRow{}, sessions: map[string]*wire.SessionRow{},
		migrations: map[uint64]*wire.Migration{}, closed: map[string]*wire.Closed{}, jobs: map[uint64]*wire.Job{},
	}
}

func (w *twin) apply(index uint64, e *wire.Entry) []*wire.Result {
	w.index, w.wall = index, e.WallUs
	w.cluster.TimeUs = max(w.cluster.TimeUs, e.TimeUs)
	w.cluster.Position = index << 12
	maps.DeleteFunc(w.closed, func(_ string, c *wire.Closed) bool { return c.UntilUs < w.cluster.TimeUs })
	w.dropKeys()
	w.dropJoinTokens()
	var results []*wire.Result
	for i, c := range e.Commands {
		w.cluster.Position = index<<12 + uint64(i)
		res := w.command(proto.Clone(c).(*wire.Command))
		res.Position = w.cluster.Position
		results = append(results, proto.Clone(res).(*wire.Result))
		w.account()
	}
	return results
}

func (w *twin) servers(index uint64, voters []string) {
	w.cluster.Position = index << 12
	var rows []*wire.Voter
	for _, id := range voters {
		rows = append(rows, &wire.Voter{Id: id})
	}
	if !slices.EqualFunc(rows, w.cluster.Voters, func(a, b *wire.Voter) bool { return a.Id == b.Id }) {
		w.cluster.VoterConfig, w.cluster.Voters = index, rows
	}
}

// account works out what every row is charged.
func (w *twin) account() {
	w.cluster.BytesUsed = 0
	for _, r := range w.sessions {
		r.Bytes = uint64(2048 + len(r.Id))
		for _, c := range r.State {
			r.Bytes += uint64(len(c.Key) + len(c.Value) + 64)
		}
		for _, c := range r.Clients {
			r.Bytes += uint64(len(c.Client) + 64)
			for _, p := range c.Replies {
				r.Bytes += uint64(len(p.Reply.Message) + len(p.Reply.Payload) + 64)
			}
		}
		for _, p := range r.Outbox {
			r.Bytes += uint64(len(p.Payload) + 64)
		}
		w.cluster.BytesUsed += r.Bytes
	}
	for _, c := range w.closed {
		w.cluster.BytesUsed += uint64(len(c.Session) + len(c.Nonce) + 64)
	}
}

func (w *twin) dump() []*wire.SnapshotRecord {
	list := []*wire.SnapshotRecord{{Kind: &wire.SnapshotRecord_Cluster{Cluster: w.cluster}}}
	for _, k := range slices.Sorted(maps.Keys(w.workers)) {
		list = append(list, &wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Worker{Worker: w.workers[k]}})
	}
	for _, k := range slices.Sorted(maps.Keys(w.sessions)) {
		list = append(list, &wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Session{Session: w.sessions[k]}})
	}
	for _, k := range slices.Sorted(maps.Keys(w.migrations)) {
		list = append(list, &wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Migration{Migration: w.migrations[k]}})
	}
	for _, k := range slices.Sorted(maps.Keys(w.closed)) {
		list = append(list, &wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Closed{Closed: w.closed[k]}})
	}
	for _, k := range slices.Sorted(maps.Keys(w.jobs)) {
		list = append(list, &wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Job{Job: w.jobs[k]}})
	}
	return list
}

func code(c wire.Code) *wire.Result { return &wire.Result{Code: c} }

func (w *twin) valid(o *wire.Owner) bool {
	r := w.workers[o.GetWorker()]
	return r != nil && r.Incarnation == o.GetIncarnation() && r.State != wire.WorkerState_WORKER_STATE_FENCED
}

func (w *twin) epoch() uint64 {
	w.cluster.Epochs++
	return w.cluster.Epochs
}

func (w *twin) gone(id string) wire.Code {
	why, nonce := wire.Code_UNKNOWN_SESSION, ""
	for _, c := range w.closed {
		if c.Session == id && string(c.Nonce) >= nonce {
			why, nonce = c.Why, string(c.Nonce)
		}
	}
	return why
}

func (w *twin) command(c *wire.Command) *wire.Result {
	switch k := c.Kind.(type) {
	case *wire.Command_InitCluster:
		if w.cluster.ClusterId != nil {
			return code(wire.Code_ALREADY_INITIALISED)
		}
		w.cluster.ClusterId, w.cluster.ByteBudget = k.InitCluster.ClusterId, k.InitCluster.ByteBudget
		w.cluster.FeatureLevel = k.InitCluster.FeatureLevel
		w.cluster.LeaseUs = 1_000_000
		return code(wire.Code_OK)
	case *wire.Command_RegisterWorker:
		return w.register(k.RegisterWorker)
	case *wire.Command_FenceWorker:
		return w.fence(k.FenceWorker)
	case *wire.Command_SetLease:
		switch us := k.SetLease.LeaseUs; {
		case us < 200_000 || us > 5_000_000:
			return code(wire.Code_BAD_REQUEST)
		case us == w.cluster.LeaseUs:
			return &wire.Result{Duplicate: true}
		default:
			w.cluster.LeaseUs = us
		}
		return code(wire.Code_OK)
	case *wire.Command_RemoveWorker:
		return w.removeWorker(k.RemoveWorker)
	case *wire.Command_SetWorkerState:
		return w.setState(k.SetWorkerState)
	case *wire.Command_Open:
		return w.open(k.Open)
	case *wire.Command_Attach:
		return w.gated(k.Attach, func(r *wire.SessionRow) *wire.Result { return w.attach(r, k.Attach) })
	case *wire.Command_Detach:
		return w.gated(k.Detach, func(r *wire.SessionRow) *wire.Result { return w.detach(r, k.Detach) })
	case *wire.Command_Claim:
		return w.gated(k.Claim, func(r *wire.SessionRow) *wire.Result { return &wire.Result{Epoch: r.Epoch, Row: r} })
	case *wire.Command_Write:
		return w.gated(k.Write, func(r *wire.SessionRow) *wire.Result { return w.write(r, k.Write) })
	case *wire.Command_Cancel:
		return w.gated(k.Cancel, func(r *wire.SessionRow) *wire.Result { return w.cancel(r, k.Cancel) })
	case *wire.Command_Ack:
		return w.gated(k.Ack, func(r *wire.SessionRow) *wire.Result { return w.ack(r, k.Ack) })
	case *wire.Command_Close:
		return w.gated(k.Close, func(r *wire.SessionRow) *wire.Result { return w.retire(r, wire.Code_SESSION_CLOSED, "session closed") })
	case *wire.Command_Expire:
		return w.expire(k.Expire)
	case *wire.Command_Assign:
		return w.assign(k.Assign)
	case *wire.Command_Begin:
		return w.begin(k.Begin)
	case *wire.Command_Pivot:
		return w.pivot(k.Pivot)
	case *wire.Command_Abort:
		return w.abort(k.Abort)
	case *wire.Command_End:
		return w.end(k.End)
	case *wire.Command_StartJob:
		return w.startJob(k.StartJob)
	case *wire.Command_UpdateJob:
		return w.updateJob(k.UpdateJob)
	case *wire.Command_EndJob:
		return w.endJob(k.EndJob)
	case *wire.Command_RotateKeys:
		return w.rotateKeys(k.RotateKeys)
	case *wire.Command_MakeJoinToken:
		return w.makeJoinToken(k.MakeJoinToken)
	case *wire.Command_UseJoinToken:
		return w.useJoinToken(k.UseJoinToken)
	case *wire.Command_RevokeJoinToken:
		return w.revokeJoinToken(k.RevokeJoinToken)
	case *wire.Command_ReadMarker:
		if !w.valid(k.ReadMarker.Owner) {
			return code(wire.Code_STALE_INCARNATION)
		}
	}
	return code(wire.Code_OK)
}

func (w *twin) register(c *wire.RegisterWorker) *wire.Result {
	old := w.workers[c.Id]
	state, reason, drain := wire.WorkerState_WORKER_STATE_ACTIVE, "", uint64(0)
	if old != nil {
		if bytes.Equal(old.Nonce, c.Nonce) {
			return &wire.Result{Duplicate: true, Epoch: old.Incarnation}
		}
		if old.State != state && !old.UntilRegister {
			state, reason, drain = wire.WorkerState_WORKER_STATE_DRAINING, old.Reason, old.Job
		}
	}
	if c.Predecessor != old.GetIncarnation() {
		return &wire.Result{Code: wire.Code_PREDECESSOR_MISMATCH, Current: old.GetIncarnation()}
	}
	if old != nil && old.State != wire.WorkerState_WORKER_STATE_FENCED && !(c.Place.GetLocal() && proto.Equal(c.Place, old.Place)) {
		return &wire.Result{Code: wire.Code_PREDECESSOR_ALIVE, Current: old.Incarnation}
	}
	if state == wire.WorkerState_WORKER_STATE_ACTIVE {
		w.drainOver(old, "the worker started again")
	}
	w.workers[c.Id] = &wire.WorkerRow{
		Id: c.Id, Name: c.Name, Incarnation: w.epoch(), Nonce: c.Nonce, Endpoint: c.Endpoint, Zone: c.Zone,
		Capacity: c.Capacity, Version: c.Version, State: state, Reason: reason, Job: drain, Place: c.Place,
	}
	return &wire.Result{Epoch: w.cluster.Epochs}
}

func (w *twin) fence(c *wire.FenceWorker) *wire.Result {
	r := w.workers[c.Id]
	switch {
	case r == nil:
		return code(wire.Code_UNKNOWN_WORKER)
	case r.Incarnation != c.Incarnation:
		return &wire.Result{Code: wire.Code_STALE_INCARNATION, Current: r.Incarnation}
	case r.State == wire.WorkerState_WORKER_STATE_FENCED:
		return &wire.Result{Duplicate: true}
	case c.VoterConfig < w.cluster.VoterConfig:
		return &wire.Result{Code: wire.Code_LEASE_OTHER_CONFIG, Current: w.cluster.VoterConfig}
	}
	if r.State == wire.WorkerState_WORKER_STATE_ACTIVE {
		r.UntilRegister = true
	}
	r.State, r.Reason = wire.WorkerState_WORKER_STATE_FENCED, c.Reason
	return code(wire.Code_OK)
}

func (w *twin) removeWorker(c *wire.RemoveWorker) *wire.Result {
	r := w.workers[c.Id]
	switch {
	case c.Id == "":
		return code(wire.Code_BAD_REQUEST)
	case r == nil:
		return &wire.Result{Duplicate: true}
	case r.Incarnation != c.Incarnation:
		return &wire.Result{Code: wire.Code_STALE_INCARNATION, Current: r.Incarnation}
	case r.State == wire.WorkerState_WORKER_STATE_ACTIVE:
		return code(wire.Code_BAD_REQUEST)
	}
	for _, s := range w.sessions {
		if s.Owner.GetWorker() == c.Id {
			return code(wire.Code_SESSIONS_LEFT)
		}
	}
	w.drainOver(r, "the worker left")
	delete(w.workers, c.Id)
	return code(wire.Code_OK)
}

func (w *twin) setState(c *wire.SetWorkerState) *wire.Result {
	r := w.workers[c.Id]
	switch {
	case r == nil:
		return code(wire.Code_UNKNOWN_WORKER)
	case r.State == wire.WorkerState_WORKER_STATE_FENCED:
		return code(wire.Code_WORKER_FENCED)
	}
	until := c.UntilRegister && c.State == wire.WorkerState_WORKER_STATE_DRAINING
	if r.State == c.State && r.UntilRegister == until {
		return &wire.Result{Duplicate: true}
	}
	r.State, r.UntilRegister, r.Reason = c.State, until, c.By
	if c.State == wire.WorkerState_WORKER_STATE_ACTIVE {
		w.drainOver(r, "undrained by "+c.By)
		r.Job = 0
	}
	return code(wire.Code_OK)
}

// gated is what all commands of an owner have in common. It also notes the
// change position: f's result is a change unless it says duplicate or refused.
func (w *twin) gated(c interface {
	GetSession() string
	GetEpoch() uint64
	GetOwner() *wire.Owner
}, f func(*wire.SessionRow) *wire.Result) *wire.Result {
	r := w.sessions[c.GetSession()]
	if r == nil {
		return code(w.gone(c.GetSession()))
	}
	before := r.Change
	var res *wire.Result
	switch {
	case r.Epoch != c.GetEpoch():
		res = code(wire.Code_STALE_EPOCH)
	case !proto.Equal(r.Owner, c.GetOwner()), !w.valid(r.Owner):
		res = code(wire.Code_STALE_INCARNATION)
	default:
		res = f(r)
	}
	res.Before, res.After = before, before
	if _, claim := c.(*wire.Claim); !claim && res.Code == wire.Code_OK && !res.Duplicate {
		r.Change, res.After = w.cluster.Position, w.cluster.Position
	}
	w.account()
	return res
}

func (w *twin) open(c *wire.OpenSession) *wire.Result {
	if r := w.sessions[c.Session]; r != nil && bytes.Equal(r.OpenNonce, c.Nonce) {
		return &wire.Result{Duplicate: true, Before: r.Change, After: r.Change, Epoch: r.Epoch, Row: r}
	}
	if old := w.closed[c.Session+"\x00"+string(c.Nonce)]; old != nil {
		return code(old.Why)
	}
	switch {
	case w.cluster.TimeUs > c.DeadlineUs:
		return &wire.Result{Code: wire.Code_OPEN_TOO_LATE, TimeUs: w.cluster.TimeUs}
	case w.sessions[c.Session] != nil:
		return code(wire.Code_SESSION_EXISTS)
	case !w.valid(c.Owner):
		return code(wire.Code_STALE_INCARNATION)
	case w.cluster.BytesUsed+2048+uint64(len(c.Session)) > w.cluster.ByteBudget:
		return code(wire.Code_BUDGET_EXCEEDED)
	}
	r := &wire.SessionRow{
		Id: c.Session, SecretHash: c.SecretHash, TtlUs: c.TtlUs, Shared: c.Shared, OpenNonce: c.Nonce,
		OpenDeadlineUs: c.DeadlineUs, ExpiresUs: w.cluster.TimeUs + c.TtlUs, PushNext: 1, Change: w.cluster.Position,
	}
	w.sessions[r.Id] = r
	w.give(r, c.Owner, &wire.OwnerChange{Reason: "opened", By: c.By})
	w.account()
	return &wire.Result{After: r.Change, Epoch: r.Epoch, Row: r}
}

func (w *twin) give(r *wire.SessionRow, to *wire.Owner, c *wire.OwnerChange) {
	c.From, c.Owner, c.Epoch, c.Index, c.WallUs = r.Owner.GetWorker(), to, w.epoch(), w.index, w.wall
	r.Owner, r.Epoch = to, c.Epoch
	r.History = append(r.History, c)
	if len(r.History) > 32 {
		r.History = r.History[1:]
	}
}

func (r *twinRow) window(client []byte) *wire.ClientWindow {
	for _, c := range r.Clients {
		if bytes.Equal(c.Client, client) {
			return c
		}
	}
	return nil
}

// twinRow gives a row methods.
type twinRow wire.SessionRow

func (r *twinRow) attached(client []byte) *wire.Attachment {
	for _, a := range r.Attachments {
		if bytes.Equal(a.Client, client) {
			return a
		}
	}
	return nil
}

func (w *twin) attach(r *wire.SessionRow, c *wire.Attach) *wire.Result {
	if c.Number == 0 {
		return code(wire.Code_BAD_REQUEST)
	}
	if c.Number <= r.AttachHigh {
		if a := (*twinRow)(r).attached(c.Client); a != nil && a.Number == c.Number {
			return &wire.Result{Duplicate: true, Epoch: r.Epoch, Row: r}
		}
		return code(wire.Code_NOT_ATTACHED)
	}
	if (*twinRow)(r).window(c.Client) == nil && !c.Fresh {
		return code(wire.Code_CLIENT_GONE)
	}
	w.join(r, c.Client, c.Number)
	return &wire.Result{Epoch: r.Epoch, Row: w.changed(r)}
}

// changed is for rows in results: as it will be once gated has noted the change.
func (w *twin) changed(r *wire.SessionRow) *wire.SessionRow {
	r.Change = w.cluster.Position
	w.account()
	return r
}

func (w *twin) join(r *wire.SessionRow, client []byte, number uint64) {
	r.Attachments = slices.DeleteFunc(r.Attachments, func(a *wire.Attachment) bool {
		return !r.Shared || bytes.Equal(a.Client, client)
	})
	r.Attachments = append(r.Attachments, &wire.Attachment{Number: number, Client: client})
	r.AttachHigh, r.ExpiresUs = number, 0
	win := (*twinRow)(r).window(client)
	if win == nil {
		win = &wire.ClientWindow{Client: client}
		r.Clients = append(r.Clients, win)
		slices.SortFunc(r.Clients, func(a, b *wire.ClientWindow) int { return bytes.Compare(a.Client, b.Client) })
	}
	win.Attached = w.cluster.Position
}

func (w *twin) detach(r *wire.SessionRow, c *wire.Detach) *wire.Result {
	n := len(r.Attachments)
	r.Attachments = slices.DeleteFunc(r.Attachments, func(a *wire.Attachment) bool { return a.Number == c.Number })
	if len(r.Attachments) == n {
		return &wire.Result{Duplicate: true}
	}
	if len(r.Attachments) == 0 {
		r.ExpiresUs = w.cluster.TimeUs + r.TtlUs
	}
	return code(wire.Code_OK)
}

// member answers for clients that are not attached, settled for seqs that are
// settled or out of order; nil means go on.
func member(r *wire.SessionRow, client []byte) *wire.Result {
	switch {
	case (*twinRow)(r).attached(client) != nil:
		return nil
	case !r.Shared && len(r.Attachments) > 0:
		return code(wire.Code_DISPLACED)
	}
	return code(wire.Code_NOT_ATTACHED)
}

func seqSettled(win *wire.ClientWindow, seq, prev uint64) *wire.Result {
	for _, p := range win.Replies {
		if p.Reply.Seq == seq {
			return &wire.Result{Duplicate: true, Reply: p.Reply, Digest: p.Digest}
		}
	}
	switch {
	case seq <= win.Last, seq < win.Ack:
		return code(wire.Code_REPLY_GONE)
	case prev != win.Last:
		return code(wire.Code_SEQ_MISMATCH)
	}
	return nil
}

func (w *twin) write(r *wire.SessionRow, c *wire.Write) *wire.Result {
	if res := member(r, c.Client); res != nil {
		return res
	}
	if res := seqSettled((*twinRow)(r).window(c.Client), c.Seq, c.Prev); res != nil {
		return res
	}
	if c.Ack > c.Seq {
		return code(wire.Code_BAD_REQUEST)
	}
	// Try it on a copy and look at what came out.
	old, oldUsed := proto.Clone(r).(*wire.SessionRow), w.cluster.BytesUsed
	state := map[string][]byte{}
	for _, s := range r.State {
		state[s.Key] = s.Value
	}
	deletes := len(c.Changes) > 0 && len(c.Pushes) == 0
	for _, ch := range c.Changes {
		if deletes = deletes && ch.Delete; ch.Delete {
			delete(state, ch.Key)
		} else {
			state[ch.Key] = ch.Value
		}
	}
	r.State = nil
	for _, k := range slices.Sorted(maps.Keys(state)) {
		r.State = append(r.State, &wire.Change{Key: k, Value: state[k]})
	}
	w.received(r, c.Client, c.Ack, c.PushAck)
	for _, p := range c.Pushes {
		r.Outbox = append(r.Outbox, &wire.Push{Seq: r.PushNext, Payload: p})
		r.PushNext++
	}
	w.reply(r, c.Client, &wire.CachedReply{Reply: c.Reply, Digest: c.Digest})
	undo := func(why wire.Code) *wire.Result {
		w.sessions[r.Id] = old
		return code(why)
	}
	switch {
	case len(c.Pushes) > 0 && len(r.Outbox) > wire.OutboxMax:
		return undo(wire.Code_OUTBOX_FULL)
	case !makeRoom(r):
		return undo(wire.Code_REPLY_CACHE_FULL)
	}
	w.account()
	if w.cluster.BytesUsed > oldUsed && w.cluster.BytesUsed > w.cluster.ByteBudget && !deletes {
		return undo(wire.Code_BUDGET_EXCEEDED)
	}
	return &wire.Result{Reply: c.Reply, Digest: c.Digest}
}

// makeRoom drops windows of departed instances until the replies fit.
func makeRoom(r *wire.SessionRow) bool {
	for {
		n := 0
		var oldest *wire.ClientWindow
		for _, c := range r.Clients {
			n += len(c.Replies)
			if len(c.Replies) > 0 && (*twinRow)(r).attached(c.Client) == nil && (oldest == nil || c.Attached < oldest.Attached) {
				oldest = c
			}
		}
		if n <= wire.RepliesMax {
			return true
		}
		if oldest == nil {
			return false
		}
		r.Clients = slices.DeleteFunc(r.Clients, func(c *wire.ClientWindow) bool { return c == oldest })
	}
}

// received notes what the client has, and drops it.
func (w *twin) received(r *wire.SessionRow, client []byte, ack, pushAck uint64) {
	win := (*twinRow)(r).window(client)
	win.Ack = max(win.Ack, ack)
	win.PushAck = max(win.PushAck, min(pushAck, r.PushNext-1))
	win.Replies = slices.DeleteFunc(win.Replies, func(p *wire.CachedReply) bool { return p.Reply.Seq < win.Ack })
	floor := r.PushNext
	for _, a := range r.Attachments {
		floor = min(floor, (*twinRow)(r).window(a.Client).PushAck)
	}
	r.Outbox = slices.DeleteFunc(r.Outbox, func(p *wire.Push) bool { return p.Seq <= floor })
}

func (w *twin) reply(r *wire.SessionRow, client []byte, p *wire.CachedReply) {
	win := (*twinRow)(r).window(client)
	win.Replies = append(win.Replies, p)
	win.Last = p.Reply.Seq
}

func (w *twin) cancel(r *wire.SessionRow, c *wire.Cancel) *wire.Result {
	if res := member(r, c.Client); res != nil {
		return res
	}
	if res := seqSettled((*twinRow)(r).window(c.Client), c.Seq, c.Prev); res != nil {
		return res
	}
	if c.Ack > c.Seq {
		return code(wire.Code_BAD_REQUEST)
	}
	p := &wire.Reply{Seq: c.Seq, Code: wire.Code_CANCELLED}
	win := (*twinRow)(r).window(c.Client)
	win.Ack = max(win.Ack, c.Ack)
	win.Replies = slices.DeleteFunc(win.Replies, func(p *wire.CachedReply) bool { return p.Reply.Seq < win.Ack })
	w.reply(r, c.Client, &wire.CachedReply{Reply: p})
	return &wire.Result{Reply: p}
}

func (w *twin) ack(r *wire.SessionRow, c *wire.Ack) *wire.Result {
	if res := member(r, c.Client); res != nil {
		return res
	}
	old := proto.Clone(r)
	w.received(r, c.Client, c.Ack, c.PushAck)
	if proto.Equal(old, r) {
		return &wire.Result{Duplicate: true}
	}
	return code(wire.Code_OK)
}

func (w *twin) retire(r *wire.SessionRow, why wire.Code, note string) *wire.Result {
	w.endOf(r, note)
	delete(w.sessions, r.Id)
	w.closed[r.Id+"\x00"+string(r.OpenNonce)] = &wire.Closed{
		Session: r.Id, Nonce: r.OpenNonce, Why: why, UntilUs: max(r.OpenDeadlineUs, w.cluster.TimeUs+60_000_000),
	}
	return code(wire.Code_OK)
}

func (w *twin) endOf(r *wire.SessionRow, why string) {
	if m := w.migrations[r.Migration]; m != nil {
		m.Phase, m.Why, m.EndedUs = wire.Phase_PHASE_ABORTED, why, w.cluster.TimeUs
		r.Migration = 0
		if j := w.jobs[m.Job]; j != nil {
			j.Aborted++
		}
	}
}

func (w *twin) expire(c *wire.Expire) *wire.Result {
	r := w.sessions[c.Session]
	if r == nil {
		return code(w.gone(c.Session))
	}
	res := code(wire.Code_STALE_EPOCH)
	res.Before, res.After = r.Change, r.Change
	if r.Epoch == c.Epoch {
		if res.Code = wire.Code_RETRY; len(r.Attachments) == 0 && r.ExpiresUs <= w.cluster.TimeUs {
			w.retire(r, wire.Code_SESSION_EXPIRED, "session expired")
			res.Code, res.After = wire.Code_OK, w.cluster.Position
		}
	}
	return res
}

// leave is a change of owner: everyone is detached.
func (w *twin) leave(r *wire.SessionRow) {
	if len(r.Attachments) > 0 {
		r.ExpiresUs = w.cluster.TimeUs + r.TtlUs
	}
	r.Attachments, r.AttachHigh = nil, 0
}

func (w *twin) assign(c *wire.Assign) *wire.Result {
	r := w.sessions[c.Session]
	if r == nil {
		return code(w.gone(c.Session))
	}
	res := &wire.Result{Before: r.Change, After: r.Change}
	switch {
	case r.Epoch != c.Replaces:
		res.Code = wire.Code_STALE_EPOCH
	case w.valid(r.Owner):
		res.Code = wire.Code_OWNER_VALID
	case !w.valid(c.Owner):
		res.Code = wire.Code_TARGET_STALE
	default:
		w.endOf(r, "session reassigned")
		w.give(r, c.Owner, &wire.OwnerChange{Reason: c.Reason, By: c.By})
		w.leave(r)
		res.Row, res.Epoch, res.After = w.changed(r), r.Epoch, w.cluster.Position
	}
	return res
}

func (w *twin) begin(c *wire.BeginMigration) *wire.Result {
	for _, m := range w.migrations {
		if bytes.Equal(m.Nonce, c.Nonce) {
			return &wire.Result{Duplicate: true, Migration: m}
		}
	}
	r := w.sessions[c.Session]
	if r == nil {
		return code(w.gone(c.Session))
	}
	res := &wire.Result{Before: r.Change, After: r.Change}
	switch {
	case r.Epoch != c.SourceEpoch:
		res.Code = wire.Code_STALE_EPOCH
	case !proto.Equal(r.Owner, c.Source):
		res.Code = wire.Code_SOURCE_STALE
	case !w.valid(c.Source):
		res.Code = wire.Code_NO_OWNER
	case !w.valid(c.Target):
		res.Code = wire.Code_TARGET_STALE
	case w.workers[c.Target.Worker].State == wire.WorkerState_WORKER_STATE_DRAINING:
		res.Code = wire.Code_TARGET_DRAINING
	case c.Source.Worker == c.Target.Worker:
		res.Code = wire.Code_SAME_NODE
	case r.Migration != 0:
		res.Code = wire.Code_MIGRATION_ACTIVE
	case c.DeadlineUs <= w.cluster.TimeUs:
		res.Code = wire.Code_DEADLINE_PASSED
	case c.Job != 0 && w.mayBegin(c) != wire.Code_OK:
		res.Code = w.mayBegin(c)
	default:
		m := &wire.Migration{
			Id: w.cluster.Position, Nonce: c.Nonce, Session: c.Session, Source: c.Source, Target: c.Target,
			SourceEpoch: c.SourceEpoch, TokenHash: c.TokenHash, DeadlineUs: c.DeadlineUs,
			Phase: wire.Phase_PHASE_BEGUN, Reason: c.Reason, Priority: c.Priority, By: c.By,
			BegunUs: w.cluster.TimeUs, WallUs: w.wall, Job: c.Job, ConfirmedBy: c.ConfirmedBy, Metadata: c.Metadata,
		}
		w.migrations[m.Id], r.Migration, res.Migration = m, m.Id, m
	}
	return res
}

func (w *twin) pivot(c *wire.CommitPivot) *wire.Result {
	m := w.migrations[c.Migration]
	if m == nil {
		return code(wire.Code_UNKNOWN_MIGRATION)
	}
	r := w.sessions[m.Session]
	res := &wire.Result{Migration: m, Before: r.GetChange(), After: r.GetChange()}
	switch {
	case m.Phase == wire.Phase_PHASE_ABORTED:
		res.Code = wire.Code_MIGRATION_ENDED
	case m.Phase != wire.Phase_PHASE_BEGUN && r != nil && r.Epoch == m.TargetEpoch && c.Digest == m.Digest:
		res.Duplicate, res.Epoch, res.Row = true, r.Epoch, r
	case m.Phase != wire.Phase_PHASE_BEGUN:
		res.Code = wire.Code_MIGRATION_PIVOTED
	case w.cluster.TimeUs > m.DeadlineUs:
		res.Code = wire.Code_DEADLINE_PASSED
	case w.valid(m.Source) && c.Attested != m.Id:
		res.Code = wire.Code_NOT_ATTESTED
	case !w.valid(m.Target):
		res.Code = wire.Code_TARGET_STALE
	case c.Change != r.Change:
		res.Code = wire.Code_CHANGE_MISMATCH
	default:
		var warm []*wire.ClientWindow
		for _, client := range c.Warm {
			if win := (*twinRow)(r).window(client); win != nil && !slices.Contains(warm, win) {
				warm = append(warm, win)
			}
		}
		if !r.Shared && len(warm) > 1 {
			sort.SliceStable(warm, func(i, j int) bool { return cmp.Less(warm[j].Attached, warm[i].Attached) })
			warm = warm[:1]
		}
		w.give(r, m.Target, &wire.OwnerChange{Reason: reasonLabel(m.Reason), By: m.By, Migration: m.Id})
		w.leave(r)
		for i, win := range warm {
			w.join(r, win.Client, uint64(i+1))
		}
		m.Phase, m.TargetEpoch, m.Digest = wire.Phase_PHASE_PIVOTED, r.Epoch, c.Digest
		r.Migration = 0
		if j := w.jobs[m.Job]; j != nil {
			j.Moved++
		}
		res.Row, res.Epoch, res.After = w.changed(r), r.Epoch, w.cluster.Position
	}
	return res
}

func (w *twin) abort(c *wire.AbortMigration) *wire.Result {
	m := w.migrations[c.Migration]
	if m == nil {
		return code(wire.Code_UNKNOWN_MIGRATION)
	}
	r := w.sessions[m.Session]
	res := &wire.Result{Migration: m, Before: r.GetChange(), After: r.GetChange()}
	switch m.Phase {
	case wire.Phase_PHASE_BEGUN:
		w.endOf(r, c.Reason)
	case wire.Phase_PHASE_ABORTED:
		res.Duplicate = true
	default:
		res.Code = wire.Code_MIGRATION_PIVOTED
	}
	return res
}

func (w *twin) end(c *wire.EndMigration) *wire.Result {
	m := w.migrations[c.Migration]
	if m == nil {
		return code(wire.Code_UNKNOWN_MIGRATION)
	}
	r := w.sessions[m.Session]
	res := &wire.Result{Migration: m, Before: r.GetChange(), After: r.GetChange()}
	switch m.Phase {
	case wire.Phase_PHASE_PIVOTED:
		m.Phase, m.EndedUs, m.PauseUs = wire.Phase_PHASE_COMPLETED, w.cluster.TimeUs, c.PauseUs
		w.paused(w.jobs[m.Job], c.PauseUs)
		for _, h := range r.GetHistory() {
			if h.Migration == m.Id {
				h.PauseUs = c.PauseUs
			}
		}
	case wire.Phase_PHASE_COMPLETED:
		res.Duplicate = true
	default:
		res.Code = wire.Code_MIGRATION_ENDED
	}
	return res
}
