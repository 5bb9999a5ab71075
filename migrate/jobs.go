package migrate

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

const (
	// A session whose move failed is tried again after backoffMin, doubled with
	// each failure up to backoffMax: its client may come within reach.
	backoffMin = time.Second
	backoffMax = 30 * time.Second
	// troubledFor is how long a worker that did not answer takes no part in jobs:
	// otherwise a drain off or onto a dead one would begin and abort as fast as
	// the log goes, until it is fenced.
	troubledFor = time.Second
	// planTries bounds how often a rebalance tries one move: what does not want
	// to move may stay, which a drain cannot let it.
	planTries = 4
)

// jobs is what a director remembers of jobs between scans. It may all be lost:
// what a job is, and how far it has come, is in the log, and which of its moves
// are left follows from where the sessions are.
type jobs struct {
	runs     map[uint64]*jobRun
	backoff  map[string]backoff
	troubled map[string]time.Duration // worker → until when
	starting map[string]bool          // workers whose StartJob is with the log
	pacer    pacer
	turn     int
	busy     int // moves that have not pivoted
}

type backoff struct {
	failures int
	until    time.Duration
}

// jobRun is one open job as this director runs it.
type jobRun struct {
	row    *wire.Job // as last seen
	busy   int       // moves that have not pivoted
	open   int       // moves that have not ended
	rate   bucket
	ending bool // its EndJob is with the log
	// wait is why nothing is begun just now, trouble why the last move failed.
	wait    *wire.Error
	trouble string
	// lonely is since when no worker is active but the drained ones.
	lonely    time.Duration
	isLonely  bool
	order     order  // drain: what the node has said of it
	cursor    string // drain: the session after which to go on
	place     int    // rebalance: the next step of the plan
	tries     map[int]int
	again     []retry // rebalance: steps to try once more
	abandoned uint64  // rebalance: steps given up
}

type retry struct {
	place int
	at    time.Duration
}

// JobStatus is what the director adds to a job's row.
type JobStatus struct {
	Job    uint64
	Active int // moves under way
	Window int // how many there may be just now, as the pause budget has it
	// Wait is why nothing is begun, nil while something may be: JOB_PAUSED,
	// NO_TARGET, UNAVAILABLE.
	Wait    *wire.Error
	Trouble string // of the last move that failed
}

func newJobs() jobs {
	return jobs{
		runs: map[uint64]*jobRun{}, backoff: map[string]backoff{}, troubled: map[string]time.Duration{},
		starting: map[string]bool{},
	}
}

// planJobs begins, ends and feeds the jobs. Those of a higher priority come
// first; among equals another one at each scan, so that a drain of a million
// sessions does not hold up one of ten.
func (r *run) planJobs(now time.Duration, nowUS uint64, s *store.Store) []*move {
	d := &r.jobs
	d.forget(now)
	r.startMissing(s)
	open := r.openJobs(s)
	if len(open) == 0 {
		return nil
	}
	d.setBudget(open)
	p := newPlacer(s, r.cfg.Alive, func(id string) bool { return d.isTroubled(id, now) })
	room := min(d.pacer.room(now, r.cfg.DrainConcurrency)-d.busy, r.cfg.MovesMax-r.moving())
	var starts []*move
	for _, j := range open {
		if !r.mayGoOn(j, now, nowUS, s, p) {
			continue
		}
		n := room - len(starts)
		if c := int(j.row.GetPace().GetConcurrency()); c > 0 {
			n = min(n, c-j.busy)
		}
		if rate := j.row.GetPace().GetRate(); rate > 0 {
			n = min(n, j.rate.left(now, rate))
		}
		if n <= 0 {
			continue
		}
		p.policy = cmp.Or(j.row.GetPlacement(), r.cfg.Placement)
		var more []*move
		if j.row.GetKind() == wire.JobKind_JOB_KIND_DRAIN {
			more = r.planDrain(j, now, nowUS, s, p, n)
		} else {
			more = r.planSteps(j, now, nowUS, s, p, n)
		}
		j.rate.take(len(more))
		starts = append(starts, more...)
	}
	return starts
}

