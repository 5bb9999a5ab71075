package sim

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/baton-cluster/baton/rpcnet"
)

const (
	// acceptQueue is QUIC's: past it connections are refused.
	acceptQueue = 32
	// repeatMin and repeatMax bound the waits of a sender whose message was lost.
	repeatMin = 100 * time.Millisecond
	repeatMax = time.Second
	// cryptoRefusal is a TLS alert as QUIC tells of it.
	cryptoRefusal = quic.TransportErrorCode(0x100 + 120)
)

// Muxer implements rpcnet.Carrier: connections of many streams by messages, which
// keep QUIC's rules as far as a program sees them. Messages of one stream come in
// order, those of several as their delays have it; what a link loses is sent
// again; silence ends a connection, and who has forgotten one says so.
func (h lightHost) Muxer(packet net.PacketConn, o rpcnet.MuxerOptions) rpcnet.Muxer {
	m := &muxer{h: h.host, addr: packet.LocalAddr(), o: o, conns: map[*muxConn]struct{}{}}
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	h.n.muxers[m.addr.String()] = m
	return m
}

type muxer struct {
	h    host
	addr net.Addr
	o    rpcnet.MuxerOptions
	gone atomic.Bool // its process is no more

	mu       sync.Mutex
	listener *muxListener
	conns    map[*muxConn]struct{}
	closed   bool
}

type muxListener struct {
	m      *muxer
	tls    *tls.Config
	quic   *quic.Config
	queue  chan *muxConn
	closed chan struct{}
	once   sync.Once
}

func (m *muxer) Listen(conf *tls.Config, q *quic.Config) (rpcnet.MuxListener, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listener = &muxListener{m: m, tls: conf, quic: q, queue: make(chan *muxConn, acceptQueue), closed: make(chan struct{})}
	return m.listener, nil
}

func (l *muxListener) Accept(ctx context.Context) (rpcnet.MuxConn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, quic.ErrServerClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *muxListener) Close() error {
	l.once.Do(func() {
		l.m.mu.Lock()
		l.m.listener = nil
		l.m.mu.Unlock()
		close(l.closed)
	})
	return nil
}

func (m *muxer) Close() error {
	m.mu.Lock()
	m.closed = true
	conns := make([]*muxConn, 0, len(m.conns))
	for c := range m.conns {
		conns = append(conns, c)
	}
	m.mu.Unlock()
	for _, c := range conns {
		c.end(quic.ErrTransportClosed)
	}
	m.h.n.mu.Lock()
	defer m.h.n.mu.Unlock()
	if m.h.n.muxers[m.addr.String()] == m {
		delete(m.h.n.muxers, m.addr.String())
	}
	return nil
}

// DialEarly is Dial: nothing is sent before the handshake has ended.
func (m *muxer) DialEarly(ctx context.Context, to net.Addr, conf *tls.Config, q *quic.Config) (rpcnet.MuxConn, error) {
	return m.Dial(ctx, to, conf, q)
}

// Dial repeats its first message until it is answered.
func (m *muxer) Dial(ctx context.Context, to net.Addr, conf *tls.Config, q *quic.Config) (rpcnet.MuxConn, error) {
	remote, _, err := net.SplitHostPort(to.String())
	if err != nil {
		return nil, err
	}
	for wait := repeatMin; ; wait = min(2*wait, repeatMax) {
		there, back := m.h.n.transit(m.h.ip, remote), m.h.n.transit(remote, m.h.ip)
		answered := len(there) > 0 && len(back) > 0
		pause := wait
		if answered {
			pause = there[0] + back[0]
		}
		if err := sleepFor(ctx, pause); err != nil {
			return nil, err
		}
		if answered && !m.h.n.isCut(m.h.ip, remote) && !m.h.n.isCut(remote, m.h.ip) {
			if c, err := m.connect(to, remote, conf, q); c != nil || err != nil {
				return c, err
			}
			// Nobody is there, and nothing says so.
			if err := sleepFor(ctx, wait); err != nil {
				return nil, err
			}
		}
	}
}

func sleepFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connect makes a connection, or none if nobody is there.
func (m *muxer) connect(to net.Addr, remote string, conf *tls.Config, q *quic.Config) (rpcnet.MuxConn, error) {
	m.h.n.mu.Lock()
	far := m.h.n.muxers[to.String()]
	m.h.n.mu.Unlock()
	if far == nil || far.gone.Load() {
		return nil, nil
	}
	far.mu.Lock()
	l := far.listener
	far.mu.Unlock()
	if l == nil {
		return nil, nil
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	mine := &muxConn{m: m, client: true, far: to, remote: remote, conf: q, ctx: ctx, cancel: cancel}
	theirCtx, theirCancel := context.WithCancelCause(context.Background())
	theirs := &muxConn{m: far, far: m.addr, remote: m.h.ip, conf: l.quic, ctx: theirCtx, cancel: theirCancel}
	mine.peer, theirs.peer = theirs, mine
	for _, c := range []*muxConn{mine, theirs} {
		c.streams, c.arrived, c.heard = map[*muxStream]struct{}{}, make(chan *muxStream, 1024), time.Now()
		c.control = &lane{c: c}
	}
	if err := l.shake(mine, theirs, conf); err != nil {
		theirCancel(err)
		cancel(err)
		return nil, err
	}
	mine.begin()
	return mine, nil
}

// shake is the handshake, at whose end the listener has the connection.
func (l *muxListener) shake(mine, theirs *muxConn, conf *tls.Config) error {
	if l.m.o.ConnContext != nil {
		ctx, err := l.m.o.ConnContext(theirs.ctx, &quic.ClientInfo{RemoteAddr: theirs.far, AddrVerified: true})
		if err != nil {
			return &quic.TransportError{Remote: true, ErrorCode: quic.ConnectionRefused}
		}
		theirs.ctx = ctx
	}
	server := l.tls
	if server.GetConfigForClient != nil {
		chosen, err := server.GetConfigForClient(&tls.ClientHelloInfo{SupportedProtos: conf.NextProtos})
		if err != nil {
			return err
		}
		server = chosen
	}
	if !slices.Contains(server.NextProtos, conf.NextProtos[0]) {
		return &quic.TransportError{Remote: true, ErrorCode: cryptoRefusal}
	}
	var errs [2]error
	mine.state.TLS, errs[0] = stateOf(conf, conf.NextProtos[0], certOf(server))
	shown := certOf(conf)
	if server.ClientAuth == tls.NoClientCert {
		shown = nil
	}
	theirs.state.TLS, errs[1] = stateOf(server, conf.NextProtos[0], shown)
	if err := errors.Join(errs[:]...); err != nil {
		return &quic.TransportError{Remote: true, ErrorCode: cryptoRefusal, ErrorMessage: err.Error()}
	}
	theirs.begin()
	select {
	case l.queue <- theirs:
		return nil
	default:
		refused := &quic.TransportError{ErrorCode: quic.ConnectionRefused}
		theirs.end(refused)
		return &quic.TransportError{Remote: true, ErrorCode: quic.ConnectionRefused}
	}
}

// muxConn is one end of a connection.
type muxConn struct {
	m       *muxer
	peer    *muxConn
	client  bool
	far     net.Addr
	remote  string // the far host
	conf    *quic.Config
	state   quic.ConnectionState
	ctx     context.Context
	cancel  context.CancelCauseFunc
	arrived chan *muxStream
	control *lane

	mu      sync.Mutex
	streams map[*muxStream]struct{}
	open    int // of those that this end opened
	heard   time.Time
	packets uint64 // that came
	idle    *time.Timer
	keep    *time.Timer
}

var shaken = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (*muxConn) HandshakeComplete() <-chan struct{}      { return shaken }
func (*muxConn) Settle(context.Context) error            { return nil }
func (c *muxConn) Context() context.Context              { return c.ctx }
func (c *muxConn) ConnectionState() quic.ConnectionState { return c.state }
func (c *muxConn) RemoteAddr() net.Addr                  { return c.far }
func (c *muxConn) ConnectionStats() (s quic.ConnectionStats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.PacketsReceived = c.packets
	s.MinRTT, s.SmoothedRTT, s.LatestRTT = 2*latency, 2*latency, 2*latency
	return s
}

// begin makes the connection known to its process, and watches over it.
func (c *muxConn) begin() {
	c.m.mu.Lock()
	c.m.conns[c] = struct{}{}
	c.m.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = afterFunc(c.idleTimeout(), c.checkIdle)
	if c.client {
		c.keep = afterFunc(c.conf.KeepAlivePeriod, c.checkKeep)
	}
}

// hear notes that something came.
func (c *muxConn) hear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = time.Now()
	c.packets++
}

// idleTimeout is the shorter of what both ends offer.
func (c *muxConn) idleTimeout() time.Duration {
	return min(c.conf.MaxIdleTimeout, c.peer.conf.MaxIdleTimeout)
}

func (c *muxConn) checkIdle() {
	c.mu.Lock()
	left := c.idleTimeout() - time.Since(c.heard)
	if left > 0 && c.ctx.Err() == nil {
		c.idle.Reset(left)
	}
	c.mu.Unlock()
	if left <= 0 {
		c.end(&quic.IdleTimeoutError{})
	}
}

// checkKeep has the far end speak if it was silent.
func (c *muxConn) checkKeep() {
	c.mu.Lock()
	left := c.conf.KeepAlivePeriod - time.Since(c.heard)
	over := c.ctx.Err() != nil
	if !over {
		c.keep.Reset(max(left, c.conf.KeepAlivePeriod/4))
	}
	c.mu.Unlock()
	if left <= 0 && !over {
		c.control.send(func() {})
	}
}

