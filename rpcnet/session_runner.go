package rpcnet

import (
	"bufio"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// eventsMax bounds what waits for the application's callbacks: what the server
// may keep unacknowledged, and as much again. Past it the stream is dropped.
const eventsMax = 2 * wire.OutboxMax

// runner gives a session's core its IO: streams, a timer, callbacks. Every event
// takes mu, changes the core, and carries out its actions before mu is released,
// so that frames go out in the order that the core decided. Nothing under mu
// blocks: frames are queued, streams are dialled on goroutines of their own.
//
// Goroutines, all waited for by Client.Close: one a stream, which dials and then
// reads it; one that calls back, while there is something to call back with; two a
// byte stream, see bulk.go.
type runner struct {
	self   *Session
	client *Client
	cfg    *ClientConfig
	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	ready  chan struct{} // closed when attached for the first time
	done   chan struct{} // closed when the session has ended

	mu      sync.Mutex
	core    *core
	streams map[int]*clientStream
	timer   seam.Timer
	timerAt time.Duration
	events  []action // for the callbacks
	pushes  int      // of events
	calling bool     // a goroutine is at them
	onPush  func(Push)
	onMove  func(Move)
	onGap   func(Gap)
	bulk    byteStreams
}

// clientStream is the client's end of one session stream. Its fields other than
// cancel are set once it stands.
type clientStream struct {
	cancel context.CancelFunc // ends the dialling
	pc     *pooledConn
	out    *sendQueue
	before uint64 // packets received on the connection when the stream began, or at actListen
}

// hears reports whether the node at the other end has sent anything since: its
// connection is a good one, whatever the silence is about.
func (cs *clientStream) hears() bool { return cs.pc != nil && cs.pc.received() > cs.before }

// newSession makes a session and waits until it is attached.
func (c *Client) newSession(ctx context.Context, id string, secret []byte, node string, open *wire.OpenReq) (*Session, error) {
	if len(secret) != wire.SecretBytes {
		return nil, wire.Errorf(wire.Code_BAD_SECRET, "a secret has %d bytes, this one %d", wire.SecretBytes, len(secret))
	}
	instance, err := c.random(wire.IDBytes)
	if err != nil {
		return nil, err
	}
	if open != nil {
		open.Instance = instance
	}
	s := &Session{id: id, secret: secret}
	s.self, s.client, s.cfg = s, c, &c.cfg
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.ready, s.done = make(chan struct{}), make(chan struct{})
	s.streams, s.bulk = map[int]*clientStream{}, newByteStreams()
	s.core = newCore(coreConfig{
		session: id, secret: secret, instance: instance, open: open, prefer: node, cluster: c.clusterID,
		relay: c.cfg.Relay, silence: c.cfg.Silence, suspect: 2 * c.cfg.Silence, book: c.book, jitter: c.jitter,
		boot:    func() time.Duration { return seam.Boot(c.cfg.Clock) },
		standby: c.cfg.Standby, slot: c.slot,
		hears: func(route int) bool {
			cs := s.streams[route]
			return cs != nil && cs.hears()
		},
		rtt: func(route int) time.Duration {
			if cs := s.streams[route]; cs != nil && cs.pc != nil {
				return cs.pc.qc.ConnectionStats().SmoothedRTT
			}
			return 0
		},
	})
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		s.cancel()
		return nil, errClientClosed
	}
	c.sessions[s] = struct{}{}
	c.mu.Unlock()
	s.do(s.core.start)
	if err := s.awaitReady(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// awaitReady waits for the first attachment; without it there is no session.
func (s *Session) awaitReady(ctx context.Context) error {
	late := make(chan struct{})
	if _, ok := ctx.Deadline(); !ok {
		defer s.cfg.Clock.AfterFunc(s.cfg.RequestTimeout, func() { close(late) }).Stop()
	}
	cause := context.DeadlineExceeded
	select {
	case <-s.ready:
		return nil
	case <-s.done:
		return s.Err()
	case <-ctx.Done():
		cause = ctx.Err()
	case <-late:
	}
	s.mu.Lock()
	last := s.core.hunt.lastErr
	s.mu.Unlock()
	e := wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "the session's owner was not reached in time; the last obstacle: %v", last)
	err := &deadlineError{refusal: e, cause: cause}
	s.stop(err)
	return err
}

// stop ends the session on this side only.
func (r *runner) stop(why error) {
	r.do(func(time.Duration) { r.core.end(why) })
}

// do runs one event.
func (r *runner) do(event func(now time.Duration)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.doLocked(event)
}

func (r *runner) doLocked(event func(now time.Duration)) {
	event(r.cfg.Clock.Now())
	actions := r.core.take()
	for i := range actions {
		r.run(&actions[i])
		actions[i] = action{} // keep no payloads
	}
	r.bulk.update(r.core.site())
	r.arm()
}

// run carries out one action. A frame that cannot be sent is not an event: the
// stream's reader sees the stream break.
func (r *runner) run(a *action) {
	switch a.kind {
	case actDial:
		r.dial(a.route, a.addr, a.frame, a.crowd)
	case actSend:
		if cs := r.streams[a.route]; cs != nil && cs.out != nil {
			if err := cs.out.send(a.frame, false); err != nil {
				r.client.log.Debug("a frame was not sent", slog.Any("err", err))
			}
		}
	case actListen:
		if cs := r.streams[a.route]; cs != nil && cs.pc != nil {
			cs.before = cs.pc.received()
		}
	case actDrop:
		r.drop(a.route, a.silent)
	case actRelease:
		close(a.call.done)
	case actPush:
		r.pushes++
		r.event(*a)
	case actMove, actAttempt:
		r.event(*a)
	case actReady:
		close(r.ready)
	case actEnd:
		r.ended()
	}
}

// arm sets the timer if it has to go off earlier than it is set for. One that
// goes off too early finds nothing to do and sets itself anew.
func (r *runner) arm() {
	at := r.core.wake()
	if at == 0 || r.timer != nil && r.timerAt <= at {
		return
	}
	if r.timer != nil {
		r.timer.Stop()
	}
	r.timerAt = at
	r.timer = r.cfg.Clock.AfterFunc(max(0, at-r.cfg.Clock.Now()), func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.timer = nil
		r.doLocked(r.core.tick)
	})
}

