package cluster

import (
	"errors"
	"os"
	"sync"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/types"
)

var _ unsyncedLog = (*walLog)(nil)

// StoreUnsynced implements unsyncedLog. (The library's own append is synced when it
// returns.)
func (l *walLog) StoreUnsynced(logs []*raft.Log) (sync func() error, err error) {
	l.files.deferring(true)
	defer l.files.deferring(false)
	if err := l.StoreLogs(logs); err != nil {
		return nil, err
	}
	return l.files.sync, nil
}

// deferredFiles can leave out a sync, and make up for it.
type deferredFiles struct {
	types.VFS
	mu       sync.Mutex
	defers   bool // the next sync
	deferred *deferredSync
}

type deferredSync struct {
	file  types.WritableFile
	begun bool
	done  chan struct{}
	err   error // once done
}

func (d *deferredFiles) Create(dir, name string, size uint64) (types.WritableFile, error) {
	f, err := d.VFS.Create(dir, name, size)
	if err != nil {
		if !errors.Is(err, os.ErrExist) {
			_ = d.Delete(dir, name) // the library leaves a file for which there is no room
		}
		return nil, err
	}
	return deferredFile{f, d}, nil
}

func (d *deferredFiles) OpenWriter(dir, name string) (types.WritableFile, error) {
	f, err := d.VFS.OpenWriter(dir, name)
	if err != nil {
		return nil, err
	}
	return deferredFile{f, d}, nil
}

// deferring says whether the next sync is left out.
func (d *deferredFiles) deferring(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.defers = on
}

// sync returns when what was left out has been synced. It may be called by several at
// a time, and again.
func (d *deferredFiles) sync() error {
	d.mu.Lock()
	s := d.deferred
	mine := s != nil && !s.begun
	if mine {
		s.begun = true
	}
	d.mu.Unlock()
	switch {
	case s == nil:
		return nil
	case mine:
		defer close(s.done)
		s.err = s.file.Sync()
	default:
		<-s.done
	}
	return s.err
}

type deferredFile struct {
	types.WritableFile
	files *deferredFiles
}

func (f deferredFile) Sync() error {
	if f.files.takes(f.WritableFile) {
		return nil
	}
	return f.WritableFile.Sync()
}

// takes reports whether the sync of f is left out.
func (d *deferredFiles) takes(f types.WritableFile) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.defers {
		return false
	}
	d.defers, d.deferred = false, &deferredSync{file: f, done: make(chan struct{}), err: errUnsynced} // also if it panics
	return true
}
