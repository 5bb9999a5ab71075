package worker

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// fence ends the worker's incarnation in the log.
func (w *world) fence(name string) {
	w.t.Helper()
	w.must(&wire.Command{Kind: &wire.Command_FenceWorker{FenceWorker: &wire.FenceWorker{
		Id: name, Incarnation: w.workers[name].Incarnation(), Reason: "test",
	}}})
}

func TestOpenRefusals(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	same := w.newClient("s", fresh(32))
	open := &wire.OpenReq{Session: "s", Secret: same.secret, Nonce: fresh(16), Instance: same.instance}
	same.serve("a", &wire.ClientFrame{Kind: &wire.ClientFrame_Open{Open: open}})
	same.bye(wire.Code_SESSION_EXISTS)
	for _, bad := range []*wire.OpenReq{
		{Session: "", Secret: fresh(32), Nonce: fresh(16), Instance: fresh(16)},
		{Session: "t", Secret: fresh(31), Nonce: fresh(16), Instance: fresh(16)},
		{Session: "t", Secret: fresh(32), Nonce: fresh(15), Instance: fresh(16)},
		{Session: "t", Secret: fresh(32), Nonce: fresh(16), Instance: fresh(15)},
		{Session: "t", Secret: fresh(32), Nonce: fresh(16), Instance: fresh(16), TtlUs: 1},
	} {
		same.serve("a", &wire.ClientFrame{Kind: &wire.ClientFrame_Open{Open: bad}})
		if f := same.next(); f.GetBye().GetCode() != wire.Code_BAD_REQUEST && f.GetBye().GetCode() != wire.Code_BAD_SESSION_ID {
			t.Errorf("%v", f)
		}
	}
	wrong := w.newClient("s", fresh(32))
	wrong.attach("a", true)
	wrong.bye(wire.Code_BAD_SECRET)
	unknown := w.newClient("nothing", fresh(32))
	unknown.attach("a", true)
	unknown.bye(wire.Code_UNKNOWN_SESSION)
	gone := w.newClient("s", c.secret)
	gone.attach("a", false)
	gone.bye(wire.Code_CLIENT_GONE)
}

// TestRepeatedOpenGoesToTheOwner: the first answer was lost, and the client asks
// at another node.
func TestRepeatedOpenGoesToTheOwner(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.newClient("s", fresh(32))
	open := &wire.ClientFrame{Kind: &wire.ClientFrame_Open{Open: &wire.OpenReq{Session: "s", Secret: c.secret, Nonce: fresh(16), Instance: c.instance}}}
	c.serve("a", open)
	c.attached()
	c.hangUp()
	c.serve("b", open)
	if f := c.until("redirect", func(f *wire.ServerFrame) bool { return f.GetRedirect() != nil }); f.GetRedirect().GetOwner().GetId() != "a" {
		t.Fatalf("%v", f)
	}
	c.bye(wire.Code_NOT_OWNER)
}

// TestOpenByAStaleClock: the log time that the node knows is that of the last
// entry, long ago, as nothing has been due since.
func TestOpenByAStaleClock(t *testing.T) {
	w := newWorld(t, "a")
	w.log.pass(time.Hour)
	c := w.open("a", "s", false)
	c.ok(c.write("incr", "n"), "1")
}

// TestRepeatedOpenNeedsTheSecret: whoever has learnt an Open's nonce, which is no
// secret, gets nothing of its session.
func TestRepeatedOpenNeedsTheSecret(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.newClient("s", fresh(32))
	open := func(secret []byte) *wire.ClientFrame {
		return &wire.ClientFrame{Kind: &wire.ClientFrame_Open{Open: &wire.OpenReq{Session: "s", Secret: secret, Nonce: []byte("nonce of the open"[:16]), Instance: c.instance}}}
	}
	c.serve("a", open(c.secret))
	c.attached()
	for _, node := range []string{"a", "b"} {
		thief := w.newClient("s", fresh(32))
		thief.serve(node, open(thief.secret))
		thief.bye(wire.Code_BAD_SECRET)
	}
	c.ok(c.write("incr", "n"), "1")
}

// TestDisplacedClientClosesNothing: its Close comes before it is displaced, and its
// turn after.
func TestDisplacedClientClosesNothing(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	attach := w.log.hold(isAttach)
	other := w.newClient("s", c.secret)
	other.attach("a", true)
	p := attach.next(t)
	c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Close{Close: &wire.CloseReq{}}})
	c.taken()
	attach.lift()
	p.apply().answer()
	c.bye(wire.Code_DISPLACED)
	other.attached()
	other.ok(other.write("incr", "n"), "1")
}

