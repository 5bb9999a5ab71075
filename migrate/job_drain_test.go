package migrate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/wire"
)

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
			c.Confirm = func(_ context.Context, req Request, _ Plan) (Confirmation, error) {
				if req.Session == "s0000" && stubborn {
					return Reject("no"), nil
				}
				return Accept(), nil
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

// A drain that is called off in the middle: what moves ends its move, what does
// not stays.
func TestDrainCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions = 300
		w := drainWorld(t, sessions)
		_, end := w.director(func(c *DirectorConfig) { c.DrainConcurrency = 4 })
		defer end()
		w.must(stateCommand("n1", wire.WorkerState_WORKER_STATE_DRAINING))
		for w.owned()["n1"] > sessions/2 {
			time.Sleep(time.Millisecond)
		}
		w.must(stateCommand("n1", wire.WorkerState_WORKER_STATE_ACTIVE))
		time.Sleep(time.Minute)
		w.quiet()
		if got := w.owned()["n1"]; got > sessions/2 || got < sessions/2-20 {
			t.Errorf("%d left of %d, half was gone when it was called off", got, sessions)
		}
		for _, m := range w.history(sessions) {
			if m.GetPhase() != wire.Phase_PHASE_COMPLETED {
				t.Errorf("migration %v", m)
			}
		}
	})
}
