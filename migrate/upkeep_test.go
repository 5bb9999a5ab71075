package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

func isAssign(c *wire.Command) bool { return c.GetAssign() != nil }
func isExpire(c *wire.Command) bool { return c.GetExpire() != nil }
func isTick(c *wire.Command) bool   { return c.GetTick() != nil }
func isBegin(c *wire.Command) bool  { return c.GetBegin() != nil }
func isFence(c *wire.Command) bool  { return c.GetFenceWorker() != nil }

func (w *world) owned() map[string]int {
	var c store.Counts
	w.view(func(s *store.Store) { c = s.Counts() })
	return c.Owned
}

func TestFenceDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		w.register("strange") // gossip has never heard of it
		w.open("s", "n2", true)
		_, end := w.director()
		defer end()
		state := func(id string) wire.WorkerState { return w.worker(id).GetState() }

		w.hear("n1", false) // the director's own
		w.hear("n2", false)
		time.Sleep(1500 * time.Millisecond)
		w.hear("n2", true) // only flapping
		time.Sleep(500 * time.Millisecond)
		w.hear("n2", false)
		time.Sleep(1500 * time.Millisecond)
		if state("n2") != wire.WorkerState_WORKER_STATE_ACTIVE {
			t.Fatal("fenced before FenceAfter without a break")
		}
		w.hear("n1", true)
		time.Sleep(time.Second)
		if state("n2") != wire.WorkerState_WORKER_STATE_FENCED {
			t.Fatal("not fenced")
		}
		w.quiet()
		if got := w.row("s").GetOwner().GetWorker(); got == "n2" {
			t.Errorf("its session stays on %s", got)
		}
		time.Sleep(time.Minute)
		for _, id := range []string{"n1", "n3", "strange"} {
			if state(id) != wire.WorkerState_WORKER_STATE_ACTIVE {
				t.Errorf("%s is %v", id, state(id))
			}
		}
		if n, _ := w.proposed(isFence); n != 1 {
			t.Errorf("%d fences", n)
		}
		last := w.row("s").GetHistory()
		if h := last[len(last)-1]; h.GetReason() == "" || h.GetBy() != "director n1" {
			t.Errorf("history says %v", h)
		}
	})
}

// A fence that cannot be committed is tried again; one that is refused because
// the worker came back is not.
func TestFenceRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.refuse = func(c *wire.Command) error {
			if isFence(c) && w.Now() < 5*time.Second {
				return wire.Errorf(wire.Code_OVERLOADED, "too much")
			}
			return nil
		}
		_, end := w.director()
		defer end()
		w.hear("n2", false)
		time.Sleep(6 * time.Second)
		if got := w.worker("n2").GetState(); got != wire.WorkerState_WORKER_STATE_FENCED {
			t.Errorf("it is %v", got)
		}
		w.register("n2")
		time.Sleep(time.Second)
		if got := w.worker("n2").GetState(); got != wire.WorkerState_WORKER_STATE_ACTIVE {
			t.Errorf("its new incarnation is %v after a second", got)
		}
	})
}

// A thousand sessions lose their owner: they get new ones in paced batches, one
// under way at a time, spread within the bound.
func TestMassReassignment(t *testing.T) {
	for _, how := range []string{"fenced", "restarted"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const sessions, batch = 1050, 100
				w := newWorld(t, "n1", "n2", "n3", "n4")
				for i := range sessions {
					w.open(fmt.Sprintf("s%04d", i), "n2", i%3 == 0)
				}
				var mu sync.Mutex
				flying, most := 0, 0
				d, end := w.director(func(c *DirectorConfig) {
					c.AssignBatch = batch
					propose := c.Propose
					c.Propose = func(cmds []*wire.Command, done func([]*wire.Result, error)) {
						if !isAssign(cmds[0]) {
							propose(cmds, done)
							return
						}
						mu.Lock()
						flying++
						most = max(most, flying)
						mu.Unlock()
						propose(cmds, func(res []*wire.Result, err error) {
							mu.Lock()
							flying--
							mu.Unlock()
							done(res, err)
						})
					}
				})
				defer end()
				eligible := 3
				if how == "fenced" {
					w.must(fenceCommand(w, "n2"))
				} else {
					w.register("n2")
					eligible = 4
				}
				d.Nudge()
				w.quiet()
				n, batches := w.proposed(isAssign)
				if n != sessions || slices.Max(batches) > batch || most != 1 {
					t.Errorf("%d assigned in batches %v, %d at once", n, batches, most)
				}
				limit := int(PlacementFactor*float64(sessions)/float64(eligible)) + 1
				for id, k := range w.owned() {
					if k > limit {
						t.Errorf("%s got %d, the bound is %d", id, k, limit)
					}
				}
				if how == "fenced" && w.owned()["n2"] != 0 {
					t.Errorf("the fenced one has %d", w.owned()["n2"])
				}
			})
		})
	}
}

