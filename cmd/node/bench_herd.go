package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

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
	ServedUS baton.Quantiles `json:"served_us"`
	Unserved int             `json:"unserved"`
	Timeline timelineJSON    `json:"timeline"`
	// Arrivals at the nodes that were left, because of it; absent where the nodes could
	// not be asked.
	Arrivals *arrivalsJSON `json:"arrivals,omitempty"`
	// Dials are the clients': how many failed, and of those how many were turned away.
	DialsFailed  uint64 `json:"dials_failed"`
	DialsRefused uint64 `json:"dials_refused"`
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

func (p *program) benchHerd(ctx context.Context, flags benchFlags) error {
	begun := time.Now()
	// What this process collects is taken from the processors that the nodes share.
	defer debug.SetGCPercent(debug.SetGCPercent(herdGCPercent))
	if most := filesMax() - filesKept; flags.clients > most {
		p.note("%d clients instead of %d: each needs a file descriptor (ulimit -n)", most, flags.clients)
		flags.clients = most
	}
	o := flags.failover
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
	v := newSurvivors(flags.thinkOf(flags.clients, herdThink))
	defer v.close()
	victim := f.nodes[0]
	p.note("%d clients connect to %s", flags.clients, victim.name)
	if err := herd(ctx, v, f, flags); err != nil {
		return localError{err}
	}
	load, stop := context.WithCancel(ctx)
	defer stop()
	v.run(load)
	if err := f.waitHealthy(ctx, healthyWithin); err != nil {
		return localError{err}
	}
	out := herdJSON{Op: flags.op, Clients: flags.clients, Standby: o.standby, Profile: o.profile}
	before, dials := connsOf(ctx, f), v.dials()
	f.setAway(victim.name, true)
	owned := v.ownedBy(victim.name)
	at, cpu, nodes := time.Now(), selfCPU(), f.cpuBut(victim)
	stalls := watchStalls()
	victim.proc.kill()
	v.hurry()
	wait, cancel := context.WithTimeout(ctx, herdWithin)
	took, missing := v.served(wait, owned, at)
	cancel()
	out.ServedUS, out.Unserved, out.StalledUS = quantiles(took), missing, stalls().Microseconds()
	out.ClientCPUUS, out.NodeCPUUS = (selfCPU() - cpu).Microseconds(), (f.cpuBut(victim) - nodes).Microseconds()
	since := v.dials()
	out.DialsFailed, out.DialsRefused = since.Failed-dials.Failed, since.Refused-dials.Refused
	out.SpreadUS = before[victim.name].SpreadUS
	out.Arrivals = arrivals(before, connsOf(ctx, f), victim.name)
	_ = f.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
		all, err := a.Failovers(ctx)
		out.Timeline = timelineOf(all, victim.name, at)
		return err
	})
	out.Timeline.ServedUS = out.ServedUS.Max
	stop()
	tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), herdWithin)
	defer cancel()
	v.finish(tidy)
	out.Calls, out.Refused, out.Lost, out.Duplicated, out.Why = v.calls.Load(), v.refused.Load(), v.lost.Load(), v.duplicated.Load(), v.reason()
	out.DurationUS = time.Since(begun).Microseconds()
	p.print(out, func(w io.Writer) { printHerd(w, out) })
	switch {
	case out.Lost+out.Duplicated+out.Refused > 0:
		return violation{"calls were lost, counted twice or refused: " + out.Why}
	case out.Unserved > 0 || v.unread > 0:
		return silent{errors.New("clients were not served again in time, or could not be read in the end")}
	}
	return nil
}

// herd dials all clients, each with a socket of its own, and opens a session a
// client at the first node.
func herd(ctx context.Context, v *survivors, f *fleet, flags benchFlags) error {
	var mu sync.Mutex
	g, dial := errgroup.WithContext(ctx)
	g.SetLimit(4 * openersMax)
	for range flags.clients {
		g.Go(func() error {
			c, err := baton.Dial(dial, baton.ClientConfig{Addrs: f.users(0), PKI: f.pki, Standby: flags.failover.standby, RequestTimeout: survivorAnswered})
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			v.clients = append(v.clients, c)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return v.open(ctx, flags.clients, func(int) string { return f.nodes[0].name })
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

// connsOf is each reachable node's connections.
func connsOf(ctx context.Context, f *fleet) map[string]baton.ConnCounts {
	st, err := f.status(ctx)
	if err != nil {
		return nil
	}
	out := map[string]baton.ConnCounts{}
	for _, n := range st.Nodes {
		if n.Reachable {
			out[n.Name] = n.Conns
		}
	}
	return out
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
	fmt.Fprintf(w, "%d clients lost their node at once, standby %v, profile %s: served again after %s p50, %s p99, %s at most; %d were not\n",
		out.Clients, out.Standby, out.Profile, micros(out.ServedUS.P50), micros(out.ServedUS.P99), micros(out.ServedUS.Max), out.Unserved)
	printTimeline(w, out.Timeline)
	fmt.Fprintf(w, "they were to come over %s", micros(out.SpreadUS))
	if a := out.Arrivals; a != nil {
		n := a.Full + a.Resumed + a.ZeroRTT
		fmt.Fprintf(w, ": %d handshakes at the others (%.2f a client), %d full, %d resumed, %d with 0-RTT; %d more turned away, %d by the accept queue; %d waited for a processor at most, of %d that may",
			n, float64(n)/float64(out.Clients), a.Full, a.Resumed, a.ZeroRTT, a.Refused, a.Overflown, a.WaitingMost, a.WaitingMax)
	}
	fmt.Fprintf(w, "\n%d of their dials failed, %d of them turned away; processor time: clients %s, nodes %s; this process was late by %s at worst\n",
		out.DialsFailed, out.DialsRefused, micros(out.ClientCPUUS), micros(out.NodeCPUUS), micros(out.StalledUS))
	fmt.Fprintf(w, "%d calls: %d lost, %d counted twice, %d refused\n", out.Calls, out.Lost, out.Duplicated, out.Refused)
}
