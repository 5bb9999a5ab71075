// Package bulk is a byte stream's bookkeeping, the same at both of its ends: who
// has which bytes, what may be forgotten, what has to be sent again. It does no
// IO, keeps no time and takes no locks.
//
// A byte stream has two directions. In each, bytes are numbered from 0 for as
// long as the byte stream lives, over any number of connections and owners. A
// Sender keeps what the far application has not acknowledged, and a Receiver
// passes each byte on once, in order, whatever is sent again. Neither holds more
// than WindowBytes.
package bulk

import "github.com/baton-cluster/baton/wire"

const (
	// WindowBytes is how far a sender may be ahead of the far application's
	// acknowledgement, so what either end keeps of a direction. It is part of the
	// protocol. A move carries a window for each byte stream of a session, which
	// is why it is not larger; over 50 ms of round trip it makes 5 MB/s.
	WindowBytes = 256 << 10
	// ChunkBytesMax bounds a frame's payload: small enough that streams which
	// share a connection take turns.
	ChunkBytesMax = 32 << 10
	// ackEvery is how far an acknowledgement may lag behind: a quarter of the
	// window keeps the sender going.
	ackEvery = WindowBytes / 4
)

// Chunk is a run of bytes at an offset; Fin: nothing follows it.
type Chunk struct {
	Offset uint64
	Data   []byte
	Fin    bool
}

func badRequest(format string, args ...any) error {
	return wire.Errorf(wire.Code_BAD_REQUEST, format, args...)
}