// end ends this end of the connection, and all its streams.
func (c *muxConn) end(why error) {
	c.mu.Lock()
	c.cancel(why)
	c.idle.Stop()
	if c.keep != nil {
		c.keep.Stop()
	}
	streams := make([]*muxStream, 0, len(c.streams))
	for s := range c.streams {
		streams = append(streams, s)
	}
	c.mu.Unlock()
	for _, s := range streams {
		s.wake()
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	delete(c.m.conns, c)
}

// err is why the connection has ended, nil while it has not.
func (c *muxConn) err() error { return context.Cause(c.ctx) }

func (c *muxConn) CloseWithError(code quic.ApplicationErrorCode, why string) error {
	if c.ctx.Err() != nil {
		return nil
	}
	c.control.send(func() { c.peer.end(&quic.ApplicationError{Remote: true, ErrorCode: code, ErrorMessage: why}) })
	c.end(&quic.ApplicationError{ErrorCode: code, ErrorMessage: why})
	return nil
}

func (c *muxConn) OpenStream() (rpcnet.MuxStream, error) {
	if err := c.err(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open >= int(c.peer.conf.MaxIncomingStreams) {
		return nil, quic.StreamLimitReachedError{}
	}
	c.open++
	near, far := newMuxStream(c), newMuxStream(c.peer)
	near.mine, near.peer, far.peer = true, far, near
	c.streams[near] = struct{}{}
	return near, nil
}

func (c *muxConn) AcceptStream(ctx context.Context) (rpcnet.MuxStream, error) {
	select {
	case s := <-c.arrived:
		return s, nil
	default:
	}
	select {
	case s := <-c.arrived:
		return s, nil
	case <-c.ctx.Done():
		return nil, c.err()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// welcome makes a stream known at the far end, at its first message.
func (c *muxConn) welcome(s *muxStream) {
	c.mu.Lock()
	_, known := c.streams[s]
	c.streams[s] = struct{}{}
	c.mu.Unlock()
	if known || s.welcomed.Swap(true) {
		return
	}
	select {
	case c.arrived <- s:
	default: // more than any limit allows
	}
}

// lane carries messages from one end of a connection to the other, in order. What
// is lost is sent again, later and later.
type lane struct {
	c *muxConn // the sending end

	mu    sync.Mutex
	queue []parcel
	timed bool
	wait  time.Duration
}

type parcel struct {
	at  time.Time
	act func() // at the far end
}

func (l *lane) send(act func()) {
	d := l.delay()
	l.mu.Lock()
	defer l.mu.Unlock()
	p := parcel{time.Now().Add(d), act}
	if n := len(l.queue); n > 0 && l.queue[n-1].at.After(p.at) {
		p.at = l.queue[n-1].at
	}
	l.queue = append(l.queue, p)
	if !l.timed {
		l.timed, l.wait = true, repeatMin
		afterFunc(time.Until(p.at), l.arrive)
	}
}

// delay is a message's, those after which it was repeated included.
func (l *lane) delay() (d time.Duration) {
	n := l.c.m.h.n
	for wait := repeatMin; ; wait = min(2*wait, repeatMax) {
		if copies := n.transit(l.c.m.h.ip, l.c.remote); len(copies) > 0 {
			return d + copies[0]
		}
		if n.isCut(l.c.m.h.ip, l.c.remote) {
			return d // arrive repeats it
		}
		d += wait
	}
}

func (l *lane) arrive() {
	from, to := l.c, l.c.peer
	n := from.m.h.n
	if from.m.gone.Load() || from.err() != nil && to.err() != nil {
		return // what a process that is no more had not sent is lost
	}
	l.mu.Lock()
	if n.isCut(from.m.h.ip, from.remote) {
		l.wait = min(2*l.wait, repeatMax)
		afterFunc(l.wait, l.arrive)
		l.mu.Unlock()
		return
	}
	var due []parcel
	for len(l.queue) > 0 && !l.queue[0].at.After(time.Now()) {
		due = append(due, l.queue[0])
		l.queue = l.queue[1:]
	}
	if l.timed = len(l.queue) > 0; l.timed {
		afterFunc(time.Until(l.queue[0].at), l.arrive)
	}
	l.mu.Unlock()
	if to.m.gone.Load() || to.err() != nil {
		from.forgotten()
		return
	}
	to.hear()
	for _, p := range due {
		p.act()
	}
	if !n.isCut(from.remote, from.m.h.ip) {
		from.hear() // the acknowledgement
	}
}

// forgotten is what becomes of a connection whose far end knows it no more: the
// far host says so, if it can.
func (c *muxConn) forgotten() {
	n := c.m.h.n
	n.mu.Lock()
	there := n.muxers[c.far.String()] != nil && !n.cutLocked(c.remote, c.m.h.ip)
	n.mu.Unlock()
	if there {
		c.end(&quic.StatelessResetError{})
	}
}
