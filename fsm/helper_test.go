package fsm

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

var owner = &wire.Owner{Worker: "w1", Incarnation: 1}

func initCommands() []*wire.Command {
	return []*wire.Command{
		{Kind: &wire.Command_InitCluster{InitCluster: &wire.InitCluster{ClusterId: []byte("cluster"), ByteBudget: 1 << 40}}},
		{Kind: &wire.Command_RegisterWorker{RegisterWorker: &wire.RegisterWorker{Id: "w1", Name: "n", Nonce: []byte("nonce")}}},
	}
}

// sessionCommands open session i, whose epoch is i+2 if sessions are opened in
// order, and write to it.
func sessionCommands(i int, value []byte) []*wire.Command {
	id, epoch := fmt.Sprintf("s%06d", i), uint64(i)+2
	return []*wire.Command{
		{Kind: &wire.Command_Open{Open: &wire.OpenSession{
			Session: id, Nonce: []byte(id), SecretHash: []byte("h"), TtlUs: 1 << 30, Owner: owner, DeadlineUs: 1,
		}}},
		{Kind: &wire.Command_Attach{Attach: &wire.Attach{
			Session: id, Epoch: epoch, Owner: owner, Number: 1, Client: []byte("c"), Fresh: true,
		}}},
		writeCommand(i, 1, value),
	}
}

func writeCommand(i int, seq uint64, value []byte) *wire.Command {
	w := &wire.Write{
		Session: fmt.Sprintf("s%06d", i), Epoch: uint64(i) + 2, Owner: owner, Client: []byte("c"), Seq: seq, Prev: seq - 1,
		Ack: seq, Changes: []*wire.Change{{Key: "key", Value: value}}, Reply: &wire.Reply{Seq: seq, Payload: []byte("reply")},
	}
	w.Digest = wire.Digest(w)
	return &wire.Command{Kind: &wire.Command_Write{Write: w}}
}

func encode(t testing.TB, cmds ...*wire.Command) []byte {
	t.Helper()
	b, err := EncodeEntry(&wire.Entry{TimeUs: 1, WallUs: 2, Commands: cmds})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func apply(t testing.TB, f *FSM, index uint64, cmds ...*wire.Command) []*wire.Result {
	t.Helper()
	results := f.Apply(&raft.Log{Index: index, Data: encode(t, cmds...)}).([]*wire.Result)
	if len(results) != len(cmds) {
		t.Fatalf("%d results for %d commands", len(results), len(cmds))
	}
	for i, res := range results {
		if res.Code != wire.Code_OK {
			t.Fatalf("%v: %v", cmds[i], res)
		}
	}
	return results
}

// populated has n sessions with a value of size bytes each.
func populated(t testing.TB, n, size int) *FSM {
	t.Helper()
	f := New(nil)
	apply(t, f, 1, initCommands()...)
	for i := range n {
		value := make([]byte, size)
		for j := range value {
			value[j] = byte(i * j) // compressible, but not all the same
		}
		apply(t, f, uint64(i)+2, sessionCommands(i, value)...)
	}
	return f
}

func snapshotFile(t testing.TB, f *FSM) []byte {
	t.Helper()
	var snap *store.Snapshot
	f.mu.Lock()
	snap = f.store.Snapshot()
	f.mu.Unlock()
	var b bytes.Buffer
	if err := WriteSnapshot(&b, snap); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
