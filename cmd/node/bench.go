package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
)

// benchFlags are the settings of a bench.
type benchFlags struct {
	op       string
	self     bool
	clients  int
	conns    int
	value    int
	duration time.Duration
	ledger   string
	drain    drainFlags
	failover failoverFlags
	// confirmed: reads go through the log.
	confirmed bool
	// target is the rate of all calls together, seed what is drawn by.
	target  int
	seed    uint64
	verbose bool
	victims string // herd: which node dies
	nice    int    // herd: the clients'
}

const (
	// Latencies are recorded from 1 µs to a minute, to three digits.
	latencyMinUS, latencyMaxUS, latencyDigits = 1, 60_000_000, 3
	benchValueMax                             = 512 << 10
	// mixedReads of ten operations of a mixed bench are reads.
	mixedReads = 8
	methodEcho = "echo"
)

// What can be measured: load, moves under load, and parts of a move by themselves.
var (
	loadOps  = []string{"put", "get", "mixed", "echo"}
	partOps  = []string{"initiate", "token", "snapshot"}
	benchOps = slices.Concat(loadOps, []string{"pivot", "drain", "failover", "herd", "idle", "scale"}, partOps)
)

func (p *program) benchCmd() *cobra.Command {
	var b benchFlags
	var u user
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure operations per second and their latency",
		Long: "Each client has a session of its own and one operation outstanding. Sessions share --conns\n" +
			"connections. With --target they call at that rate together, and else as fast as answers come. put is a durable write, get a linearizable read, mixed 80 % gets, echo a round trip\nthat touches no state. pivot moves all sessions at once, again and again, while each is called without\na break; it has one client unless --clients says otherwise. drain moves --sessions off a node\nwhile they are called. failover kills nodes of\nits own with SIGKILL, one after the other, and tells when their sessions were served again.\nherd has --clients, each with a connection of its own, lose their node at once. idle\ntells what the nodes cost whose --sessions are attached and ask nothing. scale fills nodes of its own with\n--sessions at rest: their heap, what --clients' writes cost beside a tenth of them and beside all, a restart. initiate, token and snapshot measure\nparts of a migration by themselves, without a cluster.",
		Example: "  baton bench --self --op put --clients 64\n  baton bench --addr 127.0.0.1:7401 --op mixed --duration 30s --json\n  baton bench --self --op pivot --clients 64\n  baton bench --self --op drain --sessions 10000 --conns 200 --kill-leader 2 --rate 500",
		Args:    cobra.NoArgs,
	}
	u.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&b.op, "op", "put", strings.Join(benchOps, ", "))
	f.BoolVar(&b.self, "self", false, "run three nodes on this machine for it")
	f.IntVar(&b.clients, "clients", 64, "clients, each with a session and one operation outstanding")
	f.IntVar(&b.conns, "conns", 8, "connections that they share")
	f.IntVar(&b.value, "value-bytes", 64, "size of values")
	f.DurationVar(&b.duration, "duration", 10*time.Second, "how long to measure")
	confirmedFlag(cmd, &b.confirmed)
	f.StringVar(&b.ledger, "ledger", "", "write every operation to this file, for `baton verify --ledger`; the sessions are then kept for an hour")
	b.paceFlags(f)
	b.herdFlags(f)
	b.drain.flags(f)
	b.failover.flags(f)
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		if b.op == "drain" {
			b.clients = b.drain.sessions
		}
		if b.op == "pivot" && !f.Changed("clients") {
			b.clients = 1
		}
		switch b.op {
		case "idle":
			b.idle(f)
		case "scale":
			b.scale(f)
		}
		if b.op == "herd" {
			if !f.Changed("clients") {
				b.clients = herdClients
			}
			b.failover.standby = b.failover.standby && f.Changed("standby")
		}
		b.conns = min(b.conns, max(b.clients, 1))
		b.pace(f.Changed("target"))
		if err := b.check(); err != nil {
			return err
		}
		if slices.Contains(partOps, b.op) {
			return p.benchPart(ctx, b)
		}
		switch b.op {
		case "failover":
			return p.benchFailover(ctx, b)
		case "herd":
			return p.benchHerd(ctx, b)
		case "idle":
			return p.benchIdle(ctx, b)
		case "scale":
			return p.benchScale(ctx, b)
		}
		return p.bench(ctx, b, &u)
	})
	return cmd
}

