package worker

import (
	"bytes"
	"context"

	"github.com/baton-cluster/baton/bulk"
	"github.com/baton-cluster/baton/wire"
)

// StreamHandler serves one byte stream, beside the session's calls and other
// streams, until it returns. What it returns ends the stream: nil is the client's
// io.EOF, an error is the client's error, both behind the last byte written. It
// must not use st afterwards.
//
// When the stream's Context ends it must return soon. If the context's cause is
// STREAM_MOVED the session is about to move, and a resumable handler that returns
// that error (as its Read and Write do) is started anew, at the target or, if the
// move is off, here.
type StreamHandler func(st *ServerStream) error

// StreamOption is an option of HandleStream.
type StreamOption func(*streamMethod)

// Resumable makes a method's streams go on across planned moves. Its handler must
// acknowledge what it has dealt with (Ack), for its successor reads on from there,
// with the cookie that went with it. Without this option what is read counts as
// acknowledged, and a move ends the stream with STREAM_MOVED.
func Resumable() StreamOption { return func(m *streamMethod) { m.resumable = true } }

type streamMethod struct {
	handler   StreamHandler
	resumable bool
}

// HandleStream registers a method that clients open byte streams to. It panics if
// the method is taken.
func (m *Mux) HandleStream(method string, h StreamHandler, opts ...StreamOption) {
	m.free(method)
	sm := &streamMethod{handler: h}
	for _, o := range opts {
		o(sm)
	}
	m.streams[method] = sm
}

// ServerStream is one run of a handler on a byte stream. Read is for one goroutine
// at a time, and so is Write.
type ServerStream struct {
	st     *stream
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the handler has returned
	cookie []byte
	again  bool
}

// Context ends when the handler must return. Its cause (context.Cause) is a typed
// error: STREAM_MOVED, STREAM_LOST, CANCELLED by the client, SHUTTING_DOWN,
// DISPLACED, or what ended the session.
func (r *ServerStream) Context() context.Context { return r.ctx }

// Session is the session's id.
func (r *ServerStream) Session() string { return r.st.session }

// Fence names the stream for other systems: the epoch rises with each owner, and
// Seq is the stream's number, which is its client's own.
func (r *ServerStream) Fence() Fence {
	return Fence{Session: r.st.session, Epoch: r.st.epoch, Client: r.st.key.client, Seq: r.st.key.id}
}

// Method is the method that the stream was opened with.
func (r *ServerStream) Method() string { return r.st.method }

// Argument is what the client opened the stream with.
func (r *ServerStream) Argument() []byte { return bytes.Clone(r.st.argument) }

// Resumed reports whether another run came before this one, here or on another
// node, and returns the cookie of its last Ack.
func (r *ServerStream) Resumed() (cookie []byte, again bool) { return bytes.Clone(r.cookie), r.again }

// ReadOffset is how many bytes from the client have been read since the stream
// began: a resumed run begins at what was acknowledged.
func (r *ServerStream) ReadOffset() uint64 {
	r.st.mu.Lock()
	defer r.st.mu.Unlock()
	return r.st.in.ReadTo()
}

// WriteOffset is how many bytes have been written to the client since the stream
// began. A resumed run goes on behind the last byte that the one before it wrote:
// those on their way are delivered.
func (r *ServerStream) WriteOffset() uint64 {
	r.st.mu.Lock()
	defer r.st.mu.Unlock()
	return r.st.out.End()
}

// Read reads from the client; io.EOF when the client has closed its side. Other
// errors are the Context's cause, or BAD_REQUEST from a resumable handler that
// reads on without acknowledging anything.
func (r *ServerStream) Read(p []byte) (n int, err error) {
	err = r.await(func(st *stream) (done bool, err error) {
		if !st.in.Readable() && len(p) > 0 {
			return false, nil
		}
		if n, err = st.in.Read(p); !st.resumable {
			_ = st.in.Ack(st.in.ReadTo())
			st.sendAck()
		}
		return true, err
	})
	return n, err
}

// Write writes to the client, and blocks while the client is a whole window behind.
// It returns how much of p was taken: that will be delivered, also across a move.
func (r *ServerStream) Write(p []byte) (n int, err error) {
	err = r.await(func(st *stream) (bool, error) {
		n += st.out.Write(p[n:])
		st.pump()
		return n == len(p), nil
	})
	return n, err
}

// SendMessage writes one message, at most bulk.MessageBytesMax bytes, as a whole:
// where an error is returned, nothing of it was written. RecvMessage at the client
// reads it.
func (r *ServerStream) SendMessage(m []byte) error {
	b, err := bulk.AppendMessage(nil, m)
	if err != nil {
		return err
	}
	return r.await(func(st *stream) (bool, error) {
		if st.out.Room() < len(b) {
			return false, nil
		}
		st.out.Write(b)
		st.pump()
		return true, nil
	})
}

// RecvMessage reads one message that the client sent with SendMessage. It is Ack
// that says that it was dealt with.
func (r *ServerStream) RecvMessage() ([]byte, error) { return bulk.ReadMessage(r) }

// Ack says that no byte below the offset to is needed again, and leaves cookie, of
// at most wire.StreamCookieBytesMax bytes, for whoever reads on from there after a
// move. The client may not be more than bulk.WindowBytes ahead of it: acknowledge
// at least as often. Errors: BAD_REQUEST beyond ReadOffset, VALUE_TOO_LARGE, or the
// Context's cause if the stream has ended. While the session is about to move
// (STREAM_MOVED) a last Ack still counts: it is what the successor goes by.
func (r *ServerStream) Ack(to uint64, cookie []byte) error {
	if len(cookie) > wire.StreamCookieBytesMax {
		return wire.Errorf(wire.Code_VALUE_TOO_LARGE, "a cookie has at most %d bytes, this one %d", wire.StreamCookieBytesMax, len(cookie))
	}
	st := r.st
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.run != r || st.gone {
		return r.cause()
	}
	if err := st.in.Ack(to); err != nil {
		return err
	}
	st.cookie = bytes.Clone(cookie)
	st.sendAck()
	return nil
}

// await runs step, under the stream's mutex, whenever the stream has changed, until
// it is done or the handler must return.
func (r *ServerStream) await(step func(*stream) (done bool, err error)) error {
	st := r.st
	for {
		st.mu.Lock()
		if st.run != r || r.ctx.Err() != nil {
			st.mu.Unlock()
			return r.cause()
		}
		done, err := step(st)
		changed := st.changed.wait()
		st.mu.Unlock()
		if done {
			return err
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
		}
	}
}

// cause is why the handler must return.
func (r *ServerStream) cause() error {
	if err := context.Cause(r.ctx); err != nil {
		return err
	}
	return wire.Errorf(wire.Code_STREAM_ENDED, "the handler has returned")
}
