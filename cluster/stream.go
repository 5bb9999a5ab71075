package cluster

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// streamLayer carries raft over the management plane's TLS. Raft's own
// transport authenticates nobody and bounds nothing: TLS names the CA, the
// preamble the cluster and the node, and each connection bounds what one
// request may take.
type streamLayer struct {
	self    raft.ServerAddress
	dial    func(ctx context.Context, addr string) (net.Conn, error)
	know    func() acquaintance
	timeout time.Duration // of dial and preamble, and for a request to arrive in full
	onWrong func(error)   // a preamble that was refused

	ctx    context.Context
	cancel context.CancelFunc
	ready  chan net.Conn
	mu     sync.Mutex
	conns  map[*raftConn]struct{}
	in     int // inbound ones among conns, and those in their preamble
	closed bool
	muted  int            // writes of the disk that hang: no connection while there are any
	wg     sync.WaitGroup // inbound handlers
}

var _ raft.StreamLayer = (*streamLayer)(nil)

func newStreamLayer(self string, timeout time.Duration, dial func(context.Context, string) (net.Conn, error),
	know func() acquaintance, onWrong func(error)) *streamLayer {
	ctx, cancel := context.WithCancel(context.Background())
	return &streamLayer{
		self: raft.ServerAddress(self), dial: dial, know: know, timeout: timeout, onWrong: onWrong,
		ctx: ctx, cancel: cancel,
		ready: make(chan net.Conn, raftBacklog),
		conns: map[*raftConn]struct{}{},
	}
}

// handle owns an inbound connection until it is closed; the management
// listener calls it on the connection's goroutine.
func (s *streamLayer) handle(c net.Conn) {
	rc := s.track(c, true)
	if rc == nil {
		_ = c.Close()
		return
	}
	defer s.wg.Done()
	defer func() { _ = rc.Close() }()
	if err := s.greet(c); err != nil {
		s.onWrong(err)
		return
	}
	select {
	case s.ready <- rc:
	case <-s.ctx.Done():
		return
	}
	select {
	case <-rc.done:
	case <-s.ctx.Done():
	}
}

// greet reads the other's preamble and answers with ours and our verdict.
func (s *streamLayer) greet(c net.Conn) error {
	if err := c.SetDeadline(seam.Deadline(s.timeout)); err != nil {
		return err
	}
	theirs, err := readPreamble(c)
	if err != nil {
		return err
	}
	a := s.know()
	ours := &wire.PeerHello{Version: wire.Version, ClusterId: a.clusterID, Node: a.self}
	refusal := a.judge(theirs, "")
	if refusal != nil {
		ours.Refused, ours.Message = refusal.Code, refusal.Message
	}
	if err := writePreamble(c, ours); err != nil {
		return err
	}
	if refusal != nil {
		return refusal
	}
	return c.SetDeadline(time.Time{})
}

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, min(timeout, s.timeout))
	defer cancel()
	c, err := s.dial(ctx, string(addr))
	if err != nil {
		return nil, err
	}
	rc := s.track(c, false)
	if rc == nil {
		_ = c.Close()
		return nil, wire.Errorf(wire.Code_SHUTTING_DOWN, "this node is closing")
	}
	if err := s.introduce(c, string(addr)); err != nil {
		_ = rc.Close()
		return nil, err
	}
	return rc, nil
}

// introduce sends our preamble and judges the answer.
func (s *streamLayer) introduce(c net.Conn, addr string) error {
	if err := c.SetDeadline(seam.Deadline(s.timeout)); err != nil {
		return err
	}
	a := s.know()
	if err := writePreamble(c, &wire.PeerHello{Version: wire.Version, ClusterId: a.clusterID, Node: a.self}); err != nil {
		return err
	}
	theirs, err := readPreamble(c)
	if err != nil {
		return err
	}
	if theirs.GetRefused() != wire.Code_OK {
		return &wire.Error{Code: theirs.GetRefused(), Message: "the node at " + addr + " refuses raft: " + theirs.GetMessage()}
	}
	expect := ""
	for id, at := range a.servers {
		if at == addr {
			expect = id
		}
	}
	if refusal := a.judge(theirs, expect); refusal != nil {
		s.onWrong(refusal)
		return refusal
	}
	return c.SetDeadline(time.Time{})
}

