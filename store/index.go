package store

import (
	"cmp"
	"slices"

	"github.com/tidwall/btree"

	"github.com/baton-cluster/baton/wire"
)

// indexes are derived from the tables: they are in no snapshot and no hash, and
// Load rebuilds them. Their maps are never ranged over for an output's order.
type indexes struct {
	// groups has the sessions of each (worker, incarnation), so that fencing a
	// worker with a million sessions costs nothing, and finding the ones without
	// a valid owner costs only what there is to find (S2).
	groups map[owner]*group
	// attached counts sessions with an attachment.
	attached int
	// expiry has the detached sessions by when their TTL ends (S8).
	expiry *btree.BTreeG[deadline]
	// begun has the active migrations by deadline, open those begun or pivoted
	// by id, ended the others in the order in which they ended.
	begun *btree.BTreeG[numbered]
	open  *btree.BTreeG[uint64]
	ended *btree.BTreeG[numbered]
	// nonces finds a migration by its Begin's nonce (S10).
	nonces map[string]uint64
	// openJobs has the jobs that have not ended, jobNonces finds one by its
	// StartJob's nonce.
	openJobs  *btree.BTreeG[uint64]
	jobNonces map[string]uint64
	// forget has the closed records by when they may be forgotten.
	forget *btree.BTreeG[*closed]
}

// group is the sessions of one incarnation; live has those with an attachment,
// which come first when the incarnation is gone.
type group struct {
	ids  *btree.BTreeG[string]
	live *btree.BTreeG[string]
}

func newGroup() *group {
	opts := btree.Options{NoLocks: true}
	return &group{ids: btree.NewBTreeGOptions(lessString, opts), live: btree.NewBTreeGOptions(lessString, opts)}
}

// deadline is a session's place in time.
type deadline struct {
	us uint64
	id string
}

// numbered is a migration's place in time.
type numbered struct{ us, id uint64 }

func lessString(a, b string) bool { return a < b }
func lessUint(a, b uint64) bool   { return a < b }

func lessDeadline(a, b deadline) bool {
	if a.us != b.us {
		return a.us < b.us
	}
	return a.id < b.id
}

func lessNumbered(a, b numbered) bool {
	if a.us != b.us {
		return a.us < b.us
	}
	return a.id < b.id
}

func newIndexes() indexes {
	opts := btree.Options{NoLocks: true}
	return indexes{
		groups: map[owner]*group{},
		expiry: btree.NewBTreeGOptions(lessDeadline, opts),
		begun:  btree.NewBTreeGOptions(lessNumbered, opts),
		open:   btree.NewBTreeGOptions(lessUint, opts),
		ended:  btree.NewBTreeGOptions(lessNumbered, opts),
		nonces: map[string]uint64{},
		forget: btree.NewBTreeGOptions(lessForget, opts),

		openJobs:  btree.NewBTreeGOptions(lessUint, opts),
		jobNonces: map[string]uint64{},
	}
}

// rowKeys is what the indexes and sums know of a row: edit takes it before the
// row changes, commit puts the difference right.
type rowKeys struct {
	owner    owner
	expires  uint64
	attached bool
	bytes    uint64
	hash     uint64
}

func keysOf(r *row) rowKeys {
	return rowKeys{r.owner, r.expiresUS, r.attached(), r.bytes, r.hash}
}

// edit returns a row that may be modified, in place of r, and what commit needs
// to know. The first edit after a snapshot clones the row. Until commit the row
// is in the table as it is, even if it is at rest, so that whoever asks for it
// within the command gets it.
func (s *Store) edit(r *row) (*row, rowKeys) {
	switch r.gen {
	case s.gen:
	case genLoose:
		r.rehashAll(&s.h)
		r.gen = s.gen
		s.sessions.Set(slot{live: r})
	default:
		r = r.clone(s.gen)
		s.sessions.Set(slot{live: r})
	}
	return r, keysOf(r)
}

