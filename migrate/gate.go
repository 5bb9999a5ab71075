package migrate

import "time"

// handoverSlow is after how long a handover gives its place to another: it then
// waits for something else than its turn at the processor, such as a handler.
const handoverSlow = 100 * time.Millisecond

// gate bounds the handovers that are under way at once. While a session is handed
// over nobody serves it. Where many are at once each gets a small share of the
// processors, and all of them are paused for as long as the whole takes; one after
// the other each is paused for its own part only, and waits while it is served.
// The loop owns it.
type gate struct {
	inside map[*move]time.Duration // since when
	queue  []waiting
}

type waiting struct {
	m  *move
	a  Action
	at time.Duration
}

// handOver calls the source of a move, as soon as there is a place.
func (r *run) handOver(m *move, a Action) {
	r.gate.queue = append(r.gate.queue, waiting{m, a, r.cfg.Clock.Now()})
	r.letIn()
}

// letIn fills the free places.
func (r *run) letIn() {
	g := &r.gate
	for len(g.queue) > 0 && len(g.inside) < r.cfg.HandoversMax {
		q := g.queue[0]
		g.queue = g.queue[1:]
		if _, ok := r.moves[q.m]; !ok {
			continue // it ended while it waited
		}
		now := r.cfg.Clock.Now()
		g.inside[q.m] = now
		q.a.Within -= now - q.at
		r.call(q.m, q.a)
	}
}

// handedOver frees a move's place.
func (r *run) handedOver(m *move) {
	delete(r.gate.inside, m)
	r.letIn()
}

// slowHandovers frees the places of those that take long, and returns when there
// may be more.
func (r *run) slowHandovers(now time.Duration) (next time.Duration) {
	g := &r.gate
	next = now + handoverSlow
	for m, since := range g.inside {
		if due := since + handoverSlow; due <= now {
			delete(g.inside, m)
		} else {
			next = min(next, due)
		}
	}
	r.letIn()
	return next
}
