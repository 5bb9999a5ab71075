package store

import (
	"slices"

	"github.com/baton-cluster/baton/wire"
)

// job is a Job row. Immutable once in the table; copies share plan, targets and
// pauses, which are replaced, never modified.
type job struct {
	id         uint64
	nonce      []byte
	kind       wire.JobKind
	state      wire.JobState
	worker     string
	priority   uint32
	pace       pace
	deadlineUS uint64
	placement  wire.Placement
	by         string
	code       wire.Code
	reason     string
	planned    uint64
	moved      uint64
	aborted    uint64
	failed     uint64
	pauses     []pauseBucket
	pauseMaxUS uint64
	begunUS    uint64
	endedUS    uint64
	wallUS     int64
	// confirmByUS is until when an operator may confirm it, 0: it waits for none.
	// Invariant: set only while it is paused.
	confirmByUS uint64
	confirmedBy string
	plan        []plannedMove
	targets     []owner
	// planSum is the hash of plan and targets, worked out once: a plan is long
	// and each pivot changes the job's row.
	planSum uint64
	hash    uint64
}

type pace struct {
	maxPauseUS        uint64
	rate, concurrency uint32
}

func paceOf(p *wire.Pace) pace { return pace{p.GetMaxPauseUs(), p.GetRate(), p.GetConcurrency()} }

type pauseBucket struct {
	index uint32
	count uint64
}

// plannedMove names the epoch that it ends: a session that moved, closed or was
// opened again since is not moved.
type plannedMove struct {
	session string
	epoch   uint64
	to      uint32
}

func lessJob(a, b *job) bool { return a.id < b.id }

func (j *job) open() bool {
	return j.state == wire.JobState_JOB_STATE_RUNNING || j.state == wire.JobState_JOB_STATE_PAUSED
}

// setJob inserts or replaces a job.
func (s *Store) setJob(j *job) {
	if old := s.job(j.id); old != nil {
		s.sum ^= old.hash
	}
	j.hash = s.h.job(j)
	s.sum ^= j.hash
	s.jobs.Set(j)
	s.jobNonces[string(j.nonce)] = j.id
	if j.open() {
		s.openJobs.Set(j.id)
	} else {
		s.openJobs.Delete(j.id)
	}
	s.emit(Event{Kind: EventJob, Worker: j.worker, Job: j.id})
}

// forgetJobs drops the oldest ended jobs beyond the limit.
func (s *Store) forgetJobs() {
	for s.jobs.Len()-s.openJobs.Len() > wire.EndedJobsMax {
		var oldest *job
		s.jobs.Scan(func(j *job) bool {
			oldest = j
			return j.open()
		})
		s.jobs.Delete(oldest)
		s.sum ^= oldest.hash
		delete(s.jobNonces, string(oldest.nonce))
	}
}

func (s *Store) applyStartJob(c *wire.StartJob, res *wire.Result) {
	if id, ok := s.jobNonces[string(c.GetNonce())]; ok {
		res.Duplicate = true
		res.Job = s.job(id).summary()
		return
	}
	j := &job{
		id:         s.position,
		nonce:      c.GetNonce(),
		kind:       c.GetKind(),
		state:      wire.JobState_JOB_STATE_RUNNING,
		worker:     c.GetWorker(),
		priority:   c.GetPriority(),
		pace:       paceOf(c.GetPace()),
		deadlineUS: c.GetDeadlineUs(),
		placement:  c.GetPlacement(),
		by:         clip(c.GetBy()),
		begunUS:    s.timeUS,
		wallUS:     s.wallUS,
	}
	if c.GetConfirmByUs() != 0 {
		j.state, j.confirmByUS = wire.JobState_JOB_STATE_PAUSED, c.GetConfirmByUs()
	}
	if j.priority == 0 {
		j.priority = wire.PriorityDefault
	}
	if res.Code = s.checkJob(j); res.Code != wire.Code_OK {
		return
	}
	switch j.kind {
	case wire.JobKind_JOB_KIND_DRAIN:
		s.startDrain(j, c, res)
	case wire.JobKind_JOB_KIND_REBALANCE:
		s.startRebalance(j, c, res)
	default:
		res.Code = wire.Code_BAD_REQUEST
	}
	if res.Code == wire.Code_OK {
		s.setJob(j)
		res.Job = j.summary()
	}
}

