package bulk

import "io"

// Receiver is the receiving end of one direction. Its zero value begins at 0.
type Receiver struct {
	// Invariant: acked <= read <= next <= acked+WindowBytes; held are the bytes
	// from read to next.
	acked, read, next uint64
	told              uint64 // highest acknowledgement that the far side was sent
	held              []byte
	fin               bool // nothing follows next
}

// NewReceiver goes on at the first byte that a former one's application had not
// acknowledged.
func NewReceiver(acked uint64) Receiver {
	return Receiver{acked: acked, read: acked, next: acked, told: acked}
}

// Take takes a chunk. What has been received before is passed over. BAD_REQUEST:
// bytes are missing before it, or it goes past the end or the window.
func (r *Receiver) Take(c Chunk) error {
	end := c.Offset + uint64(len(c.Data))
	switch {
	case end < c.Offset, c.Offset > r.next:
		return badRequest("bytes from %d on came where those from %d on were due", c.Offset, r.next)
	case end > r.acked+WindowBytes:
		return badRequest("bytes up to %d came, the window ends at %d", end, r.acked+WindowBytes)
	case r.fin && end > r.next, c.Fin && end < r.next, r.fin && c.Fin && end != r.next:
		return badRequest("bytes up to %d came, the end was at %d", end, r.next)
	}
	if end > r.next {
		r.held = append(r.held, c.Data[r.next-c.Offset:]...)
		r.next = end
	}
	r.fin = r.fin || c.Fin
	return nil
}

// Readable reports whether Read has something to say.
func (r *Receiver) Readable() bool {
	return len(r.held) > 0 || r.fin || r.read == r.acked+WindowBytes
}

// Read passes on what came, io.EOF behind the end, and 0 and nil if nothing is
// there. BAD_REQUEST: a whole window is read and not acknowledged, so nothing
// more can come.
func (r *Receiver) Read(p []byte) (int, error) {
	switch {
	case len(r.held) > 0:
	case r.fin:
		return 0, io.EOF
	case r.read == r.acked+WindowBytes:
		return 0, badRequest("%d bytes were read and not acknowledged: acknowledge some, then read on", WindowBytes)
	}
	n := copy(p, r.held)
	r.held = r.held[n:]
	if len(r.held) == 0 {
		r.held = nil
	}
	r.read += uint64(n)
	return n, nil
}

// Ack says that the application needs no byte below to again. BAD_REQUEST: it has
// not read as far.
func (r *Receiver) Ack(to uint64) error {
	if to > r.read {
		return badRequest("byte %d cannot be acknowledged, only %d were read", to, r.read)
	}
	r.acked = max(r.acked, to)
	return nil
}

// Acked, ReadTo and Next are the first byte that is not acknowledged, not read,
// not received.
func (r *Receiver) Acked() uint64 { return r.acked }

// ReadTo is where the application reads next.
func (r *Receiver) ReadTo() uint64 { return r.read }

// Next is what is due from the far side.
func (r *Receiver) Next() uint64 { return r.next }

// Finished reports whether the far side's end was received.
func (r *Receiver) Finished() bool { return r.fin }

// Due is the acknowledgement to send now, if it is time for one: not for every
// byte, but in time for the sender to go on.
func (r *Receiver) Due() (to uint64, due bool) {
	if r.acked < r.told+ackEvery {
		return 0, false
	}
	r.told = r.acked
	return r.acked, true
}

// Tell is the acknowledgement that a new connection begins with.
func (r *Receiver) Tell() uint64 {
	r.told = r.acked
	return r.acked
}
