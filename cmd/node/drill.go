package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

const (
	// drillThink is the mean pause between two calls of a drill's session.
	drillThink = 250 * time.Millisecond
	// drillWarm lets every session be attached, and stand by, before the kill.
	drillWarm = 2 * time.Second
)

// drillFlags are the settings of a drill.
type drillFlags struct {
	yes      bool
	sessions int
	standby  bool
}

// drillJSON is what a drill finds.
type drillJSON struct {
	Node   string `json:"node"`
	Leader bool   `json:"leader"`
	// Sessions are the drill's own, which were called all along; Moved are all that
	// had clients and got new owners.
	Sessions   int             `json:"sessions"`
	Moved      int             `json:"moved"`
	ServedUS   baton.Quantiles `json:"served_us"`
	Unserved   int             `json:"unserved"`
	Lost       int64           `json:"lost"`
	Duplicated int64           `json:"duplicated"`
	Refused    int64           `json:"refused"`
	Timeline   timelineJSON    `json:"timeline"`
	Verify     baton.Verdict   `json:"verify"`
	Why        string          `json:"why,omitempty"`
}

func (p *program) drillCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "drill",
		Short:   "Rehearse a failover",
		Long:    "Makes something fail on a live cluster, and reports how the cluster took it.",
		Example: "  baton drill kill leader --yes",
		RunE:    needSubcommand,
	}
	cmd.AddCommand(p.drillKillCmd())
	return cmd
}

func (p *program) drillKillCmd() *cobra.Command {
	var d drillFlags
	var u user
	cmd := &cobra.Command{
		Use:   "kill NODE|leader",
		Short: "Make a node end at once, and tell when its sessions were served again",
		Long: "Opens sessions of its own on the node, calls them all along, and makes the node end at once, without a\n" +
			"drain. Refused unless the cluster is healthy and can lose a voter. The node is not started again by this\ncommand. Exit 5 if a call was lost or counted twice, or a session has two owners.",
		Example: "  baton drill kill n2 --yes\n  baton drill kill leader --yes --json",
		Args:    cobra.ExactArgs(1),
	}
	u.flags(cmd)
	f := cmd.Flags()
	f.BoolVar(&d.yes, "yes", false, "really: the node's clients lose it")
	f.IntVar(&d.sessions, "sessions", 100, "how many sessions to open and call")
	f.BoolVar(&d.standby, "standby", true, "the drill's clients keep a connection to their session's successor")
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		if d.sessions < 1 || d.sessions > 10_000 {
			return usageError{errors.New("--sessions must be 1 to 10000"), "baton drill kill"}
		}
		if !d.yes {
			return usageError{fmt.Errorf("this makes %s end at once, on a live cluster: say --yes", args[0]), "baton drill kill"}
		}
		return p.drillKill(ctx, d, &u, args[0])
	})
	return cmd
}

