package worker

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// TestSessionClosedMidMove: by its owner's command that was still under way when
// the migration began.
func TestSessionClosedMidMove(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	c.frozen()
	p := pivot.next(t)
	w.must(&wire.Command{Kind: &wire.Command_Close{Close: &wire.CloseSession{Session: "s", Epoch: mv.m.GetSourceEpoch(), Owner: mv.m.GetSource()}}})
	p.apply().answer()
	mv.failed(ch, wire.Code_MIGRATION_ENDED)
	warm.bye(wire.Code_MIGRATION_ENDED)
	w.forgotten("a")
	w.forgotten("b")
	c.bye(wire.Code_MOVED) // the log tells it the rest
	c.attach("a", false)
	c.bye(wire.Code_SESSION_CLOSED)
}

// TestSourceFencedMidMove: the session is assigned anew before the pivot, which
// is refused; the source learns that it has nothing left.
func TestSourceFencedMidMove(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	c := w.open("a", "s", false)
	c.ok(c.write("incr", "n"), "1")
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	c.frozen()
	p := pivot.next(t)
	w.fence("a")
	w.must(&wire.Command{Kind: &wire.Command_Assign{Assign: &wire.Assign{Session: "s", Replaces: mv.m.GetSourceEpoch(), Owner: w.workers["c"].owner()}}})
	p.apply().answer()
	mv.failed(ch, wire.Code_MIGRATION_ENDED)
	c.bye(wire.Code_RETRY)
	warm.bye(wire.Code_MIGRATION_ENDED)
	w.forgotten("a")
	w.forgotten("b")
	c.attach("c", false)
	c.attached()
	c.ok(c.write("incr", "n"), "2")
}

// TestTargetFencedAtThePivot: the result comes to an incarnation that is over.
func TestTargetFencedAtThePivot(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	p := pivot.next(t).apply()
	b := w.workers["b"]
	n := b.Incarnation()
	w.fence("b")
	warm.bye(wire.Code_MIGRATION_ENDED)
	b.SetIncarnation(w.register("b", n).GetEpoch())
	p.answer()
	mv.moved(ch)
	w.forgotten("b")
	c.bye(wire.Code_MOVED)
	c.attach("a", false) // nobody's: it is given to one that lives
	c.attached()
}

// TestChangeBehindTheSnapshot: the pivot is refused, and the source captures
// anew while it is frozen (H2).
func TestChangeBehindTheSnapshot(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	p := pivot.next(t)
	w.must(&wire.Command{Kind: &wire.Command_Cancel{Cancel: &wire.Cancel{
		Session: "s", Epoch: mv.m.GetSourceEpoch(), Owner: mv.m.GetSource(), Client: c.instance, Seq: 1,
	}}})
	if code := p.apply().res[0].GetCode(); code != wire.Code_CHANGE_MISMATCH {
		t.Fatalf("%v", code)
	}
	p.answer()
	pivot.next(t).apply().answer()
	mv.moved(ch)
	warm.pivoted(mv.m.GetSourceEpoch())
	warm.request(1, 0, "incr", "n")
	if r := warm.response(1); r.GetCode() != wire.Code_CANCELLED {
		t.Fatalf("%v", r)
	}
}

// attachesInAMove is a detached session that is to move, and an Attach of its client
// that the log has not taken yet.
func attachesInAMove(t *testing.T) (*world, *client, *move, *proposal) {
	t.Helper()
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	c.hangUp()
	w.forgotten("a")
	attach := w.log.hold(isAttach)
	c.attach("a", false)
	p := attach.next(t)
	mv := w.begin("s", "a", "b")
	if err := mv.to.Prepare(&wire.PrepareReq{Migration: mv.m}); err != nil {
		t.Fatal(err)
	}
	return w, c, mv, p
}

