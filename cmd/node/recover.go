package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

func (p *program) recoverCmd() *cobra.Command {
	var c baton.NewCluster
	var yes bool
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Make a new quorum out of one survivor, when a majority is lost for good",
		Long: "Offline: works on the data directory of a node that is stopped, and makes of it a new cluster of one,\n" +
			"with an identity and keys of its own. Without --yes it only tells what the directory holds.\n\n" +
			"What may be lost: writes that the lost servers acknowledged without this one. Choose the survivor with\n" +
			"the highest index. Never recover while a majority might come back: the two would be two clusters, and\n" +
			"each would serve the same sessions. Wipe the data directories of all other nodes before they are started\n" +
			"again: they then join as new ones. Epochs and fencing tokens are above all former ones; sessions are\n" +
			"detached, migrations and jobs are over, and nothing has an owner for six seconds after the start.",
		Example: "  baton recover --data ./n1 --pki ./pki\n  baton recover --data ./n1 --pki ./pki --yes",
		Args:    cobra.NoArgs,
	}
	newClusterFlags(cmd, &c)
	cmd.Flags().BoolVar(&yes, "yes", false, "the majority is lost for good: do it")
	cmd.RunE = p.run(func(_ context.Context, _ []string) error {
		out, err := baton.RecoverCluster(c, !yes)
		if baton.CodeOf(err).Label() == "unavailable" { // the directory, not a cluster
			return localError{err}
		}
		if err != nil {
			return err
		}
		if yes || p.global.json {
			p.print(out, func(w io.Writer) {
				fmt.Fprintf(w, "node %s is a cluster of one; start it, then wipe and start the others\n", out.Node)
				describeSnapshot(w, out.After)
			})
		} else {
			fmt.Fprintf(p.Stdout, "node %s holds:\n", out.Node)
			describeSnapshot(p.Stdout, out.Before)
			fmt.Fprintf(p.Stdout, "its cluster's other servers: %s\n", strings.Join(out.Lost, ", "))
		}
		if !yes {
			return silentIf(p.global.json, localError{errors.New(
				"nothing was changed: if a majority of these servers is lost for good, and none of the others has a higher index, run it again with --yes")})
		}
		return nil
	})
	return cmd
}

// silentIf keeps --json to one object.
func silentIf(json bool, err error) error {
	if json {
		return silent{err}
	}
	return err
}
