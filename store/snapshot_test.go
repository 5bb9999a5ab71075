package store

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// populated has something in every table and every part of a row.
func populated(t *testing.T) *harness {
	h := newHarness(t)
	h.attached()
	h.ok(with(h.writeCmd("s", "c", 1, 0, put("k", "v"), put("l", "w")), func(c *wire.Command) {
		c.GetWrite().Pushes = [][]byte{[]byte("p1"), []byte("p2")}
	}))
	h.ok(h.cancelCmd("s", "c", 2, 1))
	h.openShared("t", "w2")
	h.ok(h.attachCmd("t", "c", 1))
	h.ok(h.attachCmd("t", "d", 2))
	h.ok(h.pivotCmd(h.begin("t", "w3"), "c"))
	h.begin("s", "w2")
	job := h.ok(startDrainCmd("w3", "drain w3")).Job
	h.ok(updateJobCmd(job.Id, paused))
	h.ok(updateJobCmd(job.Id, running))
	h.ok(h.rebalanceCmd("rebalance", "w2", "s", "t"))
	h.open("gone", "w1")
	h.ok(h.closeCmd("gone"))
	h.open("detached", "w3")
	m := h.ok(with(h.beginCmd("detached", "w1", "by the job"), func(c *wire.Command) { c.GetBegin().Job = job.Id })).Migration
	h.ok(h.pivotCmd(m))
	h.ok(endCmd(m.Id, 1234))
	h.ok(fenceCmd(h.owner("w3")))
	h.ok(rotateCmd(1, "first keys", 0))
	h.ok(rotateCmd(2, "next keys", ticketKey))
	h.ok(makeTokenCmd(1, "n4", ttl))
	h.ok(useTokenCmd(1, "n4", 'k'))
	h.ok(makeTokenCmd(2, "", ttl))
	return h
}

func source(list []*wire.SnapshotRecord) func() (*wire.SnapshotRecord, error) {
	return func() (*wire.SnapshotRecord, error) {
		if len(list) == 0 {
			return nil, io.EOF
		}
		rec := list[0]
		list = list[1:]
		return rec, nil
	}
}

func TestLoadRestoresEverything(t *testing.T) {
	h := populated(t)
	list := records(t, h.s.Snapshot())
	s, err := Load(source(list))
	if err != nil {
		t.Fatal(err)
	}
	checkInvariants(t, s)
	if s.Hash() != h.s.Hash() || s.Index() != h.s.Index() || s.TimeUS() != h.s.TimeUS() {
		t.Fatalf("hash %x index %d, want %x %d", s.Hash(), s.Index(), h.s.Hash(), h.s.Index())
	}
	if diff := diffRecords(list, records(t, s.Snapshot())); diff != "" {
		t.Fatalf("restored (-want +got):\n%s", diff)
	}
	// It goes on as the original does.
	cmds := []*wire.Command{h.writeCmd("s", "c", 3, 2, put("m", "x")), h.openCmd("new", "w1"), h.assignCmd("t", "w1")}
	for _, c := range cmds {
		want := h.do(c)
		got, _ := s.Apply(h.index, &wire.Entry{TimeUs: h.time, WallUs: h.wall, Commands: []*wire.Command{c}})
		if !proto.Equal(want, got[0]) {
			t.Fatalf("%v:\nwant %v\ngot  %v", c, want, got[0])
		}
	}
	if s.Hash() != h.s.Hash() {
		t.Fatal("the hashes part ways")
	}
}

// S11: a snapshot taken before writes is unaffected by them, in every part of a
// row, and two snapshots are independent of each other.
func TestSnapshotIsUnaffectedByWrites(t *testing.T) {
	h := populated(t)
	first := h.s.Snapshot()
	want := records(t, first)
	changes := []func() *wire.Command{
		func() *wire.Command { return h.writeCmd("s", "c", 3, 2, put("k", "changed"), del("l")) },
		func() *wire.Command { return h.writeCmd("s", "c", 4, 3, put("k", "changed again")) },
		func() *wire.Command { return h.ackCmd("s", "c", 4, 1) },
		func() *wire.Command { return h.attachCmd("s", "d", 9) },
		func() *wire.Command { return h.detachCmd("s", 9) },
		func() *wire.Command { return abortCmd(h.row("s").Migration) },
		func() *wire.Command { return h.closeCmd("s") },
		func() *wire.Command { return h.assignCmd("t", "w2") },
		func() *wire.Command { return h.openCmd("new", "w1") },
		func() *wire.Command { return registerCmd("w3", "restart", h.owner("w3").Incarnation) },
		func() *wire.Command { return endCmd(h.s.ActiveMigrations()[0].Id, 5) },
		func() *wire.Command { return updateJobCmd(h.s.OpenJobs()[0].Id, paused) },
		func() *wire.Command { return endJobCmd(h.s.OpenJobs()[0].Id, wire.JobState_JOB_STATE_FAILED) },
	}
	for i, change := range changes {
		h.ok(change())
		if diff := diffRecords(want, records(t, first)); diff != "" {
			t.Fatalf("change %d shows in the snapshot:\n%s", i, diff)
		}
		if i%3 == 0 { // some rows are modified twice between snapshots, some once
			second := h.s.Snapshot()
			list := records(t, second)
			if _, err := Load(source(list)); err != nil {
				t.Fatalf("change %d: %v", i, err)
			}
		}
	}
	h.tick(1000 * second)
	if diff := diffRecords(want, records(t, first)); diff != "" {
		t.Fatalf("forgetting shows in the snapshot:\n%s", diff)
	}
}

