package migrate

import (
	"context"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// The sessions of one connection are drained one after the other: what their
// clients are told, and answer, then travels in the same packets, and packets are
// most of what a move costs. Which sessions share a connection only the node
// knows that they are on, so it is asked. What it says is a hint: the tables tell
// what is to be moved, and what it does not name is moved in the end.

const (
	// orderPage is how many sessions a node is asked for at once: a fraction of a
	// second of a drain, and half a megabyte at most.
	orderPage = 4096
	// orderAhead is how many are left when it is asked for more.
	orderAhead = 512
	// orderTimeout is how long its answer is waited for: without one the drain goes
	// by the sessions' ids.
	orderTimeout = time.Second
)

// order is what a drained node has said, and this director has not used.
type order struct {
	sessions []string
	after    uint64 // the connection to go on behind
	asking   bool
	over     bool // it has named all, or does not answer
}

// planOrdered begins up to room moves of sessions that the node named. left: it
// is, or will be, naming more.
func (r *run) planOrdered(j *jobRun, now time.Duration, nowUS uint64, s *store.Store, p *placer, room int) (starts []*move, left bool) {
	o := &j.order
	id := j.row.GetWorker()
	for looked := 0; len(o.sessions) > 0 && len(starts) < room && looked < r.cfg.AssignBatch; looked++ {
		sum, ok := s.Session(o.sessions[0])
		if !ok || sum.Owner.GetWorker() != id {
			o.sessions = o.sessions[1:]
			continue
		}
		var full bool
		if starts, full = r.planOne(starts, j, now, nowUS, &sum, p); full {
			return starts, true
		}
		o.sessions = o.sessions[1:]
	}
	if len(o.sessions) < orderAhead && !o.over && !o.asking {
		r.askOrder(j, s.Worker(id))
	}
	return starts, len(o.sessions) > 0 || !o.over
}

// askOrder asks a drained node for its next sessions.
func (r *run) askOrder(j *jobRun, source *wire.WorkerRow) {
	o := &j.order
	o.asking = true
	ctx, cancel := context.WithCancel(r.ctx)
	late := r.cfg.Clock.AfterFunc(orderTimeout, cancel)
	req := &wire.OrderReq{After: o.after, Limit: orderPage}
	r.async(func() func() {
		defer cancel()
		defer late.Stop()
		resp, err := r.cfg.Call.Order(callContext{ctx, seam.Deadline(orderTimeout)}, source, req)
		return func() {
			o.asking = false
			o.sessions = append(o.sessions, resp.GetSessions()...)
			o.after = resp.GetLast()
			o.over = err != nil || o.after == 0
			r.feedSoon = true
		}
	})
}
