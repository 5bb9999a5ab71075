package cluster

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// BenchmarkPropose writes to sessions through a follower and through the leader,
// on three nodes on one disk, with 1, 64 and 512 proposals in flight, on each
// kind of log and on none.
func BenchmarkPropose(b *testing.B) {
	disks := []struct {
		name string
		disk Disk
	}{{"wal", FileDisk{LogStoreWAL}}, {"bolt", FileDisk{LogStoreBolt}}, {"memory", memoryDisk{}}}
	for _, d := range disks {
		for _, through := range []string{"leader", "follower"} {
			for _, inflight := range []int{1, 64, 512} {
				b.Run(fmt.Sprintf("log=%s/through=%s/inflight=%d", d.name, through, inflight), func(b *testing.B) {
					benchPropose(b, d.disk, through, inflight)
				})
			}
		}
	}
}

func benchPropose(b *testing.B, disk Disk, through string, inflight int) {
	nodes := newCluster(b, 3, func(c *Config) { c.Disk = disk })
	leader, others := leaderOf(b, nodes)
	n := leader
	if through == "follower" {
		n = others[0]
	}
	w := register(b, n, "worker")
	epochs := make([]uint64, inflight)
	for i := range epochs {
		epochs[i] = w.session(b, n, fmt.Sprint("s", i))
	}
	before := leader.c.Stats()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for i := range inflight {
		id := fmt.Sprint("s", i)
		wg.Add(1)
		var step func(seq uint64)
		step = func(seq uint64) {
			if left.Add(-1) < 0 {
				wg.Done()
				return
			}
			n.c.Propose([]*wire.Command{w.write(id, epochs[i], seq)}, func(res []*wire.Result, err error) {
				if err != nil || res[0].GetCode() != wire.Code_OK {
					b.Errorf("%v %v", res, err)
				}
				step(seq + 1)
			})
		}
		step(1)
	}
	wg.Wait()
	b.StopTimer()
	after := leader.c.Stats()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
	b.ReportMetric(float64(after.Commands-before.Commands)/float64(max(after.Entries-before.Entries, 1)), "commands/entry")
	b.ReportMetric(float64(after.FsyncP99.Microseconds()), "p99-fsync-µs")
	if b.N > 10_000 {
		b.Logf("commands in an entry: %v", after.BatchSizes)
	}
}
