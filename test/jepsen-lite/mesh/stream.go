package mesh

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Sizes of the stream proxies.
const (
	chunkMax    = 32 << 10
	chunksMax   = 64 // under way in one direction: 2 MiB, about a socket's buffers
	dialTimeout = 5 * time.Second
)

// accept takes streams that came for the node.
func (n *nodeProxy) accept() {
	defer n.m.wg.Done()
	for {
		c, err := n.stream.Accept()
		if err != nil {
			if isClosed(err) || n.m.ctx.Err() != nil {
				return
			}
			time.Sleep(time.Millisecond) // out of descriptors: let some go
			continue
		}
		n.m.wg.Add(1)
		go n.serve(c.(*net.TCPConn))
	}
}

// serve pipes one stream. A node that refuses is a reset to whoever dialled.
func (n *nodeProxy) serve(c *net.TCPConn) {
	m := n.m
	defer m.wg.Done()
	src := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	p := &pipe{from: m.who(src), to: n.name, in: c}
	p.ctx, p.cancel = context.WithCancel(m.ctx)
	defer p.cancel()
	m.mu.Lock()
	m.pipes[p] = struct{}{}
	m.mu.Unlock()
	defer func() {
		p.reset()
		m.mu.Lock()
		delete(m.pipes, p)
		m.mu.Unlock()
	}()
	there, back := m.link(p.from, p.to), m.link(p.to, p.from)
	// A connection needs both directions to come about.
	if !there.open(p.ctx) || !back.open(p.ctx) {
		return
	}
	out, err := n.dial(p.ctx)
	if err != nil || !p.join(out) {
		return
	}
	var wg sync.WaitGroup
	wg.Add(2)
	go func() { defer wg.Done(); p.copy(c, out, there, true) }()
	go func() { defer wg.Done(); p.copy(out, c, back, false) }()
	wg.Wait()
	p.finish()
}

func (n *nodeProxy) dial(ctx context.Context) (*net.TCPConn, error) {
	from := net.TCPAddrFromAddrPort(netip.AddrPortFrom(n.m.ip(flowsFrom), 0))
	d := net.Dialer{LocalAddr: from, Timeout: dialTimeout}
	c, err := d.DialContext(ctx, "tcp4", n.m.RealMgmt(n.i))
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// pipe is one proxied stream.
type pipe struct {
	from, to string
	ctx      context.Context
	cancel   context.CancelFunc

	mu   sync.Mutex
	in   *net.TCPConn
	out  *net.TCPConn
	dead bool
}

// join adds the far connection, unless the pipe was reset meanwhile.
func (p *pipe) join(out *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		out.Close()
		return false
	}
	p.out = out
	return true
}

// finish closes both connections after both directions ended in order; what the
// kernel still holds is delivered.
func (p *pipe) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.dead {
		p.dead = true
		p.in.Close()
		p.out.Close()
	}
}

// reset ends both connections at once.
func (p *pipe) reset() {
	p.cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return
	}
	p.dead = true
	for _, c := range []*net.TCPConn{p.in, p.out} {
		if c != nil {
			_ = c.SetLinger(0)
			c.Close()
		}
	}
}

type chunk struct {
	data []byte
	due  time.Time
}

// copy carries one direction: what is read gets its delay at once, and is
// written when that is over and the link is open. The end of the stream travels
// like data. An error of either side resets the pipe.
func (p *pipe) copy(src, dst *net.TCPConn, l *link, dialled bool) {
	queue := make(chan chunk, chunksMax)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for c := range queue {
			if !p.write(dst, c, l) {
				p.reset()
				// Drain, so that the reader, which p.reset has woken, can end.
				for range queue {
				}
				return
			}
		}
		if l.open(p.ctx) {
			_ = dst.CloseWrite()
		}
	}()
	for {
		buf := make([]byte, chunkMax)
		n, err := src.Read(buf)
		if n > 0 {
			queue <- chunk{data: buf[:n], due: time.Now().Add(l.chunk(n, dialled))}
		}
		if err != nil {
			if err != io.EOF && !isClosed(err) {
				// A reset travels like data, too: the other side learns of it
				// only if the link lets it.
				if l.open(p.ctx) {
					p.reset()
				}
			}
			break
		}
	}
	close(queue)
	<-done
}

func (p *pipe) write(dst *net.TCPConn, c chunk, l *link) bool {
	if d := time.Until(c.due); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-p.ctx.Done():
			return false
		}
	}
	if !l.open(p.ctx) {
		return false
	}
	_, err := dst.Write(c.data)
	return err == nil
}
