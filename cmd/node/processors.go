package main

import (
	"context"
	"os"
	"runtime"
	"runtime/metrics"
	"time"
)

// Go wakes a thread whenever something becomes ready to run while one of its
// processors is idle. A node does a little for each of many packets, so that on
// several processors it pays for such a wake-up with nearly everything that it does;
// ARCHITECTURE.md says how much. So a node whose work fits on one processor is given
// one, and all as soon as it does not.
//
// What one processor is bad at, and so calls for all: calls to a slow disk, which keep
// it for as long as they last, up to 20 ms (see calmEnv); a large heap, as its
// collection shares the processor, and a change waits for its end; and neighbours, as
// one thread gets less of the machine than several do. The first counts as work, and
// the last shows in how late this looks.
const (
	// looksEvery is how often the node's work is measured.
	looksEvery = 500 * time.Millisecond
	// fits and full are work in parts of one processor: a node that needs less than
	// the former gets one, and one that needs more than the latter of it gets all.
	fits, full = 0.5, 0.7
	// calmLooks is for how many looks in a row work must fit: starts, snapshots and
	// crowds come in waves.
	calmLooks = 4
	// lateMax is how late a look may be, diskMax how long a write to the disk may take
	// in the mean, and heapMax how large the live heap may be in bytes.
	lateMax = 20 * time.Millisecond
	diskMax = 4 * time.Millisecond
	heapMax = 256 << 20
	// processorsVar is how an operator decides.
	processorsVar = "GOMAXPROCS"
)

// processors decides how many a node has.
type processors struct {
	one  bool
	calm int // looks in a row at which its work would have fit on one
	late int // looks in a row that were late
}

// observed is what there was between two looks.
type observed struct {
	time      time.Duration
	cpu, disk time.Duration
	writes    uint64 // to the disk
	heap      uint64 // bytes, now
}

// look reports whether what is observed changes one.
func (p *processors) look(o observed) (changed bool) {
	work := float64(o.cpu+o.disk) / float64(max(o.time, looksEvery))
	if p.late++; o.time <= looksEvery+lateMax {
		p.late = 0
	}
	if p.late >= 2 || o.heap > heapMax || o.disk > diskMax*time.Duration(max(o.writes, 1)) {
		work = 1
	}
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
// ends; then it has all. It is called when the node has been opened, which goes by
// how many there are. disk tells of its calls to the disk. An operator who has set
// GOMAXPROCS has decided.
func fitProcessors(ctx context.Context, disk func() (writes uint64, took time.Duration)) {
	if os.Getenv(processorsVar) != "" {
		return
	}
	useProcessors(false)
	defer useProcessors(false)
	var p processors
	heap := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	at, cpu := time.Now(), selfCPU()
	writes, took := disk()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(looksEvery):
		}
		metrics.Read(heap)
		now, cpuNow := time.Now(), selfCPU()
		writesNow, tookNow := disk()
		if p.look(observed{now.Sub(at), cpuNow - cpu, tookNow - took, writesNow - writes, heap[0].Value.Uint64()}) {
			useProcessors(p.one)
		}
		at, cpu, writes, took = now, cpuNow, writesNow, tookNow
	}
}

// useProcessors has Go use one processor, or all that it may. Where that is one, and
// the monitor is calm, it is told of a second, for the calls to the disk.
func useProcessors(one bool) {
	if one {
		runtime.GOMAXPROCS(1)
		return
	}
	runtime.SetDefaultGOMAXPROCS()
	if runtime.GOMAXPROCS(0) == 1 && calmed() {
		runtime.GOMAXPROCS(2)
	}
}
