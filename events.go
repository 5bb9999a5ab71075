package baton

import (
	"sync"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
)

// eventQueue takes the state machine's events off its goroutine, which must
// never wait, and hands them on in order.
type eventQueue struct {
	handle func([]store.Event)
	mu     sync.Mutex
	wake   *sync.Cond
	queue  []store.Event
	closed bool
	done   chan struct{}
}

func newEventQueue(handle func([]store.Event)) *eventQueue {
	q := &eventQueue{handle: handle, done: make(chan struct{})}
	q.wake = sync.NewCond(&q.mu)
	go q.run()
	return q
}

func (q *eventQueue) put(events []store.Event) {
	q.mu.Lock()
	q.queue = append(q.queue, events...)
	q.mu.Unlock()
	q.wake.Signal()
}

func (q *eventQueue) run() {
	defer close(q.done)
	var batch []store.Event
	for {
		q.mu.Lock()
		for len(q.queue) == 0 && !q.closed {
			q.wake.Wait()
		}
		if q.closed {
			q.mu.Unlock()
			return
		}
		batch, q.queue = q.queue, batch[:0]
		q.mu.Unlock()
		q.handle(batch)
	}
}

func (q *eventQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.wake.Signal()
	<-q.done
}

// unknownAfter is how long gossip may know nothing at all of a registered
// worker before it counts as dead: a worker that died before this node's gossip
// ever met it would otherwise own its sessions for ever.
const unknownAfter = 5 * time.Second

// doubt completes gossip's opinion for workers that gossip never met.
type doubt struct {
	clock  seam.Clock
	gossip func(id string) (alive, known bool)
	mu     sync.Mutex
	since  map[string]time.Duration
}

func newDoubt(clock seam.Clock, gossip func(string) (bool, bool)) *doubt {
	return &doubt{clock: clock, gossip: gossip, since: make(map[string]time.Duration)}
}

func (d *doubt) alive(id string) (alive, known bool) {
	alive, known = d.gossip(id)
	now := d.clock.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if known {
		delete(d.since, id)
		return alive, known
	}
	since, doubted := d.since[id]
	if !doubted {
		d.since[id] = now
		return false, false
	}
	if now-since >= unknownAfter {
		return false, true
	}
	return false, false
}
