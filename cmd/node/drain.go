package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

// jobFlags are what drains and rebalances have in common.
type jobFlags struct {
	deadline    time.Duration
	maxPause    time.Duration
	rate        uint32
	concurrency uint32
	priority    uint32
	placement   string
	detach      bool
}

func (j *jobFlags) pace(cmd *cobra.Command) {
	f := cmd.Flags()
	f.DurationVar(&j.maxPause, "max-pause", 0, "keep p99 of the sessions' pauses at or below this, by slowing down (0: no bound)")
	f.Uint32Var(&j.rate, "rate", 0, "begin at most this many moves a second (0: no bound)")
	f.Uint32Var(&j.concurrency, "concurrency", 0, "have at most this many moves under way (0: the cluster's bound)")
	f.DurationVar(&j.deadline, "deadline", 0, "fail after this long; what has not moved stays (0: never)")
}

func (j *jobFlags) flags(cmd *cobra.Command) {
	j.pace(cmd)
	f := cmd.Flags()
	f.Uint32Var(&j.priority, "priority", 3, "1 (first) to 5")
	f.StringVar(&j.placement, "placement", "", "bounded_load, least_loaded or zone_spread (default: the cluster's)")
	f.BoolVar(&j.detach, "detach", false, "start it and return")
}

// check names all faults at once.
func (j *jobFlags) check(command string) error {
	var faults []error
	for name, d := range map[string]time.Duration{"--deadline": j.deadline, "--max-pause": j.maxPause} {
		if d < 0 {
			faults = append(faults, fmt.Errorf("%s must not be negative", name))
		}
	}
	switch j.placement {
	case "", "bounded_load", "least_loaded", "zone_spread":
	default:
		faults = append(faults, fmt.Errorf("--placement %q: want bounded_load, least_loaded or zone_spread", j.placement))
	}
	if j.priority > 5 {
		faults = append(faults, errors.New("--priority must be 1 to 5"))
	}
	if len(faults) > 0 {
		return usageError{errors.Join(faults...), command}
	}
	return nil
}

func (j *jobFlags) paceOptions() baton.PaceOptions {
	return baton.PaceOptions{MaxPause: j.maxPause, Rate: j.rate, Concurrency: j.concurrency}
}

func (p *program) drainCmd() *cobra.Command {
	var (
		r      reach
		j      jobFlags
		cancel bool
	)
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Move all sessions off a node and give it no new ones",
		Long: "Blocks until the node is empty. The drain is a job of the cluster: it survives its leader,\n" +
			"and Ctrl-C leaves it running; `baton drain NODE --cancel` stops it. Given again, it follows\n" +
			"the one under way and sets its pace.",
		Example: "  baton drain n2 --max-pause 20ms --deadline 2m --json",
		Args:    cobra.ExactArgs(1),
	}
	r.flags(cmd)
	j.flags(cmd)
	cmd.Flags().BoolVar(&cancel, "cancel", false, "stop a drain; what has moved stays where it is")
	cmd.MarkFlagsMutuallyExclusive("detach", "cancel")
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		if cancel {
			return p.askDone(ctx, &r, "drain of "+args[0]+" stopped", func(ctx context.Context, a *baton.Admin) error {
				return a.Undrain(ctx, args[0])
			})
		}
		if err := j.check("baton drain"); err != nil {
			return err
		}
		return p.drain(ctx, &r, args[0], j)
	})
	return cmd
}

// drain starts a drain and follows it.
func (p *program) drain(ctx context.Context, r *reach, node string, j jobFlags) error {
	a, err := r.admin(ctx)
	if err != nil {
		return err
	}
	defer a.Close()
	start, stop := context.WithTimeout(ctx, r.timeout)
	job, err := a.StartDrain(start, node, baton.DrainOptions{
		PaceOptions: j.paceOptions(), Deadline: j.deadline, Priority: j.priority, Placement: j.placement,
	})
	stop()
	if err != nil {
		return err
	}
	if j.detach {
		p.print(job, func(w io.Writer) { fmt.Fprintf(w, "job %d drains %s; `baton jobs` shows how it goes\n", job.Job, node) })
		return nil
	}
	return p.followJob(ctx, a, job.Job, fmt.Sprintf("the drain of %s goes on; `baton drain %s --cancel` stops it", node, node), p.printDrain)
}

