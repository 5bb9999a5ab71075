package cluster

import (
	"bytes"
	"testing"
	"time"

	"github.com/baton-cluster/baton/fsm"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

func TestSnapshotIsDueForHalfAsMuchLogAsState(t *testing.T) {
	for _, c := range []struct {
		b    fsm.Backlog
		due  bool
		last bool // also on the node whose turn is last
	}{
		{fsm.Backlog{}, false, false},
		{fsm.Backlog{Entries: snapshotEntries - 1, Bytes: snapshotBytes - 1}, false, false},
		{fsm.Backlog{Entries: snapshotEntries, Bytes: 1}, true, true},
		{fsm.Backlog{Entries: 1, Bytes: snapshotBytes}, true, true},
		{fsm.Backlog{Entries: 10 * snapshotEntries, Bytes: 1 << 20, Snapshot: 2<<20 + 2}, false, false},
		{fsm.Backlog{Entries: 10 * snapshotEntries, Bytes: 1 << 20, Snapshot: 2 << 20}, true, false},
		{fsm.Backlog{Entries: 10 * snapshotEntries, Bytes: 5 << 18, Snapshot: 2 << 20}, true, true},
		{fsm.Backlog{Entries: 100, Bytes: snapshotBytes, Snapshot: 4 * snapshotBytes}, false, false},
	} {
		if due, last := snapshotDue(c.b, 0), snapshotDue(c.b, snapshotTurns-1); due != c.due || last != c.last {
			t.Errorf("%+v: due is %v, %v", c.b, due, last)
		}
	}
}

// TestLogIsCompacted: a node takes a snapshot by itself once its log has grown, and
// counts from there, also after a restart.
func TestLogIsCompacted(t *testing.T) {
	n := newTestNode(t, "n1")
	n.edit = func(c *Config) { c.Timings.Compact = 10 * time.Millisecond }
	n.mustOpen(1)
	t.Cleanup(func() { closeAll([]*testNode{n}) })
	waitReady(t, n)
	w := register(t, n, "worker")
	epoch := w.session(t, n, "s")
	written := 0
	for seq := uint64(1); n.c.FSM().Backlog().Snapshot == 0; seq++ {
		written += w.writeMuch(t, n, epoch, seq)
	}
	if b := n.c.FSM().Backlog(); written < snapshotBytes || b.Bytes > uint64(written)-snapshotBytes/2 {
		t.Errorf("a snapshot after %d bytes leaves %+v", written, b)
	}
	var before uint64
	n.c.FSM().View(func(s *store.Store) { before = s.Hash() })
	size := n.c.FSM().Backlog().Snapshot
	n.close()
	n.mustOpen(1)
	waitReady(t, n)
	var after uint64
	n.c.FSM().View(func(s *store.Store) { after = s.Hash() })
	if b := n.c.FSM().Backlog(); b.Snapshot != size || b.Bytes > uint64(written)-snapshotBytes/2 {
		t.Errorf("after a restart: %+v, the snapshot had %d bytes", b, size)
	}
	if before != after {
		t.Error("another state after a restart")
	}
}

// writeMuch writes a large value, and returns its size.
func (w *testWorker) writeMuch(t *testing.T, n *testNode, epoch, seq uint64) int {
	t.Helper()
	cmd := w.write("s", epoch, seq)
	value := bytes.Repeat([]byte("v"), 200<<10)
	cmd.GetWrite().Changes = []*wire.Change{{Key: "k", Value: value}}
	cmd.GetWrite().Digest = wire.Digest(cmd.GetWrite())
	if res, err := n.c.ProposeWait(testCtx(t), cmd); err != nil || res[0].GetCode() != wire.Code_OK {
		t.Fatalf("%v %v", res, err)
	}
	return len(value)
}

// TestCloseDuringSnapshot: a leader that closes while it writes a snapshot leads no
// longer, however long that takes.
func TestCloseDuringSnapshot(t *testing.T) {
	nodes, disks := sickCluster(t, func(c *Config) { c.Timings.Compact = 10 * time.Millisecond })
	leader, others := leaderOf(t, nodes)
	hang := make(chan struct{})
	disks[leader].catch("snapshot", illness{hang: hang})
	w := register(t, leader, "worker")
	epoch := w.session(t, leader, "s")
	for seq, written := uint64(1), 0; written < snapshotBytes+snapshotBytes/8; seq++ {
		written += w.writeMuch(t, leader, epoch, seq)
	}
	eventually(t, "a snapshot that hangs", func() bool { return disks[leader].hangs("snapshot") })
	closed := make(chan error, 1)
	go func() { closed <- leader.c.Close() }()
	leaderOf(t, others)
	close(hang)
	if err := <-closed; err != nil {
		t.Errorf("the others elected only when it had given up: %v", err)
	}
}
