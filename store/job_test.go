package store

import (
	"fmt"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

func startDrainCmd(worker, nonce string) *wire.Command {
	return &wire.Command{Kind: &wire.Command_StartJob{StartJob: &wire.StartJob{
		Nonce: []byte(nonce), Kind: wire.JobKind_JOB_KIND_DRAIN, Worker: worker, By: "operator",
		Pace: &wire.Pace{MaxPauseUs: 20_000, Rate: 100, Concurrency: 8},
	}}}
}

// rebalanceCmd plans to move sessions, which must be given by rising id.
func (h *harness) rebalanceCmd(nonce, to string, sessions ...string) *wire.Command {
	h.t.Helper()
	c := &wire.StartJob{
		Nonce: []byte(nonce), Kind: wire.JobKind_JOB_KIND_REBALANCE, Targets: []*wire.Owner{h.owner(to)}, By: "operator",
		DeadlineUs: h.time + 100*second, Placement: wire.Placement_PLACEMENT_LEAST_LOADED,
	}
	for _, id := range sessions {
		c.Plan = append(c.Plan, &wire.PlannedMove{Session: id, Epoch: h.row(id).Epoch})
	}
	return &wire.Command{Kind: &wire.Command_StartJob{StartJob: c}}
}

func updateJobCmd(id uint64, state wire.JobState) *wire.Command {
	return &wire.Command{Kind: &wire.Command_UpdateJob{UpdateJob: &wire.UpdateJob{Job: id, State: state, By: "operator"}}}
}

func endJobCmd(id uint64, state wire.JobState) *wire.Command {
	return &wire.Command{Kind: &wire.Command_EndJob{EndJob: &wire.EndJob{
		Job: id, State: state, Reason: "why", Failed: 2, Code: wire.Code_DEADLINE_PASSED,
	}}}
}

const (
	doneState      = wire.JobState_JOB_STATE_DONE
	failedState    = wire.JobState_JOB_STATE_FAILED
	cancelledState = wire.JobState_JOB_STATE_CANCELLED
)

// A drain and its worker's state are one: neither is without the other.
func TestStartDrain(t *testing.T) {
	h := newHarness(t)
	h.open("a", "w1")
	h.open("b", "w1")
	j := h.ok(startDrainCmd("w1", "n")).Job
	if j.State != running || j.Planned != 2 || j.Priority != wire.PriorityDefault || j.Pace.Rate != 100 {
		t.Fatalf("job %v", j)
	}
	w := h.s.Worker("w1")
	if w.State != wire.WorkerState_WORKER_STATE_DRAINING || w.Job != j.Id || w.UntilRegister {
		t.Fatalf("worker %v", w)
	}
	if again := h.duplicate(startDrainCmd("w1", "n")).Job; again.Id != j.Id {
		t.Fatalf("repeated: %v", again)
	}
	if other := h.refuse(wire.Code_JOB_ACTIVE, startDrainCmd("w1", "m")).Job; other.GetId() != j.Id {
		t.Fatalf("a second drain of it: %v", other)
	}
}

func TestStartDrainRefusals(t *testing.T) {
	h := newHarness(t)
	set := func(f func(*wire.StartJob)) *wire.Command {
		return with(startDrainCmd("w1", "n"), func(c *wire.Command) { f(c.GetStartJob()) })
	}
	h.tick(second)
	h.refuse(wire.Code_UNKNOWN_WORKER, startDrainCmd("nobody", "n"))
	h.refuse(wire.Code_BAD_REQUEST, set(func(c *wire.StartJob) { c.Nonce = nil }))
	h.refuse(wire.Code_BAD_REQUEST, set(func(c *wire.StartJob) { c.Kind = 0 }))
	h.refuse(wire.Code_BAD_REQUEST, set(func(c *wire.StartJob) { c.Priority = 6 }))
	h.refuse(wire.Code_BAD_REQUEST, set(func(c *wire.StartJob) { c.Placement = 99 }))
	h.refuse(wire.Code_BAD_REQUEST, set(func(c *wire.StartJob) { c.Targets = []*wire.Owner{h.owner("w2")} }))
	h.refuse(wire.Code_DEADLINE_PASSED, set(func(c *wire.StartJob) { c.DeadlineUs = second }))
	if res := h.refuse(wire.Code_STALE_INCARNATION, set(func(c *wire.StartJob) { c.Incarnation = 77 })); res.Current != h.owner("w1").Incarnation {
		t.Errorf("result %v", res)
	}
	h.ok(fenceCmd(h.owner("w1")))
	h.refuse(wire.Code_WORKER_FENCED, startDrainCmd("w1", "n"))
}

// Two nodes that would be drained towards each other: the second is told that
// there is nowhere to go, and stays as it was.
func TestDrainWithoutTarget(t *testing.T) {
	h := newHarness(t)
	h.ok(fenceCmd(h.owner("w3")))
	h.ok(startDrainCmd("w1", "1"))
	h.refuse(wire.Code_NO_TARGET, startDrainCmd("w2", "2"))
	if w := h.s.Worker("w2"); w.State != wire.WorkerState_WORKER_STATE_ACTIVE {
		t.Fatalf("worker %v", w)
	}
}

// A shutdown's drain ends with the restart; an operator's does not, and is not
// turned into the former by a shutdown on top of it.
func TestDrainUntilRegister(t *testing.T) {
	until := func(c *wire.Command) *wire.Command {
		c.GetStartJob().UntilRegister = true
		return c
	}
	restart := func(h *harness, nonce string) *wire.WorkerRow {
		h.register("w1", nonce, h.owner("w1").Incarnation)
		return h.s.Worker("w1")
	}
	h := newHarness(t)
	j := h.ok(until(startDrainCmd("w1", "shutdown"))).Job
	if w := restart(h, "r1"); w.State != wire.WorkerState_WORKER_STATE_ACTIVE || w.Job != 0 {
		t.Fatalf("worker %v", w)
	}
	if got := h.s.Job(j.Id); got.State != cancelledState {
		t.Fatalf("its drain %v", got)
	}
	j = h.ok(startDrainCmd("w1", "operator")).Job
	h.ok(endJobCmd(j.Id, doneState))
	h.ok(until(startDrainCmd("w1", "shutdown of a drained one")))
	if w := restart(h, "r2"); w.State != wire.WorkerState_WORKER_STATE_DRAINING || w.Job == 0 {
		t.Fatalf("worker %v", w)
	}
}

// Undraining cancels the drain in the same command; a fence does not.
func TestUndrainEndsDrain(t *testing.T) {
	h := newHarness(t)
	j := h.ok(startDrainCmd("w1", "n")).Job
	h.ok(fenceCmd(h.owner("w1")))
	if got := h.s.Job(j.Id); got.State != running {
		t.Fatalf("a fenced worker's drain %v", got)
	}
	h.register("w1", "again", h.owner("w1").Incarnation)
	if w := h.s.Worker("w1"); w.State != wire.WorkerState_WORKER_STATE_DRAINING || w.Job != j.Id {
		t.Fatalf("worker %v", w)
	}
	h.ok(stateCmd("w1", wire.WorkerState_WORKER_STATE_ACTIVE, false))
	if got := h.s.Job(j.Id); got.State != cancelledState || got.Reason != "undrained by operator" {
		t.Fatalf("job %v", got)
	}
	if w := h.s.Worker("w1"); w.Job != 0 {
		t.Fatalf("worker %v", w)
	}
}

func TestUpdateAndEndJob(t *testing.T) {
	h := newHarness(t)
	h.open("s", "w1")
	j := h.ok(startDrainCmd("w1", "n")).Job
	h.refuse(wire.Code_UNKNOWN_JOB, updateJobCmd(1, paused))
	h.refuse(wire.Code_UNKNOWN_JOB, endJobCmd(1, doneState))
	h.refuse(wire.Code_BAD_REQUEST, updateJobCmd(j.Id, doneState))
	h.refuse(wire.Code_BAD_REQUEST, endJobCmd(j.Id, paused))
	h.ok(updateJobCmd(j.Id, paused))
	h.duplicate(updateJobCmd(j.Id, paused))
	h.ok(updateJobCmd(j.Id, running))
	pace := &wire.Command{Kind: &wire.Command_UpdateJob{UpdateJob: &wire.UpdateJob{Job: j.Id, Pace: &wire.Pace{Rate: 3}, DeadlineUs: 9}}}
	if got := h.ok(pace).Job; got.Pace.Rate != 3 || got.Pace.MaxPauseUs != 0 || got.DeadlineUs != 9 || got.State != running {
		t.Fatalf("job %v", got)
	}
	if us, ok := h.s.NextDeadline(); !ok || us != 9 {
		t.Fatalf("next deadline %d", us)
	}
	// A director that lags behind thinks that the node is empty.
	h.refuse(wire.Code_JOB_NOT_DONE, endJobCmd(j.Id, doneState))
	if got := h.ok(endJobCmd(j.Id, failedState)).Job; got.Failed != 2 || got.Code != wire.Code_DEADLINE_PASSED || got.Reason != "why" {
		t.Fatalf("job %v", got)
	}
	h.duplicate(endJobCmd(j.Id, failedState))
	h.refuse(wire.Code_JOB_ENDED, endJobCmd(j.Id, cancelledState))
	h.refuse(wire.Code_JOB_ENDED, updateJobCmd(j.Id, paused))
	if w := h.s.Worker("w1"); w.State != wire.WorkerState_WORKER_STATE_DRAINING || w.Job != j.Id {
		t.Fatalf("a failed drain leaves its worker draining, not %v", w)
	}
	j = h.ok(startDrainCmd("w1", "once more")).Job
	h.ok(with(endJobCmd(j.Id, cancelledState), func(c *wire.Command) { c.GetEndJob().Undrain = true }))
	if w := h.s.Worker("w1"); w.State != wire.WorkerState_WORKER_STATE_ACTIVE || w.Job != 0 {
		t.Fatalf("worker %v", w)
	}
}

// A move of a job that is not running does not begin, whoever asks for it.
func TestBeginOfAJob(t *testing.T) {
	h := newHarness(t)
	h.open("s", "w1")
	h.open("other", "w2")
	of := func(job uint64, id string) *wire.Command {
		return with(h.beginCmd(id, "w3", fmt.Sprint(id, job, h.index)), func(c *wire.Command) { c.GetBegin().Job = job })
	}
	h.refuse(wire.Code_UNKNOWN_JOB, of(1, "s"))
	j := h.ok(startDrainCmd("w1", "n")).Job
	h.refuse(wire.Code_SOURCE_STALE, of(j.Id, "other"))
	h.ok(updateJobCmd(j.Id, paused))
	h.refuse(wire.Code_JOB_PAUSED, of(j.Id, "s"))
	h.ok(&wire.Command{Kind: &wire.Command_UpdateJob{UpdateJob: &wire.UpdateJob{Job: j.Id, State: running, DeadlineUs: h.time + second}}})
	m := h.ok(of(j.Id, "s")).Migration
	if m.Job != j.Id {
		t.Fatalf("migration %v", m)
	}
	h.ok(abortCmd(m.Id))
	h.tick(2 * second)
	h.refuse(wire.Code_DEADLINE_PASSED, of(j.Id, "s"))
	h.ok(endJobCmd(j.Id, cancelledState))
	h.refuse(wire.Code_JOB_ENDED, of(j.Id, "s"))
}

// The figures follow from the migrations alone, also past the job's end.
func TestJobFigures(t *testing.T) {
	h := newHarness(t)
	j := h.ok(startDrainCmd("w1", "n")).Job
	for i, pause := range []uint64{10, 3000, 3001, 0, 0} {
		id := fmt.Sprint("s", i)
		h.open(id, "w1")
		m := h.ok(with(h.beginCmd(id, "w2", id), func(c *wire.Command) { c.GetBegin().Job = j.Id })).Migration
		if i == 4 {
			h.ok(endJobCmd(j.Id, cancelledState))
			h.ok(h.closeCmd(id)) // ends the migration, too
			break
		}
		h.ok(h.pivotCmd(m))
		h.duplicate(h.pivotCmd(h.s.Migration(m.Id)))
		h.ok(endCmd(m.Id, pause))
		h.duplicate(endCmd(m.Id, pause))
	}
	got := h.s.Job(j.Id)
	if got.Moved != 4 || got.Aborted != 1 || got.PauseMaxUs != 3001 || wire.PauseQuantile(got, 1) != 3001 || len(got.Pauses) != 2 {
		t.Fatalf("job %v", got)
	}
}

func TestRebalanceJob(t *testing.T) {
	h := newHarness(t)
	for _, id := range []string{"a", "b"} {
		h.open(id, "w1")
	}
	set := func(f func(*wire.StartJob)) *wire.Command {
		return with(h.rebalanceCmd("n", "w2", "a", "b"), func(c *wire.Command) { f(c.GetStartJob()) })
	}
	h.refuse(wire.Code_BAD_REQUEST, set(func(c *wire.StartJob) { c.Plan = nil }))
	h.refuse(wire.Code_BAD_REQUEST, set(func(c *wire.StartJob) { c.Plan[1].To = 1 }))
	h.refuse(wire.Code_BAD_REQUEST, set(func(c *wire.StartJob) { c.Plan[1].Session = "a" }))
	h.refuse(wire.Code_BAD_REQUEST, set(func(c *wire.StartJob) { c.Plan[1].Session = "" }))
	h.refuse(wire.Code_BAD_REQUEST, set(func(c *wire.StartJob) { c.Worker = "w1" }))
	h.refuse(wire.Code_BAD_REQUEST, set(func(c *wire.StartJob) { c.Targets[0].Worker = "" }))
	j := h.ok(h.rebalanceCmd("n", "w2", "a", "b")).Job
	if j.Planned != 2 || j.Plan != nil || j.Placement != wire.Placement_PLACEMENT_LEAST_LOADED {
		t.Fatalf("job %v", j)
	}
	h.refuse(wire.Code_JOB_ACTIVE, h.rebalanceCmd("m", "w3", "a"))
	step, ok := h.s.PlanStep(j.Id, 1)
	if !ok || step.Session != "b" || step.Epoch != h.row("b").Epoch || step.To.Worker != "w2" {
		t.Fatalf("step %v", step)
	}
	if _, ok := h.s.PlanStep(j.Id, 2); ok {
		t.Fatal("a step past the end")
	}
	h.ok(endJobCmd(j.Id, doneState))
	if _, ok := h.s.PlanStep(j.Id, 0); ok {
		t.Fatal("an ended job keeps its plan")
	}
}

func TestJobsAreBounded(t *testing.T) {
	h := newHarness(t)
	for i := range wire.EndedJobsMax + 10 {
		j := h.ok(startDrainCmd("w1", fmt.Sprint(i))).Job
		h.ok(endJobCmd(j.Id, cancelledState))
	}
	if n := len(h.s.Jobs(1000)); n != wire.EndedJobsMax {
		t.Fatalf("%d jobs are remembered", n)
	}
	for i := range wire.JobsOpenMax + 1 {
		h.register(fmt.Sprint("x", i), "n", 0)
	}
	for i := range wire.JobsOpenMax {
		h.ok(startDrainCmd(fmt.Sprint("x", i), fmt.Sprint("open", i)))
	}
	h.refuse(wire.Code_TOO_MANY, startDrainCmd(fmt.Sprint("x", wire.JobsOpenMax), "one more"))
	if n := h.s.Counts().Jobs; n != wire.JobsOpenMax || len(h.s.OpenJobs()) != n {
		t.Fatalf("%d open jobs", n)
	}
}

// TestUndrainOfAFencedWorker: a drain that is called off while its worker is fenced does
// not go on when the worker is back.
func TestUndrainOfAFencedWorker(t *testing.T) {
	h := newHarness(t)
	j := h.ok(startDrainCmd("w1", "n")).Job
	h.ok(fenceCmd(h.owner("w1")))
	end := endJobCmd(j.Id, cancelledState)
	end.GetEndJob().Undrain = true
	h.ok(end)
	h.register("w1", "again", h.owner("w1").Incarnation)
	if w := h.s.Worker("w1"); w.State != wire.WorkerState_WORKER_STATE_ACTIVE || w.Job != 0 {
		t.Fatalf("worker %v", w)
	}
}
