package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

type devNodeJSON struct {
	Name     string `json:"name"`
	UserAddr string `json:"user_addr"`
	MgmtAddr string `json:"mgmt_addr"`
	PID      int    `json:"pid"`
}

type devJSON struct {
	Dir   string        `json:"dir"`
	PKI   string        `json:"pki"`
	Nodes []devNodeJSON `json:"nodes"`
}

// devPort is the first node's user port, if nobody has it.
const devPort = 7400

func (p *program) devCmd() *cobra.Command {
	var dir, http string
	cmd := &cobra.Command{
		Use:     "dev",
		Short:   "Run three nodes on this machine until Ctrl-C",
		Long:    "Runs three real nodes on loopback, on ports 7400 to 7421 if they are free, and prints how to reach\nthem. Without --dir everything is gone afterwards.",
		Example: "  baton dev\n  baton dev --dir ./dev --json",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().StringVar(&dir, "dir", "", "keep data and certificates here (default: a temporary directory)")
	cmd.Flags().StringVar(&http, "http", "", "HTTP port of the first node, with /livez, /readyz, /metrics, for example 127.0.0.1:7402 (default: none)")
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		if http != "" {
			if err := checkAddrs("--http", []string{http}); err != nil {
				return err
			}
		}
		f, err := newFleet("", dir, devPort)
		if err != nil {
			f, err = newFleet("", dir, 0)
		}
		if err != nil {
			return localError{err}
		}
		f.http(http)
		defer f.close()
		if err := f.run(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return localError{err}
		}
		p.printDev(f)
		select {
		case <-ctx.Done():
			f.halt(true)
			return nil
		case n := <-f.firstEnd(ctx):
			return localError{fmt.Errorf("node %s ended: %s", n.name, n.lastWords())}
		}
	})
	return cmd
}

func (p *program) printDev(f *fleet) {
	out := devJSON{Dir: f.dir, PKI: f.pki}
	for _, n := range f.nodes {
		out.Nodes = append(out.Nodes, devNodeJSON{n.name, n.user, n.mgmt, n.proc.pid()})
	}
	p.print(out, func(w io.Writer) {
		for _, n := range out.Nodes {
			fmt.Fprintf(w, "%s  clients %s  management %s  pid %d\n", n.Name, n.UserAddr, n.MgmtAddr, n.PID)
		}
		fmt.Fprintf(w, "\nIn another terminal:\n  export BATON_ADDR=%s BATON_PKI=%s\n", strings.Join(f.mgmts(), ","), f.pki)
		fmt.Fprintf(w, "  baton status\n  baton session open --id demo\n\nCtrl-C ends all three.\n")
	})
}
