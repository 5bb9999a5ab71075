package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

// reasons are what a migration may be asked for.
var reasons = []string{"planned_maintenance", "load_balancing", "health_degradation", "admin_request", "user_requested", "emergency"}

func (p *program) migrateCmd() *cobra.Command {
	var (
		r        reach
		to       string
		reason   string
		deadline time.Duration
		priority int
		metadata map[string]string
	)
	cmd := &cobra.Command{
		Use:     "migrate ID --to NODE",
		Short:   "Move a live session to another node",
		Long:    "Moves a session and waits until the migration has ended. Exit 4 if it was refused or aborted:\nthe session is then where it was. Where the cluster's policy asks for an operator's confirmation, it\nwaits for that; Ctrl-C then withdraws the move.",
		Example: "  baton migrate cart-7 --to n2 --reason load_balancing --deadline 10s",
		Args:    cobra.ExactArgs(1),
	}
	r.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&to, "to", "", "name of the node to move it to")
	f.StringVar(&reason, "reason", "admin_request", strings.Join(reasons, ", "))
	f.DurationVar(&deadline, "deadline", 15*time.Second, "abort unless it pivoted within this time")
	f.IntVar(&priority, "priority", 3, "1 (first) to 5")
	f.StringToStringVar(&metadata, "meta", nil, "notes KEY=VALUE[,…] that are kept with the migration's record")
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		if err := checkMigrate(to, reason, deadline, priority); err != nil {
			return err
		}
		m, err := p.migrate(ctx, &r, baton.MigrateRequest{
			Session: args[0], To: to, Reason: reason, DeadlineUS: deadline.Microseconds(), Priority: uint32(priority), Metadata: metadata,
		}, deadline+r.timeout)
		if err != nil {
			return err
		}
		p.printMigration(m)
		return nil
	})
	return cmd
}

func checkMigrate(to, reason string, deadline time.Duration, priority int) error {
	var faults []error
	if to == "" {
		faults = append(faults, errors.New("--to is needed"))
	}
	known := false
	for _, r := range reasons {
		known = known || r == reason
	}
	if !known {
		faults = append(faults, fmt.Errorf("--reason %q: want one of %s", reason, strings.Join(reasons, ", ")))
	}
	if deadline <= 0 {
		faults = append(faults, errors.New("--deadline must be positive"))
	}
	if priority < 1 || priority > 5 {
		faults = append(faults, errors.New("--priority must be 1 to 5"))
	}
	if len(faults) > 0 {
		return usageError{errors.Join(faults...), "baton migrate"}
	}
	return nil
}

func (p *program) printMigration(m baton.MigrationInfo) {
	m.Steps = nonNil(m.Steps)
	p.print(m, func(w io.Writer) {
		if m.Request != 0 {
			fmt.Fprintf(w, "request %d: %s from %s to %s waits for an operator for another %s\n", m.Request, m.Session, m.From, m.To, micros(m.ExpiresInUS))
			return
		}
		fmt.Fprintf(w, "migration %d: %s from %s to %s, %s, epoch %d, paused %s\n", m.Migration, m.Session, m.From, m.To, m.State, m.Epoch, micros(m.PauseUS))
		if m.Why != "" {
			fmt.Fprintf(w, "because: %s\n", m.Why)
		}
		for _, s := range m.Steps {
			fmt.Fprintf(w, "  %s  %-20s %s\n", s.At.Format("15:04:05.000"), s.State, micros(s.TookUS))
		}
	})
}

func (p *program) migrationsCmd() *cobra.Command {
	var (
		r     reach
		watch bool
		limit int
	)
	cmd := &cobra.Command{
		Use:     "migrations",
		Short:   "List migrations, newest first",
		Example: "  baton migrations --limit 20\n  baton migrations --watch --json",
		Args:    cobra.NoArgs,
	}
	r.flags(cmd)
	cmd.Flags().BoolVar(&watch, "watch", false, "follow: print each migration when it begins and when its state changes")
	cmd.Flags().IntVar(&limit, "limit", 50, "at most this many")
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		if limit < 1 {
			return usageError{errors.New("--limit must be at least 1"), "baton migrations"}
		}
		seen := map[uint64]string{}
		show := func() error {
			return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
				list, err := a.Migrations(ctx, limit)
				if err != nil {
					return err
				}
				p.printMigrations(list, watch, seen)
				return nil
			})
		}
		if !watch {
			return show()
		}
		return p.repeat(ctx, watchEvery, show)
	})
	return cmd
}

// printMigrations prints the list; a watcher gets only what is new in it,
// oldest first.
func (p *program) printMigrations(list []baton.MigrationInfo, watch bool, seen map[uint64]string) {
	if !watch {
		if p.global.json {
			for _, m := range list {
				p.printJSON(m)
			}
			return
		}
		var rows [][]string
		for _, m := range list {
			rows = append(rows, []string{num(m.Migration + m.Request), m.Session, m.State, m.From, m.To, num(m.Epoch), micros(m.PauseUS), m.Reason, m.By, m.Why})
		}
		table(p.Stdout, "MIGRATION SESSION STATE FROM TO EPOCH PAUSE REASON BY WHY", rows)
		return
	}
	for i := len(list) - 1; i >= 0; i-- {
		m := list[i]
		id := m.Migration + m.Request // one of them is 0
		if seen[id] == m.State {
			continue
		}
		seen[id] = m.State
		p.print(m, func(w io.Writer) {
			fmt.Fprintf(w, "%d  %s  %s -> %s  %s  epoch %d  paused %s  %s\n", id, m.Session, m.From, m.To, m.State, m.Epoch, micros(m.PauseUS), m.Why)
		})
	}
}

func (p *program) migrationCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "migration",
		Short:   "One migration",
		Example: "  baton migration abort 1234567",
		Args:    cobra.ArbitraryArgs,
		RunE:    needSubcommand,
	}
	var r reach
	abort := &cobra.Command{
		Use:     "abort MIGRATION",
		Short:   "Abort a migration that has not pivoted",
		Example: "  baton migration abort 1234567 --json",
		Args:    cobra.ExactArgs(1),
	}
	r.flags(abort)
	abort.RunE = p.run(func(ctx context.Context, args []string) error {
		id, err := strconv.ParseUint(args[0], 10, 64)
		if err != nil {
			return usageError{fmt.Errorf("MIGRATION must be a number, as `baton migrations` prints it, not %q", args[0]), "baton migration abort"}
		}
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			m, err := a.AbortMigration(ctx, id)
			if err == nil {
				p.printMigration(m)
			}
			return err
		})
	})
	cmd.AddCommand(
		abort,
		p.decisionCmd("confirm", "Let a move begin that waits for an operator, and wait for its end"),
		p.decisionCmd("reject", "Refuse a move that waits for an operator"),
		p.decisionCmd("defer", "Put off a move that waits for an operator"),
	)
	return cmd
}
