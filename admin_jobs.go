package baton

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// The leader's side of drains and rebalances. All of it but the plan is the
// log's: a leader that dies in any of these calls leaves a job that is there or
// is not, and the nonce makes asking again harmless.

// PaceOptions bound what a job does to clients. Zero: no bound of its own.
type PaceOptions struct {
	// MaxPause: p99 of the measured pauses is kept at or below it, by slowing
	// down.
	MaxPause time.Duration `json:"-"`
	// Rate is moves begun in a second, Concurrency moves under way.
	Rate        uint32 `json:"rate,omitempty"`
	Concurrency uint32 `json:"concurrency,omitempty"`
	MaxPauseUS  int64  `json:"max_pause_us,omitempty"` // MaxPause as it travels
}

func (p PaceOptions) packed() PaceOptions {
	p.MaxPauseUS = p.MaxPause.Microseconds()
	return p
}

// proto is nil where nothing is asked for.
func (p PaceOptions) proto() *wire.Pace {
	if p.MaxPauseUS <= 0 && p.Rate == 0 && p.Concurrency == 0 {
		return nil
	}
	return &wire.Pace{MaxPauseUs: uint64(max(p.MaxPauseUS, 0)), Rate: p.Rate, Concurrency: p.Concurrency}
}

// jobReq asks for a drain (with Node) or a rebalance.
type jobReq struct {
	PaceOptions
	Nonce      []byte `json:"nonce"`
	Node       string `json:"node,omitempty"`
	DeadlineUS int64  `json:"deadline_us,omitempty"`
	Priority   uint32 `json:"priority,omitempty"`
	Placement  string `json:"placement,omitempty"`
	MaxMoves   int    `json:"max_moves,omitempty"`
	DryRun     bool   `json:"dry_run,omitempty"`
	By         string `json:"by,omitempty"`
}

// command is the StartJob that req amounts to, without drain or plan.
func (n *Node) command(req jobReq) (*wire.StartJob, error) {
	policy, err := migrate.PolicyOf(req.Placement)
	if err != nil {
		return nil, err
	}
	if req.Placement == "" {
		policy = wire.Placement_PLACEMENT_UNSPECIFIED // the director's own
	}
	if req.Priority > migrate.PriorityMax || req.DeadlineUS < 0 || req.MaxPauseUS < 0 || req.MaxMoves < 0 {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the priority must be 1 to %d, and deadline, pause and moves not negative", migrate.PriorityMax)
	}
	if req.By == "" {
		req.By = "operator"
	}
	c := &wire.StartJob{Nonce: req.Nonce, Priority: req.Priority, Pace: req.proto(), Placement: policy, By: req.By}
	if req.DeadlineUS > 0 {
		c.DeadlineUs = n.cluster.LogTimeUS() + uint64(req.DeadlineUS)
	}
	return c, nil
}

// startDrain starts a drain, or finds the one that is under way, and gives that
// one the pace and deadline that were asked for.
func (n *Node) startDrain(ctx context.Context, req jobReq) (JobInfo, error) {
	w, err := n.workerByName(req.Node)
	if err != nil {
		return JobInfo{}, err
	}
	c, err := n.command(req)
	if err != nil {
		return JobInfo{}, err
	}
	c.Kind, c.Worker = wire.JobKind_JOB_KIND_DRAIN, w.GetId()
	c.ConfirmByUs = n.confirmBy(c)
	res, err := n.cluster.ProposeWait(ctx, &wire.Command{Kind: &wire.Command_StartJob{StartJob: c}})
	if err != nil {
		return JobInfo{}, err
	}
	switch code := res[0].GetCode(); code {
	case wire.Code_OK:
		return n.jobInfo(res[0].GetJob()), nil
	case wire.Code_JOB_ACTIVE:
		if c.Pace == nil && c.DeadlineUs == 0 {
			return n.jobInfo(res[0].GetJob()), nil
		}
		j, err := n.proposeUpdate(ctx, &wire.UpdateJob{Job: res[0].GetJob().GetId(), Pace: c.Pace, DeadlineUs: c.DeadlineUs, By: c.By})
		if wire.CodeOf(err) == wire.Code_JOB_ENDED { // since it was found
			return n.startDrain(ctx, req)
		}
		return j, err
	case wire.Code_NO_TARGET:
		return JobInfo{}, wire.Errorf(code, "no other node takes sessions: start one, or end a drain, before %s is drained", req.Node)
	case wire.Code_WORKER_FENCED:
		return JobInfo{}, wire.Errorf(code, "node %s is fenced: it must register again first", req.Node)
	default:
		return JobInfo{}, wire.Errorf(code, "the cluster refused to drain %s", req.Node)
	}
}

