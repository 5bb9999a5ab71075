package bulk

// Sender is the sending end of one direction. Its zero value begins at 0.
type Sender struct {
	// Invariant: acked <= sent <= acked+len(kept), and len(kept) <= WindowBytes.
	// kept holds the bytes from acked on; those from sent on are not on the
	// present connection yet.
	acked, sent uint64
	kept        []byte
	fin         bool // nothing follows kept
	finSent     bool // on the present connection
}

// NewSender goes on where another ended: kept, which it takes over, are the bytes
// from acked on, all of which are to be sent again.
func NewSender(acked uint64, kept []byte, fin bool) Sender {
	return Sender{acked: acked, sent: acked, kept: kept, fin: fin}
}

// Room is how many bytes Write takes now.
func (s *Sender) Room() int {
	if s.fin {
		return 0
	}
	return WindowBytes - len(s.kept)
}

// Write takes as much of p as there is room for.
func (s *Sender) Write(p []byte) int {
	n := min(len(p), s.Room())
	s.kept = append(s.kept, p[:n]...)
	return n
}

// Finish says that nothing follows.
func (s *Sender) Finish() { s.fin = true }

// Finished reports whether Finish was called.
func (s *Sender) Finished() bool { return s.fin }

// Acked is the first byte that the far application has not acknowledged, End the
// first that was not written yet.
func (s *Sender) Acked() uint64 { return s.acked }

// End is where the next Write goes.
func (s *Sender) End() uint64 { return s.acked + uint64(len(s.kept)) }

// Kept are the bytes from Acked on, valid until the next call.
func (s *Sender) Kept() []byte { return s.kept }

// Next is what goes on the connection next, if anything does. Its data is valid
// until the next call.
func (s *Sender) Next() (Chunk, bool) {
	rest := s.kept[s.sent-s.acked:]
	if len(rest) == 0 && (!s.fin || s.finSent) {
		return Chunk{}, false
	}
	c := Chunk{Offset: s.sent, Data: rest[:min(len(rest), ChunkBytesMax)]}
	s.sent += uint64(len(c.Data))
	if s.fin && s.sent == s.End() {
		c.Fin, s.finSent = true, true
	}
	return c, true
}

// Ack forgets what is below to, by the far side's word. What was never sent
// cannot be acknowledged: that is BAD_REQUEST.
func (s *Sender) Ack(to uint64) error {
	if to > s.End() {
		return badRequest("byte %d was acknowledged, and only %d were sent", to, s.End())
	}
	if to <= s.acked {
		return nil
	}
	s.kept = s.kept[to-s.acked:]
	if len(s.kept) == 0 {
		s.kept = nil
	}
	s.acked, s.sent = to, max(s.sent, to)
	return nil
}

// Rewind begins a new connection, on which the far side wants the bytes from
// from on. BAD_REQUEST: they are forgotten, or were never written.
func (s *Sender) Rewind(from uint64) error {
	if from < s.acked || from > s.End() {
		return badRequest("bytes from %d on are wanted, those from %d to %d are kept", from, s.acked, s.End())
	}
	s.sent, s.finSent = from, false
	return nil
}
