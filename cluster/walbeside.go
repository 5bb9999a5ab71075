package cluster

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/types"
)

// Beside is what a WALDisk keeps beside its segments.
type Beside interface {
	// Meta is where the segments are listed and the vote is kept, not opened yet.
	Meta() types.MetaStore
	// Prepare makes the log's directory and the names in it durable, and finds what
	// Meta would take for a new log.
	Prepare(path string) error
	// Snapshots opens those under dir.
	Snapshots(dir string) (raft.SnapshotStore, error)
}

// osBeside is on the operating system's files.
type osBeside struct{}

func (osBeside) Meta() types.MetaStore { return &metadb.BoltMetaDB{} }

func (osBeside) Snapshots(dir string) (raft.SnapshotStore, error) { return openSnapshots(dir) }

// Prepare makes the directory durably, as a log that vanished with its entry in
// the parent would look like that of a new node. It looks at the metadata's file
// before bbolt maps it; without it the library would remove all segments. The names
// of segments are synced anew, because the library does so at the first sync of a
// segment only in the process that made it, which may have been killed before.
func (osBeside) Prepare(path string) error {
	there, err := exists(path)
	if err != nil {
		return err
	}
	if !there {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		return syncDir(filepath.Dir(path))
	}
	meta := filepath.Join(path, metadb.FileName)
	if there, err = exists(meta); err != nil {
		return damagedLog(path, err)
	}
	if there {
		err = checkBoltLength(meta)
	} else if segments, gerr := filepath.Glob(filepath.Join(path, "*.wal")); gerr != nil || len(segments) > 0 {
		err = errors.Join(gerr, errors.New("its metadata, "+metadb.FileName+", are gone"))
	}
	if err != nil {
		return damagedLog(path, err)
	}
	return syncDir(path)
}
