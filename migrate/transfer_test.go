package migrate

import (
	"bytes"
	"crypto/rand"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/baton-cluster/baton/wire"
)

func randomBytes(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// deliver decodes what travels, as a node does.
func deliver(t testing.TB, req *wire.TransferReq) *wire.TransferReq {
	t.Helper()
	b, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	got := &wire.TransferReq{}
	if err := proto.Unmarshal(b, got); err != nil {
		t.Fatal(err)
	}
	return got
}

// What fits one chunk is one message; the target keeps it as it came.
func TestTransferOfOneMessage(t *testing.T) {
	for _, size := range []int{1, 100, ChunkBytes} {
		sealed := randomBytes(t, size)
		o := NewOutgoing(7, 1, [][]byte{{1}}, sealed)
		req := o.Next()
		if !o.Single() || req == nil || len(req.GetWarm()) != 1 || o.Next() != nil {
			t.Fatalf("%d bytes: not one message", size)
		}
		a, err := Arrive(req)
		if err != nil {
			t.Fatal(err)
		}
		received, whole, err := a.Add(req)
		got, bad := a.Sealed()
		if err != nil || bad != nil || !whole || received != uint64(size) || !bytes.Equal(got, sealed) {
			t.Fatalf("%d bytes: %d %v %v %v", size, received, whole, err, bad)
		}
	}
}

// Whatever of it is cut, lost, repeated or comes in another order, the target
// ends with the whole.
func TestTransferArrivesWhateverHappens(t *testing.T) {
	whole := randomBytes(t, SealedBytesMax)
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.SampledFrom([]int{ChunkBytes + 1, 2 * ChunkBytes, 5*ChunkBytes - 1, 9 * ChunkBytes, SealedBytesMax}).Draw(rt, "size")
		o := NewOutgoing(7, 1, nil, whole[:size])
		var a *Arriving
		var flight, late []*wire.TransferReq
		cuts := rapid.IntRange(0, 8).Draw(rt, "cuts")
		for steps := 0; ; steps++ {
			if steps > 10_000 {
				rt.Fatal("it does not end")
			}
			for len(flight) < TransferWindow {
				req := o.Next()
				if req == nil {
					break
				}
				flight = append(flight, req)
			}
			if len(flight) == 0 || cuts > 0 && rapid.IntRange(0, 9).Draw(rt, "cut") == 0 {
				cuts--
				late = append(late, flight...)
				flight = nil
				o.Resume()
				continue
			}
			from := &flight
			if len(late) > 0 && rapid.Bool().Draw(rt, "late") {
				from = &late // of before a cut: the answer reaches nobody
			}
			i := rapid.IntRange(0, len(*from)-1).Draw(rt, "which")
			req := (*from)[i]
			*from = slices.Delete(*from, i, i+1)
			if a == nil {
				var err error
				if a, err = Arrive(req); err != nil {
					rt.Fatal(err)
				}
			}
			received, done, err := a.Add(req)
			if err != nil {
				rt.Fatal(err)
			}
			if from == &flight {
				o.Has(received)
			}
			if rapid.IntRange(0, 4).Draw(rt, "again") == 0 {
				if again, _, err := a.Add(req); err != nil || again != received {
					rt.Fatalf("repeated: %d then %d, %v", received, again, err)
				}
			}
			if done {
				break
			}
		}
		if got, err := a.Sealed(); err != nil || !bytes.Equal(got, whole[:size]) {
			rt.Fatalf("something else arrived: %v", err)
		}
	})
}

// The last chunk, whose answer is the outcome, waits for all others.
func TestTransferHoldsTheLastChunkBack(t *testing.T) {
	o := NewOutgoing(7, 1, nil, randomBytes(t, 3*ChunkBytes))
	for range 2 {
		if o.Next() == nil {
			t.Fatal("the window is not used")
		}
	}
	wide := NewOutgoing(7, 1, nil, randomBytes(t, 9*ChunkBytes))
	for n := range TransferWindow + 1 {
		if (wide.Next() != nil) != (n < TransferWindow) {
			t.Fatalf("chunk %d: the window is not kept", n)
		}
	}
	if o.Has(ChunkBytes); o.Next() != nil {
		t.Fatal("the last chunk overtakes")
	}
	if o.Has(2 * ChunkBytes); o.Next() == nil || o.Next() != nil {
		t.Fatal("the last chunk is not sent once")
	}
	// Its answer is lost, and the target has it all: an empty message asks again.
	o.Resume()
	o.Has(3 * ChunkBytes)
	if req := o.Next(); req.GetOffset() != 3*ChunkBytes || len(req.GetSealed()) != 0 || o.Next() != nil {
		t.Fatalf("%v", req)
	}
}