// TestAttachAnsweredUnderFreeze: nothing is activated under a freeze (H1), and
// the row that it changed is what moves.
func TestAttachAnsweredUnderFreeze(t *testing.T) {
	w, c, mv, p := attachesInAMove(t)
	pivot := w.log.hold(isPivot)
	ch := mv.handover()
	s := w.workers["a"].lookup("s")
	eventually(t, "frozen", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.freeze != nil })
	pivot.none(t) // not attested while the Attach is under way
	p.apply().answer()
	c.bye(wire.Code_FROZEN)
	pv := pivot.next(t)
	s.mu.Lock()
	if s.act != nil {
		t.Error("activated under a freeze")
	}
	s.mu.Unlock()
	mv.abort()
	pv.apply().answer()
	mv.failed(ch, wire.Code_MIGRATION_ENDED)
	// Its attachment is on record without a stream: it is closed.
	eventually(t, "detached", func() bool { return len(w.row("s").GetAttachments()) == 0 })
	w.forgotten("a")
}

// TestFreezeWaitsForThePivotThatBringsTheSession: a result of a move to here
// must not activate once the session is on its way to the next node.
func TestFreezeWaitsForThePivotThatBringsTheSession(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	cl := w.open("a", "s", false)
	first := w.begin("s", "a", "b")
	warm := first.invite(cl)
	pivot := w.log.hold(isPivot)
	ch := first.handover(cl)
	p := pivot.next(t).apply() // the log knows, the target does not
	second := w.begin("s", "b", "c")
	if err := second.to.Prepare(&wire.PrepareReq{Migration: second.m}); err != nil {
		t.Fatal(err)
	}
	ch2 := second.handover()
	s := w.workers["b"].lookup("s")
	eventually(t, "frozen", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.freeze != nil })
	w.log.flush()
	pivot.none(t)
	p.answer()
	first.moved(ch)
	warm.bye(wire.Code_MIGRATION_ENDED)
	pivot.next(t).apply().answer()
	second.moved(ch2)
	w.forgotten("b")
	cl.bye(wire.Code_MOVED)
	cl.attach("c", false)
	cl.attached()
	cl.ok(cl.write("incr", "n"), "1")
}

// TestMoveBackBeforeTheSourceKnows: its freeze for the first move is still on
// when the second brings the session back.
func TestMoveBackBeforeTheSourceKnows(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	first := w.begin("s", "a", "b")
	warm := first.invite(c)
	answer := make(chan struct{})
	w.transfer = func(next func(context.Context) (*wire.TransferResp, error), req *wire.TransferReq) (*wire.TransferResp, error) {
		resp, err := next(context.Background())
		if req.GetMigration() == first.m.GetId() {
			<-answer
		}
		return resp, err
	}
	ch := first.handover(c)
	warm.pivoted(first.m.GetSourceEpoch())
	warm.ok(warm.write("incr", "n"), "1")
	second := w.begin("s", "b", "a")
	home := second.invite(warm)
	pivot := w.log.hold(isPivot)
	ch2 := second.handover(warm)
	warm.frozen()
	w.log.flush()
	pivot.none(t) // parked: the source of the first move is frozen for it
	close(answer)
	first.moved(ch)
	c.bye(wire.Code_MOVED)
	pivot.next(t).apply().answer()
	second.moved(ch2)
	home.pivoted(second.m.GetSourceEpoch())
	home.seq, home.last = warm.seq, warm.last
	home.ok(home.write("incr", "n"), "2")
}

// TestAttachWaitsForThePivotUnderWay: while the pivot's answer is under
// way, a client that attaches by itself waits for it.
func TestAttachWaitsForThePivotUnderWay(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", true)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot, attach := w.log.hold(isPivot), w.log.hold(isAttach)
	ch := mv.handover(c)
	p := pivot.next(t).apply()
	other := w.newClient("s", c.secret)
	other.attach("b", true)
	s := w.workers["b"].lookup("s")
	eventually(t, "the attach is queued", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.ops) == 1 })
	attach.none(t)
	p.answer()
	mv.moved(ch)
	warm.pivoted(mv.m.GetSourceEpoch())
	attach.next(t).apply().answer()
	other.attached()
	warm.ok(warm.write("incr", "n"), "1")
	other.ok(other.write("incr", "n"), "2")
}

// TestWarmButNotAttachedIsTold: a client that left the source stays away, and is told.
func TestWarmButNotAttachedIsTold(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", true)
	other := w.newClient("s", c.secret)
	other.attach("a", true)
	other.attached()
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	warmOther := mv.warm(other, mv.token[:])
	other.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Detach{Detach: &wire.DetachReq{}}})
	other.bye(wire.Code_OK)
	mv.moved(mv.handover(c, other))
	warm.pivoted(mv.m.GetSourceEpoch())
	warmOther.bye(wire.Code_RETRY)
	w.idle("b", "s")
	if n := len(w.row("s").GetAttachments()); n != 1 {
		t.Fatalf("%d attachments", n)
	}
}

