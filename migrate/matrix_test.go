package migrate

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

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