func TestDisplacedClientGetsNoReplyOfItsSuccessor(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	c.ok(c.write("incr", "n"), "1")
	attach := w.log.hold(isAttach)
	other := w.newClient("s", c.secret)
	other.attach("a", true)
	p := attach.next(t)
	c.write("incr", "n") // waits behind the Attach
	c.taken()
	attach.lift()
	p.apply().answer()
	c.bye(wire.Code_DISPLACED)
	other.attached()
	other.ok(other.write("incr", "n"), "2") // other's seq 1 is not c's
	c.silent()
}

// TestDisplacedInTheLog: the group of a client that was displaced behind its
// owner's back is refused, and nothing of it is answered.
func TestDisplacedInTheLog(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	g := w.log.hold(isWrite)
	c.write("incr", "n")
	p := g.next(t)
	w.must(&wire.Command{Kind: &wire.Command_Attach{Attach: &wire.Attach{
		Session: "s", Epoch: w.row("s").GetEpoch(), Owner: w.workers["a"].owner(), Number: 1 << 30, Client: fresh(16), Fresh: true,
	}}})
	p.apply().answer()
	c.bye(wire.Code_DISPLACED)
	w.idle("a", "s")
	if n := len(w.row("s").GetAttachments()); n != 0 {
		t.Fatalf("%d attachments: the session would never expire", n)
	}
}

// TestDetachServesNothing from its proposal on, and is repeated until it is
// settled (S7).
func TestDetachServesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a")
		c := w.open("a", "s", false)
		detach, marker := w.log.hold(isDetach), w.log.hold(isMarker)
		c.query("get", "k")
		m := marker.next(t)
		c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Detach{Detach: &wire.DetachReq{}}})
		p := detach.next(t)
		m.apply().answer()
		c.query("get", "k")
		c.write("incr", "n")
		w.log.flush()
		c.silent()
		p.fail(wire.Code_OVERLOADED)
		var again *proposal
		w.clock.waitFor(t, roomRetry, func() bool {
			select {
			case again = <-detach.ch:
				return true
			default:
				return false
			}
		})
		c.silent()
		again.apply().answer()
		c.bye(wire.Code_OK)
		eventually(t, "the session is forgotten", func() bool { return w.workers["a"].Sessions() == 0 })
		if row := w.row("s"); len(row.GetAttachments()) != 0 || row.GetExpiresUs() == 0 {
			t.Fatalf("%v", row)
		}
	})
}

// TestReattachOutlivesTheOldStreamsEnd: an older stream's end does not end the newer one.
func TestReattachOutlivesTheOldStreamsEnd(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	old := *c
	c.attach("a", false)
	c.attached()
	old.bye(wire.Code_RETRY)
	w.idle("a", "s")
	c.ok(c.write("incr", "n"), "1")
	if n := len(w.row("s").GetAttachments()); n != 1 {
		t.Fatalf("%d attachments", n)
	}
}

func TestCloseEndsTheSession(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	g := w.log.hold(isWrite)
	c.write("incr", "n")
	p := g.next(t)
	for range 5 {
		c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Close{Close: &wire.CloseReq{}}})
	}
	c.taken()
	s := w.workers["a"].lookup("s")
	s.mu.Lock()
	if len(s.ops) != 1 {
		t.Errorf("%d operations wait", len(s.ops))
	}
	s.mu.Unlock()
	p.apply().answer()
	c.ok(1, "1")
	c.bye(wire.Code_SESSION_CLOSED)
	if w.row("s") != nil {
		t.Fatal("the row is there")
	}
	c.attach("a", false)
	c.bye(wire.Code_SESSION_CLOSED)
	eventually(t, "the session is forgotten", func() bool { return w.workers["a"].Sessions() == 0 })
}

// TestFencedIncarnationDropsAllAndRefuses, until it is registered anew; then the
// session goes on where it was.
func TestFencedIncarnationDropsAllAndRefuses(t *testing.T) {
	w := newWorld(t, "a")
	a := w.workers["a"]
	over := make(chan struct{}, 1)
	a.cfg.OnFenced = func() { over <- struct{}{} }
	c := w.open("a", "s", false)
	c.ok(c.write("incr", "n"), "1")
	g := w.log.hold(isWrite)
	c.write("incr", "n")
	p := g.next(t)
	n := a.Incarnation()
	w.fence("a")
	c.bye(wire.Code_RETRY)
	<-over
	p.apply().answer() // refused by the log, and nobody is there to tell
	w.log.flush()
	g.lift()
	c.attach("a", false)
	c.bye(wire.Code_UNAVAILABLE)
	a.SetIncarnation(w.register("a", n).GetEpoch())
	c.attach("a", false)
	c.attached()
	c.request(2, 1, "incr", "n")
	c.ok(2, "2")
}

