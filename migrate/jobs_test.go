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

func (w *world) startDrain(worker string, change ...func(*wire.StartJob)) *wire.Job {
	w.t.Helper()
	c := &wire.StartJob{
		Nonce: fmt.Append(nil, "drain", worker, w.at()), Kind: wire.JobKind_JOB_KIND_DRAIN, Worker: worker, By: "test",
	}
	for _, f := range change {
		f(c)
	}
	return w.must(&wire.Command{Kind: &wire.Command_StartJob{StartJob: c}})[0].GetJob()
}

// at is the log's last index.
func (w *world) at() (index uint64) {
	w.view(func(s *store.Store) { index = s.Index() })
	return index
}

func (w *world) startRebalance(plan Rebalance) *wire.Job {
	w.t.Helper()
	return w.must(plan.Start(&wire.StartJob{Nonce: fmt.Append(nil, "rebalance", w.at()), By: "test"}))[0].GetJob()
}

func (w *world) job(id uint64) (j *wire.Job) {
	w.view(func(s *store.Store) { j = s.Job(id) })
	return j
}

// over waits for a job's end.
func (w *world) over(id uint64) *wire.Job {
	w.t.Helper()
	for range 36000 {
		if j := w.job(id); j.GetState() > wire.JobState_JOB_STATE_PAUSED {
			w.quiet()
			return w.job(id)
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.t.Fatalf("no end: %v", w.job(id))
	return nil
}

func (w *world) expect(j *wire.Job, state wire.JobState, moved uint64) {
	w.t.Helper()
	if j.GetState() != state || j.GetMoved() != moved {
		w.t.Errorf("job ended %v, want %v with %d moved", j, state, moved)
	}
}

const (
	jobDone      = wire.JobState_JOB_STATE_DONE
	jobFailed    = wire.JobState_JOB_STATE_FAILED
	jobCancelled = wire.JobState_JOB_STATE_CANCELLED
)

func updateJob(id uint64, state wire.JobState) *wire.Command {
	return &wire.Command{Kind: &wire.Command_UpdateJob{UpdateJob: &wire.UpdateJob{Job: id, State: state, By: "test"}}}
}

func TestDrainJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions = 300
		w := drainWorld(t, sessions)
		_, end := w.director()
		defer end()
		j := w.over(w.startDrain("n1").GetId())
		w.expect(j, jobDone, sessions)
		if j.GetPlanned() != sessions || j.GetAborted() != 0 || j.GetFailed() != 0 || wire.PauseQuantile(j, 0.5) == 0 || j.GetPauseMaxUs() != 2100 {
			t.Errorf("job %v", j)
		}
		_, batches := w.proposed(isBegin)
		if len(batches) > sessions/8 {
			t.Errorf("%d entries for %d Begins", len(batches), sessions)
		}
		if m := w.history(1)[0]; m.GetJob() != j.GetId() {
			t.Errorf("migration %v", m)
		}
	})
}

// The leader dies twice in mid-drain: the figures are those of the log, and only
// the duration changes.
func TestJobSurvivesDirectors(t *testing.T) {
	for _, kind := range []string{"drain", "rebalance"} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const sessions = 400
				w := drainWorld(t, sessions)
				var j *wire.Job
				goal := 0
				if kind == "drain" {
					j = w.startDrain("n1")
				} else {
					plan := PlanRebalance(w.st, w.alive, RebalanceOptions{})
					j, goal = w.startRebalance(plan), plan.After["n1"]
				}
				moves := sessions - goal
				for i := range 2 {
					_, end := w.director(func(c *DirectorConfig) { c.DrainConcurrency = 8 })
					for w.owned()["n1"] > goal+moves*(2-i)/3 {
						time.Sleep(time.Millisecond)
					}
					end()
					if w.job(j.GetId()).GetState() != wire.JobState_JOB_STATE_RUNNING {
						t.Fatal("it was over before anyone died")
					}
				}
				_, end := w.director()
				defer end()
				j = w.over(j.GetId())
				w.expect(j, jobDone, uint64(moves))
				if n := w.owned()["n1"]; n != goal || j.GetFailed() != 0 {
					t.Errorf("n1 has %d, want %d; job %v", n, goal, j)
				}
				aborted := uint64(0)
				for _, m := range w.history(10 * sessions) {
					if m.GetPhase() == wire.Phase_PHASE_ABORTED {
						aborted++
					}
				}
				if j.GetAborted() != aborted {
					t.Errorf("%d aborted, the job says %d", aborted, j.GetAborted())
				}
			})
		})
	}
}

