package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

func mustPanic(t *testing.T, want string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if got := fmt.Sprint(recover()); !strings.Contains(got, want) {
			t.Errorf("panic %q, want one with %q", got, want)
		}
	}()
	f()
}

// S5: an entry that cannot be read, or of an unknown kind, halts the node; the
// message names the entry and what to do.
func TestUnreadableEntryHalts(t *testing.T) {
	f := populated(t, 1, 1)
	hash, at, _ := f.HashAt(0)
	for name, data := range map[string][]byte{
		"garbage": {1, 0xff}, "empty": nil, "version": {9}, "kind": {1, 0x1a, 3, 0xfa, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			mustPanic(t, "cannot read log entry 77 ", func() { f.Apply(&raft.Log{Index: 77, Data: data}) })
			mustPanic(t, "upgrade this node", func() { f.Apply(&raft.Log{Index: 77, Data: data}) })
		})
	}
	mustPanic(t, "log entry 1 comes after entry 2", func() { f.Apply(&raft.Log{Index: 1, Data: encode(t)}) })
	if h, a, _ := f.HashAt(0); h != hash || a != at {
		t.Fatal("something was applied")
	}
	// The lock is free: the node can still be looked at while it stops.
	f.View(func(*store.Store) {})
}

func TestOtherLogTypesAreIgnored(t *testing.T) {
	f := populated(t, 1, 1)
	if res := f.Apply(&raft.Log{Index: 50, Type: raft.LogNoop}).([]*wire.Result); res != nil {
		t.Fatalf("results %v", res)
	}
}

// A refused command is a result, and does not stop the rest of its entry.
func TestRefusalsAreResults(t *testing.T) {
	f := populated(t, 1, 1)
	res := f.Apply(&raft.Log{Index: 3, Data: encode(t, writeCommand(9, 1, nil), writeCommand(0, 2, nil))}).([]*wire.Result)
	if res[0].Code != wire.Code_UNKNOWN_SESSION || res[1].Code != wire.Code_OK || res[1].Position != 3<<12|1 {
		t.Fatalf("results %v", res)
	}
}

func TestSubscribe(t *testing.T) {
	f := New(nil)
	var got []string
	f.Subscribe(func(index uint64, ev []store.Event) {
		f.View(func(s *store.Store) { // outside the lock, and after the entry
			got = append(got, fmt.Sprint("a", index, s.Index(), ev))
		})
	})
	f.Subscribe(func(index uint64, _ []store.Event) { got = append(got, fmt.Sprint("b", index)) })
	apply(t, f, 4, initCommands()...)
	apply(t, f, 6)
	if err := f.Restore(io.NopCloser(bytes.NewReader(snapshotFile(t, f)))); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprint([]string{
		fmt.Sprint("a", 4, 4, []store.Event{{Kind: store.EventCluster}, {Kind: store.EventWorker, Worker: "w1"}}), "b4",
		fmt.Sprint("a", 6, 6, []store.Event{}), "b6",
		fmt.Sprint("a", 6, 6, []store.Event{{Kind: store.EventRestored}}), "b6",
	})
	if fmt.Sprint(got) != want {
		t.Fatalf("got  %v\nwant %v", got, want)
	}
}

// sink is a raft.SnapshotSink in memory.
type sink struct {
	bytes.Buffer
	fail              error
	closed, cancelled bool
}

func (s *sink) Write(p []byte) (int, error) {
	if s.fail != nil {
		return 0, s.fail
	}
	return s.Buffer.Write(p)
}
func (s *sink) ID() string    { return "id" }
func (s *sink) Close() error  { s.closed = true; return nil }
func (s *sink) Cancel() error { s.cancelled = true; return nil }

func TestSnapshotAndRestore(t *testing.T) {
	a := populated(t, 50, 100)
	snap, err := a.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	hash, at, _ := a.HashAt(0)
	apply(t, a, 100, writeCommand(1, 2, []byte("later"))) // does not show in the snapshot
	var file sink
	if err := snap.Persist(&file); err != nil || !file.closed || file.cancelled {
		t.Fatalf("persist: %v, closed %v, cancelled %v", err, file.closed, file.cancelled)
	}
	snap.Release()

	b := populated(t, 1, 1)
	if err := b.Restore(io.NopCloser(bytes.NewReader(file.Bytes()))); err != nil {
		t.Fatal(err)
	}
	if h, i, ok := b.HashAt(0); h != hash || i != at || !ok {
		t.Fatalf("restored %x at %d, want %x at %d", h, i, hash, at)
	}
	if h, i, ok := b.HashAt(at); h != hash || i != at || !ok {
		t.Fatalf("the ring has %x at %d %v after a restore", h, i, ok)
	}
	if _, _, ok := b.HashAt(1); ok {
		t.Fatal("the ring still has hashes from before the restore")
	}
	// Both go on alike.
	apply(t, b, 100, writeCommand(1, 2, []byte("later")))
	ha, _, _ := a.HashAt(100)
	if hb, _, _ := b.HashAt(100); ha != hb {
		t.Fatal("the replicas part ways")
	}
}

