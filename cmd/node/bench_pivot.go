package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
)

// pivotJSON is what `bench --op pivot` finds. PauseUS is what a caller without a
// break waited for the call that the move came across. While a session freezes
// the call before it is answered; then come the transfer, the commit of the
// pivot, and the client's part: its switch to the target, and the commit of the
// call itself.
type pivotJSON struct {
	Op      string          `json:"op"`
	Clients int             `json:"clients"`
	Pivots  int             `json:"pivots"`
	Failed  int             `json:"failed"`
	PauseUS baton.Quantiles `json:"pause_us"`
	Parts   pivotParts      `json:"parts"`
	// OrdinaryUS is the same callers' other calls.
	OrdinaryUS baton.Quantiles `json:"ordinary_us"`
	TookUS     baton.Quantiles `json:"took_us"` // of whole migrations
	Why        string          `json:"why,omitempty"`
	DurationUS int64           `json:"duration_us"`
}

type pivotParts struct {
	FreezeUS   baton.Quantiles `json:"freeze_us"`
	TransferUS baton.Quantiles `json:"transfer_us"`
	CommitUS   baton.Quantiles `json:"commit_us"`
	ClientUS   baton.Quantiles `json:"client_us"` // the pause without transfer and commit
}

// pivotCaller is one session that is called without a break.
type pivotCaller struct {
	s       *baton.Session
	crossed chan time.Duration // the call that came back under a new epoch

	mu       sync.Mutex
	ordinary []int64
}

// call runs until ctx ends or the session is beyond use.
func (c *pivotCaller) call(ctx context.Context, value []byte, pace pacer) error {
	epoch := c.s.Epoch()
	for {
		begun, ok := pace.next(ctx, time.Now().Add(time.Hour)) // until ctx ends
		if !ok {
			return nil
		}
		r, err := c.s.Put(ctx, keyRegister, value)
		took := time.Since(begun)
		switch {
		case err != nil && ctx.Err() == nil:
			return err
		case err != nil:
			return nil
		case r.Epoch == epoch:
			c.mu.Lock()
			c.ordinary = append(c.ordinary, took.Microseconds())
			c.mu.Unlock()
		default:
			epoch = r.Epoch
			select {
			case c.crossed <- took:
			default: // the move before this one was given up on
			}
		}
	}
}

// pivotSample is one move.
type pivotSample struct {
	pause int64
	info  baton.MigrationInfo
	took  int64
}

// pivots moves every session in rounds, all of a round at once, while each is
// called without a break.
func (b *bencher) pivots(ctx context.Context, u *user) (pivotJSON, error) {
	var st baton.Status
	if err := u.ask(ctx, func(ctx context.Context, a *baton.Admin) (err error) {
		st, err = a.Status(ctx)
		return err
	}); err != nil {
		return pivotJSON{}, err
	}
	if len(st.Nodes) < 2 {
		return pivotJSON{}, localError{errors.New("a session needs two nodes to move between")}
	}
	a, err := u.admin(ctx)
	if err != nil {
		return pivotJSON{}, err
	}
	defer a.Close()
	calls, stop := context.WithCancel(ctx)
	defer stop()
	callers := make([]*pivotCaller, len(b.sessions))
	begun := time.Now()
	var lanes errgroup.Group
	for i, s := range b.sessions {
		callers[i] = &pivotCaller{s: s, crossed: make(chan time.Duration, 1)}
		lanes.Go(func() error { return callers[i].call(calls, b.value, newPacer(begun, b.target, len(callers), i)) })
	}
	var all []pivotSample
	out := pivotJSON{Op: b.op, Clients: len(callers)}
	for time.Since(begun) < b.duration && ctx.Err() == nil {
		samples, faults := pivotRound(ctx, a, callers)
		all = append(all, samples...)
		for _, f := range faults {
			out.Failed, out.Why = out.Failed+1, f.Error()
		}
	}
	stop()
	if err := lanes.Wait(); err != nil {
		return out, err
	}
	out.DurationUS = time.Since(begun).Microseconds()
	out.summarise(all, callers)
	return out, nil
}

