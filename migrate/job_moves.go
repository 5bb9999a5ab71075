package migrate

import (
	"fmt"
	"slices"
	"time"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// planDrain begins up to room moves off a draining worker: first in the order
// that the worker names, then what is left, by id. It looks at no more sessions
// than it is likely to need, as it is called for every few free places.
func (r *run) planDrain(j *jobRun, now time.Duration, nowUS uint64, s *store.Store, p *placer, room int) []*move {
	starts, more := r.planOrdered(j, now, nowUS, s, p, room)
	if more {
		return starts
	}
	id := j.row.GetWorker()
	for looked := 0; looked < r.cfg.AssignBatch; {
		want := min(r.cfg.AssignBatch-looked, max(2*(room-len(starts)), drainPageMin))
		page := s.SessionsOf(id, j.cursor, want)
		looked += len(page)
		for i := range page {
			sum := &page[i]
			if len(starts) == room {
				return starts
			}
			j.cursor = sum.ID
			var full bool
			if starts, full = r.planOne(starts, j, now, nowUS, sum, p); full {
				return starts
			}
		}
		if len(page) < want {
			j.cursor = "" // the end: from the beginning next time
			break
		}
	}
	return starts
}

// planOne adds a session's move off a draining worker to starts, unless it is not
// to be moved now. full: no worker takes it.
func (r *run) planOne(starts []*move, j *jobRun, now time.Duration, nowUS uint64, sum *store.Summary, p *placer) (with []*move, full bool) {
	if m := r.bySession[sum.ID]; r.waiting[m] {
		r.superseded = append(r.superseded, m)
	}
	planned := slices.ContainsFunc(starts, func(m *move) bool { return m.req.Session == sum.ID })
	if planned || !sum.Valid || sum.Migration != 0 || r.isMoving(sum.ID) || r.jobs.backoff[sum.ID].until > now {
		return starts, false
	}
	to := p.elsewhere(sum.ID, j.row.GetWorker())
	if to == nil {
		return starts, true
	}
	return append(starts, r.jobMove(j, nowUS, sum, to, wire.Reason_REASON_PLANNED_MAINTENANCE, -1)), false
}

// drainPageMin is the least number of sessions that a look for the next moves
// of a drain takes in.
const drainPageMin = 16

// planSteps begins up to room moves of a rebalance's plan, first those that are
// to be tried again. A session whose epoch is not the planned one has moved, by
// this step or otherwise, and is left alone: that is how a new leader finds out
// what is left, and why a plan cannot push a session to and fro.
func (r *run) planSteps(j *jobRun, now time.Duration, nowUS uint64, s *store.Store, p *placer, room int) []*move {
	var starts []*move
	again := j.again
	j.again = nil
	for i, t := range again {
		if len(starts) == room || t.at > now {
			j.again = append(j.again, again[i])
			continue
		}
		if m := r.planStep(j, t.place, now, nowUS, s, p); m != nil {
			starts = append(starts, m)
		}
	}
	for looked := 0; looked < r.cfg.AssignBatch && len(starts) < room && j.place < int(j.row.GetPlanned()); looked++ {
		if m := r.planStep(j, j.place, now, nowUS, s, p); m != nil {
			starts = append(starts, m)
		}
		j.place++
	}
	return starts
}

func (r *run) planStep(j *jobRun, place int, now time.Duration, nowUS uint64, s *store.Store, p *placer) *move {
	step, ok := s.PlanStep(j.row.GetId(), place)
	if !ok {
		return nil
	}
	sum, ok := s.Session(step.Session)
	if !ok || sum.Epoch != step.Epoch || !sum.Valid {
		return nil
	}
	w := s.Worker(step.To.GetWorker())
	switch {
	case w.GetState() != wire.WorkerState_WORKER_STATE_ACTIVE:
		j.abandoned++
		j.trouble = fmt.Sprintf("%s: the planned target %s takes no sessions any more", step.Session, step.To.GetWorker())
		return nil
	case sum.Migration != 0 || r.isMoving(sum.ID) || !p.takes(w.GetId()):
		j.later(place, now+backoffMin)
		return nil
	}
	return r.jobMove(j, nowUS, &sum, &wire.Owner{Worker: w.GetId(), Incarnation: w.GetIncarnation()}, wire.Reason_REASON_LOAD_BALANCING, place)
}

// later tries a step once more, or gives it up.
func (j *jobRun) later(place int, at time.Duration) {
	if j.tries[place]++; j.tries[place] >= planTries {
		j.abandoned++
		return
	}
	j.again = append(j.again, retry{place, at})
}

// jobMove is a move of a job: place is that of the plan, negative for a drain.
func (r *run) jobMove(j *jobRun, nowUS uint64, sum *store.Summary, to *wire.Owner, why wire.Reason, place int) *move {
	within := r.cfg.MigrationTimeout
	if at := j.row.GetDeadlineUs(); at != 0 {
		left := time.Duration(min(at-min(at, nowUS), uint64(DeadlineMax/time.Microsecond))) * time.Microsecond
		within = max(min(within, left), DeadlineMin)
	}
	what := "drain"
	if place >= 0 {
		what = "rebalance"
	}
	return &move{
		req: Request{
			Session: sum.ID, Target: to.GetWorker(), Reason: why, Priority: j.row.GetPriority(), Deadline: within,
			By:  clip(fmt.Sprintf("%s, %s %d by %s", r.by(), what, j.row.GetId(), j.row.GetBy()), ByBytesMax),
			Job: j.row.GetId(),
		},
		to: to, epoch: sum.Epoch, job: j, place: place, done: make(chan struct{}),
	}
}

// isMoving reports whether a session has a move here, begun or asked for.
func (r *run) isMoving(session string) bool {
	return r.bySession[session] != nil || r.queued[session] != nil
}
