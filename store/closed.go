package store

import (
	"math"

	"github.com/baton-cluster/baton/wire"
)

const (
	// closedMemoryUS is how long at least (log time) a closed or expired session
	// is remembered, so that its client, and a repeated Close, learn why it is
	// gone. Its Open's deadline may make it longer, never shorter (S10).
	closedMemoryUS = 60_000_000
	// closedSweepMax bounds how many records one entry forgets, so that applying
	// it is bounded (S6). More than an entry can add would not be needed; twice
	// that lets the sweep catch up after a jump of log time.
	closedSweepMax = 2 * wire.EntryCommandsMax
)

// closed is a Closed row. Immutable.
type closed struct {
	session string
	nonce   string
	untilUS uint64
	why     wire.Code
	hash    uint64
}

func lessClosed(a, b *closed) bool {
	if a.session != b.session {
		return a.session < b.session
	}
	return a.nonce < b.nonce
}

func lessForget(a, b *closed) bool {
	if a.untilUS != b.untilUS {
		return a.untilUS < b.untilUS
	}
	return lessClosed(a, b)
}

// charge: closing frees more than the record takes, so it is never refused, but
// opening and closing in turns must not grow the tables past the budget (S9).
func (c *closed) charge() uint64 {
	return uint64(len(c.session) + len(c.nonce) + wire.EntryOverheadBytes)
}

// retire removes a session's row and everything that hangs on it, and remembers
// why (H5, S10).
func (s *Store) retire(r *row, why wire.Code, note string) {
	r = s.endMigrationOf(r, note)
	s.remove(r)
	s.remember(&closed{
		session: r.id,
		nonce:   string(r.nonce),
		untilUS: max(r.openDeadlineUS, saturate(s.timeUS, closedMemoryUS)),
		why:     why,
	})
	s.emit(Event{Kind: EventSession, Session: r.id, Worker: r.owner.worker})
}

func (s *Store) remember(c *closed) {
	if old, ok := s.closed.Get(c); ok {
		s.forgetClosed(old)
	}
	c.hash = s.h.closed(c)
	s.sum ^= c.hash
	s.used += c.charge()
	s.closed.Set(c)
	s.forget.Set(c)
}

func (s *Store) forgetClosed(c *closed) {
	s.sum ^= c.hash
	s.used -= c.charge()
	s.closed.Delete(c)
	s.forget.Delete(c)
}

// sweepClosed forgets what log time allows to forget. A record lives while its
// session's Open could still be accepted: through its deadline, inclusive.
func (s *Store) sweepClosed() {
	for range closedSweepMax {
		c, ok := s.forget.Min()
		if !ok || c.untilUS >= s.timeUS {
			return
		}
		s.forgetClosed(c)
	}
}

// goneCode says why there is no such session, as far as that is remembered. Of
// several records for the id any will do; this takes the last by nonce.
func (s *Store) goneCode(id string) wire.Code {
	code := wire.Code_UNKNOWN_SESSION
	pivot := &closed{session: id + "\x00"} // just above every nonce of id
	s.closed.Descend(pivot, func(c *closed) bool {
		if c.session == id {
			code = c.why
		}
		return c.session > id
	})
	return code
}

// saturate adds a duration to a log time without wrapping around.
func saturate(us, add uint64) uint64 {
	if us > math.MaxUint64-add {
		return math.MaxUint64
	}
	return us + add
}
