package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"github.com/baton-cluster/baton"
)

// failoverFlags are the settings of `bench --op failover`.
type failoverFlags struct {
	kills   int
	standby bool
	think   time.Duration
	profile string
}

const (
	// wholeFor is how long the cluster has to be healthy before the next kill: more
	// than the longest lease, of 5 s, with the clocks' drift.
	wholeFor = 5500 * time.Millisecond
	// servedWithin is when a session counts as not served again.
	servedWithin = 30 * time.Second
)

func (o *failoverFlags) flags(f *pflag.FlagSet) {
	f.IntVar(&o.kills, "kills", 20, "failover: how many nodes to kill -9, one after the other")
	f.BoolVar(&o.standby, "standby", true, "failover: clients keep a connection to their session's successor; herd: only if given")
	f.DurationVar(&o.think, "think", 500*time.Millisecond, "failover: mean pause between two calls of a session; after a kill each calls at once")
	f.StringVar(&o.profile, "profile", "lan", "failover, herd, idle, scale: the nodes' timing")
}

func (o *failoverFlags) check(b *benchFlags, need func(ok bool, format string, args ...any)) {
	if b.op != "failover" && b.op != "herd" && b.op != "idle" && b.op != "scale" {
		return
	}
	need(b.self, "--op %s needs --self: it is about nodes that it started", b.op)
	sessionsMax := 100_000
	if b.op == "scale" {
		sessionsMax = scaleSessionsMax
	}
	need(b.drain.sessions >= 1 && b.drain.sessions <= sessionsMax, "--sessions must be 1 to %d", sessionsMax)
	need(o.kills >= 1 && o.kills <= 1000, "--kills must be 1 to 1000")
	need(o.think >= time.Millisecond, "--think must be at least 1ms")
}

// failoverJSON is what `bench --op failover` finds. A session is served again when
// a call of it is answered under a later epoch. The statistics are over the kills,
// of each kill's p99 over its sessions.
type failoverJSON struct {
	Op         string     `json:"op"`
	Sessions   int        `json:"sessions"`
	Standby    bool       `json:"standby"`
	Profile    string     `json:"profile"`
	Kills      []killJSON `json:"kills"`
	MedianUS   int64      `json:"median_us"`
	P90US      int64      `json:"p90_us"` // the 18th of 20
	WorstUS    int64      `json:"worst_us"`
	Worst      *killJSON  `json:"worst,omitempty"`
	Calls      int64      `json:"calls"`
	Lost       int64      `json:"lost"`
	Duplicated int64      `json:"duplicated"`
	Refused    int64      `json:"refused"` // calls that ended in an error
	Why        string     `json:"why,omitempty"`
	Seed       uint64     `json:"seed"`
	DurationUS int64      `json:"duration_us"`
}

// killJSON is one failover.
type killJSON struct {
	Node     string          `json:"node"`
	Leader   bool            `json:"leader"`
	Sessions int             `json:"sessions"`
	Unserved int             `json:"unserved"` // not served again in time
	ServedUS baton.Quantiles `json:"served_us"`
	Timeline timelineJSON    `json:"timeline"`
}

// timelineJSON is since the kill, in microseconds; 0: not known.
type timelineJSON struct {
	SuspectedUS   int64  `json:"suspected_us"`
	PromisesOutUS int64  `json:"promises_out_us"`
	FencedUS      int64  `json:"fenced_us"`
	AssignedUS    int64  `json:"assigned_us"`
	ServedUS      int64  `json:"served_us"`
	Why           string `json:"why,omitempty"`
}

// timelineOf finds a node's failover among those that the leader saw to.
func timelineOf(all []baton.Failover, node string, killed time.Time) (t timelineJSON) {
	since := func(at time.Time) int64 {
		if at.Before(killed) {
			return 0
		}
		return at.Sub(killed).Microseconds()
	}
	for _, f := range all {
		if f.Node == node && f.FencedAt.After(killed) {
			t = timelineJSON{
				SuspectedUS: since(f.SuspectedAt), PromisesOutUS: since(f.PromisesOutAt),
				FencedUS: since(f.FencedAt), AssignedUS: since(f.AssignedAt), Why: f.Why,
			}
		}
	}
	return t
}

