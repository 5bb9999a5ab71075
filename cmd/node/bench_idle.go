package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
)

const (
	// idleSessions and idleConns are how many there are by default.
	idleSessions = 10_000
	idleConns    = 200
	// idleSettles is after how long what opening has left behind is over: log entries
	// that followers hear of late, connections that were needed for a moment. A shorter
	// measurement waits no longer than it lasts.
	idleSettles = 10 * time.Second
)

// idle sets what is not given.
func (b *benchFlags) idle(f *pflag.FlagSet) {
	if !f.Changed("sessions") {
		b.drain.sessions = idleSessions
	}
	if !f.Changed("conns") {
		b.conns = idleConns
	}
	b.clients = b.drain.sessions
}

// idleJSON is what `bench --op idle` finds: what nodes cost whose clients are all
// attached and ask nothing.
type idleJSON struct {
	Op       string `json:"op"`
	Profile  string `json:"profile"`
	Sessions int    `json:"sessions"`
	Conns    int    `json:"conns"`
	// CorePercent is the processor time of all nodes in hundredths of one core, Nodes
	// that of each, and ClientPercent that of this process, which is all clients.
	CorePercent   float64            `json:"core_percent"`
	Nodes         map[string]float64 `json:"nodes"`
	ClientPercent float64            `json:"client_percent"`
	// Entries were applied, and LogWrites synced by all nodes' logs, meanwhile.
	Entries    uint64 `json:"entries"`
	LogWrites  uint64 `json:"log_writes"`
	DurationUS int64  `json:"duration_us"`
}

func (p *program) benchIdle(ctx context.Context, flags benchFlags) error {
	f, err := newFleet("", "", 0)
	if err != nil {
		return localError{err}
	}
	defer f.close()
	f.profile(flags.failover.profile)
	p.note("starting three nodes")
	if err := f.run(ctx); err != nil {
		return localError{err}
	}
	b := &bencher{benchFlags: flags}
	defer b.close()
	p.note("%d sessions on %d connections", flags.drain.sessions, flags.conns)
	if err := b.openIdle(ctx, f); err != nil {
		return localError{err}
	}
	if err := b.rest(ctx, min(idleSettles, flags.duration)); err != nil {
		return err
	}
	before, err := f.status(ctx)
	if err != nil {
		return localError{err}
	}
	out := idleJSON{Op: flags.op, Profile: flags.failover.profile, Sessions: flags.drain.sessions, Conns: flags.conns, Nodes: map[string]float64{}}
	begun, self, used := time.Now(), selfCPU(), map[string]time.Duration{}
	for _, n := range f.nodes {
		used[n.name] = cpuOf(n.proc.pid())
	}
	p.note("idle for %s", flags.duration)
	if err := b.rest(ctx, flags.duration); err != nil {
		return err
	}
	took := time.Since(begun)
	percent := func(d time.Duration) float64 { return 100 * d.Seconds() / took.Seconds() }
	for _, n := range f.nodes {
		out.Nodes[n.name] = percent(cpuOf(n.proc.pid()) - used[n.name])
		out.CorePercent += out.Nodes[n.name]
	}
	out.ClientPercent, out.DurationUS = percent(selfCPU()-self), took.Microseconds()
	after, err := f.status(ctx)
	if err != nil {
		return localError{err}
	}
	out.Entries, out.LogWrites = after.AppliedIndex-before.AppliedIndex, logWrites(after)-logWrites(before)
	if n := after.Sessions.Attached; n != flags.drain.sessions {
		return silent{fmt.Errorf("%d of %d sessions were still attached in the end", n, flags.drain.sessions)}
	}
	p.print(out, func(w io.Writer) { printIdle(w, out) })
	return nil
}

// openIdle opens the sessions, in turn at each node and on each connection.
func (b *bencher) openIdle(ctx context.Context, f *fleet) error {
	b.clients = make([]*baton.Client, b.conns)
	g, dial := errgroup.WithContext(ctx)
	g.SetLimit(4 * openersMax)
	for i := range b.clients {
		g.Go(func() (err error) {
			node := i % len(f.nodes)
			b.clients[i], err = baton.Dial(dial, baton.ClientConfig{Addrs: f.users(node), PKI: f.pki, RequestTimeout: survivorAnswered})
			for k := i; err == nil && k < b.drain.sessions; k += b.conns {
				_, err = b.clients[i].Open(dial, baton.OpenOptions{TTL: time.Hour, Node: f.nodes[node].name})
			}
			return err
		})
	}
	return g.Wait()
}

// rest waits.
func (b *bencher) rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func logWrites(st baton.Status) (sum uint64) {
	for _, n := range st.Nodes {
		sum += n.LogWrites
	}
	return sum
}

func printIdle(w io.Writer, out idleJSON) {
	fmt.Fprintf(w, "%d sessions on %d connections, all attached and idle, profile %s: the nodes take %.1f %% of a core", out.Sessions, out.Conns, out.Profile, out.CorePercent)
	for _, name := range slices.Sorted(maps.Keys(out.Nodes)) {
		fmt.Fprintf(w, ", %s %.1f %%", name, out.Nodes[name])
	}
	fmt.Fprintf(w, "; the clients %.1f %%\n%d log entries and %d synced log writes in %s\n", out.ClientPercent, out.Entries, out.LogWrites, micros(out.DurationUS))
}
