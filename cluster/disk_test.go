package cluster

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// offsetClock is the operating system's clock with another zero.
type offsetClock struct {
	seam.OSClock
	by time.Duration
}

func (c *offsetClock) Now() time.Duration { return c.OSClock.Now() + c.by }

// faultDisk is FileDisk with a switch that makes appends hang or fail.
type faultDisk struct {
	mu   sync.Mutex
	gate chan struct{} // not nil: appends wait until it is closed
	err  error         // not nil: appends fail
}

func (d *faultDisk) Open(dir string) (raft.LogStore, raft.StableStore, raft.SnapshotStore, io.Closer, error) {
	logs, stable, snaps, closer, err := FileDisk{}.Open(dir)
	return &faultLog{logs, d}, stable, snaps, closer, err
}

func (d *faultDisk) set(gate chan struct{}, err error) {
	d.mu.Lock()
	d.gate, d.err = gate, err
	d.mu.Unlock()
}

type faultLog struct {
	raft.LogStore
	disk *faultDisk
}

// IsMonotonic must not be hidden by a wrapper.
func (l *faultLog) IsMonotonic() bool {
	m, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

func (l *faultLog) StoreLogs(logs []*raft.Log) error {
	l.disk.mu.Lock()
	gate, err := l.disk.gate, l.disk.err
	l.disk.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if err != nil {
		return err
	}
	return l.LogStore.StoreLogs(logs)
}

// newFaultyCluster starts three nodes, each on a faultDisk of its own.
func newFaultyCluster(t *testing.T, edit func(*Config)) ([]*testNode, map[*testNode]*faultDisk) {
	t.Helper()
	disks := map[*testNode]*faultDisk{}
	nodes := make([]*testNode, 3)
	var addrs []string
	for i := range nodes {
		n, disk := newTestNode(t, string(rune('a'+i))), &faultDisk{}
		n.edit = func(c *Config) { c.Disk = disk; edit(c) }
		nodes[i], disks[n] = n, disk
		addrs = append(addrs, n.addr)
	}
	for _, n := range nodes {
		n.mustOpen(len(nodes), addrs...)
	}
	t.Cleanup(func() { closeAll(nodes) })
	waitReady(t, nodes...)
	return nodes, disks
}

// TestStalledDiskFailsTheNode hangs the leader's disk: the node must report it,
// fall silent, and let the others elect.
func TestStalledDiskFailsTheNode(t *testing.T) {
	nodes, disks := newFaultyCluster(t, func(c *Config) { c.Timings.Stall = 2 * time.Second })
	leader, others := leaderOf(t, nodes)
	gate := make(chan struct{})
	release := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(release)
	disks[leader].set(gate, nil)
	leader.c.Propose([]*wire.Command{tick()}, func(_ []*wire.Result, err error) {
		if wire.CodeOf(err) != wire.Code_SHUTTING_DOWN {
			t.Errorf("on the failed node: %v", err)
		}
	})
	if err := <-leader.fatal; wire.CodeOf(err) != wire.Code_INTERNAL {
		t.Errorf("%v", err)
	}
	if res, err := others[0].c.ProposeWait(testCtx(t), tick()); err != nil || res[0].GetCode() != wire.Code_OK {
		t.Errorf("the others: %v %v", res, err)
	}
	if l, _ := leaderOf(t, others); l == leader {
		t.Error("the failed node still leads")
	}
	release() // so that the test can wait for what hangs
}

func TestFailedAppendFailsTheNode(t *testing.T) {
	disk := &faultDisk{}
	nodes := newCluster(t, 1, func(c *Config) { c.Disk = disk })
	disk.set(nil, errors.New("no space left on device"))
	nodes[0].c.Propose([]*wire.Command{tick()}, func(_ []*wire.Result, err error) {
		if err == nil {
			t.Error("a failed append was acknowledged")
		}
	})
	if err := <-nodes[0].fatal; wire.CodeOf(err) != wire.Code_INTERNAL {
		t.Errorf("%v", err)
	}
}

func TestDamagedSnapshot(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"a flipped bit": func(t *testing.T, dir string) {
			path := filepath.Join(dir, "state.bin")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2] ^= 4
			write(t, path, data)
		},
		"cut short": func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "state.bin"), 20); err != nil {
				t.Fatal(err)
			}
		},
		"metadata gone": func(t *testing.T, dir string) { write(t, filepath.Join(dir, "meta.json"), nil) },
		"metadata of another place": func(t *testing.T, dir string) {
			path := filepath.Join(dir, "meta.json")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, bytes.Replace(data, []byte(`"Index":`), []byte(`"Index":1`), 1))
		},
		"removed": func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			nodes := newCluster(t, 1, nil)
			n := nodes[0]
			if _, err := n.c.ProposeWait(testCtx(t), tick()); err != nil {
				t.Fatal(err)
			}
			if err := n.c.Snapshot(); err != nil {
				t.Fatal(err)
			}
			// As after a long life: the log no longer reaches back to its beginning.
			if err := n.c.log.DeleteRange(1, 2); err != nil {
				t.Fatal(err)
			}
			n.close()
			snaps, err := filepath.Glob(filepath.Join(n.dir, snapshotDir, "*-*"))
			if err != nil || len(snaps) != 1 {
				t.Fatalf("%v %v", snaps, err)
			}
			damage(t, snaps[0])
			if err := n.open(1); wire.CodeOf(err) != wire.Code_SNAPSHOT_BAD {
				t.Errorf("%v", err)
			}
		})
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedLog(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"garbage":   func(path string) error { return os.WriteFile(path, make([]byte, 1<<16), 0o600) },
		"cut short": func(path string) error { return os.Truncate(path, 8192) },
	} {
		t.Run(name, func(t *testing.T) {
			nodes := newCluster(t, 1, func(c *Config) { c.Disk = FileDisk{LogStoreBolt} })
			n := nodes[0]
			n.close()
			if err := damage(filepath.Join(n.dir, logFile)); err != nil {
				t.Fatal(err)
			}
			if err := n.open(1); wire.CodeOf(err) != wire.Code_INTERNAL {
				t.Errorf("%v", err)
			}
		})
	}
}

