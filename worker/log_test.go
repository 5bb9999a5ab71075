package worker

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// patience bounds what a test waits for before it fails; nothing is concluded
// from how long anything took.
const patience = 20 * time.Second

// memLog is a replicated log in memory: it applies commands to a real store.
// Proposals that a gate matches wait until the test has decided on them.
type memLog struct {
	mu        sync.RWMutex
	st        *store.Store
	index     uint64
	timeUS    uint64
	closed    bool
	gates     []*gate
	open      map[*proposal]bool
	observers []func([]store.Event)

	queueMu sync.Mutex
	wake    *sync.Cond
	queue   []func()
	ended   bool
	done    chan struct{}
}

func newMemLog() *memLog {
	l := &memLog{st: store.New(), timeUS: 1, open: map[*proposal]bool{}, done: make(chan struct{})}
	l.wake = sync.NewCond(&l.queueMu)
	go l.pump()
	return l
}

// pump delivers answers and events, in the order of the log, on one goroutine
// that holds no lock.
func (l *memLog) pump() {
	defer close(l.done)
	for {
		l.queueMu.Lock()
		for len(l.queue) == 0 && !l.ended {
			l.wake.Wait()
		}
		if len(l.queue) == 0 {
			l.queueMu.Unlock()
			return
		}
		f := l.queue[0]
		l.queue = l.queue[1:]
		l.queueMu.Unlock()
		f()
	}
}

func (l *memLog) later(f func()) {
	l.queueMu.Lock()
	defer l.queueMu.Unlock()
	l.queue = append(l.queue, f)
	l.wake.Signal()
}

func (l *memLog) View(fn func(*store.Store)) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	fn(l.st)
}

