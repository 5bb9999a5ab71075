package cluster

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"

	"github.com/baton-cluster/baton/seam"
)

// prompt is a network whose servers have everything at once.
type prompt struct{ raftNetwork }

func (prompt) AppendEntries(raft.ServerID, raft.ServerAddress, *raft.AppendEntriesRequest, *raft.AppendEntriesResponse) error {
	return nil
}

func (prompt) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return promptPipeline{ready: make(chan raft.AppendFuture, inFlight)}, nil
}

// inFlight is how many requests a promptPipeline takes before it is read.
const inFlight = 8

type promptPipeline struct {
	raft.AppendPipeline
	ready chan raft.AppendFuture
}

type promptAnswer struct {
	raft.AppendFuture
	req *raft.AppendEntriesRequest
}

func (a promptAnswer) Request() *raft.AppendEntriesRequest { return a.req }

func (p promptPipeline) AppendEntries(req *raft.AppendEntriesRequest, _ *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	p.ready <- promptAnswer{req: req}
	return promptAnswer{req: req}, nil
}
func (p promptPipeline) Consumer() <-chan raft.AppendFuture { return p.ready }
func (promptPipeline) Close() error                         { return nil }

// TestOthersAreHeardAfterTheSync: what another server says of an entry comes to raft
// once this one has synced its own copy.
func TestOthersAreHeardAfterTheSync(t *testing.T) {
	entry := func(index uint64) *raft.AppendEntriesRequest {
		return &raft.AppendEntriesRequest{Entries: []*raft.Log{{Index: index - 1}, {Index: index}}}
	}
	// transport is of a server that has not synced the entries from 7 on.
	transport := func() (tr syncedTransport, p *pendingSync, end context.CancelFunc) {
		tr = syncedTransport{raftNetwork: prompt{}, pending: new(atomic.Pointer[pendingSync])}
		tr.ctx, end = context.WithCancel(context.Background())
		p = &pendingSync{first: 7, done: make(chan struct{})}
		tr.pending.Store(p)
		return tr, p, end
	}
	cases := map[string]func(t *testing.T){
		"one by one": func(t *testing.T) {
			tr, p, end := transport()
			defer end()
			for _, req := range []*raft.AppendEntriesRequest{{}, entry(6)} {
				if err := tr.AppendEntries("s", "", req, nil); err != nil {
					t.Errorf("%v: %v", req, err)
				}
			}
			done := make(chan error, 1)
			go func() { done <- tr.AppendEntries("s", "", entry(7), nil) }()
			synctest.Wait()
			if len(done) > 0 {
				t.Fatal("another server was heard before the sync")
			}
			close(p.done)
			if err := <-done; err != nil {
				t.Error(err)
			}
		},
		"failed": func(t *testing.T) {
			tr, p, end := transport()
			defer end()
			p.err = errors.New("input/output error")
			close(p.done)
			if err := tr.AppendEntries("s", "", entry(7), nil); !errors.Is(err, p.err) {
				t.Errorf("%v, want that the sync failed", err)
			}
		},
		"given up": func(t *testing.T) {
			tr, _, end := transport()
			end()
			if err := tr.AppendEntries("s", "", entry(7), nil); !errors.Is(err, errUnsynced) {
				t.Errorf("%v, want %v", err, errUnsynced)
			}
		},
		"pipeline": func(t *testing.T) {
			tr, p, end := transport()
			defer end()
			pipeline, err := tr.AppendEntriesPipeline("s", "")
			must(t, err)
			for _, index := range []uint64{6, 8} {
				_, err := pipeline.AppendEntries(entry(index), nil)
				must(t, err)
			}
			if got := lastOf((<-pipeline.Consumer()).Request()); got != 6 {
				t.Errorf("the first answer is of %d, want 6", got)
			}
			synctest.Wait()
			select {
			case <-pipeline.Consumer():
				t.Fatal("another server was heard before the sync")
			default:
			}
			close(p.done)
			if got := lastOf((<-pipeline.Consumer()).Request()); got != 8 {
				t.Errorf("the next answer is of %d, want 8", got)
			}
			must(t, pipeline.Close())
		},
		"pipeline failed": func(t *testing.T) {
			tr, p, end := transport()
			defer end()
			pipeline, err := tr.AppendEntriesPipeline("s", "")
			must(t, err)
			p.err = errors.New("input/output error")
			close(p.done)
			for range 3 * inFlight { // raft must come to close it
				_, err := pipeline.AppendEntries(entry(8), nil)
				must(t, err)
			}
			must(t, pipeline.Close())
		},
		"pipeline closed": func(t *testing.T) {
			tr, _, end := transport()
			defer end()
			pipeline, err := tr.AppendEntriesPipeline("s", "")
			must(t, err)
			_, err = pipeline.AppendEntries(entry(8), nil)
			must(t, err)
			synctest.Wait()
			must(t, pipeline.Close()) // the bubble tells of what is left
		},
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
	}
}