// track takes note of a connection; nil if the layer is closed or full.
func (s *streamLayer) track(c net.Conn, inbound bool) *raftConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.muted > 0 || (inbound && s.in >= raftConnsMax) {
		return nil
	}
	rc := &raftConn{Conn: c, layer: s, inbound: inbound, timeout: s.timeout, done: make(chan struct{})}
	s.conns[rc] = struct{}{}
	if inbound {
		s.in++
		s.wg.Add(1)
	}
	return rc
}

// mute cuts this node off from raft, or lets it back: its heartbeats run apart
// from its disk, and would keep the others from electing while it can commit
// nothing. It counts.
func (s *streamLayer) mute(on bool) {
	s.mu.Lock()
	if !on {
		s.muted--
		s.mu.Unlock()
		return
	}
	s.muted++
	conns := make([]*raftConn, 0, len(s.conns))
	for rc := range s.conns {
		conns = append(conns, rc)
	}
	s.mu.Unlock()
	for _, rc := range conns {
		_ = rc.Close()
	}
}

func (s *streamLayer) forget(rc *raftConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.conns[rc]; !ok {
		return
	}
	delete(s.conns, rc)
	if rc.inbound {
		s.in--
	}
}

// Accept implements net.Listener.
func (s *streamLayer) Accept() (net.Conn, error) {
	select {
	case c := <-s.ready:
		return c, nil
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener: the address that other nodes reach us at.
func (s *streamLayer) Addr() net.Addr { return advertised(s.self) }

type advertised string

func (a advertised) Network() string { return "tcp" }
func (a advertised) String() string  { return string(a) }

// Close implements net.Listener; it ends every connection, so that raft's
// readers return, and waits for the inbound handlers.
func (s *streamLayer) Close() error {
	s.mu.Lock()
	s.closed = true
	conns := make([]*raftConn, 0, len(s.conns))
	for rc := range s.conns {
		conns = append(conns, rc)
	}
	s.mu.Unlock()
	s.cancel()
	for _, rc := range conns {
		_ = rc.Close()
	}
	s.wg.Wait()
	return nil
}

// raftConn bounds one request on an inbound connection. Raft reads a request in
// full, answers it, and only then reads on; so bytes that follow an answer begin
// a request, and until the next answer they belong to it.
type raftConn struct {
	net.Conn
	layer   *streamLayer
	inbound bool
	timeout time.Duration

	taken    atomic.Int64 // bytes of the request at hand; 0 between requests
	snapshot atomic.Bool  // the request at hand streams a snapshot, of any size
	once     sync.Once
	done     chan struct{}
}

// rpcInstallSnapshot is the byte with which raft's transport begins one.
const rpcInstallSnapshot = 2

func (c *raftConn) Read(p []byte) (int, error) {
	if !c.inbound {
		return c.Conn.Read(p)
	}
	// Between requests a connection may idle for days (keep-alive finds a dead
	// peer); within one it must make progress.
	deadline := time.Time{}
	if c.taken.Load() > 0 {
		deadline = seam.Deadline(c.timeout)
	}
	if err := c.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		if c.taken.Load() == 0 {
			c.snapshot.Store(p[0] == rpcInstallSnapshot)
		}
		if total := c.taken.Add(int64(n)); total > raftRequestBytesMax && !c.snapshot.Load() {
			return 0, wire.Errorf(wire.Code_FRAME_TOO_LARGE, "a raft request is over %d bytes", raftRequestBytesMax)
		}
	}
	return n, err
}

func (c *raftConn) Write(p []byte) (int, error) {
	if !c.inbound {
		return c.Conn.Write(p)
	}
	c.taken.Store(0)
	if err := c.SetWriteDeadline(seam.Deadline(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

func (c *raftConn) Close() error {
	var err error
	c.once.Do(func() {
		err = c.Conn.Close()
		close(c.done)
		c.layer.forget(c)
	})
	return err
}
