package worker

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// standBy opens a second stream of the client, at another worker, that stands by.
func (c *client) standBy(worker string) *client {
	c.t.Helper()
	sb := c.asks(worker, c.epochSeen())
	sb.until("Standing", func(f *wire.ServerFrame) bool { return f.GetStanding() != nil })
	return sb
}

func (c *client) asks(worker string, epoch uint64) *client {
	sb := &client{w: c.w, t: c.t, session: c.session, secret: c.secret, instance: c.instance, last: c.last, seq: c.seq}
	sb.serve(worker, &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
		Session: c.session, Instance: c.instance, Secret: c.secret, Standby: true, Epoch: epoch,
	}}})
	return sb
}

func (c *client) epochSeen() uint64 { return c.w.row(c.session).GetEpoch() }

func (w *world) assign(session, worker string) *wire.Result {
	w.t.Helper()
	return w.must(&wire.Command{Kind: &wire.Command_Assign{Assign: &wire.Assign{
		Session: session, Replaces: w.row(session).GetEpoch(), Owner: w.workers[worker].owner(), Reason: "test",
	}}})
}

// begun begins a migration in the log alone.
func (w *world) begun(session, from, to string) *wire.Migration {
	w.t.Helper()
	return w.must(&wire.Command{Kind: &wire.Command_Begin{Begin: &wire.BeginMigration{
		Session: session, SourceEpoch: w.row(session).GetEpoch(), Source: w.workers[from].owner(), Target: w.workers[to].owner(),
		Nonce: fresh(16), TokenHash: fresh(32), DeadlineUs: 1e9,
	}}}).GetMigration()
}

func TestStandbySpeaksFirst(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	c := w.open("a", "s", false)
	c.ok(c.write("put", "k=1"), "k")
	sb := c.standBy("b")
	lost := c.write("put", "k=2") // applied or not: the client will ask again
	w.fence("a")
	sb.silent()
	w.assign("s", "b")
	a := sb.attached()
	if a.GetEpoch() != w.row("s").GetEpoch() || a.GetNode().GetId() != "b" {
		t.Fatalf("%v", a)
	}
	sb.request(lost, lost-1, "put", "k=2")
	sb.ok(lost, "k")
	sb.seq, sb.last = lost, lost
	sb.ok(sb.write("put", "k=3"), "k")
	if n := len(w.row("s").GetAttachments()); n != 1 {
		t.Fatalf("%d attachments", n)
	}
	sb.hangUp()
	eventually(t, "the session is detached", func() bool { return len(w.row("s").GetAttachments()) == 0 })
	eventually(t, "nobody stands by", func() bool { return w.workers["b"].Standbys() == 0 })
}

func TestStandbyIsSentToAnotherOwner(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	c := w.open("a", "s", false)
	sb := c.standBy("b")
	w.fence("a")
	w.assign("s", "c")
	f := sb.until("Redirect", func(f *wire.ServerFrame) bool { return f.GetRedirect() != nil })
	if d := f.GetRedirect(); d.GetOwner().GetId() != "c" || d.GetEpoch() != w.row("s").GetEpoch() {
		t.Fatalf("%v", f)
	}
	eventually(t, "nobody stands by", func() bool { return w.workers["b"].Standbys() == 0 })
}

// The owner's new incarnation takes the session back: a crash all the same.
func TestStandbyIsSentToARestartedOwner(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	sb := c.standBy("b")
	w.workers["a"].SetIncarnation(w.register("a", w.workers["a"].Incarnation()).GetEpoch())
	w.assign("s", "a")
	sb.until("Redirect", func(f *wire.ServerFrame) bool { return f.GetRedirect().GetOwner().GetId() == "a" })
}

// A move is no crash: whoever stands by goes on, for the new owner.
func TestStandbyOutlivesAMove(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	c := w.open("a", "s", false)
	sb, target := c.standBy("c"), c.standBy("b")
	c.hangUp()
	w.forgotten("a") // its Detach changes the row
	m := w.begun("s", "a", "b")
	w.must(&wire.Command{Kind: &wire.Command_Pivot{Pivot: &wire.CommitPivot{
		Migration: m.GetId(), Change: w.row("s").GetChange(), Digest: 1, Attested: m.GetId(),
	}}})
	target.bye(wire.Code_RETRY) // it owns the session now
	sb.silent()
	w.fence("b")
	w.assign("s", "c")
	if a := sb.attached(); a.GetEpoch() != w.row("s").GetEpoch() {
		t.Fatalf("%v", a)
	}
}

