package baton

import (
	"context"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

const (
	// jobPoll is how often a job's progress is asked for.
	jobPoll = 200 * time.Millisecond
	// startTries bounds how often a job's start is asked for: an election is over
	// by then.
	startTries = 25
	// unownedTries bounds how often a report looks for sessions without an owner
	// before it calls them lost: after a crash they have none for a moment.
	unownedTries = 25
)

// DrainOptions shape a drain.
type DrainOptions struct {
	PaceOptions
	// Deadline is how long the drain may take; then it fails, and what is left
	// stays on the node, which still takes no sessions. 0: as long as it takes.
	Deadline  time.Duration
	Priority  uint32 // 1 (first) to 5; 0: 3
	Placement string // bounded_load, least_loaded, zone_spread; empty: the cluster's
	By        string
}

// StartDrain starts moving all sessions off a node, and keeps new ones away
// until Undrain. It returns when that is in the log; the job then runs whoever
// leads. A drain under way is returned, with the pace and deadline given here.
// NO_TARGET: no other node takes sessions.
func (a *Admin) StartDrain(ctx context.Context, node string, opt DrainOptions) (JobInfo, error) {
	nonce, err := newNonce()
	if err != nil {
		return JobInfo{}, err
	}
	return retried(ctx, a, func() (JobInfo, error) {
		return ask[JobInfo](ctx, a, "drain", jobReq{
			PaceOptions: opt.packed(), Nonce: nonce, Node: node, DeadlineUS: opt.Deadline.Microseconds(),
			Priority: opt.Priority, Placement: opt.Placement, By: opt.By,
		})
	})
}

// retried asks again while there is no leader to answer.
func retried[T any](ctx context.Context, a *Admin, fn func() (T, error)) (T, error) {
	for try := 1; ; try++ {
		v, err := fn()
		if code := wire.CodeOf(err); code != wire.Code_UNAVAILABLE && code != wire.Code_NOT_LEADER && code != wire.Code_RETRY {
			return v, err
		}
		if try >= startTries || seam.Sleep(ctx, a.cfg.Clock, jobPoll) != nil {
			return v, err
		}
	}
}

// Drain starts a drain and follows it, calling progress, until it has ended.
// When ctx ends first, the drain goes on, and the report so far comes with
// DEADLINE_EXCEEDED. A drain that failed or was cancelled is an error with its
// code (DEADLINE_PASSED, NO_TARGET, CONFIRMATION_EXPIRED, CANCELLED), and the report.
func (a *Admin) Drain(ctx context.Context, node string, opt DrainOptions, progress func(DrainReport)) (DrainReport, error) {
	j, err := a.StartDrain(ctx, node, opt)
	if err != nil {
		return DrainReport{Node: node}, err
	}
	return a.FollowJob(ctx, j.Job, progress)
}

// FollowJob waits for a job's end, as Drain does. When ctx ends after the job has, but
// before it is known whether anything was lost, the report says how the job ended, and the
// error is DEADLINE_EXCEEDED.
func (a *Admin) FollowJob(ctx context.Context, job uint64, progress func(DrainReport)) (DrainReport, error) {
	var r DrainReport
	for {
		j, err := a.Job(ctx, job)
		if err == nil {
			if r = reportOf(j); progress != nil {
				progress(r)
			}
			if r.Ended() {
				if r, err = a.judgeDrain(ctx, r); err == nil {
					return r, jobError(j)
				}
			}
		}
		if err != nil && !wire.CodeOf(err).Retryable() {
			return r, err
		}
		if seam.Sleep(ctx, a.cfg.Clock, jobPoll) != nil {
			if r.Ended() {
				return r, wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "job %d is %s, but the cluster does not say whether anything was lost (`baton verify` does): %v", job, r.State, err)
			}
			return r, wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "job %d goes on: %d sessions are still to be moved", job, r.Remaining)
		}
	}
}

