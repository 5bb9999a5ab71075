package migrate

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/lease"
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

// fenced reports whether a worker is.
func (w *world) fenced(id string) bool {
	return w.worker(id).GetState() == wire.WorkerState_WORKER_STATE_FENCED
}

// Whatever says that a worker is dead only begins the poll; the fence waits for
// the promises. With a second key it commits as they run out, without one it
// waits one more T. Who renews is fenced by nobody's word.
func TestFenceWaitsForThePromises(t *testing.T) {
	const T = lease.TDefault
	for name, c := range map[string]struct {
		do    func(w *world)
		after time.Duration // of the fence; 0: never
	}{
		"dead by gossip":       {func(w *world) { w.hear("n2", false) }, T},
		"its port refuses":     {func(w *world) { w.renews("n2", false); w.portRefuses("n2") }, T},
		"silent, alive":        {func(w *world) { w.renews("n2", false) }, T + lease.Stretch(T)},
		"dead by gossip alone": {func(w *world) { w.hear("n2", false); w.renews("n2", true) }, 0},
		"the port alone":       {func(w *world) { w.portRefuses("n2") }, 0},
		"the director's own":   {func(w *world) { w.renews("n1", false); w.hear("n2", true) }, 0},
		"voters change":        {func(w *world) { w.hear("n2", false); w.votersChange() }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "n1", "n2", "n3")
				w.open("s", "n2", true)
				_, end := w.director()
				defer end()
				time.Sleep(10 * T)
				c.do(w)
				if c.after > 0 {
					time.Sleep(c.after - 20*time.Millisecond)
					if w.fenced("n2") {
						t.Fatal("fenced while promises ran, or a key was missing")
					}
					time.Sleep(40 * time.Millisecond)
					if !w.fenced("n2") {
						t.Fatal("not fenced when they had run out")
					}
					w.quiet()
					if got := w.row("s").GetOwner().GetWorker(); got == "n2" {
						t.Errorf("its session stays on %s", got)
					}
				}
				time.Sleep(time.Minute)
				for _, id := range []string{"n1", "n2", "n3"} {
					if w.fenced(id) != (c.after > 0 && id == "n2" || name == "the director's own" && id == "n1") {
						t.Errorf("%s is %v", id, w.worker(id).GetState())
					}
				}
			})
		})
	}
}

// A worker that is merely slow costs a poll: it is counted as a false alarm, and
// no server was asked to withdraw.
func TestFalseAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		d, end := w.director()
		defer end()
		time.Sleep(10 * time.Second)
		w.renews("n2", false)
		time.Sleep(900 * time.Millisecond)
		if why := d.Detection().Suspects["n2"]; why != "missed renewals" {
			t.Errorf("suspected for %q", why)
		}
		w.renews("n2", true)
		time.Sleep(5 * time.Second)
		if got := d.Detection(); len(got.Suspects) != 0 || got.FalseAlarms != 1 || got.Fences != 0 || w.withdrawals() != 0 {
			t.Errorf("%+v, %d withdrawals", got, w.withdrawals())
		}
		w.hear("n2", false)
		time.Sleep(5 * time.Second)
		if got := d.Detection(); len(got.Suspects) != 0 || got.FalseAlarms != 1 || got.Fences != 1 {
			t.Errorf("%+v", got)
		}
	})
}

// A withdrawal that a lost leader left behind is finished by the next (L5).
func TestUnfinishedFenceIsFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		_, end := w.director()
		defer end()
		w.withdraw("n2")
		time.Sleep(time.Second)
		if !w.fenced("n2") {
			t.Error("not fenced")
		}
	})
}

