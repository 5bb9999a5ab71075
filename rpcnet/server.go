package rpcnet

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"

	"github.com/quic-go/quic-go"
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// Server is the user plane of one node: it accepts clients' QUIC connections,
// and those of nodes that relay for clients, answers hellos, and gives each
// session stream to ServerConfig.Serve. It knows frames, not sessions.
type Server struct {
	cfg      ServerConfig
	log      *slog.Logger
	tr       Muxer
	listener MuxListener
	relays   *connPool

	// ctx ends when the server stops waiting for its streams.
	ctx     context.Context
	cancel  context.CancelFunc
	workers sync.WaitGroup // every goroutine of the server

	handshakes atomic.Int64
	counts     serverCounts

	mu         sync.Mutex
	closing    bool
	nextConnID uint64
	perIP      map[string]int
	connCount  int
	shakes     bucket
	places     places
	streams    map[*Stream]struct{}
	conns      map[uint64]*serverConn
	idle       chan struct{} // closed when closing and no stream is left
	closeOnce  sync.Once
	closeErr   error
}

// NewServer starts to listen. The caller then runs Serve.
func NewServer(cfg ServerConfig) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, log: cfg.Log,
		perIP: map[string]int{}, streams: map[*Stream]struct{}{}, conns: map[uint64]*serverConn{},
		idle: make(chan struct{}), shakes: bucket{perSecond: float64(cfg.HandshakesPerSecondMax)}, places: places{max: cfg.HandshakesWaitingMax},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.tr = CarrierOf(cfg.Network).Muxer(cfg.Packet, MuxerOptions{
		ConnContext:         s.admit,
		VerifySourceAddress: func(net.Addr) bool { return s.handshakes.Load() >= int64(cfg.HandshakesUnverifiedMax) },
		TokenKey:            cfg.TokenKey, ResetKey: cfg.ResetKey,
	})
	s.listener, err = s.tr.Listen(cfg.TLS, quicServerConfig(cfg))
	if err != nil {
		s.cancel()
		return nil, fmt.Errorf("rpcnet: cannot listen on %s: %w", cfg.Packet.LocalAddr(), err)
	}
	s.relays = newConnPool(poolConfig{
		transport: s.tr, clock: cfg.Clock, dialTimeout: cfg.RelayDialTimeout,
		quic: quicClientConfig(cfg.IdleTimeout), workers: &s.workers,
	})
	return s, nil
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// Addr is the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.cfg.Packet.LocalAddr() }

// Serve accepts connections until Close, with many goroutines; see acceptors.
func (s *Server) Serve() error {
	failed := make(chan error, acceptors)
	for range acceptors {
		go func() { failed <- s.accept() }()
	}
	var first error
	for range acceptors {
		if err := <-failed; first == nil {
			first = err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil
	}
	return fmt.Errorf("rpcnet: accepting on %s: %w", s.Addr(), first)
}

func (s *Server) accept() error {
	for {
		qc, err := s.listener.Accept(s.ctx)
		if err != nil {
			return err
		}
		if !s.accepted(qc) {
			_ = qc.CloseWithError(quic.ApplicationErrorCode(wire.Code_SHUTTING_DOWN), "shutting down")
		}
	}
}

// accepted serves a connection on a goroutine that Close waits for, unless closing.
func (s *Server) accepted(qc MuxConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leavePlace(handshakeOf(qc))
	if s.closing {
		return false
	}
	s.workers.Go(func() { s.serveConn(qc) })
	return true
}

// Conns counts the connections that are open, those in their handshake too.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connCount
}

// serveConn takes the streams of one connection. Only where the client resumes
// with 0-RTT are there any before its handshake is complete; see early.go.
func (s *Server) serveConn(qc MuxConn) {
	if qc.ConnectionState().Used0RTT {
		// Nobody may be there: it counts as a handshake under way until it is none.
		s.workers.Go(func() { s.awaitHandshake(qc) })
	} else if !s.awaitHandshake(qc) {
		return
	}
	c := s.newConn(qc)
	if c.relayed && !s.mayRelay(qc, qc.ConnectionState().TLS) {
		return
	}
	s.enter(c)
	defer s.gone(c)
	for {
		qs, err := qc.AcceptStream(s.ctx)
		if err != nil {
			// Gone already, or the server no longer waits for its streams.
			_ = qc.CloseWithError(quic.ApplicationErrorCode(wire.Code_SHUTTING_DOWN), "shutting down")
			return
		}
		st := newStream(s, c, qs)
		s.mu.Lock()
		closing := s.closing
		s.streams[st] = struct{}{}
		s.workers.Go(func() { s.serveStream(st) })
		s.mu.Unlock()
		if closing {
			st.Bye(wire.Code_SHUTTING_DOWN, "the node is shutting down; ask another one")
		}
	}
}

// mayRelay reports whether a connection for relaying is a node's, and closes it
// otherwise.
func (s *Server) mayRelay(qc MuxConn, cs tls.ConnectionState) bool {
	select {
	case <-qc.HandshakeComplete(): // before that the certificate is not verified
		role, name := s.cfg.Identify(cs)
		if role == relayRole {
			return true
		}
		s.log.Warn("a connection that may not relay was refused", "remote", qc.RemoteAddr().String(), "role", role, "name", name)
	default:
	}
	_ = qc.CloseWithError(quic.ApplicationErrorCode(wire.Code_NOT_AUTHORISED), "only a node's certificate may relay")
	return false
}

// serveStream reads the first frame, which says what the stream is for.
func (s *Server) serveStream(st *Stream) {
	defer s.forget(st)
	defer st.linger()
	t := s.cfg.Clock.AfterFunc(s.cfg.FirstFrameTimeout, func() {
		st.Bye(wire.Code_DEADLINE_EXCEEDED, "the stream's first frame did not come in time")
	})
	f, err := st.Recv()
	if err == nil && !mayBeEarly(f) {
		err = st.Confirmed()
	}
	t.Stop()
	if err != nil {
		return
	}
	switch k := f.Kind.(type) {
	case *wire.ClientFrame_Hello:
		if s.checkPeer(st, k.Hello.GetVersion(), k.Hello.GetClusterId(), wire.Code_WRONG_CLUSTER) {
			_ = st.out.send(helloFrame(s.cfg.Hello()), true)
		}
	case *wire.ClientFrame_Open:
		if s.checkPeer(st, k.Open.GetVersion(), k.Open.GetClusterId(), wire.Code_WRONG_CLUSTER) && s.carry(st, k.Open.GetSession()) {
			s.cfg.Serve(st, f)
		}
	case *wire.ClientFrame_Attach:
		foreign := wire.Code_WRONG_CLUSTER
		if len(k.Attach.GetToken()) > 0 {
			foreign = wire.Code_TOKEN_WRONG_CLUSTER
		}
		if s.checkPeer(st, k.Attach.GetVersion(), k.Attach.GetClusterId(), foreign) && s.carry(st, k.Attach.GetSession()) {
			s.cfg.Serve(st, f)
		}
	case *wire.ClientFrame_Stream:
		if s.checkPeer(st, k.Stream.GetVersion(), k.Stream.GetClusterId(), wire.Code_WRONG_CLUSTER) {
			s.cfg.Serve(st, f)
		}
	default:
		st.Bye(wire.Code_BAD_REQUEST, "a stream begins with hello, open, attach or stream")
	}
}

// helloFrame is what a client gets of ok: of more nodes than it would take, some.
func helloFrame(ok *wire.HelloOK) *wire.ServerFrame {
	f := &wire.ServerFrame{Kind: &wire.ServerFrame_Hello{Hello: ok}}
	for size := proto.Size(f); size > helloBytesMax && len(ok.Nodes) > 0; size = proto.Size(f) {
		rand.Shuffle(len(ok.Nodes), func(i, j int) { ok.Nodes[i], ok.Nodes[j] = ok.Nodes[j], ok.Nodes[i] })
		ok.Nodes = ok.Nodes[:len(ok.Nodes)*helloBytesMax/size*9/10]
	}
	return f
}

// checkPeer refuses another protocol version and another cluster, the latter as
// foreign.
func (s *Server) checkPeer(st *Stream, version uint32, cluster []byte, foreign wire.Code) bool {
	if version != wire.Version {
		st.Bye(wire.Code_WRONG_VERSION, fmt.Sprintf("this node speaks version %d, the client %d; use a client library of the cluster's release", wire.Version, version))
		return false
	}
	if own := s.cfg.Hello().GetClusterId(); len(cluster) > 0 && len(own) > 0 && !bytes.Equal(own, cluster) {
		st.Bye(foreign, "this node belongs to another cluster; check the addresses")
		return false
	}
	return true
}

func (s *Server) forget(st *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	delete(st.conn.sessions, st)
	if s.closing && len(s.streams) == 0 {
		select {
		case <-s.idle:
		default:
			close(s.idle)
		}
	}
}

// Close tells every stream SHUTTING_DOWN and waits until each client has taken
// that, or ctx ends; then it closes all connections and the packet socket, and
// waits for every goroutine. Only then is nothing lost: closing a connection
// discards what was not sent yet. Close may be called again.
func (s *Server) Close(ctx context.Context) error {
	s.closeOnce.Do(func() { s.closeErr = s.close(ctx) })
	return s.closeErr
}

func (s *Server) close(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	streams := make([]*Stream, 0, len(s.streams))
	for st := range s.streams {
		streams = append(streams, st)
	}
	if len(streams) == 0 {
		close(s.idle)
	}
	s.mu.Unlock()

	_ = s.listener.Close() // no new connections; the others live on
	for _, st := range streams {
		st.Bye(wire.Code_SHUTTING_DOWN, "the node is shutting down; ask another one")
	}
	select {
	case <-s.idle:
	case <-ctx.Done():
	}
	s.cancel() // every serveConn closes its connection
	s.relays.close()
	s.workers.Wait()
	return errors.Join(s.tr.Close(), s.cfg.Packet.Close())
}
