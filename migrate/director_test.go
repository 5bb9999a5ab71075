package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/wire"
)

var calls = []string{"prepare", "invite", "warm", "handover"}

func TestMoveHappyPath(t *testing.T) {
	for _, attached := range []bool{true, false} {
		t.Run(fmt.Sprintf("attached=%v", attached), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "n1", "n2", "n3")
				w.open("s", "n1", attached)
				before := w.row("s").GetEpoch()
				d, end := w.director()
				defer end()
				warmed := false
				w.set("warm", func(context.Context) error { warmed = true; return nil })
				rep, err := d.Migrate(t.Context(), request("s", "name-n2"))
				if err != nil {
					t.Fatal(err)
				}
				row := w.row("s")
				if row.GetOwner().GetWorker() != "n2" || row.GetEpoch() <= before || row.GetMigration() != 0 {
					t.Errorf("row %v", row)
				}
				if got := len(row.GetAttachments()); (got == 1) != attached || warmed != attached {
					t.Errorf("%d attachments, warmed %v", got, warmed)
				}
				if rep.State != Completed || rep.From != "n1" || rep.To != "n2" || rep.Epoch != row.GetEpoch() || rep.PauseUS != 2100 {
					t.Errorf("report %+v", rep)
				}
				if n := len(rep.Steps); n != 10 || rep.Steps[n-1].State != Completed {
					t.Errorf("steps %v", states(rep))
				}
				m := w.history(1)[0]
				if m.GetPhase() != wire.Phase_PHASE_COMPLETED || m.GetPauseUs() != 2100 || m.GetId() != rep.Migration {
					t.Errorf("log has %v", m)
				}
				if len(d.Active()) != 0 {
					t.Errorf("still active: %v", d.Active())
				}
			})
		})
	}
}

func TestMigrateRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "fenced", "draining")
		w.open("s", "n1", false)
		w.open("closed", "n1", false)
		w.must(&wire.Command{Kind: &wire.Command_Close{Close: &wire.CloseSession{
			Session: "closed", Epoch: w.row("closed").GetEpoch(), Owner: w.owner("n1"),
		}}})
		w.must(fenceCommand(w, "fenced"), stateCommand("draining", wire.WorkerState_WORKER_STATE_DRAINING))
		idle := NewDirector(DirectorConfig{View: w.view, Clock: w})
		if _, err := idle.Migrate(t.Context(), request("s", "n2")); wire.CodeOf(err) != wire.Code_NOT_LEADER {
			t.Errorf("without a term: %v", err)
		}
		if _, err := idle.AssignNow(t.Context(), "s"); wire.CodeOf(err) != wire.Code_NOT_LEADER {
			t.Errorf("without a term: %v", err)
		}
		idle.Nudge()
		if idle.Active() != nil {
			t.Error("active without a term")
		}
		d, end := w.director()
		defer end()
		for _, c := range []struct {
			session, target string
			want            wire.Code
		}{
			{"", "n2", wire.Code_BAD_REQUEST},
			{"nobody", "n2", wire.Code_UNKNOWN_SESSION},
			{"closed", "n2", wire.Code_SESSION_CLOSED},
			{"s", "nowhere", wire.Code_UNKNOWN_WORKER},
			{"s", "n1", wire.Code_SAME_NODE},
			{"s", "name-n1", wire.Code_SAME_NODE},
			{"s", "fenced", wire.Code_WORKER_FENCED},
			{"s", "draining", wire.Code_TARGET_DRAINING},
		} {
			rep, err := d.Migrate(t.Context(), request(c.session, c.target))
			if wire.CodeOf(err) != c.want {
				t.Errorf("%s to %s: %v, want %v", c.session, c.target, err, c.want)
			}
			if rep.State == Completed || rep.Migration != 0 {
				t.Errorf("%s to %s: %+v", c.session, c.target, rep)
			}
		}
		if n := len(w.history(10)); n != 0 {
			t.Errorf("%d migrations were begun", n)
		}
		// No target named: the director places it, on the only one that is left.
		rep, err := d.Migrate(t.Context(), request("s", ""))
		if err != nil || rep.To != "n2" {
			t.Errorf("placed: %+v, %v", rep, err)
		}
		w.hear("n1", false)
		if _, err := d.Migrate(t.Context(), request("s", "")); wire.CodeOf(err) != wire.Code_NO_TARGET {
			t.Errorf("nowhere to go: %v", err)
		}
	})
}

