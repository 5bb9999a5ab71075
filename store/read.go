package store

import (
	"slices"
	"strings"

	"github.com/tidwall/btree"

	"github.com/baton-cluster/baton/wire"
)

// Summary is a session without its state, windows and history: cheap to make.
type Summary struct {
	ID    string
	Owner *wire.Owner
	Epoch uint64
	// Attached is the number of attachments.
	Attached int
	// ExpiresUS is the log time at which the TTL ends, 0 while attached.
	ExpiresUS uint64
	TTLUS     uint64
	// Bytes is what the session is charged against the byte budget.
	Bytes uint64
	// Change is the position of the last command that changed the row.
	Change uint64
	// Migration is the id of the active one, 0 if there is none.
	Migration  uint64
	Shared     bool
	SecretHash []byte
	// Valid: the owner's incarnation is current and not fenced.
	Valid bool
}

// Counts are the sizes of the tables.
type Counts struct {
	Sessions int
	// Attached counts sessions with at least one attachment.
	Attached int
	// Migrating counts active migrations: begun, neither pivoted nor ended.
	Migrating int
	// Ownerless counts sessions whose owner is not valid.
	Ownerless int
	// Jobs counts the running and paused ones.
	Jobs int
	// Closed counts remembered closed and expired sessions.
	Closed int
	// Owned and OwnedAttached count by worker id, whatever the incarnation.
	Owned         map[string]int
	OwnedAttached map[string]int
}

// Index is the log index of the last applied entry.
func (s *Store) Index() uint64 { return s.index }

// TimeUS is the log time in microseconds.
func (s *Store) TimeUS() uint64 { return s.timeUS }

// Cluster returns the cluster's own row. ClusterId is empty until InitCluster.
func (s *Store) Cluster() *wire.ClusterRow {
	return &wire.ClusterRow{
		ClusterId: s.clusterID, ByteBudget: s.byteBudget, BytesUsed: s.used, FeatureLevel: s.featureLevel,
		TimeUs: s.timeUS, Epochs: s.epochs, Position: s.position,
		Keys: s.Keys(), VoterConfig: s.voterConfig, Voters: voterRows(s.voters), LeaseUs: s.leaseUS,
		AssignAfterUs: s.assignAfterUS, JoinTokens: s.JoinTokens(),
	}
}

func (s *Store) summary(r *row) Summary {
	return Summary{
		ID: r.id, Owner: r.owner.proto(), Epoch: r.epoch, Attached: len(r.attachments),
		ExpiresUS: r.expiresUS, TTLUS: r.ttlUS, Bytes: r.bytes, Change: r.change,
		Migration: r.migration, Shared: r.shared, SecretHash: r.secretHash, Valid: s.valid(r.owner),
	}
}

// Session returns the summary of a session.
func (s *Store) Session(id string) (Summary, bool) {
	r := s.row(id)
	if r == nil {
		return Summary{}, false
	}
	return s.summary(r), true
}

// Row returns a session's whole row, nil if there is none. O(its state).
func (s *Store) Row(id string) *wire.SessionRow {
	r := s.row(id)
	if r == nil {
		return nil
	}
	return r.proto()
}

// Location says where a session is; never nil.
func (s *Store) Location(id string) *wire.Location {
	r := s.row(id)
	if r == nil {
		return &wire.Location{Gone: s.goneCode(id)}
	}
	l := &wire.Location{
		Found: true, SecretHash: r.secretHash, Owner: r.owner.proto(), Epoch: r.epoch, Valid: s.valid(r.owner),
	}
	if w := s.worker(r.owner.worker); w != nil {
		l.Endpoint = w.endpoint()
	}
	return l
}

// ByMigration reports whether a session's owner came into office by a migration.
func (s *Store) ByMigration(id string) bool {
	r := s.row(id)
	return r != nil && len(r.history) > 0 && r.history[len(r.history)-1].migration != 0
}

// Worker returns a worker's row, nil if there is none.
func (s *Store) Worker(id string) *wire.WorkerRow {
	if w := s.worker(id); w != nil {
		return w.proto()
	}
	return nil
}

// Workers returns all workers by id.
func (s *Store) Workers() []*wire.WorkerRow {
	rows := make([]*wire.WorkerRow, 0, s.workers.Len())
	s.workers.Scan(func(w *worker) bool {
		rows = append(rows, w.proto())
		return true
	})
	return rows
}

// Valid reports whether o's incarnation is current and not fenced (S2).
func (s *Store) Valid(o *wire.Owner) bool { return s.valid(ownerOf(o)) }

// Counts counts. O(workers).
func (s *Store) Counts() Counts {
	c := Counts{
		Sessions: s.sessions.Len(), Attached: s.attached, Migrating: s.begun.Len(), Closed: s.closed.Len(),
		Jobs:  s.openJobs.Len(),
		Owned: map[string]int{}, OwnedAttached: map[string]int{},
	}
	for o, g := range s.groups { // sums: order does not matter
		c.Owned[o.worker] += g.ids.Len()
		c.OwnedAttached[o.worker] += g.live.Len()
		if !s.valid(o) {
			c.Ownerless += g.ids.Len()
		}
	}
	return c
}

