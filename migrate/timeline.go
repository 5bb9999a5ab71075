package migrate

import (
	"sync"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// failoversMax bounds the failovers that a director remembers.
const failoversMax = 64

// Failover is how a worker's sessions got new owners, as the director that saw to
// it lived through it. Times are of its wall clock; the zero time: not, or not yet.
type Failover struct {
	Worker      string
	Incarnation uint64
	Why         string // it was suspected
	// Suspected is when the worker was first taken for dead; PromisesOut when
	// nothing stood in the way of a fence any more; Fenced when that had committed.
	Suspected, PromisesOut, Fenced time.Time
	// Assigned is when the last session that had a client had a new owner, Sessions
	// how many had one.
	Assigned time.Time
	Sessions int
}

// timeline remembers the latest failovers. It outlives terms.
type timeline struct {
	clock seam.Clock
	mu    sync.Mutex
	list  []Failover
}

// note changes what is remembered of an incarnation's failover.
func (t *timeline) note(worker string, incarnation uint64, fn func(f *Failover, now time.Time)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := len(t.list) - 1; i >= 0; i-- {
		if f := &t.list[i]; f.Worker == worker && f.Incarnation == incarnation {
			fn(f, t.clock.Wall())
			return
		}
	}
	if len(t.list) == failoversMax {
		t.list = append(t.list[:0], t.list[1:]...)
	}
	t.list = append(t.list, Failover{Worker: worker, Incarnation: incarnation})
	fn(&t.list[len(t.list)-1], t.clock.Wall())
}

// suspected: a worker is taken for dead. Of several suspicions the last counts.
func (t *timeline) suspected(worker string, incarnation uint64, why string) {
	t.note(worker, incarnation, func(f *Failover, now time.Time) { f.Suspected, f.Why = now, why })
}

func (t *timeline) promisesOut(worker string, incarnation uint64) {
	t.note(worker, incarnation, func(f *Failover, now time.Time) { f.PromisesOut = now })
}

func (t *timeline) fenced(worker string, incarnation uint64) {
	t.note(worker, incarnation, func(f *Failover, now time.Time) { f.Fenced = now })
}

// assigned: a session has another owner. It counts if it had a client.
func (t *timeline) assigned(was store.Summary, res *wire.Result) {
	if was.Attached == 0 || res.GetCode() != wire.Code_OK || res.GetDuplicate() {
		return
	}
	t.note(was.Owner.GetWorker(), was.Owner.GetIncarnation(), func(f *Failover, now time.Time) {
		f.Assigned = now
		f.Sessions++
	})
}

// Failovers tells of the latest failovers that this director saw to, in order.
func (d *Director) Failovers() []Failover {
	t := d.cfg.times
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Failover(nil), t.list...)
}
