package worker

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"time"

	"github.com/baton-cluster/baton/bulk"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// streamAloneTime is how long a byte stream waits for its client to come back on
// another connection. The client library gives an opening up well before.
const streamAloneTime = 30 * time.Second

// errStreamMoved is the cause when a handler is stopped for a move.
var errStreamMoved = wire.Errorf(wire.Code_STREAM_MOVED, "the session is moved to another node, and the stream's handler does not go along")

// stream is a byte stream at its owner. It outlives connections, and the runs of
// its handler.
type stream struct {
	t         *streams
	session   string
	key       streamKey
	epoch     uint64
	method    string
	argument  []byte
	resumable bool

	mu      sync.Mutex
	changed *broadcast
	in      bulk.Receiver
	out     bulk.Sender
	cookie  []byte        // of the last Ack
	run     *ServerStream // the handler's present run
	again   bool          // there was a run before
	link    Link          // where the client is; nil: nowhere
	alone   seam.Timer    // set while it is nowhere
	commit  *streamCommit // that the handler waits for
	commits uint64        // so far

	// stopping: a move is under way, no run begins. gone: nobody can come back to
	// the stream. ended: the handler has returned code and message, which follow
	// what it wrote.
	stopping, gone, ended bool
	code                  wire.Code
	message               string
}

// start runs the handler. st.mu is held.
func (st *stream) start() {
	m := st.t.w.cfg.App.streams[st.method]
	if m == nil {
		// Another release of the application handed it over.
		st.end(wire.Errorf(wire.Code_UNKNOWN_METHOD, "this server has no stream method %q", st.method))
		return
	}
	r := &ServerStream{st: st, done: make(chan struct{}), cookie: st.cookie, again: st.again}
	r.ctx, r.cancel = context.WithCancelCause(context.Background())
	st.run, st.again, st.resumable = r, true, m.resumable
	st.t.running.Add(1)
	st.t.w.spawn(func() {
		err := st.t.w.cfg.App.serveStream(m, r)
		st.returned(r, err)
	})
}

func (m *Mux) serveStream(sm *streamMethod, r *ServerStream) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = wire.Errorf(wire.Code_HANDLER_PANIC, "the handler of %q panicked: %v", r.st.method, p)
			m.panicked(r.st.method, p, debug.Stack())
		}
	}()
	return sm.handler(r)
}

// returned takes the end of a run.
func (st *stream) returned(r *ServerStream, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	defer close(r.done)
	st.t.running.Add(-1)
	// A handler that goes by its context's error means the cause of it.
	if cause := context.Cause(r.ctx); cause != nil && errors.Is(err, context.Canceled) {
		err = cause
	}
	stopped := context.Cause(r.ctx) == error(errStreamMoved) && errors.Is(err, errStreamMoved)
	r.cancel(nil)
	st.run = nil
	switch {
	case st.gone:
	case !stopped || !st.resumable:
		st.end(err)
	case !st.stopping: // the move was called off before the handler had returned
		st.resume()
	}
}

// resume begins a new run at what the last one acknowledged. The client sends
// again from there, on a new link. st.mu is held.
func (st *stream) resume() {
	st.cut(wire.Code_FROZEN, "the stream's handler begins anew: ask again")
	st.in = bulk.NewReceiver(st.in.Acked())
	st.start()
}

// end is the handler's end: what it returned follows what it wrote. st.mu is held.
func (st *stream) end(err error) {
	st.ended = true
	if err != nil {
		st.code, st.message = outcome(err)
	}
	st.out.Finish()
	st.pump()
}

// pump sends what the window lets through. Nothing blocks: the link's backlog is
// no longer than the window. st.mu is held.
func (st *stream) pump() {
	if st.link == nil {
		return
	}
	for {
		c, ok := st.out.Next()
		if !ok {
			return
		}
		d := &wire.StreamData{Offset: c.Offset, Payload: c.Data, Fin: c.Fin}
		if c.Fin {
			d.Code, d.Message = st.code, st.message
		}
		_ = st.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_StreamData{StreamData: d}})
	}
}

// sendAck tells the client what it may forget, if it is time to. st.mu is held.
func (st *stream) sendAck() {
	if st.link == nil {
		return
	}
	if to, due := st.in.Due(); due {
		_ = st.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_StreamAck{StreamAck: &wire.StreamAck{Offset: to}}})
	}
}

// attach makes link the way to the client, which goes on where f says. st.mu is
// held.
func (st *stream) attach(link Link, f *wire.StreamReq) error {
	if err := st.out.Ack(f.GetRead()); err != nil {
		return err
	}
	if err := st.out.Rewind(f.GetReceived()); err != nil {
		return err
	}
	st.cut(wire.Code_RETRY, "the client goes on over another connection")
	st.stopWaiting()
	st.link = link
	_ = link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_StreamOpened{StreamOpened: &wire.StreamOpened{
		Received: st.in.Next(), Acked: st.in.Tell(),
	}}})
	st.pump()
	st.askCommit()
	st.changed.wake()
	return nil
}

// cut ends the present link; the client may come back on another. st.mu is held.
func (st *stream) cut(code wire.Code, message string) {
	if st.link != nil {
		st.link.Bye(code, message)
		st.link = nil
		st.waitAlone()
		st.changed.wake()
	}
}

// waitAlone gives the client some time to come back. st.mu is held.
func (st *stream) waitAlone() {
	st.stopWaiting()
	var t seam.Timer
	t = st.t.w.cfg.Clock.AfterFunc(streamAloneTime, func() {
		st.mu.Lock()
		late := st.alone == t && st.link == nil
		st.mu.Unlock()
		if late {
			st.t.remove(st, wire.Errorf(wire.Code_STREAM_LOST, "the client was away for more than %v", streamAloneTime))
		}
	})
	st.alone = t
}

func (st *stream) stopWaiting() {
	if st.alone != nil {
		st.alone.Stop()
		st.alone = nil
	}
}

// take takes a frame that came on link. on: the link goes on. over: the stream is
// to be removed, for the reason given, or because the client has all of it.
func (st *stream) take(link Link, f *wire.ClientFrame) (on, over bool, why error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.link != link {
		return false, false, nil
	}
	switch k := f.GetKind().(type) {
	case *wire.ClientFrame_StreamData:
		if !st.ended { // nobody reads it any more
			d := k.StreamData
			why = st.in.Take(bulk.Chunk{Offset: d.GetOffset(), Data: d.GetPayload(), Fin: d.GetFin()})
		}
	case *wire.ClientFrame_StreamAck:
		why = st.out.Ack(k.StreamAck.GetOffset())
		over = k.StreamAck.GetDone() && st.ended && st.out.Acked() == st.out.End()
	case *wire.ClientFrame_StreamCancel:
		why = wire.Errorf(wire.Code_CANCELLED, "the client wants no more of the stream")
	default:
		why = wire.Errorf(wire.Code_BAD_REQUEST, "a byte stream carries data, acknowledgements and cancel")
	}
	over = over || why != nil
	st.changed.wake()
	return !over, over, why
}

// unlink notes that a link has ended.
func (st *stream) unlink(link Link) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.link == link {
		st.link = nil
		if !st.gone {
			st.waitAlone()
		}
		st.changed.wake()
	}
}