// slowDisk is a log and a stable store; a sync lasts until synced is closed.
type slowDisk struct {
	raft.InmemStore
	synced   chan struct{}
	err      error
	unsynced int // appends whose sync was left for later
}

func (d *slowDisk) StoreUnsynced(logs []*raft.Log) (func() error, error) {
	d.unsynced++
	return func() error {
		<-d.synced
		return d.err
	}, d.StoreLogs(logs)
}

func newSlowDisk(parallel bool) (*slowDisk, *guardedLog, *guardedStable) {
	d := &slowDisk{InmemStore: *raft.NewInmemStore(), synced: make(chan struct{})}
	g := &guard{clock: seam.OSClock{}, limit: 1 << 40, fail: func(error) {}}
	l := &guardedLog{store: d, guard: g, cache: &logCache{}, parallel: func() bool { return parallel }}
	return d, l, &guardedStable{StableStore: d, guard: g, log: l}
}

// TestSyncGoesBeforeTheNextWrite: nothing is written, and so nothing more is said, while
// an append is not synced.
func TestSyncGoesBeforeTheNextWrite(t *testing.T) {
	for what, write := range map[string]func(*guardedLog, *guardedStable) error{
		"append": func(l *guardedLog, _ *guardedStable) error { return l.StoreLog(&raft.Log{Index: 2}) },
		"config": func(l *guardedLog, _ *guardedStable) error {
			return l.StoreLog(&raft.Log{Index: 2, Type: raft.LogNoop})
		},
		"vote": func(_ *guardedLog, s *guardedStable) error { return s.Set([]byte("vote"), []byte("me")) },
		"term": func(_ *guardedLog, s *guardedStable) error { return s.SetUint64([]byte("term"), 2) },
	} {
		for _, failure := range []error{nil, errors.New("input/output error")} {
			t.Run(what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					d, l, s := newSlowDisk(true)
					d.err = failure
					must(t, l.StoreLog(&raft.Log{Index: 1}))
					done := make(chan error, 1)
					go func() { done <- write(l, s) }()
					synctest.Wait()
					if len(done) > 0 {
						t.Fatal("written before the sync")
					}
					close(d.synced)
					if err := <-done; (err != nil) != (failure != nil) {
						t.Errorf("the sync ended with %v, the write with %v", failure, err)
					}
					l.syncs.Wait()
				})
			})
		}
	}
}

// TestWhatIsSentEarly: commands, where it takes another server to commit.
func TestWhatIsSentEarly(t *testing.T) {
	for _, c := range []struct {
		name     string
		parallel bool
		logs     []*raft.Log
		want     int
	}{
		{"commands", true, []*raft.Log{{Index: 1}, {Index: 2}}, 1},
		{"a change of the servers", true, []*raft.Log{{Index: 1}, {Index: 2, Type: raft.LogNoop}}, 0},
		{"alone", false, []*raft.Log{{Index: 1}}, 0},
	} {
		d, l, _ := newSlowDisk(c.parallel)
		close(d.synced)
		must(t, l.StoreLogs(c.logs))
		l.syncs.Wait()
		if d.unsynced != c.want {
			t.Errorf("%s: %d appends were sent before they were synced, want %d", c.name, d.unsynced, c.want)
		}
	}
}

