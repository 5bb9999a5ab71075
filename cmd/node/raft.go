package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

func (p *program) raftCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "raft",
		Short:   "The voters",
		Example: "  baton raft peers\n  baton raft replace n3",
		Args:    cobra.ArbitraryArgs,
		RunE:    needSubcommand,
	}
	cmd.AddCommand(p.raftPeersCmd(), p.transferLeaderCmd(), p.raftPromoteCmd(), p.raftReplaceCmd(), p.raftRemoveCmd())
	return cmd
}

type peerJSON struct {
	ID       string         `json:"id"`
	Name     string         `json:"name"`
	Voter    bool           `json:"voter"`
	Leader   bool           `json:"leader"`
	Endpoint baton.Endpoint `json:"endpoint"`
}

func (p *program) raftPeersCmd() *cobra.Command {
	var r reach
	cmd := &cobra.Command{
		Use:     "peers",
		Short:   "List the servers of the Raft group",
		Example: "  baton raft peers --json",
		Args:    cobra.NoArgs,
	}
	r.flags(cmd)
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			st, err := a.Status(ctx)
			if err != nil {
				return err
			}
			peers := []peerJSON{}
			for _, n := range st.Nodes {
				peers = append(peers, peerJSON{n.ID, n.Name, n.Voter, n.Name == st.Leader, n.Endpoint})
			}
			p.print(peers, func(w io.Writer) {
				var rows [][]string
				for _, e := range peers {
					rows = append(rows, []string{e.Name, e.ID, strconv.FormatBool(e.Voter), strconv.FormatBool(e.Leader), endpoint(e.Endpoint)})
				}
				table(w, "NAME ID VOTER LEADER ENDPOINT", rows)
			})
			return nil
		})
	})
	return cmd
}

func (p *program) transferLeaderCmd() *cobra.Command {
	var r reach
	cmd := &cobra.Command{
		Use:     "transfer-leader",
		Short:   "Hand leadership to the voter that is best prepared",
		Example: "  baton raft transfer-leader",
		Args:    cobra.NoArgs,
	}
	r.flags(cmd)
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		return p.askDone(ctx, &r, "leadership handed on", func(ctx context.Context, a *baton.Admin) error {
			return a.TransferLeader(ctx)
		})
	})
	return cmd
}

// serverChange is a command that changes the servers, with what it says when it
// is done.
func (p *program) serverChange(r *reach, cmd *cobra.Command, text func(baton.ServerChange) string,
	fn func(ctx context.Context, a *baton.Admin, args []string) (baton.ServerChange, error)) *cobra.Command {
	r.flags(cmd)
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			c, err := fn(ctx, a, args)
			if err != nil {
				return err
			}
			p.print(c, func(w io.Writer) { fmt.Fprintln(w, text(c)) })
			return nil
		})
	})
	return cmd
}

func (p *program) raftPromoteCmd() *cobra.Command {
	return p.serverChange(&reach{}, &cobra.Command{
		Use:     "promote NODE",
		Short:   "Give a node that follows a vote",
		Long:    "Its log must have caught up. A node beyond --target-voters joins without a vote;\nwhere a vote is missing, or its voter is dead for long, it gets it by itself.",
		Example: "  baton raft promote n4",
		Args:    cobra.ExactArgs(1),
	}, func(c baton.ServerChange) string { return c.Node + " votes" },
		func(ctx context.Context, a *baton.Admin, args []string) (baton.ServerChange, error) {
			return a.Promote(ctx, args[0])
		})
}

func (p *program) raftReplaceCmd() *cobra.Command {
	var with string
	cmd := p.serverChange(&reach{}, &cobra.Command{
		Use:     "replace NODE",
		Short:   "Move a node's vote to a spare",
		Long:    "The node follows from then on. It need not be alive. One change at a time: while the\nvoters change, and for some seconds after, no dead node can be fenced.",
		Example: "  baton raft replace n3\n  baton raft replace n3 --with n5",
		Args:    cobra.ExactArgs(1),
	}, func(c baton.ServerChange) string { return c.Heir + " votes, " + c.Node + " does not" },
		func(ctx context.Context, a *baton.Admin, args []string) (baton.ServerChange, error) {
			return a.Replace(ctx, baton.ReplaceRequest{Node: args[0], With: with})
		})
	cmd.Flags().StringVar(&with, "with", "", "the node that gets the vote (default: any that follows and has caught up)")
	return cmd
}

func (p *program) raftRemoveCmd() *cobra.Command {
	return p.serverChange(&reach{}, &cobra.Command{
		Use:     "remove NODE",
		Short:   "Take a dead node out of the cluster",
		Long:    "Refused if too few voters would be left, and if the node runs: that one is to leave\n(baton leave). A node that was removed must be wiped before it is started again.",
		Example: "  baton raft remove n3",
		Args:    cobra.ExactArgs(1),
	}, func(c baton.ServerChange) string { return c.Node + " is no longer of the cluster" },
		func(ctx context.Context, a *baton.Admin, args []string) (baton.ServerChange, error) {
			return a.RemoveServer(ctx, args[0])
		})
}

// leaveTimeout bounds a leave: its sessions have to move first.
const leaveTimeout = 10 * time.Minute

func (p *program) leaveCmd() *cobra.Command {
	r := &reach{}
	cmd := p.serverChange(r, &cobra.Command{
		Use:   "leave [NODE]",
		Short: "Have a node give up its vote and its place for good",
		Long: "Its sessions move to other nodes, its vote goes, and it stops; its data directory cannot be\n" +
			"used again. Without NODE it is the node at --addr, if that names one. To stop a node that shall come back, send it\nSIGTERM instead: it stays a voter.",
		Example: "  baton leave n4\n  baton leave --addr 127.0.0.1:7431",
		Args:    cobra.MaximumNArgs(1),
	}, func(c baton.ServerChange) string { return c.Node + " has left" },
		func(ctx context.Context, a *baton.Admin, args []string) (baton.ServerChange, error) {
			node := ""
			if len(args) > 0 {
				node = args[0]
			} else if len(r.addrs) > 1 {
				return baton.ServerChange{}, usageError{errors.New("name the node that is to leave: --addr names several"), "baton leave"}
			}
			return a.Leave(ctx, node)
		})
	if f := cmd.Flags().Lookup("timeout"); f != nil {
		r.timeout, f.DefValue = leaveTimeout, leaveTimeout.String()
	}
	return cmd
}
