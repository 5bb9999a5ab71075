package worker

import (
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// TestSharedSessionMovesWithAllItsClients: each goes on at the target by its own
// warm stream, in its own order of seqs, and gets the pushes of all.
func TestSharedSessionMovesWithAllItsClients(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", true)
	other := w.newClient("s", c.secret)
	other.attach("a", true)
	other.attached()
	c.ok(c.write("incr", "n"), "1")
	mv := w.begin("s", "a", "b")
	if err := mv.to.Prepare(&wire.PrepareReq{Migration: mv.m, Attached: true}); err != nil {
		t.Fatal(err)
	}
	warm, warmOther := mv.warm(c, mv.token[:]), mv.warm(other, mv.token[:])
	mv.moved(mv.handover(c, other))
	warm.pivoted(mv.m.GetSourceEpoch())
	warmOther.pivoted(mv.m.GetSourceEpoch())
	warmOther.ok(warmOther.write("incr", "n"), "2")
	warm.ok(warm.write("push", "hello"), "")
	for _, c := range []*client{warm, warmOther} {
		if f := c.until("push", func(f *wire.ServerFrame) bool { return f.GetPush() != nil }); string(f.GetPush().GetPayload()) != "hello" {
			t.Fatalf("%v", f)
		}
	}
	if n := len(w.row("s").GetAttachments()); n != 2 {
		t.Fatalf("%d attachments", n)
	}
}

// TestSharedSessionWaitsForAllItsClients: with one of them not warm nobody is
// moved, and the source serves both as before.
func TestSharedSessionWaitsForAllItsClients(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", true)
	other := w.newClient("s", c.secret)
	other.attach("a", true)
	other.attached()
	mv := w.begin("s", "a", "b")
	if err := mv.to.Prepare(&wire.PrepareReq{Migration: mv.m, Attached: true}); err != nil {
		t.Fatal(err)
	}
	mv.warm(c, mv.token[:])
	mv.failed(mv.handover(c), wire.Code_CLIENT_CANNOT_REACH)
	other.ok(other.write("incr", "n"), "1")
	c.ok(c.write("incr", "n"), "2")
	if mv.phase() == wire.Phase_PHASE_PIVOTED {
		t.Fatal("the session was moved")
	}
}
