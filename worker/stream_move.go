package worker

import (
	"cmp"
	"slices"

	"github.com/baton-cluster/baton/bulk"
	"github.com/baton-cluster/baton/wire"
)

// A planned move and a session's byte streams. Before the session is frozen their
// handlers are stopped, in an orderly way: they see that they are to go, may write
// and acknowledge a last time, and leave a cookie. Then what there is of each
// stream travels with the connection state. At the target, or here if the move is
// off, handlers are started anew, and clients come back to them, each side saying
// which bytes it has.

// stop stops the handlers of the migration's session. On an error they have been
// told to go on, or somebody else has stopped them.
func (t *streams) stop(m *wire.Migration) error {
	t.mu.Lock()
	e := t.enter(m.GetSession(), m.GetSourceEpoch(), m.GetId())
	switch {
	case e == nil:
		t.mu.Unlock()
		return wire.Errorf(wire.Code_STALE_EPOCH, "the session is in a later epoch here")
	case e.migration != 0:
		t.mu.Unlock()
		return wire.Errorf(wire.Code_FROZEN, "the session's streams are stopped for migration %d", e.migration)
	}
	e.migration = m.GetId()
	var ends []chan struct{}
	for _, st := range e.byKey {
		if done := st.stop(); done != nil {
			ends = append(ends, done)
		}
	}
	t.mu.Unlock()
	if err := t.w.awaitEnds(ends); err != nil {
		t.goOn(m)
		return err
	}
	t.cut(m.GetSession(), "", wire.Code_FROZEN, "the session is being handed over: ask again")
	return nil
}

// stop tells the handler to return. It returns what is closed when it has, nil if
// none runs.
func (st *stream) stop() chan struct{} {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.stopping = true
	if st.run == nil {
		return nil
	}
	st.run.cancel(errStreamMoved)
	return st.run.done
}

func (w *Worker) awaitEnds(ends []chan struct{}) error {
	if len(ends) == 0 {
		return nil
	}
	late := make(chan struct{})
	t := w.cfg.Clock.AfterFunc(freezeGrace, func() { close(late) })
	defer t.Stop()
	for _, end := range ends {
		select {
		case <-end:
		case <-late:
			return wire.Errorf(wire.Code_OVERLOADED, "a byte stream's handler held up the move for more than %v", freezeGrace)
		case <-w.ctx.Done():
			return wire.Errorf(wire.Code_SHUTTING_DOWN, "the node stops")
		}
	}
	return nil
}

// goOn starts handlers again: the move is off. What the log has said of the session
// since they were stopped is looked up.
func (t *streams) goOn(m *wire.Migration) {
	defer t.observe(m.GetSession(), t.w.cfg.View)
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.of[m.GetSession()]
	if e == nil || e.migration != m.GetId() {
		return
	}
	e.migration = 0
	for _, st := range e.byKey {
		st.mu.Lock()
		st.stopping = false
		if st.run == nil && !st.ended && !st.gone {
			st.resume()
		}
		st.mu.Unlock()
	}
	t.tidy(m.GetSession(), e)
}

// forget ends this worker's part: the session, and its streams with it, is another
// owner's. Clients have been told to come back.
func (t *streams) forget(session string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.of[session]; e != nil {
		t.endAll(session, e, errStreamFrozen)
	}
}

// capture adds what travels to the connection state. All handlers have been stopped
// for the migration.
func (t *streams) capture(m *wire.Migration, cs *wire.ConnectionState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.of[m.GetSession()]
	if e == nil || e.migration != m.GetId() {
		cs.StreamsSince = 0 // they have ended meanwhile
		return
	}
	if len(e.lost) > 0 {
		cs.StreamsSince = 0 // the target does not know which
	}
	var states []*wire.StreamState
	for _, st := range e.byKey {
		st.mu.Lock()
		states = append(states, &wire.StreamState{
			Client: []byte(st.key.client), Stream: st.key.id, Method: st.method, Argument: st.argument,
			Acked: st.in.Acked(), Cookie: st.cookie, Sent: st.out.Acked(), Unread: slices.Clone(st.out.Kept()),
			Ended: st.ended, Code: st.code, Message: st.message,
		})
		st.mu.Unlock()
	}
	slices.SortFunc(states, func(a, b *wire.StreamState) int {
		return cmp.Or(slices.Compare(a.GetClient(), b.GetClient()), cmp.Compare(a.GetStream(), b.GetStream()))
	})
	cs.Streams = states
}

// install takes over the streams that the pivot has brought, before the session is
// served. If the next move is under way already, they wait for it.
func (t *streams) install(res *wire.Result, states []*wire.StreamState) {
	row := res.GetRow()
	defer t.observe(row.GetId(), t.w.cfg.View) // it may be over already
	inc := row.GetOwner().GetIncarnation()
	if inc != t.w.Incarnation() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.enter(row.GetId(), row.GetEpoch(), res.GetPosition())
	if e == nil {
		return
	}
	for _, s := range states {
		key := streamKey{string(s.GetClient()), s.GetStream()}
		if e.byKey[key] != nil {
			continue // the answer came twice
		}
		st := t.newStream(row.GetId(), e, key)
		e.byKey[key] = st
		st.mu.Lock()
		st.method, st.argument, st.cookie = s.GetMethod(), s.GetArgument(), s.GetCookie()
		st.ended, st.code, st.message = s.GetEnded(), s.GetCode(), s.GetMessage()
		st.in = bulk.NewReceiver(s.GetAcked())
		st.out = bulk.NewSender(s.GetSent(), s.GetUnread(), s.GetEnded())
		st.resumable, st.again, st.stopping = true, true, e.migration != 0
		st.waitAlone()
		if !st.ended && !st.stopping {
			st.start()
		}
		st.mu.Unlock()
	}
	if t.tidy(row.GetId(), e); inc != t.w.Incarnation() || t.w.closed.Load() {
		t.endAll(row.GetId(), e, errStreamLost)
	}
}
