package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

func (p *program) leaseCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "lease",
		Short:   "How long nodes may serve reads without asking",
		Example: "  baton lease set 500ms",
		Args:    cobra.ArbitraryArgs,
		RunE:    needSubcommand,
	}
	cmd.AddCommand(p.leaseSetCmd())
	return cmd
}

type leaseJSON struct {
	LeaseUS int64 `json:"lease_us"`
}

func (p *program) leaseSetCmd() *cobra.Command {
	var r reach
	cmd := &cobra.Command{
		Use:   "set DURATION",
		Short: "Change how long leases last, from 200ms to 5s",
		Long: "A shorter lease makes failover faster, and bears shorter pauses and elections. What was granted\n" +
			"before keeps its length. `start --lease` sets it for a new cluster.",
		Example: "  baton lease set 500ms",
		Args:    cobra.ExactArgs(1),
	}
	r.flags(cmd)
	cmd.RunE = func(c *cobra.Command, args []string) error {
		d, err := time.ParseDuration(args[0])
		if err != nil {
			return fmt.Errorf("%q is no duration: for example 500ms", args[0])
		}
		return p.run(func(ctx context.Context, _ []string) error {
			return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
				if err := a.SetLease(ctx, d); err != nil {
					return err
				}
				p.print(leaseJSON{d.Microseconds()}, func(w io.Writer) { fmt.Fprintln(w, "leases last", d) })
				return nil
			})
		})(c, args)
	}
	return cmd
}
