package rpcnet

import (
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// peerWriter is the one writer of a connection: frames that arrive while a
// write is under way go out together in the next one, since wake-ups and system
// calls, not bytes, are the cost.
type peerWriter struct {
	conn    net.Conn
	silence time.Duration
	fail    func(error)   // told once, when writing fails
	wake    chan struct{} // something is pending
	done    chan struct{} // closed by close
	large   atomic.Uint64 // writes that the far side took

	mu      sync.Mutex
	pending []byte
	closed  bool
}

func newPeerWriter(conn net.Conn, silence time.Duration, fail func(error)) *peerWriter {
	return &peerWriter{conn: conn, silence: silence, fail: fail,
		wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// send queues a frame; it never blocks. The error is errPeerNotSent after
// close, OVERLOADED when too much waits, FRAME_TOO_LARGE, or the encoder's. In
// all cases nothing was queued.
func (w *peerWriter) send(m proto.Message) error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return errPeerNotSent
	}
	if len(w.pending) > peerPendingBytesMax {
		w.mu.Unlock()
		return wire.Errorf(wire.Code_OVERLOADED, "%d bytes wait to be sent to %s; it does not keep up", peerPendingBytesMax, w.conn.RemoteAddr())
	}
	var err error
	w.pending, err = AppendFrame(w.pending, m, wire.PeerFrameBytesMax)
	w.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return nil
}

// close makes run return, once the write under way has. The caller closes the
// connection too.
func (w *peerWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.closed = true
		close(w.done)
	}
}

// run writes until close or an error. It is its caller's goroutine.
func (w *peerWriter) run() {
	var out []byte
	for {
		select {
		case <-w.done:
			return
		case <-w.wake:
		}
		// Others that are ready to run may have frames for it, too (see connWriter).
		runtime.Gosched()
		w.mu.Lock()
		out, w.pending = w.pending, out[:0]
		w.mu.Unlock()
		for rest := out; len(rest) > 0; {
			chunk := rest[:min(len(rest), peerChunkBytes)]
			_ = w.conn.SetWriteDeadline(seam.Deadline(peerWriteTimeout))
			if _, err := w.conn.Write(chunk); err != nil {
				w.fail(err)
				return
			}
			rest = rest[len(chunk):]
			if len(rest) > 0 {
				// A far side that takes this much is alive, though it may have
				// nothing to say before it has all. (Small writes prove nothing:
				// they end in this host's own buffers.)
				_ = w.conn.SetReadDeadline(seam.Deadline(w.silence))
				w.large.Add(1)
			}
		}
		if cap(out) > peerBufferKeepBytes {
			out = nil
		}
	}
}

// peerReader extends the read deadline before each read from the network.
type peerReader struct {
	conn    net.Conn
	silence time.Duration
	reads   atomic.Uint64 // that have ended
}

func (r *peerReader) Read(b []byte) (int, error) {
	_ = r.conn.SetReadDeadline(seam.Deadline(r.silence))
	n, err := r.conn.Read(b)
	r.reads.Add(1)
	return n, err
}
