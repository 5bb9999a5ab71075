package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
)

// drainFlags are the settings of `bench --op drain`.
type drainFlags struct {
	sessions   int
	node       string
	maxPause   time.Duration
	rate       uint32
	killLeader int
}

const (
	// drainPoll is how often the killer looks how far the drain has come.
	drainPoll = 20 * time.Millisecond
	// drainAnswered bounds a call of the load: however long an election takes, each
	// is to succeed in the end.
	drainAnswered = 2 * time.Minute
	killsMax      = 10
)

func (d *drainFlags) flags(f *pflag.FlagSet) {
	f.IntVar(&d.sessions, "sessions", 1000, "drain: attached sessions, all on one node; failover, idle, scale: on all nodes")
	f.StringVar(&d.node, "node", "", "drain: the node to drain (default: one that does not lead)")
	f.DurationVar(&d.maxPause, "max-pause", 0, "drain: as in `baton drain`")
	f.Uint32Var(&d.rate, "rate", 0, "drain: as in `baton drain`")
	f.IntVar(&d.killLeader, "kill-leader", 0, "drain: kill -9 the leader so many times while it runs; with --self")
}

func (d *drainFlags) check(b *benchFlags, need func(ok bool, format string, args ...any)) {
	if b.op != "drain" {
		return
	}
	need(d.sessions >= 1 && d.sessions <= 100_000, "--sessions must be 1 to 100000")
	need(d.maxPause >= 0, "--max-pause must not be negative")
	need(d.killLeader >= 0 && d.killLeader <= killsMax, "--kill-leader must be 0 to %d", killsMax)
	need(d.killLeader == 0 || b.self, "--kill-leader needs --self: it kills only what it started")
}

// choose settles which node is drained.
func (d *drainFlags) choose(ctx context.Context, u *user) error {
	return u.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
		st, err := a.Status(ctx)
		if err != nil {
			return err
		}
		if d.node != "" {
			_, err := addrsOf(st, d.node)
			return err
		}
		for _, n := range st.Nodes {
			if n.Name != st.Leader && n.State == "active" {
				d.node = n.Name
				return nil
			}
		}
		return localError{errors.New("no active node but the leader: a drain needs two")}
	})
}

// drainBenchJSON is what `bench --op drain` finds. PauseUS is what clients
// measured at each planned move: from the moment that nobody served them until
// somebody did. JobPauseUS is the same as the nodes saw it.
type drainBenchJSON struct {
	Op         string `json:"op"`
	Node       string `json:"node"`
	Sessions   int    `json:"sessions"`
	Conns      int    `json:"conns"`
	ValueBytes int    `json:"value_bytes"`
	MaxPauseUS int64  `json:"max_pause_us"`
	Moved      int    `json:"moved"`
	Failed     int    `json:"failed"`
	Remaining  int    `json:"remaining"`
	Lost       int    `json:"lost"`
	Duplicated int    `json:"duplicated"`
	// Refused calls ended in an error.
	Refused     int             `json:"refused"`
	PauseUS     baton.Quantiles `json:"pause_us"`
	Moves       int             `json:"moves"` // that clients saw, planned
	JobPauseUS  baton.Quantiles `json:"job_pause_us"`
	CallUS      baton.Quantiles `json:"call_us"` // latency of the calls made meanwhile
	Calls       int             `json:"calls"`
	CrossedUS   baton.Quantiles `json:"crossed_us"` // of these, the calls that a planned move came across
	Crossed     int             `json:"crossed"`
	Failovers   int             `json:"failovers"` // changes of owner that clients saw, unplanned
	LeaderKills int             `json:"leader_kills"`
	SessionsPS  float64         `json:"sessions_per_s"`
	TookUS      int64           `json:"took_us"`
	State       string          `json:"state"`
	Violations  []string        `json:"violations,omitempty"`
}