// checkJob is what all kinds of jobs have in common.
func (s *Store) checkJob(j *job) wire.Code {
	_, placed := wire.Placement_name[int32(j.placement)]
	switch {
	case !label(string(j.nonce)), j.priority > wire.PriorityMax, !placed:
		return wire.Code_BAD_REQUEST
	case j.deadlineUS != 0 && j.deadlineUS <= s.timeUS, j.confirmByUS != 0 && j.confirmByUS <= s.timeUS:
		return wire.Code_DEADLINE_PASSED
	case s.openJobs.Len() >= wire.JobsOpenMax:
		return wire.Code_TOO_MANY
	}
	return wire.Code_OK
}

// startDrain makes the worker draining and the job its drain, in one command: a
// drain without a job, or a job of an active worker, would need a repair by
// whoever directs next.
func (s *Store) startDrain(j *job, c *wire.StartJob, res *wire.Result) {
	w := s.worker(j.worker)
	switch {
	case len(c.GetPlan()) > 0 || len(c.GetTargets()) > 0:
		res.Code = wire.Code_BAD_REQUEST
		return
	case w == nil:
		res.Code = wire.Code_UNKNOWN_WORKER
		return
	case c.GetIncarnation() != 0 && c.GetIncarnation() != w.incarnation:
		res.Code = wire.Code_STALE_INCARNATION
		res.Current = w.incarnation
		return
	case w.state == wire.WorkerState_WORKER_STATE_FENCED:
		res.Code = wire.Code_WORKER_FENCED
		return
	}
	if old := s.job(w.job); old != nil && old.open() {
		res.Code = wire.Code_JOB_ACTIVE
		res.Job = old.summary()
		return
	}
	if !s.otherActive(w.id) {
		// Two nodes drained towards each other: the second is refused, before
		// anything moved.
		res.Code = wire.Code_NO_TARGET
		return
	}
	next := *w
	// A shutdown's drain on top of an operator's must not end the latter at the
	// next start.
	next.untilRegister = c.GetUntilRegister() && (w.untilRegister || w.state == wire.WorkerState_WORKER_STATE_ACTIVE)
	next.state, next.reason, next.job = wire.WorkerState_WORKER_STATE_DRAINING, j.by, j.id
	s.setWorker(&next)
	s.emit(Event{Kind: EventWorker, Worker: w.id})
	j.planned = s.ownedBy(w.id)
}

// otherActive reports whether a worker other than id could take sessions.
func (s *Store) otherActive(id string) (found bool) {
	s.workers.Scan(func(w *worker) bool {
		found = w.id != id && w.state == wire.WorkerState_WORKER_STATE_ACTIVE
		return !found
	})
	return found
}

// ownedBy counts a worker's sessions, whatever the incarnation.
func (s *Store) ownedBy(id string) (n uint64) {
	for o, g := range s.groups { // a sum: order does not matter
		if o.worker == id {
			n += uint64(g.ids.Len())
		}
	}
	return n
}

func (s *Store) startRebalance(j *job, c *wire.StartJob, res *wire.Result) {
	plan, targets, ok := planOf(c.GetPlan(), c.GetTargets())
	if !ok || len(plan) == 0 || j.worker != "" || c.GetIncarnation() != 0 || c.GetUntilRegister() {
		res.Code = wire.Code_BAD_REQUEST
		return
	}
	var other *job
	s.openJobs.Scan(func(id uint64) bool {
		if o := s.job(id); o.kind == j.kind {
			other = o
		}
		return other == nil
	})
	if other != nil { // two plans at once would undo each other
		res.Code = wire.Code_JOB_ACTIVE
		res.Job = other.summary()
		return
	}
	j.plan, j.targets, j.planned = plan, targets, uint64(len(plan))
	j.planSum = s.h.plan(plan, targets)
}