// TestAttachOfAnOverIncarnationActivatesNothing: its answer comes late.
func TestAttachOfAnOverIncarnationActivatesNothing(t *testing.T) {
	w := newWorld(t, "a")
	a := w.workers["a"]
	c := w.open("a", "s", false)
	g := w.log.hold(isAttach)
	c.attach("a", false)
	p := g.next(t).apply()
	n := a.Incarnation()
	w.fence("a")
	w.log.flush()
	a.SetIncarnation(w.register("a", n).GetEpoch())
	p.answer()
	c.bye(wire.Code_RETRY)
	eventually(t, "nothing is held", func() bool { return a.Sessions() == 0 })
}

// TestAssignedElsewhere: the log gave the session away; the old owner finds out
// by its state machine, the new one serves.
func TestAssignedElsewhere(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	c.ok(c.write("incr", "n"), "1")
	w.fence("a")
	c.bye(wire.Code_RETRY)
	c.attach("b", false)
	if at := c.attached(); at.GetNode().GetId() != "b" || at.GetLast() != 1 {
		t.Fatalf("%v", at)
	}
	c.ok(c.write("incr", "n"), "2")
}

// expire lets a detached session's TTL pass.
func (w *world) expire(session string) {
	w.t.Helper()
	w.log.mu.Lock()
	w.log.timeUS += uint64(wire.TTLDefault / time.Microsecond)
	w.log.mu.Unlock()
	w.must(&wire.Command{Kind: &wire.Command_Expire{Expire: &wire.Expire{Session: session, Epoch: w.row(session).GetEpoch()}}})
}

func TestExpiredSessionIsDropped(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	c.hangUp()
	eventually(t, "detached", func() bool { return len(w.row("s").GetAttachments()) == 0 })
	w.expire("s")
	c.attach("a", false)
	c.bye(wire.Code_SESSION_EXPIRED)
}

// TestStallSendsClientsElsewhere, and ends when the log answers.
func TestStallSendsClientsElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a")
		a := w.workers["a"]
		c := w.open("a", "s", false)
		g := w.log.hold(anything)
		c.write("incr", "n")
		p := g.next(t)
		w.clock.waitFor(t, StallAfterDefault/stallChecks, a.Stalled)
		c.bye(wire.Code_UNAVAILABLE)
		c.attach("a", false)
		c.bye(wire.Code_UNAVAILABLE)
		g.lift()
		p.apply().answer()
		eventually(t, "the stall is over", func() bool { return !a.Stalled() })
		c.attach("a", false)
		if last := c.attached().GetLast(); last != 1 {
			t.Fatalf("last = %d", last)
		}
		c.request(1, 0, "incr", "n")
		c.ok(1, "1")
	})
}

// TestStallEndsWhenNothingIsUnderWay: the log had no room for the last of it.
func TestStallEndsWhenNothingIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a")
		a := w.workers["a"]
		c := w.open("a", "s", false)
		g := w.log.hold(anything)
		c.write("incr", "n")
		p := g.next(t)
		w.clock.waitFor(t, StallAfterDefault/stallChecks, a.Stalled)
		c.bye(wire.Code_UNAVAILABLE)
		g.lift()
		p.fail(wire.Code_OVERLOADED)
		eventually(t, "the stall is over", func() bool { return !a.Stalled() })
	})
}

// TestClaimInsists: without it nothing of the session could ever be answered.
func TestClaimInsists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a")
		c := w.open("a", "s", false)
		writes, claims := w.log.hold(isWrite), w.log.hold(isClaim)
		c.write("incr", "n")
		writes.next(t).apply().apply().answer()
		claims.next(t).fail(wire.Code_OVERLOADED)
		var again *proposal
		w.clock.waitFor(t, roomRetry, func() bool {
			select {
			case again = <-claims.ch:
				return true
			default:
				return false
			}
		})
		c.silent()
		again.apply().answer()
		c.ok(1, "1")
	})
}

// TestRestoredSnapshotIsLookedAt: the state machine jumped; no event told of what
// was skipped.
func TestRestoredSnapshotIsLookedAt(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	w.log.mu.Lock()
	w.log.observers = nil
	w.log.mu.Unlock()
	w.must(&wire.Command{Kind: &wire.Command_Close{Close: &wire.CloseSession{Session: "s", Epoch: w.row("s").GetEpoch(), Owner: w.workers["a"].owner()}}})
	w.workers["a"].Observe([]store.Event{{Kind: store.EventRestored}})
	c.bye(wire.Code_SESSION_CLOSED)
}
