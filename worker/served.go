package worker

import (
	"sync"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// Served is the record of having served a session under one epoch: the log
// positions of the first and last command or read marker that were committed
// for it here. Intervals of different epochs must not overlap (P1).
type Served struct {
	Session     string
	Epoch       uint64
	Incarnation uint64
	First, Last uint64
	Active      bool
}

// servedMax bounds the remembered ended intervals of a node.
const servedMax = 1 << 16

type servedRing struct {
	mu   sync.Mutex
	ring []Served
	next int
}

func (r *servedRing) add(s Served) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ring) < servedMax {
		r.ring = append(r.ring, s)
		return
	}
	r.ring[r.next] = s
	r.next = (r.next + 1) % servedMax
}

func (r *servedRing) list() []Served {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Served(nil), r.ring...)
}

// Servings lists the node's serving intervals, ended ones first.
func (w *Worker) Servings() []Served {
	out := w.served.list()
	w.mu.RLock()
	all := make([]*session, 0, len(w.sessions))
	for _, s := range w.sessions {
		all = append(all, s)
	}
	w.mu.RUnlock()
	for _, s := range all {
		s.mu.Lock()
		if s.act != nil {
			sv := s.act.served(s.id)
			sv.Active = s.freeze == nil
			out = append(out, sv)
		}
		s.mu.Unlock()
	}
	return out
}

func (a *activation) served(id string) Served {
	return Served{Session: id, Epoch: a.epoch, Incarnation: a.owner.GetIncarnation(), First: a.first, Last: a.last}
}

// location reads the session's place from the local state machine, which may
// lag.
func (w *Worker) location(id string) (loc *wire.Location) {
	w.cfg.View(func(st *store.Store) { loc = st.Location(id) })
	return loc
}
