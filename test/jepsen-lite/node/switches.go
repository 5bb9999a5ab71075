package main

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/baton-cluster/baton"

	"github.com/baton-cluster/baton/test/jepsen-lite/control"
)

// switches are the faults in force.
type switches struct {
	mu      sync.Mutex
	now     control.Faults
	changed chan struct{} // closed and replaced at each change
	lost    atomic.Uint64
	node    atomic.Pointer[baton.Node] // once it serves
	watch   []func(control.Faults)
}

func newSwitches() *switches { return &switches{changed: make(chan struct{})} }

// onChange has fn called with the faults at each change, under the lock.
func (s *switches) onChange(fn func(control.Faults)) { s.watch = append(s.watch, fn) }

func (s *switches) set(f control.Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = f
	close(s.changed)
	s.changed = make(chan struct{})
	for _, fn := range s.watch {
		fn(f)
	}
}

func (s *switches) get() control.Faults {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// What a faulty disk answers.
var (
	errFull = &os.PathError{Op: "write", Path: "log", Err: syscall.ENOSPC}
	errSync = &os.PathError{Op: "sync", Path: "log", Err: syscall.EIO}
)

// wait holds up a write while the disk stalls.
func (s *switches) wait() control.Faults {
	for {
		s.mu.Lock()
		f, changed := s.now, s.changed
		s.mu.Unlock()
		if !f.Stalled {
			return f
		}
		<-changed
	}
}

// write is one write to what is not a file of ours: it is held up while the disk
// stalls, and fails where it is full or cannot sync.
func (s *switches) write(fn func() error) error {
	switch f := s.wait(); {
	case f.Full:
		return errFull
	case f.SyncFails:
		return errSync
	}
	return fn()
}

// serve answers on the socket at path until the process ends.
func (s *switches) serve(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT "+control.PathFaults, func(w http.ResponseWriter, r *http.Request) {
		var f control.Faults
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&f)
		if err == nil {
			err = f.Check()
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.set(f)
	})
	mux.HandleFunc("GET "+control.PathProcess, func(w http.ResponseWriter, _ *http.Request) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		p := control.Process{Goroutines: runtime.NumGoroutine(), HeapBytes: m.HeapAlloc, Lost: s.lost.Load()}
		if n := s.node.Load(); n != nil {
			p.Serves = true
			for _, f := range n.Faults() {
				p.Troubles = append(p.Troubles, f.Code)
			}
		}
		_ = json.NewEncoder(w).Encode(p)
	})
	mux.HandleFunc("GET "+control.PathGoroutines, func(w http.ResponseWriter, _ *http.Request) {
		_ = pprof.Lookup("goroutine").WriteTo(w, 1)
	})
	go func() { _ = http.Serve(l, mux) }()
	return nil
}
