package store

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/baton-cluster/baton/wire"
)

func (h *harness) state(id string) string {
	h.t.Helper()
	var b strings.Builder
	for _, c := range h.row(id).State {
		fmt.Fprintf(&b, "%s=%s ", c.Key, c.Value)
	}
	return strings.TrimSpace(b.String())
}

func (h *harness) wantState(want string) {
	h.t.Helper()
	if got := h.state("s"); got != want {
		h.t.Fatalf("state %q, want %q", got, want)
	}
}

// P3: a seq is applied once, whatever is retried, and a retry gets the reply on
// record even if it looks different (a handler that was re-run).
func TestExactlyOnce(t *testing.T) {
	h := newHarness(t).attached()
	c := h.writeCmd("s", "c", 1, 0, put("a", "1"))
	c.GetWrite().Pushes = [][]byte{[]byte("p")}
	res := h.ok(c)
	if res.Duplicate || res.After != res.Position || res.Digest != c.GetWrite().Digest || string(res.Reply.Payload) != "reply" {
		t.Fatalf("result %v", res)
	}
	again := with(c, func(c *wire.Command) {
		w := c.GetWrite()
		w.Changes = []*wire.Change{put("a", "2"), put("", "bad key")}
		w.Reply.Payload = []byte("other")
		w.Digest = 5
		w.Ack = 1
	})
	for _, retry := range []*wire.Command{c, again, h.cancelCmd("s", "c", 1, 0)} {
		dup := h.duplicate(retry)
		if dup.Digest != res.Digest || dup.After != res.After {
			t.Fatalf("the retry's result %v is not of the command on record", dup)
		}
		equalBytes(t, dup.Reply.Payload, []byte("reply"))
	}
	h.wantState("a=1")
	if r := h.row("s"); len(r.Outbox) != 1 || r.PushNext != 2 {
		t.Fatalf("outbox %v", r.Outbox)
	}
}

// Exactly once across a change of owner: the window moves with the row.
func TestExactlyOnceAcrossOwners(t *testing.T) {
	h := newHarness(t).attached()
	h.ok(h.writeCmd("s", "c", 1, 0, put("a", "1")))
	h.ok(fenceCmd(h.owner("w1")))
	h.ok(h.assignCmd("s", "w2"))
	h.ok(h.attachCmd("s", "c", 1))
	h.duplicate(h.writeCmd("s", "c", 1, 0, put("a", "2")))
	h.wantState("a=1")
}

func TestSeqRules(t *testing.T) {
	h := newHarness(t).attached()
	write := func(seq, prev, ack uint64) *wire.Command {
		return with(h.writeCmd("s", "c", seq, prev, put("k", fmt.Sprint(seq))), func(c *wire.Command) { c.GetWrite().Ack = ack })
	}
	h.refuse(wire.Code_BAD_REQUEST, write(0, 0, 0))
	h.refuse(wire.Code_SEQ_MISMATCH, write(2, 1, 0))
	h.refuse(wire.Code_BAD_REQUEST, write(3, 0, 4))
	h.ok(write(3, 0, 0)) // reads used 1 and 2
	h.refuse(wire.Code_REPLY_GONE, write(2, 0, 0))
	h.refuse(wire.Code_SEQ_MISMATCH, write(9, 0, 0))
	h.refuse(wire.Code_SEQ_MISMATCH, write(9, 4, 0))
	h.ok(write(9, 3, 9)) // acknowledges 3
	h.refuse(wire.Code_REPLY_GONE, write(3, 0, 0))
	h.duplicate(write(9, 3, 0))
	h.wantState("k=9")
	h.ok(h.ackCmd("s", "c", 20, 0))
	h.refuse(wire.Code_REPLY_GONE, write(9, 3, 0))
	h.refuse(wire.Code_REPLY_GONE, write(15, 9, 0)) // below its own ack
	h.ok(write(math.MaxUint64, 9, 0))
	h.refuse(wire.Code_REPLY_GONE, write(10, math.MaxUint64, 0))
}

