package worker

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/baton-cluster/baton/wire"
)

// TestHandoff moves a session under load: what was sent to the target is parked
// and answered there, in order, once.
func TestHandoff(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	c.ok(c.write("incr", "n"), "1")
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	c.ok(c.write("incr", "n"), "2") // the source serves on
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	c.frozen()
	p := pivot.next(t)
	warm.seq, warm.last = c.seq, c.last
	var writes []uint64
	for range 10 {
		writes = append(writes, warm.write("incr", "n"))
	}
	q := warm.query("get", "n")
	warm.request(2, 1, "incr", "n") // a retry of what the source answered
	warm.taken()
	warm.silent()
	c.write("incr", "n") // sent to the source by mistake: not run there
	c.taken()
	c.silent()
	p.apply().answer()
	mv.moved(ch)
	warm.pivoted(mv.m.GetSourceEpoch())
	warm.ok(2, "2")
	for i, seq := range writes {
		warm.ok(seq, fmt.Sprint(i+3))
	}
	warm.ok(q, "12")
	c.bye(wire.Code_MOVED)
	warm.ok(warm.write("incr", "n"), "13")
	w.forgotten("a")
	if len(w.workers["b"].allIncoming()) != 0 {
		t.Fatal("the target keeps the migration")
	}
	pivot.lift() // and back
	back := w.begin("s", "b", "a")
	home := back.invite(warm)
	ch = back.handover(warm)
	back.moved(ch)
	home.pivoted(back.m.GetSourceEpoch())
	warm.bye(wire.Code_MOVED)
	home.ok(home.write("incr", "n"), "14")
	w.forgotten("b")
}

// TestHandoffWaitsForWhatRuns: a handler, its commit, and a Detach under way are
// settled before the state is captured (H1).
func TestHandoffWaitsForWhatRuns(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot, writes := w.log.hold(isPivot), w.log.hold(isWrite)
	c.write("block", "x")
	<-w.running
	c.write("incr", "n") // behind it: not begun
	c.taken()
	ch := mv.handover(c)
	c.frozen()
	w.log.flush()
	pivot.none(t)
	close(w.block)
	p := writes.next(t)
	w.log.flush()
	pivot.none(t)
	p.apply().answer()
	c.ok(1, "x")
	pv := pivot.next(t)
	writes.none(t)
	writes.lift()
	pv.apply().answer()
	mv.moved(ch)
	warm.pivoted(mv.m.GetSourceEpoch())
	warm.request(1, 0, "block", "x") // the reply moved with the row
	warm.ok(1, "x")
	warm.request(2, 1, "incr", "n")
	warm.ok(2, "1")
}

// TestReadDuringFreezeIsNotAnswered, neither one that came before, nor one after.
func TestReadDuringFreezeIsNotAnswered(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	mv.invite(c)
	markers, pivot := w.log.hold(isMarker), w.log.hold(isPivot)
	before := c.query("get", "n")
	m := markers.next(t)
	ch := mv.handover(c)
	c.frozen()
	c.query("get", "n")
	c.taken()
	markers.none(t)
	m.apply().answer()
	if r := c.response(before); r.GetCode() != wire.Code_RETRY || r.GetSettled() {
		t.Fatalf("%v", r)
	}
	p := pivot.next(t)
	c.silent()
	p.apply().answer()
	mv.moved(ch)
}

// TestAbortUnfreezesAndGoesOn: what waited is run at the source, and what the
// target had parked is bounced.
func TestAbortUnfreezesAndGoesOn(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	c.frozen()
	p := pivot.next(t)
	warm.write("incr", "n")
	warm.taken()
	c.write("incr", "n")
	late := w.newClient("s", c.secret) // one that comes under the freeze
	late.attach("a", true)
	late.bye(wire.Code_FROZEN)
	mv.abort()
	p.apply().answer()
	mv.failed(ch, wire.Code_MIGRATION_ENDED)
	warm.until("Bounced", func(f *wire.ServerFrame) bool { return f.GetBounced() != nil })
	warm.bye(wire.Code_MIGRATION_ENDED)
	c.unfrozen()
	c.ok(1, "1")
	c.ok(c.query("get", "n"), "1")
	w.forgotten("b")
}

