package matrix

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// link is a client's stream to a process: in order and without duplicates, like
// QUIC. While the way is cut, frames wait, and come late if it heals in time.
type link struct {
	w      *world
	proc   *process
	ctx    context.Context
	cancel context.CancelFunc
	up     *pipe // frames for the node
	down   *pipe // frames for the client
	cutAt  time.Duration

	mu   sync.Mutex
	over bool // nothing more is sent to the client
}

// dial opens a stream to a node. to gets what comes back; a nil frame is its end.
func (w *world) dial(id string, first *wire.ClientFrame, to func(*link, *wire.ServerFrame)) *link {
	l := &link{w: w, cutAt: -1}
	w.is(func() bool { l.proc = w.nodes[id].proc; return true })
	l.ctx, l.cancel = context.WithCancel(w.ctx)
	l.up, l.down = newPipe(), newPipe()
	if l.proc == nil {
		return l // nobody there: silence
	}
	w.change(func() { w.links = append(w.links, l) })
	w.wg.Go(func() {
		for {
			f, ok := l.down.take(l.ctx)
			if !ok || f != nil && !w.flow(l.ctx, id, clientName) {
				return
			}
			sf, _ := f.(*wire.ServerFrame)
			to(l, sf)
			if sf == nil || sf.GetBye() != nil {
				return
			}
		}
	})
	w.wg.Go(func() {
		if !w.flow(l.ctx, clientName, id) {
			return
		}
		l.proc.gate()
		if !l.proc.isDead() {
			l.proc.wk.Serve(l, first)
		}
	})
	return l
}

// Recv implements worker.Link.
func (l *link) Recv() (*wire.ClientFrame, error) {
	f, ok := l.up.take(l.ctx)
	if !ok || !l.w.flow(l.ctx, clientName, l.proc.id) {
		return nil, io.EOF
	}
	l.proc.gate()
	cf, _ := f.(*wire.ClientFrame)
	if cf == nil || l.proc.isDead() {
		return nil, io.EOF
	}
	return cf, nil
}

// Send implements worker.Link.
func (l *link) Send(f *wire.ServerFrame) error {
	dead := l.proc.isDead()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || dead {
		return io.ErrClosedPipe
	}
	l.down.put(clone(f))
	return nil
}

// Bye implements worker.Link.
func (l *link) Bye(code wire.Code, message string) {
	dead := l.proc.isDead()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || dead {
		return
	}
	l.over = true
	l.down.put(&wire.ServerFrame{Kind: &wire.ServerFrame_Bye{Bye: &wire.Bye{Code: code, Message: message}}})
	l.up.finish()
}

// Stats implements worker.Link.
func (l *link) Connection() *wire.Connection { return &wire.Connection{Alpn: "matrix"} }

// Confirmed implements worker.Link: a handshake is behind every stream here.
func (l *link) Confirmed() error { return nil }

// send puts a client's frame on its way.
func (l *link) send(f *wire.ClientFrame) { l.up.put(clone(f)) }

// hangUp ends the stream from the client's side; what was sent before arrives.
func (l *link) hangUp() { l.up.put(nil) }

// check ends a stream whose two ends have not heard each other for too long, or
// whose far end has been replaced by a process that does not know it. It reports
// whether the stream is over.
func (l *link) check() bool {
	node := l.proc.id
	w := l.w
	w.mu.Lock()
	n := w.nodes[node]
	whole := w.open(clientName, node) && w.open(node, clientName)
	dead := l.proc.dead
	reset := dead && n.proc != nil && whole
	if whole && !dead && !n.paused {
		l.cutAt = -1
	} else if l.cutAt < 0 {
		l.cutAt = w.now()
	}
	lost := l.cutAt >= 0 && w.now()-l.cutAt >= idleAfter
	w.mu.Unlock()
	if reset || lost {
		l.mu.Lock()
		l.over = true
		l.mu.Unlock()
		l.down.put(nil)
		l.up.finish()
	}
	return reset || lost
}

// pipe is an unbounded queue of frames.
type pipe struct {
	mu    sync.Mutex
	queue []any
	done  bool
	wake  chan struct{}
}

func newPipe() *pipe { return &pipe{wake: make(chan struct{}, 1)} }

func (p *pipe) put(f any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.done {
		p.queue = append(p.queue, f)
		p.kick()
	}
}

// finish lets what is queued be taken, and then the end.
func (p *pipe) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = true
	p.kick()
}

func (p *pipe) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pipe) take(ctx context.Context) (any, bool) {
	for {
		p.mu.Lock()
		if len(p.queue) > 0 {
			f := p.queue[0]
			p.queue = p.queue[1:]
			p.mu.Unlock()
			return f, true
		}
		done := p.done
		p.mu.Unlock()
		if done {
			return nil, false
		}
		select {
		case <-p.wake:
		case <-ctx.Done():
			return nil, false
		}
	}
}