func TestCancel(t *testing.T) {
	h := newHarness(t).attached()
	res := h.ok(h.cancelCmd("s", "c", 1, 0))
	if res.Reply.Code != wire.Code_CANCELLED || res.Digest != 0 {
		t.Fatalf("cancel: %v", res)
	}
	late := h.duplicate(h.writeCmd("s", "c", 1, 0, put("a", "1")))
	if late.Reply.Code != wire.Code_CANCELLED || late.Digest != 0 {
		t.Fatalf("a cancelled write that comes late: %v", late)
	}
	h.wantState("")
	h.ok(h.writeCmd("s", "c", 2, 1, put("a", "2")))
	h.refuse(wire.Code_SEQ_MISMATCH, h.cancelCmd("s", "c", 9, 1))
	h.refuse(wire.Code_BAD_REQUEST, with(h.cancelCmd("s", "c", 3, 2), func(c *wire.Command) { c.GetCancel().Ack = 4 }))
	h.ok(with(h.cancelCmd("s", "c", 3, 2), func(c *wire.Command) { c.GetCancel().Ack = 3 }))
	if got := h.row("s").Clients[0].Replies; len(got) != 1 {
		t.Fatalf("replies %v", got)
	}
}

func TestStateChanges(t *testing.T) {
	h := newHarness(t).attached()
	seq := uint64(0)
	write := func(changes ...*wire.Change) {
		t.Helper()
		seq++
		h.ok(with(h.writeCmd("s", "c", seq, seq-1, changes...), func(c *wire.Command) { c.GetWrite().Ack = seq }))
	}
	write(put("b", "1"), put("a", "1"))
	h.wantState("a=1 b=1")
	write(put("c", "1"), del("a"), put("c", "2"), del("x"))
	h.wantState("b=1 c=2")
	write(del("b"), put("b", "3"), put("c", "4"), del("c"))
	h.wantState("b=3")
	var many []*wire.Change
	for _, k := range "hgfedcba" {
		many = append(many, put(string(k), "m"))
	}
	write(append(many, del("b"), put("zz", ""), del("f"), del("q"))...)
	h.wantState("a=m c=m d=m e=m g=m h=m zz=")
	write(del("a"), del("c"), del("d"), del("e"), del("g"), del("h"), del("zz"), del("b"), del("y"))
	h.wantState("")
}

// A refusal consumes nothing: the same seq may be sent again.
func TestLimitsRefuseBeforeAnything(t *testing.T) {
	big := strings.Repeat("x", wire.ValueBytesMax)
	for name, tc := range map[string]struct {
		code   wire.Code
		change func(*wire.Write)
	}{
		"value":        {wire.Code_VALUE_TOO_LARGE, func(w *wire.Write) { w.Changes = []*wire.Change{put("k", big+"x")} }},
		"state":        {wire.Code_STATE_TOO_LARGE, func(w *wire.Write) { w.Changes = []*wire.Change{put("k", big), put("l", big)} }},
		"key":          {wire.Code_BAD_KEY, func(w *wire.Write) { w.Changes = []*wire.Change{put(strings.Repeat("k", 1025), "")} }},
		"no key":       {wire.Code_BAD_KEY, func(w *wire.Write) { w.Changes = []*wire.Change{put("", "v")} }},
		"many changes": {wire.Code_BAD_REQUEST, func(w *wire.Write) { w.Changes = make([]*wire.Change, changesMax+1) }},
		"reply":        {wire.Code_REPLY_TOO_LARGE, func(w *wire.Write) { w.Reply.Payload = make([]byte, wire.ReplyBytesMax+1) }},
		"no reply":     {wire.Code_BAD_REQUEST, func(w *wire.Write) { w.Reply = nil }},
		"push":         {wire.Code_VALUE_TOO_LARGE, func(w *wire.Write) { w.Pushes = [][]byte{[]byte(big + "x")} }},
		"push bytes":   {wire.Code_OUTBOX_FULL, func(w *wire.Write) { w.Pushes = [][]byte{[]byte(big), []byte(big)} }},
		"pushes":       {wire.Code_OUTBOX_FULL, func(w *wire.Write) { w.Pushes = make([][]byte, wire.OutboxMax+1) }},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t).attached()
			c := h.writeCmd("s", "c", 1, 0, put("k", "v"))
			h.refuse(tc.code, with(c, func(c *wire.Command) { tc.change(c.GetWrite()) }))
			h.ok(c)
		})
	}
	h := newHarness(t).attached()
	h.ok(h.writeCmd("s", "c", 1, 0, put("k", big)))
	h.ok(h.writeCmd("s", "c", 2, 1, put("k", big[1:]))) // no growth
}