// The target dies in mid-drain: what it got is given on, and the drain ends.
func TestDrainJobTargetDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions = 200
		w := drainWorld(t, sessions)
		_, end := w.director(func(c *DirectorConfig) { c.Call = &deadWorker{world: w, id: "n3"} })
		defer end()
		j := w.startDrain("n1")
		for w.owned()["n3"] < 20 {
			time.Sleep(time.Millisecond)
		}
		w.hear("n3", false)
		j = w.over(j.GetId())
		w.drained("n3") // once it is fenced
		if got := w.owned(); got["n2"] != sessions || got["n1"]+got["n3"] != 0 {
			t.Errorf("left: %v", got)
		}
		if j.GetState() != jobDone {
			t.Errorf("job %v", j)
		}
	})
}

// deadWorker answers nothing once gossip calls it dead.
type deadWorker struct {
	*world
	id string
}

func (d *deadWorker) Prepare(ctx context.Context, to *wire.WorkerRow, req *wire.PrepareReq) error {
	if up, _ := d.alive(d.id); to.GetId() == d.id && !up {
		return hang(ctx)
	}
	return d.world.Prepare(ctx, to, req)
}

func (d *deadWorker) Confirm(ctx context.Context, to *wire.WorkerRow, req *wire.ConfirmReq) (*wire.ConfirmResp, error) {
	if up, _ := d.alive(d.id); to.GetId() == d.id && !up {
		return nil, hang(ctx)
	}
	return d.world.Confirm(ctx, to, req)
}

// A drain is called off in the middle and started again.
func TestDrainJobCancelledAndRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions = 300
		w := drainWorld(t, sessions)
		_, end := w.director(func(c *DirectorConfig) { c.DrainConcurrency = 4 })
		defer end()
		first := w.startDrain("n1")
		for w.owned()["n1"] > sessions/2 {
			time.Sleep(time.Millisecond)
		}
		w.must(stateCommand("n1", wire.WorkerState_WORKER_STATE_ACTIVE))
		first = w.over(first.GetId())
		left := w.owned()["n1"]
		w.expect(first, jobCancelled, uint64(sessions-left))
		time.Sleep(time.Minute)
		if n := w.owned()["n1"]; n != left || left < sessions/2-10 {
			t.Errorf("%d were left, now %d", left, n)
		}
		second := w.over(w.startDrain("n1").GetId())
		w.expect(second, jobDone, uint64(left))
	})
}

func TestJobPaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := drainWorld(t, 200)
		d, end := w.director(func(c *DirectorConfig) { c.DrainConcurrency = 4 })
		defer end()
		j := w.startDrain("n1")
		for w.owned()["n1"] > 100 {
			time.Sleep(time.Millisecond)
		}
		w.must(updateJob(j.GetId(), wire.JobState_JOB_STATE_PAUSED))
		time.Sleep(time.Second)
		before := w.owned()["n1"]
		time.Sleep(time.Minute)
		if n := w.owned()["n1"]; n != before || n == 0 {
			t.Errorf("paused at %d, now %d", before, n)
		}
		if st := d.Jobs(); len(st) != 1 || st[0].Job != j.GetId() || wire.CodeOf(st[0].Wait) != wire.Code_JOB_PAUSED {
			t.Errorf("status %+v", st)
		}
		w.must(updateJob(j.GetId(), wire.JobState_JOB_STATE_RUNNING))
		w.expect(w.over(j.GetId()), jobDone, 200)
	})
}

// A dry run shows what is done, session by session.
func TestRebalanceIsItsDryRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		for i := range 120 {
			w.open(fmt.Sprintf("s%03d", i), "n1", i%2 == 0)
		}
		d, end := w.director()
		defer end()
		dry := d.PlanRebalance(RebalanceOptions{MovesMax: 50})
		before := map[string]string{}
		for i := range 120 {
			id := fmt.Sprintf("s%03d", i)
			before[id] = w.row(id).GetOwner().GetWorker()
		}
		j := w.over(w.startRebalance(d.PlanRebalance(RebalanceOptions{MovesMax: 50})).GetId())
		w.expect(j, jobDone, 50)
		for _, m := range dry.Moves {
			before[m.Session] = m.To.GetWorker()
		}
		for id, want := range before {
			if got := w.row(id).GetOwner().GetWorker(); got != want {
				t.Errorf("%s is on %s, the dry run said %s", id, got, want)
			}
		}
		got := w.owned()
		for id, n := range dry.After {
			if got[id] != n {
				t.Errorf("%s has %d, the dry run said %d", id, got[id], n)
			}
		}
		if plan := d.PlanRebalance(RebalanceOptions{}); len(plan.Moves) != 30 {
			t.Errorf("%d moves are left", len(plan.Moves))
		}
	})
}