// drainBench is one drain under load.
type drainBench struct {
	*bencher
	p     *program
	u     *user
	fleet *fleet // nil: a cluster that others run
	begun int64  // in the ledger's time
	kills int
	moved atomic.Int64 // sessions moved so far

	mu    sync.Mutex
	moves map[string]int64 // session → when its client saw it move as planned, in the ledger's time
}

// benchDrain drains a node with attached sessions that are called all the while,
// and compares what clients were told with what is there in the end.
func (p *program) benchDrain(ctx context.Context, b *bencher, f *fleet, u *user) error {
	d := &drainBench{bencher: b, p: p, u: u, fleet: f, moves: map[string]int64{}}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	stop := d.load(ctx)
	report, err := d.run(ctx)
	stop()
	if err != nil {
		return err
	}
	out, err := d.judge(ctx, report)
	if err != nil {
		return err
	}
	b.leave()
	p.print(out, func(w io.Writer) { printDrainBench(w, out) })
	switch {
	case out.Lost > 0 || out.Duplicated > 0 || out.Refused > 0:
		return violation{fmt.Sprintf("%d lost, %d duplicated, %d calls refused", out.Lost, out.Duplicated, out.Refused)}
	case out.State != "done" || out.Failed > 0:
		return silent{fmt.Errorf("the drain is %s, %d moves failed", out.State, out.Failed)}
	case out.LeaderKills < b.drain.killLeader:
		return silent{fmt.Errorf("the drain was over after %d of %d kills; slow it down with --rate", out.LeaderKills, b.drain.killLeader)}
	}
	return nil
}

// prepare gives every session a value and a count of one, and watches its moves.
func (d *drainBench) prepare(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4 * openersMax)
	for i, s := range d.sessions {
		s.OnMove(func(m baton.Move) {
			d.ledger.addMove(MoveSeen{s.ID(), m.Epoch, m.From.Name, m.To.Name, m.Planned, m.Pause.Microseconds()})
			if m.Planned {
				d.mu.Lock()
				d.moves[s.ID()] = d.ledger.now()
				d.mu.Unlock()
			}
		})
		g.Go(func() error {
			if s.Owner().Name != d.drain.node {
				return localError{fmt.Errorf("session %s was opened on %s, not on %s", s.ID(), s.Owner().Name, d.drain.node)}
			}
			if err := d.call(ctx, i); err != nil {
				return err
			}
			return d.ledger.do(s.ID(), kindPut, func() (int64, baton.Reply, error) {
				r, err := s.Put(ctx, keyRegister, append(versionBytes(1, 0), d.value...))
				return 1, r, err
			})
		})
	}
	err := g.Wait()
	d.begun = d.ledger.now()
	return err
}

func (d *drainBench) call(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, drainAnswered)
	defer cancel()
	s := d.sessions[i]
	return d.ledger.do(s.ID(), kindIncr, func() (int64, baton.Reply, error) { return s.Incr(ctx, keyCounter, 1) })
}

// load calls the sessions in turn at the target's rate, each only once at a time,
// until the returned function is called; that waits for the answers.
func (d *drainBench) load(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	loop := make(chan struct{})
	var calls sync.WaitGroup
	busy := make([]atomic.Bool, len(d.sessions))
	go func() {
		defer close(loop)
		if d.target == 0 {
			return
		}
		tick := time.NewTicker(time.Second / time.Duration(d.target))
		defer tick.Stop()
		for i := 0; ; i = (i + 1) % len(d.sessions) {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if busy[i].Swap(true) {
				continue
			}
			calls.Go(func() {
				defer busy[i].Store(false)
				_ = d.call(context.WithoutCancel(ctx), i) // the ledger has what became of it
			})
		}
	}()
	return func() {
		cancel()
		<-loop
		calls.Wait()
	}
}

