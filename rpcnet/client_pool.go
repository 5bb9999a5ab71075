package rpcnet

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

const (
	// connIdleDefault keeps a connection for the next session that needs it.
	connIdleDefault = 10 * time.Second
	// connsPerAddrMax bounds the connections that a pool opens to one node when
	// each is full of streams.
	connsPerAddrMax = 64
	// dialPatienceMax bounds how often the time for a dial doubles while none
	// succeeds: where many come at once the handshakes themselves take long, and
	// one that is given up has been work for nothing.
	dialPatienceMax = 3
)

// connPool shares dialled QUIC connections: many streams on each, a further
// connection only where one is full. A client has one for its sessions, a server
// one for what it relays.
type connPool struct {
	cfg    poolConfig
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	conns  map[string][]*pooledConn
	dials  map[string]*dialing
	names  map[string]*lookUp
	stats  ClientStats
	slow   int // dials that timed out since the last that did not
}

type poolConfig struct {
	transport   Muxer
	resolve     func(ctx context.Context, addr string) (net.Addr, error) // nil: resolveUDP
	clock       seam.Clock
	quic        *quic.Config
	crowd       *quic.Config // where many dial the same node; nil: quic
	dialTimeout time.Duration
	workers     *sync.WaitGroup // counts connections' writers, beside those who send
	// onConn, if set, runs on the pool's goroutines for each new connection, with what
	// it was dialled for.
	onConn func(ctx context.Context, addr string, f dialFor)
}

// dialFor is what a connection is wanted for, where it is none yet.
type dialFor struct {
	early []byte        // a first frame that may travel in 0-RTT
	crowd time.Duration // so long are many clients dialling the same node; 0: they are not
	hello bool          // to greet the node
}

// received counts the packets that have come on it.
func (pc *pooledConn) received() uint64 { return pc.qc.ConnectionStats().PacketsReceived }

// pooledConn is one connection of a pool. The pool's mutex guards it.
type pooledConn struct {
	qc      MuxConn
	writer  connWriter
	addr    string
	streams int
	retired bool // no further streams: it fell silent
	full    int  // as many streams as the node took on it; 0: it has refused none
	reaper  seam.Timer
}

// dialing is a dial in progress that several callers may wait for.
type dialing struct {
	done chan struct{}
	err  error // after done
	// Of the caller that began it, who may have a frame to send in 0-RTT: the
	// frame; whether that caller has gone (the pool's mutex); and, after done, the
	// stream that the node took it on.
	dialFor
	left bool
	qs   MuxStream
	pc   *pooledConn
}

func newConnPool(cfg poolConfig) *connPool {
	if cfg.resolve == nil {
		cfg.resolve = resolveUDP
	}
	p := &connPool{cfg: cfg, conns: map[string][]*pooledConn{}, dials: map[string]*dialing{}, names: map[string]*lookUp{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// open opens a stream to addr (host:port), dialling if it must. Each stream is
// given back with release. Errors are *wire.Error: UNAVAILABLE, NOT_AUTHORISED,
// or what the node closed the connection with.
func (p *connPool) open(ctx context.Context, addr string, conf *tls.Config) (MuxStream, *pooledConn, error) {
	qs, pc, _, err := p.openFor(ctx, addr, conf, dialFor{})
	return qs, pc, err
}

// openFor is open for who has something to say of the connection. sent reports
// that the early frame travelled in 0-RTT and was taken; otherwise it is still to
// be sent.
func (p *connPool) openFor(ctx context.Context, addr string, conf *tls.Config, f dialFor) (qs MuxStream, pc *pooledConn, sent bool, err error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, nil, false, wire.Errorf(wire.Code_SHUTTING_DOWN, "this end is closing")
		}
		if qs, pc := p.openLocked(addr); qs != nil {
			if f.early != nil {
				p.stats.WarmReused++
			}
			p.mu.Unlock()
			return qs, pc, false, nil
		}
		d := p.dials[addr]
		mine := d == nil
		if mine {
			if len(p.conns[addr]) >= connsPerAddrMax {
				p.mu.Unlock()
				return nil, nil, false, wire.Errorf(wire.Code_TOO_MANY, "all %d connections to %s are full of streams", connsPerAddrMax, addr)
			}
			d = &dialing{done: make(chan struct{}), dialFor: f}
			p.dials[addr] = d
			p.wg.Go(func() { p.dial(addr, conf, d) })
		}
		p.mu.Unlock()
		select {
		case <-d.done:
		case <-ctx.Done():
			if mine {
				p.leave(d)
			}
			return nil, nil, false, wire.Errorf(wire.Code_UNAVAILABLE, "gave up connecting to %s", addr)
		}
		switch {
		case d.err != nil:
			return nil, nil, false, d.err
		case mine && d.qs != nil:
			return d.qs, d.pc, true, nil
		case mine:
			f.early = nil // this connection was counted when it was made
		}
	}
}

// has reports whether there is a connection to addr.
func (p *connPool) has(addr string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns[addr]) > 0
}

// leave gives up what a dial may have brought, or will bring, its caller.
func (p *connPool) leave(d *dialing) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.left = true
	if d.qs != nil {
		abandon(d.qs)
		d.pc.streams--
		p.reapLater(d.pc)
	}
}

func abandon(qs MuxStream) {
	qs.CancelRead(quic.StreamErrorCode(wire.Code_CANCELLED))
	qs.CancelWrite(quic.StreamErrorCode(wire.Code_CANCELLED))
}