// A plan holds for the epochs that it names: what moved since stays, and a target
// that went away is not replaced behind the operator's back.
func TestRebalanceOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		for i := range 30 {
			w.open(fmt.Sprintf("s%02d", i), "n1", false)
		}
		d, end := w.director()
		defer end()
		plan := d.PlanRebalance(RebalanceOptions{})
		toN2 := 0
		for _, m := range plan.Moves[1:] {
			if m.To.GetWorker() == "n2" {
				toN2++
			}
		}
		other := map[string]string{"n2": "n3", "n3": "n2"}[plan.Moves[0].To.GetWorker()]
		if _, err := d.Migrate(t.Context(), request(plan.Moves[0].Session, other)); err != nil {
			t.Fatal(err)
		}
		w.must(stateCommand("n3", wire.WorkerState_WORKER_STATE_DRAINING))
		j := w.over(w.startRebalance(plan).GetId())
		w.expect(j, jobDone, uint64(toN2))
		if int(j.GetFailed()) != len(plan.Moves)-1-toN2 || j.GetReason() == "" {
			t.Errorf("job %v", j)
		}
	})
}

// The budget is kept by slowing down: pauses grow with the number of handovers
// at once, and p99 of what the log has on record stays within.
func TestJobKeepsPauseBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions, budget = 2000, 20 * time.Millisecond
		w := drainWorld(t, sessions)
		most := 0
		w.pause = func(n int) time.Duration {
			most = max(most, n)
			return 2*time.Millisecond + time.Duration(n)*2*time.Millisecond + time.Duration(w.index%7)*300*time.Microsecond
		}
		var ends []func()
		for i := range 2 { // the second takes over in the middle, and starts carefully
			_, end := w.director(func(c *DirectorConfig) { c.DrainConcurrency = 64 })
			if i == 0 {
				w.startDrain("n1", func(c *wire.StartJob) { c.Pace = &wire.Pace{MaxPauseUs: uint64(budget / time.Microsecond)} })
				for w.owned()["n1"] > sessions/2 {
					time.Sleep(10 * time.Millisecond)
				}
				end()
				continue
			}
			ends = append(ends, end)
		}
		var id uint64
		w.view(func(s *store.Store) { id = s.Jobs(1)[0].GetId() })
		j := w.over(id)
		w.expect(j, jobDone, sessions)
		if p99 := wire.PauseQuantile(j, 0.99); p99 > uint64(budget/time.Microsecond) {
			t.Errorf("p99 %d µs, budget %v", p99, budget)
		}
		if most < 3 {
			t.Errorf("at most %d at once: the budget was not used", most)
		}
		for _, end := range ends {
			end()
		}
	})
}

// A budget that no move keeps does not stop the drain.
func TestJobWithImpossibleBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions = 60
		w := drainWorld(t, sessions)
		w.pause = func(int) time.Duration { return 30 * time.Millisecond }
		_, end := w.director()
		defer end()
		j := w.startDrain("n1", func(c *wire.StartJob) { c.Pace = &wire.Pace{MaxPauseUs: 1000} })
		w.expect(w.over(j.GetId()), jobDone, sessions)
	})
}

func TestJobRateAndConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := drainWorld(t, 300)
		most := w.watchMoves()
		_, end := w.director()
		defer end()
		j := w.startDrain("n1", func(c *wire.StartJob) { c.Pace = &wire.Pace{Rate: 20, Concurrency: 3} })
		time.Sleep(5 * time.Second)
		if moved := w.job(j.GetId()).GetMoved(); moved < 90 || moved > 105 {
			t.Errorf("%d moved in 5 s at 20 a second", moved)
		}
		w.must(&wire.Command{Kind: &wire.Command_UpdateJob{UpdateJob: &wire.UpdateJob{Job: j.GetId(), Pace: &wire.Pace{Concurrency: 3}}}})
		w.expect(w.over(j.GetId()), jobDone, 300)
		if most() > 3 {
			t.Errorf("%d at once", most())
		}
	})
}

// Its time over, a drain fails with a reason; the node keeps what is left and is
// not drained again by itself.
func TestJobDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := drainWorld(t, 300)
		_, end := w.director()
		defer end()
		j := w.over(w.startDrain("n1", func(c *wire.StartJob) {
			c.Pace, c.DeadlineUs = &wire.Pace{Rate: 10}, w.nowUS()+10e6
		}).GetId())
		left := w.owned()["n1"]
		w.expect(j, jobFailed, uint64(300-left))
		if j.GetCode() != wire.Code_DEADLINE_PASSED || int(j.GetFailed()) < left || left < 150 {
			t.Errorf("%d left, job %v", left, j)
		}
		time.Sleep(time.Minute)
		if n := w.owned()["n1"]; n != left || w.worker("n1").GetState() != wire.WorkerState_WORKER_STATE_DRAINING {
			t.Errorf("%d left, later %d", left, n)
		}
	})
}