// dial opens a stream on a goroutine of its own, which then reads it.
func (r *runner) dial(id int, addr string, first *wire.ClientFrame, crowd time.Duration) {
	ctx, cancel := context.WithCancel(r.ctx)
	cs := &clientStream{cancel: cancel}
	r.streams[id] = cs
	r.client.wg.Go(func() {
		defer cancel()
		qs, pc, sent, err := r.client.pool.openFor(ctx, addr, r.cfg.TLS, dialFor{early: earlyFrame(first), crowd: crowd})
		if err != nil {
			r.do(func(now time.Duration) {
				delete(r.streams, id)
				r.core.lost(now, id, err, false)
			})
			return
		}
		defer r.client.pool.release(pc)
		out := &sendQueue{qs: qs, conn: &pc.writer, limit: callsBytesMax, workers: &r.client.wg}
		dropped := true
		r.do(func(now time.Duration) {
			if r.streams[id] != cs {
				return
			}
			dropped = false
			cs.pc, cs.out, cs.before = pc, out, pc.received()
			if !sent {
				if err := out.send(first, false); err != nil {
					r.client.log.Debug("a first frame was not sent", slog.Any("err", err))
				}
			}
			r.core.opened(now, id)
		})
		if dropped {
			out.reset(wire.Code_CANCELLED)
			return
		}
		err = r.read(id, bufio.NewReaderSize(qs, streamReadBytes))
		r.do(func(now time.Duration) {
			if r.streams[id] == cs {
				r.drop(id, false)
				r.core.lost(now, id, err, true)
			}
		})
	})
}

// earlyFrame is first, encoded, if it may travel in 0-RTT: it is idempotent, and
// bears no secret but a token that a pivot uses up.
func earlyFrame(first *wire.ClientFrame) []byte {
	if a := first.GetAttach(); a.GetMigration() == 0 || len(a.GetSecret()) > 0 {
		return nil
	}
	b, err := AppendFrame(nil, first, wire.FrameBytesMax)
	if err != nil {
		return nil // then sending it says why
	}
	return b
}