// TestTransferAnswerLost: the source asks the log, which decides (H3).
func TestTransferAnswerLost(t *testing.T) {
	lost := wire.Errorf(wire.Code_UNAVAILABLE, "the connection broke")
	t.Run("after the pivot", inBubble(func(t *testing.T) {
		w := newWorld(t, "a", "b")
		w.transfer = func(next func(context.Context) (*wire.TransferResp, error), _ *wire.TransferReq) (*wire.TransferResp, error) {
			_, _ = next(context.Background())
			return nil, lost
		}
		c := w.open("a", "s", false)
		mv := w.begin("s", "a", "b")
		warm := mv.invite(c)
		mv.moved(mv.handover(c))
		c.bye(wire.Code_MOVED)
		warm.pivoted(mv.m.GetSourceEpoch())
		warm.ok(warm.write("incr", "n"), "1")
		w.forgotten("a")
	}))
	t.Run("before it", inBubble(func(t *testing.T) {
		w := newWorld(t, "a", "b")
		w.transfer = func(func(context.Context) (*wire.TransferResp, error), *wire.TransferReq) (*wire.TransferResp, error) {
			return nil, lost
		}
		c := w.open("a", "s", false)
		mv := w.begin("s", "a", "b")
		warm := mv.invite(c)
		aborts := w.log.hold(isAbort)
		ch := mv.handover(c)
		c.frozen()
		seq := c.write("incr", "n")
		aborts.next(t).fail(wire.Code_OVERLOADED) // the freeze stays until the log has spoken
		var p *proposal
		w.clock.waitFor(t, roomRetry, func() bool {
			select {
			case p = <-aborts.ch:
				return true
			default:
				return false
			}
		})
		c.silent()
		p.apply().answer()
		mv.failed(ch, wire.Code_UNAVAILABLE)
		c.unfrozen()
		c.ok(seq, "1")
		warm.bye(wire.Code_MIGRATION_ENDED)
		w.forgotten("b")
	}))
	t.Run("while the pivot is with the log", inBubble(func(t *testing.T) {
		w := newWorld(t, "a", "b")
		pivot := w.log.hold(isPivot)
		over := make(chan struct{})
		w.transfer = func(next func(context.Context) (*wire.TransferResp, error), _ *wire.TransferReq) (*wire.TransferResp, error) {
			ctx, cancel := context.WithCancel(context.Background())
			go func() { <-over; cancel() }()
			return next(ctx)
		}
		c := w.open("a", "s", false)
		mv := w.begin("s", "a", "b")
		warm := mv.invite(c)
		ch := mv.handover(c)
		p := pivot.next(t).apply()
		close(over)
		mv.moved(ch)
		c.bye(wire.Code_MOVED)
		p.answer()
		warm.pivoted(mv.m.GetSourceEpoch())
		warm.ok(warm.write("incr", "n"), "1")
	}))
}

// TestWarmClientGoneBeforeThePivot: the move is called off rather than forced.
func TestWarmClientGoneBeforeThePivot(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	warm.hangUp()
	in := w.workers["b"].expected(mv.m.GetId())
	eventually(t, "the target has noticed", func() bool { clients, _ := in.arrived(nil); return len(clients) == 0 })
	mv.failed(mv.handover(c), wire.Code_CLIENT_CANNOT_REACH)
	c.unfrozen()
	c.ok(c.write("incr", "n"), "1")
	w.forgotten("b")
}

// TestWarmClientGoneAtThePivot: it was warm when the pivot was proposed. The
// target detaches it at activation (S7).
func TestWarmClientGoneAtThePivot(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	p := pivot.next(t)
	in := w.workers["b"].expected(mv.m.GetId())
	warm.hangUp()
	eventually(t, "the target has noticed", func() bool { clients, _ := in.arrived(nil); return len(clients) == 0 })
	p.apply().answer()
	mv.moved(ch)
	eventually(t, "detached", func() bool { return len(w.row("s").GetAttachments()) == 0 })
	w.forgotten("b")
	c.bye(wire.Code_MOVED)
	c.attach("b", false)
	c.attached()
	c.ok(c.write("incr", "n"), "1")
}

// TestClientNotWarmIsNotForced: one that attached since the invitation.
func TestClientNotWarmIsNotForced(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	other := w.newClient("s", c.secret)
	other.attach("a", true)
	other.attached()
	mv.failed(mv.handover(c), wire.Code_CLIENT_CANNOT_REACH)
	other.silent() // it was not even frozen
	other.ok(other.write("incr", "n"), "1")
	mv.abort()
	warm.bye(wire.Code_MIGRATION_ENDED)
}

