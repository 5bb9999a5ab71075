package store

import (
	"github.com/tidwall/btree"

	"github.com/baton-cluster/baton/wire"
)

// Snapshot is the tables as they were at one index. It may be streamed from
// another goroutine while the store moves on.
type Snapshot struct {
	cluster    *wire.ClusterRow
	hash       uint64
	index      uint64
	workers    *btree.BTreeG[*worker]
	sessions   *btree.BTreeG[slot]
	migrations *btree.BTreeG[*migration]
	closed     *btree.BTreeG[*closed]
	jobs       *btree.BTreeG[*job]
}

// Snapshot takes a snapshot in O(1): the trees are copied on write, and raising
// the generation makes the next edit of every row clone it (S11).
func (s *Store) Snapshot() *Snapshot {
	s.gen++
	return &Snapshot{
		cluster:    s.Cluster(),
		hash:       s.Hash(),
		index:      s.index,
		workers:    s.workers.Copy(),
		sessions:   s.sessions.Copy(),
		migrations: s.migrations.Copy(),
		closed:     s.closed.Copy(),
		jobs:       s.jobs.Copy(),
	}
}

// Index is the log index of the last entry that the snapshot contains.
func (p *Snapshot) Index() uint64 { return p.index }

// Hash is the state hash at that index.
func (p *Snapshot) Hash() uint64 { return p.hash }

// Records streams the snapshot: the cluster, then workers, sessions, migrations,
// closed records and jobs, each by rising key, then SnapshotEnd. It stops at write's
// first error and returns it. Records share byte slices with the store.
func (p *Snapshot) Records(write func(*wire.SnapshotRecord) error) error {
	var n uint64
	var err error
	put := func(rec *wire.SnapshotRecord) bool {
		err = write(rec)
		n++
		return err == nil
	}
	put(&wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Cluster{Cluster: p.cluster}})
	if err == nil {
		p.workers.Scan(func(w *worker) bool {
			return put(&wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Worker{Worker: w.proto()}})
		})
	}
	if err == nil {
		p.sessions.Scan(func(e slot) bool {
			return put(&wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Session{Session: e.row().proto()}})
		})
	}
	if err == nil {
		p.migrations.Scan(func(m *migration) bool {
			return put(&wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Migration{Migration: m.proto()}})
		})
	}
	if err == nil {
		p.closed.Scan(func(c *closed) bool {
			return put(&wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Closed{Closed: c.proto()}})
		})
	}
	if err == nil {
		p.jobs.Scan(func(j *job) bool {
			return put(&wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Job{Job: j.proto()}})
		})
	}
	if err != nil {
		return err
	}
	end := &wire.SnapshotEnd{Records: n, StateHash: p.hash}
	return write(&wire.SnapshotRecord{Kind: &wire.SnapshotRecord_End{End: end}})
}
