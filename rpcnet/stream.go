package rpcnet

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// streamReadBytes is each stream's read buffer: enough for small frames to cost
// one read each, small enough for a hundred thousand streams.
const streamReadBytes = 1 << 10

// longAgo as a read deadline interrupts a read.
var longAgo = time.Unix(1, 0)

// Stream is the server's end of one session stream. Recv is for one goroutine at
// a time, and must have returned when Serve returns; everything else may be
// called from anywhere.
type Stream struct {
	srv  *Server
	conn *serverConn
	qs   MuxStream
	out  sendQueue
	r    *bufio.Reader
	buf  []byte
	// begun: the first frame was received. Recv's own.
	begun bool

	ctx    context.Context
	cancel context.CancelFunc

	mu        sync.Mutex
	ended     bool // the last frame has been queued
	lingering bool // Serve has returned
}

func newStream(s *Server, c *serverConn, qs MuxStream) *Stream {
	st := &Stream{srv: s, conn: c, qs: qs, r: bufio.NewReaderSize(qs, streamReadBytes)}
	st.out = sendQueue{qs: qs, conn: &c.writer, limit: s.cfg.QueueBytesMax, workers: &s.workers}
	st.ctx, st.cancel = context.WithCancel(c.qc.Context())
	return st
}

// Recv returns the client's next frame, checked. It returns io.EOF once the
// client has finished or this side has sent its last frame. A frame that is not
// one answers the client with Bye, and returns the *wire.Error that was sent.
func (st *Stream) Recv() (*wire.ClientFrame, error) {
	b, err := st.recvRaw()
	if err != nil {
		return nil, err
	}
	f, err := decodeClientFrame(b)
	if err != nil {
		st.Bye(wire.CodeOf(err), err.Error())
		return nil, err
	}
	return f, nil
}

// recvRaw returns the next frame's body, valid until the next call.
func (st *Stream) recvRaw() ([]byte, error) {
	if st.isEnded() {
		return nil, io.EOF
	}
	if cap(st.buf) > frameStepBytes { // one large frame must not pin its memory
		st.buf = nil
	}
	b, err := ReadFrame(st.r, wire.FrameBytesMax, st.buf)
	if err == nil {
		st.buf = b
		if st.begun {
			err = st.Confirmed() // what follows the first frame is for real, always
		}
		st.begun = true
		return b, err
	}
	switch {
	case st.isEnded(), err == io.EOF:
		return nil, io.EOF
	case errors.Is(err, &wire.Error{Code: wire.Code_FRAME_TOO_LARGE}):
		st.Bye(wire.Code_FRAME_TOO_LARGE, err.Error())
		return nil, err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "the client sent no whole frame in time")
	}
	return nil, streamErr(err)
}

// Send queues a frame, never blocks, and keeps nothing of f. Redirect, Bounced
// and Bye end the stream, as Bye does. Past ServerConfig.QueueBytesMax the
// client is not reading: the stream is reset with OVERLOADED, and that is the
// error.
func (st *Stream) Send(f *wire.ServerFrame) error {
	last := isLast(f)
	if last {
		st.mu.Lock()
		defer st.mu.Unlock()
		if st.ended {
			return errFinished
		}
	}
	err := st.out.send(f, last)
	if err != nil && wire.CodeOf(err) == wire.Code_OVERLOADED {
		st.cancel()
	}
	if last {
		st.endLocked()
	}
	return err
}

// sendRaw is Send for an encoded frame with its header.
func (st *Stream) sendRaw(b []byte, last bool) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.ended {
		return errFinished
	}
	err := st.out.sendRaw(b, last)
	if last {
		st.endLocked()
	}
	return err
}

// Bye sends the stream's last frame and ends it; only the first call counts. It
// does not wait: the server keeps the stream until the client has taken the
// frame, at most for ServerConfig.ByeTimeout.
func (st *Stream) Bye(code wire.Code, message string) {
	st.ByeFrame(&wire.Bye{Code: code, Message: message})
}

// ByeFrame is Bye with an epoch or a hint when to come back.
func (st *Stream) ByeFrame(bye *wire.Bye) {
	_ = st.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Bye{Bye: bye}})
}

// finish ends the stream without a last frame, because the client ended first.
func (st *Stream) finish() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.ended {
		st.out.finish()
		st.endLocked()
	}
}

// endLocked needs st.mu. It wakes a Recv that waits for the client.
func (st *Stream) endLocked() {
	st.ended = true
	if !st.lingering {
		_ = st.qs.SetReadDeadline(longAgo)
	}
	st.cancel()
}

func (st *Stream) isEnded() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.ended
}

// linger finishes the stream after Serve. Closing a connection discards what is
// not yet sent, so a stream counts as open until the client, having read the
// last frame, has finished its side too: that is the acknowledgement.
func (st *Stream) linger() {
	st.mu.Lock()
	st.lingering = true
	if !st.ended {
		st.ended = true
		st.out.finish()
	}
	_ = st.qs.SetReadDeadline(time.Time{})
	st.mu.Unlock()
	st.cancel()
	defer st.resetLate()()
	if n, err := io.Copy(io.Discard, st.qs); err != nil {
		st.srv.log.Debug("a stream did not end cleanly", slog.Int64("discarded", n), slog.Any("err", err))
	}
}

// resetLate gives the stream up if the client does not take its end, which loses
// what it has not read: when the server closes after one ByeTimeout, else after
// byeTimeouts of them, as a client in a crowd may be late, and would come again.
// The result stops that.
func (st *Stream) resetLate() (stop func()) {
	var mu sync.Mutex
	var timer seam.Timer
	waited, over := 0, false
	var arm func()
	arm = func() {
		timer = st.srv.cfg.Clock.AfterFunc(st.srv.cfg.ByeTimeout, func() {
			mu.Lock()
			defer mu.Unlock()
			switch waited++; {
			case over:
			case waited < byeTimeouts && !st.srv.isClosing():
				arm()
			default:
				st.out.reset(wire.Code_DEADLINE_EXCEEDED)
			}
		})
	}
	mu.Lock()
	defer mu.Unlock()
	arm()
	return func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
		timer.Stop()
	}
}

// Context ends when nothing can be sent on the stream any more: after the last
// frame, when the connection is lost, and when Serve has returned.
func (st *Stream) Context() context.Context { return st.ctx }

// Relayed reports whether another node, not the client itself, is at the far
// end. That node has proved itself with its certificate.
func (st *Stream) Relayed() bool { return st.conn.relayed }

// ConnID numbers the connection, uniquely in this server.
func (st *Stream) ConnID() uint64 { return st.conn.id }

// Remote is the far end's address, for people.
func (st *Stream) Remote() string { return st.conn.qc.RemoteAddr().String() }

// Connection returns what secures the connection, and what QUIC measured on it so
// far. It names no client: that is the session's affair.
func (st *Stream) Connection() *wire.Connection {
	c := st.conn.security(st.srv.cfg.Identify)
	return &wire.Connection{
		Alpn: c.alpn, TlsVersion: c.version, CipherSuite: c.suite, Identity: c.identity, Transport: transportOf(st.conn.qc),
	}
}
