package sim

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

func refused(addr string) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: &os.SyscallError{Syscall: "connect to " + addr, Err: syscall.ECONNREFUSED}}
}

type packet struct {
	data []byte
	from net.Addr
}

// packetConn is a UDP socket.
type packetConn struct {
	h      host
	addr   *net.UDPAddr
	queue  chan packet
	closed chan struct{}
	once   sync.Once
	read   deadline
}

func (p *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		changed, expired, at := p.read.state()
		if expired {
			return 0, nil, os.ErrDeadlineExceeded
		}
		select {
		case got := <-p.queue:
			return copy(b, got.data), got.from, nil
		case <-p.closed:
			return 0, nil, net.ErrClosed
		case <-at:
		case <-changed:
		}
	}
}

func (p *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	select {
	case <-p.closed:
		return 0, net.ErrClosed
	default:
	}
	dst, _, _ := net.SplitHostPort(to.String())
	for _, d := range p.h.n.transit(p.h.ip, dst) {
		got := packet{slices.Clone(b), p.addr}
		afterFunc(d, func() { p.h.n.deliver(to.String(), p.h.ip, dst, got) })
	}
	return len(b), nil
}

func (n *network) deliver(addr, from, to string, got packet) {
	n.mu.Lock()
	p := n.packets[addr]
	if n.cutLocked(from, to) {
		p = nil
	}
	n.mu.Unlock()
	if p == nil {
		return
	}
	select {
	case p.queue <- got:
	default:
	}
}

func (p *packetConn) Close() error {
	p.once.Do(func() {
		close(p.closed)
		p.h.n.mu.Lock()
		defer p.h.n.mu.Unlock()
		delete(p.h.n.packets, p.addr.String())
	})
	return nil
}

func (p *packetConn) LocalAddr() net.Addr               { return p.addr }
func (p *packetConn) SetDeadline(t time.Time) error     { return p.SetReadDeadline(t) }
func (p *packetConn) SetReadDeadline(t time.Time) error { p.read.set(t); return nil }
func (p *packetConn) SetWriteDeadline(time.Time) error  { return nil }
func (p *packetConn) SetReadBuffer(int) error           { return nil }
func (p *packetConn) SetWriteBuffer(int) error          { return nil }

// deadline is a point in time that may be moved while somebody waits for it.
type deadline struct {
	mu      sync.Mutex
	at      time.Time
	changed chan struct{}
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	if d.changed != nil {
		close(d.changed)
	}
	d.changed = nil
}

func (d *deadline) state() (changed <-chan struct{}, expired bool, at <-chan time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	if !d.at.IsZero() {
		left := time.Until(d.at)
		if left <= 0 {
			return d.changed, true, nil
		}
		at = time.After(left)
	}
	return d.changed, false, at
}

// listener is a TCP listener.
type listener struct {
	h      host
	addr   *net.TCPAddr
	conns  chan *stream
	closed chan struct{}
	once   sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.h.n.mu.Lock()
		delete(l.h.n.listens, l.addr.String())
		l.h.n.mu.Unlock()
	})
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }

// windowBytes is what a stream holds before its writer waits.
const windowBytes = 1 << 20

// segment is a part of a stream on its way.
type segment struct {
	data []byte
	at   time.Time
	fin  bool
}

// stream is one end of a TCP connection. What the other end wrote arrives in
// order, after the link's delay; across a cut it waits, as TCP repeats what is
// lost, and comes late when the link is good again.
type stream struct {
	n             *network
	host, remote  string
	local, remAdr *net.TCPAddr
	peer          *stream

	mu          sync.Mutex
	cond        *sync.Cond
	way         []segment // on its way here
	ready       []byte
	held        int // bytes in way and ready
	fin         bool
	closed      bool
	broken      bool // a reset came
	severed     bool // the process at one of its ends is no more
	readBy      time.Time
	writeBy     time.Time
	readT, wrtT *time.Timer
}

func newStream(n *network, host, remote string, local, remAdr *net.TCPAddr) *stream {
	s := &stream{n: n, host: host, remote: remote, local: local, remAdr: remAdr}
	s.cond = sync.NewCond(&s.mu)
	return s
}

