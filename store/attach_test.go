package store

import (
	"fmt"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// S7: an Attach not above the highest number seen, and a Detach of another than
// the current, change nothing.
func TestAttachNumbers(t *testing.T) {
	h := newHarness(t)
	h.open("s", "w1")
	first := h.attachCmd("s", "c", 1)
	row := h.ok(first).Row
	if len(row.Attachments) != 1 || row.ExpiresUs != 0 || row.AttachHigh != 1 || len(row.Clients) != 1 {
		t.Fatalf("row %v", row)
	}
	if got := h.duplicate(first); got.Row == nil {
		t.Fatal("a retried Attach returns the row")
	}
	h.refuse(wire.Code_NOT_ATTACHED, h.attachCmd("s", "other", 1))
	h.ok(h.attachCmd("s", "d", 5))
	h.refuse(wire.Code_NOT_ATTACHED, first)                    // delayed
	h.refuse(wire.Code_NOT_ATTACHED, h.attachCmd("s", "c", 4)) // a gap is not an invitation
	h.duplicate(h.detachCmd("s", 1))                           // delayed Detach of a former attachment
	if got := h.row("s").Attachments; len(got) != 1 || got[0].Number != 5 {
		t.Fatalf("attachments %v", got)
	}
	detach := h.detachCmd("s", 5)
	h.ok(detach)
	h.duplicate(detach)
	h.refuse(wire.Code_NOT_ATTACHED, h.attachCmd("s", "d", 5)) // a delayed Attach after the Detach
	if r := h.row("s"); len(r.Attachments) != 0 || r.ExpiresUs != h.time+ttl {
		t.Fatalf("row %v", r)
	}
	h.ok(h.attachCmd("s", "d", 6))
	h.refuse(wire.Code_BAD_REQUEST, h.attachCmd("s", "", 7))
	h.refuse(wire.Code_BAD_REQUEST, h.attachCmd("s", "12345678901234567", 7))
	h.refuse(wire.Code_BAD_REQUEST, h.attachCmd("s", "d", 0))
}

func TestDisplaced(t *testing.T) {
	h := newHarness(t).attached()
	write := h.writeCmd("s", "c", 1, 0, put("k", "v"))
	h.ok(write)
	h.ok(h.attachCmd("s", "d", 2))
	// A displaced client and its successor never get each other's replies.
	h.refuse(wire.Code_DISPLACED, write)
	h.refuse(wire.Code_DISPLACED, h.cancelCmd("s", "c", 2, 1))
	h.refuse(wire.Code_DISPLACED, h.ackCmd("s", "c", 2, 0))
	res := h.ok(h.writeCmd("s", "d", 1, 0, put("k", "w")))
	if res.Duplicate {
		t.Fatal("one client's seq is taken for another's")
	}
	h.ok(h.detachCmd("s", 2))
	h.refuse(wire.Code_NOT_ATTACHED, h.writeCmd("s", "d", 2, 1))
	h.refuse(wire.Code_NOT_ATTACHED, write)
}

func TestShared(t *testing.T) {
	h := newHarness(t)
	h.openShared("s", "w1")
	h.ok(h.attachCmd("s", "c", 1))
	h.ok(h.attachCmd("s", "d", 2))
	h.ok(h.attachCmd("s", "c", 3)) // again, elsewhere: one attachment an instance
	r := h.row("s")
	if len(r.Attachments) != 2 || r.Attachments[0].Number != 2 || r.Attachments[1].Number != 3 {
		t.Fatalf("attachments %v", r.Attachments)
	}
	h.ok(h.detachCmd("s", 2))
	if h.row("s").ExpiresUs != 0 {
		t.Fatal("it is detached only when none is left")
	}
	h.refuse(wire.Code_NOT_ATTACHED, h.writeCmd("s", "d", 1, 0))
	h.ok(h.detachCmd("s", 3))
	if h.row("s").ExpiresUs == 0 {
		t.Fatal("it is detached now")
	}
}

func TestClientGone(t *testing.T) {
	h := newHarness(t).attached()
	known := with(h.attachCmd("s", "c", 2), func(c *wire.Command) { c.GetAttach().Fresh = false })
	h.ok(known)
	stranger := with(h.attachCmd("s", "x", 3), func(c *wire.Command) { c.GetAttach().Fresh = false })
	h.refuse(wire.Code_CLIENT_GONE, stranger)
}

func TestWindowsAreBounded(t *testing.T) {
	h := newHarness(t)
	h.openShared("s", "w1")
	for i := range wire.ClientWindowsMax {
		h.ok(h.attachCmd("s", fmt.Sprintf("c%02d", i), uint64(i)+1))
	}
	n := uint64(wire.ClientWindowsMax)
	h.refuse(wire.Code_TOO_MANY, h.attachCmd("s", "more", n+1))
	// c07 and c03 leave; c03 attached first, and gives way.
	h.ok(h.writeCmd("s", "c03", 1, 0, put("k", "v")))
	h.ok(h.detachCmd("s", 8))
	h.ok(h.detachCmd("s", 4))
	h.ok(h.attachCmd("s", "more", n+1))
	back := func(client string, number uint64) *wire.Command {
		return with(h.attachCmd("s", client, number), func(c *wire.Command) { c.GetAttach().Fresh = false })
	}
	h.refuse(wire.Code_CLIENT_GONE, back("c03", n+2))
	h.ok(back("c07", n+2))
}

// The first owner change ends all attachments, so the new owner numbers from 1.
func TestNumbersStartAnewWithTheEpoch(t *testing.T) {
	h := newHarness(t).attached()
	h.ok(h.attachCmd("s", "c", 9))
	h.ok(fenceCmd(h.owner("w1")))
	h.ok(h.assignCmd("s", "w2"))
	h.refuse(wire.Code_NOT_ATTACHED, h.writeCmd("s", "c", 1, 0))
	h.ok(h.attachCmd("s", "c", 1))
}