// openLocked opens a stream on a living connection that has room.
func (p *connPool) openLocked(addr string) (MuxStream, *pooledConn) {
	alive := p.conns[addr][:0]
	for _, pc := range p.conns[addr] {
		if pc.qc.Context().Err() == nil {
			alive = append(alive, pc)
		}
	}
	clear(p.conns[addr][len(alive):])
	p.conns[addr] = alive
	for _, pc := range alive {
		if pc.retired || pc.full > 0 && pc.streams >= pc.full {
			continue
		}
		qs, err := pc.qc.OpenStream()
		if err != nil {
			continue // full, or just lost
		}
		pc.streams++
		if pc.reaper != nil {
			pc.reaper.Stop()
			pc.reaper = nil
		}
		return qs, pc
	}
	return nil, nil
}

// dial makes one connection, for all who wait for it.
func (p *connPool) dial(addr string, conf *tls.Config, d *dialing) {
	qc, qs, err := p.connect(addr, conf, d.dialFor)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.dials, addr)
	defer close(d.done)
	if err != nil {
		p.stats.Failed++
		if wire.CodeOf(err) == wire.Code_OVERLOADED {
			p.stats.Refused++
		}
		d.err = err
		return
	}
	if p.closed {
		_ = qc.CloseWithError(0, "")
		d.err = wire.Errorf(wire.Code_SHUTTING_DOWN, "this end is closing")
		return
	}
	p.slow = 0
	pc := &pooledConn{qc: qc, addr: addr, writer: connWriter{workers: p.cfg.workers}}
	p.conns[addr] = append(p.conns[addr], pc)
	switch {
	case qs != nil && d.left:
		abandon(qs)
	case qs != nil:
		pc.streams++
		d.qs, d.pc = qs, pc
	}
	p.reapLater(pc)
	if p.cfg.onConn != nil {
		p.wg.Go(func() { p.cfg.onConn(p.ctx, addr, d.dialFor) })
	}
}

func (p *connPool) connect(addr string, conf *tls.Config, f dialFor) (MuxConn, MuxStream, error) {
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	limit := p.patience(f.crowd > 0)
	to, err := p.resolve(ctx, addr, limit)
	if err != nil {
		return nil, nil, wire.Errorf(wire.Code_UNAVAILABLE, "cannot resolve %s: %v", addr, err)
	}
	t := p.cfg.clock.AfterFunc(limit, cancel)
	defer t.Stop()
	if f.early != nil {
		return p.connectEarly(ctx, addr, to, conf, f.early, limit)
	}
	qc, err := p.cfg.transport.Dial(ctx, to, conf, p.config(f.crowd > 0))
	if err != nil {
		return nil, nil, p.dialErr(addr, err, limit)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Full++
	return qc, nil, nil
}

// config is what a connection is dialled with.
func (p *connPool) config(crowd bool) *quic.Config {
	if crowd && p.cfg.crowd != nil {
		return p.cfg.crowd
	}
	return p.cfg.quic
}

// patience is how long a dial may take now. In a crowd it ends when nothing is
// heard any more (HandshakeIdleTimeout), as a node that takes nobody just now says
// so: what is only slow would be given up for the same work again.
func (p *connPool) patience(crowd bool) time.Duration {
	if crowd {
		return 2 * p.config(true).HandshakeIdleTimeout
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cfg.dialTimeout << min(p.slow, dialPatienceMax)
}

func (p *connPool) dialErr(addr string, err error, limit time.Duration) error {
	if errors.Is(err, context.Canceled) {
		p.mu.Lock()
		p.slow++
		p.mu.Unlock()
		return wire.Errorf(wire.Code_UNAVAILABLE, "%s did not answer within %v", addr, limit)
	}
	return streamErr(err)
}

// release gives a stream back. An unused connection closes after a while.
func (p *connPool) release(pc *pooledConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pc.streams--
	p.reapLater(pc)
}

// refused notes that the node takes no more streams on a connection than there are,
// without the one that it refuses.
func (p *connPool) refused(pc *pooledConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := pc.streams
	if pc.full > 0 {
		n = min(n, pc.full) // others that it refuses are counted still
	}
	pc.full = max(1, n-1)
}

// retire takes a silent connection out of use; the next stream to its node dials
// anew. Streams that it still carries go on.
func (p *connPool) retire(pc *pooledConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pc.retired = true
	p.reapLater(pc)
}

// reapLater needs p.mu.
func (p *connPool) reapLater(pc *pooledConn) {
	if pc.streams > 0 || pc.reaper != nil || p.closed {
		return
	}
	pc.full = 0
	pc.reaper = p.cfg.clock.AfterFunc(connIdleDefault, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if pc.reaper == nil || pc.streams > 0 || p.closed {
			return
		}
		kept := p.conns[pc.addr][:0]
		for _, other := range p.conns[pc.addr] {
			if other != pc {
				kept = append(kept, other)
			}
		}
		clear(p.conns[pc.addr][len(kept):])
		if p.conns[pc.addr] = kept; len(kept) == 0 {
			delete(p.conns, pc.addr)
		}
		_ = pc.qc.CloseWithError(0, "")
	})
}

// close closes every connection and waits for the pool's goroutines.
func (p *connPool) close() {
	p.mu.Lock()
	p.closed = true
	var all []*pooledConn
	for _, pcs := range p.conns {
		for _, pc := range pcs {
			if pc.reaper != nil {
				pc.reaper.Stop()
			}
			all = append(all, pc)
		}
	}
	p.conns = map[string][]*pooledConn{}
	p.mu.Unlock()
	p.cancel()
	for _, pc := range all {
		_ = pc.qc.CloseWithError(0, "")
	}
	p.wg.Wait()
}
