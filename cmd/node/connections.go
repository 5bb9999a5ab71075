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

// sessionsShown is how many of a connection's sessions people are shown.
const sessionsShown = 3

func (p *program) connectionsCmd() *cobra.Command {
	var (
		r reach
		f baton.ConnectionFilter
	)
	cmd := &cobra.Command{
		Use:     "connections",
		Short:   "List clients' connections and the sessions that they carry",
		Example: "  baton connections --node n1\n  baton connections --session cart-7 --json",
		Args:    cobra.NoArgs,
	}
	r.flags(cmd)
	cmd.Flags().StringVar(&f.Node, "node", "", "only those of this node (default: of all that answer)")
	cmd.Flags().StringVar(&f.Session, "session", "", "only those that carry this session")
	cmd.Flags().IntVar(&f.Limit, "limit", 1000, "at most this many")
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		if f.Limit < 1 {
			return usageError{errors.New("--limit must be at least 1"), "baton connections"}
		}
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			list, err := a.Connections(ctx, f)
			if err == nil {
				p.printConnections(list)
			}
			return err
		})
	})
	cmd.AddCommand(p.moveConnectionCmd())
	return cmd
}

func (p *program) printConnections(list []baton.ConnectionInfo) {
	if p.global.json {
		for _, c := range list {
			p.printJSON(c)
		}
		return
	}
	var rows [][]string
	for _, c := range list {
		how := "full"
		switch {
		case c.Relay:
			how = "relay"
		case c.ZeroRTT:
			how = "0-rtt"
		case c.Resumed:
			how = "resumed"
		}
		shown := strings.Join(c.Sessions[:min(len(c.Sessions), sessionsShown)], ",")
		if n := len(c.Sessions) - sessionsShown; n > 0 {
			shown += fmt.Sprintf(" and %d more", n)
		}
		rows = append(rows, []string{
			c.Node, num(c.ID), c.Remote, how, (time.Duration(c.AgeUS) * time.Microsecond).Round(time.Second).String(),
			num(len(c.Sessions)), micros(int64(c.RTTUS)), num(c.BytesReceived), num(c.BytesSent), num(c.PacketsLost), shown,
		})
	}
	table(p.Stdout, "NODE ID REMOTE HANDSHAKE AGE SESSIONS RTT RECEIVED SENT LOST WHICH", rows)
}

func (p *program) moveConnectionCmd() *cobra.Command {
	var (
		r        reach
		node     string
		req      baton.MigrateRequest
		deadline time.Duration
	)
	cmd := &cobra.Command{
		Use:   "move ID --node NODE",
		Short: "Move all sessions of a connection",
		Long: "Moves every session that a connection carries, each by itself, and tells what became of each.\n" +
			"Exit 1 if one did not move: it is then where it was, or the leader fell silent (Unknown:\n`baton session explain` tells).",
		Example: "  baton connections move 17 --node n1 --to n2",
		Args:    cobra.ExactArgs(1),
	}
	r.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&node, "node", "", "the node that has the connection")
	f.StringVar(&req.To, "to", "", "node to move them to (default: the cluster chooses for each)")
	f.StringVar(&req.Reason, "reason", "admin_request", strings.Join(reasons, ", "))
	f.DurationVar(&deadline, "deadline", 15*time.Second, "of each move")
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		id, err := strconv.ParseUint(args[0], 10, 64)
		if err != nil || node == "" || deadline <= 0 {
			return usageError{errors.New("want the connection's number, as `baton connections` prints it, its --node, and a positive --deadline"), "baton connections move"}
		}
		req.DeadlineUS = deadline.Microseconds()
		a, err := r.admin(ctx)
		if err != nil {
			return err
		}
		defer a.Close()
		ctx, cancel := context.WithTimeout(ctx, deadline+r.timeout)
		defer cancel()
		list, err := a.MigrateConnection(ctx, node, id, req)
		if err != nil && len(list) == 0 {
			return err
		}
		failed := 0
		for _, m := range list {
			if m.Code != "" {
				failed++
			}
			p.print(m, func(w io.Writer) { fmt.Fprintf(w, "%s  %s -> %s  %s  %s\n", m.Session, m.From, m.To, m.State, m.Why) })
		}
		if failed > 0 {
			return silent{localError{fmt.Errorf("%d of %d sessions did not move, or it is not known", failed, len(list))}}
		}
		return nil
	})
	return cmd
}