// S9: the reply cache refuses when it is full, and never gives up what an
// attached client has not acknowledged.
func TestReplyCacheFull(t *testing.T) {
	h := newHarness(t).attached()
	for i := uint64(1); i <= wire.RepliesMax; i++ {
		h.ok(h.writeCmd("s", "c", i, i-1))
	}
	next := h.writeCmd("s", "c", wire.RepliesMax+1, wire.RepliesMax)
	h.refuse(wire.Code_REPLY_CACHE_FULL, next)
	h.duplicate(h.writeCmd("s", "c", 1, 0))
	// Cancel has room where a Write has none.
	h.ok(h.cancelCmd("s", "c", wire.RepliesMax+1, wire.RepliesMax))
	h.refuse(wire.Code_REPLY_CACHE_FULL, h.writeCmd("s", "c", wire.RepliesMax+2, wire.RepliesMax+1))
	h.refuse(wire.Code_REPLY_CACHE_FULL, with(h.writeCmd("s", "c", wire.RepliesMax+2, wire.RepliesMax+1),
		func(c *wire.Command) { c.GetWrite().Ack = 2 }))
	h.ok(with(h.writeCmd("s", "c", wire.RepliesMax+2, wire.RepliesMax+1), func(c *wire.Command) { c.GetWrite().Ack = 3 }))

	bytesFull := newHarness(t).attached()
	large := func(seq, ack uint64) *wire.Command {
		return with(bytesFull.writeCmd("s", "c", seq, seq-1), func(c *wire.Command) {
			c.GetWrite().Reply.Payload = make([]byte, wire.ReplyBytesMax/2)
			c.GetWrite().Ack = ack
		})
	}
	bytesFull.ok(large(1, 0))
	bytesFull.ok(large(2, 0))
	bytesFull.refuse(wire.Code_REPLY_CACHE_FULL, large(3, 0))
	bytesFull.ok(large(3, 2))
}

// What departed instances never acknowledged must not block the session: their
// windows give way whole, longest away first, and they are told CLIENT_GONE.
func TestDepartedInstancesGiveWay(t *testing.T) {
	h := newHarness(t)
	h.open("s", "w1")
	for i := range uint64(4) {
		client := fmt.Sprintf("c%d", i)
		h.ok(h.attachCmd("s", client, i+1))
		for seq := uint64(1); seq <= wire.RepliesMax/4; seq++ {
			h.ok(h.writeCmd("s", client, seq, seq-1))
		}
	}
	h.ok(h.attachCmd("s", "c4", 5))
	h.ok(h.writeCmd("s", "c4", 1, 0))
	back := func(client string) *wire.Command {
		return with(h.attachCmd("s", client, 6), func(c *wire.Command) { c.GetAttach().Fresh = false })
	}
	h.refuse(wire.Code_CLIENT_GONE, back("c0"))
	h.ok(back("c1"))
	h.duplicate(h.writeCmd("s", "c1", 1, 0))
}