// manualClock fires timers when the test says so.
type manualClock struct {
	seam.OSClock
	mu     sync.Mutex
	timers []func()
}

// fire runs the newest timer.
func (c *manualClock) fire() {
	c.mu.Lock()
	f := c.timers[len(c.timers)-1]
	c.mu.Unlock()
	f()
}

func (c *manualClock) AfterFunc(_ time.Duration, f func()) seam.Timer {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timers = append(c.timers, f)
	return manualTimer{}
}

type manualTimer struct{}

func (manualTimer) Stop() bool { return true }

func TestGuardReportsWhileTheWriteHangs(t *testing.T) {
	clock := &manualClock{}
	reported := make(chan error, 1)
	g := &guard{clock: clock, limit: time.Second, fail: func(err error) { reported <- err }}
	err := g.write("append", func() error {
		// A process that was stopped for long finds its timer due.
		clock.fire()
		if len(reported) > 0 {
			t.Errorf("its own sleep counts as the disk's: %v", <-reported)
			return nil
		}
		for range awakeSteps - 1 {
			clock.fire()
		}
		if err := <-reported; wire.CodeOf(err) != wire.Code_INTERNAL {
			t.Errorf("%v", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := g.write("append", func() error { panic("page 7 is damaged") }); err == nil || <-reported == nil {
		t.Error("a panic in a write is not an error")
	}
	// A system may forget what it could not write, and call the next sync good.
	if err := g.write("append", func() error { return nil }); err == nil {
		t.Error("a write after a failed one is answered")
	}
}

func TestGuardReportsUnreadableEntries(t *testing.T) {
	var reported error
	g := &guard{clock: seam.OSClock{}, limit: time.Hour, fail: func(err error) { reported = err }}
	if err := g.read(func() error { return raft.ErrLogNotFound }); !errors.Is(err, raft.ErrLogNotFound) || reported != nil {
		t.Errorf("an entry that is not there: %v %v", err, reported)
	}
	for _, read := range []func() error{
		func() error { return errors.New("the checksum is wrong") },
		func() error { panic("page 7 is damaged") },
	} {
		reported = nil
		if err := g.read(read); err == nil || wire.CodeOf(reported) != wire.Code_INTERNAL {
			t.Errorf("%v %v", err, reported)
		}
	}
}

// TestDamagedEntryAtStart: raft reads every entry behind the newest snapshot.
func TestDamagedEntryAtStart(t *testing.T) {
	nodes := newCluster(t, 1, nil)
	n := nodes[0]
	for range 3 {
		if _, err := n.c.ProposeWait(testCtx(t), tick()); err != nil {
			t.Fatal(err)
		}
	}
	n.close()
	n.edit = func(c *Config) { c.Disk = damagedDisk{} }
	if err := n.open(1); wire.CodeOf(err) != wire.Code_INTERNAL {
		t.Errorf("%v", err)
	}
	select {
	case err := <-n.fatal:
		t.Errorf("a node that never ran reports %v", err)
	default:
	}
}

// damagedDisk cannot read entry 3.
type damagedDisk struct{ FileDisk }

func (d damagedDisk) Open(dir string) (raft.LogStore, raft.StableStore, raft.SnapshotStore, io.Closer, error) {
	logs, stable, snaps, closer, err := d.FileDisk.Open(dir)
	return damagedEntry{logs}, stable, snaps, closer, err
}

type damagedEntry struct{ raft.LogStore }

func (l damagedEntry) GetLog(index uint64, out *raft.Log) error {
	if index == 3 {
		return errors.New("the checksum is wrong")
	}
	return l.LogStore.GetLog(index, out)
}

func TestLogCacheAndTrim(t *testing.T) {
	mem := raft.NewInmemStore()
	l := &guardedLog{store: mem, guard: &guard{clock: seam.OSClock{}, limit: time.Hour, fail: func(err error) { t.Error(err) }}, cache: &logCache{}}
	const n = 3 * logCacheEntries
	for i := uint64(1); i <= n; i++ {
		if err := l.StoreLog(&raft.Log{Index: i, Term: 1, Data: make([]byte, 48<<10)}); err != nil {
			t.Fatal(err)
		}
		if l.cache.bytes > logCacheBytes {
			t.Fatalf("%d bytes are cached", l.cache.bytes)
		}
	}
	check := func(lo, hi uint64) {
		t.Helper()
		for i := uint64(1); i <= n; i++ {
			var e raft.Log
			err := l.GetLog(i, &e)
			if (err == nil) != (i >= lo && i <= hi) || (err == nil && e.Index != i) {
				t.Fatalf("entry %d: %v %v, want %d to %d", i, e.Index, err, lo, hi)
			}
		}
	}
	check(1, n)
	if err := l.DeleteRange(n-9, n); err != nil { // a conflicting tail
		t.Fatal(err)
	}
	check(1, n-10)
	if err := l.DeleteRange(1, 2*trimChunk+5); err != nil { // compaction
		t.Fatal(err)
	}
	check(2*trimChunk+6, n-10)
	if l.cache.bytes < 0 {
		t.Errorf("%d bytes are cached", l.cache.bytes)
	}
}