func (b *benchFlags) check() error {
	var faults []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	need(slices.Contains(benchOps, b.op), "--op %q: want one of %s", b.op, strings.Join(benchOps, ", "))
	need(b.ledger == "" || slices.Contains(loadOps, b.op), "--ledger goes with %s", strings.Join(loadOps, ", "))
	need(!b.confirmed || slices.Contains(loadOps, b.op) && b.op != "put", "--confirmed goes with get, mixed, echo")
	need(b.clients >= 1 && b.clients <= 100_000, "--clients must be 1 to 100000")
	need(b.conns >= 1 && b.conns <= b.clients, "--conns must be 1 to --clients")
	need(b.value >= 0 && b.value <= benchValueMax, "--value-bytes must be 0 to %d", benchValueMax)
	need(b.duration > 0, "--duration must be positive")
	need(b.target >= 0 && b.target <= targetMax, "--target must be 0 to %d", targetMax)
	need(b.target == 0 || !slices.Contains(unpacedOps, b.op), "--target does not go with %s", strings.Join(unpacedOps, ", "))
	b.checkHerd(need)
	b.drain.check(b, need)
	b.failover.check(b, need)
	if len(faults) > 0 {
		return usageError{errors.Join(faults...), "baton bench"}
	}
	return nil
}

// latencyJSON is in microseconds.
type latencyJSON struct {
	P50 int64 `json:"p50"`
	P90 int64 `json:"p90"`
	P99 int64 `json:"p99"`
	Max int64 `json:"max"`
}

type benchJSON struct {
	Op         string      `json:"op"`
	Clients    int         `json:"clients"`
	Conns      int         `json:"conns"`
	ValueBytes int         `json:"value_bytes"`
	Ops        int64       `json:"ops"`
	OpsPerS    float64     `json:"ops_per_s"`
	LatencyUS  latencyJSON `json:"latency_us"`
	Errors     int64       `json:"errors"`
	// Leased is how many reads their owners answered under a lease.
	Leased     int64 `json:"leased"`
	DurationUS int64 `json:"duration_us"`
	// MinutesP99US is the p99 of each minute's operations; empty if there is one minute.
	MinutesP99US []int64 `json:"minutes_p99_us"`
	// Target is the calls a second that were asked for; 0: as many as there can be.
	Target int    `json:"target"`
	Seed   uint64 `json:"seed"`
	// CPUS is processor time in seconds: of this process and, with --self, of
	// the three nodes from their start to their end.
	CPUS float64 `json:"cpu_s"`
	// Batch is how many commands the leader's log entries carried, since its start.
	Batch baton.Batch `json:"batch"`
}

// bencher runs one bench.
type bencher struct {
	benchFlags
	clients  []*baton.Client
	sessions []*baton.Session
	ledger   *Ledger // nil unless wanted
	value    []byte

	mu     sync.Mutex
	hist   *hdrhistogram.Histogram
	errors int64
	// minutes has the latencies by the minute of the run, from 0.
	minutes []*hdrhistogram.Histogram
	leased  int64
}

func newBencher(flags benchFlags) *bencher {
	return &bencher{
		benchFlags: flags, value: bytes.Repeat([]byte{'v'}, flags.value),
		hist: hdrhistogram.New(latencyMinUS, latencyMaxUS, latencyDigits),
	}
}

