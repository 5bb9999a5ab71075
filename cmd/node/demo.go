package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

// demoFlags are the settings of a demo.
type demoFlags struct {
	sessions int
	duration time.Duration
	kill     bool
	rolling  bool
	seed     uint64
	keep     bool
	http     string
	ledger   string
	bin      string
	logLevel string
	// What a run must reach to be ok.
	minAcked, minPivots int
}

const (
	// demoMax bounds a whole demo, whatever happens to the cluster.
	demoMax = 110 * time.Second
	// judgeMax is kept of it for the final reads and the verdict.
	judgeMax = 30 * time.Second
)

func (p *program) demoCmd() *cobra.Command {
	var d demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Three real nodes, live sessions, and everything that can go wrong",
		Long: "Starts three nodes as processes on loopback and clients on every node, and drives load while it moves\n" +
			"sessions, drains a node, kills nodes with SIGKILL, stops one past its failover and lets it wake up, and\n" +
			"restarts all three. Then it compares what the clients saw with what the nodes have on record.\n\n" +
			"acked are the calls that were answered; lost and duplicated those of them that are not on record, or more than\n" +
			"once; double_owned the epochs with two owners; stale_reads the answers older than what had been answered before.\n" +
			"pivots are planned moves, failovers those of sessions whose node was lost; both with how long clients waited.\n" +
			"Exit 5 unless nothing was lost, nothing happened twice, no session ever had two owners and no read was stale.",
		Example: "  baton demo\n  baton demo --json --seed 7\n  baton demo --sessions 200 --duration 90s --keep",
		Args:    cobra.NoArgs,
	}
	f := cmd.Flags()
	f.IntVar(&d.sessions, "sessions", 60, "how many sessions")
	f.DurationVar(&d.duration, "duration", 60*time.Second, "how long to drive load, at least")
	f.BoolVar(&d.kill, "kill", true, "kill nodes with SIGKILL, and stop one past its failover")
	f.BoolVar(&d.rolling, "rolling-restart", true, "restart all three nodes, one by one")
	f.Uint64Var(&d.seed, "seed", 0, "seed of all choices (0: a random one)")
	f.StringVar(&d.http, "http", "", "HTTP port of the first node, with /livez, /readyz, /metrics, for example 127.0.0.1:7402 (default: none)")
	f.BoolVar(&d.keep, "keep", false, "keep the nodes' data and logs, and the ledger")
	f.StringVar(&d.ledger, "ledger", "", "write what the clients saw to this file")
	f.StringVar(&d.bin, "baton", "", "another binary to run the nodes with")
	f.StringVar(&d.logLevel, "log-level", "warn", "of the nodes: debug, info, warn or error; see --keep")
	f.IntVar(&d.minAcked, "min-acked", 10_000, "acknowledged operations that ok takes")
	f.IntVar(&d.minPivots, "min-pivots", 100, "pivots that ok takes")
	for _, hidden := range []string{"baton", "min-acked", "min-pivots"} {
		_ = f.MarkHidden(hidden)
	}
	cmd.AddCommand(p.tourCmds()...)
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		if err := d.check(); err != nil {
			return err
		}
		return p.demo(ctx, d)
	})
	return cmd
}

func (d *demoFlags) check() error {
	var faults []error
	if d.sessions < fleetSize || d.sessions > 10_000 {
		faults = append(faults, fmt.Errorf("--sessions must be %d to 10000", fleetSize))
	}
	if d.duration < 0 || d.duration > demoMax-judgeMax {
		faults = append(faults, fmt.Errorf("--duration must be at most %s: a demo ends within two minutes", demoMax-judgeMax))
	}
	if d.http != "" {
		if err := checkAddrs("--http", []string{d.http}); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		return usageError{errors.Join(faults...), "baton demo"}
	}
	return nil
}

// demoJSON is the demo's verdict.
type demoJSON struct {
	OK           bool            `json:"ok"`
	Acked        int             `json:"acked"`
	Lost         int             `json:"lost"`
	Duplicated   int             `json:"duplicated"`
	DoubleOwned  int             `json:"double_owned"`
	StaleReads   int             `json:"stale_reads"`
	Pivots       int             `json:"pivots"`
	Failovers    int             `json:"failovers"`
	PivotPauseUS baton.Quantiles `json:"pivot_pause_us"`
	FailoverUS   baton.Quantiles `json:"failover_us"`

	Sessions       int `json:"sessions"`
	Unacked        int `json:"unacked"`
	Refused        int `json:"refused"`
	Contradictions int `json:"contradictions"`
	Retried        int `json:"retried"` // acknowledged only after a second attempt
	AbortedMoves   int `json:"aborted_moves"`
	// AbortedWhy counts the aborted migrations that the cluster remembers by reason.
	AbortedWhy   map[string]int `json:"aborted_why"`
	Drains       int            `json:"drains"`
	Kills        int            `json:"kills"`
	Stalls       int            `json:"stalls"`        // SIGSTOP past failover, then SIGCONT
	LeaderPauses int            `json:"leader_pauses"` // SIGSTOP of the leader, shorter than failover
	Rolled       int            `json:"rolled"`        // nodes restarted in an orderly way
	FinalReads   int            `json:"final_reads"`
	Verify       baton.Verdict  `json:"verify"`
	Seed         uint64         `json:"seed"`
	DurationUS   int64          `json:"duration_us"`
	Violations   []string       `json:"violations"`
	Dir          string         `json:"dir,omitempty"` // with --keep
}

// demo runs one demo.
type demo struct {
	demoFlags
	p      *program
	fleet  *fleet
	ledger *Ledger
	load   *load
	show   *progress
	rng    *rand.Rand

	mover    *mover
	recorder *recorder
	outages  []Outage
	drains   int
	kills    int
	stalls   int
	pauses   int
	rolled   int
	// faults are phases that did not go as they must.
	faults []string
}

