package store

import (
	"slices"

	"github.com/baton-cluster/baton/wire"
)

// migration is a Migration row. Immutable once in the table. "Active" means
// phase BEGUN: begun, and neither pivoted nor ended (H3).
type migration struct {
	id          uint64
	nonce       []byte
	session     string
	source      owner
	target      owner
	sourceEpoch uint64
	targetEpoch uint64
	tokenHash   []byte
	deadlineUS  uint64
	phase       wire.Phase
	reason      wire.Reason
	priority    uint32
	by          string
	why         string
	digest      uint64
	begunUS     uint64
	endedUS     uint64
	pauseUS     uint64
	wallUS      int64
	job         uint64
	confirmedBy string
	metadata    []note // by rising key
	hash        uint64
}

// note is one entry of a migration's metadata.
type note struct{ key, value string }

func lessMigration(a, b *migration) bool { return a.id < b.id }

// endMigrationOf aborts the row's active migration, if it has one, and returns
// the row, which may be another copy. Every way in which a session leaves its
// epoch other than by pivot goes through here: close, expiry, reassignment (H5,
// S2).
func (s *Store) endMigrationOf(r *row, why string) *row {
	m := s.migration(r.migration)
	if m == nil {
		return r
	}
	s.abort(m, why)
	return s.row(r.id)
}

// abort ends an active migration and frees its session for another.
func (s *Store) abort(old *migration, why string) *migration {
	m := *old
	m.phase = wire.Phase_PHASE_ABORTED
	m.why = why
	m.endedUS = s.timeUS
	s.setMigration(&m)
	if r := s.row(m.session); r != nil && r.migration == m.id {
		r, keys := s.edit(r)
		r.migration = 0
		s.commit(r, keys)
		s.emit(Event{Kind: EventSession, Session: r.id, Worker: r.owner.worker, Migration: m.id})
	}
	s.emit(Event{Kind: EventMigration, Session: m.session, Worker: m.source.worker, Migration: m.id})
	s.countAbort(m.job)
	s.forgetMigrations()
	return &m
}

func (s *Store) applyBegin(c *wire.BeginMigration, res *wire.Result) {
	if id, ok := s.nonces[string(c.GetNonce())]; ok {
		res.Duplicate = true
		res.Migration = s.migration(id).proto()
		return
	}
	r, code := s.checkBegin(c, res)
	if code != wire.Code_OK {
		res.Code = code
		return
	}
	m := &migration{
		id:          s.position,
		nonce:       c.GetNonce(),
		session:     c.GetSession(),
		source:      ownerOf(c.GetSource()),
		target:      ownerOf(c.GetTarget()),
		sourceEpoch: c.GetSourceEpoch(),
		tokenHash:   c.GetTokenHash(),
		deadlineUS:  c.GetDeadlineUs(),
		phase:       wire.Phase_PHASE_BEGUN,
		reason:      c.GetReason(),
		priority:    c.GetPriority(),
		by:          clip(c.GetBy()),
		begunUS:     s.timeUS,
		wallUS:      s.wallUS,
		job:         c.GetJob(),
		confirmedBy: clip(c.GetConfirmedBy()),
		metadata:    notesOf(c.GetMetadata()),
	}
	s.setMigration(m)
	r, keys := s.edit(r)
	r.migration = m.id
	s.commit(r, keys)
	res.Migration = m.proto()
	s.emit(Event{Kind: EventSession, Session: r.id, Worker: r.owner.worker, Migration: m.id})
	s.emit(Event{Kind: EventMigration, Session: r.id, Worker: r.owner.worker, Migration: m.id})
}