// run drains, and kills leaders meanwhile.
func (d *drainBench) run(ctx context.Context) (baton.DrainReport, error) {
	a, err := d.u.admin(ctx)
	if err != nil {
		return baton.DrainReport{}, err
	}
	defer a.Close()
	d.p.note("draining %s", d.drain.node)
	job, err := a.StartDrain(ctx, d.drain.node, baton.DrainOptions{
		PaceOptions: baton.PaceOptions{MaxPause: d.drain.maxPause, Rate: d.drain.rate}, By: "bench",
	})
	if err != nil {
		return baton.DrainReport{}, err
	}
	killing, stop := context.WithCancel(ctx)
	defer stop()
	killed := make(chan error, 1)
	go func() { killed <- d.killLeaders(killing, job.Job) }()
	report, err := a.FollowJob(ctx, job.Job, func(r baton.DrainReport) { d.moved.Store(int64(r.Moved)) })
	stop()
	if report.State == "failed" || report.State == "cancelled" {
		err = nil // the report tells
	}
	return report, errors.Join(err, <-killed)
}

// killLeaders kills the leader at even shares of the drain, each time once the
// cluster is whole again. A leader that is itself being drained hands over first:
// its death would take the drain's work away.
func (d *drainBench) killLeaders(ctx context.Context, job uint64) error {
	for d.kills < d.drain.killLeader && d.awaitMoved(ctx, d.share(d.kills+1)) {
		n, err := d.leader(ctx)
		if n == nil || err != nil {
			return err
		}
		d.p.note("kill -9 %s, the leader, after %d moves", n.name, d.moved.Load())
		d.fleet.setAway(n.name, true)
		n.proc.kill()
		d.kills++
		if err := d.fleet.startNode(n); err != nil {
			return localError{err}
		}
		d.fleet.setAway(n.name, false)
		if err := d.hold(ctx, job); err != nil && ctx.Err() == nil {
			return localError{err}
		}
	}
	return nil
}

// share is how many moves come before the nth kill.
func (d *drainBench) share(n int) int64 {
	return int64(d.drain.sessions) * int64(n) / int64(d.drain.killLeader+1)
}

// awaitMoved reports false if ctx ended before.
func (d *drainBench) awaitMoved(ctx context.Context, n int64) bool {
	for d.moved.Load() < n {
		if !rested(ctx, drainPoll) {
			return false
		}
	}
	return true
}

// hold waits until the cluster is whole. If the drain comes to the next kill
// before, it is paused until then.
func (d *drainBench) hold(ctx context.Context, job uint64) error {
	healthy, whole := context.WithCancel(ctx)
	defer whole()
	held := make(chan bool, 1)
	go func() {
		next := d.kills < d.drain.killLeader && d.awaitMoved(healthy, d.share(d.kills+1))
		held <- next && d.update(ctx, job, "pause")
	}()
	err := d.fleet.waitHealthy(ctx, formWithin)
	whole()
	if <-held {
		d.update(ctx, job, "resume")
	}
	return err
}

// update asks until there is a leader to answer, and reports whether the job is
// there to be updated.
func (d *drainBench) update(ctx context.Context, job uint64, action string) bool {
	for {
		err := d.fleet.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			_, err := a.UpdateJob(ctx, baton.JobUpdate{Job: job, Action: action, By: "bench"})
			return err
		})
		if err == nil || over(err) || !rested(ctx, drainPoll) {
			return err == nil
		}
	}
}

// leader finds a leader that is not being drained. nil: ctx ended.
func (d *drainBench) leader(ctx context.Context) (*fleetNode, error) {
	for rested(ctx, drainPoll) {
		st, err := d.fleet.status(ctx)
		switch {
		case err != nil || st.Leader == "":
		case st.Leader != d.drain.node:
			return d.fleet.node(st.Leader), nil
		default:
			_ = d.fleet.ask(ctx, func(ctx context.Context, a *baton.Admin) error { return a.TransferLeader(ctx) })
		}
	}
	return nil, nil
}