// planOf checks and takes over a plan: sessions by rising id, so that none comes
// twice.
func planOf(moves []*wire.PlannedMove, to []*wire.Owner) (plan []plannedMove, targets []owner, ok bool) {
	if len(moves) > wire.JobMovesMax || len(to) > wire.JobTargetsMax {
		return nil, nil, false
	}
	for _, o := range to {
		if !label(o.GetWorker()) {
			return nil, nil, false
		}
		targets = append(targets, ownerOf(o))
	}
	bytes := 0
	for i, m := range moves {
		bytes += len(m.GetSession()) + plannedMoveBytes
		if checkID(m.GetSession()) != wire.Code_OK || int(m.GetTo()) >= len(to) || bytes > wire.JobPlanBytesMax ||
			i > 0 && m.GetSession() <= moves[i-1].GetSession() {
			return nil, nil, false
		}
		plan = append(plan, plannedMove{m.GetSession(), m.GetEpoch(), m.GetTo()})
	}
	return plan, targets, true
}

// plannedMoveBytes is what a planned move takes besides its session's id, at
// most.
const plannedMoveBytes = 24

func (s *Store) applyUpdateJob(c *wire.UpdateJob, res *wire.Result) {
	old := s.openJob(c.GetJob(), res)
	if old == nil {
		return
	}
	j := *old
	if c.GetConfirm() {
		if res.Code = s.confirmJob(&j, c); res.Code != wire.Code_OK {
			return
		}
	}
	switch c.GetState() {
	case wire.JobState_JOB_STATE_UNSPECIFIED:
	case wire.JobState_JOB_STATE_RUNNING, wire.JobState_JOB_STATE_PAUSED:
		j.state = c.GetState()
	default:
		res.Code = wire.Code_BAD_REQUEST
		return
	}
	if j.confirmByUS != 0 && j.state != wire.JobState_JOB_STATE_PAUSED {
		res.Code = wire.Code_CONFIRMATION_NEEDED
		return
	}
	if c.GetPace() != nil {
		j.pace = paceOf(c.GetPace())
	}
	if c.GetDeadlineUs() != 0 {
		if c.GetDeadlineUs() <= s.timeUS {
			res.Code = wire.Code_DEADLINE_PASSED
			return
		}
		j.deadlineUS = c.GetDeadlineUs()
	}
	if j.state == old.state && j.pace == old.pace && j.deadlineUS == old.deadlineUS && j.confirmByUS == old.confirmByUS {
		res.Duplicate = true
		return
	}
	j.reason = clip(c.GetBy())
	s.setJob(&j)
	res.Job = j.summary()
}

// confirmJob lets a job run that waits for an operator. One that waits for none,
// because it was confirmed before, stays as it is.
func (s *Store) confirmJob(j *job, c *wire.UpdateJob) wire.Code {
	switch {
	case j.confirmByUS == 0:
		return wire.Code_OK
	case j.confirmByUS <= s.timeUS:
		return wire.Code_CONFIRMATION_EXPIRED
	}
	j.confirmByUS, j.confirmedBy, j.state = 0, clip(c.GetBy()), wire.JobState_JOB_STATE_RUNNING
	return wire.Code_OK
}

// openJob finds a job that has not ended, or says in res why there is none.
func (s *Store) openJob(id uint64, res *wire.Result) *job {
	j := s.job(id)
	if j == nil {
		res.Code = wire.Code_UNKNOWN_JOB
		return nil
	}
	res.Job = j.summary()
	if !j.open() {
		res.Code = wire.Code_JOB_ENDED
		return nil
	}
	return j
}