func (p *program) bench(ctx context.Context, flags benchFlags, u *user) error {
	before := selfCPU()
	if flags.seed == 0 {
		flags.seed = rand.Uint64N(1<<32) + 1
	}
	var f *fleet
	if flags.self {
		var err error
		if f, err = newFleet("", "", 0); err != nil {
			return localError{err}
		}
		defer f.close()
		p.note("starting three nodes")
		if err := f.run(ctx); err != nil {
			return localError{err}
		}
		u.addrs, u.pki, u.userAddrs = f.mgmts(), f.pki, nil
	}
	b := newBencher(flags)
	if flags.ledger != "" {
		b.ledger = newLedger()
	}
	defer b.close()
	if flags.op == "drain" {
		b.ledger = newLedger()
		if err := b.drain.choose(ctx, u); err != nil {
			return err
		}
	}
	p.note("opening %d sessions", flags.clients)
	if err := b.open(ctx, u); err != nil {
		return err
	}
	if flags.op == "drain" {
		return p.benchDrain(ctx, b, f, u)
	}
	p.note("%s for %s", flags.op, flags.duration)
	if flags.op == "pivot" {
		out, err := b.pivots(ctx, u)
		b.leave()
		if err != nil {
			return err
		}
		p.print(out, func(w io.Writer) { printPivots(w, out) })
		if out.Pivots == 0 {
			return silent{fmt.Errorf("no session was moved: %s", out.Why)}
		}
		return nil
	}
	took := b.run(ctx)
	b.leave()
	out := b.result(took)
	out.Batch = leaderBatch(ctx, u)
	if b.ledger != nil {
		if err := b.ledger.save(flags.ledger); err != nil {
			return localError{err}
		}
	}
	cpu := selfCPU() - before
	if f != nil {
		f.halt(false)
		cpu += f.cpu()
	}
	out.CPUS = cpu.Seconds()
	p.print(out, func(w io.Writer) { printBench(w, out) })
	if out.Ops == 0 {
		return silent{errors.New("no operation succeeded")}
	}
	return nil
}

// open dials, and opens the sessions.
func (b *bencher) open(ctx context.Context, u *user) error {
	for range b.conns {
		c, err := u.dial(ctx, "")
		if err != nil {
			return err
		}
		b.clients = append(b.clients, c)
	}
	return b.openSessions(ctx)
}

// openSessions opens a session a client.
func (b *bencher) openSessions(ctx context.Context) error {
	run := randomID()[:8]
	b.sessions = make([]*baton.Session, b.benchFlags.clients)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4 * openersMax)
	for i := range b.sessions {
		g.Go(func() error {
			s, err := b.clients[i%len(b.clients)].Open(ctx, baton.OpenOptions{ID: fmt.Sprintf("bench-%s-%d", run, i), TTL: time.Hour, Node: b.drain.node})
			if err != nil {
				return err
			}
			b.sessions[i] = s
			if b.ledger != nil {
				b.ledger.addKey(SessionKey{Session: s.ID(), Secret: hex.EncodeToString(s.Secret())})
			}
			if b.op == "get" {
				_, err = s.Put(ctx, keyRegister, append(versionBytes(0, 0), b.value...))
			}
			return err
		})
	}
	return g.Wait()
}

// run measures until the time is over, and tells how long it was.
func (b *bencher) run(ctx context.Context) time.Duration {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begun := time.Now()
	end := begun.Add(b.duration)
	b.minutes = nil
	var wg sync.WaitGroup
	for i, s := range b.sessions {
		wg.Add(1)
		go func() {
			defer wg.Done()
			b.client(ctx, s, begun, end, newPacer(begun, b.target, len(b.sessions), i), rand.New(rand.NewPCG(b.seed, uint64(i))))
		}()
	}
	wg.Wait()
	return time.Since(begun)
}

// client calls, one call after the other.
func (b *bencher) client(ctx context.Context, s *baton.Session, begun, end time.Time, pace pacer, rng *rand.Rand) {
	hist := hdrhistogram.New(latencyMinUS, latencyMaxUS, latencyDigits)
	var failed, version, leased int64
	minute := 0
	for {
		start, ok := pace.next(ctx, end)
		if !ok {
			break
		}
		if now := int(start.Sub(begun) / time.Minute); now != minute {
			b.merge(minute, hist)
			hist.Reset()
			minute = now
		}
		op := b.op
		if op == "mixed" {
			op = "put"
			if rng.IntN(10) < mixedReads {
				op = "get"
			}
		}
		if op == "put" || op == "scale" {
			op = "put"
			version++
		}
		r, err := b.one(ctx, s, op, version)
		if r.Leased {
			leased++
		}
		_ = hist.RecordValue(min(latencyMaxUS, max(latencyMinUS, time.Since(start).Microseconds())))
		if err != nil {
			failed++
			if over(err) {
				break
			}
		}
	}
	b.merge(minute, hist)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.errors += failed
	b.leased += leased
}

