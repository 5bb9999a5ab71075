package main

import (
	"io"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/cluster"
)

// disk is the product's, on files of ours, with faults of the vote's store and of
// snapshots. (Their libraries write and sync in one call, so there a fault hits
// the whole call.)
type disk struct{ s *switches }

var _ cluster.Disk = disk{}

func (d disk) Open(dir string) (raft.LogStore, raft.StableStore, raft.SnapshotStore, io.Closer, error) {
	logs, stable, snaps, closer, err := cluster.WALDisk{Files: newFiles(d.s)}.Open(dir)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	return logs, stableStore{stable, d.s}, snapshotStore{snaps, d.s}, closer, nil
}

type stableStore struct {
	raft.StableStore
	s *switches
}

func (st stableStore) Set(key, val []byte) error {
	return st.s.write(func() error { return st.StableStore.Set(key, val) })
}

func (st stableStore) SetUint64(key []byte, val uint64) error {
	return st.s.write(func() error { return st.StableStore.SetUint64(key, val) })
}

type snapshotStore struct {
	raft.SnapshotStore
	s *switches
}

func (st snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration,
	confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := st.SnapshotStore.Create(version, index, term, conf, confIndex, trans)
	if err != nil {
		return nil, err
	}
	return snapshotSink{sink, st.s}, nil
}

type snapshotSink struct {
	raft.SnapshotSink
	s *switches
}

func (sink snapshotSink) Write(p []byte) (n int, err error) {
	err = sink.s.write(func() error { n, err = sink.SnapshotSink.Write(p); return err })
	return n, err
}

// Close syncs; without that there is no snapshot.
func (sink snapshotSink) Close() error {
	err := sink.s.write(sink.SnapshotSink.Close)
	if err != nil {
		_ = sink.SnapshotSink.Cancel()
	}
	return err
}