// checkBegin is commit 1's condition: owner and epoch, both incarnations, and
// no other migration.
func (s *Store) checkBegin(c *wire.BeginMigration, res *wire.Result) (*row, wire.Code) {
	source, target := ownerOf(c.GetSource()), ownerOf(c.GetTarget())
	r := s.row(c.GetSession())
	if r == nil {
		return nil, s.goneCode(c.GetSession())
	}
	res.Before, res.After = r.change, r.change
	w := s.worker(target.worker)
	switch {
	case !label(string(c.GetNonce())), len(c.GetTokenHash()) > labelBytesMax, wire.CheckMetadata(c.GetMetadata()) != nil:
		return nil, wire.Code_BAD_REQUEST
	case r.epoch != c.GetSourceEpoch():
		return nil, wire.Code_STALE_EPOCH
	case r.owner != source:
		return nil, wire.Code_SOURCE_STALE
	case !s.valid(source):
		return nil, wire.Code_NO_OWNER
	case !s.valid(target):
		return nil, wire.Code_TARGET_STALE
	case w.state == wire.WorkerState_WORKER_STATE_DRAINING:
		return nil, wire.Code_TARGET_DRAINING
	case source.worker == target.worker:
		return nil, wire.Code_SAME_NODE
	case r.migration != 0:
		return nil, wire.Code_MIGRATION_ACTIVE
	case c.GetDeadlineUs() <= s.timeUS:
		return nil, wire.Code_DEADLINE_PASSED
	}
	if code := s.checkJobBegin(c.GetJob(), source); code != wire.Code_OK {
		return nil, code
	}
	return r, wire.Code_OK
}

// applyPivot is commit 2, the moment of truth.
func (s *Store) applyPivot(c *wire.CommitPivot, res *wire.Result) {
	m := s.migration(c.GetMigration())
	if m == nil {
		res.Code = wire.Code_UNKNOWN_MIGRATION
		return
	}
	res.Migration = m.proto()
	r := s.row(m.session)
	if r != nil {
		res.Before, res.After = r.change, r.change
	}
	switch m.phase {
	case wire.Phase_PHASE_BEGUN:
	case wire.Phase_PHASE_PIVOTED, wire.Phase_PHASE_COMPLETED:
		if r == nil || r.epoch != m.targetEpoch || c.GetDigest() != m.digest {
			res.Code = wire.Code_MIGRATION_PIVOTED
			return
		}
		res.Duplicate = true
		res.Epoch = r.epoch
		res.Row = r.proto()
		return
	default:
		res.Code = wire.Code_MIGRATION_ENDED
		return
	}
	if res.Code = s.checkPivot(m, r, c); res.Code != wire.Code_OK {
		return
	}
	s.pivot(m, r, c, res)
}

// checkPivot is H2. Never on a time-out alone: what is refused here is either
// not the migration's to take any more, or not yet safe to take.
func (s *Store) checkPivot(m *migration, r *row, c *wire.CommitPivot) wire.Code {
	switch {
	case s.timeUS > m.deadlineUS:
		return wire.Code_DEADLINE_PASSED
	case r == nil:
		return s.goneCode(m.session)
	case r.epoch != m.sourceEpoch:
		return wire.Code_STALE_EPOCH
	case r.owner != m.source:
		return wire.Code_SOURCE_STALE
	// The freeze is needless only if the source can write no more (S2). It names
	// the migration: one from an aborted attempt must not pivot this one (H1).
	case s.valid(m.source) && c.GetAttested() != m.id:
		return wire.Code_NOT_ATTESTED
	case !s.valid(m.target):
		return wire.Code_TARGET_STALE
	case c.GetChange() != r.change:
		return wire.Code_CHANGE_MISMATCH
	}
	return wire.Code_OK
}

func (s *Store) pivot(old *migration, r *row, c *wire.CommitPivot, res *wire.Result) {
	r, keys := s.edit(r)
	warm := r.warmClients(c.GetWarm())
	s.assign(r, old.target, ownerChange{
		reason:    reasonLabel(old.reason),
		by:        old.by,
		migration: old.id,
	})
	s.detachAll(r)
	for i, client := range warm {
		s.attach(r, client, uint64(i)+1)
	}
	r.migration = 0
	s.touch(r, res)
	s.commit(r, keys)

	m := *old
	m.phase = wire.Phase_PHASE_PIVOTED
	m.targetEpoch = r.epoch
	m.digest = c.GetDigest()
	s.setMigration(&m)
	s.countMove(m.job)
	res.Epoch = r.epoch
	res.Row = r.proto()
	res.Migration = m.proto()
	s.emit(Event{Kind: EventMigration, Session: r.id, Worker: r.owner.worker, Migration: m.id})
}