func TestCancelIsBounded(t *testing.T) {
	h := newHarness(t).attached()
	for i := uint64(1); i <= cancelsMax; i++ {
		h.index++
		h.s.Apply(h.index, &wire.Entry{Commands: []*wire.Command{h.cancelCmd("s", "c", i, i-1)}})
	}
	h.refuse(wire.Code_REPLY_CACHE_FULL, h.cancelCmd("s", "c", cancelsMax+1, cancelsMax))
	h.ok(with(h.cancelCmd("s", "c", cancelsMax+1, cancelsMax), func(c *wire.Command) { c.GetCancel().Ack = 2 }))
}

func TestOutbox(t *testing.T) {
	h := newHarness(t).attached()
	pushing := func(seq, pushAck uint64, pushes ...string) *wire.Command {
		return with(h.writeCmd("s", "c", seq, seq-1), func(c *wire.Command) {
			c.GetWrite().PushAck = pushAck
			c.GetWrite().Ack = seq
			for _, p := range pushes {
				c.GetWrite().Pushes = append(c.GetWrite().Pushes, []byte(p))
			}
		})
	}
	outbox := func(want ...uint64) {
		t.Helper()
		var got []uint64
		for _, p := range h.row("s").Outbox {
			got = append(got, p.Seq)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("outbox (- want, + got):\n%s", diff)
		}
	}
	h.ok(pushing(1, 0, "a", "b"))
	outbox(1, 2)
	h.ok(pushing(2, 1, "c"))
	outbox(2, 3)
	// An ack of what was never sent does not swallow what comes later.
	h.ok(pushing(3, math.MaxUint64, "d"))
	outbox(4)
	h.ok(h.ackCmd("s", "c", 0, math.MaxUint64))
	outbox()
	h.ok(pushing(4, 0, "e"))
	outbox(5)
	h.duplicate(h.ackCmd("s", "c", 0, 4))
	h.ok(h.ackCmd("s", "c", 0, 5))
	outbox()
	var fill []string
	for range wire.OutboxMax {
		fill = append(fill, "x")
	}
	h.ok(pushing(5, 0, fill...))
	h.refuse(wire.Code_OUTBOX_FULL, pushing(6, 5, "y"))
	h.ok(pushing(6, 6, "y"))
}

// The outbox is trimmed to what every attached client has received.
func TestOutboxOfSharedSession(t *testing.T) {
	h := newHarness(t)
	h.openShared("s", "w1")
	h.ok(h.attachCmd("s", "c", 1))
	h.ok(h.attachCmd("s", "d", 2))
	h.ok(with(h.writeCmd("s", "c", 1, 0), func(c *wire.Command) { c.GetWrite().Pushes = [][]byte{{1}, {2}} }))
	h.ok(h.ackCmd("s", "c", 0, 2))
	if n := len(h.row("s").Outbox); n != 2 {
		t.Fatalf("%d pushes, the other client has received none", n)
	}
	h.ok(h.ackCmd("s", "d", 0, 1))
	if n := len(h.row("s").Outbox); n != 1 {
		t.Fatalf("%d pushes", n)
	}
	h.ok(h.detachCmd("s", 2))
	h.ok(h.ackCmd("s", "c", 0, 2))
	if n := len(h.row("s").Outbox); n != 0 {
		t.Fatalf("%d pushes", n)
	}
}

func TestAck(t *testing.T) {
	h := newHarness(t).attached()
	h.ok(h.writeCmd("s", "c", 1, 0))
	h.ok(h.writeCmd("s", "c", 2, 1))
	res := h.ok(h.ackCmd("s", "c", 2, 0))
	if res.After != res.Position {
		t.Fatalf("an Ack changes the row: %v", res)
	}
	h.duplicate(h.ackCmd("s", "c", 2, 0))
	h.duplicate(h.ackCmd("s", "c", 1, 0))
	if got := h.row("s").Clients[0]; got.Ack != 2 || len(got.Replies) != 1 {
		t.Fatalf("window %v", got)
	}
}