func TestWarmRefusals(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	for _, tc := range []struct {
		name      string
		token     []byte
		migration uint64
		session   string
		want      wire.Code
	}{
		{"forged", fresh(migrate.TokenBytes), mv.m.GetId(), "s", wire.Code_TOKEN_UNKNOWN},
		{"short", mv.token[:5], mv.m.GetId(), "s", wire.Code_TOKEN_UNKNOWN},
		{"of another migration", mv.token[:], 12345, "s", wire.Code_TOKEN_UNKNOWN},
		{"of another session", mv.token[:], mv.m.GetId(), "t", wire.Code_TOKEN_WRONG_SESSION},
	} {
		x := w.newClient(tc.session, c.secret)
		x.serve("b", &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
			Session: tc.session, Instance: x.instance, Token: tc.token, Migration: tc.migration,
		}}})
		if f := x.next(); f.GetBye().GetCode() != tc.want {
			t.Errorf("%s: %v", tc.name, f)
		}
	}
	for range parkedMax + 1 {
		warm.query("get", "n")
	}
	warm.bye(wire.Code_OVERLOADED)
	mv.failed(mv.handover(c), wire.Code_CLIENT_CANNOT_REACH)
	x := w.newClient("s", c.secret) // the token is not good any more
	x.serve("b", &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
		Session: "s", Instance: x.instance, Token: mv.token[:], Migration: mv.m.GetId(),
	}}})
	x.bye(wire.Code_TOKEN_REVOKED)
	w.forgotten("b")
}

// TestPrepareAfterTheEnd: a late call must not leave anything behind.
func TestPrepareAfterTheEnd(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	mv.abort()
	w.log.flush()
	err := mv.to.Prepare(&wire.PrepareReq{Migration: mv.m})
	if wire.CodeOf(err) != wire.Code_MIGRATION_ENDED {
		t.Fatalf("%v", err)
	}
	w.forgotten("b")
	if _, err := mv.from.Handover(context.Background(), &wire.HandoverReq{Migration: mv.m, TargetAddr: "b"}); wire.CodeOf(err) != wire.Code_MIGRATION_ENDED {
		t.Fatalf("%v", err)
	}
}