func fenceCommand(w *world, id string) *wire.Command {
	return &wire.Command{Kind: &wire.Command_FenceWorker{FenceWorker: &wire.FenceWorker{
		Id: id, Incarnation: w.worker(id).GetIncarnation(), Reason: "test",
	}}}
}

func stateCommand(id string, s wire.WorkerState) *wire.Command {
	return &wire.Command{Kind: &wire.Command_SetWorkerState{SetWorkerState: &wire.SetWorkerState{Id: id, State: s, By: "test"}}}
}

// Each call fails in each way. Before the pivot the session stays; an answer
// that is lost after it does not.
func TestMoveCallFails(t *testing.T) {
	lost := func(context.Context) error { return errors.New("connection lost") }
	full := func(context.Context) error { return wire.Errorf(wire.Code_TOO_MANY, "full") }
	for _, call := range calls {
		for fault, fn := range map[string]func(context.Context) error{"": lost, "refused": full, "hang": hang, "+": lost, "hang+": hang} {
			t.Run(call+" "+fault, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, "n1", "n2")
					w.open("s", "n1", true)
					at := call
					if fault == "+" || fault == "hang+" {
						at += "+"
					}
					w.set(at, fn)
					d, end := w.director()
					defer end()
					rep, err := d.Migrate(t.Context(), request("s", "n2"))
					moved := at == "handover+"
					owner, state, code := "n1", Aborted, wire.Code_UNAVAILABLE
					switch {
					case moved:
						owner, state, code = "n2", Completed, wire.Code_OK
					case fault == "refused":
						code = wire.Code_TOO_MANY
					case fault[:min(4, len(fault))] == "hang" && call == "warm":
						code = wire.Code_CLIENT_CANNOT_REACH
					case fault[:min(4, len(fault))] == "hang":
						code = wire.Code_DEADLINE_EXCEEDED
					}
					if rep.State != state || wire.CodeOf(err) != code || w.row("s").GetOwner().GetWorker() != owner {
						t.Errorf("ended %v with %v, owner %v; want %v with %v, owner %s",
							rep.State, err, w.row("s").GetOwner(), state, code, owner)
					}
					if w.Now() > 20*time.Second {
						t.Errorf("took until %v", w.Now())
					}
					w.quiet()
				})
			})
		}
	}
}

// A client that does not come to the target is not forced.
func TestMoveClientCannotReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.open("s", "n1", true)
		w.set("warm", func(context.Context) error { return wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "nobody came") })
		d, end := w.director()
		defer end()
		_, err := d.Migrate(t.Context(), request("s", "n2"))
		if wire.CodeOf(err) != wire.Code_CLIENT_CANNOT_REACH || w.row("s").GetOwner().GetWorker() != "n1" {
			t.Errorf("%v, owner %v", err, w.row("s").GetOwner())
		}
		if len(w.row("s").GetAttachments()) != 1 {
			t.Error("the client was detached")
		}
	})
}

// The log refuses to take commands at times; moves go on once it does.
func TestLogOverloaded(t *testing.T) {
	for name, is := range map[string]func(*wire.Command) bool{
		"begin": func(c *wire.Command) bool { return c.GetBegin() != nil },
		"abort": func(c *wire.Command) bool { return c.GetAbort() != nil },
		"end":   func(c *wire.Command) bool { return c.GetEnd() != nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "n1", "n2")
				w.open("s", "n1", true)
				if name == "abort" {
					w.set("invite", func(context.Context) error { return errors.New("lost") })
				}
				w.refuse = func(c *wire.Command) error {
					if is(c) && w.Now() < 3*time.Second {
						return wire.Errorf(wire.Code_OVERLOADED, "too much")
					}
					return nil
				}
				d, end := w.director()
				defer end()
				rep, err := d.Migrate(t.Context(), request("s", "n2"))
				want := map[string]wire.Code{"begin": wire.Code_OVERLOADED, "abort": wire.Code_UNAVAILABLE, "end": wire.Code_OK}[name]
				if wire.CodeOf(err) != want || !rep.State.Terminal() {
					t.Errorf("ended %v with %v", rep.State, err)
				}
				w.quiet()
			})
		})
	}
}

