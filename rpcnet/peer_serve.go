package rpcnet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// peerReadBytes is the size of a connection's read buffer.
const peerReadBytes = 32 << 10

// Serve answers the calls of one connection that came in, until it ends; it is
// the handler for Mgmt.Handle. c is a SecureConn after its handshake, and is
// closed when Serve returns. By then the handlers of its calls have returned.
func (p *Peers) Serve(c net.Conn) {
	defer peerCloseSocket(c)
	t, ok := c.(SecureConn)
	if !ok {
		// Nobody is let in who did not prove who they are.
		p.cfg.Log.Error("a connection without TLS was handed to the peer service")
		return
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.served[c] = struct{}{}
	p.wg.Add(1)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.served, c)
		p.mu.Unlock()
		p.wg.Done()
	}()
	role, name := p.cfg.Identify(t.ConnectionState())
	p.serve(c, role, name)
}

// serve is Serve for a caller whose certificate said role and name.
func (p *Peers) serve(c net.Conn, role, name string) {
	_ = c.SetDeadline(seam.Deadline(p.cfg.DialTimeout))
	theirs, err := p.welcome(c)
	if err != nil {
		p.cfg.Log.Warn("a peer was refused", "remote", c.RemoteAddr(), "role", role, "name", name, "err", err)
		return
	}
	_ = c.SetDeadline(time.Time{})
	from := Caller{Node: theirs.Node, Role: role, Name: name}
	if role == "admin" {
		from.Node = "" // an operator is no node, whatever it says
	}
	s := &peerServer{
		peers: p, conn: c, from: from, theirs: theirs,
		log:   p.cfg.Log.With("remote", c.RemoteAddr().String(), "name", name),
		calls: map[uint64]context.CancelFunc{},
	}
	s.ctx, s.cancel = context.WithCancel(p.ctx)
	s.writer = newPeerWriter(c, p.silence(), s.fail)
	s.run()
}

// welcome exchanges hellos. The answering side speaks second, so that its
// verdict can be in its hello.
func (p *Peers) welcome(c net.Conn) (*wire.PeerHello, error) {
	theirs, err := peerReadHello(c)
	if err != nil {
		return nil, err
	}
	ours := p.hello()
	verdict := p.judge(theirs)
	if verdict != nil {
		ours.Refused, ours.Message = wire.CodeOf(verdict), peerText(verdict.Error())
	}
	if err := peerSendHello(c, ours); err != nil {
		return nil, err
	}
	return theirs, verdict
}

// peerServer is the answering side of a connection.
type peerServer struct {
	peers  *Peers
	conn   net.Conn
	from   Caller
	theirs *wire.PeerHello
	log    *slog.Logger
	writer *peerWriter
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc
	wg     sync.WaitGroup // of the writer and of calls

	mu    sync.Mutex
	calls map[uint64]context.CancelFunc // in flight
	bytes int                           // of their bodies
}

// run reads calls until the connection ends, then waits for those in flight.
func (s *peerServer) run() {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		s.writer.run()
	}()
	err := s.read()
	s.fail(err)
	s.wg.Wait()
}

// fail ends the connection.
func (s *peerServer) fail(err error) {
	if s.ctx.Err() == nil {
		s.log.Debug("a peer connection ended", "err", err)
	}
	s.cancel()
	s.writer.close()
	peerCloseSocket(s.conn)
}

func (s *peerServer) read() error {
	r := bufio.NewReaderSize(&peerReader{conn: s.conn, silence: s.peers.silence()}, peerReadBytes)
	var buf []byte
	for {
		var err error
		if buf, err = ReadFrame(r, wire.PeerFrameBytesMax, buf); err != nil {
			return err
		}
		f := &wire.PeerFrame{}
		if err := proto.Unmarshal(buf, f); err != nil {
			return wire.Errorf(wire.Code_BAD_REQUEST, "a frame cannot be read: %v", err)
		}
		if cap(buf) > peerBufferKeepBytes {
			buf = nil
		}
		if err := s.handle(f); err != nil {
			return err
		}
	}
}

// handle takes one frame; an error ends the connection.
func (s *peerServer) handle(f *wire.PeerFrame) error {
	switch k := f.Kind.(type) {
	case *wire.PeerFrame_Call:
		if f.Id == peerPing {
			return s.answer(f.Id, &wire.PeerAnswer{})
		}
		// Our own id may have become known since the hello.
		if err := s.peers.sameCluster(s.theirs.ClusterId); err != nil {
			return s.refuse(f.Id, err)
		}
		return s.begin(f.Id, k.Call)
	case *wire.PeerFrame_Cancel:
		s.mu.Lock()
		cancel := s.calls[f.Id]
		s.mu.Unlock()
		if cancel != nil {
			cancel()
		}
		return nil
	}
	return wire.Errorf(wire.Code_BAD_REQUEST, "a frame that is neither call nor cancel")
}