// Nobody can take them: nothing is proposed, until someone can.
func TestReassignmentWaitsForAWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.open("s", "n2", false)
		w.must(fenceCommand(w, "n2"), stateCommand("n1", wire.WorkerState_WORKER_STATE_DRAINING))
		d, end := w.director()
		defer end()
		time.Sleep(10 * time.Second)
		if n, _ := w.proposed(isAssign); n != 0 {
			t.Errorf("%d assigned to nobody", n)
		}
		if _, err := d.AssignNow(t.Context(), "s"); wire.CodeOf(err) != wire.Code_NO_TARGET {
			t.Errorf("got %v", err)
		}
		w.must(stateCommand("n1", wire.WorkerState_WORKER_STATE_ACTIVE))
		w.quiet()
		if got := w.row("s").GetOwner().GetWorker(); got != "n1" {
			t.Errorf("owner %s", got)
		}
	})
}

func TestAssignNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		w.open("a", "n1", true)
		w.open("b", "n2", true)
		d, end := w.director(func(c *DirectorConfig) { c.ScanEvery = time.Hour }) // no batches
		defer end()
		if loc, err := d.AssignNow(t.Context(), "a"); err != nil || loc.GetOwner().GetWorker() != "n1" || !loc.GetValid() {
			t.Errorf("one with an owner: %v, %v", loc, err)
		}
		if _, err := d.AssignNow(t.Context(), "none"); wire.CodeOf(err) != wire.Code_UNKNOWN_SESSION {
			t.Errorf("one that is not: %v", err)
		}
		w.nudge = nil
		w.must(fenceCommand(w, "n2"))
		before := w.row("b").GetEpoch()
		done := make(chan *wire.Location)
		for range 5 {
			go func() {
				loc, err := d.AssignNow(context.Background(), "b")
				if err != nil {
					t.Error(err)
				}
				done <- loc
			}()
		}
		for range 5 {
			loc := <-done
			if row := w.row("b"); !loc.GetValid() || loc.GetEpoch() != row.GetEpoch() || row.GetEpoch() == before ||
				loc.GetOwner().GetWorker() != row.GetOwner().GetWorker() || loc.GetEndpoint().GetHost() != row.GetOwner().GetWorker() {
				t.Errorf("got %v, row %v", loc, row)
			}
		}
		w.refuse = func(*wire.Command) error { return wire.Errorf(wire.Code_OVERLOADED, "too much") }
		if _, err := d.AssignNow(t.Context(), "none"); wire.CodeOf(err) != wire.Code_OVERLOADED {
			t.Errorf("without a log: %v", err)
		}
		w.refuse = func(*wire.Command) error { time.Sleep(time.Minute); return nil }
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := d.AssignNow(ctx, "none"); wire.CodeOf(err) != wire.Code_DEADLINE_EXCEEDED {
			t.Errorf("with a slow log: %v", err)
		}
	})
}