// Propose applies and answers at once, unless a gate holds the commands.
func (l *memLog) Propose(cmds []*wire.Command, done func([]*wire.Result, error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &proposal{log: l, cmds: cmds, done: done}
	if l.closed {
		l.later(func() { done(nil, wire.Errorf(wire.Code_SHUTTING_DOWN, "closed")) })
		return
	}
	for _, g := range l.gates {
		for _, c := range cmds {
			if g.match(c) {
				l.open[p] = true
				g.ch <- p
				return
			}
		}
	}
	res := l.apply(cmds)
	l.later(func() { done(res, nil) })
}

// apply commits one entry. l.mu is held.
func (l *memLog) apply(cmds []*wire.Command) []*wire.Result {
	l.index++
	l.timeUS++
	res, events := l.st.Apply(l.index, &wire.Entry{TimeUs: l.timeUS, Commands: cmds})
	observers := l.observers
	l.later(func() {
		for _, observe := range observers {
			observe(events)
		}
	})
	return res
}

// pass lets log time pass; the next entry brings it.
func (l *memLog) pass(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timeUS += uint64(d.Microseconds())
}

// commit applies commands that come from elsewhere, as a director's.
func (l *memLog) commit(cmds ...*wire.Command) []*wire.Result {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.apply(cmds)
}

// flush returns when all that was to be delivered so far has been.
func (l *memLog) flush() {
	ch := make(chan struct{})
	l.later(func() { close(ch) })
	<-ch
}

// close answers what is open with SHUTTING_DOWN.
func (l *memLog) close() {
	l.mu.Lock()
	l.closed = true
	for p := range l.open {
		l.later(func() { p.done(nil, wire.Errorf(wire.Code_SHUTTING_DOWN, "closed")) })
	}
	clear(l.open)
	l.mu.Unlock()
}

func (l *memLog) stop() {
	l.queueMu.Lock()
	l.ended = true
	l.wake.Signal()
	l.queueMu.Unlock()
	<-l.done
}

// gate holds the proposals that it matches.
type gate struct {
	log   *memLog
	match func(*wire.Command) bool
	ch    chan *proposal
}

func (l *memLog) hold(match func(*wire.Command) bool) *gate {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := &gate{log: l, match: match, ch: make(chan *proposal, 4096)}
	l.gates = append(l.gates, g)
	return g
}

// next waits for a held proposal.
func (g *gate) next(t testing.TB) *proposal {
	t.Helper()
	select {
	case p := <-g.ch:
		return p
	case <-time.After(patience):
		t.Fatal("nothing was proposed")
		return nil
	}
}

// none fails if something is held.
func (g *gate) none(t testing.TB) {
	t.Helper()
	select {
	case p := <-g.ch:
		t.Fatalf("proposed: %v", p.cmds)
	default:
	}
}

// lift lets what comes pass.
func (g *gate) lift() {
	g.log.mu.Lock()
	defer g.log.mu.Unlock()
	for i, other := range g.log.gates {
		if other == g {
			g.log.gates = append(append([]*gate(nil), g.log.gates[:i]...), g.log.gates[i+1:]...)
		}
	}
}

// proposal is one that a gate held.
type proposal struct {
	log  *memLog
	cmds []*wire.Command
	done func([]*wire.Result, error)
	res  []*wire.Result
}

// apply commits it without an answer: the leader is lost with it. Applied again,
// it is proposed anew, and the answer is that of the last time.
func (p *proposal) apply() *proposal {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	p.res = p.log.apply(p.cmds)
	return p
}

func (p *proposal) answer() {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	if p.log.open[p] {
		delete(p.log.open, p)
		p.log.later(func() { p.done(p.res, nil) })
	}
}

func (p *proposal) fail(code wire.Code) {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	if p.log.open[p] {
		delete(p.log.open, p)
		p.log.later(func() { p.done(nil, wire.Errorf(code, "by the test")) })
	}
}

// What gates match.

func isWrite(c *wire.Command) bool  { return c.GetWrite() != nil }
func isClaim(c *wire.Command) bool  { return c.GetClaim() != nil }
func isDetach(c *wire.Command) bool { return c.GetDetach() != nil }
func isAttach(c *wire.Command) bool { return c.GetAttach() != nil }
func isMarker(c *wire.Command) bool { return c.GetReadMarker() != nil }
func isPivot(c *wire.Command) bool  { return c.GetPivot() != nil }
func isAbort(c *wire.Command) bool  { return c.GetAbort() != nil }
func isAck(c *wire.Command) bool    { return c.GetAck() != nil }
func anything(*wire.Command) bool   { return true }

// fakeClock moves when the test says so.
type fakeClock struct {
	mu     sync.Mutex
	now    time.Duration
	timers map[*fakeTimer]bool
	set    chan struct{} // gets one for each timer that is set
}

type fakeTimer struct {
	clock *fakeClock
	at    time.Duration
	f     func()
}

func newFakeClock() *fakeClock {
	return &fakeClock{now: time.Hour, timers: map[*fakeTimer]bool{}, set: make(chan struct{}, 1<<16)}
}

func (c *fakeClock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) Wall() time.Time { return time.Unix(0, 0).Add(c.Now()) }

func (c *fakeClock) AfterFunc(d time.Duration, f func()) seam.Timer {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &fakeTimer{c, c.now + d, f}
	c.timers[t] = true
	select {
	case c.set <- struct{}{}:
	default:
	}
	return t
}

func (t *fakeTimer) Stop() bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	was := t.clock.timers[t]
	delete(t.clock.timers, t)
	return was
}

// advance moves the clock and runs what is due.
func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	c.now += d
	var due []func()
	for t := range c.timers {
		if t.at <= c.now {
			due = append(due, t.f)
			delete(c.timers, t)
		}
	}
	c.mu.Unlock()
	for _, f := range due {
		f()
	}
}

// stepsMax bounds the steps of a test before it fails.
const stepsMax = 20_000

// waitFor advances in small steps until cond holds. It wants a bubble of
// testing/synctest: there all that a step has woken has run as far as it can before
// the next, so that no deadline passes because a goroutine was late to be scheduled.
func (c *fakeClock) waitFor(t testing.TB, step time.Duration, cond func() bool) {
	t.Helper()
	for range stepsMax {
		synctest.Wait()
		if cond() {
			return
		}
		c.advance(step)
	}
	t.Fatal("the condition never came true")
}

// inBubble is f as a subtest that runs in a bubble of its own.
func inBubble(f func(*testing.T)) func(*testing.T) {
	return func(t *testing.T) { synctest.Test(t, f) }
}