// begin starts a call's goroutine, or refuses it without running it.
func (s *peerServer) begin(id uint64, call *wire.PeerCall) error {
	fn, ok := s.peers.cfg.Services.find(call.Method)
	if !ok {
		return s.refuse(id, wire.Errorf(wire.Code_UNKNOWN_METHOD, "%q is not served here; the node may still be starting, or be of another version", call.Method))
	}
	// A call that states no time, or an absurd one, ends with its caller.
	limit := peerCallTimeMax
	if us := call.TimeoutUs; us > 0 && us < uint64(peerCallTimeMax.Microseconds()) {
		limit = time.Duration(us) * time.Microsecond
	}
	s.mu.Lock()
	if s.calls[id] != nil {
		s.mu.Unlock()
		return wire.Errorf(wire.Code_BAD_REQUEST, "call %d came twice", id)
	}
	if len(s.calls) >= s.peers.cfg.CallsMax || s.bytes+len(call.Body) > peerInFlightBytesMax {
		n := len(s.calls)
		s.mu.Unlock()
		return s.refuse(id, wire.Errorf(wire.Code_OVERLOADED, "%d calls of this connection are in flight already; ask again later", n))
	}
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	s.calls[id] = cancel
	s.bytes += len(call.Body)
	s.mu.Unlock()
	s.wg.Add(1)
	runs := s.peers.jobs.Go(func() {
		defer s.wg.Done()
		defer cancel()
		body, err := s.invoke(ctx, fn, call)
		s.mu.Lock()
		delete(s.calls, id)
		s.bytes -= len(call.Body)
		s.mu.Unlock()
		if err != nil {
			err = s.refuse(id, err)
		} else {
			err = s.answer(id, &wire.PeerAnswer{Body: body})
		}
		if err != nil {
			s.fail(err)
		}
	})
	if !runs {
		s.wg.Done()
		cancel()
		return wire.Errorf(wire.Code_SHUTTING_DOWN, "this node is shutting down")
	}
	return nil
}

// invoke runs the handler. A panic is the call's failure, not the node's: one
// poisonous call, retried from node to node, must not stop them all.
func (s *peerServer) invoke(ctx context.Context, fn peerHandler, call *wire.PeerCall) (body []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			s.log.Error("a call panicked", "method", call.Method, "panic", r, "stack", string(debug.Stack()))
			err = wire.Errorf(wire.Code_INTERNAL, "%q panicked: %v", call.Method, r)
		}
	}()
	return fn(ctx, s.from, call.Body)
}

// refuse answers with an error.
func (s *peerServer) refuse(id uint64, err error) error {
	a := &wire.PeerAnswer{Code: wire.CodeOf(err), Message: err.Error()}
	var typed *wire.Error
	switch {
	case errors.As(err, &typed):
		a.Message, a.Leader = typed.Message, peerText(typed.Leader)
	case errors.Is(err, context.DeadlineExceeded):
		a.Code = wire.Code_DEADLINE_EXCEEDED
	case errors.Is(err, context.Canceled):
		a.Code = wire.Code_UNAVAILABLE
	}
	if a.Code == wire.Code_OK {
		a.Code = wire.Code_INTERNAL
	}
	a.Message = peerText(a.Message)
	return s.answer(id, a)
}

// answer queues an answer. An error means that the far side does not read.
func (s *peerServer) answer(id uint64, a *wire.PeerAnswer) error {
	err := s.writer.send(&wire.PeerFrame{Id: id, Kind: &wire.PeerFrame_Answer{Answer: a}})
	if wire.CodeOf(err) == wire.Code_FRAME_TOO_LARGE {
		return s.writer.send(&wire.PeerFrame{Id: id, Kind: &wire.PeerFrame_Answer{Answer: &wire.PeerAnswer{
			Code:    wire.Code_REPLY_TOO_LARGE,
			Message: fmt.Sprintf("the answer has %d bytes, which no frame holds; ask for less", len(a.Body)),
		}}})
	}
	return err
}

// peerText makes a text fit for the wire: valid UTF-8, bounded.
func peerText(s string) string {
	if len(s) > peerMessageBytesMax {
		s = s[:peerMessageBytesMax]
	}
	return strings.ToValidUTF8(s, "?")
}
