package store

import "github.com/baton-cluster/baton/wire"

// summary is the row without its plan: what results and lists show.
func (j *job) summary() *wire.Job {
	p := &wire.Job{
		Id: j.id, Nonce: j.nonce, Kind: j.kind, State: j.state, Worker: j.worker, Priority: j.priority,
		Pace:       &wire.Pace{MaxPauseUs: j.pace.maxPauseUS, Rate: j.pace.rate, Concurrency: j.pace.concurrency},
		DeadlineUs: j.deadlineUS, Placement: j.placement, By: j.by, Code: j.code, Reason: j.reason,
		Planned: j.planned, Moved: j.moved, Aborted: j.aborted, Failed: j.failed, PauseMaxUs: j.pauseMaxUS,
		BegunUs: j.begunUS, EndedUs: j.endedUS, WallUs: j.wallUS, ConfirmByUs: j.confirmByUS, ConfirmedBy: j.confirmedBy,
	}
	for _, b := range j.pauses {
		p.Pauses = append(p.Pauses, &wire.PauseBucket{Index: b.index, Count: b.count})
	}
	return p
}

func (j *job) proto() *wire.Job {
	p := j.summary()
	for _, m := range j.plan {
		p.Plan = append(p.Plan, &wire.PlannedMove{Session: m.session, Epoch: m.epoch, To: m.to})
	}
	for _, o := range j.targets {
		p.Targets = append(p.Targets, o.proto())
	}
	return p
}

// jobOf rebuilds a row. Not ok: its plan or its pauses are not in order.
func (h *hasher) jobOf(p *wire.Job) (*job, bool) {
	plan, targets, ok := planOf(p.GetPlan(), p.GetTargets())
	j := &job{
		id: p.GetId(), nonce: p.GetNonce(), kind: p.GetKind(), state: p.GetState(), worker: p.GetWorker(),
		priority: p.GetPriority(), pace: paceOf(p.GetPace()), deadlineUS: p.GetDeadlineUs(), placement: p.GetPlacement(),
		by: p.GetBy(), code: p.GetCode(), reason: p.GetReason(), planned: p.GetPlanned(), moved: p.GetMoved(),
		aborted: p.GetAborted(), failed: p.GetFailed(), pauseMaxUS: p.GetPauseMaxUs(), begunUS: p.GetBegunUs(),
		endedUS: p.GetEndedUs(), wallUS: p.GetWallUs(), plan: plan, targets: targets,
		confirmByUS: p.GetConfirmByUs(), confirmedBy: p.GetConfirmedBy(),
	}
	if len(plan) > 0 || len(targets) > 0 {
		j.planSum = h.plan(plan, targets)
	}
	for i, b := range p.GetPauses() {
		ok = ok && (i == 0 || b.GetIndex() > p.GetPauses()[i-1].GetIndex())
		j.pauses = append(j.pauses, pauseBucket{b.GetIndex(), b.GetCount()})
	}
	return j, ok
}

// Job returns a job without its plan, nil if it is unknown or long ended.
func (s *Store) Job(id uint64) *wire.Job {
	if j := s.job(id); j != nil {
		return j.summary()
	}
	return nil
}

// Jobs returns up to limit jobs without their plans, newest first.
func (s *Store) Jobs(limit int) []*wire.Job {
	var list []*wire.Job
	s.jobs.Reverse(func(j *job) bool {
		if len(list) >= limit {
			return false
		}
		list = append(list, j.summary())
		return true
	})
	return list
}

// OpenJobs returns the jobs that are running or paused, without their plans, by
// id.
func (s *Store) OpenJobs() []*wire.Job {
	var list []*wire.Job
	s.openJobs.Scan(func(id uint64) bool {
		list = append(list, s.job(id).summary())
		return true
	})
	return list
}

// PlanStep is one move of a rebalance.
type PlanStep struct {
	Session string
	Epoch   uint64
	To      *wire.Owner
}

// PlanStep returns the move at place of a job's plan. Not ok: the plan is
// shorter, or the job has ended.
func (s *Store) PlanStep(id uint64, place int) (PlanStep, bool) {
	j := s.job(id)
	if j == nil || place < 0 || place >= len(j.plan) {
		return PlanStep{}, false
	}
	m := j.plan[place]
	return PlanStep{m.session, m.epoch, j.targets[m.to].proto()}, true
}
