package worker

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// The source's side of a handoff ("Life of a pivot", steps 3 to 7, and rules H1 to H3).

const (
	// freezeGrace is how long a handler that runs may hold up a freeze before
	// the migration is given up (H6).
	freezeGrace = 5 * time.Second
	// captures bounds how often the state is captured anew because the row
	// changed behind the snapshot.
	captures = 2
)

// freeze is the record that this worker serves nothing of a session because a
// migration is under way. It names the migration, so that what was attested for
// one cannot be used by another (H1).
type freeze struct {
	migration uint64
	warm      [][]byte // who is attached, all of them warm at the target
	conns     []*wire.Connection
	live      []byte // the application's, once it has given it up
	hasLive   bool
	last      uint64 // position of an Attach that fell into the freeze, 0: none
	once      sync.Once
	settled   chan struct{} // closed once nothing of the session is with the log
}

func (f *freeze) settle() { f.once.Do(func() { close(f.settled) }) }

// Invite tells the attached clients of the target and the token (step 4). It
// returns the instances that were told; the source serves on.
func (w *Worker) Invite(req *wire.InviteReq) (*wire.InviteResp, error) {
	m := req.GetMigration()
	resp := &wire.InviteResp{}
	s := w.lookup(m.GetSession())
	if s == nil {
		return resp, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.act == nil {
		return resp, nil
	}
	if s.act.epoch != m.GetSourceEpoch() {
		return nil, wire.Errorf(wire.Code_STALE_EPOCH, "the session is at epoch %d here", s.act.epoch)
	}
	target := &wire.NodeInfo{Id: m.GetTarget().GetWorker(), Name: req.GetTargetName(), Host: req.GetEndpoint().GetHost(), UserPort: req.GetEndpoint().GetUserPort()}
	for client, q := range s.queues {
		_ = q.att.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Pivot{Pivot: &wire.Pivot{
			Migration: m.GetId(), Target: target, Token: req.GetToken(), Epoch: m.GetSourceEpoch(),
		}}})
		resp.Clients = append(resp.Clients, []byte(client))
	}
	return resp, nil
}

// Handover freezes the session, brings its connection state to the target and
// returns once the outcome is known here (steps 5 to 7). It goes on when ctx
// ends: a freeze is only ever lifted by an outcome.
func (w *Worker) Handover(ctx context.Context, req *wire.HandoverReq) (*wire.HandoverResp, error) {
	type answer struct {
		resp *wire.HandoverResp
		err  error
	}
	ch := make(chan answer, 1)
	w.spawn(func() {
		resp, err := w.handover(ctx, req)
		ch <- answer{resp, err}
	})
	select {
	case a := <-ch:
		return a.resp, a.err
	case <-ctx.Done():
		return nil, wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "the handover goes on; the log will tell its outcome")
	}
}

func (w *Worker) handover(ctx context.Context, req *wire.HandoverReq) (*wire.HandoverResp, error) {
	m := req.GetMigration()
	if err := w.awaitBegun(ctx, m); err != nil {
		return nil, err
	}
	if err := w.streams.stop(m); err != nil {
		return nil, err
	}
	s, f, err := w.freeze(m, req.GetWarm())
	if err != nil {
		w.streams.goOn(m)
		return nil, err
	}
	began := w.cfg.Clock.Now()
	resp := &wire.HandoverResp{Connections: f.conns}
	out, err := w.settleAndTransfer(s, f, req, func() { resp.FreezeUs = uint64((w.cfg.Clock.Now() - began).Microseconds()) })
	if err == nil && out.GetCode() == wire.Code_OK {
		s.moved()
		resp.Migration, resp.CommitUs = out.GetMigration(), out.GetCommitUs()
	} else {
		resp.Migration = w.resolve(s, f, m, giveUpWhy(out, err))
	}
	resp.PauseUs = uint64((w.cfg.Clock.Now() - began).Microseconds())
	resp.TransferUs = resp.PauseUs - resp.FreezeUs
	switch {
	case pivoted(resp.GetMigration()):
		return resp, nil
	case err == nil:
		err = wire.Errorf(out.GetCode(), "the target could not take the session")
	}
	return nil, err
}

func (w *Worker) settleAndTransfer(s *session, f *freeze, req *wire.HandoverReq, settled func()) (*wire.TransferResp, error) {
	if err := w.settleFreeze(f); err != nil {
		return nil, err
	}
	if err := w.freezeLive(f, req.GetMigration()); err != nil {
		return nil, err
	}
	settled()
	return w.transfer(s, f, req)
}

