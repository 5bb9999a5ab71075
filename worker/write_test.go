package worker

import (
	"fmt"
	"strings"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

func TestWriteCommitsStateReplyAndOrder(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	for i := range 20 {
		c.ok(c.write("incr", "n"), fmt.Sprint(i+1))
	}
	if got := w.state("s", "n"); got != "20" {
		t.Fatalf("n = %s", got)
	}
	c.ok(c.query("get", "n"), "20")
}

func TestRetryJoinsTheAttemptInFlight(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	g := w.log.hold(isWrite)
	c.request(1, 0, "incr", "n")
	p := g.next(t)
	c.request(1, 0, "incr", "n")
	c.taken()
	p.apply().answer()
	c.ok(1, "1")
	g.lift()
	c.request(1, 0, "incr", "n") // answered: now it comes from the window
	c.ok(1, "1")
	c.request(2, 1, "incr", "n")
	c.ok(2, "2")
	g.none(t)
	c.silent()
	if got := w.state("s", "n"); got != "2" {
		t.Fatalf("n = %s", got)
	}
}

func TestRetryAfterReattachGetsTheCachedReply(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	g := w.log.hold(isWrite)
	c.request(1, 0, "incr", "n")
	p := g.next(t)
	c.hangUp() // the client loses its stream while the write is with the log
	c.attach("a", false)
	p.apply().answer()
	if last := c.attached().GetLast(); last != 1 {
		t.Fatalf("last = %d", last)
	}
	g.lift()
	c.request(1, 0, "incr", "n")
	c.ok(1, "1")
	if got := w.state("s", "n"); got != "1" {
		t.Fatalf("n = %s", got)
	}
}

// TestAcknowledgedReplyIsGone: what the client has acknowledged is not kept, and
// is not run again either.
func TestAcknowledgedReplyIsGone(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	c.ok(c.write("incr", "n"), "1")
	c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: &wire.Request{Seq: 2, Prev: 1, Ack: 2, Method: "incr", Payload: []byte("n")}}})
	c.ok(2, "2")
	c.request(1, 0, "incr", "n")
	if r := c.response(1); r.GetCode() != wire.Code_REPLY_GONE || !r.GetSettled() {
		t.Fatalf("%v", r)
	}
	if got := w.state("s", "n"); got != "2" {
		t.Fatalf("n = %s", got)
	}
}

// TestDuplicateResultLeadsToClaim: a result that does not follow the activation
// may be another's. No reply leaves before the row has been claimed.
func TestDuplicateResultLeadsToClaim(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	writes, claims := w.log.hold(isWrite), w.log.hold(isClaim)
	c.write("incr", "n")
	p := writes.next(t).apply().apply() // the answer was lost; proposed again
	if !p.res[0].GetDuplicate() {
		t.Fatalf("%v", p.res[0])
	}
	p.answer()
	claim := claims.next(t)
	c.silent()
	q := c.query("get", "n")
	c.request(1, 0, "incr", "n") // a retry is held too
	c.taken()
	c.silent()
	claims.lift()
	claim.apply().answer()
	c.ok(1, "1")
	c.ok(q, "1")
	writes.lift()
	c.ok(c.write("incr", "n"), "2")
}

// TestResultThatDoesNotFollowLeadsToClaim: before is not the activation's index.
func TestResultThatDoesNotFollowLeadsToClaim(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", true)
	writes, claims := w.log.hold(isWrite), w.log.hold(isClaim)
	c.write("put", "k=new")
	p := writes.next(t)
	// The row changes behind the activation: an Ack that was proposed long ago.
	owner := w.workers["a"].owner()
	w.must(&wire.Command{Kind: &wire.Command_Attach{Attach: &wire.Attach{
		Session: "s", Epoch: w.row("s").GetEpoch(), Owner: owner, Number: 1 << 30, Client: fresh(16), Fresh: true,
	}}})
	p.apply().answer()
	claim := claims.next(t)
	c.silent()
	claims.lift()
	claim.apply().answer()
	c.ok(1, "k")
	// The attachment that no stream stands for is closed.
	w.idle("a", "s")
	if n := len(w.row("s").GetAttachments()); n != 1 {
		t.Fatalf("%d attachments", n)
	}
}

