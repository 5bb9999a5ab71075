package sim

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/seam"
)

// clock runs at a rate of its own: skewed clocks are what leases allow for.
type clock struct {
	start time.Time
	rate  float64
	wall  time.Duration // what the wall clock is wrong by
	steps *steps        // nil: none
}

// steps are what befalls a machine's clocks while it runs.
type steps struct {
	wall  atomic.Int64 // the wall clock is set: by how much, in all
	slept atomic.Int64 // the boot clock goes on while the timers stand still, in all
}

var _ seam.BootClock = clock{}

func (c clock) Now() time.Duration {
	return time.Duration(float64(time.Since(c.start)) * c.rate)
}
func (c clock) Boot() time.Duration {
	if c.steps == nil {
		return c.Now()
	}
	return c.Now() + time.Duration(c.steps.slept.Load())
}
func (c clock) Wall() time.Time {
	t := time.Now().Add(c.wall)
	if c.steps != nil {
		t = t.Add(time.Duration(c.steps.wall.Load()))
	}
	return t
}
func (c clock) AfterFunc(d time.Duration, f func()) seam.Timer {
	// Rounded up: a timer that came early by a nanosecond would be set anew for
	// none, again and again, while virtual time stands still.
	return afterFunc(time.Duration(math.Ceil(float64(d)/c.rate)), f)
}

// errPower is what a disk says to a process that is no more.
var errPower = errors.New("the power is off")

// machine is a host with a disk, where one node runs after the other.
type machine struct {
	w     *world
	name  string
	ip    string
	disk  *platter
	clock clock

	mu      sync.Mutex
	node    *baton.Node
	why     error         // the present start failed
	dead    bool          // it died at once; nobody has looked yet
	opening chan struct{} // closed when the present start has ended
	give    context.CancelFunc
}

func (m *machine) mgmt() string { return m.ip + ":7401" }
func (m *machine) user() string { return m.ip + ":7400" }

// boot starts the machine's node, unless one runs. It does not wait for it.
func (m *machine) boot() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.opening != nil {
		return
	}
	m.w.net.boot(m.ip)
	m.disk.repair()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	m.opening, m.give = done, cancel
	m.w.spawn(func() {
		defer close(done)
		n, err := baton.Open(ctx, m.w.config(m))
		m.mu.Lock()
		if err == nil {
			m.node = n
			if what := m.disk.overlooked(); what != "" {
				m.w.violation("%s started %s", m.name, what)
			}
		}
		m.why = err
		m.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			m.w.note("%s did not start: %v", m.name, err)
		}
	})
}

// stop ends the node as a crash does: nothing that it does after the first line
// is seen by anybody. told: peers get resets.
func (m *machine) stop(told bool) {
	m.w.net.crash(m.ip, told)
	m.disk.unplug(!told)
	m.end()
}

// end waits until the node has gone.
func (m *machine) end() {
	m.mu.Lock()
	opening, give := m.opening, m.give
	m.mu.Unlock()
	if opening == nil {
		return
	}
	give()
	<-opening
	m.mu.Lock()
	n := m.node
	m.mu.Unlock()
	if n != nil {
		_ = n.Close()
	}
	m.mu.Lock()
	m.node, m.opening, m.give, m.dead = nil, nil, nil, false
	m.mu.Unlock()
}

// die ends the node's part in the world at once, as when its process is killed.
// What is left of it ends when somebody looks.
func (m *machine) die() {
	m.w.net.crash(m.ip, true)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
}

// fallen reports that the node has stopped by itself, and why.
func (m *machine) fallen() (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return true, errPower
	}
	if m.node == nil {
		if m.opening == nil {
			return false, nil
		}
		select {
		case <-m.opening:
			return true, m.why
		default:
			return false, nil
		}
	}
	select {
	case <-m.node.Done():
		return true, m.node.Err()
	default:
		return false, nil
	}
}
