package lease

import (
	"maps"
	"slices"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// Facts is what a server's own log and applied state say at the moment of a
// grant. They are to be read under the lock that guards the Server, after the
// clock.
type Facts struct {
	// Logged and Applied are the indices of the latest voter configurations in
	// this server's log and in its applied state.
	Logged, Applied uint64
	// Current: the applied state holds the incarnation current and not fenced.
	// Past: it holds it for over: fenced, or a later one is current.
	Current, Past bool
	// CaughtUp: all that the log held when this process started has been applied
	// (or is gone). Before that, the state may be older than a fence that this
	// server knew of in its former life.
	CaughtUp bool
}

// Promise is what a server says of one incarnation.
type Promise struct {
	Left      time.Duration // until the promise has run out; 0: it has, or there is none
	Withdrawn bool          // the server has agreed to a fence, for ever
	// Quiet: Left is what a restarted server waits for promises that it may have
	// forgotten, and no sign that the worker is alive.
	Quiet bool
}

// Server is one voter's promises and withdrawals, by incarnation (incarnations
// are unique in the cluster). Grant and Withdraw must run under one lock, with
// the clock read inside it. Not safe for concurrent use.
type Server struct {
	// quiet is until when nothing is withdrawn: promises of a former life of this
	// server may run (L3).
	quiet     time.Duration
	promises  map[uint64]time.Duration // when they run out
	withdrawn map[uint64]bool
}

// NewServer makes the state of a server whose process starts now, with the
// withdrawals that its disk holds. fresh: this server's id is new, so that it
// has never promised anything.
func NewServer(now time.Duration, withdrawn []uint64, fresh bool) *Server {
	s := &Server{promises: map[uint64]time.Duration{}, withdrawn: map[uint64]bool{}, quiet: now}
	if !fresh {
		s.quiet = now + TMax
	}
	for _, n := range withdrawn {
		s.withdrawn[n] = true
	}
	return s
}

// Grant answers a renewal: OK, and the promise is made, or why not.
// BAD_REQUEST: T is out of bounds. T 0 asks for no promise, only for an answer.
func (s *Server) Grant(now time.Duration, r Renewal, f Facts) wire.Code {
	switch {
	case r.T == 0:
		return wire.Code_OK
	case r.T < TMin || r.T > TMax:
		return wire.Code_BAD_REQUEST
	case s.withdrawn[r.Incarnation]:
		return wire.Code_LEASE_WITHDRAWN
	case f.Past:
		return wire.Code_WORKER_FENCED
	case !f.CaughtUp || !f.Current || f.Applied < r.Config || f.Logged < r.Config:
		return wire.Code_LEASE_BEHIND
	case f.Logged != r.Config || f.Applied != r.Config:
		return wire.Code_LEASE_OTHER_CONFIG
	}
	// A promise is never shortened: a lower T must not take back what runs.
	s.promises[r.Incarnation] = max(s.promises[r.Incarnation], now+r.T)
	return wire.Code_OK
}

// Promise tells how long the promise to an incarnation still runs.
func (s *Server) Promise(now time.Duration, incarnation uint64) Promise {
	if s.withdrawn[incarnation] {
		return Promise{Withdrawn: true}
	}
	var p Promise
	if s.quiet > now {
		p = Promise{Left: s.quiet - now, Quiet: true}
	}
	if until := s.promises[incarnation]; until-now > p.Left {
		p = Promise{Left: until - now}
	}
	return p
}

// Withdraw agrees to a fence if the promise has run out, and from then on
// promises that incarnation nothing. The caller answers a withdrawal only once
// it is on the disk: see Withdrawals.
func (s *Server) Withdraw(now time.Duration, incarnation uint64) Promise {
	p := s.Promise(now, incarnation)
	if p.Left == 0 && !p.Withdrawn {
		s.withdrawn[incarnation] = true
		delete(s.promises, incarnation)
		p.Withdrawn = true
	}
	return p
}

// Withdrawals are the incarnations withdrawn, rising: what the disk must hold.
func (s *Server) Withdrawals() []uint64 { return slices.Sorted(maps.Keys(s.withdrawn)) }

// Forget drops what is known of incarnations that are over by the applied state,
// which refuses them from now on. It must not be called before that has caught
// up with the log of this server's former life.
func (s *Server) Forget(past func(incarnation uint64) bool) {
	maps.DeleteFunc(s.promises, func(n uint64, _ time.Duration) bool { return past(n) })
	maps.DeleteFunc(s.withdrawn, func(n uint64, _ bool) bool { return past(n) })
}