// S9: past the byte budget what grows the tables is refused; control commands
// and deletes never are.
func TestByteBudget(t *testing.T) {
	h := newHarness(t)
	h.open("other", "w1")
	h.attached()
	h.ok(h.writeCmd("s", "c", 1, 0, put("k", strings.Repeat("v", 1000))))
	h.s.byteBudget = h.s.used
	h.refuse(wire.Code_BUDGET_EXCEEDED, h.openCmd("t", "w1"))
	write := h.writeCmd("s", "c", 2, 1, put("l", "v"))
	h.refuse(wire.Code_BUDGET_EXCEEDED, write)
	h.refuse(wire.Code_BUDGET_EXCEEDED, with(write, func(c *wire.Command) {
		c.GetWrite().Changes = []*wire.Change{del("nothing")}
		c.GetWrite().Pushes = [][]byte{{1}}
	}))
	h.refuse(wire.Code_BUDGET_EXCEEDED, with(write, func(c *wire.Command) { c.GetWrite().Changes = nil }))

	for _, c := range []func() *wire.Command{
		func() *wire.Command { return h.writeCmd("s", "c", 2, 1, del("nothing")) },
		func() *wire.Command { return h.cancelCmd("s", "c", 3, 2) },
		func() *wire.Command { return h.detachCmd("s", 1) },
		func() *wire.Command { return h.attachCmd("s", "d", 2) },
		func() *wire.Command { return h.beginCmd("s", "w2", "m1") },
		func() *wire.Command { return abortCmd(h.s.Migrations(1)[0].Id) },
		func() *wire.Command { return h.beginCmd("s", "w2", "m2") },
		func() *wire.Command { return h.pivotCmd(h.s.Migrations(1)[0], "d") },
		func() *wire.Command { return endCmd(h.s.Migrations(1)[0].Id, 5) },
		func() *wire.Command { return registerCmd("w4", "first", 0) },
		func() *wire.Command { return fenceCmd(h.owner("w2")) },
		func() *wire.Command { return h.assignCmd("s", "w3") },
		func() *wire.Command { return h.closeCmd("other") },
	} {
		h.s.byteBudget = h.s.used
		if h.s.overBudget(1) == false {
			t.Fatal("the budget is not exhausted")
		}
		h.ok(c())
	}
	// Closing freed more than its memory takes.
	h.s.byteBudget = h.s.used + wire.SessionBytesFixed + 1
	h.ok(h.openCmd("t", "w1"))
	h.tick(ttl)
	h.ok(h.expireCmd("t"))
}

// A write takes back space in the same command that it needs it.
func TestBudgetCountsWhatTheWriteFrees(t *testing.T) {
	h := newHarness(t).attached()
	h.ok(h.writeCmd("s", "c", 1, 0, put("k", strings.Repeat("v", 1000))))
	h.s.byteBudget = h.s.used
	h.ok(h.writeCmd("s", "c", 2, 1, put("k", "v"), put("l", "v")))
}

// The results' rows and later writes do not share anything that changes.
func TestResultsAreNotAliased(t *testing.T) {
	h := newHarness(t).attached()
	h.ok(h.writeCmd("s", "c", 1, 0, put("k", "v"), put("l", "v")))
	row := h.ok(h.claimCmd("s")).Row
	want := h.row("s")
	h.ok(with(h.writeCmd("s", "c", 2, 1, put("k", "new"), del("l")), func(c *wire.Command) {
		c.GetWrite().Ack = 2
		c.GetWrite().Pushes = [][]byte{{1}}
	}))
	h.ok(h.detachCmd("s", 1))
	if diff := cmp.Diff(want, row, protocmp.Transform()); diff != "" {
		t.Fatalf("a result changed after the fact:\n%s", diff)
	}
	if bytes.Equal(h.row("s").State[0].Value, want.State[0].Value) {
		t.Fatal("the write was lost")
	}
}
