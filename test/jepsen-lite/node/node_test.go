package main

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/test/jepsen-lite/control"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestFilesLoseWhatIsNotSynced: a process sees what it wrote; the next one only
// what was synced before the kill.
func TestFilesLoseWhatIsNotSynced(t *testing.T) {
	dir, s := t.TempDir(), newSwitches()
	const size = 1 << 12
	read := func(f interface {
		ReadAt([]byte, int64) (int, error)
	}) []byte {
		b := make([]byte, size)
		if _, err := f.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		return b
	}
	f, err := newFiles(s).Create(dir, "a", size)
	must(t, err)
	want := make([]byte, size)
	synced := bytes.Clone(want)
	for i := range 200 {
		at, p := rand.IntN(size-100), bytes.Repeat([]byte{byte(1 + i)}, 1+rand.IntN(100))
		if _, err := f.WriteAt(p, int64(at)); err != nil {
			t.Fatal(err)
		}
		copy(want[at:], p)
		if got := read(f); !bytes.Equal(got, want) {
			t.Fatalf("after write %d it reads something else than was written", i)
		}
		if i%7 == 0 {
			must(t, f.Sync())
			copy(synced, want)
		}
	}
	next, err := newFiles(s).OpenReader(dir, "a")
	must(t, err)
	if got := read(next); bytes.Equal(got, want) {
		t.Error("nothing was lost, though the last writes were not synced")
	}
	must(t, f.Sync())
	if got := read(next); !bytes.Equal(got, want) {
		t.Error("what was synced is not there")
	}
}

func TestFilesFail(t *testing.T) {
	dir, s := t.TempDir(), newSwitches()
	f, err := newFiles(s).Create(dir, "a", 64)
	must(t, err)
	s.set(control.Faults{Full: true})
	if n, err := f.WriteAt(make([]byte, 10), 0); n != 5 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk took %d bytes: %v", n, err)
	}
	if _, err := newFiles(s).Create(dir, "b", 64); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk made a file: %v", err)
	}
	s.set(control.Faults{SyncFails: true})
	if err := f.Sync(); !errors.Is(err, syscall.EIO) || s.lost.Load() != 1 {
		t.Errorf("sync: %v, %d lost", err, s.lost.Load())
	}
	s.set(control.Faults{})
	must(t, f.Sync())
	s.set(control.Faults{Stalled: true})
	done := make(chan error)
	go func() { done <- f.Sync() }()
	select {
	case <-done:
		t.Fatal("it did not stall")
	case <-time.After(time.Millisecond):
	}
	s.set(control.Faults{})
	must(t, <-done)
}

// TestDiskKeepsTheLog: the product's log on our files, through a kill.
func TestDiskKeepsTheLog(t *testing.T) {
	dir := t.TempDir()
	open := func() (raft.LogStore, interface{ Close() error }) {
		logs, _, _, closer, err := disk{newSwitches()}.Open(dir)
		must(t, err)
		return logs, closer
	}
	logs, closer := open()
	for i := range uint64(20) {
		must(t, logs.StoreLog(&raft.Log{Index: i + 1, Term: 1, Data: []byte(strings.Repeat("x", int(i)))}))
	}
	must(t, closer.Close())
	logs, closer = open()
	defer closer.Close()
	if last, err := logs.LastIndex(); err != nil || last != 20 {
		t.Fatalf("the log ends at %d: %v", last, err)
	}
}

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwitches()
		c := newClock(s)
		passes := func(real, want time.Duration) {
			t.Helper()
			before := c.Now()
			time.Sleep(real)
			if got := c.Now() - before; (got - want).Abs() > time.Microsecond {
				t.Errorf("%v passed in %v, want %v", got, real, want)
			}
		}
		passes(time.Second, time.Second)
		s.set(control.Faults{Rate: 1.05, Wall: time.Hour})
		passes(time.Second, 1050*time.Millisecond)
		if off := time.Until(c.Wall()); off != time.Hour {
			t.Errorf("the wall clock is off by %v", off)
		}
		var fired time.Duration
		due := c.Now() + 10*time.Second
		c.AfterFunc(10*time.Second, func() { fired = c.Now() })
		stopped := c.AfterFunc(time.Second, func() { t.Error("it was stopped") })
		s.set(control.Faults{Asleep: true})
		passes(time.Hour, 0)
		synctest.Wait()
		if fired != 0 || !stopped.Stop() {
			t.Error("a timer fired while the clock stood still")
		}
		s.set(control.Faults{Rate: 0.95})
		passes(time.Second, 950*time.Millisecond)
		time.Sleep(time.Minute)
		synctest.Wait() // also orders the timer's write before our read
		if late := fired - due; late < 0 || late > time.Millisecond {
			t.Errorf("a timer came %v late", late)
		}
	})
}

// TestBootClockGoesOn while the machine sleeps, as we pretend.
func TestBootClockGoesOn(t *testing.T) {
	s := newSwitches()
	c := newClock(s)
	const nap = 5 * time.Millisecond
	boot := c.Boot() // first here and last below: a pause between two readings only adds
	now := c.Now()
	s.set(control.Faults{Asleep: true})
	time.Sleep(nap)
	s.set(control.Faults{})
	passed := c.Now() - now
	if slept := (c.Boot() - boot) - passed; slept < nap-time.Millisecond {
		t.Errorf("the boot clock was ahead by %v only", slept)
	}
}

func TestControl(t *testing.T) {
	s := newSwitches()
	path := filepath.Join(t.TempDir(), "c")
	must(t, s.serve(path))
	c := control.NewClient(path)
	must(t, c.Set(t.Context(), control.Faults{Full: true, Rate: 1.01}))
	if got := s.get(); !got.Full || got.Rate != 1.01 {
		t.Errorf("in force: %+v", got)
	}
	if err := c.Set(t.Context(), control.Faults{Rate: 2}); err == nil || !strings.Contains(err.Error(), "rate") {
		t.Errorf("a rate of 2: %v", err)
	}
	p, err := c.Process(t.Context())
	if err != nil || p.Goroutines == 0 || p.HeapBytes == 0 || p.Serves {
		t.Errorf("process: %+v, %v", p, err)
	}
	if text, err := c.Goroutines(t.Context()); err != nil || !strings.Contains(text, "TestControl") {
		t.Errorf("goroutines: %.200s, %v", text, err)
	}
}