// openJobs brings runs up to date with the tables, and returns them in the order
// in which they are served.
func (r *run) openJobs(s *store.Store) []*jobRun {
	d := &r.jobs
	rows := s.OpenJobs()
	present := make(map[uint64]bool, len(rows))
	open := make([]*jobRun, 0, len(rows))
	for _, row := range rows {
		j := d.runs[row.GetId()]
		if j == nil {
			j = &jobRun{tries: map[int]int{}}
			d.runs[row.GetId()] = j
			r.cfg.Log.Info("running a job", "job", row.GetId(), "kind", row.GetKind(), "worker", row.GetWorker(), "by", row.GetBy())
		}
		j.row = row
		present[row.GetId()] = true
		open = append(open, j)
	}
	for id := range d.runs {
		if !present[id] {
			delete(d.runs, id)
		}
	}
	d.turn++
	if n := len(open); n > 0 {
		at := d.turn % n
		open = append(open[at:n:n], open[:at]...)
	}
	slices.SortStableFunc(open, func(a, b *jobRun) int { return cmp.Compare(a.row.GetPriority(), b.row.GetPriority()) })
	return open
}

// setBudget aims at the tightest pause budget of the running jobs.
func (d *jobs) setBudget(open []*jobRun) {
	var budget time.Duration
	var total, over uint64
	for _, j := range open {
		b := time.Duration(j.row.GetPace().GetMaxPauseUs()) * time.Microsecond
		if b == 0 || j.row.GetState() != wire.JobState_JOB_STATE_RUNNING {
			continue
		}
		if budget == 0 || b < budget {
			budget = b
		}
		for _, c := range j.row.GetPauses() {
			total += c.GetCount()
			if wire.PauseBound(c.GetIndex()) > uint64(b/time.Microsecond) {
				over += c.GetCount()
			}
		}
	}
	if budget != d.pacer.budget {
		d.pacer.aim(budget)
		// What an earlier director measured counts for the job's p99.
		d.pacer.total, d.pacer.over = total, over
	}
}

// startMissing makes a job of the drain of every draining worker that has
// sessions and never had one, or whose last one was done before they came.
func (r *run) startMissing(s *store.Store) {
	workers := s.Workers()
	active := slices.ContainsFunc(workers, func(w *wire.WorkerRow) bool {
		return w.GetState() == wire.WorkerState_WORKER_STATE_ACTIVE
	})
	for _, w := range workers {
		id := w.GetId()
		old := s.Job(w.GetJob())
		if w.GetState() != wire.WorkerState_WORKER_STATE_DRAINING || r.jobs.starting[id] ||
			old != nil && old.GetState() != wire.JobState_JOB_STATE_DONE || len(s.SessionsOf(id, "", 1)) == 0 {
			continue
		}
		if !active {
			r.fault("a drain waits", wire.Errorf(wire.Code_NO_TARGET, "no worker is active; start one, or end a drain"))
			continue
		}
		nonce := make([]byte, wire.IDBytes)
		if _, err := io.ReadFull(r.cfg.Rand, nonce); err != nil {
			r.fault("cannot start a drain", err)
			continue
		}
		cmd := &wire.Command{Kind: &wire.Command_StartJob{StartJob: &wire.StartJob{
			Nonce: nonce, Kind: wire.JobKind_JOB_KIND_DRAIN, Worker: id, Incarnation: w.GetIncarnation(),
			UntilRegister: w.GetUntilRegister(), By: clip(w.GetReason(), ByBytesMax),
		}}}
		// NO_TARGET, JOB_ACTIVE, STALE_INCARNATION: the next scan sees why.
		r.jobs.starting[id] = r.enqueue([]proposal{{cmd, ignoreResult}}, func(error) {
			delete(r.jobs.starting, id)
			r.scanSoon = true
		})
	}
}