// callsBytesMax bounds what waits to be sent on one stream: all calls that may be
// out at once, twice over.
const callsBytesMax = 2 * (WritesInFlightMax + ReadsInFlightMax) * wire.FrameBytesMax

// read feeds a stream's frames to the core until it breaks.
func (r *runner) read(id int, br *bufio.Reader) error {
	var buf []byte
	for {
		b, err := ReadFrame(br, wire.FrameBytesMax, buf)
		if err != nil {
			return streamErr(err)
		}
		if buf = b; cap(b) > frameStepBytes {
			buf = nil
		}
		f, err := decodeServerFrame(b)
		if err != nil {
			return err
		}
		flooded := false
		r.do(func(now time.Duration) {
			flooded = r.pushes > eventsMax
			if cs := r.streams[id]; cs != nil && cs.pc != nil && f.GetBye().GetCode() == wire.Code_CONNECTION_FULL {
				r.client.pool.refused(cs.pc) // the next stream gets another connection
			}
			r.core.frame(now, id, f)
		})
		if flooded {
			return wire.Errorf(wire.Code_OVERLOADED, "more pushes than the application takes")
		}
	}
}

// drop finishes a stream. What flow control has let through still arrives; a
// backlog does not, because it is being sent elsewhere.
func (r *runner) drop(id int, silent bool) {
	cs := r.streams[id]
	if cs == nil {
		return
	}
	delete(r.streams, id)
	cs.cancel()
	if cs.out == nil {
		return
	}
	if silent && !cs.hears() {
		r.client.pool.retire(cs.pc)
	}
	if cs.out.emptied() != nil {
		cs.out.reset(wire.Code_MOVED)
		return
	}
	cs.out.finish()
	cs.out.qs.CancelRead(0)
}

// ended runs once, when the core has ended.
func (r *runner) ended() {
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	for id := range r.streams {
		r.drop(id, false)
	}
	r.bulk.end(r.core.ended)
	r.cancel()
	close(r.done)
	c := r.client
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sessions, r.self)
}

// event queues something for the application.
func (r *runner) event(a action) {
	r.events = append(r.events, a)
	r.callBack()
}

func (r *runner) setHandlers(set func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	set()
	r.callBack()
}

// callBack needs mu. It starts the goroutine that calls back, if it is needed.
func (r *runner) callBack() {
	if r.calling || r.core.ended != nil || len(r.events) == 0 || !r.callable(&r.events[0]) {
		return
	}
	r.calling = true
	r.client.wg.Go(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for len(r.events) > 0 && r.callable(&r.events[0]) {
			a := r.events[0]
			r.events[0] = action{}
			r.events = r.events[1:]
			r.callOne(a)
		}
		r.calling = false
	})
}

// callable reports whether a can go now: pushes wait for somebody to take them.
func (r *runner) callable(a *action) bool { return a.kind != actPush || r.onPush != nil }

// callOne calls the application with a, without mu.
func (r *runner) callOne(a action) {
	onPush, onMove, onGap := r.onPush, r.onMove, r.onGap
	r.mu.Unlock()
	switch a.kind {
	case actPush:
		switch g := (Gap{From: a.push.Seq - a.push.Missed, To: a.push.Seq - 1, Epoch: a.push.Epoch}); {
		case a.push.Missed == 0:
		case onGap != nil:
			onGap(g)
		default:
			r.client.log.Warn("pushes are missing", "session", r.core.cfg.session, "from", g.From, "to", g.To)
		}
		onPush(a.push)
	case actMove:
		if onMove != nil {
			onMove(a.move)
		}
	case actAttempt:
		if r.cfg.Hooks.OnAttempt != nil {
			a.attempt.Session = r.core.cfg.session
			r.cfg.Hooks.OnAttempt(a.attempt)
		}
	}
	r.mu.Lock()
	if a.kind == actPush {
		r.pushes--
		r.doLocked(func(now time.Duration) { r.core.gotPushed(now, a.push.Seq) })
	}
}
