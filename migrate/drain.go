package migrate

import (
	"time"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

const (
	// A session whose move failed is tried again after backoffMin, doubled with
	// each failure up to backoffMax: its client may come within reach.
	backoffMin = time.Second
	backoffMax = 30 * time.Second
	// troubledFor is how long a worker that did not answer takes no part in
	// drains: otherwise a drain off or onto a dead one would begin and abort as
	// fast as the log goes, until it is fenced.
	troubledFor = time.Second
)

// drains is what the drains of all DRAINING workers remember between scans.
type drains struct {
	cursors  map[string]string // worker → session after which to go on
	backoff  map[string]backoff
	troubled map[string]time.Duration // worker → until when
	turn     int
}

type backoff struct {
	failures int
	until    time.Duration
}

// planDrain fills the room for moves off draining workers. Each scan another
// worker comes first, so that one with a million sessions does not hold up one
// with ten.
func (r *run) planDrain(now time.Duration, s *store.Store) []*move {
	d := &r.drains
	d.forget(now)
	var sources []*wire.WorkerRow
	for _, w := range s.Workers() {
		if w.GetState() != wire.WorkerState_WORKER_STATE_DRAINING {
			delete(d.cursors, w.GetId())
		} else if up, known := r.cfg.Alive(w.GetId()); (up || !known) && !d.isTroubled(w.GetId(), now) {
			sources = append(sources, w)
		}
	}
	room := min(r.cfg.DrainConcurrency-r.draining, r.cfg.MovesMax-len(r.moves))
	if len(sources) == 0 || room <= 0 {
		return nil
	}
	p := newPlacer(s, r.cfg.Alive, func(id string) bool { return d.isTroubled(id, now) })
	if p.err() != nil {
		if p.active == 0 {
			r.fault("a drain waits", p.err())
		}
		return nil
	}
	var starts []*move
	d.turn++
	for i := range sources {
		w := sources[(i+d.turn)%len(sources)]
		starts = append(starts, r.planDrainOf(w, now, s, p, room-len(starts))...)
	}
	return starts
}

func (r *run) planDrainOf(w *wire.WorkerRow, now time.Duration, s *store.Store, p *placer, room int) []*move {
	if room <= 0 {
		return nil
	}
	d := &r.drains
	id := w.GetId()
	page := s.SessionsOf(id, d.cursors[id], r.cfg.AssignBatch)
	var starts []*move
	for i := range page {
		sum := &page[i]
		if len(starts) == room {
			return starts
		}
		d.cursors[id] = sum.ID
		if !sum.Valid || sum.Migration != 0 || r.bySession[sum.ID] != nil || d.backoff[sum.ID].until > now {
			continue
		}
		to := p.elsewhere(sum.ID, id)
		if to == nil {
			return starts
		}
		starts = append(starts, &move{
			req: Request{
				Session: sum.ID, Target: to.GetWorker(),
				Reason: wire.Reason_REASON_PLANNED_MAINTENANCE, Priority: PriorityDefault,
				Deadline: r.cfg.MigrationTimeout, By: r.by() + ", drain",
			},
			to: to, drain: true, done: make(chan struct{}),
		})
	}
	if len(page) < r.cfg.AssignBatch {
		delete(d.cursors, id) // the end: from the beginning next time
	}
	return starts
}

// ended takes note of how a drain's move went.
func (d *drains) ended(now time.Duration, m *move) {
	if m.h.State() == Completed {
		delete(d.backoff, m.req.Session)
		return
	}
	if who := m.h.Blame(); who != "" {
		d.troubled[who] = now + troubledFor
	}
	b := d.backoff[m.req.Session]
	b.failures++
	b.until = now + min(backoffMin<<min(b.failures-1, 10), backoffMax)
	d.backoff[m.req.Session] = b
}

func (d *drains) isTroubled(id string, now time.Duration) bool { return d.troubled[id] > now }

// forget drops what no longer holds. A session's failures are remembered for a
// while after its wait, so that the next failure waits longer.
func (d *drains) forget(now time.Duration) {
	for id, until := range d.troubled {
		if until <= now {
			delete(d.troubled, id)
		}
	}
	for id, b := range d.backoff {
		if b.until+backoffMax <= now {
			delete(d.backoff, id)
		}
	}
}
