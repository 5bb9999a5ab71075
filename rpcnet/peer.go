package rpcnet

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/pool"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// Limits of calls between nodes.
const (
	// peerCallsMax bounds calls in flight on one connection, on the answering
	// side.
	peerCallsMax = 1024
	// peerInFlightBytesMax bounds their bodies.
	peerInFlightBytesMax = 64 << 20
	// peerPendingBytesMax bounds what waits to be written on one connection. It
	// holds at least one frame of the largest size beside others.
	peerPendingBytesMax = 64 << 20
	// peerHelloBytesMax bounds the first frame, read before its sender is known.
	peerHelloBytesMax = 4 << 10
	// peerIDBytesMax bounds a node or cluster id in a hello.
	peerIDBytesMax = 64
	// peerMessageBytesMax bounds the text of a refusal.
	peerMessageBytesMax = 4 << 10
	// peerDialTimeout bounds dialling, TLS and hello together.
	peerDialTimeout = 5 * time.Second
	// peerKeepalive is how often the dialling side says something. Either side
	// closes a connection on which peerSilence keepalives' time passed without
	// a byte. It is the same everywhere, since each side relies on the other's.
	peerKeepalive = 5 * time.Second
	peerSilence   = 4
	// peerDoubt is how long a connection on which a call was given up may then be
	// silent: later calls use another.
	peerDoubt = time.Second
	// peerWriteTimeout is for each peerChunkBytes written, not for a frame, so
	// that a slow link is told from a dead one.
	peerWriteTimeout = 10 * time.Second
	peerChunkBytes   = 256 << 10
	// peerBufferKeepBytes is the size up to which a connection keeps its
	// buffers between frames.
	peerBufferKeepBytes = 1 << 20
	// peerCallTimeMax bounds a call's stated time.
	peerCallTimeMax = time.Hour
)

// PeerConfig configures the calls from and to one node.
type PeerConfig struct {
	// Self is this node's id; empty for an operator's program.
	Self string
	// ClusterID returns the cluster's id, or nothing while it is unknown (nil
	// func: always unknown). It must be quick.
	ClusterID func() []byte
	// Services answers calls that come in; nil answers none.
	Services *Services
	Network  seam.Network
	Clock    seam.Clock
	// TLS is for dialling. ALPN, if not empty, replaces its NextProtos.
	TLS  *tls.Config
	ALPN string
	// Identify tells role and name from a verified certificate.
	Identify func(tls.ConnectionState) (role, name string)
	Log      *slog.Logger // nil: silent
	// DialTimeout bounds reaching another node, handshakes included (5 s). It
	// bounds the first frame from a connection that comes in, too.
	DialTimeout time.Duration
	// CallsMax bounds the calls in flight on each connection that comes in
	// (1024). Past it a call is refused with OVERLOADED, and was not run.
	CallsMax int

	keepalive time.Duration // tests only
}

// Peers makes and answers calls, multiplexed over one connection to each
// address. A connection carries calls from the side that dialled it; calls the
// other way use a connection of their own.
type Peers struct {
	cfg    PeerConfig
	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // of all goroutines but jobs, and of Serve calls
	jobs   pool.Pool      // calls that came in

	mu     sync.Mutex
	slots  map[string]*peerSlot // by address
	served map[net.Conn]struct{}
	closed bool
}

// peerSlot is a connection to one address, or the attempt to make it.
type peerSlot struct {
	ready chan struct{} // closed once conn or err is set
	conn  *peerConn
	err   error
}

