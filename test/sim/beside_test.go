package sim

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/types"
)

// snapshotsKept are as many as the product keeps.
const snapshotsKept = 2

type snapshot struct {
	meta raft.SnapshotMeta
	data []byte
}

// Meta is transactional, as bbolt is.
func (v *platterView) Meta() types.MetaStore { return platterMeta{v} }

type platterMeta struct{ v *platterView }

func (platterMeta) Close() error { return nil }

func (m platterMeta) Load(string) (types.PersistentState, error) {
	m.v.d.mu.Lock()
	defer m.v.d.mu.Unlock()
	s := m.v.d.meta
	s.Segments = slices.Clone(s.Segments)
	return s, nil
}

func (m platterMeta) CommitState(s types.PersistentState) error {
	s.Segments = slices.Clone(s.Segments)
	d := m.v.d
	d.mu.Lock()
	unlucky := m.v.session == d.session && len(d.meta.Segments) > 0 && (d.doomedList || !d.lucky && d.rng.IntN(unluckyOf) == 0)
	if unlucky {
		d.session++
		d.doomedList = false
	}
	d.mu.Unlock()
	if unlucky {
		d.told("crash-between-segments")
		d.die()
		return errPower
	}
	return m.v.list(func() error { d.meta = s; return nil })
}

func (m platterMeta) GetStable(key []byte) ([]byte, error) {
	m.v.d.mu.Lock()
	defer m.v.d.mu.Unlock()
	return slices.Clone(m.v.d.stable[string(key)]), nil
}

// SetStable keeps the term and the vote, among others.
func (m platterMeta) SetStable(key, value []byte) error {
	value = slices.Clone(value)
	return m.v.commit(partVote, func() { m.v.d.stable[string(key)] = value })
}

// Snapshots are there, whole, once they are closed.
func (v *platterView) Snapshots(string) (raft.SnapshotStore, error) { return platterSnaps{v}, nil }

type platterSnaps struct{ v *platterView }

func (s platterSnaps) List() (out []*raft.SnapshotMeta, err error) {
	s.v.d.mu.Lock()
	defer s.v.d.mu.Unlock()
	for _, snap := range slices.Backward(s.v.d.snaps) {
		meta := snap.meta
		out = append(out, &meta)
	}
	return out, nil
}

func (s platterSnaps) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.v.d.mu.Lock()
	defer s.v.d.mu.Unlock()
	for _, snap := range s.v.d.snaps {
		if snap.meta.ID == id {
			meta := snap.meta
			return &meta, io.NopCloser(bytes.NewReader(slices.Clone(snap.data))), nil
		}
	}
	return nil, nil, os.ErrNotExist
}

func (s platterSnaps) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &platterSink{s.v, &snapshot{meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d-%d", term, index, time.Now().UnixMilli()), Index: index, Term: term,
		Configuration: conf, ConfigurationIndex: confIndex,
	}}}, nil
}

type platterSink struct {
	v    *platterView
	snap *snapshot
}

func (s *platterSink) ID() string    { return s.snap.meta.ID }
func (s *platterSink) Cancel() error { return nil }

func (s *platterSink) Write(b []byte) (int, error) {
	s.snap.data = append(s.snap.data, b...)
	return len(b), s.v.write(partLog, nothing)
}

func (s *platterSink) Close() error {
	s.snap.meta.Size = int64(len(s.snap.data))
	d := s.v.d
	return s.v.commit(partLog, func() {
		if d.snaps = append(d.snaps, s.snap); len(d.snaps) > snapshotsKept {
			d.snaps = slices.Delete(d.snaps, 0, 1)
		}
		d.told("snapshot")
	})
}
