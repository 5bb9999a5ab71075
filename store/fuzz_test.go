package store

import (
	"io"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// FuzzLoad feeds arbitrary records past the file's checksums. Whatever loads
// must be consistent, and must go on working.
func FuzzLoad(f *testing.F) {
	var seed []byte
	for _, rec := range records(f, populated(&testing.T{}).s.Snapshot()) {
		b, err := proto.Marshal(rec)
		if err != nil {
			f.Fatal(err)
		}
		seed = protowire.AppendBytes(seed, b)
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		rest := data
		s, err := Load(func() (*wire.SnapshotRecord, error) {
			if len(rest) == 0 {
				return nil, io.EOF
			}
			b, n := protowire.ConsumeBytes(rest)
			if n < 0 {
				return nil, io.ErrUnexpectedEOF
			}
			rest = rest[n:]
			rec := &wire.SnapshotRecord{}
			return rec, proto.Unmarshal(b, rec)
		})
		if err != nil {
			return
		}
		if _, err := Load(source(records(t, s.Snapshot()))); err != nil {
			t.Fatalf("what was loaded does not load again: %v", err)
		}
	})
}

// FuzzApply applies arbitrary entries of known commands: none may panic, and the
// invariants hold after each.
func FuzzApply(f *testing.F) {
	h := newHarness(&testing.T{}).attached()
	m := h.begin("s", "w2")
	for _, c := range []*wire.Command{
		h.writeCmd("s", "c", 1, 0, put("k", "v")), h.pivotCmd(m, "c"), h.closeCmd("s"), h.openCmd("t", "w1"),
		h.assignCmd("s", "w2"), registerCmd("w1", "x", 1), drainCmd("w1", true), h.ackCmd("s", "c", 1, 1),
		rotateCmd(1, "keys", 0), makeTokenCmd(1, "", second), useTokenCmd(1, "n4", 1),
	} {
		b, err := proto.Marshal(&wire.Entry{TimeUs: 1 << 40, Commands: []*wire.Command{c}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e := &wire.Entry{}
		if len(data) > 1<<14 || proto.Unmarshal(data, e) != nil {
			return
		}
		for _, c := range e.Commands {
			if !Known(c) {
				return
			}
		}
		h := newHarness(t).attached()
		h.begin("s", "w2")
		for range 2 {
			h.index++
			results, _ := h.s.Apply(h.index, e)
			if len(results) != len(e.Commands) {
				t.Fatalf("%d results for %d commands", len(results), len(e.Commands))
			}
			checkInvariants(t, h.s)
		}
		if _, err := Load(source(records(t, h.s.Snapshot()))); err != nil {
			t.Fatalf("the snapshot does not load: %v", err)
		}
	})
}