// rebalance plans, and unless it is a dry run starts the plan as a job.
func (n *Node) rebalance(ctx context.Context, req jobReq) (RebalancePlan, error) {
	c, err := n.command(req)
	if err != nil {
		return RebalancePlan{}, err
	}
	if err := n.current(ctx); err != nil {
		return RebalancePlan{}, err
	}
	plan := n.director.PlanRebalance(migrate.RebalanceOptions{Policy: c.Placement, MovesMax: req.MaxMoves})
	out := RebalancePlan{DryRun: req.DryRun, Planned: len(plan.Moves), Left: plan.Left, Before: map[string]int{}, After: map[string]int{}}
	names := map[string]string{}
	for id := range plan.Before {
		names[id] = n.workerName(id)
		out.Before[names[id]], out.After[names[id]] = plan.Before[id], plan.After[id]
	}
	for _, m := range plan.Moves {
		out.Moves = append(out.Moves, PlannedMove{Session: m.Session, From: names[m.From], To: names[m.To.GetWorker()]})
	}
	if req.DryRun {
		return out, nil
	}
	c.ConfirmByUs = n.confirmBy(c)
	res, err := n.cluster.ProposeWait(ctx, plan.Start(c))
	if err != nil {
		return RebalancePlan{}, err
	}
	switch code := res[0].GetCode(); {
	case code == wire.Code_OK && res[0].GetDuplicate():
		// The answer to an earlier try was lost: what it planned is under way, or done.
		return RebalancePlan{Job: res[0].GetJob().GetId(), Planned: int(res[0].GetJob().GetPlanned()), Before: map[string]int{}, After: map[string]int{}}, nil
	case code != wire.Code_OK && len(plan.Moves) == 0:
		return out, nil // it was proposed for the sake of an earlier try only
	case code != wire.Code_OK:
		return RebalancePlan{}, wire.Errorf(code, "the rebalance was not started: job %d is under way, see `baton jobs`", res[0].GetJob().GetId())
	}
	out.Job = res[0].GetJob().GetId()
	return out, nil
}

// JobUpdate pauses, resumes, cancels or paces an open job.
type JobUpdate struct {
	PaceOptions
	Job        uint64 `json:"job"`
	Action     string `json:"action"` // confirm, pause, resume, cancel, pace
	DeadlineUS int64  `json:"deadline_us,omitempty"`
	By         string `json:"by,omitempty"`
}

func (n *Node) updateJob(ctx context.Context, req JobUpdate) (JobInfo, error) {
	if req.By == "" {
		req.By = "operator"
	}
	u := &wire.UpdateJob{Job: req.Job, By: req.By}
	switch req.Action {
	case "cancel":
		// Undrain: a node that nobody drains is to take sessions again.
		return n.proposeJob(ctx, &wire.Command{Kind: &wire.Command_EndJob{EndJob: &wire.EndJob{
			Job: req.Job, State: wire.JobState_JOB_STATE_CANCELLED, Reason: "cancelled by " + req.By, Undrain: true,
		}}}, req.Job)
	case "confirm":
		u.Confirm = true
	case "pause":
		u.State = wire.JobState_JOB_STATE_PAUSED
	case "resume":
		u.State = wire.JobState_JOB_STATE_RUNNING
	case "pace":
		u.Pace = &wire.Pace{MaxPauseUs: uint64(max(req.MaxPauseUS, 0)), Rate: req.Rate, Concurrency: req.Concurrency}
		if req.DeadlineUS > 0 {
			u.DeadlineUs = n.cluster.LogTimeUS() + uint64(req.DeadlineUS)
		}
	default:
		return JobInfo{}, wire.Errorf(wire.Code_BAD_REQUEST, "%q is nothing to do with a job: use confirm, pause, resume, cancel or pace", req.Action)
	}
	return n.proposeUpdate(ctx, u)
}

func (n *Node) proposeUpdate(ctx context.Context, u *wire.UpdateJob) (JobInfo, error) {
	return n.proposeJob(ctx, &wire.Command{Kind: &wire.Command_UpdateJob{UpdateJob: u}}, u.GetJob())
}

func (n *Node) proposeJob(ctx context.Context, cmd *wire.Command, id uint64) (JobInfo, error) {
	res, err := n.cluster.ProposeWait(ctx, cmd)
	if err != nil {
		return JobInfo{}, err
	}
	switch code := res[0].GetCode(); code {
	case wire.Code_OK:
		return n.jobInfo(res[0].GetJob()), nil
	case wire.Code_JOB_ENDED:
		return JobInfo{}, wire.Errorf(code, "job %d is %s already", id, jobState(res[0].GetJob().GetState()))
	case wire.Code_CONFIRMATION_NEEDED:
		return JobInfo{}, wire.Errorf(code, "job %d waits for confirmation: `baton job confirm %d` lets it begin, `baton job cancel %d` refuses it", id, id, id)
	case wire.Code_CONFIRMATION_EXPIRED:
		return JobInfo{}, wire.Errorf(code, "nobody confirmed job %d in time; start it again", id)
	case wire.Code_UNKNOWN_JOB:
		return JobInfo{}, noJob(id)
	default:
		return JobInfo{}, wire.Errorf(code, "the cluster refused to change job %d", id)
	}
}

