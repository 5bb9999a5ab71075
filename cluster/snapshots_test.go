package cluster

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
)

// fullSnapshots are on a disk that is full: what was begun cannot be ended, nor is it
// removed, as with the library's.
type fullSnapshots struct {
	raft.SnapshotStore
	full bool
}

type fullSink struct {
	raft.SnapshotSink
	store *fullSnapshots
}

func (s *fullSnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, configuration, configurationIndex, trans)
	if err == nil && s.full {
		return nil, syscall.ENOSPC
	}
	return &fullSink{sink, s}, err
}

func (s *fullSink) Close() error  { return s.end(s.SnapshotSink.Close) }
func (s *fullSink) Cancel() error { return s.end(s.SnapshotSink.Cancel) }

func (s *fullSink) end(end func() error) error {
	if s.store.full {
		return syscall.ENOSPC
	}
	return end()
}

// TestUnfinishedSnapshotsAreRemoved: of a snapshot that came to no end nothing stays,
// and the one that is being written beside it stays whole.
func TestUnfinishedSnapshotsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	killed := filepath.Join(dir, snapshotDir, "3-7-1700000000000"+unfinishedEnd)
	must(t, os.MkdirAll(killed, 0o700))
	must(t, os.WriteFile(filepath.Join(killed, "state.bin"), []byte("half"), 0o600))
	snaps, err := openSnapshots(dir)
	must(t, err)
	tidy := snaps.(*tidySnapshots)
	disk := &fullSnapshots{SnapshotStore: tidy.SnapshotStore}
	tidy.SnapshotStore = disk
	left := func(want int) {
		t.Helper()
		dirs, err := filepath.Glob(filepath.Join(dir, snapshotDir, "*"+unfinishedEnd))
		if err != nil || len(dirs) != want {
			t.Fatalf("unfinished: %v %v, want %d", dirs, err, want)
		}
	}
	left(0)
	begin := func(index uint64) (raft.SnapshotSink, error) {
		return snaps.Create(1, index, 1, raft.Configuration{}, 0, nil)
	}
	other, err := begin(20)
	must(t, err)
	for name, end := range map[string]func(raft.SnapshotSink) error{
		"cancelled": raft.SnapshotSink.Cancel, "closed": raft.SnapshotSink.Close,
	} {
		sink, err := begin(30)
		must(t, err)
		left(2)
		disk.full = true
		if err := end(sink); (err == nil) != (name == "cancelled") {
			t.Errorf("%s: %v", name, err)
		}
		left(1)
		if _, err := begin(40); err == nil {
			t.Error("a snapshot was begun on a full disk")
		}
		left(1)
		disk.full = false
	}
	_, err = io.WriteString(other, "whole")
	must(t, err)
	must(t, other.Close())
	left(0)
	if kept, err := snaps.List(); err != nil || len(kept) != 1 || kept[0].Index != 20 {
		t.Errorf("%v %v", kept, err)
	}
}
