package worker

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/baton-cluster/baton/bulk"
	"github.com/baton-cluster/baton/wire"
)

// TestStreamMoves with its session, with bytes on their way in both directions;
// and a move that is called off starts the handler again where it was.
func TestStreamMoves(t *testing.T) {
	for _, off := range []bool{false, true} {
		t.Run(fmt.Sprintf("calledOff=%v", off), func(t *testing.T) {
			w := streamWorld(t, "a", "b")
			c := w.open("a", "s", false)
			f := c.flow("a", "mirror")
			f.opened()
			f.write(100_000)
			f.mirrored(30_000) // the rest is on its way
			g := c.flow("a", "blocks")
			g.opened()
			g.write(2*blockBytes + blockBytes/2)
			g.mirrored(2 * blockBytes) // half a block is read, and not acknowledged
			w.read("a", g, 2*blockBytes+blockBytes/2)
			mv := w.begin("s", "a", "b")
			warm := mv.invite(c)
			pivot := w.log.hold(isPivot)
			ch := mv.handover(c)
			p := pivot.next(t)
			f.write(50_000)
			f.bye(wire.Code_FROZEN)
			f.connect(c, "a")
			f.bye(wire.Code_FROZEN)
			at, worker := warm, "b"
			if off {
				mv.abort()
				at, worker = c, "a"
			}
			p.apply().answer()
			if off {
				mv.failed(ch, wire.Code_MIGRATION_ENDED)
				c.unfrozen()
			} else {
				mv.moved(ch)
				warm.pivoted(mv.m.GetSourceEpoch())
				w.streamsGone("a")
			}
			f.connect(at, worker)
			f.opened()
			f.write(10_000)
			f.mirrored(160_000)
			f.finish()
			f.ended(wire.Code_OK)
			g.connect(at, worker)
			if o := g.opened(); o.GetReceived() != 2*blockBytes {
				t.Errorf("the handler goes on at %d", o.GetReceived())
			}
			g.finish()
			g.mirrored(2*blockBytes + blockBytes/2)
			g.ended(wire.Code_OK)
			w.streamsGone(worker)
		})
	}
}

// TestStreamThatCannotMove is ended by the move, behind all that it wrote; so is
// one whose handler has ended and whose client has not heard.
func TestStreamThatCannotMove(t *testing.T) {
	w := streamWorld(t, "a", "b")
	c := w.open("a", "s", false)
	f, g := c.flow("a", "fragile"), c.flow("a", "done")
	f.opened()
	g.opened()
	f.write(1000)
	f.mirrored(1000)
	f.c.hangUp()
	g.c.hangUp()
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	mv.moved(mv.handover(c))
	warm.pivoted(mv.m.GetSourceEpoch())
	f.connect(warm, "b")
	f.opened()
	f.ended(wire.Code_STREAM_MOVED)
	g.connect(warm, "b")
	g.opened()
	g.ended(wire.Code_HANDLER_ERROR)
	w.streamsGone("b")
}

// TestStreamHoldsUpTheMove: a handler that does not return calls the move off
// before the session is frozen; the others go on.
func TestStreamHoldsUpTheMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := streamWorld(t, "a", "b")
		c := w.open("a", "s", false)
		f, g := c.flow("a", "mirror"), c.flow("a", "stubborn")
		f.opened()
		g.opened()
		<-w.running
		mv := w.begin("s", "a", "b")
		mv.invite(c)
		ch := mv.handover(c)
		w.stopping("a", "s")
		late := c.flow("a", "mirror")
		late.bye(wire.Code_FROZEN) // nothing begins any more, though the session serves
		var h handed
		w.clock.waitFor(t, freezeGrace/4, func() bool {
			select {
			case h = <-ch:
				return true
			default:
				return false
			}
		})
		if wire.CodeOf(h.err) != wire.Code_OVERLOADED {
			t.Fatal(h.err)
		}
		f.bye(wire.Code_FROZEN) // its handler was stopped, and has begun anew
		f.connect(c, "a")
		f.opened()
		f.write(1000)
		f.mirrored(1000)
		c.ok(c.write("incr", "n"), "1") // the session was never frozen
		close(w.block)
		g.bye(wire.Code_FROZEN)
		g.connect(c, "a")
		g.opened()
		<-w.running // anew
		mv.abort()
	})
}

