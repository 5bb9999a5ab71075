package cluster

import (
	"errors"
	"io"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/baton-cluster/baton/wire"
)

// Disk is the seam to durable storage. A test wraps FileDisk to inject faults.
type Disk interface {
	// Open opens the stores under dir, and makes them if they are not there.
	// The closer closes all of them.
	Open(dir string) (raft.LogStore, raft.StableStore, raft.SnapshotStore, io.Closer, error)
}

// BoltDisk keeps raft's log and its vote in one bbolt file, and snapshots as
// files. Every write is synced before it is answered.
type BoltDisk struct{}

const (
	logFile = "raft.db"
	// boltLockTimeout: zero would wait for ever on the file's lock. Ours on the
	// directory comes first, so this only meets a foreign program.
	boltLockTimeout = time.Second
	// boltMmapBytes is mapped at once: each growth of the mapping stops writers.
	boltMmapBytes = 64 << 20
)

// Open implements Disk. Corruption is an error that names the file, not a
// panic.
func (BoltDisk) Open(dir string) (logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore, closer io.Closer, err error) {
	path := filepath.Join(dir, logFile)
	var db *raftboltdb.BoltStore
	// A truncated file faults in the mapping; make that a panic that we can catch.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damagedLog(path, p)
		}
		if err != nil && db != nil {
			_ = db.Close()
		}
	}()
	if err = checkBoltLength(path); err != nil {
		return nil, nil, nil, nil, damagedLog(path, err)
	}
	db, err = raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout:         boltLockTimeout,
			NoFreelistSync:  true, // written on each commit, it slows every append after a burst
			FreelistType:    bbolt.FreelistMapType,
			InitialMmapSize: boltMmapBytes,
		},
	})
	if errors.Is(err, bbolt.ErrTimeout) {
		return nil, nil, nil, nil, wire.Errorf(wire.Code_UNAVAILABLE, "another program holds %s: stop it", path)
	}
	if err != nil {
		return nil, nil, nil, nil, damagedLog(path, err)
	}
	// Walk to both ends now: damage there would otherwise panic later.
	if _, err = db.FirstIndex(); err != nil {
		return nil, nil, nil, nil, damagedLog(path, err)
	}
	last, err := db.LastIndex()
	if err == nil && last > 0 {
		var l raft.Log
		err = db.GetLog(last, &l)
	}
	if err != nil {
		return nil, nil, nil, nil, damagedLog(path, err)
	}
	if snaps, err = openSnapshots(dir); err != nil {
		return nil, nil, nil, nil, err
	}
	return db, db, snaps, db, nil
}

func damagedLog(path string, why any) error {
	if err, ok := why.(error); ok && errors.Is(err, syscall.ENOSPC) {
		return wire.Errorf(wire.Code_UNAVAILABLE, "the raft log %s cannot be opened: %v; no damage was found: make room on its disk, then start this node again", path, err)
	}
	return wire.Errorf(wire.Code_INTERNAL,
		"the raft log %s cannot be opened: %v; if the file is damaged, remove this node's data directory: it then joins as a new node", path, why)
}