// mayGoOn ends a job that is over, and says whether moves of it may begin. If
// not, and it is not over, j.wait tells why.
func (r *run) mayGoOn(j *jobRun, now time.Duration, nowUS uint64, s *store.Store, p *placer) bool {
	j.wait = nil
	if j.ending {
		return false
	}
	row := j.row
	drain := row.GetKind() == wire.JobKind_JOB_KIND_DRAIN
	switch {
	case drain && len(s.SessionsOf(row.GetWorker(), "", 1)) == 0:
		if j.open == 0 { // else the last pauses would be missing in its figures
			r.endJob(j, wire.JobState_JOB_STATE_DONE, wire.Code_OK, "", 0)
		}
		return false
	case !drain && j.place >= int(row.GetPlanned()) && len(j.again) == 0:
		if j.open == 0 {
			r.endJob(j, wire.JobState_JOB_STATE_DONE, wire.Code_OK, j.trouble, j.abandoned)
		}
		return false
	case row.GetDeadlineUs() != 0 && row.GetDeadlineUs() <= nowUS:
		left := r.left(j, s)
		r.proposeEnd(j, &wire.EndJob{
			Job: row.GetId(), State: wire.JobState_JOB_STATE_FAILED, Code: wire.Code_DEADLINE_PASSED, Failed: left,
			Reason:  fmt.Sprintf("its time ran out with %d sessions to go; they stay where they are", left),
			Undrain: row.GetConfirmByUs() != 0, // nobody let it begin
		})
		return false
	case row.GetConfirmByUs() != 0:
		r.awaitConfirmation(j, nowUS)
		return false
	case row.GetState() == wire.JobState_JOB_STATE_PAUSED:
		j.wait = wire.Errorf(wire.Code_JOB_PAUSED, "paused: %s", row.GetReason())
		return false
	}
	if p.active > 0 {
		j.isLonely = false
	} else if !r.lonely(j, now, s) {
		return false
	}
	if err := p.err(); err != nil {
		j.wait = asError(err)
		return false
	}
	if up, known := r.cfg.Alive(row.GetWorker()); drain && (known && !up || r.jobs.isTroubled(row.GetWorker(), now)) {
		j.wait = wire.Errorf(wire.Code_UNAVAILABLE, "the node does not answer; if it is dead, its sessions are given to others")
		return false
	}
	return true
}

// awaitConfirmation ends a job that no operator confirmed in time. A node that
// was to be drained takes sessions again.
func (r *run) awaitConfirmation(j *jobRun, nowUS uint64) {
	if by := j.row.GetConfirmByUs(); nowUS < by {
		left := time.Duration(by-nowUS) * time.Microsecond
		j.wait = wire.Errorf(wire.Code_CONFIRMATION_NEEDED, "`baton job confirm %d` lets it begin; it expires in %v", j.row.GetId(), left.Round(time.Second))
		return
	}
	r.proposeEnd(j, &wire.EndJob{
		Job: j.row.GetId(), State: wire.JobState_JOB_STATE_FAILED, Code: wire.Code_CONFIRMATION_EXPIRED,
		Reason: "no operator confirmed it in time", Undrain: true,
	})
}

// lonely is for a job when no worker is active. It fails after a while: whoever
// waits for it is to learn that there is nowhere to go. A drained node stays
// draining and keeps what it has.
func (r *run) lonely(j *jobRun, now time.Duration, s *store.Store) bool {
	if !j.isLonely {
		j.isLonely, j.lonely = true, now
	}
	if now-j.lonely >= r.cfg.NoTargetAfter {
		left := r.left(j, s)
		r.endJob(j, wire.JobState_JOB_STATE_FAILED, wire.Code_NO_TARGET,
			fmt.Sprintf("no other worker is active, %d sessions are left: start a node, or end a drain", left), left)
		return false
	}
	j.wait = wire.Errorf(wire.Code_NO_TARGET, "no other worker is active; start a node, or end a drain")
	return false
}

