package store

import (
	"time"
	"unicode/utf8"

	"github.com/baton-cluster/baton/wire"
)

// gate is the condition of every command from an owner (S2): the session
// exists, the epoch is its current one, the named owner is the recorded one and
// its incarnation is current and not fenced. It fills in before and after.
// A nil row means refused, and res says why.
func (s *Store) gate(id string, epoch uint64, o *wire.Owner, res *wire.Result) *row {
	s.seek.id = id
	e, ok := s.sessions.Get(slot{live: &s.seek})
	if !ok {
		res.Code = s.goneCode(id)
		return nil
	}
	r := s.unpacked(e)
	res.Before, res.After = r.change, r.change
	switch {
	case r.epoch != epoch:
		res.Code = wire.Code_STALE_EPOCH
		return nil
	case r.owner != ownerOf(o) || !s.valid(r.owner):
		res.Code = wire.Code_STALE_INCARNATION
		return nil
	}
	return r
}

// touch records that this command changed the row.
func (s *Store) touch(r *row, res *wire.Result) {
	r.change = s.position
	res.After = r.change
}

// assign gives the row a new epoch and owner and remembers the change. Who is
// attached, and the TTL, are the caller's to settle.
func (s *Store) assign(r *row, to owner, c ownerChange) {
	c.from = r.owner.worker
	r.epoch = s.nextEpoch()
	r.owner = to
	c.epoch, c.owner = r.epoch, to
	c.index, c.wallUS = s.index, s.wallUS
	r.addHistory(&s.h, c)
	s.emit(Event{Kind: EventSession, Session: r.id, Worker: to.worker})
}

// reasonOpened is why a session has its first owner.
const reasonOpened = "opened"

func (s *Store) applyOpen(c *wire.OpenSession, res *wire.Result) {
	id := c.GetSession()
	if r := s.row(id); r != nil && string(r.nonce) == string(c.GetNonce()) {
		res.Duplicate = true
		res.Before, res.After = r.change, r.change
		res.Epoch = r.epoch
		res.Row = r.proto()
		return
	}
	if res.Code = s.checkOpen(c); res.Code != wire.Code_OK {
		if res.Code == wire.Code_OPEN_TOO_LATE {
			res.TimeUs = s.timeUS
		}
		return
	}
	r := newRow(id)
	r.secretHash = c.GetSecretHash()
	r.ttlUS = c.GetTtlUs()
	r.shared = c.GetShared()
	r.nonce = c.GetNonce()
	r.openDeadlineUS = c.GetDeadlineUs()
	r.expiresUS = saturate(s.timeUS, r.ttlUS) // a new session counts as detached (S8)
	r.charge(len(id))
	s.assign(r, ownerOf(c.GetOwner()), ownerChange{reason: reasonOpened, by: clip(c.GetBy())})
	s.touch(r, res)
	s.insert(r)
	res.Epoch = r.epoch
	res.Row = r.proto()
}

// checkOpen says why a new session is refused. The order matters: a remembered
// id answers with why it is gone even past the deadline.
func (s *Store) checkOpen(c *wire.OpenSession) wire.Code {
	id := c.GetSession()
	if code := checkID(id); code != wire.Code_OK {
		return code
	}
	if old, ok := s.closed.Get(&closed{session: id, nonce: string(c.GetNonce())}); ok {
		return old.why
	}
	switch {
	case !label(string(c.GetNonce())), !label(string(c.GetSecretHash())):
		return wire.Code_BAD_REQUEST
	case c.GetTtlUs() < uint64(wire.TTLMin/time.Microsecond), c.GetTtlUs() > uint64(wire.TTLMax/time.Microsecond):
		return wire.Code_BAD_REQUEST
	case s.timeUS > c.GetDeadlineUs():
		return wire.Code_OPEN_TOO_LATE
	case s.row(id) != nil:
		return wire.Code_SESSION_EXISTS
	case s.resting():
		return wire.Code_RETRY
	case !s.valid(ownerOf(c.GetOwner())):
		return wire.Code_STALE_INCARNATION
	case s.overBudget(wire.SessionBytesFixed + len(id)):
		return wire.Code_BUDGET_EXCEEDED
	}
	return wire.Code_OK
}

// overBudget reports whether growing by n bytes would pass the byte budget (S9).
func (s *Store) overBudget(n int) bool {
	return n > 0 && (s.used > s.byteBudget || uint64(n) > s.byteBudget-s.used)
}

// checkID is the part of wire.CheckSessionID that replicas of different builds
// agree on: which runes are printable depends on the Unicode tables of the Go
// release, and is checked where the id comes in.
func checkID(id string) wire.Code {
	if id == "" || len(id) > wire.SessionIDBytesMax || !utf8.ValidString(id) {
		return wire.Code_BAD_SESSION_ID
	}
	for i := range len(id) {
		if id[i] < 0x20 || id[i] == 0x7f {
			return wire.Code_BAD_SESSION_ID
		}
	}
	return wire.Code_OK
}

// applyClaim changes nothing: an owner (re)makes its activation from the row.
func (s *Store) applyClaim(c *wire.Claim, res *wire.Result) {
	if r := s.gate(c.GetSession(), c.GetEpoch(), c.GetOwner(), res); r != nil {
		res.Epoch = r.epoch
		res.Row = r.proto()
	}
}

func (s *Store) applyClose(c *wire.CloseSession, res *wire.Result) {
	if r := s.gate(c.GetSession(), c.GetEpoch(), c.GetOwner(), res); r != nil {
		s.retire(r, wire.Code_SESSION_CLOSED, "session closed")
		res.After = s.position
	}
}

// applyExpire re-checks what the leader saw: it may have been long ago.
func (s *Store) applyExpire(c *wire.Expire, res *wire.Result) {
	r := s.row(c.GetSession())
	if r == nil {
		res.Code = s.goneCode(c.GetSession())
		return
	}
	res.Before, res.After = r.change, r.change
	switch {
	case r.epoch != c.GetEpoch():
		res.Code = wire.Code_STALE_EPOCH
	case r.attached() || r.expiresUS > s.timeUS:
		res.Code = wire.Code_RETRY
	default:
		s.retire(r, wire.Code_SESSION_EXPIRED, "session expired")
		res.After = s.position
	}
}

// applyAssign gives a session without a valid owner a new one (S2). It ends the
// session's migration in the same command: left active, a late pivot would take
// the session away from an owner that never agreed.
func (s *Store) applyAssign(c *wire.Assign, res *wire.Result) {
	r := s.row(c.GetSession())
	if r == nil {
		res.Code = s.goneCode(c.GetSession())
		return
	}
	res.Before, res.After = r.change, r.change
	to := ownerOf(c.GetOwner())
	switch {
	case r.epoch != c.GetReplaces():
		res.Code = wire.Code_STALE_EPOCH
		return
	case s.valid(r.owner):
		res.Code = wire.Code_OWNER_VALID
		return
	case s.resting():
		res.Code = wire.Code_RETRY
		return
	case !s.valid(to):
		res.Code = wire.Code_TARGET_STALE
		return
	}
	r, keys := s.edit(s.endMigrationOf(r, "session reassigned"))
	s.assign(r, to, ownerChange{reason: clip(c.GetReason()), by: clip(c.GetBy())})
	s.detachAll(r)
	s.touch(r, res)
	s.commit(r, keys)
	res.Epoch = r.epoch
	res.Row = r.proto()
}