func noJob(id uint64) *wire.Error {
	return wire.Errorf(wire.Code_UNKNOWN_JOB, "there is no job %d, or it ended long ago: `baton jobs` lists them", id)
}

type jobRef struct {
	Job   uint64 `json:"job,omitempty"` // 0: all
	Limit int    `json:"limit,omitempty"`
}

// listJobs tells of one job, or of the last ones, newest first.
func (n *Node) listJobs(ctx context.Context, req jobRef) ([]JobInfo, error) {
	rows := n.jobRows(req)
	if len(rows) == 0 && req.Job != 0 {
		// A new leader may not have applied what the last one answered.
		if err := n.current(ctx); err != nil {
			return nil, err
		}
		if rows = n.jobRows(req); len(rows) == 0 {
			return nil, noJob(req.Job)
		}
	}
	live := map[uint64]migrate.JobStatus{}
	for _, s := range n.director.Jobs() {
		live[s.Job] = s
	}
	out := make([]JobInfo, 0, len(rows))
	for _, row := range rows {
		info := n.jobInfo(row)
		if s, ok := live[row.GetId()]; ok {
			info.Active, info.Window, info.Trouble = s.Active, s.Window, s.Trouble
			if s.Wait != nil {
				info.Waiting = s.Wait.Error()
			}
		}
		out = append(out, info)
	}
	return out, nil
}

func (n *Node) jobRows(req jobRef) (rows []*wire.Job) {
	n.cluster.FSM().View(func(st *store.Store) {
		switch {
		case req.Job == 0:
			rows = st.Jobs(max(req.Limit, 1))
		case st.Job(req.Job) != nil:
			rows = []*wire.Job{st.Job(req.Job)}
		}
	})
	return rows
}

func (n *Node) jobInfo(j *wire.Job) JobInfo {
	info := JobInfo{
		Job: j.GetId(), Kind: "rebalance", State: jobState(j.GetState()), Priority: j.GetPriority(), By: j.GetBy(),
		Placement:  migrate.PolicyName(j.GetPlacement()),
		MaxPauseUS: int64(j.GetPace().GetMaxPauseUs()), Rate: j.GetPace().GetRate(), Concurrency: j.GetPace().GetConcurrency(),
		At: time.UnixMicro(j.GetWallUs()).UTC(), Planned: j.GetPlanned(), Moved: j.GetMoved(), Aborted: j.GetAborted(),
		Failed: j.GetFailed(), Reason: j.GetReason(),
		PauseUS: Quantiles{
			P50: int64(wire.PauseQuantile(j, 0.5)), P99: int64(wire.PauseQuantile(j, 0.99)), Max: int64(j.GetPauseMaxUs()),
		},
	}
	info.ConfirmedBy = j.GetConfirmedBy()
	if by := j.GetConfirmByUs(); by != 0 {
		info.ConfirmInUS = int64(by - min(by, n.cluster.LogTimeUS()))
	}
	if j.GetCode() != wire.Code_OK {
		info.Code = j.GetCode().Label()
	}
	var now uint64
	n.cluster.FSM().View(func(st *store.Store) {
		now = st.TimeUS()
		if j.GetKind() == wire.JobKind_JOB_KIND_DRAIN {
			info.Remaining = st.Counts().Owned[j.GetWorker()]
		}
	})
	end := j.GetEndedUs()
	if end == 0 {
		end = max(now, n.cluster.LogTimeUS())
	}
	info.TookUS = int64(end - min(j.GetBegunUs(), end))
	if j.GetKind() == wire.JobKind_JOB_KIND_DRAIN {
		info.Kind, info.Node = "drain", n.workerName(j.GetWorker())
	} else if j.GetEndedUs() == 0 {
		info.Remaining = int(j.GetPlanned() - min(j.GetPlanned(), j.GetMoved()))
	}
	return info
}

func jobState(s wire.JobState) string {
	switch s {
	case wire.JobState_JOB_STATE_RUNNING:
		return "running"
	case wire.JobState_JOB_STATE_PAUSED:
		return "paused"
	case wire.JobState_JOB_STATE_CANCELLED:
		return "cancelled"
	case wire.JobState_JOB_STATE_DONE:
		return "done"
	case wire.JobState_JOB_STATE_FAILED:
		return "failed"
	}
	return "unknown"
}

func newNonce() ([]byte, error) {
	nonce := make([]byte, wire.IDBytes)
	_, err := rand.Read(nonce)
	return nonce, err
}