// An operator's word is a key, not a withdrawal: of a worker that renews it is
// refused.
func TestFenceByOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		d, end := w.director()
		defer end()
		time.Sleep(10 * time.Second)
		inc := w.worker("n2").GetIncarnation()
		if err := d.Fence(t.Context(), "n2", inc); wire.CodeOf(err) != wire.Code_LEASE_HELD || w.fenced("n2") {
			t.Fatalf("a worker that renews: %v", err)
		}
		if err := d.Fence(t.Context(), "n9", 1); wire.CodeOf(err) != wire.Code_UNKNOWN_WORKER {
			t.Fatalf("a stranger: %v", err)
		}
		if err := d.Fence(t.Context(), "n2", inc+1); wire.CodeOf(err) != wire.Code_STALE_INCARNATION {
			t.Fatalf("another incarnation: %v", err)
		}
		w.renews("n2", false)
		begun := w.Now()
		if err := d.Fence(t.Context(), "n2", inc); err != nil || !w.fenced("n2") {
			t.Fatalf("a silent worker: %v", err)
		}
		if took := w.Now() - begun; took > lease.TDefault+20*time.Millisecond {
			t.Errorf("fenced after %v: an operator's word is the second key", took)
		}
		if err := d.Fence(t.Context(), "n2", inc); err != nil {
			t.Fatalf("a fenced one: %v", err)
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
		time.Sleep(lease.TDefault)
		w.renews("n2", true) // gossip still calls it dead
		time.Sleep(10 * time.Second)
		if got := w.worker("n2").GetState(); got != wire.WorkerState_WORKER_STATE_ACTIVE {
			t.Errorf("its new incarnation is %v", got)
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
				w.refuse = func(c *wire.Command) error {
					if isAssign(c) {
						time.Sleep(3 * time.Millisecond) // each: many scans go by
					}
					return nil
				}
				var mu sync.Mutex
				flying, most := 0, 0
				d, end := w.director(func(c *DirectorConfig) {
					c.AttachedBatch, c.AssignBatch = batch, batch
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

// Sessions whose clients wait come first, entry after entry with no wait between
// them, each at its successor; the others follow a batch at a time.
func TestReassignmentServesClientsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const attached, detached, batch = 1000, 600, 250
		w := newWorld(t, "n1", "n2", "n3", "n4")
		for i := range attached + detached {
			w.open(fmt.Sprintf("s%04d", i*7919%10000), "n2", i < attached)
		}
		var at []time.Duration // of entries with sessions that had a client
		late := time.Duration(0)
		w.refuse = func(c *wire.Command) error {
			if !isAssign(c) {
				return nil
			}
			var sum store.Summary
			w.view(func(s *store.Store) { sum, _ = s.Session(c.GetAssign().GetSession()) })
			switch now := w.Now(); {
			case sum.Attached == 0:
				late = now
			case late != 0:
				t.Errorf("%s had a client, and came after one that had none", sum.ID)
			case len(at) == 0 || at[len(at)-1] != now:
				at = append(at, now)
			}
			return nil
		}
		d, end := w.director(func(c *DirectorConfig) { c.AttachedBatch = batch })
		defer end()
		time.Sleep(time.Second)
		w.must(fenceCommand(w, "n2"))
		d.Nudge()
		w.quiet()
		if len(at) != attached/batch {
			t.Fatalf("%d entries at %v", len(at), at)
		}
		for i := 1; i < len(at); i++ {
			if at[i]-at[i-1] > logLatency {
				t.Errorf("entry %d came %v after the one before; the log takes %v", i, at[i]-at[i-1], logLatency)
			}
		}
		if f := d.Failovers(); len(f) != 1 || f[0].Worker != "n2" || f[0].Sessions != attached || f[0].Assigned.IsZero() {
			t.Errorf("the failover is remembered as %+v", f)
		}
		if late == 0 {
			t.Error("the others were not reassigned")
		}
		live := []Candidate{{ID: "n1", Eligible: true}, {ID: "n2"}, {ID: "n3", Eligible: true}, {ID: "n4", Eligible: true}}
		elsewhere := 0
		for i := range attached {
			id := fmt.Sprintf("s%04d", i*7919%10000)
			if n, _ := Successor(id, "n2", live); w.row(id).GetOwner().GetWorker() != live[n].ID {
				elsewhere++
			}
		}
		if elsewhere > 0 {
			t.Errorf("%d sessions are not at their successor, though none is full", elsewhere)
		}
	})
}

// A hundred thousand sessions expire at one instant of log time: they go in
// bounded batches, one under way at a time, and what others propose meanwhile
// waits for one of them at most.
func TestMassExpiryStallsNobody(t *testing.T) {
	if testing.Short() {
		t.Skip("a hundred thousand sessions")
	}
	synctest.Test(t, func(t *testing.T) {
		const sessions = 100_000
		w := newWorld(t, "n1", "n2")
		open := make([]*wire.Command, 0, wire.EntryCommandsMax)
		for i := range sessions {
			open = append(open, w.openCommand(fmt.Sprint("s", i), "n1"))
			if len(open) == cap(open) || i == sessions-1 {
				w.must(open...)
				open = open[:0]
			}
		}
		var mu sync.Mutex
		flying, most := 0, 0
		_, end := w.director(func(c *DirectorConfig) {
			propose := c.Propose
			c.Propose = func(cmds []*wire.Command, done func([]*wire.Result, error)) {
				if !isExpire(cmds[0]) {
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
		left := func() (n int) {
			w.view(func(s *store.Store) { n = s.Counts().Sessions })
			return n
		}
		time.Sleep(time.Hour + 1500*time.Millisecond - w.Now())
		between := 0 // somebody else's commands that committed among the expiries
		for before := left(); before > 0; {
			if before < sessions {
				between++
			}
			w.proposeWait(&wire.Command{Kind: &wire.Command_ReadMarker{ReadMarker: &wire.ReadMarker{Owner: w.owner("n1")}}})
			now := left()
			if gone := before - now; gone > 2*256 {
				t.Fatalf("%d sessions expired while one command committed", gone)
			}
			before = now
		}
		n, batches := w.proposed(isExpire)
		if n != sessions || slices.Max(batches) > 256 || most != 1 {
			t.Errorf("%d expired, %d in the largest batch, %d batches at once", n, slices.Max(batches), most)
		}
		if between < sessions/256 {
			t.Errorf("only %d other commands came between the expiries", between)
		}
	})
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

// TestReassignmentWaitsForRoom: what the log has no room for is proposed again with the
// next scan, not at once and again.
func TestReassignmentWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		w.open("s", "n2", true)
		refused := 0
		w.refuse = func(c *wire.Command) error {
			if c.GetAssign() == nil || w.Now() > 10*time.Second || refused > 5000 {
				return nil
			}
			refused++
			return wire.Errorf(wire.Code_OVERLOADED, "no room")
		}
		_, end := w.director()
		defer end()
		w.hear("n2", false)
		time.Sleep(20 * time.Second)
		if got := w.row("s").GetOwner().GetWorker(); got == "n2" || refused == 0 || refused > 500 {
			t.Errorf("at %s, after %d refusals in ten seconds", got, refused)
		}
	})
}
