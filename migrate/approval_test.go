package migrate

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

const adminRequest = wire.Reason_REASON_ADMIN_REQUEST

func TestApprovalRules(t *testing.T) {
	a, err := NewApproval([]string{"auto by=ci-*", "manual reason=admin_request|load_balancing priority=2-4", "manual by=bob"}, 0)
	if err != nil || a.Within != ApprovalDefault {
		t.Fatal(a, err)
	}
	for _, c := range []struct {
		reason   wire.Reason
		priority uint32
		by       string
		want     bool
	}{
		{adminRequest, 3, "operator", true},
		{adminRequest, 0, "operator", true}, // the default priority
		{adminRequest, 1, "operator", false},
		{adminRequest, 5, "operator", false},
		{adminRequest, 3, "ci-7", false}, // the first that fits decides
		{wire.Reason_REASON_USER_REQUESTED, 3, "operator", false},
		{wire.Reason_REASON_USER_REQUESTED, 3, "bob", true},
		{wire.Reason_REASON_USER_REQUESTED, 3, "bobby", false},
		{wire.Reason_REASON_EMERGENCY, 3, "bob", false},
	} {
		if got := a.Asks(c.reason, c.priority, c.by); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	for _, bad := range []string{
		"", "perhaps", "manual reason=whim", "manual reason", "manual priority=0", "manual priority=4-2", "manual priority=6",
		"manual priority=1-9", "manual colour=red", "auto by=",
	} {
		if _, err := ParseRule(bad); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
			t.Errorf("rule %q: %v", bad, err)
		}
	}
	for _, within := range []time.Duration{-1, time.Millisecond, time.Hour} {
		if _, err := NewApproval(nil, within); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
			t.Errorf("within %v: %v", within, err)
		}
	}
}

func FuzzParseRule(f *testing.F) {
	f.Add("manual reason=admin_request|emergency priority=1-3 by=a*")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRule(text)
		if err == nil && (r.To > PriorityMax || r.From > r.To) {
			t.Errorf("%q: %+v", text, r)
		}
	})
}

// moved is what became of a move, once it has.
type moved struct {
	rep Report
	err error
}

// manualWorld has a session on n1, and a director that asks an operator about
// every move.
func manualWorld(t *testing.T) (*world, *Director, func()) {
	w := newWorld(t, "n1", "n2", "n3")
	w.open("s", "n1", true)
	d, end := w.director(func(c *DirectorConfig) {
		c.Approval = Approval{Rules: []Rule{{Manual: true}}, Within: time.Minute}
	})
	return w, d, end
}

func ask(ctx context.Context, d *Director) chan moved {
	ch := make(chan moved, 1)
	go func() {
		rep, err := d.Migrate(ctx, Request{
			Session: "s", Target: "n2", Reason: adminRequest, By: "me",
			Metadata: []*wire.Label{{Key: "ticket", Value: "7"}},
		})
		ch <- moved{rep, err}
	}()
	synctest.Wait()
	return ch
}

// waits is the move that waits for an operator, as `migrations` shows it.
func waits(t *testing.T, d *Director) Report {
	t.Helper()
	all := d.Active()
	if len(all) != 1 || all[0].State != WaitingConfirmation || all[0].Migration != 0 || all[0].Request == 0 || all[0].ExpiresUS == 0 {
		t.Fatalf("under way: %+v", all)
	}
	return all[0]
}

func TestOperatorConfirms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d, end := manualWorld(t)
		defer end()
		ch := ask(t.Context(), d)
		time.Sleep(30 * time.Second) // longer than the move itself may take
		rep := waits(t, d)
		if _, batches := w.proposed(isBegin); len(batches) > 0 {
			t.Fatal("the move began before it was confirmed")
		}
		if _, err := d.Decide(t.Context(), Decision{Request: rep.Request + 1, By: "op"}); wire.CodeOf(err) != wire.Code_UNKNOWN_REQUEST {
			t.Errorf("another request: %v", err)
		}
		decided, err := d.Decide(t.Context(), Decision{Request: rep.Request, By: "op"})
		m := <-ch
		if err != nil || m.err != nil || decided.State != Completed || m.rep.State != Completed || w.row("s").GetOwner().GetWorker() != "n2" {
			t.Fatalf("confirmed: %+v, %v; %+v", decided, err, m)
		}
		mig := w.history(1)[0]
		if mig.GetConfirmedBy() != "op" || mig.GetBy() != "me" || len(mig.GetMetadata()) != 1 || mig.GetMetadata()[0].GetValue() != "7" {
			t.Errorf("on record: %v", mig)
		}
		if _, err := d.Decide(t.Context(), Decision{Request: rep.Request, By: "op"}); wire.CodeOf(err) != wire.Code_UNKNOWN_REQUEST {
			t.Errorf("confirmed twice: %v", err)
		}
	})
}

func TestOperatorRejects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d, end := manualWorld(t)
		defer end()
		ch := ask(t.Context(), d)
		if _, err := d.Decide(t.Context(), Decision{Request: waits(t, d).Request, Confirmation: Reject("not today"), By: "op"}); err != nil {
			t.Fatal(err)
		}
		if m := <-ch; m.rep.State != Failed || wire.CodeOf(m.err) != wire.Code_MOVE_REJECTED {
			t.Errorf("rejected: %+v", m)
		}
		if w.row("s").GetOwner().GetWorker() != "n1" || len(d.Active()) > 0 {
			t.Error("the session moved, or the request is still there")
		}
	})
}

func TestConfirmationExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, d, end := manualWorld(t)
		defer end()
		ch := ask(t.Context(), d)
		time.Sleep(59 * time.Second)
		rep := waits(t, d)
		// Put off for a while, it waits for that and another minute.
		got, err := d.Decide(t.Context(), Decision{Request: rep.Request, Confirmation: Defer("later", time.Minute), By: "op"})
		if err != nil || got.State != WaitingConfirmation || got.Why == "" {
			t.Fatalf("%+v, %v", got, err)
		}
		time.Sleep(119 * time.Second)
		waits(t, d)
		time.Sleep(2 * time.Second)
		if m := <-ch; m.rep.State != Failed || wire.CodeOf(m.err) != wire.Code_CONFIRMATION_EXPIRED {
			t.Errorf("expired: %+v", m)
		}
	})
}

// A request lives beside its caller: it ends with the caller's patience, and with
// the director, whose successor knows nothing of it.
func TestRequestsAreNotOrphaned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d, end := manualWorld(t)
		ctx, cancel := context.WithCancel(t.Context())
		ch := ask(ctx, d)
		waits(t, d)
		cancel()
		if m := <-ch; wire.CodeOf(m.err) == wire.Code_OK {
			t.Errorf("withdrawn: %+v", m)
		}
		synctest.Wait()
		if len(d.Active()) > 0 {
			t.Errorf("nobody wants it any more: %+v", d.Active())
		}
		ch = ask(t.Context(), d)
		waits(t, d)
		end()
		if m := <-ch; !wire.CodeOf(m.err).Retryable() {
			t.Errorf("the director stopped: %+v", m)
		}
		if w.row("s").GetOwner().GetWorker() != "n1" {
			t.Error("it moved")
		}
	})
}

// A drain waits for nobody's confirmation of a single move.
func TestDrainSupersedesWaitingMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d, end := manualWorld(t)
		defer end()
		ch := ask(t.Context(), d)
		waits(t, d)
		w.expect(w.over(w.startDrain("n1").GetId()), jobDone, 1)
		if m := <-ch; wire.CodeOf(m.err) != wire.Code_MOVE_REJECTED {
			t.Errorf("superseded: %+v", m)
		}
	})
}

// A drain whose own time runs out before an operator has confirmed it leaves its node as
// it was, too.
func TestDrainThatEndsUnconfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.open("s", "n1", true)
		_, end := w.director()
		defer end()
		res := w.must(&wire.Command{Kind: &wire.Command_StartJob{StartJob: &wire.StartJob{
			Nonce: []byte("nonce"), Kind: wire.JobKind_JOB_KIND_DRAIN, Worker: "n1", By: "me",
			ConfirmByUs: w.nowUS() + 60e6, DeadlineUs: w.nowUS() + 10e6,
		}}})
		j := w.over(res[0].GetJob().GetId())
		w.expect(j, jobFailed, 0)
		var state wire.WorkerState
		w.view(func(s *store.Store) { state = s.Worker("n1").GetState() })
		if j.GetCode() != wire.Code_DEADLINE_PASSED || state != wire.WorkerState_WORKER_STATE_ACTIVE {
			t.Errorf("%v; n1 is %v", j, state)
		}
	})
}

// A job that an operator is to confirm moves nothing before, survives its
// director, and ends if nobody does: the node then takes sessions again.
func TestJobsWaitForConfirmation(t *testing.T) {
	for _, confirmed := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "n1", "n2")
			w.open("s", "n1", true)
			_, end := w.director()
			res := w.must(&wire.Command{Kind: &wire.Command_StartJob{StartJob: &wire.StartJob{
				Nonce: []byte("nonce"), Kind: wire.JobKind_JOB_KIND_DRAIN, Worker: "n1", By: "me", ConfirmByUs: w.nowUS() + 60e6,
			}}})
			id := res[0].GetJob().GetId()
			time.Sleep(30 * time.Second)
			end()
			d, end := w.director()
			defer end()
			time.Sleep(10 * time.Second)
			if j := w.job(id); j.GetState() != wire.JobState_JOB_STATE_PAUSED || w.row("s").GetOwner().GetWorker() != "n1" {
				t.Fatalf("unconfirmed: %v", j)
			}
			if st := d.Jobs(); len(st) != 1 || wire.CodeOf(st[0].Wait) != wire.Code_CONFIRMATION_NEEDED {
				t.Errorf("%+v", st)
			}
			if confirmed {
				w.must(&wire.Command{Kind: &wire.Command_UpdateJob{UpdateJob: &wire.UpdateJob{Job: id, Confirm: true, By: "op"}}})
				j := w.over(id)
				w.expect(j, jobDone, 1)
				if j.GetConfirmedBy() != "op" {
					t.Errorf("%v", j)
				}
				return
			}
			j := w.over(id)
			w.expect(j, jobFailed, 0)
			var state wire.WorkerState
			w.view(func(s *store.Store) { state = s.Worker("n1").GetState() })
			if j.GetCode() != wire.Code_CONFIRMATION_EXPIRED || state != wire.WorkerState_WORKER_STATE_ACTIVE {
				t.Errorf("%v; n1 is %v", j, state)
			}
		})
	}
}