// TestRefusedMemberDiscardsWhatBuiltOnIt: the first of a pipelined group is
// refused for its size; what read its write is run again, not answered.
func TestRefusedMemberDiscardsWhatBuiltOnIt(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	writes := w.log.hold(isWrite)
	c.write("put", "x=0")
	first := writes.next(t)
	c.write("incr", "n") // these two make one group
	c.write("incr", "n")
	c.taken()
	first.apply().answer()
	c.ok(1, "x")
	group := writes.next(t)
	if len(group.cmds) != 2 {
		t.Fatalf("%d commands", len(group.cmds))
	}
	// Only the first is refused: its command is made too large for the log's
	// rules on the way.
	good := group.cmds[0].GetWrite().GetChanges()
	group.cmds[0].GetWrite().Changes = []*wire.Change{{Key: "n", Value: make([]byte, wire.ValueBytesMax+1)}}
	group.apply()
	if a, b := group.res[0].GetCode(), group.res[1].GetCode(); a != wire.Code_VALUE_TOO_LARGE || b != wire.Code_SEQ_MISMATCH {
		t.Fatalf("%v %v", a, b)
	}
	group.cmds[0].GetWrite().Changes = good
	group.answer()
	if r := c.response(2); r.GetSettled() || r.GetCode() != wire.Code_VALUE_TOO_LARGE {
		t.Fatalf("%v", r)
	}
	w.idle("a", "s")
	c.silent() // 3 saw n = 1, which never was
	writes.lift()
	c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Cancel{Cancel: &wire.CancelReq{Seq: 2, Prev: 1}}})
	if r := c.response(2); r.GetCode() != wire.Code_CANCELLED || !r.GetSettled() {
		t.Fatalf("%v", r)
	}
	c.ok(3, "1") // run anew on what is there
	if got := w.state("s", "n"); got != "1" {
		t.Fatalf("n = %s", got)
	}
}

// TestStateLimit: a group whose members each fit, but not together.
func TestStateLimit(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	g := w.log.hold(isWrite)
	c.write("incr", "n")
	p := g.next(t)
	big := strings.Repeat("v", wire.StateBytesMax/5)
	for i := range 5 {
		c.write("put", fmt.Sprintf("k%d=%s", i, big))
	}
	c.taken()
	g.lift()
	p.apply().answer()
	c.ok(1, "1")
	for seq := uint64(2); seq <= 6; seq++ {
		r := c.response(seq)
		want := wire.Code_OK
		if seq == 6 {
			want = wire.Code_STATE_TOO_LARGE
		}
		if r.GetCode() != want {
			t.Fatalf("%d: %v", seq, r.GetCode())
		}
	}
}

func TestCancelSettlesWhatHasNotRun(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	g := w.log.hold(isWrite)
	c.write("incr", "n")
	p := g.next(t)
	c.write("incr", "n")
	c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Cancel{Cancel: &wire.CancelReq{Seq: 2, Prev: 1}}})
	c.write("incr", "n")
	c.taken()
	g.lift()
	p.apply().answer()
	c.ok(1, "1")
	if r := c.response(2); r.GetCode() != wire.Code_CANCELLED || !r.GetSettled() {
		t.Fatalf("%v", r)
	}
	c.ok(3, "2")
}

// TestCancelOfWhatRanGetsItsReply also where the cancel came while it ran.
func TestCancelOfWhatRanGetsItsReply(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	cancel := &wire.ClientFrame{Kind: &wire.ClientFrame_Cancel{Cancel: &wire.CancelReq{Seq: 1}}}
	g := w.log.hold(isWrite)
	c.write("incr", "n")
	p := g.next(t)
	c.send(cancel)
	c.taken()
	g.lift()
	p.apply().answer()
	c.ok(1, "1")
	c.send(cancel)
	c.ok(1, "1")
}

// TestOverloadedLogRefusesTheGroup: nothing was consumed, and a query behind it
// is answered.
func TestOverloadedLogRefusesTheGroup(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	g := w.log.hold(isWrite)
	seq := c.write("incr", "n")
	p := g.next(t)
	q := c.query("get", "n")
	c.taken()
	c.silent()
	p.fail(wire.Code_OVERLOADED)
	if r := c.response(seq); r.GetCode() != wire.Code_OVERLOADED || r.GetSettled() {
		t.Fatalf("%v", r)
	}
	c.ok(q, "none")
	g.lift()
	c.request(seq, 0, "incr", "n")
	c.ok(seq, "1")
}