// The owner after a move is lost before the node at which a client stands by has looked:
// it sees both at once.
func TestStandbyMissesAMove(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	c := w.open("a", "s", false)
	sb := c.standBy("c")
	c.hangUp()
	w.forgotten("a") // its Detach changes the row
	m := w.begun("s", "a", "b")
	var epochs uint64
	w.workers["a"].cfg.View(func(st *store.Store) { epochs = st.Cluster().GetEpochs() })
	for i, res := range w.log.commit(
		&wire.Command{Kind: &wire.Command_Pivot{Pivot: &wire.CommitPivot{Migration: m.GetId(), Change: w.row("s").GetChange(), Digest: 1, Attested: m.GetId()}}},
		&wire.Command{Kind: &wire.Command_FenceWorker{FenceWorker: &wire.FenceWorker{Id: "b", Incarnation: w.workers["b"].Incarnation(), Reason: "test"}}},
		&wire.Command{Kind: &wire.Command_Assign{Assign: &wire.Assign{Session: "s", Replaces: epochs + 1, Owner: w.workers["c"].owner(), Reason: "test"}}},
	) {
		if res.GetCode() != wire.Code_OK {
			t.Fatalf("command %d: %v", i, res)
		}
	}
	if a := sb.attached(); a.GetEpoch() != w.row("s").GetEpoch() {
		t.Fatalf("%v", a)
	}
}

// One that missed the change of owner is told at once.
func TestLateStandby(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	c := w.open("a", "s", false)
	epoch := c.epochSeen()
	w.fence("a")
	w.assign("s", "b")
	c.asks("c", epoch).until("Redirect", func(f *wire.ServerFrame) bool { return f.GetRedirect().GetOwner().GetId() == "b" })
	c.asks("b", epoch).attached()
}

func TestStandbyRefusals(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	stranger := w.newClient("s", fresh(32))
	stranger.asks("b", 0).bye(wire.Code_BAD_SECRET)
	w.newClient("nothing", fresh(32)).asks("b", 0).bye(wire.Code_RETRY)
	c.asks("b", c.epochSeen()+1).bye(wire.Code_RETRY) // b lags
	if n := w.workers["b"].Standbys(); n != 0 {
		t.Fatalf("%d stand by on strangers' word", n)
	}
	for range standbysPerSession {
		c.standBy("b")
	}
	c.asks("b", c.epochSeen()).bye(wire.Code_TOO_MANY)
}

// An instance that attaches by itself is not attached a second time.
func TestStandbyGivesWayToAnAttach(t *testing.T) {
	w := newWorld(t, "a")
	c := w.open("a", "s", false)
	sb := c.standBy("a")
	c.hangUp()
	c.attach("a", false)
	c.attached()
	sb.bye(wire.Code_RETRY)
	c.ok(c.write("put", "k=1"), "k")
}

func TestCloseEndsStandbys(t *testing.T) {
	w := newWorld(t, "a", "b")
	sb := w.open("a", "s", false).standBy("b")
	w.workers["b"].Close()
	sb.bye(wire.Code_SHUTTING_DOWN)
}

// Clients are told of another successor when the workers change, and of another
// spread when the node has many more clients than when they came.
func TestClientsAreToldOfTheirSuccessor(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	var spread atomic.Int64
	w.workers["a"].cfg.Spread = func() time.Duration { return time.Duration(spread.Load()) }
	c := w.newClient("s", fresh(32))
	c.serve("a", &wire.ClientFrame{Kind: &wire.ClientFrame_Open{Open: &wire.OpenReq{Session: "s", Secret: c.secret, Nonce: fresh(16), Instance: c.instance}}})
	first := c.attached().GetSuccessor().GetId()
	second := map[string]string{"b": "c", "c": "b"}[first]
	if second == "" {
		t.Fatalf("successor %q", first)
	}
	told := func(node string, d time.Duration) {
		t.Helper()
		f := c.until("Successor", func(f *wire.ServerFrame) bool { return f.GetSuccessor() != nil })
		if s := f.GetSuccessor(); s.GetNode().GetId() != node || s.GetSpreadUs() != uint64(d.Microseconds()) {
			t.Fatalf("told %v, want %q, %v", s, node, d)
		}
	}
	was := w.workers[first].Incarnation()
	w.fence(first)
	told(second, 0)
	w.fence(second)
	told("", 0)
	again := w.register(first, was)
	told(first, 0)
	w.moved(first, again.GetEpoch(), "elsewhere")
	if f := c.until("Successor", func(f *wire.ServerFrame) bool { return f.GetSuccessor() != nil }); f.GetSuccessor().GetNode().GetHost() != "elsewhere" {
		t.Errorf("told %v", f)
	}
	spread.Store(int64(time.Second))
	w.open("a", "another", false)
	told(first, time.Second)
	spread.Store(int64(time.Second) * 3 / 2)
	w.open("a", "a third", false)
	c.ok(c.write("put", "k=1"), "k") // no more of it in between
}

// A mass of clients that stand by is attached when the worker gets their
// sessions, and none is left over.
func TestManyStandbys(t *testing.T) {
	w := newWorld(t, "a", "b")
	const n = 300
	var sbs []*client
	for i := range n {
		sbs = append(sbs, w.open("a", fmt.Sprint("s", i), false).standBy("b"))
	}
	w.fence("a")
	var cmds []*wire.Command
	for i := range n {
		id := fmt.Sprint("s", i)
		cmds = append(cmds, &wire.Command{Kind: &wire.Command_Assign{Assign: &wire.Assign{
			Session: id, Replaces: w.row(id).GetEpoch(), Owner: w.workers["b"].owner(), Reason: "test",
		}}})
	}
	w.log.commit(cmds...)
	for _, sb := range sbs {
		sb.attached()
		sb.ok(sb.write("incr", "n"), "1")
	}
}
