package migrate

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/wire"
)

func TestConfirmations(t *testing.T) {
	a, r, d, e := Accept(), Reject("r"), Defer("d", time.Second), Defer("e", time.Minute)
	for i, c := range []struct{ got, want Confirmation }{
		{a.And(a), a}, {a.And(r), r}, {r.And(d), r}, {d.And(r), r}, {a.And(d), d}, {d.And(e), e}, {e.And(d), e},
		{confirmation(d.Proto()), d}, {confirmation(r.Proto()), r}, {confirmation(nil), a},
	} {
		if c.got != c.want {
			t.Errorf("%d: got %+v, want %+v", i, c.got, c.want)
		}
	}
	if c := confirmation(&wire.MoveAnswer{Verdict: 77}); c.Verdict != wire.Verdict_VERDICT_REJECT {
		t.Errorf("an unknown verdict: %+v", c)
	}
	if in := Defer("", 0).input(1); in.Defer != deferDefault {
		t.Errorf("a deferral without a time: %v", in.Defer)
	}
	if in := Defer("", 100*time.Hour).input(1); in.Defer != deferMax {
		t.Errorf("an endless deferral: %v", in.Defer)
	}
}

// Source and target may object; a deferral is waited for while the request's
// time lasts, and told meanwhile.
func TestWorkersConfirm(t *testing.T) {
	objects := func(who string, c Confirmation) func(string, *wire.MoveOffer) Confirmation {
		return func(worker string, _ *wire.MoveOffer) Confirmation {
			if worker == who {
				return c
			}
			return Accept()
		}
	}
	for _, c := range []struct {
		name string
		say  func(string, *wire.MoveOffer) Confirmation
		want wire.Code
	}{
		{"accepted", objects("", Accept()), wire.Code_OK},
		{"source rejects", objects("n1", Reject("in a call")), wire.Code_MOVE_REJECTED},
		{"target rejects", objects("n2", Reject("no licence")), wire.Code_MOVE_REJECTED},
		{"target defers for too long", objects("n2", Defer("full", time.Minute)), wire.Code_MOVE_DEFERRED},
		{"source defers for ever", objects("n1", Defer("busy", time.Second)), wire.Code_MOVE_DEFERRED},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "n1", "n2")
				w.open("s", "n1", true)
				w.say = c.say
				d, end := w.director()
				defer end()
				rep, err := d.Migrate(t.Context(), request("s", "n2"))
				if wire.CodeOf(err) != c.want || (rep.State == Failed) != (err != nil) || (len(w.history(1)) == 0) != (err != nil) {
					t.Errorf("ended %+v with %v", rep, err)
				}
			})
		})
	}
}

func TestDeferralEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.open("s", "n1", true)
		w.say = func(string, *wire.MoveOffer) Confirmation {
			if w.Now() < 5*time.Second {
				return Defer("in the middle of something", 2*time.Second)
			}
			return Accept()
		}
		d, end := w.director()
		defer end()
		done := make(chan error, 1)
		go func() {
			_, err := d.Migrate(t.Context(), request("s", "n2"))
			done <- err
		}()
		time.Sleep(time.Second)
		if a := d.Active(); len(a) != 1 || a[0].State != WaitingConfirmation || a[0].Why == "" {
			t.Errorf("active %+v", a)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Nobody is asked in an emergency, nor where the policy says so.
func TestAutoConfirm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.open("s", "n1", false)
		w.open("t", "n1", false)
		w.say = func(string, *wire.MoveOffer) Confirmation { return Reject("never") }
		d, end := w.director(func(c *DirectorConfig) {
			c.AutoConfirm = func(r Request) bool { return autoConfirm(r) || r.By == "root" }
		})
		defer end()
		for id, change := range map[string]func(*Request){
			"s": func(r *Request) { r.Reason = wire.Reason_REASON_EMERGENCY }, "t": func(r *Request) { r.By = "root" },
		} {
			req := request(id, "n2")
			change(&req)
			if _, err := d.Migrate(t.Context(), req); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
	})
}

// An overloaded target is passed over by a drain, which does not wait for it;
// what the source puts off waits for its time and holds up nothing else.
func TestDrainWithDeferrals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions = 100
		w := drainWorld(t, sessions)
		var asked atomic.Int64
		w.say = func(worker string, o *wire.MoveOffer) Confirmation {
			switch {
			case worker == "n3":
				return Defer("overloaded", time.Hour)
			case worker == "n1" && o.GetSession() == "s0007":
				asked.Add(1)
				if w.Now() < 20*time.Second {
					return Defer("in a call", 10*time.Second)
				}
			}
			return Accept()
		}
		_, end := w.director()
		defer end()
		j := w.startDrain("n1")
		time.Sleep(10 * time.Second)
		if n := w.owned()["n1"]; n != 1 {
			t.Errorf("%d left", n)
		}
		w.expect(w.over(j.GetId()), jobDone, sessions)
		if got := w.owned()["n2"]; got != sessions || asked.Load() > 8 {
			t.Errorf("n2 has %d; asked %d times", got, asked.Load())
		}
	})
}

// One call to each side for many moves.
func TestConfirmIsBatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		for i := range 64 {
			w.open(fmt.Sprint("s", i), "n1", false)
		}
		_, end := w.director(func(c *DirectorConfig) { c.DrainConcurrency = 64 })
		defer end()
		w.over(w.startDrain("n1").GetId())
		if n, batches := w.proposed(isBegin); n != 64 || len(batches) != 1 {
			t.Errorf("%d Begins in %d proposals", n, len(batches))
		}
	})
}