// warmClients chooses who is attached in the new epoch: those named warm that
// have a dedup window, in the order named. A session that is not shared takes
// one, the latest to have attached: a displaced instance stays displaced.
func (r *row) warmClients(warm [][]byte) []string {
	var clients []string
	for _, b := range warm {
		client := string(b)
		if r.window(client) != nil && !slices.Contains(clients, client) {
			clients = append(clients, client)
		}
	}
	if r.shared || len(clients) < 2 {
		return clients
	}
	latest := clients[0]
	for _, client := range clients[1:] {
		if r.window(client).attached > r.window(latest).attached {
			latest = client
		}
	}
	return []string{latest}
}

func (s *Store) applyAbort(c *wire.AbortMigration, res *wire.Result) {
	m := s.migration(c.GetMigration())
	if m == nil {
		res.Code = wire.Code_UNKNOWN_MIGRATION
		return
	}
	switch m.phase {
	case wire.Phase_PHASE_BEGUN:
		m = s.abort(m, clip(c.GetReason()))
	case wire.Phase_PHASE_PIVOTED, wire.Phase_PHASE_COMPLETED:
		res.Code = wire.Code_MIGRATION_PIVOTED
	default:
		res.Duplicate = true
	}
	s.noteChange(m, res)
	res.Migration = m.proto()
}

// noteChange fills in the change position of the migration's session.
func (s *Store) noteChange(m *migration, res *wire.Result) {
	if r := s.row(m.session); r != nil {
		res.Before, res.After = r.change, r.change
	}
}

// applyEnd is commit 3. It needs neither client nor session.
func (s *Store) applyEnd(c *wire.EndMigration, res *wire.Result) {
	old := s.migration(c.GetMigration())
	if old == nil {
		res.Code = wire.Code_UNKNOWN_MIGRATION
		return
	}
	switch old.phase {
	case wire.Phase_PHASE_PIVOTED:
	case wire.Phase_PHASE_COMPLETED:
		res.Duplicate = true
		s.noteChange(old, res)
		res.Migration = old.proto()
		return
	default:
		res.Code = wire.Code_MIGRATION_ENDED
		s.noteChange(old, res)
		res.Migration = old.proto()
		return
	}
	m := *old
	m.phase = wire.Phase_PHASE_COMPLETED
	m.endedUS = s.timeUS
	m.pauseUS = c.GetPauseUs()
	s.setMigration(&m)
	s.notePause(&m)
	s.countPause(m.job, m.pauseUS)
	s.noteChange(&m, res)
	res.Migration = m.proto()
	s.emit(Event{Kind: EventSession, Session: m.session, Worker: m.target.worker, Migration: m.id})
	s.emit(Event{Kind: EventMigration, Session: m.session, Worker: m.target.worker, Migration: m.id})
	s.forgetMigrations()
}

// notePause completes the session's history. It is not session data, so the
// change position stays.
func (s *Store) notePause(m *migration) {
	r := s.row(m.session)
	if r == nil || m.pauseUS == 0 {
		return
	}
	i := slices.IndexFunc(r.history, func(c ownerChange) bool { return c.migration == m.id })
	if i < 0 {
		return
	}
	r, keys := s.edit(r)
	h := &r.history[i]
	h.pauseUS = m.pauseUS
	sum := s.h.ownerChange(r, h)
	r.rehash(h.sum, sum)
	h.sum = sum
	s.commit(r, keys)
}

// reasonLabel is how a session's history names a migration's reason. It is part
// of the replicated state, so it does not follow the enum's names.
func reasonLabel(r wire.Reason) string {
	switch r {
	case wire.Reason_REASON_PLANNED_MAINTENANCE:
		return "planned_maintenance"
	case wire.Reason_REASON_LOAD_BALANCING:
		return "load_balancing"
	case wire.Reason_REASON_HEALTH_DEGRADATION:
		return "health_degradation"
	case wire.Reason_REASON_ADMIN_REQUEST:
		return "admin_request"
	case wire.Reason_REASON_USER_REQUESTED:
		return "user_requested"
	case wire.Reason_REASON_EMERGENCY:
		return "emergency"
	}
	return "unspecified"
}
