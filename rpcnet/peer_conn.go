package rpcnet

import (
	"bufio"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// errPeerNotSent: the connection had ended before the frame was queued.
var errPeerNotSent = errors.New("rpcnet: the connection has ended")

// peerPing is the id of keepalive calls, and their method is empty. They are
// answered by the connection itself.
const peerPing = 0

var peerPingCall = &wire.PeerFrame{Id: peerPing, Kind: &wire.PeerFrame_Call{Call: &wire.PeerCall{}}}

// peerConn is the calling side of a connection.
type peerConn struct {
	peers  *Peers
	addr   string
	conn   SecureConn
	writer *peerWriter
	reader *peerReader
	slot   *peerSlot
	// ours and theirs are the cluster ids of the handshake; either may be empty.
	ours   []byte
	theirs *wire.PeerHello
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc

	doubted atomic.Bool // it is being looked whether the far side lives

	mu      sync.Mutex
	nextID  uint64
	calls   map[uint64]chan *wire.PeerAnswer // each with room for its one answer
	retired bool                             // gets no new calls, ends with its last
	err     error                            // why it ended
}

func newPeerConn(p *Peers, addr string, conn SecureConn, ours []byte, theirs *wire.PeerHello) *peerConn {
	c := &peerConn{peers: p, addr: addr, conn: conn, ours: ours, theirs: theirs, calls: map[uint64]chan *wire.PeerAnswer{}}
	c.ctx, c.cancel = context.WithCancel(p.ctx)
	c.reader = &peerReader{conn: conn, silence: p.silence()}
	c.writer = newPeerWriter(conn, p.silence(), func(err error) {
		c.fail(peerUnavailable(err, "the connection to %s broke: %v", addr, err))
	})
	return c
}

// silence is after how long without a byte a connection is given up.
func (p *Peers) silence() time.Duration { return peerSilence * p.cfg.keepalive }

// start runs the connection's goroutines, which Peers waits for.
func (c *peerConn) start() {
	for _, run := range []func(){c.writer.run, c.read, c.keepAlive} {
		c.peers.wg.Add(1)
		go func() {
			defer c.peers.wg.Done()
			run()
		}()
	}
}

// stale reports whether a new call should use a fresh connection: this one has
// ended, or was made before we knew our cluster's id and so was not checked.
func (c *peerConn) stale() bool {
	return c.ctx.Err() != nil || len(c.ours) == 0 && len(c.peers.cfg.ClusterID()) > 0
}

// retire lets the calls that wait finish.
func (c *peerConn) retire() {
	c.mu.Lock()
	c.retired = true
	idle := len(c.calls) == 0
	c.mu.Unlock()
	if idle {
		// Not here: the caller holds the lock that fail needs.
		c.cancel()
	}
}

// call sends one call and waits for its answer.
func (c *peerConn) call(ctx context.Context, method string, body []byte) ([]byte, error) {
	call := &wire.PeerCall{Method: method, Body: body}
	if deadline, ok := ctx.Deadline(); ok {
		// Contexts keep the runtime's time, not the clock's.
		left := time.Until(deadline)
		if left <= 0 { // ctx itself may not know yet
			return nil, peerContextError(context.DeadlineExceeded, method, c.addr)
		}
		call.TimeoutUs = uint64(left.Microseconds()) + 1
	}
	answer := make(chan *wire.PeerAnswer, 1)
	id, err := c.register(answer)
	if err != nil {
		return nil, err
	}
	defer c.forget(id)
	if err := c.writer.send(&wire.PeerFrame{Id: id, Kind: &wire.PeerFrame_Call{Call: call}}); err != nil {
		return nil, err
	}
	select {
	case a := <-answer:
		return peerOutcome(a)
	case <-ctx.Done():
		// The far side may stop; if it has begun to answer, that is ignored.
		_ = c.writer.send(&wire.PeerFrame{Id: id, Kind: &wire.PeerFrame_Cancel{Cancel: &wire.PeerCancel{}}})
		c.doubt()
		return nil, peerContextError(ctx.Err(), method, c.addr)
	case <-c.ctx.Done():
		select {
		case a := <-answer: // it came before the end
			return peerOutcome(a)
		default:
		}
		return nil, c.reason()
	}
}

func peerOutcome(a *wire.PeerAnswer) ([]byte, error) {
	if a.Code != wire.Code_OK {
		return nil, &wire.Error{Code: a.Code, Message: a.Message, Leader: a.Leader}
	}
	return a.Body, nil
}

func (c *peerConn) register(answer chan *wire.PeerAnswer) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.retired || c.ctx.Err() != nil {
		return 0, errPeerNotSent
	}
	c.nextID++
	c.calls[c.nextID] = answer
	return c.nextID, nil
}

