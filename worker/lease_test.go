package worker

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// leased is a world whose worker a holds a lease, and a client there.
func leased(t testing.TB, shared bool) (*world, *client) {
	w := newWorld(t, "a", "b")
	w.leases.grant("a", 700*time.Millisecond)
	return w, w.open("a", "s", shared)
}

// underLease waits for a good answer that was given under a lease.
func (c *client) underLease(seq uint64, payload string) *wire.Response {
	c.t.Helper()
	r := c.response(seq)
	if r.GetCode() != wire.Code_OK || string(r.GetPayload()) != payload || r.GetLeaseLeftUs() == 0 {
		c.t.Fatalf("%v, want %q under a lease", r, payload)
	}
	return r
}

// TestLeaseReadTakesNoMarker: nothing of it goes to the log.
func TestLeaseReadTakesNoMarker(t *testing.T) {
	w, c := leased(t, false)
	c.ok(c.write("put", "k=1"), "k")
	w.idle("a", "s")
	g := w.log.hold(anything)
	seq := c.queryWith(&wire.Request{Method: "get", Payload: []byte("k"), Attempt: 7})
	r := c.underLease(seq, "1")
	if r.GetAttempt() != 7 || r.GetLeaseLeftUs() != 700_000 || r.GetEpoch() != w.row("s").GetEpoch() || !r.GetSettled() {
		t.Fatalf("%v", r)
	}
	if _, inc := w.leases.calls(); inc != w.workers["a"].Incarnation() {
		t.Fatalf("the lease of incarnation %d was asked for", inc)
	}
	// An outcome that is an error rests on what was read as well.
	if r := c.response(c.query("readpanic", "")); r.GetCode() != wire.Code_HANDLER_PANIC || r.GetLeaseLeftUs() == 0 {
		t.Fatalf("%v", r)
	}
	g.none(t)
}

// TestReadsThatTakeAMarker though leases may be had.
func TestReadsThatTakeAMarker(t *testing.T) {
	for name, set := range map[string]func(*world, *wire.Request){
		"asked to be confirmed": func(_ *world, r *wire.Request) { r.Confirmed = true },
		"hardly any lease left": func(w *world, _ *wire.Request) { w.leases.grant("a", leaseLeftMin-1) },
		"no lease":              func(w *world, _ *wire.Request) { w.leases.left = nil },
	} {
		t.Run(name, func(t *testing.T) {
			w, c := leased(t, false)
			r := &wire.Request{Method: "get", Payload: []byte("k")}
			set(w, r)
			g := w.log.hold(isMarker)
			seq := c.queryWith(r)
			p := g.next(t)
			c.silent()
			p.apply().answer()
			if r := c.response(seq); r.GetCode() != wire.Code_OK || r.GetLeaseLeftUs() != 0 {
				t.Fatalf("%v", r)
			}
		})
	}
}

// TestLeaseIsLookedAtLast: after the query came, and after its version was taken
// and its handler had run, however long that took. (The version is the one from
// when the query came.)
func TestLeaseIsLookedAtLast(t *testing.T) {
	w, c := leased(t, true)
	other := w.newClient("s", c.secret)
	other.attach("a", true)
	other.attached()
	c.ok(c.write("put", "k=1"), "k")
	before, _ := w.leases.calls()
	slow := c.query("blockread", "k")
	<-w.running
	other.ok(other.write("put", "k=2"), "k")
	if n, _ := w.leases.calls(); n != before {
		t.Fatal("the lease was looked at before the handler had run")
	}
	w.leases.grant("a", 3*time.Millisecond)
	close(w.block)
	if r := c.underLease(slow, "1"); r.GetLeaseLeftUs() != 3000 {
		t.Fatalf("%v", r)
	}
	other.underLease(other.query("get", "k"), "2")
}

// TestLeaseReadShowsNothingUncommitted, of its own client or another's.
func TestLeaseReadShowsNothingUncommitted(t *testing.T) {
	w, c := leased(t, true)
	other := w.newClient("s", c.secret)
	other.attach("a", true)
	other.attached()
	g := w.log.hold(isWrite)
	seq := c.write("put", "k=1")
	p := g.next(t)
	own := c.query("get", "k")
	c.taken()
	other.underLease(other.query("get", "k"), "none")
	p.apply()
	w.log.flush()
	other.underLease(other.query("get", "k"), "none") // committed, but nobody here knows
	c.silent()
	p.answer()
	c.ok(seq, "k")
	c.underLease(own, "1")
	other.underLease(other.query("get", "k"), "1")
}

// TestOvertakenLeaseRead: what a slow handler read is not answered once the
// session is frozen, moved, or the client displaced.
func TestOvertakenLeaseRead(t *testing.T) {
	t.Run("frozen", func(t *testing.T) {
		w, c := leased(t, false)
		mv := w.begin("s", "a", "b")
		warm := mv.invite(c)
		seq := c.query("blockread", "k")
		<-w.running
		ch := mv.handover(c)
		c.frozen()
		mv.moved(ch)
		warm.pivoted(mv.m.GetSourceEpoch())
		asked, _ := w.leases.calls()
		close(w.block)
		<-c.served
		if n, _ := w.leases.calls(); n != asked {
			t.Fatal("a frozen session's reader looked at the lease")
		}
		for len(c.link.out) > 0 {
			if f := c.next(); f.GetResponse().GetSeq() == seq && f.GetResponse().GetCode() == wire.Code_OK {
				t.Fatalf("answered: %v", f)
			}
		}
	})
	t.Run("displaced", func(t *testing.T) {
		w, c := leased(t, false)
		c.query("blockread", "k")
		<-w.running
		other := w.newClient("s", c.secret)
		other.attach("a", true)
		other.attached()
		close(w.block)
		c.bye(wire.Code_DISPLACED)
		other.underLease(other.query("get", "k"), "none")
		c.silent()
	})
	t.Run("fenced", func(t *testing.T) {
		w, c := leased(t, false)
		c.query("blockread", "k")
		<-w.running
		w.fence("a")
		eventually(t, "the incarnation is over", func() bool { return w.workers["a"].Incarnation() == 0 })
		asked, _ := w.leases.calls()
		close(w.block)
		c.bye(wire.Code_RETRY)
		<-c.served
		if n, _ := w.leases.calls(); n != asked {
			t.Fatal("an incarnation that is over looked at its lease")
		}
	})
}

// TestLeaseOutlivesAnElection: while it holds, a log that does not answer sends
// no client away, and queries are answered. When it has run out they are.
func TestLeaseOutlivesAnElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, c := leased(t, true)
		other := w.newClient("s", c.secret)
		other.attach("a", true)
		other.attached()
		g := w.log.hold(anything)
		c.write("incr", "n")
		p := g.next(t)
		for range 4 * stallChecks {
			w.clock.advance(StallAfterDefault / stallChecks)
			synctest.Wait() // it has looked for a stall
			other.underLease(other.query("get", "n"), "none")
		}
		if w.workers["a"].Stalled() {
			t.Fatal("stalled under a lease")
		}
		w.leases.grant("a", 0)
		w.leases.mu.Lock()
		delete(w.leases.left, "a")
		w.leases.mu.Unlock()
		w.clock.waitFor(t, StallAfterDefault/stallChecks, w.workers["a"].Stalled)
		other.bye(wire.Code_UNAVAILABLE)
		g.lift()
		p.apply().answer()
	})
}