// failoverBench runs one.
type failoverBench struct {
	benchFlags
	p     *program
	fleet *fleet
	v     *survivors
	rng   *rand.Rand
}

func (p *program) benchFailover(ctx context.Context, flags benchFlags) error {
	begun := time.Now()
	o := &flags.failover
	if flags.seed == 0 {
		flags.seed = rand.Uint64N(1<<32) + 1
	}
	f, err := newFleet("", "", 0)
	if err != nil {
		return localError{err}
	}
	defer f.close()
	f.profile(o.profile)
	p.note("starting three nodes")
	if err := f.run(ctx); err != nil {
		return localError{err}
	}
	b := &failoverBench{benchFlags: flags, p: p, fleet: f, v: newSurvivors(o.think), rng: rand.New(rand.NewPCG(flags.seed, 0))}
	defer b.v.close()
	if err := b.open(ctx); err != nil {
		return localError{err}
	}
	load, stop := context.WithCancel(ctx)
	defer stop()
	b.v.run(load)
	out := failoverJSON{Op: flags.op, Sessions: flags.drain.sessions, Standby: o.standby, Profile: o.profile, Seed: flags.seed}
	for len(out.Kills) < o.kills && ctx.Err() == nil {
		k, err := b.kill(ctx)
		if err != nil {
			return localError{err}
		}
		out.Kills = append(out.Kills, k)
		p.note("kill %d: %s with %d sessions: served again after %s p50, %s p99, %s at most", len(out.Kills), k.Node, k.Sessions,
			micros(k.ServedUS.P50), micros(k.ServedUS.P99), micros(k.ServedUS.Max))
	}
	stop()
	tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), survivorAnswered)
	defer cancel()
	b.v.finish(tidy)
	out.DurationUS = time.Since(begun).Microseconds()
	out.sum(b.v)
	p.print(out, func(w io.Writer) { printFailover(w, out) })
	if out.Lost+out.Duplicated+out.Refused > 0 {
		return violation{"calls were lost, counted twice or refused: " + out.Why}
	}
	if out.unserved() > 0 || b.v.unread > 0 {
		return silent{errors.New("sessions were not served again in time, or could not be read in the end")}
	}
	return nil
}

func (b *failoverBench) open(ctx context.Context) error {
	for i := range b.conns {
		c, err := baton.Dial(ctx, baton.ClientConfig{Addrs: b.fleet.users(i % fleetSize), PKI: b.fleet.pki, Standby: b.failover.standby, RequestTimeout: survivorAnswered})
		if err != nil {
			return err
		}
		b.v.clients = append(b.v.clients, c)
	}
	b.p.note("opening %d sessions", b.drain.sessions)
	return b.v.open(ctx, b.drain.sessions, func(i int) string { return b.fleet.nodes[i%fleetSize].name })
}

// kill waits until the cluster has been healthy for long enough, kills a node with
// SIGKILL, waits until its sessions are served again, and starts it anew.
func (b *failoverBench) kill(ctx context.Context) (killJSON, error) {
	if err := b.whole(ctx); err != nil {
		return killJSON{}, err
	}
	st, err := b.fleet.status(ctx)
	if err != nil {
		return killJSON{}, err
	}
	n := b.fleet.nodes[b.rng.IntN(fleetSize)]
	b.fleet.setAway(n.name, true)
	owned := b.v.ownedBy(n.name)
	k := killJSON{Node: n.name, Leader: st.Leader == n.name, Sessions: len(owned)}
	at := time.Now()
	n.proc.kill()
	b.v.hurry()
	wait, cancel := context.WithTimeout(ctx, servedWithin)
	took, missing := b.v.served(wait, owned, at)
	cancel()
	k.ServedUS, k.Unserved = quantiles(took), missing
	ask, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	_ = b.fleet.ask(ask, func(ctx context.Context, a *baton.Admin) error {
		all, err := a.Failovers(ctx)
		k.Timeline = timelineOf(all, n.name, at)
		return err
	})
	k.Timeline.ServedUS = k.ServedUS.Max
	if err := b.fleet.startNode(n); err != nil {
		return k, err
	}
	b.fleet.setAway(n.name, false)
	return k, nil
}