// progress counts signs of life of the far side.
func (c *peerConn) progress() uint64 { return c.reader.reads.Load() + c.writer.large.Load() }

// doubt looks whether the far side lives, a call to which was given up: if nothing comes
// from it soon, nor does it take anything, the next call uses another connection. This one
// may be to a node that has lost its power and is back, and would stand for as long as
// that was away.
func (c *peerConn) doubt() {
	if !c.doubted.CompareAndSwap(false, true) {
		return
	}
	before := c.progress()
	_ = c.writer.send(peerPingCall)
	c.peers.cfg.Clock.AfterFunc(peerDoubt, func() {
		c.doubted.Store(false)
		if c.progress() != before {
			return
		}
		c.peers.mu.Lock()
		c.peers.drop(c.addr, c.slot)
		c.peers.mu.Unlock()
		c.retire()
	})
}

func (c *peerConn) forget(id uint64) {
	c.mu.Lock()
	delete(c.calls, id)
	last := c.retired && len(c.calls) == 0
	c.mu.Unlock()
	if last {
		c.cancel()
	}
}

// reason is why the connection ended; it may end an instant before that is
// written down.
func (c *peerConn) reason() error {
	if c.peers.ctx.Err() != nil {
		return wire.Errorf(wire.Code_SHUTTING_DOWN, "this node is shutting down")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return wire.Errorf(wire.Code_UNAVAILABLE, "the connection to %s ended", c.addr)
}

// fail ends the connection, and with it all calls. The first reason counts.
func (c *peerConn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.cancel()
	c.writer.close()
	peerCloseSocket(c.conn)
	c.peers.mu.Lock()
	c.peers.drop(c.addr, c.slot)
	c.peers.mu.Unlock()
}

// read delivers answers until the connection ends.
func (c *peerConn) read() {
	stop := context.AfterFunc(c.ctx, func() { peerCloseSocket(c.conn) })
	defer stop()
	err := c.readAnswers()
	c.fail(peerUnavailable(err, "the connection to %s ended: %v", c.addr, err))
}

func (c *peerConn) readAnswers() error {
	r := bufio.NewReaderSize(c.reader, peerReadBytes)
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
		a := f.GetAnswer()
		if a == nil {
			return wire.Errorf(wire.Code_BAD_REQUEST, "a frame that is no answer")
		}
		if err := c.peers.sameCluster(c.theirs.ClusterId); err != nil {
			return err
		}
		c.deliver(f.Id, a)
	}
}

// deliver hands an answer to its call; nobody waits for it any more, if the
// caller gave up.
func (c *peerConn) deliver(id uint64, a *wire.PeerAnswer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if answer, ok := c.calls[id]; ok {
		delete(c.calls, id)
		answer <- a
	}
}

// keepAlive makes the far side speak, so that its silence means something.
func (c *peerConn) keepAlive() {
	for seam.Sleep(c.ctx, c.peers.cfg.Clock, c.peers.cfg.keepalive) == nil {
		if c.writer.send(peerPingCall) != nil {
			return
		}
	}
}
