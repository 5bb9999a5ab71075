package worker

import (
	"fmt"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// Exactly once, at its edges.

// TestRetryWhileTheFirstAttemptIsWithTheFormerOwner: the owner is fenced while a
// write of its is on the way to the log, and the client asks the next owner for
// the same seq. Whichever of the two the log sees first, the write counts once.
func TestRetryWhileTheFirstAttemptIsWithTheFormerOwner(t *testing.T) {
	for name, first := range map[string]bool{"committed before the fence": true, "committed after it": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a", "b")
			c := w.open("a", "s", false)
			c.ok(c.write("incr", "n"), "1")
			g := w.log.hold(isWrite)
			c.write("incr", "n")
			late := g.next(t)
			g.lift()
			if first {
				late.apply()
			}
			epoch := w.row("s").GetEpoch()
			w.fence("a")
			c.attach("b", false)
			a := c.attached()
			if a.GetEpoch() <= epoch || a.GetLast() != map[bool]uint64{true: 2, false: 1}[first] {
				t.Fatalf("%v after epoch %d", a, epoch)
			}
			if !first {
				late.apply()
				if late.res[0].GetCode() == wire.Code_OK {
					t.Fatal("a write of a fenced owner was applied")
				}
			}
			c.request(2, 1, "incr", "n")
			c.ok(2, "2")
			late.answer()
			w.log.flush()
			c.request(2, 1, "incr", "n")
			c.ok(2, "2")
			if got := w.state("s", "n"); got != "2" {
				t.Fatalf("n = %s", got)
			}
		})
	}
}

// TestRepliesAreKeptUntilAcknowledged, across a failover; then they are dropped.
func TestRepliesAreKeptUntilAcknowledged(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	for i := range 20 {
		c.ok(c.write("incr", "n"), fmt.Sprint(i+1))
	}
	w.fence("a")
	c.attach("b", false)
	c.attached()
	for seq := uint64(1); seq <= 20; seq++ {
		c.request(seq, seq-1, "incr", "n")
		c.ok(seq, fmt.Sprint(seq))
	}
	c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: &wire.Request{Seq: 21, Prev: 20, Ack: 21, Method: "incr", Payload: []byte("n")}}})
	c.ok(21, "21")
	if n := len(w.row("s").GetClients()[0].GetReplies()); n != 1 {
		t.Fatalf("%d replies are kept", n)
	}
	c.request(7, 6, "incr", "n")
	if r := c.response(7); r.GetCode() != wire.Code_REPLY_GONE {
		t.Fatalf("%v", r)
	}
}

// TestFullReplyCacheRefusesBeforeExecuting, asks for acknowledgements, and has
// room when they come.
func TestFullReplyCacheRefusesBeforeExecuting(t *testing.T) {
	w := newWorld(t, "a")
	var runs int
	w.mux.Handle("run", func(*Tx, []byte) ([]byte, error) { runs++; return nil, nil })
	c := w.open("a", "s", false)
	for range wire.RepliesMax {
		c.ok(c.write("run", ""), "")
	}
	over := c.write("run", "")
	c.until("AckWanted", func(f *wire.ServerFrame) bool {
		if r := f.GetResponse(); r != nil && (r.GetSeq() != over || r.GetCode() != wire.Code_REPLY_CACHE_FULL || r.GetSettled()) {
			t.Fatalf("%v", r)
		}
		return f.GetAckWanted() != nil
	})
	w.idle("a", "s")
	if runs != wire.RepliesMax {
		t.Fatalf("it ran %d times", runs)
	}
	c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_PushAck{PushAck: &wire.PushAck{Ack: over - 3}}})
	eventually(t, "replies are dropped", func() bool { return len(w.row("s").GetClients()[0].GetReplies()) == 3 })
	c.request(over, over-1, "run", "")
	c.ok(over, "")
	if runs != wire.RepliesMax+1 {
		t.Fatalf("it ran %d times", runs)
	}
	// What a request itself acknowledges makes room for it.
	for range wire.RepliesMax - 4 {
		c.ok(c.write("run", ""), "")
	}
	c.seq++
	c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: &wire.Request{Seq: c.seq, Prev: c.last, Ack: c.seq, Method: "run"}}})
	c.ok(c.seq, "")
}

// TestIdleClientsMakeRoom: clients of a shared session who ask nothing any more
// keep their last replies, until there is no room for another's. Then they are
// asked what they have received.
func TestIdleClientsMakeRoom(t *testing.T) {
	w := newWorld(t, "a")
	first := w.open("a", "s", true)
	var idle []*client
	for range wire.RepliesMax / 2 {
		c := w.newClient("s", first.secret)
		c.attach("a", true)
		c.attached()
		c.ok(c.write("incr", "n"), fmt.Sprint(2*len(idle)+1))
		c.ok(c.write("incr", "n"), fmt.Sprint(2*len(idle)+2))
		idle = append(idle, c)
	}
	seq := first.write("incr", "n")
	if r := first.response(seq); r.GetCode() != wire.Code_REPLY_CACHE_FULL {
		t.Fatalf("%v", r)
	}
	for _, c := range idle {
		c.until("AckWanted", func(f *wire.ServerFrame) bool { return f.GetAckWanted() != nil })
		c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_PushAck{PushAck: &wire.PushAck{Ack: 3}}})
	}
	w.idle("a", "s")
	eventually(t, "all have acknowledged", func() bool {
		n := 0
		for _, c := range w.row("s").GetClients() {
			n += len(c.GetReplies())
		}
		return n == 0
	})
	w.idle("a", "s")
	first.request(seq, 0, "incr", "n")
	first.ok(seq, fmt.Sprint(wire.RepliesMax+1))
}

