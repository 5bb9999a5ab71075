package cluster

import (
	"fmt"
	"io"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/fsm"
	"github.com/baton-cluster/baton/wire"
)

// benchWrite is a write of 128 bytes as a worker proposes it.
func benchWrite(session string, seq uint64) *wire.Command {
	w := &testWorker{owner: &wire.Owner{Worker: "w", Incarnation: 1}}
	c := w.write(session, 2, seq)
	c.GetWrite().Changes[0].Value = make([]byte, 128)
	return c
}

// BenchmarkStageBatch queues 64 groups of one write, cuts them into a batch,
// encodes its entry and answers all. The figures are of 64 writes.
func BenchmarkStageBatch(b *testing.B) {
	const writers = 64
	var cmds [writers][]*wire.Command
	for i := range cmds {
		cmds[i] = []*wire.Command{benchWrite(fmt.Sprint("s", i), 1)}
	}
	results := make([]*wire.Result, writers)
	for i := range results {
		results[i] = &wire.Result{}
	}
	var q queue
	answered := 0
	b.ReportAllocs()
	for b.Loop() {
		answered = 0
		for _, c := range cmds {
			g, err := newGroup(c, func(r []*wire.Result, err error) { answered += len(r) })
			if err == nil {
				err = q.add(g)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		batch := q.next()
		if _, err := fsm.EncodeEntry(&wire.Entry{TimeUs: 1, Commands: batch.list()}); err != nil {
			b.Fatal(err)
		}
		finish(q.settle(batch, results), nil)
		if answered != writers || !q.empty() || q.commands != 0 {
			b.Fatalf("%d of %d writes were answered, %d are left", answered, writers, q.commands)
		}
	}
}

// BenchmarkStageAppend appends entries of one write, and of a batch, to each log
// store, synced.
func BenchmarkStageAppend(b *testing.B) {
	for _, size := range []int{300, 16 << 10} {
		for _, s := range []LogStore{LogStoreWAL, LogStoreBolt} {
			b.Run(fmt.Sprintf("store=%s/bytes=%d", s, size), func(b *testing.B) {
				logs, _, _, closer, err := FileDisk{s}.Open(b.TempDir())
				must(b, err)
				data := make([]byte, size)
				b.ReportAllocs()
				b.SetBytes(int64(size))
				index := uint64(0)
				for b.Loop() {
					index++
					if err := logs.StoreLog(&raft.Log{Index: index, Term: 1, Data: data}); err != nil {
						b.Fatal(err)
					}
				}
				if last, err := logs.LastIndex(); last != index || err != nil {
					b.Fatalf("%d entries were appended, the log ends at %d: %v", index, last, err)
				}
				must(b, closer.Close())
			})
		}
	}
}

// memoryDisk keeps nothing: what is left of the rate with it is what the disk
// costs.
type memoryDisk struct{}

func (memoryDisk) Open(string) (raft.LogStore, raft.StableStore, raft.SnapshotStore, io.Closer, error) {
	mem := raft.NewInmemStore()
	return mem, mem, raft.NewInmemSnapshotStore(), io.NopCloser(nil), nil
}
