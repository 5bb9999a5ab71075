package store

import (
	"unicode/utf8"

	"github.com/baton-cluster/baton/wire"
)

const (
	// labelBytesMax bounds ids, nonces, names and hashes that the tables keep. A
	// longer one is refused.
	labelBytesMax = 128
	// noteBytesMax bounds what is kept only for people to read. A longer one is
	// cut, because an abort or a fence must not fail for its wording.
	noteBytesMax = 256
)

// worker is a WorkerRow. It is immutable once in the table.
type worker struct {
	id          string
	name        string
	incarnation uint64
	nonce       []byte
	host        string
	userPort    uint32
	mgmtPort    uint32
	zone        string
	capacity    uint64
	// state is ACTIVE, DRAINING or FENCED.
	state wire.WorkerState
	// untilRegister: the next registration makes the worker active. Fencing an
	// active worker sets it, so that a drain, which must survive fence and
	// restart, can be told from none while state says FENCED.
	untilRegister bool
	version       string
	reason        string
	// job is the last drain of the present draining, 0 while the worker is
	// active. Invariant: an open drain is its worker's job.
	job uint64
	// place is where the incarnation holds its data directory.
	place place
	hash  uint64
}

// place is a wire.Place.
type place struct {
	boot          string
	device, inode uint64
	local         bool
}

func placeOf(p *wire.Place) place {
	return place{boot: p.GetBoot(), device: p.GetDevice(), inode: p.GetInode(), local: p.GetLocal()}
}

func (p place) proto() *wire.Place {
	if p == (place{}) {
		return nil
	}
	return &wire.Place{Boot: p.boot, Device: p.device, Inode: p.inode, Local: p.local}
}

// follows reports whether a process at p proves, by being there, that the one
// that was at old has ended: both hold the same lock file, which one kernel gives
// to one process at a time. On a network file system the kernel cannot know who
// else holds it.
func (p place) follows(old place) bool {
	return p == old && p.local && p.boot != "" && p.inode != 0
}

func lessWorker(a, b *worker) bool { return a.id < b.id }

// setWorker inserts or replaces a worker, which is then immutable.
func (s *Store) setWorker(w *worker) {
	if old := s.worker(w.id); old != nil {
		s.sum ^= old.hash
	}
	w.hash = s.h.worker(w)
	s.sum ^= w.hash
	s.workers.Set(w)
}

// valid reports whether o may act: its incarnation is the worker's current one
// and not fenced (S2). A lookup, so that fencing or restarting a worker with a
// million sessions is one small command.
func (s *Store) valid(o owner) bool {
	w := s.worker(o.worker)
	return w != nil && w.incarnation == o.incarnation && w.state != wire.WorkerState_WORKER_STATE_FENCED
}

func (s *Store) applyRegisterWorker(c *wire.RegisterWorker, res *wire.Result) {
	if !label(c.GetId()) || !label(string(c.GetNonce())) || len(c.GetName()) > labelBytesMax ||
		len(c.GetZone()) > labelBytesMax || len(c.GetVersion()) > labelBytesMax ||
		len(c.GetEndpoint().GetHost()) > noteBytesMax || len(c.GetPlace().GetBoot()) > labelBytesMax {
		res.Code = wire.Code_BAD_REQUEST
		return
	}
	old := s.worker(c.GetId())
	var current uint64
	state := wire.WorkerState_WORKER_STATE_ACTIVE
	reason, drain := "", uint64(0)
	if old != nil {
		if string(old.nonce) == string(c.GetNonce()) {
			res.Duplicate = true
			res.Epoch = old.incarnation
			return
		}
		current = old.incarnation
		if old.state != wire.WorkerState_WORKER_STATE_ACTIVE && !old.untilRegister {
			state, reason, drain = wire.WorkerState_WORKER_STATE_DRAINING, old.reason, old.job
		}
	}
	// Compare-and-set: two processes that both believe to be this worker must
	// not fence each other in turns.
	if c.GetPredecessor() != current {
		res.Code = wire.Code_PREDECESSOR_MISMATCH
		res.Current = current
		return
	}
	at := placeOf(c.GetPlace())
	if old != nil && old.state != wire.WorkerState_WORKER_STATE_FENCED && !at.follows(old.place) {
		res.Code = wire.Code_PREDECESSOR_ALIVE
		res.Current = current
		return
	}
	if state == wire.WorkerState_WORKER_STATE_ACTIVE {
		s.endDrainOf(old, "the worker started again")
	}
	res.Epoch = s.nextEpoch()
	s.setWorker(&worker{
		id:          c.GetId(),
		name:        c.GetName(),
		incarnation: res.Epoch,
		nonce:       c.GetNonce(),
		host:        c.GetEndpoint().GetHost(),
		userPort:    c.GetEndpoint().GetUserPort(),
		mgmtPort:    c.GetEndpoint().GetMgmtPort(),
		zone:        c.GetZone(),
		capacity:    c.GetCapacity(),
		state:       state,
		version:     c.GetVersion(),
		reason:      reason,
		job:         drain,
		place:       at,
	})
	s.emit(Event{Kind: EventWorker, Worker: c.GetId()})
}