// left counts the moves that a job has not made.
func (r *run) left(j *jobRun, s *store.Store) (n uint64) {
	if j.row.GetKind() == wire.JobKind_JOB_KIND_DRAIN {
		return uint64(s.Counts().Owned[j.row.GetWorker()])
	}
	for i := range int(j.row.GetPlanned()) {
		if step, ok := s.PlanStep(j.row.GetId(), i); ok {
			if sum, there := s.Session(step.Session); there && sum.Epoch == step.Epoch {
				n++
			}
		}
	}
	return n
}

func (r *run) endJob(j *jobRun, state wire.JobState, code wire.Code, reason string, failed uint64) {
	r.proposeEnd(j, &wire.EndJob{
		Job: j.row.GetId(), State: state, Code: code, Reason: clip(reason, whyBytesMax), Failed: failed,
	})
}

func (r *run) proposeEnd(j *jobRun, end *wire.EndJob) {
	cmd := &wire.Command{Kind: &wire.Command_EndJob{EndJob: end}}
	// JOB_NOT_DONE: sessions came in the meantime; the next scan goes on.
	j.ending = r.enqueue([]proposal{{cmd, ignoreResult}}, func(error) {
		j.ending = false
		r.scanSoon = true
	})
}

// jobPivoted gives a move's place in its job to another: its pause is over, and
// what is left of it is one commit that nobody waits for.
func (r *run) jobPivoted(m *move) {
	delete(r.jobs.backoff, m.req.Session)
	r.jobs.pacer.paused(r.cfg.Clock.Now(), m.h.Pause(), m.began)
	r.release(m)
}

// release frees the place that a move takes up in its job.
func (r *run) release(m *move) {
	if !m.holds {
		return
	}
	m.holds = false
	m.job.busy--
	r.jobs.busy--
	r.feedSoon = true
}

// jobEnded takes note of why a job's move did not pivot.
func (r *run) jobEnded(now time.Duration, m *move) {
	d, j := &r.jobs, m.job
	switch wire.CodeOf(m.err) {
	case wire.Code_JOB_PAUSED, wire.Code_JOB_ENDED, wire.Code_UNKNOWN_JOB:
		if m.place >= 0 {
			j.again = append(j.again, retry{m.place, now})
		}
		return // not the session's fault
	}
	if m.err != nil {
		j.trouble = m.err.Error()
	}
	who, after := m.h.Blame(), m.h.Deferred()
	if who != "" {
		d.troubled[who] = now + max(troubledFor, after)
	}
	b := d.backoff[m.req.Session]
	b.failures++
	b.until = now + min(backoffMin<<min(b.failures-1, 10), backoffMax)
	if after > 0 && who == "" {
		b.until = now + after
	}
	d.backoff[m.req.Session] = b
	if m.place >= 0 {
		j.later(m.place, b.until)
	}
}

func (d *jobs) isTroubled(id string, now time.Duration) bool { return d.troubled[id] > now }

// forget drops what no longer holds. A session's failures are remembered for a
// while after its wait, so that the next failure waits longer.
func (d *jobs) forget(now time.Duration) {
	for id, until := range d.troubled {
		if until <= now {
			delete(d.troubled, id)
		}
	}
	for id, b := range d.backoff {
		if b.until+backoffMax <= now {
			delete(d.backoff, id)
		}
	}
}

func (r *run) jobStatuses() []JobStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]JobStatus, 0, len(r.jobs.runs))
	window := r.jobs.pacer.room(r.cfg.Clock.Now(), r.cfg.DrainConcurrency)
	for id, j := range r.jobs.runs {
		list = append(list, JobStatus{Job: id, Active: j.busy, Window: window, Wait: j.wait, Trouble: j.trouble})
	}
	slices.SortFunc(list, func(a, b JobStatus) int { return cmp.Compare(a.Job, b.Job) })
	return list
}
