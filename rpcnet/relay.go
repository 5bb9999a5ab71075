package rpcnet

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/quic-go/quic-go"
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// Relay forwards the stream st, which began with first, to the user port
// to (host:port) of another node, over a connection that all relayed sessions to
// that node share, until either side ends. conf must offer ALPNRelay and this
// node's certificate.
//
// It returns nil when the client ended, or when the node's last frame (which may
// be a Redirect or a Bye) was passed on. Otherwise the node could not be reached
// or was lost: the client has then been told UNAVAILABLE, and the same *wire.Error
// is returned. Frames are passed on as they are, in order; where the owner does not
// read, the client is not read either. RETRY instead of UNAVAILABLE: a client that
// is called to a move's target was cut off before that had answered; the connection may
// have been to a former process. (What else a stream begins with may have had an effect.)
func (s *Server) Relay(ctx context.Context, st *Stream, first *wire.ClientFrame, to string, conf *tls.Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(st.Context(), cancel)()
	qs, pc, err := s.relays.open(ctx, to, conf)
	if err != nil {
		err = wire.Errorf(wire.Code_UNAVAILABLE, "cannot reach the owner at %s: %v", to, err)
		st.Bye(wire.Code_UNAVAILABLE, err.Error())
		return err
	}
	defer s.relays.release(pc)

	up := &sendQueue{qs: qs, conn: &pc.writer, limit: s.cfg.QueueBytesMax, workers: &s.workers}
	defer qs.CancelRead(quic.StreamErrorCode(wire.Code_MOVED)) // a no-op once it was read to its end
	if err := up.send(forwarded(first), false); err != nil {
		st.Bye(wire.Code_UNAVAILABLE, err.Error())
		return err
	}
	// Whatever ends the client's stream ends this one too.
	stop := context.AfterFunc(ctx, func() { up.reset(wire.Code_MOVED) })

	var clientDone atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		relayUp(st, up)
		clientDone.Store(true)
	})
	err = relayDown(ctx, qs, st, first.GetAttach().GetMigration() != 0)
	if err == nil {
		stop() // the client reads the last frame first, and then finishes
	}
	if err != nil && clientDone.Load() {
		err = nil
	}
	if err != nil {
		st.Bye(wire.CodeOf(err), err.Error())
		up.reset(wire.Code_UNAVAILABLE)
	} else {
		st.finish()
	}
	wg.Wait()
	return err
}

// forwarded is a relayed stream's first frame as the owner gets it.
func forwarded(first *wire.ClientFrame) *wire.ClientFrame {
	f := proto.Clone(first).(*wire.ClientFrame)
	switch k := f.GetKind().(type) {
	case *wire.ClientFrame_Attach:
		k.Attach.Relay, k.Attach.RelayTo = false, ""
	case *wire.ClientFrame_Stream:
		k.Stream.Relay, k.Stream.RelayTo = false, ""
	}
	return f
}

// relayUp passes the client's frames on until there are no more.
func relayUp(st *Stream, up *sendQueue) {
	var frame []byte
	for {
		b, err := st.recvRaw()
		if err == io.EOF {
			up.finish()
			return
		}
		if err != nil {
			up.reset(wire.Code_UNAVAILABLE)
			return
		}
		frame = binary.BigEndian.AppendUint32(frame[:0], uint32(len(b)))
		frame = append(frame, b...)
		if room := up.emptied(); room != nil {
			<-room
		}
		if up.sendRaw(frame, false) != nil {
			return
		}
		if cap(frame) > frameStepBytes {
			frame = nil
		}
	}
}

// relayDown passes the node's frames on, up to the last. retry: where none comes the
// client is to ask again.
func relayDown(ctx context.Context, qs MuxStream, st *Stream, retry bool) error {
	r := bufio.NewReaderSize(qs, streamReadBytes)
	var buf, frame []byte
	for ; ; retry = false {
		b, err := ReadFrame(r, wire.FrameBytesMax, buf)
		if err != nil {
			if ctx.Err() != nil || st.isEnded() {
				return nil // the client's side ended first
			}
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // a stream ends with a last frame
			}
			code := wire.Code_UNAVAILABLE
			if retry {
				code = wire.Code_RETRY
			}
			return wire.Errorf(code, "the owner's end of the relay was lost: %v", err)
		}
		buf = b
		frame = binary.BigEndian.AppendUint32(frame[:0], uint32(len(b)))
		frame = append(frame, b...)
		// A client that does not read is dropped for it. If it were waited for, what lies
		// unread would take the room of all that share the connection to the owner.
		last := endsStream(b)
		if st.sendRaw(frame, last) != nil || last {
			return nil
		}
		if cap(buf) > frameStepBytes {
			buf, frame = nil, nil
		}
	}
}