// A second move of a session under way is refused, and nothing is begun twice.
func TestOneMoveASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		w.open("s", "n1", true)
		gate := make(chan struct{})
		w.set("warm", func(context.Context) error { <-gate; return nil })
		d, end := w.director()
		defer end()
		done := make(chan error, 1)
		go func() {
			_, err := d.Migrate(context.Background(), request("s", "n2"))
			done <- err
		}()
		time.Sleep(50 * time.Millisecond)
		if act := d.Active(); len(act) != 1 || act[0].State != Preparing || act[0].Session != "s" {
			t.Errorf("active %+v", act)
		}
		if _, err := d.Migrate(t.Context(), request("s", "n3")); wire.CodeOf(err) != wire.Code_MIGRATION_ACTIVE {
			t.Errorf("got %v", err)
		}
		close(gate)
		if err := <-done; err != nil {
			t.Error(err)
		}
		// Asked for twice in one moment: the tables show neither yet.
		w.open("twice", "n1", true)
		for range 2 {
			go func() {
				_, err := d.Migrate(context.Background(), request("twice", "n3"))
				done <- err
			}()
		}
		if a, b := wire.CodeOf(<-done), wire.CodeOf(<-done); a+b != wire.Code_MIGRATION_ACTIVE || a*b != 0 {
			t.Errorf("got %v and %v, want one to move and one to be refused", a, b)
		}
		if n, _ := w.proposed(func(c *wire.Command) bool { return c.GetBegin() != nil }); n != 2 {
			t.Errorf("%d begun for two moves", n)
		}
	})
}

// A caller that stops waiting does not stop the move.
func TestCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.open("s", "n1", true)
		w.set("warm", func(context.Context) error { time.Sleep(time.Second); return nil })
		d, end := w.director()
		defer end()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		rep, err := d.Migrate(ctx, request("s", "n2"))
		if wire.CodeOf(err) != wire.Code_DEADLINE_EXCEEDED || rep.State != Preparing {
			t.Errorf("%v in state %v", err, rep.State)
		}
		time.Sleep(2 * time.Second)
		if got := w.row("s").GetOwner().GetWorker(); got != "n2" {
			t.Errorf("owner %s", got)
		}
	})
}

func TestTooManyMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.set("prepare", hang)
		d, end := w.director(func(c *DirectorConfig) { c.MovesMax, c.QueueMax = 1, 1 })
		for i := range 3 {
			w.open(fmt.Sprint("s", i), "n1", false)
		}
		done := make(chan wire.Code, 3)
		for i := range 3 {
			go func() {
				_, err := d.Migrate(context.Background(), request(fmt.Sprint("s", i), "n2"))
				done <- wire.CodeOf(err)
			}()
		}
		if c := <-done; c != wire.Code_OVERLOADED {
			t.Errorf("got %v", c)
		}
		end()
		<-done
		<-done
	})
}

// The hook that asks who may object accepts, objects, or hangs.
func TestConfirm(t *testing.T) {
	for name, c := range map[string]struct {
		fn   func(context.Context) error
		want wire.Code
	}{
		"accepts": {func(context.Context) error { return nil }, wire.Code_OK},
		"rejects": {func(context.Context) error { return wire.Errorf(wire.Code_RETRY, "not now") }, wire.Code_RETRY},
		"hangs":   {hang, wire.Code_DEADLINE_EXCEEDED},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "n1", "n2")
				w.open("s", "n1", false)
				d, end := w.director(func(cfg *DirectorConfig) {
					cfg.Confirm = func(ctx context.Context, _ Request, _ Plan) (Confirmation, error) { return Accept(), c.fn(ctx) }
				})
				defer end()
				rep, err := d.Migrate(t.Context(), request("s", "n2"))
				if wire.CodeOf(err) != c.want || (rep.State == Failed) != (err != nil) {
					t.Errorf("ended %v with %v", rep.State, err)
				}
				if n := len(w.history(9)); (n == 0) != (err != nil) {
					t.Errorf("%d migrations in the log", n)
				}
			})
		})
	}
}