func (b *bencher) one(ctx context.Context, s *baton.Session, op string, version int64) (r baton.Reply, err error) {
	var kind string
	var call func() (int64, baton.Reply, error)
	switch op {
	case "put":
		kind = kindPut
		call = func() (int64, baton.Reply, error) {
			r, err := s.Put(ctx, keyRegister, append(versionBytes(version, 0), b.value...))
			return version, r, err
		}
	case "get":
		kind = kindGet
		call = func() (int64, baton.Reply, error) {
			var v int64
			v, r, err = readVersion(ctx, s, keyRegister, queryOptions(b.confirmed)...)
			return v, r, err
		}
	default:
		return s.Query(ctx, methodEcho, b.value, queryOptions(b.confirmed)...)
	}
	if b.ledger != nil {
		err = b.ledger.do(s.ID(), kind, call)
		return r, err
	}
	_, r, err = call()
	return r, err
}

// leave closes the sessions, or leaves them for verify.
func (b *bencher) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownGrace)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(4 * openersMax)
	for _, s := range b.sessions {
		g.Go(func() error {
			if b.benchFlags.ledger != "" {
				return s.Detach(ctx)
			}
			return s.Close(ctx)
		})
	}
	_ = g.Wait() // what is left expires
}

func (b *bencher) close() {
	for _, c := range b.clients {
		_ = c.Close()
	}
}

func (b *bencher) result(took time.Duration) benchJSON {
	ops := b.hist.TotalCount() - b.errors
	return benchJSON{
		Op: b.op, Clients: b.benchFlags.clients, Conns: b.conns, ValueBytes: b.benchFlags.value,
		Ops: ops, OpsPerS: float64(ops) / took.Seconds(), Errors: b.errors, Leased: b.leased, DurationUS: took.Microseconds(), Target: b.target, Seed: b.seed,
		MinutesP99US: b.minutesP99(),
		LatencyUS:    latencyJSON{b.hist.ValueAtQuantile(50), b.hist.ValueAtQuantile(90), b.hist.ValueAtQuantile(99), b.hist.Max()},
	}
}

// leaderBatch is the leader's batch histogram, empty if it cannot be had.
func leaderBatch(ctx context.Context, u *user) baton.Batch {
	var out baton.Batch
	_ = u.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
		st, err := a.Status(ctx)
		for _, n := range st.Nodes {
			if n.Name == st.Leader {
				out = n.Batch
			}
		}
		return err
	})
	out.Histogram = nonNil(out.Histogram)
	return out
}

func printBench(w io.Writer, b benchJSON) {
	fmt.Fprintf(w, "%s: %d operations in %s, %.0f/s, %d errors, %d clients over %d connections, %d-byte values\n",
		b.Op, b.Ops, (time.Duration(b.DurationUS) * time.Microsecond).Round(time.Millisecond), b.OpsPerS, b.Errors, b.Clients, b.Conns, b.ValueBytes)
	fmt.Fprintf(w, "latency p50 %s, p90 %s, p99 %s, max %s; %.1f s of processor time\n",
		micros(b.LatencyUS.P50), micros(b.LatencyUS.P90), micros(b.LatencyUS.P99), micros(b.LatencyUS.Max), b.CPUS)
	printMinutes(w, b.MinutesP99US)
	if b.Leased > 0 {
		fmt.Fprintf(w, "%d reads were answered under a lease\n", b.Leased)
	}
	if b.Batch.Entries > 0 {
		fmt.Fprintf(w, "log entries carried %.1f commands in the mean; by size", float64(b.Batch.Commands)/float64(b.Batch.Entries))
		for _, n := range b.Batch.Histogram {
			fmt.Fprintf(w, " ≤%d:%d", n.Max, n.Entries)
		}
		fmt.Fprintln(w)
	}
}
