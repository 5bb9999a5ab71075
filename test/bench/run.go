package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// side is one of the two systems: a cluster of three processes and its clients.
type side interface {
	name() string
	// start starts the nodes, with all their files under dir, and waits until
	// they serve.
	start(ctx context.Context, dir string) error
	// load opens clients; client i uses connection i modulo conns, and these are
	// spread over the nodes, first the one that comes so many after the leader.
	load(ctx context.Context, clients, conns, after int, value []byte) (load, error)
	// counters are the nodes' own figures.
	counters(ctx context.Context) (counters, error)
	pids() []int
	// close ends the nodes.
	close()
}

// load is a set of clients.
type load interface {
	// do returns what a client does again and again; nil if it cannot.
	do(op string) func(ctx context.Context, client int) error
	close()
}

// counters of a cluster, summed over its nodes.
type counters struct {
	// LogWrites that were synced before they were answered.
	LogWrites uint64
	// Sizes of log entries on the leader, in commands; only ours tells.
	Entries, Commands uint64
	Histogram         []bucket
}

// bucket counts the log entries of at most Max commands, and of more than the
// bucket before.
type bucket struct {
	Max     uint64 `json:"max"`
	Entries uint64 `json:"entries"`
}

// run measures: ours, the peer, ours, the peer, …
func run(ctx context.Context, o options) (report, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("not finished within %s: measure less, or raise -limit", o.limit))
	defer cancel()
	r, err := measure(ctx, o)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return r, err
}

func measure(ctx context.Context, o options) (report, error) {
	r := report{Machine: thisMachine(), Settings: o, DurationUS: o.duration.Microseconds(), Ops: map[string]*opReport{}}
	dir, remove, err := runDir(o.dir)
	if err != nil {
		return r, err
	}
	defer remove()
	started := map[string]side{}
	start := func(s side) (side, error) {
		if running := started[s.name()]; running != nil {
			return running, nil
		}
		started[s.name()] = s
		o.note("starting the nodes of %s", s.name())
		if err := s.start(ctx, filepath.Join(dir, s.name())); err != nil {
			return nil, fmt.Errorf("starting %s: %w", s.name(), err)
		}
		return s, nil
	}
	defer func() {
		for _, s := range started {
			s.close()
		}
	}()
	for _, op := range o.Ops {
		ours, err := start(&batonSide{label: "baton", bin: o.baton})
		if err != nil {
			return r, err
		}
		peer, err := start(o.peer(op))
		if err != nil {
			return r, err
		}
		if r.Ops[op], err = measureOp(ctx, &o, op, []side{ours, peer}); err != nil {
			return r, fmt.Errorf("%s: %w", op, err)
		}
		r.Ops[op].PeerName = peer.name()
	}
	return r, nil
}

// peer is whom an operation is measured beside.
func (o *options) peer(op string) side {
	switch {
	case o.Against != "":
		return &batonSide{label: "other", bin: o.Against}
	case op == opEcho:
		return &grpcSide{}
	}
	return &etcdSide{}
}

// runDir makes the run's directory; keep names one that stays.
func runDir(keep string) (dir string, remove func(), err error) {
	if keep != "" {
		dir, err = filepath.Abs(keep)
		return dir, func() {}, errors.Join(err, os.MkdirAll(dir, 0o700))
	}
	dir, err = os.MkdirTemp("", "baton-bench-")
	return dir, func() { _ = os.RemoveAll(dir) }, err
}

func (o *options) note(format string, args ...any) {
	if o.progress != nil {
		fmt.Fprintf(o.progress, format+"\n", args...)
	}
}

// measureOp runs one operation's turns. Both sides' nodes and clients stay up
// all the time, because starting them for each turn would take longer than the
// turn; what the idle ones cost is measured and told.
func measureOp(ctx context.Context, o *options, op string, sides []side) (*opReport, error) {
	clients, conns := o.Clients, o.Conns
	after := 0
	switch op {
	case opPut1:
		clients, conns = 1, 1
	case opPutFollower:
		clients, conns, after = 1, 1, 1
	}
	value := randomValue(o.ValueBytes)
	loads := make([]load, len(sides))
	for i, s := range sides {
		var err error
		if loads[i], err = s.load(ctx, clients, conns, after, value); err != nil {
			return nil, fmt.Errorf("opening clients of %s: %w", s.name(), err)
		}
		defer loads[i].close()
	}
	turns := make([][]turn, len(sides))
	for n := range o.Turns {
		for i, s := range sides {
			t, err := oneTurn(ctx, o, op, clients, s, loads[i], sides[1-i])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name(), err)
			}
			turns[i] = append(turns[i], t)
			o.note("%-4s turn %d %-5s %9.0f/s  p50 %s", op, n+1, s.name(), t.OpsPerS, micros(float64(t.P50)))
		}
	}
	return summarise(clients, conns, turns[0], turns[1]), nil
}

// oneTurn warms up and measures one side, while the other idles.
func oneTurn(ctx context.Context, o *options, op string, clients int, s side, l load, idle side) (turn, error) {
	do := l.do(op)
	if o.warm > 0 {
		if _, err := drive(ctx, clients, o.warm, do); err != nil {
			return turn{}, err
		}
	}
	before, err := s.counters(ctx)
	if err != nil {
		return turn{}, err
	}
	nodes, idlers, self := cpuOf(s.pids()), cpuOf(idle.pids()), selfCPU()
	d, err := drive(ctx, clients, o.duration, do)
	if err != nil {
		return turn{}, err
	}
	nodes, idlers, self = cpuOf(s.pids())-nodes, cpuOf(idle.pids())-idlers, selfCPU()-self
	after, err := s.counters(ctx)
	if err != nil {
		return turn{}, err
	}
	return newTurn(d, nodes, self, idlers, after.since(before)), nil
}

// since is what was counted after b.
func (c counters) since(b counters) counters {
	d := counters{LogWrites: c.LogWrites - b.LogWrites, Entries: c.Entries - b.Entries, Commands: c.Commands - b.Commands}
	for i, x := range c.Histogram {
		if i < len(b.Histogram) {
			x.Entries -= b.Histogram[i].Entries
		}
		d.Histogram = append(d.Histogram, x)
	}
	return d
}

// randomValue does not compress, so that neither side wins by that.
func randomValue(n int) []byte {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// poll calls ready every step until it returns nil or ctx ends, whose last
// fault it then returns.
func poll(ctx context.Context, limit time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("not ready within %s: %w", limit, err)
		}
	}
}
