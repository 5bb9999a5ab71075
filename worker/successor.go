package worker

import (
	"sync"
	"time"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// successors is what clients are told beforehand of a crash of this node: who
// takes their session, and how long they are to spread their coming. It is a hint:
// the director decides, by the same rule, among the workers that it knows to be
// alive.
type successors struct {
	mu      sync.Mutex
	known   bool // workers and infos are as the local state machine has them
	workers []migrate.Candidate
	infos   []*wire.NodeInfo
	told    time.Duration // the largest spread that anybody was told
	telling bool          // a goroutine tells all
	again   bool          // and is to begin anew
}

// forget makes the next look read the workers again.
func (u *successors) forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.known = false
}

// successor says who is to take a session of this worker, nil: nobody.
func (w *Worker) successor(session string) *wire.NodeInfo {
	u := &w.successors
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.known {
		u.known, u.workers, u.infos = true, nil, nil
		w.cfg.View(func(st *store.Store) {
			for _, r := range st.Workers() {
				u.workers = append(u.workers, migrate.Candidate{
					ID: r.GetId(), Capacity: r.GetCapacity(), Eligible: r.GetState() == wire.WorkerState_WORKER_STATE_ACTIVE,
				})
				u.infos = append(u.infos, NodeInfo(r))
			}
		})
	}
	if i, ok := migrate.Successor(session, w.cfg.ID, u.workers); ok {
		return u.infos[i]
	}
	return nil
}

// spread is over how long this node's clients are to come elsewhere if it dies.
func (w *Worker) spread() time.Duration {
	if w.cfg.Spread == nil {
		return 0
	}
	return w.cfg.Spread()
}

// foretell fills in what an attachment is told of the node's end, and remembers
// it. s.mu is held.
func (s *session) foretell(att *attachment) (*wire.NodeInfo, uint64) {
	to, spread := s.w.successor(s.id), s.w.spread()
	att.successor, att.spread = endpointOf(to), spread
	u := &s.w.successors
	u.mu.Lock()
	outgrown := spread > 2*u.told
	u.told = max(u.told, spread)
	u.mu.Unlock()
	if outgrown {
		s.w.tellSuccessors() // those who came when there were few
	}
	return to, uint64(spread / time.Microsecond)
}

// tellSuccessors tells all attached clients what has changed for them, on a
// goroutine of its own.
func (w *Worker) tellSuccessors() {
	u := &w.successors
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.telling {
		u.again = true
		return
	}
	u.telling = true
	w.spawn(func() {
		for again := true; again; {
			for _, s := range w.all() {
				s.tellSuccessor()
			}
			u.mu.Lock()
			again, u.again = u.again && !w.closed.Load(), false
			u.telling = again
			u.mu.Unlock()
		}
	})
}

// all lists the sessions that this worker holds anything of.
func (w *Worker) all() []*session {
	w.mu.RLock()
	defer w.mu.RUnlock()
	all := make([]*session, 0, len(w.sessions))
	for _, s := range w.sessions {
		all = append(all, s)
	}
	return all
}

// endpoint is a node where clients find it.
type endpoint struct {
	node, host string
	port       uint32
}

func endpointOf(n *wire.NodeInfo) endpoint {
	return endpoint{n.GetId(), n.GetHost(), n.GetUserPort()}
}

func (s *session) tellSuccessor() {
	to, spread := s.w.successor(s.id), s.w.spread()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.queues {
		att := q.att
		if s.act == nil || s.act.numbers[att.name] != att.number {
			continue // its Attached will say
		}
		grown := spread > 2*att.spread || 2*spread < att.spread
		if att.successor == endpointOf(to) && !grown {
			continue
		}
		att.successor, att.spread = endpointOf(to), spread
		_ = att.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Successor{Successor: &wire.Successor{
			Node: to, SpreadUs: uint64(spread / time.Microsecond),
		}}})
	}
}
