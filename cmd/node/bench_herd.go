package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	// Handshakes at the nodes that were left, because of it, TurnedAway connections,
	// and Overflown of those by QUIC's accept queue; -1: the nodes could not be asked.
	Handshakes int64  `json:"handshakes"`
	TurnedAway int64  `json:"turned_away"`
	Overflown  int64  `json:"overflown"`
	Calls      int64  `json:"calls"`
	Refused    int64  `json:"refused"` // calls that ended in an error
	Lost       int64  `json:"lost"`
	Duplicated int64  `json:"duplicated"`
	Why        string `json:"why,omitempty"`
	DurationUS int64  `json:"duration_us"`
}

func (p *program) benchHerd(ctx context.Context, flags benchFlags) error {
	begun := time.Now()
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
	v := newSurvivors(herdThink)
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
	before := connsOf(ctx, f, victim)
	f.setAway(victim.name, true)
	owned := v.ownedBy(victim.name)
	at := time.Now()
	victim.proc.kill()
	v.hurry()
	wait, cancel := context.WithTimeout(ctx, herdWithin)
	took, missing := v.served(wait, owned, at)
	cancel()
	out.ServedUS, out.Unserved = quantiles(took), missing
	out.arrivals(before, connsOf(ctx, f, victim))
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

// connsOf sums up the connections of all nodes but one, nil if they could not all
// be asked.
func connsOf(ctx context.Context, f *fleet, but *fleetNode) *baton.ConnCounts {
	st, err := f.status(ctx)
	if err != nil {
		return nil
	}
	sum := new(baton.ConnCounts)
	for _, n := range st.Nodes {
		if n.Name == but.name {
			continue
		}
		if !n.Reachable {
			return nil
		}
		sum.Full += n.Conns.Full
		sum.Resumed += n.Conns.Resumed
		sum.ZeroRTT += n.Conns.ZeroRTT
		sum.Refused += n.Conns.Refused
		sum.Overflown += n.Conns.Overflown
	}
	return sum
}

// arrivals fills in what has come to the other nodes meanwhile.
func (out *herdJSON) arrivals(before, after *baton.ConnCounts) {
	if before == nil || after == nil {
		out.Handshakes, out.TurnedAway, out.Overflown = -1, -1, -1
		return
	}
	out.Handshakes = int64(after.Full + after.Resumed + after.ZeroRTT - before.Full - before.Resumed - before.ZeroRTT)
	out.Overflown = int64(after.Overflown - before.Overflown)
	out.TurnedAway = int64(after.Refused-before.Refused) + out.Overflown
}

func printHerd(w io.Writer, out herdJSON) {
	fmt.Fprintf(w, "%d clients lost their node at once, standby %v, profile %s: served again after %s p50, %s p99, %s at most; %d were not\n",
		out.Clients, out.Standby, out.Profile, micros(out.ServedUS.P50), micros(out.ServedUS.P99), micros(out.ServedUS.Max), out.Unserved)
	printTimeline(w, out.Timeline)
	fmt.Fprintf(w, "%d handshakes at the others, %d connections turned away, %d of them by the accept queue\n", out.Handshakes, out.TurnedAway, out.Overflown)
	fmt.Fprintf(w, "%d calls: %d lost, %d counted twice, %d refused\n", out.Calls, out.Lost, out.Duplicated, out.Refused)
}