func TestTransferRefusals(t *testing.T) {
	sealed := randomBytes(t, 2*ChunkBytes+5)
	good := NewOutgoing(7, 1, nil, sealed).Next()
	if _, err := Arrive(&wire.TransferReq{Total: SealedBytesMax + 1}); wire.CodeOf(err) != wire.Code_SNAPSHOT_TOO_LARGE {
		t.Errorf("over the cap: %v", err)
	}
	if _, err := Arrive(&wire.TransferReq{}); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
		t.Errorf("nothing: %v", err)
	}
	for name, change := range map[string]func(*wire.TransferReq){
		"another total":   func(r *wire.TransferReq) { r.Total++ },
		"another sum":     func(r *wire.TransferReq) { r.Sum++ },
		"between chunks":  func(r *wire.TransferReq) { r.Offset = 1 },
		"behind the end":  func(r *wire.TransferReq) { r.Offset = r.Total + 1 },
		"far behind":      func(r *wire.TransferReq) { r.Offset = 1 << 63 },
		"too short":       func(r *wire.TransferReq) { r.Sealed = r.Sealed[:ChunkBytes-1] },
		"empty":           func(r *wire.TransferReq) { r.Sealed = nil },
		"last, too long":  func(r *wire.TransferReq) { r.Offset = 2 * ChunkBytes },
		"last, too short": func(r *wire.TransferReq) { r.Offset, r.Sealed = 2*ChunkBytes, r.Sealed[:4] },
	} {
		a, err := Arrive(good)
		if err != nil {
			t.Fatal(err)
		}
		bad := deliver(t, good)
		change(bad)
		if _, _, err := a.Add(bad); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A bit flipped in any chunk is found before anything is opened.
func TestTransferFindsDamage(t *testing.T) {
	sealed := randomBytes(t, 2*ChunkBytes+5)
	for at := 0; at < len(sealed); at += ChunkBytes/8 + 1 {
		o := NewOutgoing(7, 1, nil, sealed)
		var a *Arriving
		for req := o.Next(); req != nil; req = o.Next() {
			req = deliver(t, req)
			if i := at - int(req.GetOffset()); i >= 0 && i < len(req.GetSealed()) {
				req.Sealed[i] ^= 1 << (at % 8)
			}
			if a == nil {
				a, _ = Arrive(req)
			}
			received, _, err := a.Add(req)
			if err != nil {
				t.Fatal(err)
			}
			o.Has(received)
		}
		if _, err := a.Sealed(); wire.CodeOf(err) != wire.Code_SNAPSHOT_BAD {
			t.Fatalf("a bit of byte %d flipped: %v", at, err)
		}
	}
}

// FuzzArriving: whatever comes is refused or kept within what was announced.
func FuzzArriving(f *testing.F) {
	f.Add(uint64(10), uint64(0), uint64(0), []byte("0123456789"), uint64(10), uint64(0), []byte{})
	f.Add(uint64(ChunkBytes+1), uint64(0), uint64(3), []byte("x"), uint64(ChunkBytes+1), uint64(ChunkBytes), []byte("y"))
	f.Add(uint64(1<<63), uint64(1<<63), uint64(0), []byte{}, uint64(1), uint64(1<<62), []byte("z"))
	f.Fuzz(func(t *testing.T, total, offset, sum uint64, first []byte, total2, offset2 uint64, second []byte) {
		a, err := Arrive(&wire.TransferReq{Total: total, Offset: offset, Sum: sum, Sealed: first})
		if err != nil {
			return
		}
		for _, req := range []*wire.TransferReq{
			{Total: total, Offset: offset, Sum: sum, Sealed: first},
			{Total: total2, Offset: offset2, Sum: sum, Sealed: second},
		} {
			if received, whole, err := a.Add(req); err == nil && (received > total || whole && received != total) {
				t.Fatalf("%d of %d", received, total)
			}
		}
		if got, err := a.Sealed(); err == nil && uint64(len(got)) != total {
			t.Fatalf("%d bytes of %d", len(got), total)
		}
	})
}