func TestTunableDefaults(t *testing.T) {
	var tu Tunables
	tu.setDefaults()
	if want := (Tunables{
		DrainConcurrency: 64, MovesMax: 256, HandoversMax: 16, QueueMax: 1024, NoTargetAfter: time.Minute, AttachedBatch: wire.EntryCommandsMax, AssignBatch: 256, ExpireBatch: 256,
		TickEvery: 10 * time.Second, MigrationTimeout: 15 * time.Second, ScanEvery: 100 * time.Millisecond,
	}); tu != want {
		t.Errorf("got %+v", tu)
	}
	tu = Tunables{AttachedBatch: 1 << 20, AssignBatch: 1 << 20, ExpireBatch: 1 << 20, MigrationTimeout: time.Hour}
	tu.setDefaults()
	if tu.AttachedBatch != wire.EntryCommandsMax || tu.AssignBatch != wire.EntryCommandsMax || tu.ExpireBatch != wire.EntryCommandsMax || tu.MigrationTimeout != DeadlineMax {
		t.Errorf("got %+v", tu)
	}
	if !slices.Equal(calls, []string{"prepare", "invite", "warm", "handover"}) {
		t.Error("the matrix lost a call")
	}
}

// What the tables say against a move is said before anything is committed.
func TestCheckFindsWhatIsInTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		for _, s := range []string{"a", "b", "c"} {
			w.open(s, "n2", true)
		}
		w.set("warm", hang)
		// A slow director does nothing by itself for the time of the test.
		slow := func(c *DirectorConfig) { c.ScanEvery = time.Hour }
		first, end1 := w.director(slow)
		second, end2 := w.director(slow)
		w.nudge = nil
		done := make(chan error, 1)
		go func() {
			_, err := first.Migrate(context.Background(), request("a", "n1"))
			done <- err
		}()
		time.Sleep(time.Second)
		if _, err := second.Migrate(t.Context(), request("a", "n1")); wire.CodeOf(err) != wire.Code_MIGRATION_ACTIVE {
			t.Errorf("one that another director moves: %v", err)
		}
		w.must(fenceCommand(w, "n2"))
		if _, err := second.Migrate(t.Context(), request("b", "n1")); wire.CodeOf(err) != wire.Code_NO_OWNER {
			t.Errorf("one without an owner: %v", err)
		}
		for _, id := range []string{"n1", "n3"} {
			w.hear(id, false)
		}
		if _, err := second.AssignNow(t.Context(), "c"); wire.CodeOf(err) != wire.Code_NO_TARGET {
			t.Errorf("with all others dead: %v", err)
		}
		end1()
		end2()
		<-done
	})
}

// The log shuts down with a commit under way: nobody claims to know its outcome.
func TestLogShutsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.open("s", "n1", true)
		w.refuse = func(c *wire.Command) error {
			if c.GetBegin() != nil {
				return wire.Errorf(wire.Code_SHUTTING_DOWN, "closing")
			}
			return nil
		}
		d, end := w.director()
		defer end()
		rep, err := d.Migrate(t.Context(), request("s", "n2"))
		if wire.CodeOf(err) != wire.Code_UNAVAILABLE || rep.State.Terminal() {
			t.Errorf("ended %v with %v", rep.State, err)
		}
	})
}

// Without randomness there is no token, and no move.
func TestNoRandomness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.open("s", "n1", true)
		d, end := w.director(func(c *DirectorConfig) { c.Rand = strings.NewReader("") })
		defer end()
		if _, err := d.Migrate(t.Context(), request("s", "n2")); wire.CodeOf(err) != wire.Code_INTERNAL {
			t.Errorf("got %v", err)
		}
		if _, err := d.Migrate(t.Context(), request("s", "n2")); wire.CodeOf(err) != wire.Code_INTERNAL {
			t.Errorf("the second time: %v", err)
		}
	})
}
