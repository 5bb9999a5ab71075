package rpcnet

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// Defaults and limits of the management port.
const (
	// mgmtHandshakeTimeout is generous for one round trip and two signatures.
	mgmtHandshakeTimeout = 5 * time.Second
	// mgmtConnsMax bounds established connections: each node of a cluster of
	// hundreds keeps a few to each server.
	mgmtConnsMax = 4096
	// mgmtHandshakesMax bounds connections that have proved nothing yet.
	// Strangers who fill it delay newcomers by a handshake's time, and never
	// take a place from an established peer.
	mgmtHandshakesMax = 256
	// mgmtAcceptPause is the wait after a failed accept (out of descriptors).
	mgmtAcceptPause = 50 * time.Millisecond
)

// mgmtKeepAlive finds peers that vanished without a word, for protocols that
// have no pings of their own.
var mgmtKeepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 4}

// MgmtConfig configures the management port. Zero durations and counts mean the
// defaults.
type MgmtConfig struct {
	Network seam.Network
	Clock   seam.Clock
	// Addr is host:port to listen on.
	Addr string
	// TLS requires and verifies the other end's certificate, and names the
	// protocols offered in NextProtos.
	TLS *tls.Config
	Log *slog.Logger // nil: silent
	// HandshakeTimeout bounds the time from accept to an established
	// connection (5 s).
	HandshakeTimeout time.Duration
	// ConnsMax bounds established connections (4096), HandshakesMax those
	// before (256). Past either, a new connection is closed at once.
	ConnsMax      int
	HandshakesMax int
}

// Mgmt owns the one TLS listener on the management port and hands connections
// out by ALPN. It is the port's gate: it bounds time and number of those who
// have not proved who they are, and nobody else sees their bytes.
type Mgmt struct {
	cfg    MgmtConfig
	ln     net.Listener
	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // of Serve and all connections' goroutines

	mu          sync.Mutex
	handlers    map[string]func(net.Conn)
	conns       map[*mgmtConn]struct{}
	handshaking int // of conns, those without a finished handshake
	closed      bool
}

// ListenMgmt binds the port. Serve must follow. The error is a *wire.Error,
// UNAVAILABLE where the port is taken or cannot be bound.
func ListenMgmt(cfg MgmtConfig) (*Mgmt, error) {
	if cfg.TLS == nil || len(cfg.TLS.NextProtos) == 0 {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the management port needs a TLS configuration that names its protocols")
	}
	if cfg.Clock == nil {
		cfg.Clock = seam.OSClock{}
	}
	if cfg.Network == nil {
		cfg.Network = seam.OSNetwork{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.HandshakeTimeout <= 0 {
		cfg.HandshakeTimeout = mgmtHandshakeTimeout
	}
	if cfg.ConnsMax <= 0 {
		cfg.ConnsMax = mgmtConnsMax
	}
	if cfg.HandshakesMax <= 0 {
		cfg.HandshakesMax = mgmtHandshakesMax
	}
	ln, err := cfg.Network.Listen(cfg.Addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "the management port %s is in use by another process; stop that one or choose another port", cfg.Addr)
	}
	if err != nil {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "cannot listen on the management port %s: %v", cfg.Addr, err)
	}
	m := &Mgmt{cfg: cfg, ln: ln, handlers: map[string]func(net.Conn){}, conns: map[*mgmtConn]struct{}{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m, nil
}

// Addr is the bound address.
func (m *Mgmt) Addr() net.Addr { return m.ln.Addr() }

// Handle names who gets the connections of one protocol. fn gets a SecureConn
// after its handshake, on a goroutine of its own, and owns it from then on: it
// may keep it after it returns. Call it before Serve.
func (m *Mgmt) Handle(alpn string, fn func(net.Conn)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handlers[alpn] = fn
}

// Serve accepts until Close, and then returns nil.
func (m *Mgmt) Serve() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.wg.Add(1)
	m.mu.Unlock()
	defer m.wg.Done()
	for {
		raw, err := m.ln.Accept()
		if err == nil {
			m.admit(raw)
			continue
		}
		if m.ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return wire.Errorf(wire.Code_UNAVAILABLE, "the management port's listener broke: %v", err)
		}
		m.cfg.Log.Warn("cannot accept on the management port", "err", err)
		if seam.Sleep(m.ctx, m.cfg.Clock, mgmtAcceptPause) != nil {
			return nil
		}
	}
}

// Close stops listening, closes every connection that is still open, and waits
// for the goroutines of all handlers. It may be called repeatedly.
func (m *Mgmt) Close() error {
	m.mu.Lock()
	m.closed = true
	conns := make([]*mgmtConn, 0, len(m.conns))
	for c := range m.conns {
		conns = append(conns, c)
	}
	m.mu.Unlock()
	m.cancel()
	_ = m.ln.Close()
	for _, c := range conns {
		_ = c.Close()
	}
	m.wg.Wait()
	return nil
}

// admit starts a connection's goroutine, unless there are too many.
func (m *Mgmt) admit(raw net.Conn) {
	if tcp, ok := raw.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(mgmtKeepAlive)
	}
	c := &mgmtConn{Conn: raw, mgmt: m}
	m.mu.Lock()
	full := m.handshaking >= m.cfg.HandshakesMax
	if m.closed || full {
		m.mu.Unlock()
		_ = raw.Close()
		if full {
			m.cfg.Log.Debug("too many unfinished handshakes on the management port", "remote", raw.RemoteAddr())
		}
		return
	}
	m.conns[c] = struct{}{}
	m.handshaking++
	m.wg.Add(1)
	m.mu.Unlock()
	go func() {
		defer m.wg.Done()
		m.handshake(c)
	}()
}

// handshake runs on the connection's goroutine.
func (m *Mgmt) handshake(c *mgmtConn) {
	t := CarrierOf(m.cfg.Network).SecureServer(c, m.cfg.TLS)
	// One deadline for all of it: a peer that trickles bytes gains nothing.
	_ = c.SetDeadline(seam.Deadline(m.cfg.HandshakeTimeout))
	err := t.HandshakeContext(m.ctx)
	fn, ok := m.established(c, t.ConnectionState().NegotiatedProtocol)
	if err != nil || !ok {
		// The socket is closed, not the TLS connection: that would wait for a
		// stranger to take the closing alert.
		_ = c.Close()
		m.cfg.Log.Debug("connection refused on the management port", "remote", c.RemoteAddr(), "err", err)
		return
	}
	_ = c.SetDeadline(time.Time{})
	fn(t)
}

// established ends a connection's time as a stranger and finds its handler. It
// is false where there is none, or no room.
func (m *Mgmt) established(c *mgmtConn, alpn string) (func(net.Conn), bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handshaking--
	if len(m.conns)-m.handshaking > m.cfg.ConnsMax {
		return nil, false
	}
	if _, open := m.conns[c]; !open {
		return nil, false
	}
	fn, ok := m.handlers[alpn]
	return fn, ok
}

// mgmtConn is an accepted socket that Mgmt knows of until it is closed.
type mgmtConn struct {
	net.Conn
	mgmt *Mgmt
}

func (c *mgmtConn) Close() error {
	c.mgmt.mu.Lock()
	delete(c.mgmt.conns, c)
	c.mgmt.mu.Unlock()
	return c.Conn.Close()
}
