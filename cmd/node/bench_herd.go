package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
)

const (
	// herdClients is how many there are by default.
	herdClients = 10_000
	// herdThink is the mean pause between two calls of a client: most are idle.
	herdThink = 20 * time.Second
	// herdWithin is when a client counts as not served again.
	herdWithin = 2 * time.Minute
	// herdGCPercent lets the heap of 10,000 clients, some 2 GB, double twice.
	herdGCPercent = 300
	// herdNice is the clients' niceness by default: real ones have processors of their
	// own, and 10,000 on the nodes' would keep these from their work.
	herdNice = 10
	// niceMax is as nice as a process can be.
	niceMax = 19
	// filesKept are file descriptors that are not for clients.
	filesKept = 512
)

// herdJSON is what `bench --op herd` finds: all clients lose their node at once,
// each with a connection of its own, and all call at once.
type herdJSON struct {
	Op       string          `json:"op"`
	Clients  int             `json:"clients"`
	Standby  bool            `json:"standby"`
	Profile  string          `json:"profile"`
	Leader   bool            `json:"leader"` // the node that was lost led
	ServedUS baton.Quantiles `json:"served_us"`
	Unserved int             `json:"unserved"`
	Timeline timelineJSON    `json:"timeline"`
	// Arrivals at the nodes that were left, because of it; absent where the nodes could
	// not be asked.
	Arrivals *arrivalsJSON `json:"arrivals,omitempty"`
	// Dials are the clients': how many failed, and of those how many were turned away.
	DialsFailed  uint64 `json:"dials_failed"`
	DialsRefused uint64 `json:"dials_refused"`
	// ClientsNice is by how much the clients gave way to the nodes.
	ClientsNice int `json:"clients_nice"`
	// SpreadUS is over how long the clients were to come, as the nodes say.
	SpreadUS int64 `json:"spread_us"`
	// Processor time from the kill until the last client was served again: this
	// process's, which is all clients, and the nodes'.
	ClientCPUUS int64 `json:"client_cpu_us"`
	NodeCPUUS   int64 `json:"node_cpu_us"`
	// StalledUS is how late a timer of this process was at worst meanwhile: by so much
	// its figures may be its own.
	StalledUS  int64  `json:"stalled_us"`
	Calls      int64  `json:"calls"`
	Refused    int64  `json:"refused"` // calls that ended in an error
	Lost       int64  `json:"lost"`
	Duplicated int64  `json:"duplicated"`
	Why        string `json:"why,omitempty"`
	DurationUS int64  `json:"duration_us"`
}

func (b *benchFlags) herdFlags(f *pflag.FlagSet) {
	f.BoolVarP(&b.verbose, "verbose", "v", false, "herd: tell each second what clients and nodes do")
	f.StringVar(&b.victims, "victim", "any", "herd: the node that dies: leader, follower, any")
	f.IntVar(&b.nice, "nice", herdNice, "herd: by how much the clients give way to the nodes where they share processors; 0: not at all")
}

func (b *benchFlags) checkHerd(need func(ok bool, format string, args ...any)) {
	need(slices.Contains([]string{"any", "leader", "follower"}, b.victims), "--victim must be leader, follower or any")
	need(b.nice >= 0 && b.nice <= niceMax, "--nice must be 0 to %d", niceMax)
}

// herdBench runs one.
type herdBench struct {
	benchFlags
	p      *program
	f      *fleet
	v      *survivors
	victim *fleetNode
	watch  *herdWatch
	out    herdJSON
}