func (s *Store) applyFenceWorker(c *wire.FenceWorker, res *wire.Result) {
	old := s.worker(c.GetId())
	switch {
	case old == nil:
		res.Code = wire.Code_UNKNOWN_WORKER
		return
	case old.incarnation != c.GetIncarnation():
		res.Code = wire.Code_STALE_INCARNATION
		res.Current = old.incarnation
		return
	case old.state == wire.WorkerState_WORKER_STATE_FENCED:
		res.Duplicate = true
		return
	case c.GetVoterConfig() < s.voterConfig:
		// Its withdrawals were counted among other voters, and do not bind these.
		res.Code = wire.Code_LEASE_OTHER_CONFIG
		res.Current = s.voterConfig
		return
	}
	w := *old
	w.untilRegister = old.state == wire.WorkerState_WORKER_STATE_ACTIVE || old.untilRegister
	w.state = wire.WorkerState_WORKER_STATE_FENCED
	w.reason = clip(c.GetReason())
	s.setWorker(&w)
	s.emit(Event{Kind: EventWorker, Worker: w.id})
}

func (s *Store) applySetWorkerState(c *wire.SetWorkerState, res *wire.Result) {
	old := s.worker(c.GetId())
	state := c.GetState()
	switch {
	case state != wire.WorkerState_WORKER_STATE_ACTIVE && state != wire.WorkerState_WORKER_STATE_DRAINING:
		res.Code = wire.Code_BAD_REQUEST
		return
	case old == nil:
		res.Code = wire.Code_UNKNOWN_WORKER
		return
	case c.GetIncarnation() != 0 && c.GetIncarnation() != old.incarnation:
		res.Code = wire.Code_STALE_INCARNATION
		res.Current = old.incarnation
		return
	case old.state == wire.WorkerState_WORKER_STATE_FENCED:
		res.Code = wire.Code_WORKER_FENCED
		return
	}
	until := c.GetUntilRegister() && state == wire.WorkerState_WORKER_STATE_DRAINING
	if old.state == state && old.untilRegister == until {
		res.Duplicate = true
		return
	}
	w := *old
	w.state, w.untilRegister, w.reason = state, until, clip(c.GetBy())
	if state == wire.WorkerState_WORKER_STATE_ACTIVE {
		s.endDrainOf(old, "undrained by "+c.GetBy())
		w.job = 0
	}
	s.setWorker(&w)
	s.emit(Event{Kind: EventWorker, Worker: w.id})
}

// applyRemoveWorker forgets a worker. Its incarnations stay ended: no other gets
// their numbers (S1).
func (s *Store) applyRemoveWorker(c *wire.RemoveWorker, res *wire.Result) {
	old := s.worker(c.GetId())
	switch {
	case !label(c.GetId()):
		res.Code = wire.Code_BAD_REQUEST
		return
	case old == nil:
		res.Duplicate = true
		return
	case old.incarnation != c.GetIncarnation():
		res.Code = wire.Code_STALE_INCARNATION
		res.Current = old.incarnation
		return
	case old.state == wire.WorkerState_WORKER_STATE_ACTIVE:
		res.Code = wire.Code_BAD_REQUEST
		return
	case s.ownsAny(old.id):
		res.Code = wire.Code_SESSIONS_LEFT
		return
	}
	s.endDrainOf(old, "the worker left")
	s.sum ^= s.worker(old.id).hash
	s.workers.Delete(old)
	s.emit(Event{Kind: EventWorker, Worker: old.id})
}

// ownsAny reports whether any incarnation of the worker is a session's owner.
func (s *Store) ownsAny(id string) bool {
	for o, g := range s.groups {
		if o.worker == id && g.ids.Len() > 0 {
			return true
		}
	}
	return false
}

// applyReadMarker confirms that an incarnation was still current at this place
// of the log, so that a read of its activation is linearizable.
func (s *Store) applyReadMarker(c *wire.ReadMarker, res *wire.Result) {
	if !s.valid(ownerOf(c.GetOwner())) {
		res.Code = wire.Code_STALE_INCARNATION
	}
}

// Confirm is what a read marker would be answered if it came right after what was
// applied last.
func (s *Store) Confirm(m *wire.ReadMarker) *wire.Result {
	res := &wire.Result{Position: s.position}
	s.applyReadMarker(m, res)
	return res
}

func (s *Store) applyLocate(c *wire.Locate, res *wire.Result) {
	res.Location = s.Location(c.GetSession())
}

// label reports whether v can be kept as an id or nonce.
func label(v string) bool { return v != "" && len(v) <= labelBytesMax }

// clip cuts a note to noteBytesMax without splitting a rune: a string that is
// not UTF-8 could not be written to a snapshot.
func clip(v string) string {
	if len(v) <= noteBytesMax {
		return v
	}
	n := noteBytesMax
	for n > 0 && !utf8.RuneStart(v[n]) {
		n--
	}
	return v[:n]
}
