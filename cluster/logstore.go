package cluster

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/wire"
)

// LogStore names what keeps raft's log.
type LogStore string

const (
	// LogStoreAuto is what the data directory already holds; a new one gets
	// LogStoreWAL.
	LogStoreAuto LogStore = ""
	// LogStoreWAL is segment files: see WALDisk.
	LogStoreWAL LogStore = "wal"
	// LogStoreBolt is one bbolt file: see BoltDisk.
	LogStoreBolt LogStore = "bolt"
)

// Valid reports whether s names a log store.
func (s LogStore) Valid() bool {
	return s == LogStoreAuto || s == LogStoreWAL || s == LogStoreBolt
}

// FileDisk opens what a data directory holds, and makes what Store says in a new
// one. It never changes one kind into the other: a node that is to have the
// other kind gets a new data directory, and with it a new id.
type FileDisk struct{ Store LogStore }

// Open implements Disk. Errors besides those of the two kinds: BAD_REQUEST if the
// directory holds another kind than Store, INTERNAL if it holds both.
func (d FileDisk) Open(dir string) (raft.LogStore, raft.StableStore, raft.SnapshotStore, io.Closer, error) {
	held, err := heldLogStore(dir)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	want := d.Store
	switch {
	case !want.Valid():
		return nil, nil, nil, nil, wire.Errorf(wire.Code_BAD_REQUEST, "log store %q: want wal or bolt", string(want))
	case want == LogStoreAuto && held == LogStoreAuto:
		want = LogStoreWAL
	case want == LogStoreAuto:
		want = held
	case held != LogStoreAuto && held != want:
		return nil, nil, nil, nil, wire.Errorf(wire.Code_BAD_REQUEST,
			"the log in %s is of the kind %s, not %s: start the node with log store %s or with none named; "+
				"to change the kind, remove this node's data directory: it then joins as a new node", dir, held, want, held)
	}
	if want == LogStoreBolt {
		return BoltDisk{}.Open(dir)
	}
	return WALDisk{}.Open(dir)
}

// heldLogStore tells which kind of log is in dir; LogStoreAuto for none.
func heldLogStore(dir string) (LogStore, error) {
	bolt, err := exists(filepath.Join(dir, logFile))
	if err != nil {
		return "", err
	}
	wal, err := exists(filepath.Join(dir, walDir))
	switch {
	case err != nil:
		return "", err
	case bolt && wal:
		return "", damagedLog(dir, errors.New("there are two logs, "+logFile+" and "+walDir))
	case bolt:
		return LogStoreBolt, nil
	case wal:
		return LogStoreWAL, nil
	}
	return LogStoreAuto, nil
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if err == nil {
		return true, nil
	}
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return false, wire.Errorf(wire.Code_UNAVAILABLE, "the data directory cannot be read: %v", err)
}

// bridgeGap empties a log that ends before the newest snapshot, if its store
// takes no gap: the next entry follows the snapshot. Raft does that when it
// installs one; this is for a crash between the two.
func bridgeGap(logs raft.LogStore, snapshot uint64) error {
	if m, ok := logs.(raft.MonotonicLogStore); !ok || !m.IsMonotonic() {
		return nil
	}
	first, err := logs.FirstIndex()
	if err != nil {
		return err
	}
	last, err := logs.LastIndex()
	if err != nil || last == 0 || last >= snapshot {
		return err
	}
	return logs.DeleteRange(first, last)
}
