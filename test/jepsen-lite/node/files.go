package main

import (
	"math/rand/v2"
	"sync"

	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"

	"github.com/baton-cluster/baton/test/jepsen-lite/control"
)

// files hold the log's segments as a machine does whose power may fail: what was
// written and not synced is kept in this process only, so it goes when the process
// is killed. Now and then the beginning of a write reaches the disk at once, as
// a kernel writes pages back when it likes; then a kill leaves a torn write.
type files struct {
	*fs.FS
	s *switches
}

func newFiles(s *switches) types.VFS { return &files{fs.New(), s} }

func (f *files) Create(dir, name string, size uint64) (types.WritableFile, error) {
	if f.s.wait().Full {
		return nil, errFull
	}
	return f.open(f.FS.Create(dir, name, size))
}

func (f *files) OpenWriter(dir, name string) (types.WritableFile, error) {
	return f.open(f.FS.OpenWriter(dir, name))
}

func (f *files) open(real types.WritableFile, err error) (types.WritableFile, error) {
	if err != nil {
		return nil, err
	}
	return &file{WritableFile: real, s: f.s}, nil
}

// file is one segment.
type file struct {
	types.WritableFile
	s *switches

	mu      sync.Mutex
	pending []patch // not synced, in order
}

type patch struct {
	at   int64
	data []byte
}

// tornOneIn writes reach the disk in part before they are synced.
const tornOneIn = 4

func (f *file) WriteAt(p []byte, at int64) (int, error) {
	full := f.s.wait().Full
	n := len(p)
	if full {
		n /= 2
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending = append(f.pending, patch{at, append([]byte(nil), p[:n]...)})
	if rand.IntN(tornOneIn) == 0 && n > 0 {
		if _, err := f.WritableFile.WriteAt(p[:rand.IntN(n)], at); err != nil {
			return 0, err
		}
	}
	if full {
		return n, errFull
	}
	return n, nil
}

// ReadAt sees what was written, synced or not.
func (f *file) ReadAt(p []byte, at int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.WritableFile.ReadAt(p, at)
	for _, w := range f.pending {
		from, to := max(w.at, at), min(w.at+int64(len(w.data)), at+int64(len(p)))
		if from < to {
			copy(p[from-at:to-at], w.data[from-w.at:])
			n = max(n, int(to-at))
		}
	}
	if n == len(p) {
		err = nil
	}
	return n, err
}

func (f *file) Sync() error {
	faults := f.s.wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.keep(faults); err != nil {
		return err
	}
	return f.WritableFile.Sync()
}

// keep brings what is pending to the disk. f.mu is held.
func (f *file) keep(faults control.Faults) error {
	if faults.SyncFails {
		f.s.lost.Add(uint64(len(f.pending)))
		f.pending = nil
		return errSync
	}
	for _, w := range f.pending {
		if _, err := f.WritableFile.WriteAt(w.data, w.at); err != nil {
			return err
		}
	}
	f.pending = nil
	return nil
}