func TestHandlerFailuresCommitTheirOutcomeAndNothingElse(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	for _, tc := range []struct {
		method string
		want   wire.Code
	}{
		{"fail", wire.Code_HANDLER_ERROR}, {"panic", wire.Code_HANDLER_PANIC},
		{"big", wire.Code_REPLY_TOO_LARGE}, {"nothing", wire.Code_UNKNOWN_METHOD},
	} {
		seq := c.write(tc.method, "\xff"+strings.Repeat("x", errorBytesMax))
		r := c.response(seq)
		if r.GetCode() != tc.want || !r.GetSettled() {
			t.Errorf("%s: %v", tc.method, r.GetCode())
		}
		if len(r.GetMessage()) > errorBytesMax+64 {
			t.Errorf("%s: %d bytes of text", tc.method, len(r.GetMessage()))
		}
		for _, cl := range w.row("s").GetClients() {
			for _, rep := range cl.GetReplies() {
				if m := rep.GetReply().GetMessage(); strings.ToValidUTF8(m, "") != m {
					t.Errorf("%s: not UTF-8 in the log", tc.method)
				}
			}
		}
		before := c.last
		c.request(seq, before-1, tc.method, "again")
		if again := c.response(seq); again.GetMessage() != r.GetMessage() {
			t.Errorf("%s ran twice", tc.method)
		}
	}
	if got := w.state("s", "failed"); got != "none" {
		t.Errorf("a failed handler left %q", got)
	}
	if n := len(w.row("s").GetOutbox()); n != 0 {
		t.Errorf("%d pushes", n)
	}
	c.ok(c.write("incr", "n"), "1")
}

func TestBadSequencesAreRefused(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	c.request(0, 0, "incr", "n")
	f := c.next()
	if f.GetResponse().GetCode() != wire.Code_BAD_REQUEST {
		t.Fatalf("%v", f)
	}
	c.request(5, 6, "incr", "n")
	if r := c.response(5); r.GetCode() != wire.Code_BAD_REQUEST {
		t.Fatalf("%v", r)
	}
	c.request(2, 0, "incr", "n")
	c.ok(2, "1")
	c.request(3, 1, "incr", "n") // 1 never was the last
	if r := c.response(3); r.GetCode() != wire.Code_SEQ_MISMATCH || r.GetSettled() {
		t.Fatalf("%v", r)
	}
	c.request(9, 8, "incr", "n")  // waits for 8
	c.request(10, 8, "incr", "n") // cannot wait for the same
	if r := c.response(10); r.GetCode() != wire.Code_BAD_REQUEST {
		t.Fatalf("%v", r)
	}
}

// TestPushesReachAllInOrderAndAgainAfterReattach, until they are acknowledged.
func TestPushesReachAllInOrderAndAgainAfterReattach(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", true)
	other := w.newClient("s", c.secret)
	other.attach("a", true)
	other.attached()
	for i := range 3 {
		c.ok(c.write("push", fmt.Sprint(i)), "")
	}
	pushes := func(c *client, from, to uint64) {
		t.Helper()
		for seq := from; seq <= to; seq++ {
			p := c.until("push", func(f *wire.ServerFrame) bool { return f.GetPush() != nil }).GetPush()
			if p.GetSeq() != seq || string(p.GetPayload()) != fmt.Sprint(seq-1) {
				t.Fatalf("push %v, want %d", p, seq)
			}
		}
	}
	pushes(other, 1, 3)
	acks := w.log.hold(isAck)
	for range 10 {
		other.send(&wire.ClientFrame{Kind: &wire.ClientFrame_PushAck{PushAck: &wire.PushAck{Seq: 2}}})
	}
	ack := acks.next(t)
	for range 10 { // what comes meanwhile waits as one
		other.send(&wire.ClientFrame{Kind: &wire.ClientFrame_PushAck{PushAck: &wire.PushAck{Seq: 2}}})
	}
	other.taken()
	s := w.workers["a"].lookup("s")
	s.mu.Lock()
	if len(s.ops) > 1 {
		t.Errorf("%d operations wait", len(s.ops))
	}
	s.mu.Unlock()
	ack.apply().answer()
	w.idle("a", "s")
	acks.none(t)
	if n := len(w.row("s").GetOutbox()); n != 3 { // the other one has none
		t.Fatalf("%d in the outbox", n)
	}
	other.hangUp()
	w.idle("a", "s")
	other.attach("a", false)
	other.attached()
	pushes(other, 1, 3) // it said nothing of what it has
	c.hangUp()
	eventually(t, "the other one is alone", func() bool { return len(w.row("s").GetAttachments()) == 1 })
	other.send(&wire.ClientFrame{Kind: &wire.ClientFrame_PushAck{PushAck: &wire.PushAck{Seq: 3}}})
	acks.next(t).apply().answer()
	eventually(t, "the outbox is empty", func() bool { return len(w.row("s").GetOutbox()) == 0 })
}