// whole waits until the cluster is healthy and its sessions are spread, and then
// has been for wholeFor.
func (b *failoverBench) whole(ctx context.Context) error {
	if err := b.fleet.waitHealthy(ctx, healthyWithin); err != nil {
		return err
	}
	spread, cancel := context.WithTimeout(ctx, healthyWithin)
	defer cancel()
	if err := b.fleet.ask(spread, func(ctx context.Context, a *baton.Admin) error {
		plan, err := a.Rebalance(ctx, baton.RebalanceOptions{})
		if err == nil && plan.Job != 0 {
			_, err = a.FollowJob(ctx, plan.Job, func(baton.DrainReport) {})
		}
		return err
	}); err != nil {
		b.p.note("the sessions were not spread: %v", err)
	}
	for since := time.Now(); time.Since(since) < wholeFor; {
		if st, err := b.fleet.status(ctx); err != nil || !st.Healthy {
			since = time.Now()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(healthEvery):
		}
	}
	return nil
}

func (out *failoverJSON) unserved() (n int) {
	for i := range out.Kills {
		n += out.Kills[i].Unserved
	}
	return n
}

func (out *failoverJSON) sum(v *survivors) {
	out.Calls, out.Lost, out.Duplicated, out.Refused = v.calls.Load(), v.lost.Load(), v.duplicated.Load(), v.refused.Load()
	out.Why = v.reason()
	if len(out.Kills) == 0 {
		return
	}
	sorted := slices.Clone(out.Kills)
	slices.SortFunc(sorted, func(a, b killJSON) int { return int(a.ServedUS.P99 - b.ServedUS.P99) })
	n := len(sorted)
	out.MedianUS = (sorted[(n-1)/2].ServedUS.P99 + sorted[n/2].ServedUS.P99) / 2
	out.P90US = sorted[(9*n+9)/10-1].ServedUS.P99
	out.Worst = &sorted[n-1]
	out.WorstUS = out.Worst.ServedUS.P99
}

func printFailover(w io.Writer, out failoverJSON) {
	fmt.Fprintf(w, "%d kills, %d sessions, standby %v, profile %s; of each kill the p99 until served again:\n", len(out.Kills), out.Sessions, out.Standby, out.Profile)
	for i, k := range out.Kills {
		role := ""
		if k.Leader {
			role = ", leader"
		}
		fmt.Fprintf(w, "  %2d %s%s, %d sessions: %s p50, %s p99, %s max\n", i+1, k.Node, role, k.Sessions, micros(k.ServedUS.P50), micros(k.ServedUS.P99), micros(k.ServedUS.Max))
	}
	fmt.Fprintf(w, "median %s, nine of ten within %s, worst %s\n", micros(out.MedianUS), micros(out.P90US), micros(out.WorstUS))
	if k := out.Worst; k != nil {
		fmt.Fprintf(w, "the worst, of %s: ", k.Node)
		printTimeline(w, k.Timeline)
	}
	fmt.Fprintf(w, "%d calls: %d lost, %d counted twice, %d refused; seed %d\n", out.Calls, out.Lost, out.Duplicated, out.Refused, out.Seed)
}

func printTimeline(w io.Writer, t timelineJSON) {
	fmt.Fprintf(w, "killed 0, suspected %s (%s), promises out %s, fenced %s, assigned %s, served %s\n",
		micros(t.SuspectedUS), t.Why, micros(t.PromisesOutUS), micros(t.FencedUS), micros(t.AssignedUS), micros(t.ServedUS))
}