// NewPeers returns Peers with no connection. Close must follow.
func NewPeers(cfg PeerConfig) *Peers {
	if cfg.ClusterID == nil {
		cfg.ClusterID = func() []byte { return nil }
	}
	if cfg.Services == nil {
		cfg.Services = NewServices()
	}
	if cfg.Network == nil {
		cfg.Network = seam.OSNetwork{}
	}
	if cfg.Clock == nil {
		cfg.Clock = seam.OSClock{}
	}
	if cfg.Identify == nil {
		cfg.Identify = func(tls.ConnectionState) (string, string) { return "", "" }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = peerDialTimeout
	}
	if cfg.CallsMax <= 0 {
		cfg.CallsMax = peerCallsMax
	}
	if cfg.keepalive <= 0 {
		cfg.keepalive = peerKeepalive
	}
	if cfg.TLS != nil && cfg.ALPN != "" {
		cfg.TLS = cfg.TLS.Clone()
		cfg.TLS.NextProtos = []string{cfg.ALPN}
	}
	p := &Peers{cfg: cfg, slots: map[string]*peerSlot{}, served: map[net.Conn]struct{}{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Call sends body to method at addr (host:port of a management port) and
// returns the answer's body. It dials if need be; many calls share a
// connection. The far side is told ctx's deadline, and when ctx ends.
//
// An error is always a *wire.Error in its chain. If the far side answered, it is
// the far side's. Otherwise: OVERLOADED and FRAME_TOO_LARGE if nothing was
// sent; WRONG_CLUSTER, WRONG_VERSION or NOT_AUTHORISED if the two ends do not
// belong together; DEADLINE_EXCEEDED when ctx's time was over; SHUTTING_DOWN
// after Close; and UNAVAILABLE for whatever else happened on the way. After
// DEADLINE_EXCEEDED and UNAVAILABLE the far side may or may not have run it.
func (p *Peers) Call(ctx context.Context, addr, method string, body []byte) ([]byte, error) {
	// A kept connection may have died since: that is noticed before anything is
	// sent, and deserves one fresh attempt.
	for attempt := 0; ; attempt++ {
		conn, err := p.get(ctx, addr, method)
		if err != nil {
			return nil, unsentError{err}
		}
		answer, err := conn.call(ctx, method, body)
		if !errors.Is(err, errPeerNotSent) {
			return answer, err
		}
		if attempt > 0 {
			return nil, unsentError{peerUnavailable(err, "the connection to %s ended twice before %q was sent", addr, method)}
		}
	}
}

// unsentError is for calls of which nothing went out.
type unsentError struct{ error }

func (e unsentError) Unwrap() error { return e.error }

// Unsent reports that the far side has nothing of the call that ended in err, so that
// it may be made again.
func Unsent(err error) bool {
	var e unsentError
	return errors.As(err, &e)
}

// Invoke is Call with messages; resp is filled.
func Invoke[Resp proto.Message](ctx context.Context, p *Peers, addr, method string, req proto.Message, resp Resp) error {
	body, err := proto.Marshal(req)
	if err != nil {
		return wire.Errorf(wire.Code_BAD_REQUEST, "the request to %q cannot be encoded: %v", method, err)
	}
	answer, err := p.Call(ctx, addr, method, body)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(answer, resp); err != nil {
		return wire.Errorf(wire.Code_INTERNAL, "the answer of %q from %s cannot be read: %v", method, addr, err)
	}
	return nil
}

// Close fails all calls that wait, closes all connections and waits for every
// goroutine, those of handlers that run included. It may be called repeatedly.
func (p *Peers) Close() {
	p.mu.Lock()
	p.closed = true
	var conns []*peerConn
	for _, s := range p.slots {
		if s.conn != nil {
			conns = append(conns, s.conn)
		}
	}
	served := make([]net.Conn, 0, len(p.served))
	for c := range p.served {
		served = append(served, c)
	}
	p.mu.Unlock()
	// First the reason, then the end: calls that wait report it.
	for _, c := range conns {
		c.fail(wire.Errorf(wire.Code_SHUTTING_DOWN, "this node is shutting down"))
	}
	p.cancel()
	for _, c := range served {
		peerCloseSocket(c)
	}
	p.wg.Wait()
	p.jobs.Wait()
}

// get returns the connection to addr, dialling it on a goroutine of Peers' own
// so that a caller who gives up takes nothing from the others who wait.
func (p *Peers) get(ctx context.Context, addr, method string) (*peerConn, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, wire.Errorf(wire.Code_SHUTTING_DOWN, "this node is shutting down")
	}
	slot := p.slots[addr]
	if slot != nil && slot.conn != nil && slot.conn.stale() {
		delete(p.slots, addr)
		slot.conn.retire()
		slot = nil
	}
	if slot == nil {
		slot = &peerSlot{ready: make(chan struct{})}
		p.slots[addr] = slot
		p.wg.Add(1)
		go func() {
			defer p.wg.Done()
			p.fill(slot, addr)
		}()
	}
	p.mu.Unlock()
	select {
	case <-slot.ready:
		return slot.conn, slot.err
	case <-ctx.Done():
		return nil, peerContextError(ctx.Err(), method, addr)
	}
}

// fill dials and settles the slot.
func (p *Peers) fill(slot *peerSlot, addr string) {
	conn, err := p.dial(addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	defer close(slot.ready)
	if err == nil && p.closed {
		peerCloseSocket(conn.conn)
		err = wire.Errorf(wire.Code_SHUTTING_DOWN, "this node is shutting down")
	}
	if err != nil {
		slot.err = err
		p.drop(addr, slot)
		return
	}
	slot.conn = conn
	conn.slot = slot
	conn.start()
}

// drop forgets a slot, unless another took its place. p.mu is held.
func (p *Peers) drop(addr string, slot *peerSlot) {
	if p.slots[addr] == slot {
		delete(p.slots, addr)
	}
}

// dial reaches addr and exchanges hellos.
func (p *Peers) dial(addr string) (*peerConn, error) {
	if p.cfg.TLS == nil {
		return nil, wire.Errorf(wire.Code_NOT_AUTHORISED, "no certificate is configured to call other nodes with")
	}
	deadline := seam.Deadline(p.cfg.DialTimeout)
	ctx, cancel := context.WithDeadline(p.ctx, deadline)
	defer cancel()
	raw, err := p.cfg.Network.Dial(ctx, addr)
	if err != nil {
		return nil, peerUnavailable(err, "cannot reach %s: %v", addr, err)
	}
	if tcp, ok := raw.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(mgmtKeepAlive)
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	_ = raw.SetDeadline(deadline)
	t := CarrierOf(p.cfg.Network).SecureClient(raw, p.cfg.TLS)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, peerHandshakeError(addr, err)
	}
	ours := p.hello()
	theirs, err := peerExchange(t, ours)
	if err != nil {
		_ = raw.Close()
		return nil, peerHandshakeError(addr, err)
	}
	if err := p.judge(theirs); theirs.Refused != wire.Code_OK || err != nil {
		_ = raw.Close()
		if err == nil {
			err = &wire.Error{Code: theirs.Refused, Message: addr + " refuses to talk: " + theirs.Message}
		}
		return nil, err
	}
	if !stop() {
		return nil, peerUnavailable(ctx.Err(), "cannot reach %s: its answer came too late", addr)
	}
	_ = raw.SetDeadline(time.Time{})
	return newPeerConn(p, addr, t, ours.ClusterId, theirs), nil
}

func (p *Peers) hello() *wire.PeerHello {
	return &wire.PeerHello{Version: wire.Version, ClusterId: bytes.Clone(p.cfg.ClusterID()), Node: p.cfg.Self}
}

// judge reports why the other end does not belong to us. Raft itself has no
// cluster id: this check is what keeps two clusters from being joined by a
// mistyped address.
func (p *Peers) judge(theirs *wire.PeerHello) error {
	if theirs.Version != wire.Version {
		return wire.Errorf(wire.Code_WRONG_VERSION, "the peer protocols differ: %d here, %d there; upgrade one version at a time", wire.Version, theirs.Version)
	}
	if len(theirs.Node) > peerIDBytesMax || len(theirs.ClusterId) > peerIDBytesMax {
		return wire.Errorf(wire.Code_BAD_REQUEST, "a node or cluster id has more than %d bytes", peerIDBytesMax)
	}
	return p.sameCluster(theirs.ClusterId)
}

// sameCluster compares ids as far as both are known.
func (p *Peers) sameCluster(theirs []byte) error {
	ours := p.cfg.ClusterID()
	if len(ours) == 0 || len(theirs) == 0 || bytes.Equal(ours, theirs) {
		return nil
	}
	return wire.Errorf(wire.Code_WRONG_CLUSTER, "the two ends belong to different clusters (%x and %x); check the address and the data directory", ours, theirs)
}

// peerExchange sends our hello and reads theirs. The caller bounds the time.
func peerExchange(c net.Conn, ours *wire.PeerHello) (*wire.PeerHello, error) {
	if err := peerSendHello(c, ours); err != nil {
		return nil, err
	}
	return peerReadHello(c)
}

func peerSendHello(c net.Conn, hello *wire.PeerHello) error {
	out, err := AppendFrame(nil, hello, peerHelloBytesMax)
	if err != nil {
		return err
	}
	_, err = c.Write(out)
	return err
}

func peerReadHello(c net.Conn) (*wire.PeerHello, error) {
	body, err := ReadFrame(c, peerHelloBytesMax, nil)
	if err != nil {
		return nil, err
	}
	hello := &wire.PeerHello{}
	if err := proto.Unmarshal(body, hello); err != nil {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the first frame is no hello: %v", err)
	}
	return hello, nil
}

// peerHandshakeError tells "does not belong together" from "not reachable".
func peerHandshakeError(addr string, err error) error {
	var typed *wire.Error
	if errors.As(err, &typed) {
		return err
	}
	var bad *tls.CertificateVerificationError
	if errors.As(err, &bad) {
		return &peerTransportError{cause: err, err: wire.Errorf(wire.Code_NOT_AUTHORISED,
			"%s has a certificate that is not of this cluster, or out of date: %v", addr, bad.Err)}
	}
	// The far side's refusal is an alert, which crypto/tls wraps so.
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return &peerTransportError{cause: err, err: wire.Errorf(wire.Code_NOT_AUTHORISED,
			"%s refuses our certificate or protocol (%v); check that both are of one cluster, in date, and of one version", addr, op.Err)}
	}
	return peerUnavailable(err, "the handshake with %s failed: %v", addr, err)
}

// peerCloseSocket closes what lies under TLS: closing TLS itself may wait
// seconds for the far side to take the closing alert.
func peerCloseSocket(c net.Conn) {
	if t, ok := c.(SecureConn); ok {
		c = t.NetConn()
	}
	_ = c.Close()
}
