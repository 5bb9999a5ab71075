package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/wire"
)

// Raft's names for the directory of snapshots, and for what ends that of one which
// is being written.
const (
	snapshotDir   = "snapshots"
	unfinishedEnd = ".tmp"
)

// openSnapshots opens the snapshots under dir, which both kinds of disk share.
func openSnapshots(dir string) (raft.SnapshotStore, error) {
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, hclog.NewNullLogger())
	if err != nil {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "the snapshots under %s cannot be opened: %v", dir, err)
	}
	if err := checkSnapshotDirs(dir, files); err != nil {
		return nil, err
	}
	tidy := &tidySnapshots{SnapshotStore: files, dir: filepath.Join(dir, snapshotDir), writing: map[string]bool{}}
	if err := tidy.remove(); err != nil {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "an unfinished snapshot under %s cannot be removed: %v", dir, err)
	}
	return tidy, nil
}

// tidySnapshots removes what is left of snapshots that came to no end. The library
// keeps it when a write fails, and when the process dies, so that a disk that is full
// would stay full.
type tidySnapshots struct {
	raft.SnapshotStore
	dir     string
	mu      sync.Mutex
	writing map[string]bool // by id
}

// remove removes all that nobody writes.
func (s *tidySnapshots) remove() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removeLocked()
}

func (s *tidySnapshots) removeLocked() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), unfinishedEnd); ok && !s.writing[id] {
			errs = append(errs, os.RemoveAll(filepath.Join(s.dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Create implements raft.SnapshotStore.
func (s *tidySnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sink, err := s.SnapshotStore.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, errors.Join(err, s.removeLocked())
	}
	s.writing[sink.ID()] = true
	return &tidySink{sink, s}, nil
}

// ended removes what is left if err says that the snapshot came to no end.
func (s *tidySnapshots) ended(id string, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.writing, id)
	if err == nil {
		return nil
	}
	return s.removeLocked()
}

type tidySink struct {
	raft.SnapshotSink
	store *tidySnapshots
}

func (s *tidySink) Close() error {
	err := s.SnapshotSink.Close()
	return errors.Join(err, s.store.ended(s.ID(), err))
}

// Cancel does not fail over what cannot be written any more.
func (s *tidySink) Cancel() error {
	return s.store.ended(s.ID(), s.SnapshotSink.Cancel())
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
