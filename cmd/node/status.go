package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

const (
	watchEvery  = time.Second
	healthEvery = 100 * time.Millisecond
	// certWarning is how long before its end a certificate is pointed out.
	certWarning = 30 * 24 * time.Hour
)

func (p *program) statusCmd() *cobra.Command {
	var (
		r      reach
		watch  bool
		health time.Duration
	)
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "The cluster at a glance",
		Example: "  baton status\n  baton status --wait-healthy 30s --json",
		Args:    cobra.NoArgs,
	}
	r.flags(cmd)
	cmd.Flags().BoolVar(&watch, "watch", false, "print it again each second, until Ctrl-C")
	cmd.Flags().DurationVar(&health, "wait-healthy", 0, "wait up to this long until every node is reachable and active")
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		if health > 0 {
			st, err := waitHealthy(ctx, &r, health, 0)
			if err != nil {
				return err
			}
			p.printStatus(st)
			if !watch {
				return nil
			}
		}
		show := func() error {
			return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
				st, err := a.Status(ctx)
				if err == nil {
					p.printStatus(st)
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

// repeat calls fn at once and then each period until ctx ends; errors that may
// pass are noted, others end it.
func (p *program) repeat(ctx context.Context, period time.Duration, fn func() error) error {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		if err := fn(); err != nil && ctx.Err() == nil {
			if exitCode(err) != exitNoCluster {
				return err
			}
			p.note("baton: %v", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// waitHealthy polls until the cluster says that it is healthy, and has at
// least nodes nodes.
func waitHealthy(ctx context.Context, r *reach, limit time.Duration, nodes int) (baton.Status, error) {
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error // the one that says most
	for {
		var st baton.Status
		err := r.ask(wait, func(ctx context.Context, a *baton.Admin) (err error) {
			st, err = a.Status(ctx)
			return err
		})
		switch {
		case err == nil && st.Healthy && len(st.Nodes) >= nodes:
			return st, nil
		case err == nil:
			last = fmt.Errorf("not healthy within %s: %s", limit, whatAils(st, nodes))
		case exitCode(err) != exitNoCluster && wait.Err() == nil:
			return st, err
		case last == nil || wait.Err() == nil: // else it was cut short
			last = err
		}
		select {
		case <-wait.Done():
			if ctx.Err() != nil {
				return st, ctx.Err()
			}
			return st, last
		case <-time.After(healthEvery):
		}
	}
}

// whatAils names what keeps the cluster from being healthy.
func whatAils(st baton.Status, nodes int) string {
	var ails []string
	if st.Leader == "" {
		ails = append(ails, "no leader")
	}
	if len(st.Nodes) < nodes {
		ails = append(ails, fmt.Sprintf("%d of %d nodes", len(st.Nodes), nodes))
	}
	for _, n := range st.Nodes {
		if !n.Reachable {
			ails = append(ails, n.Name+" is unreachable")
		} else if n.Suspicion != "" {
			ails = append(ails, fmt.Sprintf("%s is %s (%s)", n.Name, n.State, n.Suspicion))
		} else if n.State != "active" {
			ails = append(ails, n.Name+" is "+n.State)
		}
		for _, f := range n.Faults {
			ails = append(ails, n.Name+": "+f.Message)
		}
	}
	if len(ails) == 0 {
		return "sessions without a valid owner, or replicas behind"
	}
	return strings.Join(ails, "; ")
}

func (p *program) printStatus(st baton.Status) {
	st.Nodes = nonNil(st.Nodes)
	p.print(st, func(w io.Writer) {
		health := p.paint(w, ansiGreen, "healthy")
		if !st.Healthy {
			health = p.paint(w, ansiRed, "not healthy: "+whatAils(st, 0))
		}
		leader := st.Leader
		if leader == "" {
			leader = "none"
		}
		fmt.Fprintf(w, "cluster %s  %s\n", st.ClusterID, health)
		survives := fmt.Sprintf("survives the loss of %d", st.FailureTolerance)
		if st.FailureTolerance < 0 {
			survives = fmt.Sprintf("%d short of it: nothing can be written", -st.FailureTolerance)
		}
		fmt.Fprintf(w, "leader %s, term %d, index %d, quorum %d, %s\n", leader, st.Term, st.AppliedIndex, st.Quorum, survives)
		fmt.Fprintf(w, "sessions %d (%d attached, %d moving), %s of %s\n", st.Sessions.Total, st.Sessions.Attached, st.Sessions.Migrating, size(st.ByteBudget.Used), size(st.ByteBudget.Limit))
		var rows [][]string
		for _, n := range st.Nodes {
			state := n.State
			if !n.Reachable {
				state += "?"
			}
			rows = append(rows, []string{n.Name, n.ID, state, strconv.FormatBool(n.Voter), num(n.Incarnation), num(n.Sessions), num(n.Attached),
				num(n.AppliedIndex), micros(n.LeaseLeftUS), micros(n.FsyncP99US), endpoint(n.Endpoint), n.Version})
		}
		table(w, "NAME ID STATE VOTER INCARNATION SESSIONS ATTACHED APPLIED LEASE_LEFT FSYNC_P99 ENDPOINT VERSION", rows)
		for _, n := range st.Nodes {
			if !n.CertificateEnd.IsZero() && time.Until(n.CertificateEnd) < certWarning {
				fmt.Fprintf(w, "the certificate of %s ends on %s: baton pki renew\n", n.Name, n.CertificateEnd.Format(time.DateOnly))
			}
		}
	})
}

func endpoint(e baton.Endpoint) string {
	return fmt.Sprintf("%s/%d", net.JoinHostPort(e.Host, strconv.Itoa(e.UserPort)), e.MgmtPort)
}

func (p *program) membersCmd() *cobra.Command {
	var r reach
	cmd := &cobra.Command{
		Use:     "members",
		Short:   "Gossip's view of the nodes beside Raft's",
		Example: "  baton members --json",
		Args:    cobra.NoArgs,
	}
	r.flags(cmd)
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			list, err := a.Members(ctx)
			if err != nil {
				return err
			}
			p.print(nonNil(list), func(w io.Writer) {
				var rows [][]string
				for _, m := range list {
					rows = append(rows, []string{m.Name, m.ID, m.Gossip, m.State, strconv.FormatBool(m.Voter), num(m.Incarnation), m.Zone, micros(m.LastContactUS), endpoint(m.Endpoint), m.Version})
				}
				table(w, "NAME ID GOSSIP STATE VOTER INCARNATION ZONE LAST_CONTACT ENDPOINT VERSION", rows)
			})
			return nil
		})
	})
	return cmd
}