// commit ends an edit: hash, bytes and indexes follow the row.
func (s *Store) commit(r *row, old rowKeys) {
	r.hash = s.h.row(r)
	s.sum ^= old.hash ^ r.hash
	s.used += r.bytes - old.bytes
	now := keysOf(r)
	id, atRest := r.id, !now.attached
	if atRest {
		id = s.put(r) // another string each time: the indexes must not keep the former
	}
	if atRest || old.owner != now.owner || old.attached != now.attached {
		s.leaveGroup(r.id, old)
		s.joinGroup(id, now)
	}
	if atRest || old.expires != now.expires {
		s.unexpire(r.id, old)
		s.expire(id, now)
	}
}

// insert adds a new row.
func (s *Store) insert(r *row) {
	s.expire(s.place(r), keysOf(r))
}

// place adds a new row, but for when it expires.
func (s *Store) place(r *row) (id string) {
	r.gen = s.gen
	r.hash = s.h.row(r)
	s.sum ^= r.hash
	s.used += r.bytes
	id = s.put(r)
	s.joinGroup(id, keysOf(r))
	return id
}

// remove takes a row out. The row itself may live on in a snapshot.
func (s *Store) remove(r *row) {
	if r.gen == genLoose {
		r.rehashAll(&s.h)
	}
	s.sum ^= r.hash
	s.used -= r.bytes
	s.sessions.Delete(slot{live: r})
	keys := keysOf(r)
	s.leaveGroup(r.id, keys)
	s.unexpire(r.id, keys)
}

func (s *Store) joinGroup(id string, k rowKeys) {
	g := s.groups[k.owner]
	if g == nil {
		g = newGroup()
		s.groups[k.owner] = g
	}
	g.ids.Set(id)
	if k.attached {
		g.live.Set(id)
		s.attached++
	}
}

func (s *Store) leaveGroup(id string, k rowKeys) {
	g := s.groups[k.owner]
	g.ids.Delete(id)
	if k.attached {
		g.live.Delete(id)
		s.attached--
	}
	if g.ids.Len() == 0 {
		delete(s.groups, k.owner)
	}
}

func (s *Store) expire(id string, k rowKeys) {
	if k.expires != 0 {
		s.expiry.Set(deadline{k.expires, id})
	}
}

// expireAll is expire for many at once. In their order that takes a third of the time.
func (s *Store) expireAll(list []deadline) {
	slices.SortFunc(list, func(a, b deadline) int { return cmp.Or(cmp.Compare(a.us, b.us), cmp.Compare(a.id, b.id)) })
	for _, d := range list {
		s.expiry.Load(d)
	}
}

func (s *Store) unexpire(id string, k rowKeys) {
	if k.expires != 0 {
		s.expiry.Delete(deadline{k.expires, id})
	}
}

// setMigration inserts or replaces a migration, which is then immutable.
func (s *Store) setMigration(m *migration) {
	if old, ok := s.migrations.Get(m); ok {
		s.unindexMigration(old)
	}
	m.hash = s.h.migration(m)
	s.sum ^= m.hash
	s.migrations.Set(m)
	s.nonces[string(m.nonce)] = m.id
	switch m.phase {
	case wire.Phase_PHASE_BEGUN:
		s.begun.Set(numbered{m.deadlineUS, m.id})
		s.open.Set(m.id)
	case wire.Phase_PHASE_PIVOTED:
		s.open.Set(m.id)
	default:
		s.ended.Set(numbered{m.endedUS, m.id})
	}
}

func (s *Store) unindexMigration(m *migration) {
	s.sum ^= m.hash
	s.begun.Delete(numbered{m.deadlineUS, m.id})
	s.open.Delete(m.id)
	s.ended.Delete(numbered{m.endedUS, m.id})
	delete(s.nonces, string(m.nonce))
}

// forgetMigrations drops beyond the limit the migrations that ended first. (Not those
// that began first: a slow one would be forgotten with the command that ends it.)
func (s *Store) forgetMigrations() {
	for s.ended.Len() > wire.EndedMigrationsMax {
		oldest, _ := s.ended.Min()
		m, _ := s.migrations.Delete(&migration{id: oldest.id})
		s.unindexMigration(m)
	}
}
