package store

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// The state hash is the xor of one hash per row of every table, and one of the
// cluster's own fields. A session's hash is in turn that of its fixed-size
// fields, mixed with the xor of one hash per state entry, window, cached reply,
// push and ownership change. So a write costs what it changes, not the size of
// the session. Every part is seeded with a tag of its kind and the row's id, so
// that equal parts of different rows, or of different kinds, do not cancel out.
//
// Fields are hashed one by one: marshalled protobuf is not canonical.

// Tags keep the kinds of parts apart. The hash is compared between running
// replicas and stored in snapshots: append, never renumber.
const (
	tagCluster = iota + 1
	tagWorker
	tagSession
	tagEntry
	tagWindow
	tagReply
	tagPush
	tagOwnerChange
	tagMigration
	tagClosed
	tagJob
	tagPlan
)

// hasher gathers the fields of one part. Values are hashed first, so that its
// buffer stays small.
type hasher struct{ buf []byte }

func (h *hasher) start(tag byte, seed uint64) {
	h.buf = append(h.buf[:0], tag)
	h.u64(seed)
}

func (h *hasher) u64(v uint64) { h.buf = binary.BigEndian.AppendUint64(h.buf, v) }

func (h *hasher) flag(v bool) {
	if v {
		h.u64(1)
	} else {
		h.u64(0)
	}
}

func (h *hasher) str(v string) {
	h.u64(uint64(len(v)))
	h.u64(xxhash.Sum64String(v))
}

func (h *hasher) bytes(v []byte) {
	h.u64(uint64(len(v)))
	h.u64(xxhash.Sum64(v))
}

func (h *hasher) sum() uint64 { return xxhash.Sum64(h.buf) }

// Hash is the canonical hash of all tables, log time and counters included. It
// is equal on all replicas that have applied the same entries. O(1).
func (s *Store) Hash() uint64 {
	var h hasher
	return s.sum ^ s.clusterHash(&h)
}

func (s *Store) clusterHash(h *hasher) uint64 {
	h.start(tagCluster, 0)
	h.bytes(s.clusterID)
	h.u64(s.byteBudget)
	h.u64(s.used)
	h.u64(uint64(s.featureLevel))
	h.u64(s.timeUS)
	h.u64(s.epochs)
	h.u64(s.position)
	// Fields that came later: see worker.
	if s.leaseUS != 0 {
		h.u64(1)
		h.u64(s.leaseUS)
	}
	if s.voterConfig != 0 {
		h.u64(2)
		h.u64(s.voterConfig)
		for _, id := range s.voters {
			h.str(id)
		}
	}
	if len(s.keys) > 0 {
		h.u64(3)
		h.keys(s.keys)
	}
	if s.assignAfterUS != 0 {
		h.u64(4)
		h.u64(s.assignAfterUS)
	}
	if len(s.joinTokens) > 0 {
		h.u64(5)
		h.joinTokens(s.joinTokens)
	}
	return h.sum()
}

func (h *hasher) worker(w *worker) uint64 {
	h.start(tagWorker, 0)
	h.str(w.id)
	h.str(w.name)
	h.u64(w.incarnation)
	h.bytes(w.nonce)
	h.str(w.host)
	h.u64(uint64(w.userPort))
	h.u64(uint64(w.mgmtPort))
	h.str(w.zone)
	h.u64(w.capacity)
	h.u64(uint64(w.state))
	h.flag(w.untilRegister)
	h.str(w.version)
	h.str(w.reason)
	// Fields that came later are hashed only where they are set, so that the hash
	// in an older snapshot holds.
	if w.job != 0 {
		h.u64(w.job)
	}
	if w.place != (place{}) {
		h.str(w.place.boot)
		h.u64(w.place.device)
		h.u64(w.place.inode)
		h.flag(w.place.local)
	}
	return h.sum()
}

// row hashes the fields of fixed size (and the attachments, which are few) and
// mixes in the parts.
func (h *hasher) row(r *row) uint64 {
	h.start(tagSession, r.parts)
	h.str(r.id)
	h.bytes(r.secretHash)
	h.u64(r.ttlUS)
	h.flag(r.shared)
	h.bytes(r.nonce)
	h.u64(r.openDeadlineUS)
	h.str(r.owner.worker)
	h.u64(r.owner.incarnation)
	h.u64(r.epoch)
	h.u64(uint64(len(r.attachments)))
	for _, a := range r.attachments {
		h.u64(a.number)
		h.str(a.client)
	}
	h.u64(r.attachHigh)
	h.u64(r.expiresUS)
	h.u64(r.pushNext)
	h.u64(r.change)
	h.u64(r.migration)
	h.u64(r.bytes)
	return h.sum()
}