// rested waits, and reports false if ctx ended before.
func rested(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// judge reads every session once more and compares.
func (d *drainBench) judge(ctx context.Context, r baton.DrainReport) (drainBenchJSON, error) {
	h := d.ledger.history()
	h.Finals = make([]Final, len(d.sessions))
	var g errgroup.Group
	g.SetLimit(4 * openersMax)
	for i, s := range d.sessions {
		g.Go(func() error {
			f := Final{Session: s.ID(), Through: s.Owner().Name}
			var err error
			if f.Counter, _, err = readVersion(ctx, s, keyCounter); err == nil {
				f.Version, _, err = readVersion(ctx, s, keyRegister)
			}
			if err != nil {
				f.Err = err.Error()
			}
			h.Finals[i] = f
			return nil
		})
	}
	_ = g.Wait()
	found := check(&h)
	for _, f := range h.Finals {
		if f.Err != "" {
			found.found(&found.Lost, 1, "session %s cannot be read: %s", f.Session, f.Err)
		}
	}
	var v baton.Verdict
	if err := d.u.ask(ctx, func(ctx context.Context, a *baton.Admin) (err error) {
		v, err = a.Verify(ctx)
		return err
	}); err != nil {
		return drainBenchJSON{}, err
	}
	return d.sum(&h, r, found, v), nil
}

func (d *drainBench) sum(h *History, r baton.DrainReport, found Findings, v baton.Verdict) drainBenchJSON {
	out := drainBenchJSON{
		Op: d.op, Node: d.drain.node, Sessions: len(d.sessions), Conns: d.conns, ValueBytes: d.benchFlags.value,
		MaxPauseUS: d.drain.maxPause.Microseconds(), Moved: r.Moved, Failed: r.Failed, Remaining: r.Remaining, State: r.State,
		Lost: r.Lost + found.Lost, Duplicated: r.Duplicated + found.Duplicated + v.DoubleOwned + v.Overlaps, Refused: found.Refused,
		JobPauseUS: r.PauseUS, LeaderKills: d.kills, TookUS: r.TookUS,
		Violations: append(found.Violations, v.Violations...),
	}
	if r.TookUS > 0 {
		out.SessionsPS = float64(r.Moved) / (float64(r.TookUS) / 1e6)
	}
	var pauses, calls, crossed []int64
	for _, m := range h.Moves {
		if m.Planned {
			pauses = append(pauses, m.PauseUS)
		} else {
			out.Failovers++
		}
	}
	for _, o := range h.Ops {
		if o.StartUS >= d.begun && o.Kind == kindIncr {
			calls = append(calls, o.EndUS-o.StartUS)
			if at := d.moves[o.Session]; o.StartUS <= at && at <= o.EndUS {
				crossed = append(crossed, o.EndUS-o.StartUS)
			}
		}
	}
	out.Moves, out.PauseUS = len(pauses), quantiles(pauses)
	out.Calls, out.CallUS = len(calls), quantiles(calls)
	out.Crossed, out.CrossedUS = len(crossed), quantiles(crossed)
	return out
}

func printDrainBench(w io.Writer, out drainBenchJSON) {
	fmt.Fprintf(w, "%s drained: %s, %d of %d sessions on %d connections moved in %s, %.0f/s; failed %d, lost %d, duplicated %d, %d leaders killed\n",
		out.Node, out.State, out.Moved, out.Sessions, out.Conns, micros(out.TookUS), out.SessionsPS, out.Failed, out.Lost, out.Duplicated, out.LeaderKills)
	line := func(name string, q baton.Quantiles, n int) {
		fmt.Fprintf(w, "  %-16s p50 %s, p99 %s, max %s, of %d\n", name, micros(q.P50), micros(q.P99), micros(q.Max), n)
	}
	line("clients' pauses", out.PauseUS, out.Moves)
	line("nodes' pauses", out.JobPauseUS, out.Moved)
	line("calls meanwhile", out.CallUS, out.Calls)
	line("calls across one", out.CrossedUS, out.Crossed)
	for _, v := range out.Violations {
		fmt.Fprintf(w, "  %s\n", v)
	}
}