// Sessions expire at their TTL in log time, in batches, and not before; time is
// committed while anything is pending, and only then.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions, batch = 350, 100
		w := newWorld(t, "n1", "n2")
		_, end := w.director(func(c *DirectorConfig) { c.ExpireBatch = batch })
		defer end()
		time.Sleep(5 * time.Minute)
		if n, _ := w.proposed(isTick); n != 0 {
			t.Errorf("%d ticks with nothing pending", n)
		}
		opened := w.Now()
		for i := range sessions {
			w.open(fmt.Sprint("s", i), "n1", false)
		}
		w.open("attached", "n1", true)
		count := func() (n int) {
			w.view(func(s *store.Store) { n = s.Counts().Sessions })
			return n
		}
		time.Sleep(opened + time.Hour - time.Second - w.Now())
		if n := count(); n != sessions+1 {
			t.Errorf("%d sessions a second before their TTL ends", n)
		}
		ticks, _ := w.proposed(isTick)
		if ticks < 350 || ticks > 400 {
			t.Errorf("%d ticks in an hour, want one in 10 s", ticks)
		}
		time.Sleep(4 * time.Second)
		if n := count(); n != 1 || w.row("attached") == nil {
			t.Errorf("%d sessions after their TTL", n)
		}
		n, batches := w.proposed(isExpire)
		if n != sessions || slices.Max(batches) > batch {
			t.Errorf("%d expired in batches %v", n, batches)
		}
	})
}

// A session that is about to expire in mid-move ends it.
func TestExpiryMidMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.open("s", "n1", false)
		w.set("invite", hang)
		d, end := w.director()
		defer end()
		time.Sleep(time.Hour - 2*time.Second)
		rep, err := d.Migrate(t.Context(), request("s", "n2"))
		if wire.CodeOf(err) != wire.Code_SESSION_EXPIRED || rep.State != Aborted {
			t.Errorf("ended %v with %v", rep.State, err)
		}
	})
}

// drainWorld has sessions on n1, which is to be drained.
func drainWorld(t *testing.T, sessions int) *world {
	w := newWorld(t, "n1", "n2", "n3")
	for i := range sessions {
		w.open(fmt.Sprintf("s%04d", i), "n1", i%2 == 0)
	}
	return w
}

// watchMoves counts moves between prepare and handover.
func (w *world) watchMoves() (most func() int) {
	var mu sync.Mutex
	now, hi := 0, 0
	w.set("prepare", func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		now++
		hi = max(hi, now)
		return nil
	})
	w.set("handover+", func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		now--
		return nil
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return hi
	}
}

// drained waits until id owns nothing.
func (w *world) drained(id string) {
	w.t.Helper()
	for range 1200 {
		if w.owned()[id] == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.t.Errorf("%s still owns %d", id, w.owned()[id])
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions = 600
		w := drainWorld(t, sessions)
		most := w.watchMoves()
		_, end := w.director(func(c *DirectorConfig) { c.DrainConcurrency = 8; c.AssignBatch = 64 })
		defer end()
		w.must(stateCommand("n1", wire.WorkerState_WORKER_STATE_DRAINING))
		w.drained("n1")
		w.quiet()
		begins, batches := w.proposed(isBegin)
		if begins != sessions || most() != 8 {
			t.Errorf("%d moves for %d sessions, %d at once", begins, sessions, most())
		}
		if len(batches) >= sessions {
			t.Error("each Begin was proposed by itself")
		}
		for id, n := range w.owned() {
			if n > int(PlacementFactor*sessions/2)+1 {
				t.Errorf("%s got %d", id, n)
			}
		}
		for i := range sessions {
			if row := w.row(fmt.Sprintf("s%04d", i)); (len(row.GetAttachments()) == 1) != (i%2 == 0) {
				t.Errorf("s%04d has %d attachments", i, len(row.GetAttachments()))
			}
		}
	})
}

// The leader dies twice in mid-drain: only the duration changes.
func TestDrainSurvivesDirectors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions = 400
		w := drainWorld(t, sessions)
		w.must(stateCommand("n1", wire.WorkerState_WORKER_STATE_DRAINING))
		for i := range 2 {
			_, end := w.director()
			for w.owned()["n1"] > sessions*(2-i)/3 {
				time.Sleep(time.Millisecond)
			}
			end()
		}
		if w.owned()["n1"] == 0 {
			t.Fatal("drained before anyone died")
		}
		_, end := w.director()
		defer end()
		w.drained("n1")
		w.quiet()
		if got := w.owned()["n2"] + w.owned()["n3"]; got != sessions {
			t.Errorf("%d of %d sessions are left", got, sessions)
		}
	})
}