// TestReopenedSession: closed and opened again under its id, a session has a
// higher epoch, nothing of what was, and knows no client of before; and an Open
// that comes late does not bring back what was closed.
func TestReopenedSession(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.newClient("s", fresh(32))
	open := &wire.OpenReq{Session: "s", Secret: c.secret, Nonce: fresh(16), Instance: c.instance}
	opens := w.log.hold(func(c *wire.Command) bool { return c.GetOpen() != nil })
	c.serve("a", &wire.ClientFrame{Kind: &wire.ClientFrame_Open{Open: open}})
	delayed := opens.next(t)
	opens.lift()
	delayed.apply().answer()
	first := c.attached().GetEpoch()
	c.ok(c.write("put", "k=1"), "k")
	old := *c
	c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Close{Close: &wire.CloseReq{}}})
	c.bye(wire.Code_SESSION_CLOSED)

	if delayed.apply(); delayed.res[0].GetCode() == wire.Code_OK || w.row("s") != nil {
		t.Fatalf("a delayed Open brought the session back: %v", delayed.res[0])
	}
	again := w.open("b", "s", false)
	if epoch := w.row("s").GetEpoch(); epoch <= first {
		t.Fatalf("epoch %d after %d", epoch, first)
	}
	again.ok(again.query("get", "k"), "none")
	old.attach("b", false)
	old.bye(wire.Code_BAD_SECRET)
	// Even with the secret, what the instance asked of the former session is not
	// known to this one.
	gone := w.newClient("s", again.secret)
	gone.instance = c.instance
	gone.attach("b", false)
	gone.bye(wire.Code_CLIENT_GONE)
	again.ok(again.write("incr", "k"), "1")
	if delayed.apply(); delayed.res[0].GetCode() == wire.Code_OK {
		t.Fatal("a delayed Open was taken for the session of today")
	}
}

// TestClientsAreAskedAgain, where what they said led to nothing.
func TestClientsAreAskedAgain(t *testing.T) {
	w := newWorld(t, "a")
	first := w.open("a", "s", true)
	other := w.newClient("s", first.secret)
	other.attach("a", true)
	other.attached()
	for i := range wire.RepliesMax {
		other.ok(other.write("incr", "n"), fmt.Sprint(i+1))
	}
	seq := first.write("incr", "n")
	for _, ack := range []uint64{1, wire.RepliesMax + 1} { // a query is without an answer; then it is not
		if r := first.response(seq); r.GetCode() != wire.Code_REPLY_CACHE_FULL {
			t.Fatalf("%v", r)
		}
		other.until("AckWanted", func(f *wire.ServerFrame) bool { return f.GetAckWanted() != nil })
		other.send(&wire.ClientFrame{Kind: &wire.ClientFrame_PushAck{PushAck: &wire.PushAck{Ack: ack}}})
		other.taken()
		w.idle("a", "s")
		first.request(seq, 0, "incr", "n")
	}
	first.ok(seq, fmt.Sprint(wire.RepliesMax+1))
}

// TestFullOutboxAsks those who have not said that they have the pushes.
func TestFullOutboxAsks(t *testing.T) {
	w := newWorld(t, "a")
	first := w.open("a", "s", true)
	other := w.newClient("s", first.secret)
	other.attach("a", true)
	other.attached()
	push := func(seq uint64) {
		first.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: &wire.Request{
			Seq: seq, Prev: seq - 1, Ack: seq, PushAck: seq - 1, Method: "push", Payload: []byte("x")}}})
	}
	for seq := uint64(1); seq <= wire.OutboxMax; seq++ {
		push(seq)
		first.ok(seq, "")
	}
	push(wire.OutboxMax + 1)
	if r := first.response(wire.OutboxMax + 1); r.GetCode() != wire.Code_OUTBOX_FULL {
		t.Fatalf("%v", r)
	}
	other.until("AckWanted", func(f *wire.ServerFrame) bool { return f.GetAckWanted() != nil })
	other.send(&wire.ClientFrame{Kind: &wire.ClientFrame_PushAck{PushAck: &wire.PushAck{Seq: wire.OutboxMax, Ack: 1}}})
	eventually(t, "room", func() bool { return len(w.row("s").GetOutbox()) < wire.OutboxMax })
	w.idle("a", "s")
	push(wire.OutboxMax + 1)
	first.ok(wire.OutboxMax+1, "")
}

// TestQueriesBehindARefusedWrite: a query that waits for an earlier write goes on when
// that is refused for want of room.
func TestQueriesBehindARefusedWrite(t *testing.T) {
	w := newWorld(t, "a")
	first := w.open("a", "s", true)
	for i := range wire.RepliesMax / 2 {
		c := w.newClient("s", first.secret)
		c.attach("a", true)
		c.attached()
		c.ok(c.write("incr", "n"), fmt.Sprint(2*i+1))
		c.ok(c.write("incr", "n"), fmt.Sprint(2*i+2))
	}
	attaches := w.log.hold(func(c *wire.Command) bool { return c.GetAttach() != nil })
	w.newClient("s", first.secret).attach("a", true)
	turn := attaches.next(t) // until it has its answer, writes wait for their turn
	write := first.write("incr", "n")
	query := first.query("get", "n")
	first.taken()
	attaches.lift()
	turn.apply().answer()
	if r := first.response(write); r.GetCode() != wire.Code_REPLY_CACHE_FULL {
		t.Fatalf("%v", r)
	}
	first.ok(query, fmt.Sprint(wire.RepliesMax))
}