// awaitBegun waits until the applied state shows the migration: only then may
// the source freeze, for only then does its state tell how it ends (H3).
func (w *Worker) awaitBegun(ctx context.Context, m *wire.Migration) error {
	for {
		changed := w.changed.wait()
		var seen *wire.Migration
		w.cfg.View(func(st *store.Store) { seen = st.Migration(m.GetId()) })
		switch {
		case seen == nil:
		case seen.GetPhase() != wire.Phase_PHASE_BEGUN:
			return wire.Errorf(wire.Code_MIGRATION_ENDED, "the migration is over: %s", seen.GetWhy())
		default:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "this node has not heard of the migration in time")
		case <-w.ctx.Done():
			return wire.Errorf(wire.Code_SHUTTING_DOWN, "the node stops")
		}
	}
}

// freeze stops the session for migration m and tells its clients to send what
// follows to the target.
func (w *Worker) freeze(m *wire.Migration, warm [][]byte) (s *session, f *freeze, err error) {
	if m.GetSource().GetWorker() != w.cfg.ID || m.GetSource().GetIncarnation() != w.Incarnation() {
		return nil, nil, wire.Errorf(wire.Code_SOURCE_STALE, "this is not the incarnation that the migration names")
	}
	w.with(m.GetSession(), func(found *session) {
		s = found
		if err = s.mayFreeze(m, warm); err != nil {
			s.retire()
			return
		}
		f = &freeze{migration: m.GetId(), conns: s.connections(), settled: make(chan struct{})}
		s.freeze = f
		for client, q := range s.queues {
			f.warm = append(f.warm, []byte(client))
			_ = q.att.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Frozen{Frozen: &wire.Frozen{Migration: m.GetId()}}})
		}
		if !s.busy {
			s.refuseUnderFreeze()
			f.settle()
		}
	})
	return s, f, err
}

func (s *session) mayFreeze(m *wire.Migration, warm [][]byte) error {
	if s.freeze != nil {
		return wire.Errorf(wire.Code_FROZEN, "the session is frozen for migration %d", s.freeze.migration)
	}
	if s.act != nil && s.act.epoch != m.GetSourceEpoch() {
		return wire.Errorf(wire.Code_STALE_EPOCH, "the session is at epoch %d here", s.act.epoch)
	}
	for client := range s.queues {
		if !slices.ContainsFunc(warm, func(w []byte) bool { return string(w) == client }) {
			return wire.Errorf(wire.Code_CLIENT_CANNOT_REACH, "a client is attached that is not warm at the target")
		}
	}
	return nil
}

// settleFreeze waits until what ran has finished and is settled in the log.
func (w *Worker) settleFreeze(f *freeze) error {
	late := make(chan struct{})
	t := w.cfg.Clock.AfterFunc(freezeGrace, func() { close(late) })
	defer t.Stop()
	select {
	case <-f.settled:
		return nil
	case <-late:
		return wire.Errorf(wire.Code_OVERLOADED, "a handler, or the log, held up the freeze for more than %v", freezeGrace)
	case <-w.ctx.Done():
		return wire.Errorf(wire.Code_SHUTTING_DOWN, "the node stops")
	}
}

// transfer captures, seals and sends, anew if the row changed behind the
// snapshot. The answer tells what CommitPivot came to.
func (w *Worker) transfer(s *session, f *freeze, req *wire.HandoverReq) (*wire.TransferResp, error) {
	m := req.GetMigration()
	for n := 1; ; n++ {
		state, err := w.capture(s, f, m, n > 1)
		if err != nil {
			return nil, err
		}
		state.Live, state.HasLive = f.live, f.hasLive
		w.streams.capture(m, state)
		sealed, _, err := migrate.Seal(w.cfg.Seals.Newest(), migrate.BindingOf(w.cfg.ClusterID(), m), state, w.cfg.Rand)
		if err != nil {
			return nil, err
		}
		resp, err := w.send(m, req.GetTargetAddr(), migrate.NewOutgoing(m.GetId(), uint32(n), f.warm, sealed))
		if err != nil || resp.GetCode() != wire.Code_CHANGE_MISMATCH || n == captures {
			return resp, err
		}
	}
}