// A drain towards a worker that does not answer goes on to another, and does not
// flood the log with what is bound to fail.
func TestDrainDeadTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions = 200
		w := drainWorld(t, sessions)
		w.hear("n3", true)
		_, end := w.director(func(c *DirectorConfig) { c.Call = deadTarget{w, "n3"} })
		defer end()
		w.must(stateCommand("n1", wire.WorkerState_WORKER_STATE_DRAINING))
		time.Sleep(20 * time.Second)
		begins, _ := w.proposed(isBegin)
		if begins > 3*sessions {
			t.Errorf("%d moves for %d sessions", begins, sessions)
		}
		w.hear("n3", false)
		w.drained("n1")
		w.quiet()
		if got := w.owned()["n2"]; got != sessions {
			t.Errorf("n2 has %d", got)
		}
	})
}

type deadTarget struct {
	*world
	id string
}

func (d deadTarget) Prepare(ctx context.Context, to *wire.WorkerRow, req *wire.PrepareReq) error {
	if to.GetId() == d.id {
		return errors.New("connection refused")
	}
	return d.world.Prepare(ctx, to, req)
}

// One session's client never reaches the target: it backs off, the others go.
func TestDrainStubbornSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions = 50
		w := drainWorld(t, sessions)
		stubborn := true
		_, end := w.director(func(c *DirectorConfig) {
			c.Confirm = func(_ context.Context, req Request, _ Plan) error {
				if req.Session == "s0000" && stubborn {
					return wire.Errorf(wire.Code_CLIENT_CANNOT_REACH, "no")
				}
				return nil
			}
		})
		defer end()
		w.must(stateCommand("n1", wire.WorkerState_WORKER_STATE_DRAINING))
		time.Sleep(time.Minute)
		if got := w.owned()["n1"]; got != 1 {
			t.Errorf("%d left", got)
		}
		stubborn = false
		w.drained("n1")
	})
}

// Two workers are drained towards each other, and the drain is called off.
func TestDrainBothAndCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		for i := range 40 {
			w.open(fmt.Sprint("s", i), fmt.Sprint("n", 1+i%2), true)
		}
		_, end := w.director()
		defer end()
		w.must(stateCommand("n1", wire.WorkerState_WORKER_STATE_DRAINING), stateCommand("n2", wire.WorkerState_WORKER_STATE_DRAINING))
		time.Sleep(time.Minute)
		if n, _ := w.proposed(isBegin); n != 0 {
			t.Errorf("%d moves with nowhere to go", n)
		}
		w.must(stateCommand("n2", wire.WorkerState_WORKER_STATE_ACTIVE))
		w.drained("n1")
		w.quiet()
		if got := w.owned()["n2"]; got != 40 {
			t.Errorf("n2 has %d", got)
		}
	})
}

// A drained worker dies: what it still has is reassigned.
func TestDrainSourceDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions = 100
		w := drainWorld(t, sessions)
		w.set("invite", hang)
		_, end := w.director(func(c *DirectorConfig) { c.Self = "n2" })
		defer end()
		w.must(stateCommand("n1", wire.WorkerState_WORKER_STATE_DRAINING))
		time.Sleep(time.Second)
		w.hear("n1", false)
		w.drained("n1")
		w.quiet()
		time.Sleep(time.Minute)
		if got := w.owned()["n2"] + w.owned()["n3"]; got != sessions {
			t.Errorf("%d of %d left", got, sessions)
		}
	})
}

// While peers hang, the director goes on with everything else.
func TestHungPeersDoNotBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := drainWorld(t, 100)
		for _, call := range calls {
			w.set(call, hang)
		}
		d, end := w.director(func(c *DirectorConfig) { c.Self = "n3"; c.DrainConcurrency = 64 })
		defer end()
		w.must(stateCommand("n1", wire.WorkerState_WORKER_STATE_DRAINING))
		time.Sleep(time.Second)
		if n := len(d.Active()); n != 64 {
			t.Errorf("%d moves hang", n)
		}
		w.open("other", "n2", true)
		w.must(fenceCommand(w, "n2"))
		time.Sleep(time.Second)
		if got := w.row("other").GetOwner().GetWorker(); got != "n3" {
			t.Errorf("reassignment waits: owner %s", got)
		}
	})
}
