package cluster

import (
	"sync"
	"time"

	"github.com/baton-cluster/baton/seam"
)

// awakeSteps is in how many steps an awakeTimer waits.
const awakeSteps = 4

// awakeTimer runs a function once this process has been awake for a time. A process
// that was stopped wakes with all its timers due, and would take its own sleep for
// the disk's. So it waits in steps: a sleep, however long, counts for one at most.
type awakeTimer struct {
	clock seam.Clock
	step  time.Duration
	fn    func()

	mu    sync.Mutex
	timer seam.Timer
	left  int  // steps
	over  bool // it ran, or was stopped
	ran   bool
}

func awake(clock seam.Clock, d time.Duration, fn func()) *awakeTimer {
	t := &awakeTimer{clock: clock, step: d / awakeSteps, fn: fn, left: awakeSteps}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer = clock.AfterFunc(t.step, t.next)
	return t
}

func (t *awakeTimer) next() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return
	}
	if t.left--; t.left > 0 {
		t.timer = t.clock.AfterFunc(t.step, t.next)
		return
	}
	t.over, t.ran = true, true
	t.fn()
}

// stop reports whether the function has run.
func (t *awakeTimer) stop() (ran bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer.Stop()
	t.over = true
	return t.ran
}
