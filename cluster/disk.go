package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
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
	snapshotDir   = "snapshots" // raft's name for it
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
	return wire.Errorf(wire.Code_INTERNAL,
		"the raft log %s cannot be opened: %v; if the file is damaged, remove this node's data directory: it then joins as a new node", path, why)
}

// checkSnapshotDirs refuses a snapshot whose metadata does not read: raft would
// silently take an older one, perhaps older than the compacted log reaches.
func checkSnapshotDirs(dir string, store *raft.FileSnapshotStore) error {
	listed, err := store.List()
	if err != nil {
		return badSnapshot(filepath.Join(dir, snapshotDir), err)
	}
	var newest snapshotName
	known := map[string]bool{}
	for _, m := range listed {
		known[m.ID] = true
		n, ok := parseSnapshotName(m.ID)
		if !ok || n.index != m.Index || n.term != m.Term {
			// Nothing else would notice: raft's checksum is of the state only.
			return badSnapshot(filepath.Join(dir, snapshotDir, m.ID), errors.New("its metadata name another place in the log"))
		}
		if n.newer(newest) {
			newest = n
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, snapshotDir))
	if err != nil {
		return badSnapshot(filepath.Join(dir, snapshotDir), err)
	}
	for _, e := range entries {
		// Only one that is newer than all good ones matters: an older one may be
		// half removed by a crash.
		n, ok := parseSnapshotName(e.Name())
		if !e.IsDir() || known[e.Name()] || !ok || !n.newer(newest) {
			continue
		}
		return badSnapshot(filepath.Join(dir, snapshotDir, e.Name()), errors.New("its metadata does not read"))
	}
	return nil
}

// snapshotName is what raft puts into a snapshot's directory name.
type snapshotName struct{ term, index, millis uint64 }

func parseSnapshotName(s string) (n snapshotName, ok bool) {
	var rest string
	got, _ := fmt.Sscanf(s, "%d-%d-%d%s", &n.term, &n.index, &n.millis, &rest)
	return n, got == 3
}

func (n snapshotName) newer(o snapshotName) bool {
	return cmp.Or(cmp.Compare(n.term, o.term), cmp.Compare(n.index, o.index), cmp.Compare(n.millis, o.millis)) > 0
}

func badSnapshot(what string, why error) error {
	return wire.Errorf(wire.Code_SNAPSHOT_BAD,
		"the snapshot %s is damaged: %v; remove this node's data directory and start it again: it then joins as a new node and gets the state from the others", what, why)
}
