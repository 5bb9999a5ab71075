package fsm

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/wire"
)

// BenchmarkStageApply decodes and applies entries of many writes, a session
// each. The figures are of one write.
func BenchmarkStageApply(b *testing.B) {
	for _, batch := range []int{1, 64} {
		b.Run(fmt.Sprint("commands=", batch), func(b *testing.B) {
			const sessions = 1024
			value := make([]byte, 128)
			f := populated(b, sessions, 128)
			at := uint64(sessions + 1)
			before := f.store.Hash()
			cmds := make([]*wire.Command, 0, batch)
			b.ReportAllocs()
			done := 0
			b.ResetTimer()
			for done < b.N {
				b.StopTimer()
				cmds = cmds[:0]
				for i := range batch {
					n := done + i
					cmds = append(cmds, writeCommand(n%sessions, uint64(n/sessions)+2, value))
				}
				data := encode(b, cmds...)
				at++
				b.StartTimer()
				results, ok := f.Apply(&raft.Log{Index: at, Data: data}).([]*wire.Result)
				if !ok || len(results) != batch || results[batch-1].GetCode() != wire.Code_OK {
					b.Fatalf("%v", results)
				}
				done += batch
			}
			if f.store.Index() != at || f.store.Hash() == before {
				b.Fatalf("%d writes ended at index %d, want %d", done, f.store.Index(), at)
			}
		})
	}
}

// BenchmarkStageSnapshot writes a snapshot of 1,000 sessions and reads it back.
func BenchmarkStageSnapshot(b *testing.B) {
	f := populated(b, 1000, 128)
	b.ReportAllocs()
	for b.Loop() {
		file := snapshotFile(b, f)
		s, err := ReadSnapshot(bytes.NewReader(file))
		if err != nil || s.Hash() != f.store.Hash() {
			b.Fatalf("%v: another state came back", err)
		}
	}
}
