package worker

import (
	"crypto/subtle"
	"io"
	"sync"
	"sync/atomic"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// streamsMax bounds the handlers of byte streams that a node runs at once. With a
// window each way, and one on its way out, that is 3 GiB at the very worst.
const streamsMax = 4096

// streams are the byte streams of the sessions that this worker owns. Like live
// state they outlive activations, and they follow ownership: those of an epoch
// that is over are lost, unless a move carries them on.
//
// Lock order: session.mu, streams.mu, stream.mu.
type streams struct {
	w       *Worker
	running atomic.Int64 // handlers that have not returned

	mu sync.Mutex
	of map[string]*sessionStreams
}

type sessionStreams struct {
	epoch, first uint64 // first: position of the command that brought the epoch
	// migration, while not 0, has stopped all handlers; none may start.
	migration uint64
	byKey     map[streamKey]*stream
	// lost is, by client, the highest number of a stream that has ended without the
	// client's doing: it may ask for it still, not having heard that it had begun.
	lost map[string]uint64
}

// lostMax bounds the clients of a session that are remembered for their lost streams.
// There are more only where clients displace each other all the time.
const lostMax = 256

func (e *sessionStreams) lose(key streamKey) {
	if e.lost == nil {
		e.lost = make(map[string]uint64)
	}
	before, known := e.lost[key.client]
	for client := range e.lost {
		if known || len(e.lost) < lostMax {
			break
		}
		delete(e.lost, client)
	}
	e.lost[key.client] = max(before, key.id)
}

// streamKey is the client instance and its number for the stream.
type streamKey struct {
	client string
	id     uint64
}

// serveStream serves one QUIC stream of a byte stream.
func (w *Worker) serveStream(link Link, f *wire.StreamReq) {
	if err := checkIDs(f.GetSession(), f.GetInstance()); err != nil {
		bye(link, err)
		return
	}
	if f.GetRelay() && f.GetRelayTo() != w.cfg.ID {
		w.relayTo(link, &wire.ClientFrame{Kind: &wire.ClientFrame_Stream{Stream: f}}, w.nodeInfo(f.GetRelayTo()))
		return
	}
	if w.unavailable(link) {
		return
	}
	st, err := w.bindStream(link, f)
	if err != nil {
		bye(link, err)
		return
	}
	for {
		frame, err := link.Recv()
		if err != nil {
			break
		}
		on, over, why := st.take(link, frame)
		if over {
			w.streams.remove(st, why)
		}
		if !on {
			break
		}
	}
	st.unlink(link)
}

// bindStream finds or begins the byte stream of an attached client. Whoever
// cannot show the attachment's token learns nothing, not even whether the session
// is here.
func (w *Worker) bindStream(link Link, f *wire.StreamReq) (*stream, error) {
	stranger := wire.Errorf(wire.Code_NOT_ATTACHED, "no client is attached here with this token: attach to the session's owner first")
	s := w.lookup(f.GetSession())
	if s == nil {
		return nil, stranger
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[string(f.GetInstance())]
	switch {
	case q == nil || s.act == nil || len(f.GetToken()) != wire.StreamTokenBytes,
		subtle.ConstantTimeCompare(q.att.streamToken, f.GetToken()) != 1:
		return nil, stranger
	case s.freeze != nil:
		return nil, errStreamFrozen
	}
	return w.streams.bind(s, link, f)
}

var errStreamFrozen = wire.Errorf(wire.Code_FROZEN, "the session is being handed over: ask again")

// newStreamToken is nil, and no stream can be opened, if there is no randomness.
func (w *Worker) newStreamToken() []byte {
	b := make([]byte, wire.StreamTokenBytes)
	if _, err := io.ReadFull(w.cfg.Rand, b); err != nil {
		return nil
	}
	return b
}

// bind links a client to its stream. The session's mutex is held.
func (t *streams) bind(s *session, link Link, f *wire.StreamReq) (*stream, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.enter(s.id, s.act.epoch, s.act.first)
	switch {
	case e == nil:
		return nil, wire.Errorf(wire.Code_RETRY, "the session begins a later epoch here: ask again")
	case e.migration != 0:
		return nil, errStreamFrozen
	}
	key := streamKey{string(f.GetInstance()), f.GetStream()}
	st := e.byKey[key]
	fresh := st == nil
	if fresh {
		if err := t.mayBegin(e, s.act.streamsSince, f); err != nil {
			t.tidy(s.id, e)
			return nil, err
		}
		st = t.newStream(s.id, e, key)
		st.method, st.argument = f.GetMethod(), f.GetArgument()
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := st.attach(link, f); err != nil {
		t.tidy(s.id, e)
		return nil, err
	}
	if fresh {
		e.byKey[key] = st
		st.start()
	}
	return st, nil
}

// mayBegin decides about a stream that is not known here. One that the client has
// seen begun, or that may have begun in an earlier epoch, must not begin twice. In
// one of the epochs from since on it has not: it would have come along.
func (t *streams) mayBegin(e *sessionStreams, since uint64, f *wire.StreamReq) error {
	switch {
	case f.GetOpened() || f.GetBorn() < since || f.GetBorn() > e.epoch || f.GetStream() <= e.lost[string(f.GetInstance())]:
		return wire.Errorf(wire.Code_STREAM_LOST, "the stream has ended, or the node that served it is gone, and what its handler had got done is not known; open another one")
	case t.w.cfg.App.streams[f.GetMethod()] == nil:
		return wire.Errorf(wire.Code_UNKNOWN_METHOD, "this server has no stream method %q", f.GetMethod())
	case len(e.byKey) >= wire.StreamsPerSessionMax:
		return wire.Errorf(wire.Code_TOO_MANY, "a session has at most %d byte streams at once: end some first", wire.StreamsPerSessionMax)
	case t.running.Load() >= streamsMax:
		return wire.Errorf(wire.Code_TOO_MANY, "this node serves %d byte streams already: try again later", streamsMax)
	}
	return nil
}

func (t *streams) newStream(session string, e *sessionStreams, key streamKey) *stream {
	return &stream{t: t, session: session, key: key, epoch: e.epoch, changed: newBroadcast()}
}

// enter returns the session's streams of an epoch, and ends those of former ones.
// nil: the epoch is over. t.mu is held.
func (t *streams) enter(session string, epoch, first uint64) *sessionStreams {
	e := t.of[session]
	switch {
	case e != nil && e.epoch == epoch:
		return e
	case e != nil && e.epoch > epoch:
		return nil
	case e != nil:
		t.endAll(session, e, errStreamLost)
	}
	e = &sessionStreams{epoch: epoch, first: first, byKey: make(map[streamKey]*stream)}
	t.of[session] = e
	return e
}

// tidy forgets the record of a session that has, and has lost, no streams. t.mu is
// held.
func (t *streams) tidy(session string, e *sessionStreams) {
	if t.of[session] == e && len(e.byKey) == 0 && len(e.lost) == 0 && e.migration == 0 {
		delete(t.of, session)
	}
}

// remove ends a stream for good; why is nil when all of it was delivered.
func (t *streams) remove(st *stream, why error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.of[st.session]; e != nil && e.byKey[st.key] == st {
		if delete(e.byKey, st.key); wire.CodeOf(why) == wire.Code_STREAM_LOST {
			e.lose(st.key)
		}
		t.tidy(st.session, e)
	}
	st.vanish(why)
}

// vanish tells handler and client that the stream is over.
func (st *stream) vanish(why error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.gone = true
	st.stopWaiting()
	if st.run != nil {
		st.run.cancel(why)
	}
	if st.link != nil {
		if why == nil {
			st.link.Bye(wire.Code_OK, "")
		} else {
			bye(st.link, why)
		}
		st.link = nil
	}
	st.changed.wake()
}

var errStreamLost = wire.Errorf(wire.Code_STREAM_LOST, "the session has another owner, and the stream did not come along")

// endAll ends all streams of a session. t.mu is held.
func (t *streams) endAll(session string, e *sessionStreams, why error) {
	if t.of[session] == e {
		delete(t.of, session)
	}
	for _, st := range e.byKey {
		st.vanish(why)
	}
}

// begin ends streams of epochs before this one.
func (t *streams) begin(session string, epoch uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.of[session]; e != nil && e.epoch < epoch {
		t.endAll(session, e, errStreamLost)
	}
}

// cut ends the links of a client, or of all (client ""), which may come back.
func (t *streams) cut(session, client string, code wire.Code, message string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.of[session]
	if e == nil {
		return
	}
	for key, st := range e.byKey {
		if client == "" || key.client == client {
			st.mu.Lock()
			st.cut(code, message)
			st.mu.Unlock()
		}
	}
}

// endClient ends the streams of a client that has left, or was displaced and may not
// know.
func (t *streams) endClient(session, client string, why error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.of[session]
	if e == nil {
		return
	}
	for key, st := range e.byKey {
		if key.client == client {
			if delete(e.byKey, key); wire.CodeOf(why) == wire.Code_DISPLACED {
				e.lose(key)
			}
			st.vanish(why)
		}
	}
	t.tidy(session, e)
}

// dropped follows the end of an activation. A client that lost its connection may
// come back to an epoch that still is this worker's.
func (t *streams) dropped(session string, code wire.Code, message string) {
	if code == wire.Code_NOT_ATTACHED {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.of[session]; e != nil {
		t.endAll(session, e, streamEnd(code, message))
	}
}

// streamEnd is what handlers are told of the end of a session's activation.
func streamEnd(code wire.Code, message string) error {
	switch code {
	case wire.Code_SESSION_CLOSED, wire.Code_SESSION_EXPIRED, wire.Code_UNKNOWN_SESSION, wire.Code_SHUTTING_DOWN:
		return wire.Errorf(code, "%s", message)
	}
	return errStreamLost
}

// dropAll ends all streams of the worker: its incarnation is over, or it stops.
func (t *streams) dropAll(code wire.Code, message string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for session, e := range t.of {
		t.endAll(session, e, streamEnd(code, message))
	}
}

func (t *streams) ids() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	ids := make([]string, 0, len(t.of))
	for id := range t.of {
		ids = append(ids, id)
	}
	return ids
}

// observe ends the streams of a session that the log has moved past, unless a move
// is under way, which sees to that itself (see observeSession).
func (t *streams) observe(id string, view func(func(*store.Store))) {
	t.mu.Lock()
	e := t.of[id]
	t.mu.Unlock()
	if e == nil {
		return
	}
	var why error
	view(func(st *store.Store) {
		sum, found := st.Session(id)
		switch {
		case found && sum.Epoch > e.epoch:
			why = errStreamLost
		case !found && e.first>>store.PositionBits <= st.Index():
			why = streamEnd(st.Location(id).GetGone(), "the session is no more")
		}
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	if why != nil && t.of[id] == e && e.migration == 0 {
		t.endAll(id, e, why)
	}
}