// TestStreamMovesOnBeforeItIsServed: the next move begins while the pivot of the
// last is with the log. What the first brought goes along with the second.
func TestStreamMovesOnBeforeItIsServed(t *testing.T) {
	w := streamWorld(t, "a", "b")
	c := w.open("a", "s", false)
	f := c.flow("a", "mirror")
	f.opened()
	f.write(1000)
	f.mirrored(1000)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	p := pivot.next(t).apply() // committed, and b has not heard
	back := w.begin("s", "b", "a")
	ch2 := back.handover()
	eventually(t, "b is frozen for the next move", func() bool {
		s := w.workers["b"].lookup("s")
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.freeze != nil
	})
	pivot.lift()
	p.answer()
	mv.moved(ch)
	back.moved(ch2)
	warm.bye(wire.Code_MIGRATION_ENDED)
	if _, ran := w.runs.Load(w.row("s").GetEpoch() - 1); ran {
		t.Fatal("a handler has run at b, which never served the session")
	}
	c.attach("a", false)
	c.attached()
	f.connect(c, "a")
	f.opened()
	f.write(1000)
	f.mirrored(2000)
	w.streamsGone("b")
}

// TestStreamOfAnotherSnapshot: the pivot names another snapshot than the one that
// came, so nothing of that is used.
func TestStreamOfAnotherSnapshot(t *testing.T) {
	w := streamWorld(t, "a", "b")
	c := w.open("a", "s", false)
	f := c.flow("a", "mirror")
	f.opened()
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	p := pivot.next(t)
	w.must(&wire.Command{Kind: &wire.Command_Pivot{Pivot: &wire.CommitPivot{
		Migration: mv.m.GetId(), Change: w.row("s").GetChange(), Digest: 1, Attested: mv.m.GetId(), Warm: [][]byte{c.instance},
	}}})
	p.apply().answer()
	mv.moved(ch)
	warm.bye(wire.Code_MIGRATION_ENDED)
	c.attach("b", false)
	c.attached()
	f.connect(c, "b")
	f.bye(wire.Code_STREAM_LOST)
	w.streamsGone("b")
}

// TestStreamIsLost with its owner: nobody begins it a second time.
func TestStreamIsLost(t *testing.T) {
	w := streamWorld(t, "a", "b")
	c := w.open("a", "s", false)
	f, unheard := c.flow("a", "mirror"), c.flow("a", "mirror")
	f.opened()
	w.fence("a")
	f.bye(wire.Code_RETRY)
	w.streamsGone("a")
	c.attach("b", false)
	c.attached()
	f.connect(c, "b")
	f.bye(wire.Code_STREAM_LOST)
	unheard.connect(c, "b") // its opening may have begun in the former epoch
	unheard.bye(wire.Code_STREAM_LOST)
	w.streamsGone("b")
	c.flow("b", "mirror").opened()
}

// TestStreamInDoubt: a client does not know whether the opening of its stream had
// arrived when the session was moved, and moved on. It begins once, wherever it did; but
// not if it may have begun at an owner that is gone.
func TestStreamInDoubt(t *testing.T) {
	for _, arrived := range []bool{false, true} {
		t.Run(fmt.Sprintf("arrived=%v", arrived), func(t *testing.T) {
			w := streamWorld(t, "a", "b")
			at := w.open("a", "s", false)
			near, far, late := at.unsent("mirror"), at.unsent("mirror"), at.unsent("mirror")
			move := func(from, to string) {
				mv := w.begin("s", from, to)
				warm := mv.invite(at)
				mv.moved(mv.handover(at))
				warm.pivoted(mv.m.GetSourceEpoch())
				at = warm
			}
			begins := func(f *flow, worker string) {
				f.req.Opened = false
				f.connect(at, worker)
				if o := f.opened(); o.GetReceived() != uint64(f.sent) {
					t.Errorf("its handler is at %d, not %d", o.GetReceived(), f.sent)
				}
				f.write(1000)
				f.mirrored(f.sent)
			}
			if arrived {
				begins(near, "a")
				begins(far, "a")
			}
			move("a", "b")
			begins(near, "b")
			move("b", "a")
			begins(far, "a")
			w.fence("a")
			w.streamsGone("a")
			at.attach("b", false)
			at.attached()
			late.connect(at, "b")
			late.bye(wire.Code_STREAM_LOST)
		})
	}
}