// TestDetachedSessionMoves without a client, and without an activation.
func TestDetachedSessionMoves(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	c.ok(c.write("incr", "n"), "1")
	c.hangUp()
	w.forgotten("a")
	mv := w.begin("s", "a", "b")
	if err := mv.to.Prepare(&wire.PrepareReq{Migration: mv.m}); err != nil {
		t.Fatal(err)
	}
	mv.moved(mv.handover())
	w.forgotten("a")
	w.forgotten("b")
	c.attach("a", false)
	if f := c.next(); f.GetRedirect().GetOwner().GetId() != "b" {
		t.Fatalf("%v", f)
	}
	c.bye(wire.Code_NOT_OWNER)
	c.attach("b", false)
	c.attached()
	c.ok(c.write("incr", "n"), "2")
}

// TestCloseIsParkedUnderFreeze: at the source it waits for the outcome; at the
// target it closes the session there.
func TestCloseIsParkedUnderFreeze(t *testing.T) {
	for _, pivots := range []bool{false, true} {
		t.Run(fmt.Sprintf("pivots=%v", pivots), func(t *testing.T) {
			w := newWorld(t, "a", "b")
			c := w.open("a", "s", false)
			mv := w.begin("s", "a", "b")
			warm := mv.invite(c)
			pivot := w.log.hold(isPivot)
			ch := mv.handover(c)
			c.frozen()
			p := pivot.next(t)
			end := &wire.ClientFrame{Kind: &wire.ClientFrame_Close{Close: &wire.CloseReq{}}}
			c.send(end)
			c.taken()
			w.idleButParked("a", "s")
			if w.row("s") == nil {
				t.Fatal("closed under the freeze")
			}
			if !pivots {
				mv.abort()
				p.apply().answer()
				mv.failed(ch, wire.Code_MIGRATION_ENDED)
				c.bye(wire.Code_SESSION_CLOSED)
				return
			}
			warm.send(end)
			warm.taken()
			p.apply().answer()
			mv.moved(ch)
			c.bye(wire.Code_MOVED)
			warm.bye(wire.Code_SESSION_CLOSED)
			w.forgotten("a")
			w.forgotten("b")
		})
	}
}

// idleButParked waits until only parked operations are left.
func (w *world) idleButParked(worker, session string) {
	w.t.Helper()
	s := w.workers[worker].lookup(session)
	eventually(w.t, "only parked operations are left", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return !s.busy && len(s.ops) == 1
	})
}

// TestHandlerHoldsUpTheFreeze past its grace: the move is called off, and the
// handler's request is answered once it is done.
func TestHandlerHoldsUpTheFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		c := w.open("a", "s", false)
		mv := w.begin("s", "a", "b")
		mv.invite(c)
		c.write("block", "x")
		<-w.running
		ch := mv.handover(c)
		c.frozen()
		s := w.workers["a"].lookup("s")
		w.clock.waitFor(t, freezeGrace/4, func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.freeze == nil
		})
		mv.failed(ch, wire.Code_OVERLOADED)
		c.unfrozen()
		c.request(1, 0, "block", "x") // sent again, as told
		c.taken()
		c.silent()
		close(w.block)
		c.ok(1, "x")
		c.ok(c.write("incr", "n"), "1")
		c.silent()
	})
}

// TestWriteOvertakesTheAbort: what held up the freeze is committed behind the
// abort, and its answer comes first: the abort's, which is older, must not take
// the activation back.
func TestWriteOvertakesTheAbort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		c := w.open("a", "s", false)
		c.ok(c.write("incr", "n"), "1")
		mv := w.begin("s", "a", "b")
		mv.invite(c)
		block := c.write("block", "x")
		<-w.running
		aborts := w.log.hold(isAbort)
		ch := mv.handover(c)
		c.frozen()
		var abort *proposal
		w.clock.waitFor(t, freezeGrace/4, func() bool {
			select {
			case abort = <-aborts.ch:
				return true
			default:
				return false
			}
		})
		abort.apply()
		close(w.block)
		c.ok(block, "x")
		eventually(t, "settled", func() bool {
			s := w.workers["a"].lookup("s")
			s.mu.Lock()
			defer s.mu.Unlock()
			return !s.busy
		})
		abort.answer()
		mv.failed(ch, wire.Code_OVERLOADED)
		c.unfrozen()
		w.idle("a", "s")
		c.ok(c.query("get", "blocked"), "x")
		c.ok(c.write("incr", "n"), "2")
	})
}
