package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

func (p *program) drainCmd() *cobra.Command {
	var (
		r              reach
		deadline       time.Duration
		detach, cancel bool
	)
	cmd := &cobra.Command{
		Use:     "drain NODE",
		Short:   "Move all sessions off a node and give it no new ones",
		Long:    "Blocks until the node is empty. Ctrl-C leaves the drain running; `baton drain NODE --cancel` stops it.",
		Example: "  baton drain n2 --deadline 2m --json",
		Args:    cobra.ExactArgs(1),
	}
	r.flags(cmd)
	f := cmd.Flags()
	f.DurationVar(&deadline, "deadline", 0, "how long to follow it (0: until the node is empty)")
	f.BoolVar(&detach, "detach", false, "start the drain and return")
	f.BoolVar(&cancel, "cancel", false, "stop a drain; what has moved stays where it is")
	cmd.MarkFlagsMutuallyExclusive("detach", "cancel")
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		if cancel {
			return p.askDone(ctx, &r, "drain of "+args[0]+" stopped", func(ctx context.Context, a *baton.Admin) error {
				return a.Undrain(ctx, args[0])
			})
		}
		return p.drain(ctx, &r, args[0], deadline, detach)
	})
	return cmd
}

// drain runs a drain and follows it.
func (p *program) drain(ctx context.Context, r *reach, node string, deadline time.Duration, detach bool) error {
	a, err := r.admin(ctx)
	if err != nil {
		return err
	}
	defer a.Close()
	run, stop := context.WithCancel(ctx)
	defer stop()
	last := -1
	report, err := a.Drain(run, node, baton.DrainOptions{Deadline: deadline}, func(d baton.DrainReport) {
		if detach {
			stop() // the first report says that it has begun
			return
		}
		if d.Remaining != last {
			last = d.Remaining
			p.note("%s: %d moved, %d to go", node, d.Moved, d.Remaining)
		}
	})
	switch {
	case err != nil && (run.Err() != nil || baton.CodeOf(err).Label() == "deadline_exceeded"):
		p.note("the drain of %s goes on; `baton drain %s --cancel` stops it", node, node)
	case err != nil:
		return err
	}
	p.printDrain(report)
	if report.Lost > 0 || report.Duplicated > 0 {
		return violation{fmt.Sprintf("drain of %s: %d sessions lost, %d duplicated", node, report.Lost, report.Duplicated)}
	}
	if err != nil && run.Err() == nil {
		return silent{localError{fmt.Errorf("%d sessions are left on %s at the deadline; the drain goes on", report.Remaining, node)}}
	}
	return nil
}

func (p *program) printDrain(d baton.DrainReport) {
	p.print(d, func(w io.Writer) {
		fmt.Fprintf(w, "%s: moved %d, failed %d, lost %d, duplicated %d, remaining %d in %s; pause p50 %s, p99 %s, max %s\n",
			d.Node, d.Moved, d.Failed, d.Lost, d.Duplicated, d.Remaining, micros(d.TookUS), micros(d.PauseUS.P50), micros(d.PauseUS.P99), micros(d.PauseUS.Max))
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
		Long:    "Its sessions get new owners at once. A node that was not gone after all registers again.",
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