// capture takes the connection state of a frozen session. The row's change
// position comes from the activation, or, where there is none that is good,
// from a Claim; no activation is made of it (H1).
func (w *Worker) capture(s *session, f *freeze, m *wire.Migration, anew bool) (*wire.ConnectionState, error) {
	cs := &wire.ConnectionState{
		Version: migrate.SnapshotVersion, ClusterId: w.cfg.ClusterID(), Migration: m.GetId(),
		Session: m.GetSession(), SourceEpoch: m.GetSourceEpoch(), Target: m.GetTarget().GetWorker(),
	}
	s.mu.Lock()
	known := s.act != nil && !s.stale && !anew
	if s.act != nil && s.act.epoch == m.GetSourceEpoch() {
		cs.StreamsSince = s.act.streamsSince
	}
	if known {
		cs.Change = s.act.change
		for client, q := range s.queues {
			win := s.act.windows[client]
			cs.Cursors = append(cs.Cursors, &wire.Cursor{Client: []byte(client), Answered: win.last, PushSent: q.att.sent})
		}
		cs.Connections = f.conns
		slices.SortFunc(cs.Cursors, func(a, b *wire.Cursor) int { return slices.Compare(a.GetClient(), b.GetClient()) })
	}
	s.mu.Unlock()
	if known {
		return cs, nil
	}
	res, err := w.proposeWait(w.ctx, &wire.Command{Kind: &wire.Command_Claim{Claim: &wire.Claim{
		Session: m.GetSession(), Epoch: m.GetSourceEpoch(), Owner: m.GetSource(),
	}}})
	if err != nil {
		return nil, err
	}
	if code := res[0].GetCode(); code != wire.Code_OK {
		return nil, wire.Errorf(code, "the session is not this node's any more")
	}
	cs.Change = res[0].GetRow().GetChange()
	return cs, nil
}

// connections are those that serve the session, by client. s.mu is held.
func (s *session) connections() []*wire.Connection {
	list := make([]*wire.Connection, 0, len(s.queues))
	for client, q := range s.queues {
		c := q.att.link.Connection()
		c.Client = []byte(client)
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *wire.Connection) int { return slices.Compare(a.GetClient(), b.GetClient()) })
	return list
}

// resolve makes the log decide: it asks for an abort, and goes by what the
// results say (H3). Until they come the session stays frozen. nil: the node
// stops.
func (w *Worker) resolve(s *session, f *freeze, m *wire.Migration, why string) *wire.Migration {
	ask := func() ([]*wire.Result, error) {
		return w.proposeWait(w.ctx,
			&wire.Command{Kind: &wire.Command_Abort{Abort: &wire.AbortMigration{Migration: m.GetId(), Reason: why}}},
			&wire.Command{Kind: &wire.Command_Claim{Claim: &wire.Claim{Session: m.GetSession(), Epoch: m.GetSourceEpoch(), Owner: m.GetSource()}}},
		)
	}
	for {
		res, err := ask()
		for wire.CodeOf(err) == wire.Code_OVERLOADED && seam.Sleep(w.ctx, w.cfg.Clock, roomRetry) == nil {
			res, err = ask()
		}
		if err != nil {
			s.moved()
			return nil
		}
		if res[1].GetCode() != wire.Code_OK {
			s.moved()
			return res[0].GetMigration()
		}
		w.giveBack(f, m)
		w.streams.goOn(m)
		if s.unfreeze(m, f, res[1]) {
			return res[0].GetMigration()
		}
	}
}

// giveUpWhy is what the log keeps of why the source asks for an abort.
func giveUpWhy(out *wire.TransferResp, err error) string {
	if err == nil {
		return "the target could not take the session: " + out.GetCode().Label()
	}
	return "the source gave up: " + clip(err.Error())
}

// moved ends the source's part after the pivot: it forgets the session.
func (s *session) moved() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freeze = nil
	s.w.streams.forget(s.id)
	s.drop(wire.Code_MOVED, "the session has moved")
	s.goOn()
}

// unfreeze ends the source's part after an abort: it goes on where it was. It reports
// false, and does nothing, if an Attach fell into the freeze that the claim does not
// know of: then the claim is to be repeated.
func (s *session) unfreeze(m *wire.Migration, f *freeze, claim *wire.Result) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if claim.GetPosition() < f.last {
		return false
	}
	s.freeze = nil
	for _, q := range s.queues {
		q.ackWanted = q.ackWanted && q.acking // what the client said went to the target, or nowhere
		_ = q.att.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Unfrozen{Unfrozen: &wire.Unfrozen{Migration: m.GetId()}}})
	}
	switch {
	case s.busy && f.last == 0, s.act != nil && claim.GetPosition() < s.act.last:
		// The freeze was given up because a handler, or the log, still had some
		// of the session in hand. Its outcome belongs to the present activation,
		// which this claim may be older than, though its answer comes last: claim
		// again after it.
		s.stale = s.act != nil
	case s.act != nil || len(claim.GetRow().GetAttachments()) > 0:
		s.remake(claim)
		s.detachOrphans()
		s.releaseHeld()
		s.reexamine()
	}
	s.goOn()
	return true
}

// goOn runs what a freeze held up. s.mu is held.
func (s *session) goOn() {
	if len(s.ops) > 0 || s.act != nil {
		s.kick()
	} else if !s.busy {
		s.retire()
	}
}