func (p *program) benchHerd(ctx context.Context, flags benchFlags) error {
	begun := time.Now()
	// What this process collects is taken from the processors that the nodes share.
	defer debug.SetGCPercent(debug.SetGCPercent(herdGCPercent))
	if most := filesMax() - filesKept; flags.clients > most {
		p.note("%d clients instead of %d: each needs a file descriptor (ulimit -n)", most, flags.clients)
		flags.clients = most
	}
	f, err := newFleet("", "", 0)
	if err != nil {
		return localError{err}
	}
	defer f.close()
	b := &herdBench{benchFlags: flags, p: p, f: f, v: newSurvivors(flags.thinkOf(flags.clients, herdThink))}
	b.out = herdJSON{Op: flags.op, Clients: flags.clients, Standby: flags.failover.standby, Profile: flags.failover.profile}
	defer b.v.close()
	if err := b.start(ctx); err != nil {
		return localError{err}
	}
	load, stop := context.WithCancel(ctx)
	defer stop()
	b.v.run(load)
	if err := b.f.waitHealthy(ctx, healthyWithin); err != nil {
		return localError{err}
	}
	b.stampede(ctx)
	stop()
	tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), herdWithin)
	defer cancel()
	b.v.finish(tidy)
	out := &b.out
	out.Calls, out.Refused, out.Lost, out.Duplicated, out.Why = b.v.calls.Load(), b.v.refused.Load(), b.v.lost.Load(), b.v.duplicated.Load(), b.v.reason()
	out.DurationUS = time.Since(begun).Microseconds()
	p.print(b.out, func(w io.Writer) { printHerd(w, b.out) })
	switch {
	case out.Lost+out.Duplicated+out.Refused > 0:
		return violation{"calls were lost, counted twice or refused: " + out.Why}
	case out.Unserved > 0 || b.v.unread > 0:
		return silent{errors.New("clients were not served again in time, or could not be read in the end")}
	}
	return nil
}

// start runs the nodes, chooses the one that dies, gives way to it and the others,
// and connects the clients.
func (b *herdBench) start(ctx context.Context) error {
	b.f.profile(b.failover.profile)
	b.p.note("starting three nodes")
	if err := b.f.run(ctx); err != nil {
		return err
	}
	st, err := b.f.status(ctx)
	if err != nil {
		return err
	}
	i := 0
	for b.victims != "any" && (b.f.nodes[i].name == st.Leader) != (b.victims == "leader") {
		if i++; i == fleetSize {
			return errors.New("no node leads just now: try again")
		}
	}
	b.victim = b.f.nodes[i]
	b.watch = &herdWatch{p: b.p, f: b.f, v: b.v, victim: b.victim.user}
	if b.p.GiveWay != nil && b.nice > 0 {
		b.out.ClientsNice = b.nice
		if err := b.p.GiveWay(b.nice); err != nil {
			b.p.note("the clients do not give way to the nodes: %v", err)
			b.out.ClientsNice = 0
		}
	}
	b.p.note("%d clients connect to %s", b.clients, b.victim.name)
	return b.connect(ctx, i)
}

// connect dials all clients, each with a socket of its own, and opens a session a
// client at node i.
func (b *herdBench) connect(ctx context.Context, i int) error {
	var mu sync.Mutex
	g, dial := errgroup.WithContext(ctx)
	g.SetLimit(4 * openersMax)
	for range b.clients {
		g.Go(func() error {
			c, err := baton.Dial(dial, baton.ClientConfig{
				Addrs: b.f.users(i), PKI: b.f.pki, Standby: b.failover.standby,
				RequestTimeout: survivorAnswered, OnAttempt: b.watch.attempt,
			})
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			b.v.clients = append(b.v.clients, c)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return b.v.open(ctx, b.clients, func(int) string { return b.victim.name })
}

// stampede kills the node, has all clients call, and measures until all are served
// again, or have been waited for long enough.
func (b *herdBench) stampede(ctx context.Context) {
	f, v, out := b.f, b.v, &b.out
	before, dials := connsOf(ctx, f, fleetSize), v.dials()
	if st, err := f.status(ctx); err == nil {
		out.Leader = st.Leader == b.victim.name
	}
	f.setAway(b.victim.name, true)
	owned := v.ownedBy(b.victim.name)
	at, cpu, nodes := time.Now(), selfCPU(), f.cpuBut(b.victim)
	stalls := watchStalls()
	wait, cancel := context.WithTimeout(ctx, herdWithin)
	defer cancel()
	if b.verbose {
		var watching sync.WaitGroup
		defer watching.Wait()
		watching.Go(func() { b.watch.run(wait) })
	}
	b.victim.proc.kill()
	v.hurry()
	took, missing := v.served(wait, owned, at)
	cancel()
	out.ServedUS, out.Unserved, out.StalledUS = quantiles(took), missing, stalls().Microseconds()
	out.ClientCPUUS, out.NodeCPUUS = (selfCPU() - cpu).Microseconds(), (f.cpuBut(b.victim) - nodes).Microseconds()
	since := v.dials()
	out.DialsFailed, out.DialsRefused = since.Failed-dials.Failed, since.Refused-dials.Refused
	out.SpreadUS = before[b.victim.name].SpreadUS
	out.Arrivals = arrivals(before, connsOf(ctx, f, fleetSize-1), b.victim.name)
	_ = f.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
		all, err := a.Failovers(ctx)
		out.Timeline = timelineOf(all, b.victim.name, at)
		return err
	})
	out.Timeline.ServedUS = out.ServedUS.Max
}

// dials sums up what the clients counted.
func (v *survivors) dials() (sum baton.ClientStats) {
	for _, c := range v.clients {
		st := c.Stats()
		sum.Failed += st.Failed
		sum.Refused += st.Refused
	}
	return sum
}

// watchStalls measures how late a timer of this process is at worst until the
// result is called.
func watchStalls() (worst func() time.Duration) {
	const every = 20 * time.Millisecond
	stop, late := make(chan struct{}), make(chan time.Duration)
	go func() {
		var most time.Duration
		for {
			begun := time.Now()
			select {
			case <-stop:
				late <- most
				return
			case <-time.After(every):
				most = max(most, time.Since(begun)-every)
			}
		}
	}()
	return func() time.Duration {
		close(stop)
		return <-late
	}
}

// connsOf is each reachable node's connections. A node that is busy may be slow to
// answer, so all are asked until as many have that are there, or for ten seconds.
func connsOf(ctx context.Context, f *fleet, there int) map[string]baton.ConnCounts {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		out := map[string]baton.ConnCounts{}
		if st, err := f.status(ctx); err == nil {
			for _, n := range st.Nodes {
				if n.Reachable {
					out[n.Name] = n.Conns
				}
			}
		}
		if len(out) >= there {
			return out
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return out
		}
	}
}