func (s *Store) applyEndJob(c *wire.EndJob, res *wire.Result) {
	if old := s.job(c.GetJob()); old != nil && !old.open() && old.state == c.GetState() {
		res.Duplicate = true
		res.Job = old.summary()
		return
	}
	old := s.openJob(c.GetJob(), res)
	if old == nil {
		return
	}
	drain := old.kind == wire.JobKind_JOB_KIND_DRAIN
	switch c.GetState() {
	case wire.JobState_JOB_STATE_CANCELLED, wire.JobState_JOB_STATE_FAILED:
	case wire.JobState_JOB_STATE_DONE:
		// A director that lags behind must not call a node empty that is not.
		if drain && s.ownedBy(old.worker) > 0 {
			res.Code = wire.Code_JOB_NOT_DONE
			return
		}
	default:
		res.Code = wire.Code_BAD_REQUEST
		return
	}
	if c.GetUndrain() && drain {
		s.undrain(old, clip(c.GetReason()))
	}
	j := s.endJob(old, c.GetState(), c.GetCode(), clip(c.GetReason()), c.GetFailed())
	res.Job = j.summary()
}

// undrain makes the worker of a drain active: at once, or if it is fenced when it
// registers.
func (s *Store) undrain(drain *job, reason string) {
	w := s.worker(drain.worker)
	next := *w
	switch {
	case w.state == wire.WorkerState_WORKER_STATE_DRAINING:
		next.state, next.untilRegister, next.job = wire.WorkerState_WORKER_STATE_ACTIVE, false, 0
		next.reason = reason
	case w.state == wire.WorkerState_WORKER_STATE_FENCED && w.job == drain.id:
		next.untilRegister, next.job = true, 0
	default:
		return
	}
	s.setWorker(&next)
	s.emit(Event{Kind: EventWorker, Worker: w.id})
}

func (s *Store) endJob(old *job, state wire.JobState, code wire.Code, reason string, failed uint64) *job {
	j := *old
	j.state, j.code, j.reason, j.failed, j.endedUS = state, code, reason, failed, s.timeUS
	j.plan, j.targets, j.planSum, j.confirmByUS = nil, nil, 0, 0
	s.setJob(&j)
	s.forgetJobs()
	return &j
}

// endDrainOf cancels the open drain of a worker that becomes active.
func (s *Store) endDrainOf(w *worker, why string) {
	if w == nil {
		return
	}
	if j := s.job(w.job); j != nil && j.open() {
		s.endJob(j, wire.JobState_JOB_STATE_CANCELLED, wire.Code_OK, clip(why), 0)
	}
}

// checkJobBegin refuses a move of a job that is not running: a director that
// does not know yet must not go on (H7).
func (s *Store) checkJobBegin(id uint64, source owner) wire.Code {
	j := s.job(id)
	switch {
	case id == 0:
		return wire.Code_OK
	case j == nil:
		return wire.Code_UNKNOWN_JOB
	case !j.open():
		return wire.Code_JOB_ENDED
	case j.state == wire.JobState_JOB_STATE_PAUSED:
		return wire.Code_JOB_PAUSED
	case j.deadlineUS != 0 && j.deadlineUS <= s.timeUS:
		return wire.Code_DEADLINE_PASSED
	case j.kind == wire.JobKind_JOB_KIND_DRAIN && j.worker != source.worker:
		return wire.Code_SOURCE_STALE
	}
	return wire.Code_OK
}

// countMove, countAbort and countPause keep a job's figures, also after its end:
// what was under way then still counts.
func (s *Store) countMove(id uint64)  { s.count(id, func(j *job) { j.moved++ }) }
func (s *Store) countAbort(id uint64) { s.count(id, func(j *job) { j.aborted++ }) }

func (s *Store) countPause(id, us uint64) {
	if us == 0 { // not known
		return
	}
	s.count(id, func(j *job) {
		j.pauseMaxUS = max(j.pauseMaxUS, us)
		at, found := slices.BinarySearchFunc(j.pauses, wire.PauseIndex(us), func(b pauseBucket, index uint32) int {
			return int(b.index) - int(index)
		})
		j.pauses = slices.Clone(j.pauses)
		if !found {
			j.pauses = slices.Insert(j.pauses, at, pauseBucket{index: wire.PauseIndex(us)})
		}
		j.pauses[at].count++
	})
}

func (s *Store) count(id uint64, change func(*job)) {
	old := s.job(id)
	if old == nil {
		return
	}
	j := *old
	change(&j)
	s.setJob(&j)
}