func (h *hasher) entry(r *row, key string, value []byte) uint64 {
	h.start(tagEntry, r.seed)
	h.str(key)
	h.bytes(value)
	return h.sum()
}

func (h *hasher) window(r *row, w *window) uint64 {
	h.start(tagWindow, r.seed)
	h.str(w.client)
	h.u64(w.last)
	h.u64(w.ack)
	h.u64(w.pushAck)
	h.u64(w.attached)
	return h.sum()
}

func (h *hasher) reply(r *row, client string, p *cachedReply) uint64 {
	h.start(tagReply, r.seed)
	h.str(client)
	h.u64(p.seq)
	h.u64(uint64(p.code))
	h.str(p.message)
	h.bytes(p.payload)
	h.u64(p.digest)
	return h.sum()
}

func (h *hasher) push(r *row, seq uint64, payload []byte) uint64 {
	h.start(tagPush, r.seed)
	h.u64(seq)
	h.bytes(payload)
	return h.sum()
}

func (h *hasher) ownerChange(r *row, c *ownerChange) uint64 {
	h.start(tagOwnerChange, r.seed)
	h.u64(c.epoch)
	h.str(c.owner.worker)
	h.u64(c.owner.incarnation)
	h.str(c.from)
	h.u64(c.index)
	h.u64(uint64(c.wallUS))
	h.str(c.reason)
	h.str(c.by)
	h.u64(c.migration)
	h.u64(c.pauseUS)
	return h.sum()
}

func (h *hasher) migration(m *migration) uint64 {
	h.start(tagMigration, m.id)
	h.bytes(m.nonce)
	h.str(m.session)
	h.str(m.source.worker)
	h.u64(m.source.incarnation)
	h.str(m.target.worker)
	h.u64(m.target.incarnation)
	h.u64(m.sourceEpoch)
	h.u64(m.targetEpoch)
	h.bytes(m.tokenHash)
	h.u64(m.deadlineUS)
	h.u64(uint64(m.phase))
	h.u64(uint64(m.reason))
	h.u64(uint64(m.priority))
	h.str(m.by)
	h.str(m.why)
	h.u64(m.digest)
	h.u64(m.begunUS)
	h.u64(m.endedUS)
	h.u64(m.pauseUS)
	h.u64(uint64(m.wallUS))
	if m.job != 0 {
		h.u64(m.job)
	}
	// What was added later counts only where it is set: the hash of a row without
	// it stays what it was.
	if m.confirmedBy != "" || len(m.metadata) > 0 {
		h.str(m.confirmedBy)
		for _, n := range m.metadata {
			h.str(n.key)
			h.str(n.value)
		}
	}
	return h.sum()
}

func (h *hasher) closed(c *closed) uint64 {
	h.start(tagClosed, 0)
	h.str(c.session)
	h.str(c.nonce)
	h.u64(c.untilUS)
	h.u64(uint64(c.why))
	return h.sum()
}

func (h *hasher) job(j *job) uint64 {
	h.start(tagJob, j.planSum)
	h.u64(j.id)
	h.bytes(j.nonce)
	h.u64(uint64(j.kind))
	h.u64(uint64(j.state))
	h.str(j.worker)
	h.u64(uint64(j.priority))
	h.u64(j.pace.maxPauseUS)
	h.u64(uint64(j.pace.rate))
	h.u64(uint64(j.pace.concurrency))
	h.u64(j.deadlineUS)
	h.u64(uint64(j.placement))
	h.str(j.by)
	h.u64(uint64(j.code))
	h.str(j.reason)
	h.u64(j.planned)
	h.u64(j.moved)
	h.u64(j.aborted)
	h.u64(j.failed)
	h.u64(uint64(len(j.pauses)))
	for _, b := range j.pauses {
		h.u64(uint64(b.index))
		h.u64(b.count)
	}
	h.u64(j.pauseMaxUS)
	h.u64(j.begunUS)
	h.u64(j.endedUS)
	h.u64(uint64(j.wallUS))
	if j.confirmByUS != 0 || j.confirmedBy != "" {
		h.u64(j.confirmByUS)
		h.str(j.confirmedBy)
	}
	return h.sum()
}

func (h *hasher) plan(plan []plannedMove, targets []owner) uint64 {
	h.start(tagPlan, uint64(len(plan)))
	for _, m := range plan {
		h.str(m.session)
		h.u64(m.epoch)
		h.u64(uint64(m.to))
	}
	for _, o := range targets {
		h.str(o.worker)
		h.u64(o.incarnation)
	}
	return h.sum()
}