// jobError is how a job ended, nil for one that is done.
func jobError(j JobInfo) error {
	switch j.State {
	case "done":
		return nil
	case "cancelled":
		return wire.Errorf(wire.Code_CANCELLED, "the job was called off: %s", j.Reason)
	}
	for value, code := range map[string]wire.Code{
		wire.Code_DEADLINE_PASSED.Label(): wire.Code_DEADLINE_PASSED, wire.Code_NO_TARGET.Label(): wire.Code_NO_TARGET,
		wire.Code_CONFIRMATION_EXPIRED.Label(): wire.Code_CONFIRMATION_EXPIRED,
	} {
		if value == j.Code {
			return wire.Errorf(code, "%s", j.Reason)
		}
	}
	return wire.Errorf(wire.Code_INTERNAL, "the job failed: %s", j.Reason)
}

func reportOf(j JobInfo) DrainReport {
	return DrainReport{
		Node: j.Node, Job: j.Job, State: j.State, Code: j.Code, Reason: j.Reason, Waiting: j.Waiting,
		Moved: int(j.Moved), Failed: int(j.Failed), PauseUS: j.PauseUS, TookUS: j.TookUS, Remaining: j.Remaining,
	}
}

// judgeDrain adds what a finished drain may have broken.
func (a *Admin) judgeDrain(ctx context.Context, r DrainReport) (DrainReport, error) {
	for try := 1; ; try++ {
		unowned, err := ask[[]SessionInfo](ctx, a, "unowned", SessionFilter{Limit: SessionsListMax})
		if err != nil {
			return r, err
		}
		if r.Lost = len(unowned); r.Lost == 0 || try >= unownedTries || seam.Sleep(ctx, a.cfg.Clock, jobPoll) != nil {
			break
		}
	}
	v, err := a.Verify(ctx)
	if err != nil {
		return r, err
	}
	r.Duplicated, r.Unreachable = v.DoubleOwned, v.Unreachable
	return r, nil
}

// Undrain lets a node take sessions again, and cancels its drain.
func (a *Admin) Undrain(ctx context.Context, node string) error {
	_, err := ask[struct{}](ctx, a, "undrain", nodeRef{Node: node})
	return err
}

// RebalanceOptions shape a rebalance.
type RebalanceOptions struct {
	PaceOptions
	DryRun    bool // plan only
	MaxMoves  int  // 0: as many as one job can hold
	Deadline  time.Duration
	Priority  uint32
	Placement string // as in DrainOptions
	By        string
}

// Rebalance plans moves after which no node has more than its share, and unless
// it is a dry run starts them as a job, to be followed with FollowJob. A plan
// without moves starts none. JOB_ACTIVE: another rebalance is under way.
func (a *Admin) Rebalance(ctx context.Context, opt RebalanceOptions) (RebalancePlan, error) {
	nonce, err := newNonce()
	if err != nil {
		return RebalancePlan{}, err
	}
	return retried(ctx, a, func() (RebalancePlan, error) {
		return ask[RebalancePlan](ctx, a, "rebalance", jobReq{
			PaceOptions: opt.packed(), Nonce: nonce, DeadlineUS: opt.Deadline.Microseconds(), Priority: opt.Priority,
			Placement: opt.Placement, MaxMoves: opt.MaxMoves, DryRun: opt.DryRun, By: opt.By,
		})
	})
}

// Jobs lists drains and rebalances, newest first.
func (a *Admin) Jobs(ctx context.Context, limit int) ([]JobInfo, error) {
	return ask[[]JobInfo](ctx, a, "jobs", jobRef{Limit: limit})
}

// Job tells of one.
func (a *Admin) Job(ctx context.Context, id uint64) (JobInfo, error) {
	list, err := ask[[]JobInfo](ctx, a, "jobs", jobRef{Job: id})
	if err != nil || len(list) == 0 {
		return JobInfo{}, err
	}
	return list[0], nil
}

// UpdateJob confirms, pauses, resumes, cancels or paces an open job. A pace replaces the
// job's own altogether.
func (a *Admin) UpdateJob(ctx context.Context, u JobUpdate) (JobInfo, error) {
	u.PaceOptions = u.packed()
	return ask[JobInfo](ctx, a, "job-update", u)
}
