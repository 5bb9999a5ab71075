package store

import (
	"bytes"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// The twin's jobs.

const (
	running = wire.JobState_JOB_STATE_RUNNING
	paused  = wire.JobState_JOB_STATE_PAUSED
)

func isOpen(j *wire.Job) bool { return j.GetState() == running || j.GetState() == paused }

// withJob answers with a job as lists show it.
func withJob(c wire.Code, j *wire.Job) *wire.Result {
	j = proto.Clone(j).(*wire.Job)
	j.Plan, j.Targets = nil, nil
	return &wire.Result{Code: c, Job: j}
}

func (w *twin) startJob(c *wire.StartJob) *wire.Result {
	openJobs := 0
	for _, j := range w.jobs {
		if bytes.Equal(j.Nonce, c.Nonce) {
			res := withJob(wire.Code_OK, j)
			res.Duplicate = true
			return res
		}
		if isOpen(j) {
			openJobs++
		}
	}
	j := &wire.Job{
		Id: w.cluster.Position, Nonce: c.Nonce, Kind: c.Kind, State: running, Worker: c.Worker, Priority: c.Priority,
		Pace:       &wire.Pace{MaxPauseUs: c.Pace.GetMaxPauseUs(), Rate: c.Pace.GetRate(), Concurrency: c.Pace.GetConcurrency()},
		DeadlineUs: c.DeadlineUs, Placement: c.Placement, By: c.By, BegunUs: w.cluster.TimeUs, WallUs: w.wall,
	}
	if j.Priority == 0 {
		j.Priority = 3
	}
	if c.ConfirmByUs != 0 {
		j.State, j.ConfirmByUs = paused, c.ConfirmByUs
	}
	switch {
	case j.Priority > 5:
		return code(wire.Code_BAD_REQUEST)
	case c.DeadlineUs != 0 && c.DeadlineUs <= w.cluster.TimeUs, c.ConfirmByUs != 0 && c.ConfirmByUs <= w.cluster.TimeUs:
		return code(wire.Code_DEADLINE_PASSED)
	case openJobs >= wire.JobsOpenMax:
		return code(wire.Code_TOO_MANY)
	}
	var refused *wire.Result
	switch c.Kind {
	case wire.JobKind_JOB_KIND_DRAIN:
		refused = w.startDrain(j, c)
	case wire.JobKind_JOB_KIND_REBALANCE:
		refused = w.startRebalance(j, c)
	default:
		refused = code(wire.Code_BAD_REQUEST)
	}
	if refused != nil {
		return refused
	}
	w.jobs[j.Id] = j
	return withJob(wire.Code_OK, j)
}

func (w *twin) startDrain(j *wire.Job, c *wire.StartJob) *wire.Result {
	r := w.workers[c.Worker]
	others := 0
	for id, o := range w.workers {
		if id != c.Worker && o.State == wire.WorkerState_WORKER_STATE_ACTIVE {
			others++
		}
	}
	switch {
	case r == nil:
		return code(wire.Code_UNKNOWN_WORKER)
	case c.Incarnation != 0 && c.Incarnation != r.Incarnation:
		return &wire.Result{Code: wire.Code_STALE_INCARNATION, Current: r.Incarnation}
	case r.State == wire.WorkerState_WORKER_STATE_FENCED:
		return code(wire.Code_WORKER_FENCED)
	case isOpen(w.jobs[r.Job]):
		return withJob(wire.Code_JOB_ACTIVE, w.jobs[r.Job])
	case others == 0:
		return code(wire.Code_NO_TARGET)
	}
	r.UntilRegister = c.UntilRegister && (r.UntilRegister || r.State == wire.WorkerState_WORKER_STATE_ACTIVE)
	r.State, r.Reason, r.Job = wire.WorkerState_WORKER_STATE_DRAINING, c.By, j.Id
	j.Planned = w.owns(r.Id)
	return nil
}

func (w *twin) owns(worker string) (n uint64) {
	for _, r := range w.sessions {
		if r.Owner.GetWorker() == worker {
			n++
		}
	}
	return n
}

func (w *twin) startRebalance(j *wire.Job, c *wire.StartJob) *wire.Result {
	if len(c.Plan) == 0 || c.Worker != "" || c.UntilRegister {
		return code(wire.Code_BAD_REQUEST)
	}
	for i, m := range c.Plan {
		if int(m.To) >= len(c.Targets) || i > 0 && c.Plan[i-1].Session >= m.Session {
			return code(wire.Code_BAD_REQUEST)
		}
	}
	for _, o := range w.jobs {
		if isOpen(o) && o.Kind == j.Kind {
			return withJob(wire.Code_JOB_ACTIVE, o)
		}
	}
	j.Plan, j.Targets, j.Planned = c.Plan, c.Targets, uint64(len(c.Plan))
	return nil
}

func (w *twin) updateJob(c *wire.UpdateJob) *wire.Result {
	j := w.jobs[c.Job]
	switch {
	case j == nil:
		return code(wire.Code_UNKNOWN_JOB)
	case !isOpen(j):
		return withJob(wire.Code_JOB_ENDED, j)
	case c.Confirm && j.ConfirmByUs != 0 && j.ConfirmByUs <= w.cluster.TimeUs:
		return withJob(wire.Code_CONFIRMATION_EXPIRED, j)
	case c.State > paused:
		return withJob(wire.Code_BAD_REQUEST, j)
	case !c.Confirm && j.ConfirmByUs != 0 && c.State == running:
		return withJob(wire.Code_CONFIRMATION_NEEDED, j)
	case c.DeadlineUs != 0 && c.DeadlineUs <= w.cluster.TimeUs:
		return withJob(wire.Code_DEADLINE_PASSED, j)
	}
	old := proto.Clone(j)
	if c.Confirm && j.ConfirmByUs != 0 {
		j.State, j.ConfirmByUs, j.ConfirmedBy = running, 0, c.By
	}
	if c.State != 0 {
		j.State = c.State
	}
	if c.Pace != nil {
		j.Pace = c.Pace
	}
	if c.DeadlineUs != 0 {
		j.DeadlineUs = c.DeadlineUs
	}
	if proto.Equal(old, j) {
		res := withJob(wire.Code_OK, j)
		res.Duplicate = true
		return res
	}
	j.Reason = c.By
	return withJob(wire.Code_OK, j)
}

func (w *twin) endJob(c *wire.EndJob) *wire.Result {
	j := w.jobs[c.Job]
	drain := j.GetKind() == wire.JobKind_JOB_KIND_DRAIN
	switch {
	case j == nil:
		return code(wire.Code_UNKNOWN_JOB)
	case !isOpen(j) && j.State == c.State:
		res := withJob(wire.Code_OK, j)
		res.Duplicate = true
		return res
	case !isOpen(j):
		return withJob(wire.Code_JOB_ENDED, j)
	case c.State <= paused:
		return withJob(wire.Code_BAD_REQUEST, j)
	case c.State == wire.JobState_JOB_STATE_DONE && drain && w.owns(j.Worker) > 0:
		return withJob(wire.Code_JOB_NOT_DONE, j)
	}
	if r := w.workers[j.Worker]; c.Undrain && drain && r.State == wire.WorkerState_WORKER_STATE_DRAINING {
		r.State, r.UntilRegister, r.Job, r.Reason = wire.WorkerState_WORKER_STATE_ACTIVE, false, 0, c.Reason
	} else if c.Undrain && drain && r.State == wire.WorkerState_WORKER_STATE_FENCED && r.Job == j.Id {
		r.UntilRegister, r.Job = true, 0
	}
	w.over(j, c.State, c.Code, c.Reason, c.Failed)
	return withJob(wire.Code_OK, j)
}

func (w *twin) over(j *wire.Job, state wire.JobState, why wire.Code, reason string, failed uint64) {
	j.State, j.Code, j.Reason, j.Failed, j.EndedUs = state, why, reason, failed, w.cluster.TimeUs
	j.Plan, j.Targets, j.ConfirmByUs = nil, nil, 0
}

// drainOver is for a worker that becomes active.
func (w *twin) drainOver(r *wire.WorkerRow, why string) {
	if j := w.jobs[r.GetJob()]; isOpen(j) {
		w.over(j, wire.JobState_JOB_STATE_CANCELLED, wire.Code_OK, why, 0)
	}
}

func (w *twin) mayBegin(c *wire.BeginMigration) wire.Code {
	j := w.jobs[c.Job]
	switch {
	case j == nil:
		return wire.Code_UNKNOWN_JOB
	case !isOpen(j):
		return wire.Code_JOB_ENDED
	case j.State == paused:
		return wire.Code_JOB_PAUSED
	case j.DeadlineUs != 0 && j.DeadlineUs <= w.cluster.TimeUs:
		return wire.Code_DEADLINE_PASSED
	case j.Kind == wire.JobKind_JOB_KIND_DRAIN && j.Worker != c.Source.Worker:
		return wire.Code_SOURCE_STALE
	}
	return wire.Code_OK
}

func (w *twin) paused(j *wire.Job, us uint64) {
	if j == nil || us == 0 {
		return
	}
	j.PauseMaxUs = max(j.PauseMaxUs, us)
	for _, b := range j.Pauses {
		if b.Index == wire.PauseIndex(us) {
			b.Count++
			return
		}
	}
	j.Pauses = append(j.Pauses, &wire.PauseBucket{Index: wire.PauseIndex(us), Count: 1})
	slices.SortFunc(j.Pauses, func(a, b *wire.PauseBucket) int { return int(a.Index) - int(b.Index) })
}
