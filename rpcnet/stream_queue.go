package rpcnet

import (
	"errors"
	"sync"

	"github.com/quic-go/quic-go"
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// errFinished is the answer to a frame that comes after the last one.
var errFinished = wire.Errorf(wire.Code_UNAVAILABLE, "the stream has had its last frame")

// sendQueue puts frames on one QUIC stream, in order, and never blocks whoever
// sends. Frames are gathered until the connection's writer flushes them, which is
// at once unless others are about to send on it as well. Wake-ups cost more than
// bytes, so they then go straight into the stream's own buffer where flow control
// has room, and only past that into a backlog that one goroutine writes off.
type sendQueue struct {
	qs      MuxStream
	conn    *connWriter     // of the stream's connection
	limit   int             // bytes of backlog; past it the stream is reset
	workers *sync.WaitGroup // counts the goroutine that writes the backlog off

	mu       sync.Mutex
	gathered []byte // whole frames, to be flushed
	backlog  []byte
	inWrite  int // bytes that the writing goroutine has taken
	writing  bool
	finished bool  // the last frame was taken; FIN follows the backlog
	err      error // the stream is broken
	room     chan struct{}
}

// gatherMax bounds what is gathered of one stream: past it nothing is gained.
const gatherMax = 16 << 10

// send encodes m and queues it. With last, the stream's end follows. Errors:
// FRAME_TOO_LARGE (nothing was sent), OVERLOADED (the far side does not read;
// the stream has been reset), else that the stream is finished or broken.
func (q *sendQueue) send(m proto.Message, last bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	b, err := encodeFrame(q.gathered, m, wire.FrameBytesMax)
	if err != nil {
		return err
	}
	return q.gather(b, last)
}

// sendRaw queues b, a whole frame with its header.
func (q *sendQueue) sendRaw(b []byte, last bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.gather(append(q.gathered, b...), last)
}

// gather needs q.mu. b is what was gathered, and one frame more.
func (q *sendQueue) gather(b []byte, last bool) error {
	switch {
	case q.err != nil:
		return q.err
	case q.finished:
		return errFinished
	}
	first := len(q.gathered) == 0
	q.gathered = b
	if last || len(b) > gatherMax {
		return q.flushLocked(last)
	}
	if first {
		q.conn.add(q)
	}
	return nil
}

// flush puts what was gathered on the stream.
func (q *sendQueue) flush() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.gathered) > 0 {
		_ = q.flushLocked(false) // whoever sends next is told
	}
}

func (q *sendQueue) flushLocked(last bool) error {
	b := q.gathered
	q.gathered = b[:0]
	if cap(b) > frameStepBytes { // one large frame must not pin its memory
		q.gathered = nil
	}
	return q.put(b, last)
}

// finish queues the stream's end.
func (q *sendQueue) finish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	_ = q.flushLocked(true)
}

// put needs q.mu. It copies b.
func (q *sendQueue) put(b []byte, last bool) error {
	switch {
	case q.err != nil:
		return q.err
	case q.finished:
		return errFinished
	}
	if !q.writing {
		err := q.qs.TryWriteAll(b)
		if err == nil {
			if last {
				q.finished = true
				_ = q.qs.Close()
			}
			return nil
		}
		if !errors.Is(err, quic.ErrWouldBlock) {
			q.err = streamErr(err)
			return q.err
		}
	}
	if len(q.backlog)+q.inWrite+len(b) > q.limit {
		q.err = wire.Errorf(wire.Code_OVERLOADED, "the other end of the stream does not read: %d bytes wait for it", len(q.backlog)+q.inWrite)
		q.qs.CancelWrite(quic.StreamErrorCode(wire.Code_OVERLOADED))
		q.qs.CancelRead(quic.StreamErrorCode(wire.Code_OVERLOADED))
		q.wakeRoom()
		return q.err
	}
	q.backlog = append(q.backlog, b...)
	q.finished = q.finished || last
	if !q.writing {
		q.writing = true
		q.workers.Go(q.writeOff)
	}
	return nil
}

// writeOff writes until the backlog is empty, then ends.
func (q *sendQueue) writeOff() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.err == nil && len(q.backlog) > 0 {
		b := q.backlog
		q.backlog, q.inWrite = nil, len(b)
		q.mu.Unlock()
		_, err := q.qs.Write(b)
		q.mu.Lock()
		q.inWrite = 0
		if err != nil && q.err == nil {
			q.err = streamErr(err)
		}
	}
	q.writing = false
	if q.finished && q.err == nil {
		_ = q.qs.Close()
	}
	q.wakeRoom()
}

// wakeRoom needs q.mu.
func (q *sendQueue) wakeRoom() {
	if q.room != nil {
		close(q.room)
		q.room = nil
	}
}

// emptied returns a channel that is closed once no backlog is left, or nil if
// there is none now.
func (q *sendQueue) emptied() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.writing || q.err != nil {
		return nil
	}
	if q.room == nil {
		q.room = make(chan struct{})
	}
	return q.room
}

// reset drops what is queued and tells the far side so, with a code.
func (q *sendQueue) reset(code wire.Code) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = wire.Errorf(code, "the stream was reset")
	}
	q.gathered = nil
	q.qs.CancelWrite(quic.StreamErrorCode(code))
	q.qs.CancelRead(quic.StreamErrorCode(code))
	q.wakeRoom()
}

// streamErr turns what quic-go says into a typed error. A code that the far
// side put on a reset or a close is kept where it is one of ours.
func streamErr(err error) error {
	if err == nil {
		return nil
	}
	var typed *wire.Error
	if errors.As(err, &typed) {
		return err
	}
	code := wire.Code_UNAVAILABLE
	if s, ok := errors.AsType[*quic.StreamError](err); ok && s.Remote {
		code = knownCode(uint64(s.ErrorCode))
	}
	if a, ok := errors.AsType[*quic.ApplicationError](err); ok && a.Remote {
		code = knownCode(uint64(a.ErrorCode))
	}
	if t, ok := errors.AsType[*quic.TransportError](err); ok && !t.Remote && t.ErrorCode.IsCryptoError() {
		return wire.Errorf(wire.Code_NOT_AUTHORISED, "the other end could not be authenticated (%v); check that both sides use the same CA and that its certificate is in date", t)
	}
	if t, ok := errors.AsType[*quic.TransportError](err); ok && t.Remote && t.ErrorCode == quic.ConnectionRefused {
		return wire.Errorf(wire.Code_OVERLOADED, "the node takes no more connections just now")
	}
	return wire.Errorf(code, "the connection was lost: %v", err)
}

// knownCode maps a number that came from outside to a code; OK and unknown
// numbers become UNAVAILABLE.
func knownCode(n uint64) wire.Code {
	if n > 0 && n < 1<<31 {
		if _, ok := wire.Code_name[int32(n)]; ok {
			return wire.Code(n)
		}
	}
	return wire.Code_UNAVAILABLE
}