// arrivalsJSON is what came to the nodes that were left: handshakes by how, those
// turned away by a limit, and by QUIC as too many waited to be accepted. WaitingMost
// handshakes waited for a processor at one node at once, of WaitingMax that may.
type arrivalsJSON struct {
	Full        uint64 `json:"full"`
	Resumed     uint64 `json:"resumed"`
	ZeroRTT     uint64 `json:"zero_rtt"`
	Refused     uint64 `json:"refused"`
	Overflown   uint64 `json:"overflown"`
	WaitingMost int    `json:"waiting_most"`
	WaitingMax  int    `json:"waiting_max"`
}

func arrivals(before, after map[string]baton.ConnCounts, but string) *arrivalsJSON {
	out := new(arrivalsJSON)
	for name, b := range before {
		if name == but {
			continue
		}
		a, ok := after[name]
		if !ok {
			return nil
		}
		out.Full += a.Full - b.Full
		out.Resumed += a.Resumed - b.Resumed
		out.ZeroRTT += a.ZeroRTT - b.ZeroRTT
		out.Refused += a.Refused - b.Refused
		out.Overflown += a.Overflown - b.Overflown
		out.WaitingMost, out.WaitingMax = max(out.WaitingMost, a.WaitingMost), max(out.WaitingMax, a.WaitingMax)
	}
	if len(before) == 0 {
		return nil
	}
	return out
}

func printHerd(w io.Writer, out herdJSON) {
	role := "a follower"
	if out.Leader {
		role = "the leader"
	}
	fmt.Fprintf(w, "%d clients lost their node, %s, at once, standby %v, profile %s: served again after %s p50, %s p99, %s at most; %d were not\n",
		out.Clients, role, out.Standby, out.Profile, micros(out.ServedUS.P50), micros(out.ServedUS.P99), micros(out.ServedUS.Max), out.Unserved)
	printTimeline(w, out.Timeline)
	fmt.Fprintf(w, "they were to come over %s", micros(out.SpreadUS))
	if a := out.Arrivals; a != nil {
		n := a.Full + a.Resumed + a.ZeroRTT
		fmt.Fprintf(w, ": %d handshakes at the others (%.2f a client), %d full, %d resumed, %d with 0-RTT; %d more turned away, %d by the accept queue; %d waited for a processor at most, of %d that may",
			n, float64(n)/float64(out.Clients), a.Full, a.Resumed, a.ZeroRTT, a.Refused, a.Overflown, a.WaitingMost, a.WaitingMax)
	}
	fmt.Fprintf(w, "\n%d of their dials failed, %d of them turned away; processor time: clients %s (niceness %d), nodes %s; this process was late by %s at worst\n",
		out.DialsFailed, out.DialsRefused, micros(out.ClientCPUUS), out.ClientsNice, micros(out.NodeCPUUS), micros(out.StalledUS))
	fmt.Fprintf(w, "%d calls: %d lost, %d counted twice, %d refused\n", out.Calls, out.Lost, out.Duplicated, out.Refused)
}