func (p *program) drillKill(ctx context.Context, d drillFlags, u *user, name string) error {
	var st baton.Status
	if err := u.ask(ctx, func(ctx context.Context, a *baton.Admin) (err error) {
		st, err = a.Status(ctx)
		return err
	}); err != nil {
		return err
	}
	if name == "leader" {
		name = st.Leader
	}
	// The others are asked from here on: the node cannot report its own end.
	u.reach.addrs = nil
	var users []string
	for _, n := range st.Nodes {
		if n.Name != name {
			u.reach.addrs = append(u.reach.addrs, net.JoinHostPort(n.Endpoint.Host, strconv.Itoa(n.Endpoint.MgmtPort)))
		}
		users = append(users, net.JoinHostPort(n.Endpoint.Host, strconv.Itoa(n.Endpoint.UserPort)))
	}
	if len(u.reach.addrs) == 0 {
		return localError{errors.New("there is no other node to take the sessions")}
	}
	v := newSurvivors(drillThink)
	defer v.close()
	c, err := baton.Dial(ctx, baton.ClientConfig{Addrs: users, PKI: u.reach.pki, Standby: d.standby, RequestTimeout: survivorAnswered})
	if err != nil {
		return err
	}
	v.clients = append(v.clients, c)
	p.note("opening %d sessions on %s", d.sessions, name)
	if err := v.open(ctx, d.sessions, func(int) string { return name }); err != nil {
		return err
	}
	load, stop := context.WithCancel(ctx)
	defer stop()
	v.run(load)
	select {
	case <-time.After(drillWarm):
	case <-ctx.Done():
		return localError{errors.New("interrupted before the kill; nothing was harmed")}
	}
	out, err := p.rehearse(ctx, v, u, name)
	stop()
	tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), survivorAnswered)
	defer cancel()
	v.finish(tidy)
	if err != nil {
		return err
	}
	out.Sessions = d.sessions
	out.Lost, out.Duplicated, out.Refused, out.Why = v.lost.Load(), v.duplicated.Load(), v.refused.Load(), v.reason()
	p.print(out, func(w io.Writer) { printDrill(w, out) })
	switch {
	case out.Lost+out.Duplicated > 0 || !out.Verify.OK:
		return violation{"the rehearsal found a violation: " + out.Why}
	case out.Unserved > 0 || out.Refused > 0 || v.unread > 0:
		return silent{errors.New("sessions were not served again in time")}
	}
	return nil
}

// rehearse kills the node and waits until the drill's sessions are served again.
func (p *program) rehearse(ctx context.Context, v *survivors, u *user, name string) (out drillJSON, err error) {
	a, err := u.admin(ctx)
	if err != nil {
		return out, err
	}
	defer a.Close()
	owned := v.ownedBy(name)
	ask, cancel := context.WithTimeout(ctx, u.reach.timeout)
	asked := time.Now()
	killed, err := a.Kill(ask, name)
	cancel()
	if err != nil {
		return out, err
	}
	v.hurry()
	p.note("%s was killed", name)
	wait, cancel := context.WithTimeout(ctx, servedWithin)
	took, missing := v.served(wait, owned, asked)
	cancel()
	out = drillJSON{Node: killed.Node, Leader: killed.Leader, ServedUS: quantiles(took), Unserved: missing}
	ask, cancel = context.WithTimeout(ctx, u.reach.timeout)
	defer cancel()
	all, err := a.Failovers(ask)
	if err != nil {
		return out, err
	}
	out.Timeline = timelineOf(all, killed.Node, killed.At)
	out.Timeline.ServedUS = out.ServedUS.Max
	for _, f := range all {
		if f.Node == killed.Node && f.FencedAt.After(killed.At) {
			out.Moved = f.Sessions
		}
	}
	out.Verify, err = a.Verify(ask)
	out.Verify.Hashes, out.Verify.Violations, out.Verify.Unreachable = nonNil(out.Verify.Hashes), nonNil(out.Verify.Violations), nonNil(out.Verify.Unreachable)
	return out, err
}

func printDrill(w io.Writer, out drillJSON) {
	role := ""
	if out.Leader {
		role = ", the leader,"
	}
	fmt.Fprintf(w, "%s%s was killed; %d sessions with clients moved\n", out.Node, role, out.Moved)
	fmt.Fprintf(w, "%d sessions of this drill were served again after %s p50, %s p99, %s at most; %d were not\n",
		out.Sessions, micros(out.ServedUS.P50), micros(out.ServedUS.P99), micros(out.ServedUS.Max), out.Unserved)
	printTimeline(w, out.Timeline)
	fmt.Fprintf(w, "%d lost, %d counted twice, %d refused; verify ok: %v\n", out.Lost, out.Duplicated, out.Refused, out.Verify.OK)
	fmt.Fprintf(w, "start %s again: it comes back without sessions; `baton rebalance` gives it some\n", out.Node)
}