// followJob waits for a job's end and prints the report. leave is said when the
// command ends before the job.
func (p *program) followJob(ctx context.Context, a *baton.Admin, job uint64, leave string, show func(baton.DrainReport)) error {
	last, said := -1, ""
	report, err := a.FollowJob(ctx, job, func(d baton.DrainReport) {
		if d.Remaining != last {
			last = d.Remaining
			p.note("%d moved, %d to go", d.Moved, d.Remaining)
		}
		if d.Waiting != said {
			if said = d.Waiting; said != "" {
				p.note("waiting: %s", said)
			}
		}
	})
	code := baton.CodeOf(err).Label()
	switch {
	case err != nil && !report.Ended() && (ctx.Err() != nil || code == "deadline_exceeded"):
		p.note("%s", leave)
		err = nil
	case err != nil && report.State == "done" && ctx.Err() != nil: // it was not waited for
		return localError{err}
	case err != nil && (!report.Ended() || report.State == "done"):
		return err
	}
	show(report)
	if report.Lost > 0 || report.Duplicated > 0 {
		return violation{fmt.Sprintf("job %d: %d sessions lost, %d duplicated", job, report.Lost, report.Duplicated)}
	}
	if err != nil {
		return silent{localError{fmt.Errorf("job %d is %s: %w", job, report.State, err)}}
	}
	return nil
}

func (p *program) printDrain(d baton.DrainReport) {
	p.print(d, func(w io.Writer) {
		name := d.Node
		if name == "" {
			name = "rebalance"
		}
		fmt.Fprintf(w, "%s: %s, moved %d, failed %d, lost %d, duplicated %d, remaining %d in %s; pause p50 %s, p99 %s, max %s\n",
			name, d.State, d.Moved, d.Failed, d.Lost, d.Duplicated, d.Remaining, micros(d.TookUS), micros(d.PauseUS.P50), micros(d.PauseUS.P99), micros(d.PauseUS.Max))
		if d.Reason != "" {
			fmt.Fprintf(w, "because: %s\n", d.Reason)
		}
		if len(d.Unreachable) > 0 {
			fmt.Fprintf(w, "not asked, unreachable: %s\n", strings.Join(d.Unreachable, ", "))
		}
	})
}

// doneJSON answers commands that only do something.
type doneJSON struct {
	OK bool `json:"ok"`
}

// askDone calls fn and says that it is done.
func (p *program) askDone(ctx context.Context, r *reach, text string, fn func(context.Context, *baton.Admin) error) error {
	return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
		if err := fn(ctx, a); err != nil {
			return err
		}
		p.print(doneJSON{true}, func(w io.Writer) { fmt.Fprintln(w, text) })
		return nil
	})
}

func (p *program) undrainCmd() *cobra.Command {
	var r reach
	cmd := &cobra.Command{
		Use:     "undrain NODE",
		Short:   "Let a drained node have sessions again",
		Example: "  baton undrain n2",
		Args:    cobra.ExactArgs(1),
	}
	r.flags(cmd)
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		return p.askDone(ctx, &r, args[0]+" takes sessions again", func(ctx context.Context, a *baton.Admin) error {
			return a.Undrain(ctx, args[0])
		})
	})
	return cmd
}

func (p *program) fenceCmd() *cobra.Command {
	var r reach
	cmd := &cobra.Command{
		Use:     "fence NODE",
		Short:   "Say that a node is gone: its present incarnation can never act again",
		Long:    "Its sessions get new owners once the promises that its lease rests on have run out: about a second. A node that still renews its lease is alive, and is not fenced (lease_held): drain it, or stop it first.",
		Example: "  baton fence n3",
		Args:    cobra.ExactArgs(1),
	}
	r.flags(cmd)
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		return p.askDone(ctx, &r, args[0]+" is fenced", func(ctx context.Context, a *baton.Admin) error {
			return a.Fence(ctx, args[0])
		})
	})
	return cmd
}
