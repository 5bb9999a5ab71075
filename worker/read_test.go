package worker

import (
	"testing"

	"github.com/baton-cluster/baton/wire"
)

func TestQueryWaitsForItsClientsEarlierWrite(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	g := w.log.hold(isWrite)
	seq := c.write("put", "k=1")
	p := g.next(t)
	q := c.query("get", "k")
	c.taken()
	c.silent()
	p.apply()
	w.log.flush()
	c.silent()
	p.answer()
	c.ok(seq, "k")
	c.ok(q, "1")
}

// TestQueryDoesNotRevealAnUncommittedWrite of another client.
func TestQueryDoesNotRevealAnUncommittedWrite(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", true)
	other := w.newClient("s", c.secret)
	other.attach("a", true)
	other.attached()
	g := w.log.hold(isWrite)
	c.write("put", "k=1")
	p := g.next(t)
	other.ok(other.query("get", "k"), "none")
	p.apply().answer()
	c.ok(1, "k")
	other.ok(other.query("get", "k"), "1")
}

// TestQueryWaitsForItsMarker, which names the incarnation of the activation.
func TestQueryWaitsForItsMarker(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	g := w.log.hold(isMarker)
	q := c.query("get", "k")
	p := g.next(t)
	if got := p.cmds[0].GetReadMarker().GetOwner().GetIncarnation(); got != w.workers["a"].Incarnation() {
		t.Fatalf("incarnation %d", got)
	}
	p.apply()
	w.log.flush()
	c.silent()
	p.answer()
	c.ok(q, "none")
}

// TestQueryIsNotAnsweredOnceDisplaced: what ran before is worth nothing if the
// client is attached no more when the marker comes back.
func TestQueryIsNotAnsweredOnceDisplaced(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	g := w.log.hold(isMarker)
	c.query("get", "k")
	p := g.next(t)
	other := w.newClient("s", c.secret)
	other.attach("a", true)
	other.attached()
	c.bye(wire.Code_DISPLACED)
	p.apply().answer()
	w.log.flush()
	other.seq = 0
	g.lift()
	other.ok(other.query("get", "k"), "none")
	c.silent()
}

// TestOvertakenQueryIsRefusedUnderTheEpoch: another client of a shared session
// attaches while a query waits for its marker. The refusal names the epoch: the
// client passes over answers of lower ones, and would wait for ever.
func TestOvertakenQueryIsRefusedUnderTheEpoch(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", true)
	g := w.log.hold(isMarker)
	q := c.query("get", "k")
	p := g.next(t)
	other := w.newClient("s", c.secret)
	other.attach("a", true)
	epoch := other.attached().GetEpoch()
	p.apply().answer()
	if r := c.response(q); r.GetCode() != wire.Code_RETRY || r.GetEpoch() != epoch || epoch == 0 {
		t.Fatalf("%v, want RETRY under epoch %d", r, epoch)
	}
}

// TestQueryOfAnOverIncarnationIsRefused: the incarnation is over.
func TestQueryOfAnOverIncarnationIsRefused(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	g := w.log.hold(isMarker)
	c.query("get", "k")
	p := g.next(t)
	w.log.mu.Lock() // the worker does not hear of it but by the marker
	w.log.observers = nil
	w.log.mu.Unlock()
	w.fence("a")
	p.apply().answer()
	f := c.next()
	if code := f.GetResponse().GetCode(); f.GetBye() == nil && code != wire.Code_RETRY {
		t.Fatalf("%v", f)
	}
	eventually(t, "the incarnation is dropped", func() bool { return w.workers["a"].Incarnation() == 0 })
}

func TestQueriesShareMarkers(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	g := w.log.hold(isMarker)
	var seqs []uint64
	for range 50 {
		seqs = append(seqs, c.query("get", "k"))
	}
	c.taken()
	first := g.next(t)
	g.none(t)
	first.apply().answer()
	second := g.next(t)
	g.none(t)
	second.apply().answer()
	for _, seq := range seqs {
		_ = seq // answered in the order of their markers, which is not theirs
		if f := c.next(); f.GetResponse().GetCode() != wire.Code_OK || !f.GetResponse().GetSettled() {
			t.Fatalf("%v", f)
		}
	}
}

func TestQueriesAreBounded(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	g := w.log.hold(isMarker)
	for range readsMax {
		c.query("get", "k")
	}
	c.taken()
	c.silent()
	over := c.query("get", "k")
	if r := c.response(over); r.GetCode() != wire.Code_TOO_MANY {
		t.Fatalf("%v", r)
	}
	one := g.next(t)
	g.lift()
	one.apply().answer()
	for range readsMax {
		if r := c.next().GetResponse(); r.GetCode() != wire.Code_OK {
			t.Fatalf("%v", r)
		}
	}
	c.ok(c.query("get", "k"), "none")
}

func TestQueryOutcomes(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	for method, want := range map[string]wire.Code{
		"put": wire.Code_NOT_READ_ONLY, "nothing": wire.Code_UNKNOWN_METHOD, "readpanic": wire.Code_HANDLER_PANIC,
	} {
		if r := c.response(c.query(method, "k=1")); r.GetCode() != want || !r.GetSettled() {
			t.Errorf("%s: %v", method, r)
		}
	}
	// A read-only method that is called, not queried, commits its reply.
	c.ok(c.write("get", "k"), "none")
}