func TestPersistFailureCancels(t *testing.T) {
	snap, err := populated(t, 1, 1).Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	file := sink{fail: errors.New("disk full")}
	if err := snap.Persist(&file); !errors.Is(err, file.fail) || file.closed || !file.cancelled {
		t.Fatalf("persist: %v, closed %v, cancelled %v", err, file.closed, file.cancelled)
	}
}

// A bad file is found before anything is replaced (S11).
func TestFailedRestoreChangesNothing(t *testing.T) {
	f := populated(t, 5, 10)
	hash, at, _ := f.HashAt(0)
	file := snapshotFile(t, populated(t, 3000, 500))
	file[len(file)-1] ^= 1 // in the last of several blocks
	err := f.Restore(io.NopCloser(bytes.NewReader(file)))
	if wire.CodeOf(err) != wire.Code_SNAPSHOT_BAD {
		t.Fatalf("restore: %v", err)
	}
	if h, i, _ := f.HashAt(0); h != hash || i != at {
		t.Fatal("a failed restore changed the tables")
	}
	f.View(func(s *store.Store) {
		if s.Counts().Sessions != 5 {
			t.Fatal("sessions are gone")
		}
	})
}

func TestHashAt(t *testing.T) {
	f := New(nil)
	if hash, at, ok := f.HashAt(0); !ok || at != 0 || hash == 0 {
		t.Fatalf("an empty FSM: %x %d %v", hash, at, ok)
	}
	if _, _, ok := f.HashAt(1); ok {
		t.Fatal("a hash of what has not happened")
	}
	hashes := map[uint64]uint64{}
	apply(t, f, 3, initCommands()...)
	for i := range 10 { // indexes 10, 13, …: others are raft's own
		index := uint64(10 + 3*i)
		apply(t, f, index, &wire.Command{Kind: &wire.Command_Tick{Tick: &wire.Tick{}}})
		hashes[index], _, _ = f.HashAt(0)
	}
	for index := uint64(10); index <= 37; index++ {
		want := 10 + (index-10)/3*3
		if hash, at, ok := f.HashAt(index); !ok || at != want || hash != hashes[want] {
			t.Errorf("index %d: %x at %d %v, want %x at %d", index, hash, at, ok, hashes[want], want)
		}
	}
	if _, _, ok := f.HashAt(38); ok {
		t.Error("a hash of what has not happened")
	}
	if _, _, ok := f.HashAt(2); ok {
		t.Error("a hash from before the first entry")
	}
}

func TestRingWrapsAround(t *testing.T) {
	var r ring
	if _, ok := r.find(0); ok {
		t.Fatal("an empty ring has a point")
	}
	for i := range uint64(3*ringSize + 5) {
		r.add(point{index: 2*i + 2, hash: i})
		if p, ok := r.find(2*i + 2); !ok || p.hash != i {
			t.Fatalf("the newest: %v %v", p, ok)
		}
	}
	newest := uint64(3*ringSize + 4)
	oldest := newest - ringSize + 1
	for _, tc := range []struct {
		index uint64
		hash  uint64
		ok    bool
	}{
		{2*oldest + 1, 0, false}, {2*oldest + 2, oldest, true}, {2*oldest + 3, oldest, true},
		{2*newest + 1, newest - 1, true}, {2*newest + 3, 0, false},
	} {
		if p, ok := r.find(tc.index); ok != tc.ok || p.hash != tc.hash {
			t.Errorf("index %d: %v %v, want %d %v", tc.index, p, ok, tc.hash, tc.ok)
		}
	}
}

// View, HashAt, Snapshot and Apply side by side. Run with -race.
func TestConcurrentReaders(t *testing.T) {
	f := populated(t, 10, 10)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				f.View(func(s *store.Store) {
					s.Row("s000001")
					s.List("", 5)
					s.Ownerless("", 5)
					s.Counts()
				})
				f.HashAt(5)
			}
		})
	}
	for i := range uint64(100) {
		apply(t, f, 100+i, writeCommand(1, 2+i, []byte("v")))
		if i%20 == 0 {
			snap, err := f.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				if err := snap.Persist(&sink{}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	close(stop)
	wg.Wait()
}

// BenchmarkApply is one entry of 64 writes, decoding included.
func BenchmarkApply(b *testing.B) {
	const n = 64
	f := populated(b, n, 64)
	value := make([]byte, 64)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		b.StopTimer()
		var cmds []*wire.Command
		for j := range n {
			cmds = append(cmds, writeCommand(j, uint64(i)+2, value))
		}
		l := &raft.Log{Index: uint64(1000 + i), Data: encode(b, cmds...)}
		b.StartTimer()
		f.Apply(l)
	}
}