// TestStreamsEndWithTheirEpoch, also where nobody is attached.
func TestStreamsEndWithTheirEpoch(t *testing.T) {
	w := streamWorld(t, "a", "b")
	c := w.open("a", "s", false)
	f := c.flow("a", "mirror")
	f.opened()
	c.hangsUp("a")
	if w.noStreams("a") {
		t.Fatal("the stream has ended with the connection")
	}
	mv := w.begin("s", "a", "b") // detached, it moves all the same, and takes the stream along
	mv.moved(mv.handover())
	w.streamsGone("a")
	c.attach("b", false)
	c.attached()
	f.connect(c, "b")
	f.opened()
	f.write(10)
	f.mirrored(10)
	c.hangsUp("b")
	w.fence("b")
	w.streamsGone("b")
}

// TestStreamsEndWithTheirSession, also if that expires in the middle of a move.
func TestStreamsEndWithTheirSession(t *testing.T) {
	for _, pivoted := range []bool{false, true} {
		t.Run(fmt.Sprintf("pivoted=%v", pivoted), inBubble(func(t *testing.T) {
			w := streamWorld(t, "a", "b")
			c := w.open("a", "s", false)
			method := "stubborn" // holds up the move until it is called off
			if pivoted {
				method = "mirror"
			}
			c.flow("a", method).opened()
			c.hangsUp("a")
			pivot := w.log.hold(isPivot)
			mv := w.begin("s", "a", "b")
			ch := mv.handover()
			if pivoted {
				p := pivot.next(t).apply()
				w.expire("s")
				p.answer()
				if h := <-ch; h.err != nil {
					t.Fatal(h.err)
				}
			} else {
				w.stopping("a", "s")
				w.expire("s")
				w.clock.waitFor(t, freezeGrace/4, func() bool { return len(ch) > 0 })
			}
			pivot.lift()
			close(w.block)
			w.streamsGone("a")
			w.streamsGone("b")
		}))
	}
}

// TestStreamMessagesAreNotTorn by a move that comes while one waits for room.
func TestStreamMessagesAreNotTorn(t *testing.T) {
	const size, count = 60_000, 12 // four fit the window, and some of a fifth would
	w := streamWorld(t, "a", "b")
	w.mux.HandleStream("talk", func(st *ServerStream) error {
		cookie, _ := st.Resumed()
		for n := len(cookie); n < count; n++ {
			m := bytes.Repeat([]byte{byte(n)}, size)
			if err := st.SendMessage(m); err != nil {
				return err
			}
			if err := st.Ack(0, make([]byte, n+1)); err != nil {
				return err
			}
		}
		return nil
	}, Resumable())
	c := w.open("a", "s", false)
	f := c.flow("a", "talk")
	f.opened()
	of := &w.workers["a"].streams
	of.mu.Lock()
	st := of.of["s"].byKey[streamKey{string(c.instance), f.req.Stream}]
	of.mu.Unlock()
	eventually(t, "the window is full", func() bool {
		st.mu.Lock()
		defer st.mu.Unlock()
		return st.out.Room() < size
	})
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	mv.moved(mv.handover(c))
	warm.pivoted(mv.m.GetSourceEpoch())
	f.connect(warm, "b")
	f.opened()
	for f.fin == nil {
		f.take()
		f.c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_StreamAck{StreamAck: &wire.StreamAck{Offset: f.in.Acked()}}})
	}
	f.ended(wire.Code_OK)
	r := bytes.NewReader(f.got)
	for n := range count {
		m, err := bulk.ReadMessage(r)
		if err != nil || len(m) != size || m[0] != byte(n) || m[size-1] != byte(n) {
			t.Fatalf("message %d: %d bytes, %v", n, len(m), err)
		}
	}
	if r.Len() != 0 {
		t.Fatalf("%d bytes are left", r.Len())
	}
}