func (s *stream) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closed:
			return 0, net.ErrClosed
		case s.broken:
			return 0, syscall.ECONNRESET
		case len(s.ready) > 0:
			n := copy(b, s.ready)
			s.ready = s.ready[n:]
			s.held -= n
			s.cond.Broadcast()
			return n, nil
		case s.fin:
			return 0, io.EOF
		case past(s.readBy):
			return 0, os.ErrDeadlineExceeded
		}
		s.cond.Wait()
	}
}

func (s *stream) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		part := b[done:min(len(b), done+windowBytes/4)]
		if err := s.send(segment{data: slices.Clone(part)}); err != nil {
			return done, err
		}
		done += len(part)
	}
	return len(b), nil
}

// send puts a segment on its way to the other end, once there is room.
func (s *stream) send(seg segment) error {
	d := s.n.transitStream(s.host, s.remote)
	p := s.peer
	for {
		s.mu.Lock()
		closed, broken, severed, by := s.closed, s.broken, s.severed, s.writeBy
		s.mu.Unlock()
		switch {
		case severed && !closed:
			return s.sendToNobody()
		case closed && !seg.fin:
			return net.ErrClosed
		case broken:
			return syscall.EPIPE
		case past(by) && !seg.fin:
			return os.ErrDeadlineExceeded
		}
		p.mu.Lock()
		if p.held < windowBytes || seg.fin || p.closed {
			break
		}
		p.cond.Wait()
		p.mu.Unlock()
	}
	defer p.mu.Unlock()
	if p.closed || p.broken { // the other end is gone: nobody reads it
		if s.n.isCut(p.host, p.remote) {
			return nil
		}
		return errors.Join(syscall.EPIPE)
	}
	seg.at = time.Now().Add(max(0, d))
	if n := len(p.way); n > 0 && p.way[n-1].at.After(seg.at) {
		seg.at = p.way[n-1].at
	}
	p.way = append(p.way, seg)
	p.held += len(seg.data)
	afterFunc(time.Until(seg.at), p.arrive)
	return nil
}

// sendToNobody is answered with a reset, if there is a kernel to give one.
func (s *stream) sendToNobody() error {
	if !s.n.isCut(s.host, s.remote) && !s.n.isCut(s.remote, s.host) {
		s.reset()
	}
	return nil
}

// arrive makes readable what has had its time, unless the link is cut.
func (s *stream) arrive() {
	if s.n.isCut(s.remote, s.host) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.severed && len(s.way) > 0 && !s.way[0].at.After(time.Now()) {
		s.ready = append(s.ready, s.way[0].data...)
		s.fin = s.fin || s.way[0].fin
		s.way = s.way[1:]
	}
	s.cond.Broadcast()
}

// reset breaks this end at once.
func (s *stream) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = true
	s.cond.Broadcast()
}

// sever ends what travels, without a word to this end.
func (s *stream) sever() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.severed = true
}

func (s *stream) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for _, t := range []*time.Timer{s.readT, s.wrtT} {
		if t != nil {
			t.Stop()
		}
	}
	s.cond.Broadcast()
	s.mu.Unlock()
	_ = s.send(segment{fin: true})
	s.n.mu.Lock()
	delete(s.n.streams, s)
	s.n.mu.Unlock()
	return nil
}

func (s *stream) LocalAddr() net.Addr  { return s.local }
func (s *stream) RemoteAddr() net.Addr { return s.remAdr }

func (s *stream) SetDeadline(t time.Time) error {
	_ = s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

func (s *stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readBy = t
	s.readT = s.wakeAt(s.readT, t, s)
	return nil
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writeBy = t
	s.wrtT = s.wakeAt(s.wrtT, t, s.peer)
	return nil
}

// wakeAt wakes those who wait at whom when t has come. s.mu is held.
func (s *stream) wakeAt(old *time.Timer, t time.Time, whom *stream) *time.Timer {
	if old != nil {
		old.Stop()
	}
	if t.IsZero() || s.closed {
		return nil
	}
	return afterFunc(time.Until(t), func() {
		whom.mu.Lock()
		defer whom.mu.Unlock()
		whom.cond.Broadcast()
	})
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }
