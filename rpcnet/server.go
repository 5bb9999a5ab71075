package rpcnet

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

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
		idle: make(chan struct{}), shakes: bucket{perSecond: float64(cfg.HandshakesPerSecondMax)},
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
		quic: quicClientConfig(cfg.IdleTimeout, cfg.IdleTimeout*3/10), workers: &s.workers,
	})
	return s, nil
}

// Addr is the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.cfg.Packet.LocalAddr() }

// Serve accepts connections until Close. It does nothing else, because beyond
// 32 connections that wait to be accepted QUIC refuses further ones.
func (s *Server) Serve() error {
	for {
		qc, err := s.listener.Accept(s.ctx)
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.closing {
				return nil
			}
			return fmt.Errorf("rpcnet: accepting on %s: %w", s.Addr(), err)
		}
		if !s.start(func() { s.serveConn(qc) }) {
			_ = qc.CloseWithError(quic.ApplicationErrorCode(wire.Code_SHUTTING_DOWN), "shutting down")
		}
	}
}

// start runs fn on a goroutine that Close waits for, unless closing.
func (s *Server) start(fn func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.workers.Go(fn)
	return true
}

// admit counts connections before their handshake and refuses those beyond the
// limits, which costs neither a key exchange nor a goroutine.
func (s *Server) admit(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	ip := info.RemoteAddr.String()
	if host, _, err := net.SplitHostPort(ip); err == nil {
		ip = host
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || s.connCount >= s.cfg.ConnsMax || s.perIP[ip] >= s.cfg.ConnsPerIPMax ||
		!s.shakes.take(s.cfg.Clock.Now()) {
		s.counts.refused.Add(1)
		return nil, errors.New("too many connections")
	}
	s.connCount++
	s.perIP[ip]++
	if info.AddrVerified {
		s.counts.verified.Add(1)
	}
	s.handshakes.Add(1)
	shaking := new(sync.Once)
	context.AfterFunc(ctx, func() {
		s.handshakeDone(shaking)
		if e, ok := errors.AsType[*quic.TransportError](context.Cause(ctx)); ok && !e.Remote && e.ErrorCode == quic.ConnectionRefused {
			s.counts.overflown.Add(1)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.connCount--
		if s.perIP[ip]--; s.perIP[ip] == 0 {
			delete(s.perIP, ip)
		}
	})
	return context.WithValue(ctx, handshakeKey{}, shaking), nil
}

// bucket lets so many a second pass, after a burst of as many.
type bucket struct {
	perSecond, held float64
	at              time.Duration
	begun           bool
}

func (b *bucket) take(now time.Duration) bool {
	if !b.begun {
		b.begun, b.held, b.at = true, b.perSecond, now
	}
	b.held = min(b.perSecond, b.held+b.perSecond*max(0, now-b.at).Seconds())
	b.at = now
	if b.held < 1 {
		return false
	}
	b.held--
	return true
}

// Conns counts the connections that are open, those in their handshake too.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connCount
}

// handshakeKey finds, in a connection's context, what counts its handshake off.
type handshakeKey struct{}

func (s *Server) handshakeDone(once *sync.Once) {
	once.Do(func() { s.handshakes.Add(-1) })
}

// serveConn takes the streams of one connection. Only where the client resumes
// with 0-RTT are there any before its handshake is complete; see early.go.
func (s *Server) serveConn(qc MuxConn) {
	if qc.ConnectionState().Used0RTT {
		// Nobody may be there: it counts as a handshake under way until it is none.
		s.start(func() { s.awaitHandshake(qc) })
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
			ok := s.cfg.Hello()
			_ = st.out.send(&wire.ServerFrame{Kind: &wire.ServerFrame_Hello{Hello: ok}}, true)
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
