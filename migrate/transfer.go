package migrate

import (
	"math/bits"

	"github.com/cespare/xxhash/v2"

	"github.com/baton-cluster/baton/wire"
)

// A sealed snapshot travels in chunks. Nearly all fit one, and then the one
// message is transfer and answer at once. Of a larger one a window of chunks is
// under way, in any order, any of them twice; the last is held back until the
// target has all others, because its answer is the pivot's outcome. What was cut
// off goes on behind what the target has. The sum over the whole tells damage on
// the way from a snapshot that was sealed for another use.
//
// Both sides are pure: worker makes the calls, and bounds memory and time.

const (
	// ChunkBytes is what one message carries; part of the format, as both sides
	// number chunks by it.
	ChunkBytes = 256 << 10
	// TransferWindow is how many chunks of one transfer may be unanswered: it
	// keeps a fast link busy, and a slow one from queueing up.
	TransferWindow = 4
	// chunksMax: the chunks that have arrived are one word of bits.
	chunksMax = 64
)

// A larger cap needs another set of chunks.
var _ = [chunksMax - (SealedBytesMax+ChunkBytes-1)/ChunkBytes]struct{}{}

// Outgoing is the source's side of one transfer.
type Outgoing struct {
	migration uint64
	capture   uint32
	warm      [][]byte
	sealed    []byte
	sum       uint64
	have      int // Invariant: the target has what is below
	next      int // the first byte that is not under way
	ended     bool
}

// NewOutgoing begins the transfer of what Seal made. capture numbers the
// source's captures for the migration, from 1.
func NewOutgoing(migration uint64, capture uint32, warm [][]byte, sealed []byte) *Outgoing {
	return &Outgoing{migration: migration, capture: capture, warm: warm, sealed: sealed, sum: xxhash.Sum64(sealed)}
}

// Single reports whether the whole fits one message.
func (o *Outgoing) Single() bool { return len(o.sealed) <= ChunkBytes }

// Next returns the next message to send, nil if an answer must come first.
func (o *Outgoing) Next() *wire.TransferReq {
	last := (len(o.sealed) - 1) / ChunkBytes * ChunkBytes
	switch {
	case o.ended, o.next-o.have >= TransferWindow*ChunkBytes, o.next >= last && o.have < last:
		return nil
	}
	end := min(o.next+ChunkBytes, len(o.sealed))
	req := &wire.TransferReq{
		Migration: o.migration, Capture: o.capture, Total: uint64(len(o.sealed)), Sum: o.sum,
		Offset: uint64(o.next), Sealed: o.sealed[o.next:end],
	}
	if o.next = end; end == len(o.sealed) {
		o.ended, req.Warm = true, o.warm
	}
	return req
}

// Has takes an answer: the target has that many bytes from the start. It reports
// whether that is more than was known.
func (o *Outgoing) Has(received uint64) bool {
	n := int(min(received, uint64(len(o.sealed))))
	if n <= o.have || n%ChunkBytes != 0 && n != len(o.sealed) {
		return false
	}
	o.have = n
	o.next = max(o.next, n)
	return true
}

// Resume goes on behind what the target has: what else was sent is lost, or
// will be ignored.
func (o *Outgoing) Resume() { o.next, o.ended = o.have, false }

// Arriving is the target's side of one transfer.
type Arriving struct {
	buf []byte
	sum uint64
	got uint64 // bit n: chunk n is there
}

// Arrive begins to take the transfer that req is of: it needs req.Total bytes,
// which the caller has set aside. Refusals: SNAPSHOT_TOO_LARGE, BAD_REQUEST.
func Arrive(req *wire.TransferReq) (*Arriving, error) {
	switch {
	case req.GetTotal() > SealedBytesMax:
		return nil, wire.Errorf(wire.Code_SNAPSHOT_TOO_LARGE, "the snapshot has %d bytes, at most %d can move", req.GetTotal(), SealedBytesMax)
	case req.GetTotal() == 0:
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "a snapshot has at least one byte")
	}
	a := &Arriving{sum: req.GetSum()}
	if req.GetTotal() == uint64(len(req.GetSealed())) && len(req.GetSealed()) <= ChunkBytes {
		a.buf = req.GetSealed()
	} else {
		a.buf = make([]byte, req.GetTotal())
	}
	return a, nil
}

// Add takes one message of the transfer. It returns how much there is from the
// start without a gap, and whether the message asks for the pivot and all is
// there. BAD_REQUEST: it is no chunk of this transfer.
func (a *Arriving) Add(req *wire.TransferReq) (received uint64, whole bool, err error) {
	total, at, n := uint64(len(a.buf)), req.GetOffset(), uint64(len(req.GetSealed()))
	if req.GetTotal() != total || req.GetSum() != a.sum || at > total || n != min(ChunkBytes, total-at) || at%ChunkBytes != 0 && at != total {
		return 0, false, wire.Errorf(wire.Code_BAD_REQUEST, "%d bytes at %d are no chunk of the %d that come", n, at, total)
	}
	if bit := uint64(1) << (at / ChunkBytes); n > 0 && a.got&bit == 0 {
		if len(a.buf) > ChunkBytes {
			copy(a.buf[at:], req.GetSealed())
		} else {
			a.buf = req.GetSealed()
		}
		a.got |= bit
	}
	received = min(uint64(bits.TrailingZeros64(^a.got))*ChunkBytes, total)
	return received, received == total && at+n == total, nil
}

// Sealed returns the whole, once it is there and its sum is right, else
// SNAPSHOT_BAD.
func (a *Arriving) Sealed() ([]byte, error) {
	if sum := xxhash.Sum64(a.buf); sum != a.sum {
		return nil, wire.Errorf(wire.Code_SNAPSHOT_BAD, "the snapshot was damaged on its way: its sum is %016x, the source says %016x", sum, a.sum)
	}
	return a.buf, nil
}