// Migration returns a migration, nil if it is unknown or long ended.
func (s *Store) Migration(id uint64) *wire.Migration {
	if m := s.migration(id); m != nil {
		return m.proto()
	}
	return nil
}

// Phase returns that of a migration, PHASE_UNSPECIFIED if it is unknown or long
// ended.
func (s *Store) Phase(id uint64) wire.Phase {
	if m := s.migration(id); m != nil {
		return m.phase
	}
	return wire.Phase_PHASE_UNSPECIFIED
}

// ActiveMigrations returns those begun or pivoted, which someone has to finish,
// by id.
func (s *Store) ActiveMigrations() []*wire.Migration {
	return s.ActiveBut(func([]byte) bool { return false }, s.open.Len())
}

// ActiveBut returns up to limit of the active migrations, but for those whose
// nonce is known.
func (s *Store) ActiveBut(known func(nonce []byte) bool, limit int) (list []*wire.Migration) {
	s.open.Scan(func(id uint64) bool {
		if m := s.migration(id); len(list) < limit && !known(m.nonce) {
			list = append(list, m.proto())
		}
		return len(list) < limit
	})
	return list
}

// Migrations returns up to limit migrations, newest first, ended ones too.
func (s *Store) Migrations(limit int) []*wire.Migration {
	var list []*wire.Migration
	s.migrations.Reverse(func(m *migration) bool {
		if len(list) >= limit {
			return false
		}
		list = append(list, m.proto())
		return true
	})
	return list
}

// SessionsOf returns up to limit sessions of a worker, whatever the
// incarnation, with ids above after, by id.
func (s *Store) SessionsOf(worker, after string, limit int) []Summary {
	return s.merge(after, limit, allOf, func(o owner) bool { return o.worker == worker })
}

// Ownerless returns up to limit sessions without a valid owner, with ids above
// after, by id. Costs the number of incarnations that own anything, plus the
// result: it does not look at sessions that have a valid owner.
func (s *Store) Ownerless(after string, limit int) []Summary {
	return s.merge(after, limit, allOf, func(o owner) bool { return !s.valid(o) })
}

// OwnerlessAttached is Ownerless of those that had a client when they lost their
// owner, at the same cost.
func (s *Store) OwnerlessAttached(after string, limit int) []Summary {
	return s.merge(after, limit, func(g *group) *btree.BTreeG[string] { return g.live }, func(o owner) bool { return !s.valid(o) })
}

func allOf(g *group) *btree.BTreeG[string] { return g.ids }

// merge takes the first ids of each matching group's part, then the first of
// those.
func (s *Store) merge(after string, limit int, part func(*group) *btree.BTreeG[string], match func(owner) bool) []Summary {
	var ids []string
	for o, g := range s.groups { // sorted below
		if !match(o) {
			continue
		}
		n := 0
		part(g).Ascend(after, func(id string) bool {
			if id == after && after != "" {
				return true
			}
			if n >= limit {
				return false
			}
			n++
			ids = append(ids, id)
			return true
		})
	}
	slices.SortFunc(ids, strings.Compare)
	ids = ids[:min(len(ids), max(limit, 0))]
	list := make([]Summary, len(ids))
	for i, id := range ids {
		list[i] = s.summary(s.row(id))
	}
	return list
}

// Expired returns up to limit sessions that are detached and past their TTL at
// log time, the longest expired first.
func (s *Store) Expired(limit int) []Summary {
	var list []Summary
	s.expiry.Scan(func(d deadline) bool {
		if d.us > s.timeUS || len(list) >= limit {
			return false
		}
		list = append(list, s.summary(s.row(d.id)))
		return true
	})
	return list
}

// NextDeadline returns the earliest log time at which something falls due: a
// TTL, a migration's or job's deadline, the memory of a closed session, a join token that
// can be used. Not ok: nothing
// is pending and log time need not advance.
func (s *Store) NextDeadline() (us uint64, ok bool) {
	if d, found := s.expiry.Min(); found {
		us, ok = d.us, true
	}
	if n, found := s.begun.Min(); found && (!ok || n.us < us) {
		us, ok = n.us, true
	}
	if c, found := s.forget.Min(); found && (!ok || c.untilUS < us) {
		us, ok = c.untilUS, true
	}
	s.openJobs.Scan(func(id uint64) bool {
		j := s.job(id)
		for _, at := range [...]uint64{j.deadlineUS, j.confirmByUS} {
			if at != 0 && (!ok || at < us) {
				us, ok = at, true
			}
		}
		return true
	})
	for i := range s.joinTokens {
		if t := &s.joinTokens[i]; t.open(s.timeUS) && (!ok || t.expiresUS < us) {
			us, ok = t.expiresUS, true
		}
	}
	return us, ok
}

// List returns up to limit sessions with ids above after, by id.
func (s *Store) List(after string, limit int) []Summary {
	var list []Summary
	s.sessions.Ascend(slot{live: forRow(after)}, func(e slot) bool {
		if len(list) >= limit {
			return false
		}
		if e.id() != after {
			list = append(list, s.summary(s.unpacked(e)))
		}
		return true
	})
	return list
}
