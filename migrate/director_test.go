package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/store"
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

// The director dies at each step, and another takes over: the move ends as the
// log had it, and the session has one valid owner.
func TestDirectorDiesAtEachStep(t *testing.T) {
	var steps []string
	for _, c := range calls {
		steps = append(steps, c, c+"+")
	}
	for _, at := range steps {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "n1", "n2")
				w.open("s", "n1", true)
				reached := make(chan struct{})
				w.set(at, func(ctx context.Context) error {
					close(reached)
					return hang(ctx)
				})
				d, end := w.director()
				type answer struct {
					rep Report
					err error
				}
				ch := make(chan answer, 1)
				go func() {
					rep, err := d.Migrate(context.Background(), request("s", "n2"))
					ch <- answer{rep, err}
				}()
				<-reached
				end()
				a := <-ch
				if wire.CodeOf(a.err) != wire.Code_UNAVAILABLE || a.rep.State.Terminal() || a.rep.Migration == 0 {
					t.Errorf("the caller got %+v, %v", a.rep, a.err)
				}
				if len(w.active()) != 1 {
					t.Fatalf("the log has %v", w.active())
				}
				_, end2 := w.director()
				defer end2()
				w.quiet()
				phase, owner := wire.Phase_PHASE_ABORTED, "n1"
				if at == "handover+" {
					phase, owner = wire.Phase_PHASE_COMPLETED, "n2"
				}
				if m := w.history(1)[0]; m.GetPhase() != phase || w.row("s").GetOwner().GetWorker() != owner {
					t.Errorf("ended %v, owner %v", m, w.row("s").GetOwner())
				}
			})
		})
	}
}

// The director dies while a commit of its is under way: the commit counts.
func TestDirectorDiesDuringCommit(t *testing.T) {
	for name, is := range map[string]func(*wire.Command) bool{
		"begin": func(c *wire.Command) bool { return c.GetBegin() != nil },
		"end":   func(c *wire.Command) bool { return c.GetEnd() != nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "n1", "n2")
				w.open("s", "n1", true)
				reached := make(chan struct{})
				w.refuse = func(c *wire.Command) error {
					if is(c) {
						select {
						case <-reached:
						default:
							close(reached)
						}
					}
					return nil
				}
				d, end := w.director()
				done := make(chan error, 1)
				go func() {
					_, err := d.Migrate(context.Background(), request("s", "n2"))
					done <- err
				}()
				<-reached
				end()
				if err := <-done; wire.CodeOf(err) != wire.Code_UNAVAILABLE {
					t.Errorf("the caller got %v", err)
				}
				_, end2 := w.director()
				defer end2()
				time.Sleep(time.Second)
				w.quiet()
				want := map[string]string{"begin": "n1", "end": "n2"}[name]
				if got := w.row("s").GetOwner().GetWorker(); got != want || len(w.history(9)) != 1 {
					t.Errorf("owner %s, want %s; migrations %v", got, want, w.history(9))
				}
			})
		})
	}
}

// Two directors at once: they abort each other's moves and harm nothing.
func TestTwoDirectors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		const sessions = 40
		for i := range sessions {
			w.open(fmt.Sprint("s", i), "n1", i%2 == 0)
		}
		d1, end1 := w.director()
		defer end1()
		d2, end2 := w.director()
		defer end2()
		done := make(chan error, 2*sessions)
		for i := range sessions {
			for j, d := range []*Director{d1, d2} {
				go func() {
					_, err := d.Migrate(context.Background(), request(fmt.Sprint("s", i), fmt.Sprint("n", 2+j)))
					done <- err
				}()
			}
		}
		for range 2 * sessions {
			switch err := <-done; wire.CodeOf(err) {
			case wire.Code_OK, wire.Code_MIGRATION_ACTIVE, wire.Code_MIGRATION_ENDED, wire.Code_STALE_EPOCH,
				wire.Code_RETRY, wire.Code_UNAVAILABLE:
			default:
				t.Errorf("got %v", err)
			}
		}
		w.quiet()
		for i := range sessions {
			row := w.row(fmt.Sprint("s", i))
			var valid bool
			w.view(func(s *store.Store) { valid = s.Valid(row.GetOwner()) })
			if !valid || row.GetMigration() != 0 {
				t.Errorf("s%d: %v", i, row)
			}
		}
	})
}

