package rpcnet

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/baton-cluster/baton/bulk"
	"github.com/baton-cluster/baton/wire"
)

// streamOpenTime bounds the opening of a byte stream. It is well below the 30 s that
// an owner keeps a stream whose client is away: one that has begun unheard is found.
const streamOpenTime = 10 * time.Second

// ByteStream is a client's end of a byte stream to a handler at the session's
// owner. It follows the session from node to node: no byte is lost, none comes
// twice. Where that cannot be, it ends with a typed error that says why. Read is
// for one goroutine at a time, and so is Write; everything else may be called from
// anywhere.
type ByteStream struct {
	r        *runner
	release  func() bool // of the application's context
	id       uint64
	method   string
	argument []byte
	ctx      context.Context // ends with the stream's use to the application
	cancel   context.CancelFunc
	opened   chan struct{} // closed when it has been opened

	mu      sync.Mutex
	changed chan struct{} // closed, and made anew, with every change
	in      bulk.Receiver
	out     bulk.Sender
	begun   bool   // a node has said that it is open
	born    uint64 // epoch in which the handler may have begun; 0: it has not
	doubt   bool   // a node did not say what became of the opening
	link    *byteLink
	commit  *wire.StreamCommit // the latest that a handler has asked for
	outcome error              // the handler's, behind the last byte; io.EOF: it went well
	ended   error              // why nothing goes any more on this side
}

// OpenStream opens a byte stream to a stream method, with an argument of at most
// wire.StreamArgumentBytesMax bytes, and returns when its handler has begun. ctx is
// the stream's for as long as it lives: when it ends the stream is cancelled.
//
// Errors: UNKNOWN_METHOD, TOO_MANY, STREAM_LOST (whether the handler began is not
// known), BAD_REQUEST, DEADLINE_EXCEEDED, which is the context's error too, and
// what ended the session.
func (s *Session) OpenStream(ctx context.Context, method string, argument []byte) (*ByteStream, error) {
	switch {
	case checkMethod(method) != nil:
		return nil, checkMethod(method)
	case len(argument) > wire.StreamArgumentBytesMax:
		return nil, badRequest("a stream's argument has at most %d bytes, this one %d: write it into the stream", wire.StreamArgumentBytesMax, len(argument))
	}
	if err := ctx.Err(); err != nil {
		return nil, streamExpired(err)
	}
	b := &ByteStream{r: &s.runner, method: method, argument: append([]byte(nil), argument...), changed: make(chan struct{}), opened: make(chan struct{})}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.release = context.AfterFunc(ctx, func() { b.end(streamExpired(ctx.Err())) })
	if err := s.addStream(b); err != nil {
		b.release()
		b.cancel()
		return nil, err
	}
	late := s.cfg.Clock.AfterFunc(streamOpenTime, func() { b.endUnopened() })
	defer late.Stop()
	select {
	case <-b.opened:
		return b, nil
	case <-b.ctx.Done():
		return nil, b.endErr()
	}
}

func streamExpired(cause error) error {
	return &deadlineError{refusal: wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "the stream's context has ended"), cause: cause}
}

// endUnopened gives the opening up.
func (b *ByteStream) endUnopened() {
	b.mu.Lock()
	begun := b.begun
	b.mu.Unlock()
	if !begun {
		b.end(&deadlineError{
			refusal: wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "the session's owner did not open the stream within %v", streamOpenTime),
			cause:   context.DeadlineExceeded,
		})
	}
}

// ID is the stream's number in this client instance.
func (b *ByteStream) ID() uint64 { return b.id }

// Read reads what the handler wrote. Behind the last byte comes io.EOF, if the
// handler returned nil, or its error. STREAM_LOST and STREAM_MOVED mean that the
// session has another owner and the handler could not go along.
func (b *ByteStream) Read(p []byte) (n int, err error) {
	for {
		b.mu.Lock()
		changed := b.changed
		n, err = b.in.Read(p)
		if n > 0 {
			_ = b.in.Ack(b.in.ReadTo())
			b.wantsAck()
			b.mu.Unlock()
			return n, nil
		}
		switch {
		case err == io.EOF:
			err = b.outcome
		case b.ended != nil:
			err = b.ended
		}
		b.mu.Unlock()
		if err != nil || len(p) == 0 {
			return 0, err
		}
		<-changed
	}
}

// wantsAck has an acknowledgement sent if it is time for one. b.mu is held.
func (b *ByteStream) wantsAck() {
	if b.link == nil {
		return
	}
	if to, due := b.in.Due(); due {
		b.link.ack, b.link.ackDue = to, true
		b.wake()
	}
}

// Write writes to the handler. It blocks while the handler is bulk.WindowBytes
// behind with acknowledging, and returns when p is taken: it will be delivered,
// for as long as the stream lives. STREAM_ENDED: the handler has returned, and Read
// says with what.
func (b *ByteStream) Write(p []byte) (n int, err error) {
	for {
		b.mu.Lock()
		if err := b.mayWrite(); err != nil {
			b.mu.Unlock()
			return n, err
		}
		if k := b.out.Write(p[n:]); k > 0 {
			n += k
			b.wake()
		}
		changed := b.changed
		b.mu.Unlock()
		if n == len(p) {
			return n, nil
		}
		<-changed
	}
}

func (b *ByteStream) mayWrite() error {
	switch {
	case b.ended != nil:
		return b.ended
	case b.in.Finished():
		return errStreamEnded
	case b.out.Finished():
		return wire.Errorf(wire.Code_STREAM_ENDED, "CloseWrite was called before")
	}
	return nil
}

var errStreamEnded = wire.Errorf(wire.Code_STREAM_ENDED, "the handler has returned: read what it said")

// SendMessage writes one message, of at most bulk.MessageBytesMax bytes, for the
// handler's RecvMessage.
func (b *ByteStream) SendMessage(m []byte) error {
	framed, err := bulk.AppendMessage(nil, m)
	if err == nil {
		_, err = b.Write(framed)
	}
	return err
}

// RecvMessage reads one message that the handler wrote with SendMessage; errors
// are Read's, and io.ErrUnexpectedEOF within a message.
func (b *ByteStream) RecvMessage() ([]byte, error) { return bulk.ReadMessage(b) }

// CloseWrite says that nothing more will be written: the handler reads io.EOF.
func (b *ByteStream) CloseWrite() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended != nil {
		return b.ended
	}
	b.out.Finish()
	b.wake()
	return nil
}

// Close ends the stream: a handler that has not returned yet is cancelled. To let
// it finish, CloseWrite and Read to the end before. It may be called again.
func (b *ByteStream) Close() error {
	b.end(errStreamClosed)
	return nil
}

var errStreamClosed = wire.Errorf(wire.Code_CANCELLED, "the stream was closed on this side")

// end ends the stream on this side, and tells the owner if it is at hand; if it is
// not, the handler is ended when the client has been away for a while.
func (b *ByteStream) end(why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended == nil {
		b.ended = why
	}
	b.cancel()
	b.wake()
}

func (b *ByteStream) endErr() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ended
}

// wake tells all who wait that something has changed. b.mu is held.
func (b *ByteStream) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}