// pivotRound moves every session once, all at once.
func pivotRound(ctx context.Context, a *baton.Admin, callers []*pivotCaller) (samples []pivotSample, faults []error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, c := range callers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s, err := c.pivot(ctx, a)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				faults = append(faults, err)
			} else {
				samples = append(samples, s)
			}
		}()
	}
	wg.Wait()
	return samples, faults
}

// pivot moves the session to wherever the cluster chooses.
func (c *pivotCaller) pivot(ctx context.Context, a *baton.Admin) (pivotSample, error) {
	select {
	case <-c.crossed: // of a move that was given up on
	default:
	}
	begun := time.Now()
	info, err := a.Migrate(ctx, baton.MigrateRequest{Session: c.s.ID(), Reason: "load_balancing"})
	if err != nil {
		return pivotSample{}, err
	}
	took := time.Since(begun)
	select {
	case pause := <-c.crossed:
		return pivotSample{pause.Microseconds(), info, took.Microseconds()}, nil
	case <-c.s.Done():
		return pivotSample{}, c.s.Err()
	case <-ctx.Done():
		return pivotSample{}, ctx.Err()
	}
}

func (out *pivotJSON) summarise(all []pivotSample, callers []*pivotCaller) {
	out.Pivots = len(all)
	var pause, freeze, transfer, commit, client, took, ordinary []int64
	for _, s := range all {
		pause, took = append(pause, s.pause), append(took, s.took)
		if p := s.info.Parts; p != nil {
			freeze = append(freeze, int64(p.FreezeUS))
			transfer = append(transfer, int64(p.TransferUS))
			commit = append(commit, int64(p.CommitUS))
			client = append(client, max(0, s.pause-int64(p.TransferUS+p.CommitUS)))
		}
	}
	for _, c := range callers {
		ordinary = append(ordinary, c.ordinary...)
	}
	out.PauseUS, out.TookUS, out.OrdinaryUS = quantiles(pause), quantiles(took), quantiles(ordinary)
	out.Parts = pivotParts{quantiles(freeze), quantiles(transfer), quantiles(commit), quantiles(client)}
}

func printPivots(w io.Writer, out pivotJSON) {
	fmt.Fprintf(w, "%d pivots of %d sessions, %d at once, %d failed\n", out.Pivots, out.Clients, out.Clients, out.Failed)
	line := func(name string, q baton.Quantiles) {
		fmt.Fprintf(w, "  %-9s p50 %s, p99 %s, max %s\n", name, micros(q.P50), micros(q.P99), micros(q.Max))
	}
	line("pause", out.PauseUS)
	line("freeze", out.Parts.FreezeUS)
	line("transfer", out.Parts.TransferUS)
	line("commit", out.Parts.CommitUS)
	line("client", out.Parts.ClientUS)
	line("ordinary", out.OrdinaryUS)
	line("whole", out.TookUS)
}

// benchPart measures one part of a migration, one after the other, on this
// machine alone.
func (p *program) benchPart(ctx context.Context, flags benchFlags) error {
	do, err := baton.MeasuredPart(flags.op)
	if err != nil {
		return localError{err}
	}
	before := selfCPU()
	hist := hdrhistogram.New(latencyMinUS, latencyMaxUS, latencyDigits)
	begun := time.Now()
	for time.Since(begun) < flags.duration && ctx.Err() == nil {
		start := time.Now()
		if err := do(); err != nil {
			return localError{err}
		}
		_ = hist.RecordValue(max(latencyMinUS, time.Since(start).Microseconds()))
	}
	b := &bencher{benchFlags: flags, hist: hist}
	b.benchFlags.clients, b.conns, b.benchFlags.value = 1, 0, 0
	out := b.result(time.Since(begun))
	out.CPUS = (selfCPU() - before).Seconds()
	out.Batch.Histogram = nonNil(out.Batch.Histogram)
	p.print(out, func(w io.Writer) { printBench(w, out) })
	return nil
}
