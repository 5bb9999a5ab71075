package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

func (p *program) rebalanceCmd() *cobra.Command {
	var (
		r        reach
		j        jobFlags
		dryRun   bool
		maxMoves int
	)
	cmd := &cobra.Command{
		Use:   "rebalance",
		Short: "Move sessions so that no node has more than its share",
		Long: "Plans the fewest moves that even the nodes out, and makes them as a job of the cluster. It says\n" +
			"first what it will do; with --dry-run, only that. Ctrl-C leaves it running.",
		Example: "  baton rebalance --dry-run\n  baton rebalance --max-moves 500 --max-pause 20ms --json",
		Args:    cobra.NoArgs,
	}
	r.flags(cmd)
	f := cmd.Flags()
	j.flags(cmd)
	f.BoolVar(&dryRun, "dry-run", false, "only say what would move")
	f.IntVar(&maxMoves, "max-moves", 0, "move at most this many sessions (0: no bound of its own)")
	cmd.MarkFlagsMutuallyExclusive("detach", "dry-run")
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		if err := j.check("baton rebalance"); err != nil {
			return err
		}
		if maxMoves < 0 {
			return usageError{errors.New("--max-moves must not be negative"), "baton rebalance"}
		}
		return p.rebalance(ctx, &r, j, baton.RebalanceOptions{
			PaceOptions: j.paceOptions(), DryRun: dryRun, MaxMoves: maxMoves, Deadline: j.deadline, Priority: j.priority, Placement: j.placement,
		})
	})
	return cmd
}

// rebalanceJSON is the plan, and what came of it.
type rebalanceJSON struct {
	baton.RebalancePlan
	*baton.DrainReport `json:",omitempty"`
	Job                uint64 `json:"job"`
}

func (p *program) rebalance(ctx context.Context, r *reach, j jobFlags, opt baton.RebalanceOptions) error {
	a, err := r.admin(ctx)
	if err != nil {
		return err
	}
	defer a.Close()
	start, stop := context.WithTimeout(ctx, r.timeout)
	plan, err := a.Rebalance(start, opt)
	stop()
	if err != nil {
		return err
	}
	plan.Moves = nonNil(plan.Moves)
	if plan.Job == 0 || j.detach {
		report := rebalanceJSON{RebalancePlan: plan, Job: plan.Job}
		if plan.Job == 0 && !plan.DryRun {
			report.DrainReport = &baton.DrainReport{State: "done"}
		}
		p.print(report, func(w io.Writer) { printPlan(w, plan) })
		return nil
	}
	if !p.global.json {
		printPlan(p.Stdout, plan)
	}
	return p.followJob(ctx, a, plan.Job, fmt.Sprintf("the rebalance goes on; `baton job cancel %d` stops it", plan.Job), func(d baton.DrainReport) {
		if p.global.json {
			p.printJSON(rebalanceJSON{plan, &d, plan.Job})
			return
		}
		p.printDrain(d)
	})
}

// movesShown is how many moves of a plan people are shown.
const movesShown = 20

func printPlan(w io.Writer, plan baton.RebalancePlan) {
	switch {
	case plan.Planned == 0:
		fmt.Fprintln(w, "nothing to move: no node has more than its share")
		return
	case plan.DryRun:
		fmt.Fprintf(w, "%d sessions would move; %d more would remain to be moved\n", plan.Planned, plan.Left)
	default:
		fmt.Fprintf(w, "job %d moves %d sessions; %d more remain to be moved\n", plan.Job, plan.Planned, plan.Left)
	}
	var rows [][]string
	for _, name := range slices.Sorted(maps.Keys(plan.Before)) {
		rows = append(rows, []string{name, num(plan.Before[name]), num(plan.After[name])})
	}
	table(w, "NODE BEFORE AFTER", rows)
	if !plan.DryRun {
		return
	}
	rows = nil
	for _, m := range plan.Moves[:min(len(plan.Moves), movesShown)] {
		rows = append(rows, []string{m.Session, m.From, m.To})
	}
	table(w, "SESSION FROM TO", rows)
	if n := len(plan.Moves) - movesShown; n > 0 {
		fmt.Fprintf(w, "and %d more; --json lists all\n", n)
	}
}

func (p *program) jobsCmd() *cobra.Command {
	var (
		r     reach
		watch bool
		limit int
	)
	cmd := &cobra.Command{
		Use:     "jobs",
		Short:   "List drains and rebalances, newest first",
		Example: "  baton jobs\n  baton jobs --limit 1 --json",
		Args:    cobra.NoArgs,
	}
	r.flags(cmd)
	cmd.Flags().BoolVar(&watch, "watch", false, "go on printing")
	cmd.Flags().IntVar(&limit, "limit", 20, "at most this many")
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		if limit < 1 {
			return usageError{errors.New("--limit must be at least 1"), "baton jobs"}
		}
		show := func() error {
			return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
				list, err := a.Jobs(ctx, limit)
				if err == nil {
					p.printJobs(list)
				}
				return err
			})
		}
		if !watch {
			return show()
		}
		return p.repeat(ctx, watchEvery, show)
	})
	return cmd
}

func (p *program) printJobs(list []baton.JobInfo) {
	if p.global.json {
		for _, j := range list {
			p.printJSON(j)
		}
		return
	}
	var rows [][]string
	for _, j := range list {
		why := j.Reason
		for _, alt := range []string{j.Waiting, j.Trouble} {
			if why == "" {
				why = alt
			}
		}
		rows = append(rows, []string{
			num(j.Job), j.Kind, j.Node, j.State, num(j.Priority), num(j.Moved), num(j.Failed), num(j.Remaining), num(j.Active),
			micros(j.PauseUS.P99), micros(j.TookUS), j.By, why,
		})
	}
	table(p.Stdout, "JOB KIND NODE STATE PRIORITY MOVED FAILED LEFT ACTIVE P99 TOOK BY WHY", rows)
}

func (p *program) jobCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "job",
		Short:   "One drain or rebalance",
		Example: "  baton job pause 1234567\n  baton job pace 1234567 --rate 50",
		Args:    cobra.ArbitraryArgs,
		RunE:    needSubcommand,
	}
	cmd.AddCommand(
		p.jobActionCmd("confirm", "Let a job begin that waits for an operator"),
		p.jobActionCmd("pause", "Begin no more moves until it is resumed"),
		p.jobActionCmd("resume", "Let a paused job go on"),
		p.jobActionCmd("cancel", "End a job; what has moved stays, and a drained node takes sessions again"),
		p.jobActionCmd("pace", "Replace the pace of a job"),
	)
	return cmd
}

func (p *program) jobActionCmd(action, short string) *cobra.Command {
	var (
		r reach
		j jobFlags
	)
	cmd := &cobra.Command{
		Use:     action + " JOB",
		Short:   short,
		Example: "  baton job " + action + " 1234567",
		Args:    cobra.ExactArgs(1),
	}
	r.flags(cmd)
	if action == "pace" {
		j.pace(cmd)
	}
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		id, err := strconv.ParseUint(args[0], 10, 64)
		if err != nil {
			return usageError{fmt.Errorf("JOB must be a number, as `baton jobs` prints it, not %q", args[0]), cmd.CommandPath()}
		}
		if err := j.check(cmd.CommandPath()); err != nil {
			return err
		}
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			info, err := a.UpdateJob(ctx, baton.JobUpdate{
				PaceOptions: j.paceOptions(), Job: id, Action: action, DeadlineUS: j.deadline.Microseconds(),
			})
			if err == nil {
				p.printJobs([]baton.JobInfo{info})
			}
			return err
		})
	})
	return cmd
}
