package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

func (p *program) keysCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "keys",
		Short:   "The cluster's key ring: session tickets, address tokens, seals",
		Example: "  baton keys show\n  baton keys rotate",
		Args:    cobra.ArbitraryArgs,
		RunE:    needSubcommand,
	}
	cmd.AddCommand(p.keysShowCmd(), p.keysRotateCmd())
	return cmd
}

func (p *program) keysShowCmd() *cobra.Command {
	var r reach
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "List the generations of keys, and which each node uses; never a key",
		Example: "  baton keys show --json",
		Args:    cobra.NoArgs,
	}
	r.flags(cmd)
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			ring, err := a.Keys(ctx)
			if err == nil {
				p.print(ring, func(w io.Writer) { printKeys(w, ring) })
			}
			return err
		})
	})
	return cmd
}

// keyKinds are what --kind takes.
var keyKinds = []string{"all", "ticket", "address", "seal"}

func (p *program) keysRotateCmd() *cobra.Command {
	var (
		r     reach
		kinds []string
	)
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Begin a new generation of keys",
		Long: "The leader makes a new root key. Nodes use it as soon as they hear of it, and for a week still open\n" +
			"what the former generations sealed: clients go on resuming with the tickets that they have, moves\n" +
			"under way come to their end. Address tokens follow as each node restarts.",
		Example: "  baton keys rotate\n  baton keys rotate --kind ticket,seal --json",
		Args:    cobra.NoArgs,
	}
	r.flags(cmd)
	cmd.Flags().StringSliceVar(&kinds, "kind", []string{"all"}, strings.Join(keyKinds, ", ")+"; several with commas")
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		for _, k := range kinds {
			if !slices.Contains(keyKinds, k) {
				return usageError{fmt.Errorf("--kind %q is none of %s", k, strings.Join(keyKinds, ", ")), "baton keys rotate"}
			}
		}
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			ring, err := a.RotateKeys(ctx, baton.KeyRotation{Kinds: kinds})
			if err == nil {
				p.print(ring, func(w io.Writer) { printKeys(w, ring) })
			}
			return err
		})
	})
	return cmd
}

func printKeys(w io.Writer, ring baton.KeyRing) {
	rows := make([][]string, 0, len(ring.Generations))
	for _, g := range ring.Generations {
		at, age, drops := "", "", ""
		if !g.At.IsZero() {
			at, age = g.At.Local().Format(time.DateTime), days(g.AgeUS)
		}
		if g.DropsInUS >= 0 {
			drops = days(g.DropsInUS)
		}
		rows = append(rows, []string{num(g.Generation), strings.Join(g.Kinds, ","), strings.Join(g.InUse, ","), at, age, drops, g.By})
	}
	table(w, "GENERATION KINDS IN-USE MADE AGE OPENS-FOR BY", rows)
	fmt.Fprintln(w)
	rows = nil
	for _, n := range ring.Nodes {
		generation := num(n.Generation)
		if !n.Reachable {
			generation = "unreachable"
		}
		rows = append(rows, []string{n.Node, generation})
	}
	table(w, "NODE USES", rows)
}

// days shows a long time in microseconds as people read it.
func days(us int64) string {
	d := (time.Duration(us) * time.Microsecond).Round(time.Second)
	if n := d / (24 * time.Hour); n > 0 {
		return fmt.Sprintf("%dd%s", n, (d % (24 * time.Hour)).Round(time.Minute))
	}
	return d.String()
}
