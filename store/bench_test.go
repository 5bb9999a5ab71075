package store

import (
	"fmt"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// loaded makes a store of n sessions, each with one attached client and 16
// values of 64 bytes.
func loaded(b *testing.B, n int) *Store {
	b.Helper()
	s := New()
	index := uint64(0)
	apply := func(cmds ...*wire.Command) {
		index++
		results, _ := s.Apply(index, &wire.Entry{Commands: cmds})
		for _, res := range results {
			if res.Code != wire.Code_OK {
				b.Fatalf("%v", res)
			}
		}
	}
	apply(&wire.Command{Kind: &wire.Command_InitCluster{InitCluster: &wire.InitCluster{ClusterId: []byte("c"), ByteBudget: 1 << 40}}},
		registerCmd("w1", "n", 0))
	o := &wire.Owner{Worker: "w1", Incarnation: 1}
	var changes []*wire.Change
	for i := range 16 {
		changes = append(changes, &wire.Change{Key: fmt.Sprint("key", i), Value: make([]byte, 64)})
	}
	for i := range n {
		id := sessionID(i)
		epoch := uint64(i) + 2
		apply(
			&wire.Command{Kind: &wire.Command_Open{Open: &wire.OpenSession{
				Session: id, Nonce: []byte(id), SecretHash: []byte("h"), TtlUs: ttl, Owner: o, DeadlineUs: 1,
			}}},
			&wire.Command{Kind: &wire.Command_Attach{Attach: &wire.Attach{
				Session: id, Epoch: epoch, Owner: o, Number: 1, Client: []byte("c"), Fresh: true,
			}}},
			writeTo(i, 1, changes...),
		)
	}
	return s
}

func sessionID(i int) string { return fmt.Sprintf("session-%08d", i) }

func writeTo(i int, seq uint64, changes ...*wire.Change) *wire.Command {
	return &wire.Command{Kind: &wire.Command_Write{Write: &wire.Write{
		Session: sessionID(i), Epoch: uint64(i) + 2, Owner: &wire.Owner{Worker: "w1", Incarnation: 1},
		Client: []byte("c"), Seq: seq, Prev: seq - 1, Ack: seq, Changes: changes,
		Reply: &wire.Reply{Seq: seq, Payload: make([]byte, 32)}, Digest: 1,
	}}}
}

// BenchmarkApplyWrite is one write of one value, one command an entry, over
// 10,000 sessions in turns.
func BenchmarkApplyWrite(b *testing.B) {
	const n = 10_000
	s := loaded(b, n)
	value := make([]byte, 64)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		c := writeTo(i%n, uint64(i/n)+2, &wire.Change{Key: "key7", Value: value})
		res, _ := s.Apply(s.Index()+1, &wire.Entry{Commands: []*wire.Command{c}})
		if res[0].Code != wire.Code_OK {
			b.Fatalf("%v", res[0])
		}
	}
}

// BenchmarkSnapshot takes a snapshot; it must not depend on the size.
func BenchmarkSnapshot(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(n, " sessions"), func(b *testing.B) {
			s := loaded(b, n)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				s.Snapshot()
			}
		})
	}
}

// BenchmarkSnapshotRecords streams 10,000 sessions.
func BenchmarkSnapshotRecords(b *testing.B) {
	s := loaded(b, 10_000)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := s.Snapshot().Records(func([]byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
