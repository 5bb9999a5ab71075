package worker

import "sync/atomic"

// jobs are a worker's own goroutines. Unlike a sync.WaitGroup it may be given work
// while somebody waits for it, and after: the connections of a node that closes may
// still bring requests, or answers, when the last goroutine has ended. What comes
// then is not run.
type jobs struct {
	n    atomic.Int64 // how many run; jobsOver once they have been waited for
	idle chan struct{}
}

const jobsOver = -1

func newJobs() *jobs { return &jobs{idle: make(chan struct{}, 1)} }

// run runs f on a goroutine of its own.
func (j *jobs) run(f func()) {
	for {
		n := j.n.Load()
		if n == jobsOver {
			return
		}
		if j.n.CompareAndSwap(n, n+1) {
			break
		}
	}
	go func() {
		defer j.done()
		f()
	}()
}

func (j *jobs) done() {
	if j.n.Add(-1) == 0 {
		select {
		case j.idle <- struct{}{}:
		default: // wait is to be woken already
		}
	}
}

// wait returns when none runs, and from then on none does. It is for one caller at a
// time.
func (j *jobs) wait() {
	for j.n.Load() != jobsOver && !j.n.CompareAndSwap(0, jobsOver) {
		<-j.idle
	}
}