// countingDisk counts the appends whose sync was left for later.
type countingDisk struct{ unsynced atomic.Int64 }

type countingLog struct {
	*walLog
	disk *countingDisk
}

func (d *countingDisk) Open(dir string) (raft.LogStore, raft.StableStore, raft.SnapshotStore, io.Closer, error) {
	logs, stable, snaps, closer, err := WALDisk{}.Open(dir)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	return countingLog{logs.(*walLog), d}, stable, snaps, closer, nil
}

func (l countingLog) StoreUnsynced(logs []*raft.Log) (func() error, error) {
	l.disk.unsynced.Add(1)
	return l.walLog.StoreUnsynced(logs)
}

// TestLeaderSyncsWhileItSends: with others; a server that is alone syncs first.
func TestLeaderSyncsWhileItSends(t *testing.T) {
	for _, size := range []int{1, 3} {
		disks := map[string]*countingDisk{}
		nodes := newCluster(t, size, func(c *Config) {
			d := &countingDisk{}
			c.Disk, disks[c.Name] = d, d
		})
		unsynced := func() (sum int64) { // of whoever led meanwhile: a follower syncs first
			for _, d := range disks {
				sum += d.unsynced.Load()
			}
			return sum
		}
		before := unsynced()
		for range 10 {
			_, err := nodes[0].c.ProposeWait(testCtx(t), tick())
			must(t, err)
		}
		early := unsynced() - before
		if (early >= 10) != (size > 1) {
			t.Errorf("of %d: the leader sent %d of 10 entries before they were synced", size, early)
		}
		sameState(t, nodes)
	}
}

// TestWALSyncsLater: an append whose sync is left for later is synced by that, or
// before its segment counts as full.
func TestWALSyncsLater(t *testing.T) {
	files := &syncedFiles{FS: fs.New()}
	logs, _, _, closer, err := WALDisk{Files: files, SegmentBytes: testSegment}.Open(t.TempDir())
	must(t, err)
	defer func() { must(t, closer.Close()) }()
	l := logs.(*walLog)
	store := func(e *raft.Log) func() error {
		t.Helper()
		sync, err := l.StoreUnsynced([]*raft.Log{e})
		must(t, err)
		return sync
	}
	sync := store(testEntry(1))
	if files.has(t, testEntry(1)) {
		t.Error("synced at once")
	}
	must(t, sync())
	if !files.has(t, testEntry(1)) {
		t.Error("not synced later")
	}
	large := testEntry(2)
	large.Data = make([]byte, testSegment)
	sync = store(large)
	must(t, l.StoreLog(testEntry(3))) // waits for the new segment
	if !files.has(t, large) {
		t.Error("a segment became full before its last append was synced")
	}
	must(t, sync())
}

// failingFiles are segments whose syncs fail.
type failingFiles struct{ types.VFS }

type failingFile struct{ types.WritableFile }

func (f failingFiles) Create(dir, name string, size uint64) (types.WritableFile, error) {
	w, err := f.VFS.Create(dir, name, size)
	return failingFile{w}, err
}

func (failingFile) Sync() error { return errors.New("input/output error") }

// TestWALFailedSyncIsNoMark: the log may end before an append whose sync failed.
func TestWALFailedSyncIsNoMark(t *testing.T) {
	logs, _, _, closer, err := WALDisk{Files: failingFiles{fs.New()}, SegmentBytes: testSegment}.Open(t.TempDir())
	must(t, err)
	l := logs.(*walLog)
	sync, err := l.StoreUnsynced([]*raft.Log{testEntry(1)})
	must(t, err)
	if sync() == nil || closer.Close() == nil {
		t.Error("a failed sync is not told")
	}
	if l.mark != 0 {
		t.Errorf("the log is said to reach %d", l.mark)
	}
}