// Source or target is fenced, or restarts, at each step. The move rolls back or,
// once pivoted, ends; a session that lost its owner gets another.
func TestWorkerLostAtEachStep(t *testing.T) {
	for _, who := range []string{"n1", "n2"} {
		for _, how := range []string{"fence", "restart"} {
			for _, call := range calls {
				for _, at := range []string{call, call + "+"} {
					t.Run(fmt.Sprint(who, " ", how, " at ", at), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							w := newWorld(t, "n0", "n1", "n2")
							w.open("s", "n1", true)
							once := true
							w.set(at, func(context.Context) error {
								if !once {
									return nil
								}
								once = false
								if how == "fence" {
									w.must(fenceCommand(w, who))
								} else {
									w.register(who)
								}
								return nil
							})
							d, end := w.director(func(c *DirectorConfig) { c.Self = "n0" })
							defer end()
							rep, err := d.Migrate(t.Context(), request("s", "n2"))
							if !rep.State.Terminal() || (err == nil) != (rep.State == Completed) {
								t.Errorf("ended %v with %v", rep.State, err)
							}
							if at == "handover+" && rep.State != Completed {
								t.Errorf("pivoted, and ended %v", rep.State)
							}
							w.quiet()
							row := w.row("s")
							if row == nil || row.GetMigration() != 0 {
								t.Errorf("row %v", row)
							}
						})
					})
				}
			}
		}
	}
}

// The session closes or is reassigned in mid-move, behind the director's back.
func TestSessionEndsMidMove(t *testing.T) {
	for _, at := range []string{"prepare", "invite", "warm", "handover"} {
		t.Run("close at "+at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "n1", "n2")
				w.open("s", "n1", true)
				w.set(at, func(ctx context.Context) error {
					row := w.row("s")
					w.must(&wire.Command{Kind: &wire.Command_Close{Close: &wire.CloseSession{
						Session: "s", Epoch: row.GetEpoch(), Owner: row.GetOwner(),
					}}})
					return hang(ctx) // and the call would hang for ever
				})
				d, end := w.director()
				defer end()
				rep, err := d.Migrate(t.Context(), request("s", "n2"))
				if wire.CodeOf(err) != wire.Code_SESSION_CLOSED || rep.State != Aborted {
					t.Errorf("ended %v with %v", rep.State, err)
				}
				if w.Now() > time.Second {
					t.Errorf("noticed only at %v", w.Now())
				}
				w.quiet()
			})
		})
	}
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
		if n, _ := w.proposed(func(c *wire.Command) bool { return c.GetBegin() != nil }); n != 1 {
			t.Errorf("begun %d times", n)
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
		d, end := w.director(func(c *DirectorConfig) { c.MovesMax = 2 })
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
					cfg.Confirm = func(ctx context.Context, _ Request, _ Plan) error { return c.fn(ctx) }
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
		FenceAfter: 2 * time.Second, DrainConcurrency: 32, MovesMax: 256, AssignBatch: 256, ExpireBatch: 256,
		TickEvery: 10 * time.Second, MigrationTimeout: 15 * time.Second, ScanEvery: 100 * time.Millisecond,
	}); tu != want {
		t.Errorf("got %+v", tu)
	}
	tu = Tunables{AssignBatch: 1 << 20, ExpireBatch: 1 << 20, MigrationTimeout: time.Hour}
	tu.setDefaults()
	if tu.AssignBatch != wire.EntryCommandsMax || tu.ExpireBatch != wire.EntryCommandsMax || tu.MigrationTimeout != DeadlineMax {
		t.Errorf("got %+v", tu)
	}
	if !slices.Equal(calls, []string{"prepare", "invite", "warm", "handover"}) {
		t.Error("the matrix lost a call")
	}
}