// TestExpectedAsItEnds: a call finds the migration begun, and the log ends it
// before the target expects it: nothing else would make the target stop.
func TestExpectedAsItEnds(t *testing.T) {
	w := newWorld(t, "a", "b")
	b := w.workers["b"]
	var ended atomic.Bool
	var ends func() // after the first look at the tables from then on
	look := b.cfg.View
	b.cfg.View = func(fn func(*store.Store)) {
		look(fn)
		if ends != nil && ended.CompareAndSwap(false, true) {
			ends()
		}
	}
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	w.log.flush()
	ends = func() {
		w.must(&wire.Command{Kind: &wire.Command_Abort{Abort: &wire.AbortMigration{Migration: mv.m.GetId(), Reason: "test"}}})
		w.log.flush()
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.AwaitWarm(ctx, &wire.WarmReq{Migration: mv.m.GetId(), Clients: [][]byte{c.instance}}); err != nil {
		t.Fatal(err)
	}
	if left := b.allIncoming(); len(left) != 0 {
		t.Fatalf("%d migrations are expected that are over", len(left))
	}
}

// TestCallsAfterThePivot: what comes late, or twice, leaves nothing behind.
func TestCallsAfterThePivot(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	var twice *wire.TransferReq
	w.transfer = func(next func(context.Context) (*wire.TransferResp, error), req *wire.TransferReq) (*wire.TransferResp, error) {
		twice = req
		return next(context.Background())
	}
	ch := mv.handover(c)
	mv.moved(ch)
	warm.pivoted(mv.m.GetSourceEpoch())
	w.log.flush()
	if err := mv.to.Prepare(&wire.PrepareReq{Migration: mv.m, Attached: true}); wire.CodeOf(err) != wire.Code_MIGRATION_ENDED {
		t.Fatalf("%v", err)
	}
	if resp, err := mv.to.Transfer(context.Background(), twice); err != nil || !proto.Equal(resp.GetMigration(), mv.logged()) {
		t.Fatalf("%v %v: the outcome is not told again", resp, err)
	}
	if left := len(w.workers["b"].allIncoming()); left != 0 {
		t.Fatalf("the target expects %d migrations", left)
	}
	warm.ok(warm.write("incr", "n"), "1")
}

// TestHandoverTwice: two directors. One freeze, one pivot.
func TestHandoverTwice(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	p := pivot.next(t)
	mv.failed(mv.handover(c), wire.Code_FROZEN)
	p.apply().answer()
	mv.moved(ch)
	warm.pivoted(mv.m.GetSourceEpoch())
	mv.failed(mv.handover(c), wire.Code_MIGRATION_ENDED)
	warm.ok(warm.write("incr", "n"), "1")
}

// TestCloseOfANodeMidMove lets no goroutine behind, at either end.
func TestCloseOfANodeMidMove(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	pivot.next(t)
	w.workers["a"].Close()
	w.workers["b"].Close()
	c.bye(wire.Code_SHUTTING_DOWN)
	warm.bye(wire.Code_MIGRATION_ENDED)
	if h := mv.wait(ch); h.err == nil {
		t.Fatalf("%v", h.resp)
	}
}

// TestObserveOthers: what is not this worker's costs nothing.
func TestObserveOthers(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	w.workers["a"].Observe([]store.Event{
		{Kind: store.EventSession, Session: "x"}, {Kind: store.EventMigration, Migration: 5},
		{Kind: store.EventWorker, Worker: "a"}, {Kind: store.EventRestored},
	})
	c.ok(c.write("incr", "n"), "1")
}

// TestFormerStreamDetachesNobody: each pivot counts attachments from one, so that a
// stream of a former stay, which ends late, had the number of the present one.
func TestFormerStreamDetachesNobody(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	move := func(from, to string) {
		mv := w.begin("s", from, to)
		warm := mv.invite(c)
		mv.moved(mv.handover(c))
		warm.pivoted(mv.m.GetSourceEpoch())
		c = warm
	}
	move("a", "b")
	former := c
	former.query("blockread", "n")
	<-w.running // on the goroutine that reads the stream: its end is not seen yet
	move("b", "a")
	move("a", "b")
	close(w.block)
	former.hangUp()
	<-former.served
	w.idle("b", "s")
	if n := len(w.row("s").GetAttachments()); n != 1 {
		t.Fatalf("%d attachments", n)
	}
	c.ok(c.write("incr", "n"), "1")
}

// TestOwnAttachUnderAFreezeDisplacesNobody: a client that looked for its owner while
// that was only slow goes on over the stream that it has.
func TestOwnAttachUnderAFreezeDisplacesNobody(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	mv.invite(c)
	attach := w.log.hold(isAttach)
	second := *c
	second.attach("a", false)
	p := attach.next(t)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	s := w.workers["a"].lookup("s")
	eventually(t, "frozen", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.freeze != nil })
	p.apply().answer()
	second.bye(wire.Code_FROZEN)
	pv := pivot.next(t)
	mv.abort()
	pv.apply().answer()
	mv.failed(ch, wire.Code_MIGRATION_ENDED)
	c.unfrozen()
	c.ok(c.write("incr", "n"), "1")
	c.hangUp()
	eventually(t, "detached", func() bool { return len(w.row("s").GetAttachments()) == 0 })
}

// TestAttachBehindTheClaimIsClosed: an Attach that falls into a freeze may come to the
// log after the claim with which that ends. Nobody has a stream for it.
func TestAttachBehindTheClaimIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, c, mv, p := attachesInAMove(t)
		abort := w.log.hold(isAbort)
		ch := mv.handover()
		var a *proposal
		w.clock.waitFor(t, freezeGrace/4, func() bool {
			select {
			case a = <-abort.ch:
			default:
			}
			return a != nil
		})
		a.apply()
		p.apply().answer()
		c.bye(wire.Code_FROZEN)
		a.answer()
		abort.next(t).apply().answer()
		mv.failed(ch, wire.Code_OVERLOADED)
		eventually(t, "detached", func() bool { return len(w.row("s").GetAttachments()) == 0 })
		w.forgotten("a")
	})
}