// Each change as the first one after a snapshot: it must clone every part that
// it modifies in place, and not only happen on an array that was cloned before.
func TestFirstChangeAfterSnapshotClones(t *testing.T) {
	for name, change := range map[string]func(h *harness) *wire.Command{
		"replies trimmed": func(h *harness) *wire.Command { return h.ackCmd("s", "c", 2, 0) },
		"pushes trimmed":  func(h *harness) *wire.Command { return h.ackCmd("s", "c", 0, 1) },
		"entry replaced":  func(h *harness) *wire.Command { return h.writeCmd("s", "c", 3, 2, put("k", "new")) },
		"entry deleted":   func(h *harness) *wire.Command { return h.writeCmd("s", "c", 3, 2, del("k")) },
		"cancelled":       func(h *harness) *wire.Command { return h.cancelCmd("s", "c", 3, 2) },
		"detached":        func(h *harness) *wire.Command { return h.detachCmd("s", 1) },
		"attached":        func(h *harness) *wire.Command { return h.attachCmd("s", "a", 9) },
		"pause noted":     func(h *harness) *wire.Command { return endCmd(h.row("t").History[1].Migration, 5) },
		"reassigned":      func(h *harness) *wire.Command { return h.assignCmd("t", "w1") },
		"aborted":         func(h *harness) *wire.Command { return abortCmd(h.row("s").Migration) },
	} {
		t.Run(name, func(t *testing.T) {
			h := populated(t)
			snap := h.s.Snapshot()
			want := records(t, snap)
			h.ok(change(h))
			if diff := diffRecords(want, records(t, snap)); diff != "" {
				t.Fatalf("it shows in the snapshot:\n%s", diff)
			}
			if h.s.Hash() == snap.Hash() {
				t.Fatal("nothing changed")
			}
		})
	}
}

// Streaming runs beside Apply. Run with -race.
func TestSnapshotStreamsBesideWrites(t *testing.T) {
	h := populated(t)
	for i := range 200 {
		h.open(fmt.Sprint("many", i), "w1")
	}
	snap := h.s.Snapshot()
	done := make(chan error)
	go func() {
		var list []*wire.SnapshotRecord
		err := snap.Records(func(b []byte) error {
			rec := &wire.SnapshotRecord{}
			list = append(list, rec)
			return proto.Unmarshal(b, rec)
		})
		if err == nil {
			_, err = Load(source(list))
		}
		done <- err
	}()
	for i := range 200 {
		id := fmt.Sprint("many", i)
		h.index++
		h.s.Apply(h.index, &wire.Entry{Commands: []*wire.Command{h.attachCmd(id, "c", 1)}})
		h.index++
		h.s.Apply(h.index, &wire.Entry{Commands: []*wire.Command{h.writeCmd(id, "c", 1, 0, put("k", "v"))}})
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	checkInvariants(t, h.s)
}

func TestRecordsStopsAtTheFirstError(t *testing.T) {
	h := populated(t)
	n := len(records(t, h.s.Snapshot()))
	stop := errors.New("stop")
	for at := range n {
		calls := 0
		err := h.s.Snapshot().Records(func([]byte) error {
			if calls++; calls > at {
				return stop
			}
			return nil
		})
		if !errors.Is(err, stop) || calls != at+1 {
			t.Fatalf("after %d records: %v, %d calls", at, err, calls)
		}
	}
}

// Whatever is lost, repeated, swapped or changed is found.
func TestLoadRefusesDamage(t *testing.T) {
	whole := records(t, populated(t).s.Snapshot())
	fails := func(name string, list []*wire.SnapshotRecord) {
		t.Helper()
		if _, err := Load(source(list)); err == nil {
			t.Errorf("%s: loaded", name)
		}
	}
	for i := range whole {
		fails(fmt.Sprint("without ", i), append(append([]*wire.SnapshotRecord{}, whole[:i]...), whole[i+1:]...))
		fails(fmt.Sprint("twice ", i), append(append([]*wire.SnapshotRecord{}, whole[:i+1]...), whole[i:]...))
		fails(fmt.Sprint("cut at ", i), whole[:i])
		fails(fmt.Sprint("empty ", i), append(append(append([]*wire.SnapshotRecord{}, whole[:i]...), &wire.SnapshotRecord{}), whole[i+1:]...))
	}
	fails("none", nil)
	eachField(whole, func(i int, name string, rec *wire.SnapshotRecord) {
		list := append([]*wire.SnapshotRecord{}, whole...)
		list[i] = rec
		fails(fmt.Sprintf("record %d, %s changed", i, name), list)
	})
}
