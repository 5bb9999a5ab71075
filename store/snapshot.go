package store

import (
	"github.com/tidwall/btree"
	"google.golang.org/protobuf/proto"

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
	names      []string // that the sessions' packed rows go by
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
		names:      s.names.list,
		migrations: s.migrations.Copy(),
		closed:     s.closed.Copy(),
		jobs:       s.jobs.Copy(),
	}
}

// Index is the log index of the last entry that the snapshot contains.
func (p *Snapshot) Index() uint64 { return p.index }

// Hash is the state hash at that index.
func (p *Snapshot) Hash() uint64 { return p.hash }

// Records streams the snapshot as encoded wire.SnapshotRecords: the cluster, then
// workers, sessions, migrations, closed records and jobs, each by rising key, then
// SnapshotEnd. It stops at write's first error and returns it. A record is valid until
// write returns.
func (p *Snapshot) Records(write func(record []byte) error) error {
	w := recordWriter{write: write}
	w.put(&wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Cluster{Cluster: p.cluster}})
	p.workers.Scan(func(k *worker) bool {
		return w.put(&wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Worker{Worker: k.proto()}})
	})
	scan := scanner{names: p.names}
	p.sessions.Scan(func(e slot) bool {
		return w.session(scan.row(e))
	})
	p.migrations.Scan(func(m *migration) bool {
		return w.put(&wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Migration{Migration: m.proto()}})
	})
	p.closed.Scan(func(c *closed) bool {
		return w.put(&wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Closed{Closed: c.proto()}})
	})
	p.jobs.Scan(func(j *job) bool {
		return w.put(&wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Job{Job: j.proto()}})
	})
	w.put(&wire.SnapshotRecord{Kind: &wire.SnapshotRecord_End{End: &wire.SnapshotEnd{Records: w.records, StateHash: p.hash}}})
	return w.err
}

// recordWriter writes records until the first error.
type recordWriter struct {
	write   func([]byte) error
	buf     []byte
	records uint64
	err     error
}

func (w *recordWriter) put(rec *wire.SnapshotRecord) bool {
	if w.err != nil {
		return false
	}
	w.buf, w.err = proto.MarshalOptions{}.MarshalAppend(w.buf[:0], rec)
	return w.done()
}

func (w *recordWriter) session(r *row) bool {
	if w.err != nil {
		return false
	}
	w.buf = r.sessionRecord(w.buf[:0])
	return w.done()
}

func (w *recordWriter) done() bool {
	if w.err == nil {
		w.err = w.write(w.buf)
		w.records++
	}
	return w.err == nil
}
