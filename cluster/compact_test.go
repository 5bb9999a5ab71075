package cluster

import (
	"bytes"
	"testing"
	"time"

	"github.com/baton-cluster/baton/fsm"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

func TestSnapshotIsDueForAsMuchLogAsState(t *testing.T) {
	for _, c := range []struct {
		b   fsm.Backlog
		due bool
	}{
		{fsm.Backlog{}, false},
		{fsm.Backlog{Entries: snapshotEntries - 1, Bytes: snapshotBytes - 1}, false},
		{fsm.Backlog{Entries: snapshotEntries, Bytes: 1}, true},
		{fsm.Backlog{Entries: 1, Bytes: snapshotBytes}, true},
		{fsm.Backlog{Entries: 10 * snapshotEntries, Bytes: 1 << 20, Snapshot: 1<<20 + 1}, false},
		{fsm.Backlog{Entries: 10 * snapshotEntries, Bytes: 1 << 20, Snapshot: 1 << 20}, true},
		{fsm.Backlog{Entries: 100, Bytes: snapshotBytes, Snapshot: 2 * snapshotBytes}, false},
	} {
		if due := snapshotDue(c.b); due != c.due {
			t.Errorf("%+v: due is %v", c.b, due)
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
	value := bytes.Repeat([]byte("v"), 200<<10)
	written := 0
	for seq := uint64(1); n.c.FSM().Backlog().Snapshot == 0; seq++ {
		cmd := w.write("s", epoch, seq)
		cmd.GetWrite().Changes = []*wire.Change{{Key: "k", Value: value}}
		cmd.GetWrite().Ack = seq
		cmd.GetWrite().Digest = wire.Digest(cmd.GetWrite())
		if res, err := n.c.ProposeWait(testCtx(t), cmd); err != nil || res[0].GetCode() != wire.Code_OK {
			t.Fatalf("%v %v", res, err)
		}
		written += len(value)
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
