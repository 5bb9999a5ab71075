package main

import (
	"sync"
	"time"

	"github.com/baton-cluster/baton/seam"

	"github.com/baton-cluster/baton/test/jepsen-lite/control"
)

// clock runs at a rate of its own, shows a wrong date, and can stand still while
// the boot clock goes on, as a machine's does that sleeps.
type clock struct {
	os seam.OSClock

	mu    sync.Mutex
	real  time.Duration // when the rate last changed, by the operating system's clock,
	ours  time.Duration // and by this one
	rate  float64
	wall  time.Duration
	sleep time.Duration // that the machine has slept, as we pretend
	slept time.Duration // when it fell asleep, by the operating system's clock; 0: it is awake
}

var _ seam.BootClock = (*clock)(nil)

func newClock(s *switches) *clock {
	c := &clock{rate: 1}
	s.onChange(c.change)
	return c
}

func (c *clock) change(f control.Faults) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.os.Now()
	c.ours, c.real = c.now(now), now
	c.wall = f.Wall
	if c.rate = f.Rate; c.rate == 0 {
		c.rate = 1
	}
	switch {
	case f.Asleep && c.slept == 0:
		c.slept = now
	case !f.Asleep && c.slept != 0:
		c.sleep += now - c.slept
		c.slept = 0
	}
}

// now is this clock's time at a time of the operating system's. c.mu is held.
func (c *clock) now(real time.Duration) time.Duration {
	if c.slept != 0 {
		real = max(c.slept, c.real)
	}
	return c.ours + time.Duration(float64(real-c.real)*c.rate)
}

func (c *clock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now(c.os.Now())
}

func (c *clock) Wall() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.os.Wall().Add(c.wall)
}

// Boot is Now and all that was slept, in truth or as we pretend.
func (c *clock) Boot() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.os.Now()
	boot := c.now(now) + c.sleep + c.os.Boot() - now
	if c.slept != 0 {
		boot += now - c.slept
	}
	return boot
}

// AfterFunc goes by Now, whatever its rate becomes meanwhile.
func (c *clock) AfterFunc(d time.Duration, f func()) seam.Timer {
	t := &timer{clock: c, due: c.Now() + d, f: f}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.arm(d)
	return t
}

type timer struct {
	clock *clock
	due   time.Duration
	f     func()

	mu   sync.Mutex
	t    *time.Timer
	over bool // it ran, or was stopped
}

// lookMin is the shortest wait for a clock that may be standing still.
const lookMin = 100 * time.Microsecond

// arm waits until the clock may show the time that is d away. t.mu is held.
func (t *timer) arm(d time.Duration) {
	t.t = time.AfterFunc(max(time.Duration(float64(d)/control.RateMax), 0), t.fire)
}

func (t *timer) fire() {
	t.mu.Lock()
	if t.over {
		t.mu.Unlock()
		return
	}
	if left := t.due - t.clock.Now(); left > 0 {
		t.arm(max(left, lookMin))
		t.mu.Unlock()
		return
	}
	t.over = true
	t.mu.Unlock()
	t.f()
}

func (t *timer) Stop() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return false
	}
	t.over = true
	t.t.Stop()
	return true
}
