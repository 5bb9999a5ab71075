package main

import (
	"context"
	"os"
	"runtime"
	"time"
)

// Go wakes a thread whenever something becomes ready to run while one of its
// processors is idle. A node does a little for each of many packets, so that on
// several processors it pays for such a wake-up with nearly everything that it does:
// with one it takes a third less processor time for a read, a quarter less for a
// write, a third less when idle, and what its clients wait for comes sooner. So a
// node whose work fits on one processor is given one, and all as soon as it does not.
//
// A call of the disk's keeps its processor, too, for 10 ms at most (see calmEnv),
// so its time counts like processor time: a node whose disk is slow has all.
const (
	// looksEvery is how often the node's work is measured.
	looksEvery = 500 * time.Millisecond
	// fits and full are work in parts of one processor: a node that needs less than
	// the former gets one, and one that needs more than the latter of it gets all.
	// What needs fits on several needs about two thirds of that on one.
	fits, full = 0.5, 0.7
	// calmLooks is for how many looks in a row work must fit: starts, snapshots and
	// crowds come in waves.
	calmLooks = 4
	// processorsVar is how an operator decides.
	processorsVar = "GOMAXPROCS"
)

// processors decides how many a node has.
type processors struct {
	one  bool
	calm int // looks in a row at which its work would have fit on one
}

// look takes how much work there was since the last look, and reports whether one
// changes.
func (p *processors) look(work float64) (changed bool) {
	if p.one {
		p.one, p.calm = work <= full, 0
		return !p.one
	}
	if p.calm++; work > fits {
		p.calm = 0
	}
	p.one = p.calm == calmLooks
	return p.one
}

// fitProcessors gives this process one processor, or all, as its work is, until ctx
// ends; then it has all. work is the time that it has been at work since it began. An
// operator who has set GOMAXPROCS has decided.
func fitProcessors(ctx context.Context, work func() time.Duration) {
	if os.Getenv(processorsVar) != "" {
		return
	}
	defer useProcessors(false)
	var p processors
	tick := time.NewTicker(looksEvery)
	defer tick.Stop()
	at, done := time.Now(), work()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, sum := time.Now(), work()
		if p.look(float64(sum-done) / float64(max(now.Sub(at), looksEvery))) {
			useProcessors(p.one)
		}
		at, done = now, sum
	}
}

// useProcessors has Go use one processor, or all that it may. Where that is one it is
// told of a second, for the calls of the disk.
func useProcessors(one bool) {
	if one {
		runtime.GOMAXPROCS(1)
		return
	}
	runtime.SetDefaultGOMAXPROCS()
	if runtime.GOMAXPROCS(0) == 1 {
		runtime.GOMAXPROCS(2)
	}
}