func (p *program) demo(ctx context.Context, flags demoFlags) error {
	begun := time.Now()
	if flags.seed == 0 {
		flags.seed = rand.Uint64N(1<<32) + 1
	}
	ctx, cancel := context.WithTimeout(ctx, demoMax)
	defer cancel()
	f, err := newFleet(flags.bin, "", 0)
	if err != nil {
		return localError{err}
	}
	f.own = !flags.keep
	f.logLevel(flags.logLevel)
	f.http(flags.http)
	defer f.close()
	d := &demo{
		demoFlags: flags, p: p, fleet: f, ledger: newLedger(),
		rng: rand.New(rand.NewPCG(flags.seed, 0)),
	}
	d.load = newLoad(d.ledger)
	defer d.load.close()
	d.show = newProgress(p, d.ledger)
	defer d.show.close()

	d.show.line("start", "three nodes in %s, seed %d", f.dir, flags.seed)
	if err := f.run(ctx); err != nil {
		return d.interrupted(ctx, localError{err})
	}
	if err := d.load.open(ctx, f, flags.sessions); err != nil {
		return d.interrupted(ctx, localError{err})
	}
	d.show.line("load", "%d sessions over %d clients, on every node", flags.sessions, len(d.load.clients))
	out := d.driveAndJudge(ctx)
	if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return d.interrupted(ctx, nil)
	}
	out.DurationUS = time.Since(begun).Microseconds()
	return d.finish(out)
}

// interrupted turns an error that Ctrl-C caused into that.
func (d *demo) interrupted(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return localError{errors.New("interrupted before there was a verdict; everything was cleaned up")}
	}
	return err
}

// driveAndJudge is the demo proper: load and faults, then the verdict.
func (d *demo) driveAndJudge(ctx context.Context) demoJSON {
	d.load.run(d.seed)
	d.mover = newMover(d.fleet, d.load, d.seed)
	d.recorder = newRecorder(d.fleet)
	drive, cancel := context.WithTimeout(ctx, demoMax-judgeMax-d.show.since())
	d.drive(drive)
	cancel()
	d.mover.close()
	d.recorder.close()
	if errors.Is(ctx.Err(), context.Canceled) {
		return demoJSON{} // Ctrl-C: nobody waits for a verdict
	}
	limit := settleMax
	if len(d.faults) > 0 {
		limit = settleFailed
	}
	if !d.load.settle(limit) {
		d.fault("calls were still unanswered %s after the load had ended", limit)
	}
	d.show.line("settle", "all calls answered: %d acknowledged", d.ledger.ackedOps())
	return d.judge(ctx)
}

// fault notes that something did not go as it must. The demo goes on: the
// verdict is the more telling for it.
func (d *demo) fault(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	d.faults = append(d.faults, msg)
	d.show.line("FAULT", "%s", msg)
}

// finish prints the verdict.
func (d *demo) finish(out demoJSON) error {
	if d.keep {
		out.Dir = d.fleet.dir
		if d.demoFlags.ledger == "" {
			d.demoFlags.ledger = filepath.Join(d.fleet.dir, "ledger.jsonl")
		}
	}
	if path := d.demoFlags.ledger; path != "" {
		if err := d.ledger.save(path); err != nil {
			return localError{fmt.Errorf("writing the ledger: %w", err)}
		}
	}
	d.show.close()
	d.p.print(out, func(w io.Writer) { d.p.printDemo(w, out) })
	if !out.OK {
		return violation{fmt.Sprintf("the demo is not ok; `baton demo --seed %d --keep` keeps the nodes' logs", out.Seed)}
	}
	return nil
}

func (p *program) printDemo(w io.Writer, out demoJSON) {
	word := p.paint(w, ansiGreen, "OK")
	if !out.OK {
		word = p.paint(w, ansiRed, "NOT OK")
	}
	fmt.Fprintf(w, "\n%s after %s\n\n", word, (time.Duration(out.DurationUS) * time.Microsecond).Round(100*time.Millisecond))
	fmt.Fprintf(w, "  acknowledged   %d operations on %d sessions (%d needed a second attempt)\n", out.Acked, out.Sessions, out.Retried)
	fmt.Fprintf(w, "  lost           %d\n  duplicated     %d\n  double owned   %d\n  stale reads    %d\n", out.Lost, out.Duplicated, out.DoubleOwned, out.StaleReads)
	fmt.Fprintf(w, "  pivots         %d live moves, clients paused %s p50, %s p99, %s at most\n", out.Pivots, micros(out.PivotPauseUS.P50), micros(out.PivotPauseUS.P99), micros(out.PivotPauseUS.Max))
	fmt.Fprintf(w, "  failovers      %d sessions, answered again after %s p50, %s p99, %s at most\n", out.Failovers, micros(out.FailoverUS.P50), micros(out.FailoverUS.P99), micros(out.FailoverUS.Max))
	fmt.Fprintf(w, "  nodes          %d killed, %d stalled past failover, %d paused leaders, %d drained, %d restarted in turn\n", out.Kills, out.Stalls, out.LeaderPauses, out.Drains, out.Rolled)
	fmt.Fprintf(w, "  compared       %d final reads through other nodes, %d serving intervals, %d state hashes at index %d\n", out.FinalReads, out.Verify.Checked, len(out.Verify.Hashes), out.Verify.Index)
	for _, v := range out.Violations {
		fmt.Fprintf(w, "  %s %s\n", p.paint(w, ansiRed, "!"), v)
	}
	if out.Dir != "" {
		fmt.Fprintf(w, "  kept           %s\n", out.Dir)
	}
}
