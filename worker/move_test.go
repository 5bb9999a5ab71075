package worker

import (
	"context"
	"testing"
	"time"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// move is a migration that the test directs.
type move struct {
	w        *world
	t        testing.TB
	m        *wire.Migration
	token    migrate.Token
	from, to *Worker
}

type handed struct {
	resp *wire.HandoverResp
	err  error
}

// begin is commit 1.
func (w *world) begin(session, from, to string) *move {
	w.t.Helper()
	mv := &move{w: w, t: w.t, from: w.workers[from], to: w.workers[to]}
	copy(mv.token[:], fresh(migrate.TokenBytes))
	epoch := w.row(session).GetEpoch()
	res := w.must(&wire.Command{Kind: &wire.Command_Begin{Begin: &wire.BeginMigration{
		Nonce: fresh(16), Session: session, SourceEpoch: epoch, Source: mv.from.owner(), Target: mv.to.owner(),
		TokenHash:  migrate.Hash(mv.token, []byte("cluster-of-tests"), session, epoch, mv.from.owner(), mv.to.owner()),
		DeadlineUs: w.log.timeUS + uint64(time.Hour/time.Microsecond),
	}}})
	mv.m = res.GetMigration()
	return mv
}

// invite prepares the target and makes the client warm there; the result is the
// client as seen from its warm stream.
func (mv *move) invite(c *client) *client {
	mv.t.Helper()
	if err := mv.to.Prepare(&wire.PrepareReq{Migration: mv.m, Attached: true}); err != nil {
		mv.t.Fatal(err)
	}
	resp, err := mv.from.Invite(&wire.InviteReq{Migration: mv.m, Token: mv.token[:], Endpoint: &wire.Endpoint{Host: "x"}, TargetName: "x"})
	if err != nil || len(resp.GetClients()) == 0 {
		mv.t.Fatalf("%v %v", resp, err)
	}
	p := c.until("Pivot", func(f *wire.ServerFrame) bool { return f.GetPivot() != nil }).GetPivot()
	return mv.warm(c, p.GetToken())
}

func (mv *move) warm(c *client, token []byte) *client {
	mv.t.Helper()
	warm := *c
	warm.serve(mv.to.cfg.ID, &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
		Session: c.session, Instance: c.instance, Token: token, Migration: mv.m.GetId(),
	}}})
	warm.until("Warm", func(f *wire.ServerFrame) bool { return f.GetWarm() != nil })
	resp, err := mv.to.AwaitWarm(context.Background(), &wire.WarmReq{Migration: mv.m.GetId(), Clients: [][]byte{c.instance}})
	if err != nil || len(resp.GetClients()) == 0 {
		mv.t.Fatalf("%v %v", resp, err)
	}
	return &warm
}

// handover runs step 5 to 7 for the clients that are warm.
func (mv *move) handover(warm ...*client) chan handed {
	req := &wire.HandoverReq{Migration: mv.m, TargetAddr: mv.to.cfg.ID}
	for _, c := range warm {
		req.Warm = append(req.Warm, c.instance)
	}
	ch := make(chan handed, 1)
	go func() {
		resp, err := mv.from.Handover(context.Background(), req)
		ch <- handed{resp, err}
	}()
	return ch
}

func (mv *move) wait(ch chan handed) handed {
	mv.t.Helper()
	select {
	case h := <-ch:
		return h
	case <-time.After(patience):
		mv.t.Fatal("the handover never ended")
		return handed{}
	}
}

// moved waits for a handover that comes to its good end.
func (mv *move) moved(ch chan handed) {
	mv.t.Helper()
	h := mv.wait(ch)
	if h.err != nil || h.resp.GetMigration().GetPhase() != wire.Phase_PHASE_PIVOTED {
		mv.t.Fatalf("%v %v", h.resp, h.err)
	}
	if res := mv.w.must(&wire.Command{Kind: &wire.Command_End{End: &wire.EndMigration{Migration: mv.m.GetId()}}}); res.GetMigration().GetPhase() != wire.Phase_PHASE_COMPLETED {
		mv.t.Fatalf("%v", res)
	}
}

func (mv *move) failed(ch chan handed, want wire.Code) {
	mv.t.Helper()
	if h := mv.wait(ch); wire.CodeOf(h.err) != want {
		mv.t.Fatalf("%v %v, want %v", h.resp, h.err, want)
	}
}

func (mv *move) logged() (m *wire.Migration) {
	mv.w.log.View(func(st *store.Store) { m = st.Migration(mv.m.GetId()) })
	return m
}

func (mv *move) phase() wire.Phase { return mv.logged().GetPhase() }

func (mv *move) abort() {
	mv.t.Helper()
	mv.w.must(&wire.Command{Kind: &wire.Command_Abort{Abort: &wire.AbortMigration{Migration: mv.m.GetId(), Reason: "the test"}}})
}

func (c *client) frozen() {
	c.t.Helper()
	c.until("Frozen", func(f *wire.ServerFrame) bool { return f.GetFrozen() != nil })
}

func (c *client) unfrozen() {
	c.t.Helper()
	c.until("Unfrozen", func(f *wire.ServerFrame) bool { return f.GetUnfrozen() != nil })
}

// pivoted waits until the warm stream serves.
func (c *client) pivoted(epoch uint64) {
	c.t.Helper()
	if at := c.attached(); !at.GetPivoted() || at.GetEpoch() <= epoch {
		c.t.Fatalf("%v", at)
	}
}

// forgotten checks that nothing is left of a migration or session at a worker.
func (w *world) forgotten(worker string) {
	w.t.Helper()
	wk := w.workers[worker]
	eventually(w.t, worker+" has forgotten all", func() bool {
		wk.mu.RLock()
		defer wk.mu.RUnlock()
		return len(wk.sessions) == 0 && len(wk.incoming) == 0
	})
}
