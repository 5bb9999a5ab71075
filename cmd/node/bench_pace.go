package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/pflag"
)

const (
	// drainTarget is --target of a drain where nothing is said.
	drainTarget = 500
	targetMax   = 1_000_000
)

// unpacedOps have no calls that a rate could be of.
var unpacedOps = slices.Concat([]string{"idle"}, partOps)

func (b *benchFlags) paceFlags(f *pflag.FlagSet) {
	f.IntVar(&b.target, "target", 0, "calls a second, of all clients together; latency then counts from when a call was due\n(0: as fast as answers come; of a drain 500; of failover see --think)")
	f.Uint64Var(&b.seed, "seed", 0, "seed of what is drawn: the mix of calls, the choice of nodes (0: a random one)")
}

// pace settles what --target is for the op. given: it was said.
func (b *benchFlags) pace(given bool) {
	switch {
	case b.op == "drain" && !given:
		b.target = drainTarget
	case b.op == "failover" && b.target > 0:
		b.failover.think = b.thinkOf(b.drain.sessions, 0)
	}
}

// thinkOf is the mean pause between two calls of each of n clients that keeps the
// target's rate; otherwise where there is none.
func (b *benchFlags) thinkOf(n int, otherwise time.Duration) time.Duration {
	if b.target == 0 {
		return otherwise
	}
	return time.Second * time.Duration(n) / time.Duration(b.target)
}

// pacer says when one client of many is due to call, so that all together call at
// a rate. Who comes late, as an answer took long, calls at once: the rate is kept,
// and the wait counts as latency.
type pacer struct {
	due   time.Time
	every time.Duration // 0: as soon as there is an answer
}

// newPacer is for the i-th of n clients. target 0: no rate.
func newPacer(begun time.Time, target, n, i int) pacer {
	if target <= 0 {
		return pacer{}
	}
	return pacer{
		due:   begun.Add(time.Second * time.Duration(i) / time.Duration(target)),
		every: time.Second * time.Duration(n) / time.Duration(target),
	}
}

// next waits until the next call is due, and tells when that was; not ok if end or
// the context's comes before.
func (p *pacer) next(ctx context.Context, end time.Time) (due time.Time, ok bool) {
	if p.every == 0 {
		due = time.Now()
		return due, due.Before(end) && ctx.Err() == nil
	}
	due = p.due
	p.due = p.due.Add(p.every)
	if !due.Before(end) {
		return due, false
	}
	if wait := time.Until(due); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	// What was due before the end and could not begin before it is left out.
	return due, ctx.Err() == nil && time.Now().Before(end)
}
