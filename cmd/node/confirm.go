package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

const (
	// approvalLook is how often a move that waits for an operator is looked at.
	approvalLook = time.Second
	// decidedWithin is how long `migration confirm` waits for the move to end, at
	// most.
	decidedWithin = time.Minute
)

// migrate asks for a move. It gives up when limit has passed, but for the time
// in which the move waits for an operator, which it says once.
func (p *program) migrate(ctx context.Context, r *reach, req baton.MigrateRequest, limit time.Duration) (baton.MigrationInfo, error) {
	a, err := r.admin(ctx)
	if err != nil {
		return baton.MigrationInfo{}, err
	}
	defer a.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(limit, func() { cancel(context.DeadlineExceeded) })
	defer late.Stop()
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		said := false
		for {
			select {
			case <-done:
				return
			case <-time.After(approvalLook):
			}
			look, stop := context.WithTimeout(ctx, r.timeout)
			list, err := a.Migrations(look, 1)
			stop()
			for _, m := range list {
				if err != nil || m.Session != req.Session || m.Request == 0 {
					continue
				}
				late.Reset(limit)
				if !said {
					p.note("the move waits for an operator: baton migration confirm %d", m.Request)
					said = true
				}
			}
		}
	}()
	m, err := a.Migrate(ctx, req)
	close(done)
	<-watched
	if err != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s; `baton migrations` shows whether the move goes on: %w", limit, err)
	}
	return m, err
}

// decisionCmd is confirm, reject or defer.
func (p *program) decisionCmd(verdict, short string) *cobra.Command {
	var r reach
	d := baton.MoveDecision{Verdict: verdict}
	var by time.Duration
	cmd := &cobra.Command{
		Use:     verdict + " REQUEST",
		Short:   short,
		Example: "  baton migration " + verdict + " 1234567",
		Args:    cobra.ExactArgs(1),
	}
	r.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&d.By, "by", "", "who decides, for the record (default: operator)")
	if verdict != "confirm" {
		f.StringVar(&d.Reason, "reason", "", "why, for the requester")
	}
	if verdict == "defer" {
		f.DurationVar(&by, "for", time.Minute, "it then waits for so much longer")
	}
	cmd.RunE = p.run(func(ctx context.Context, args []string) (err error) {
		if d.Request, err = strconv.ParseUint(args[0], 10, 64); err != nil {
			return usageError{fmt.Errorf("REQUEST must be a number, as `baton migrations` prints it, not %q", args[0]), "baton migration " + verdict}
		}
		d.ForUS = by.Microseconds()
		wait := r
		if verdict == "confirm" {
			wait.timeout = max(r.timeout, decidedWithin)
		}
		return wait.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			m, err := a.DecideMove(ctx, d)
			if err == nil {
				p.printMigration(m)
			}
			return err
		})
	})
	return cmd
}
