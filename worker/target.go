package worker

import (
	"context"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// The target's side of a handoff ("Life of a pivot", steps 3, 4 and 6 to 8).

const (
	// parkedMax and parkedBytesMax bound what a warm client may send before the
	// pivot: what its library keeps outstanding (32 writes, 512 queries), and
	// then some.
	parkedMax      = 1024
	parkedBytesMax = 4 << 20
)

// incoming is a migration to this node that has not been decided.
type incoming struct {
	m *wire.Migration

	mu sync.Mutex
	// Invariant: once closed, nothing is parked any more: session is the one
	// that the pivot brought here, or nil if the move was off.
	closed  bool
	session *session
	warm    map[string]*warmClient
	changed *broadcast
	arrival *arrival
	// pivots counts the pivots that are under way here: while there is one, what
	// the log says of it is for it to act on.
	pivots int
}

// warmClient is a client's stream to the target while the source still serves.
type warmClient struct {
	att    *attachment
	parked []*wire.ClientFrame
	bytes  int
}

// Prepare makes the target expect a migration (step 3).
func (w *Worker) Prepare(req *wire.PrepareReq) error {
	m := req.GetMigration()
	if m.GetTarget().GetWorker() != w.cfg.ID || m.GetTarget().GetIncarnation() != w.Incarnation() {
		return wire.Errorf(wire.Code_TARGET_STALE, "this is not the incarnation that the migration names")
	}
	if w.closed.Load() || w.Stalled() {
		return wire.Errorf(wire.Code_UNAVAILABLE, "the target cannot serve now")
	}
	if w.expect(m).isClosed() {
		return wire.Errorf(wire.Code_MIGRATION_ENDED, "the migration is over")
	}
	return nil
}

func (w *Worker) expect(m *wire.Migration) *incoming {
	w.mu.Lock()
	in := w.incoming[m.GetId()]
	if in == nil {
		in = &incoming{m: m, warm: make(map[string]*warmClient), changed: newBroadcast()}
		w.incoming[m.GetId()] = in
	}
	w.mu.Unlock()
	// Its end may have been observed before: then nothing else would end this.
	w.observeMigration(m.GetId())
	return in
}

// expected finds a migration to this incarnation that is under way: told by the
// director, or known from the log.
func (w *Worker) expected(id uint64) *incoming {
	w.mu.RLock()
	in := w.incoming[id]
	w.mu.RUnlock()
	if in != nil {
		return in
	}
	var m *wire.Migration
	w.cfg.View(func(st *store.Store) { m = st.Migration(id) })
	if m.GetPhase() != wire.Phase_PHASE_BEGUN || !proto.Equal(m.GetTarget(), w.owner()) {
		return nil
	}
	return w.expect(m)
}

// serveWarm takes a client that proves itself with the migration's token. The
// token is not consumed: the pivot does that. What the client sends is parked.
func (w *Worker) serveWarm(link Link, f *wire.AttachReq) {
	if err := checkIDs(f.GetSession(), f.GetInstance()); err != nil {
		bye(link, err)
		return
	}
	if f.GetRelay() && f.GetRelayTo() != "" && f.GetRelayTo() != w.cfg.ID {
		w.relay(link, f, w.nodeInfo(f.GetRelayTo()))
		return
	}
	in, err := w.checkToken(f)
	if err != nil {
		bye(link, err)
		return
	}
	if link.Confirmed() != nil {
		// A replay in 0-RTT shows that the client was able to reach some node
		// once, not that it reaches this one: it must not count as warm.
		return
	}
	c := &warmClient{att: newAttachment(link, f.GetInstance(), f.GetPushAck())}
	if !in.admit(c) {
		link.Bye(wire.Code_MIGRATION_ENDED, "the move is over: attach with the session's secret")
		return
	}
	for {
		frame, err := link.Recv()
		if err != nil {
			break
		}
		if !in.take(c, frame) {
			break
		}
	}
	if in.leave(c) {
		w.leave(c.att, f.GetSession())
	}
}

func (w *Worker) checkToken(f *wire.AttachReq) (*incoming, error) {
	in := w.expected(f.GetMigration())
	var m *wire.Migration
	var now uint64
	w.cfg.View(func(st *store.Store) {
		m = st.Migration(f.GetMigration())
		now = st.TimeUS()
	})
	if m == nil && in != nil {
		m = in.m // this node's state machine lags: the director told us
	}
	var tok migrate.Token
	if copy(tok[:], f.GetToken()); len(f.GetToken()) != len(tok) {
		return nil, wire.Errorf(wire.Code_TOKEN_UNKNOWN, "a token has %d bytes", len(tok))
	}
	// A client that has seen a later epoch than the migration's has a token of a
	// former one.
	err := migrate.Check(tok, migrate.Binding{
		ClusterID: w.cfg.ClusterID(), Session: f.GetSession(), SourceEpoch: max(f.GetEpoch(), m.GetSourceEpoch()),
		Source: m.GetSource(), Target: w.owner(),
	}, m, now)
	if err != nil {
		return nil, err
	}
	if in == nil {
		return nil, wire.Errorf(wire.Code_TOKEN_UNKNOWN, "no migration under way has this token; attach with the session's secret")
	}
	return in, nil
}

// admit counts the client as warm.
func (in *incoming) admit(c *warmClient) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed || len(in.warm) >= wire.ClientWindowsMax {
		return false
	}
	if old := in.warm[c.att.name]; old != nil {
		old.att.link.Bye(wire.Code_RETRY, "the client warmed another stream")
	}
	in.warm[c.att.name] = c
	_ = c.att.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Warm{Warm: &wire.Warm{Migration: in.m.GetId()}}})
	in.changed.wake()
	return true
}

// take parks a frame, or hands it to the session once that is active here.
func (in *incoming) take(c *warmClient, f *wire.ClientFrame) bool {
	in.mu.Lock()
	if !in.closed {
		defer in.mu.Unlock()
		c.bytes += proto.Size(f)
		if len(c.parked) >= parkedMax || c.bytes > parkedBytesMax {
			c.att.link.Bye(wire.Code_OVERLOADED, "too much was sent before the pivot")
			delete(in.warm, c.att.name)
			return false
		}
		c.parked = append(c.parked, f)
		return true
	}
	s := in.session
	in.mu.Unlock()
	return s != nil && s.frame(c.att, f)
}

// leave reports whether the stream that ended was attached to the session.
func (in *incoming) leave(c *warmClient) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.warm[c.att.name] == c {
		delete(in.warm, c.att.name)
	}
	in.changed.wake()
	return in.session != nil
}

// arrived lists the warm clients, and tells whether all that are wanted are
// among them.
func (in *incoming) arrived(wanted [][]byte) (clients [][]byte, all bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, c := range in.warm {
		clients = append(clients, c.att.client)
	}
	all = true
	for _, id := range wanted {
		all = all && in.warm[string(id)] != nil
	}
	return clients, all
}

func (in *incoming) isClosed() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.closed
}

// AwaitWarm answers once all invited clients are warm here, or, when ctx ends,
// with those that are.
func (w *Worker) AwaitWarm(ctx context.Context, req *wire.WarmReq) (*wire.WarmResp, error) {
	in := w.expected(req.GetMigration())
	if in == nil {
		return nil, wire.Errorf(wire.Code_UNKNOWN_MIGRATION, "this node expects no such migration")
	}
	for {
		changed := in.changed.wait()
		if clients, all := in.arrived(req.GetClients()); all || in.isClosed() {
			return &wire.WarmResp{Clients: clients}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			clients, _ := in.arrived(nil)
			return &wire.WarmResp{Clients: clients}, nil
		case <-w.ctx.Done():
			return nil, wire.Errorf(wire.Code_SHUTTING_DOWN, "the node stops")
		}
	}
}

// brought is what a pivot brings beside the row.
type brought struct {
	gap          bool   // the session's live state did not come with it
	streamsSince uint64 // as in activation; 0: byte streams did not come with it
}

// pivotSettled takes the log's answer to CommitPivot. s.mu is held.
func (in *incoming) pivotSettled(s *session, res []*wire.Result, err error, with brought) *wire.TransferResp {
	if err != nil {
		return &wire.TransferResp{Code: wire.CodeOf(err)}
	}
	r := res[0]
	switch {
	case r.GetCode() == wire.Code_CHANGE_MISMATCH:
		// The source is still frozen and captures anew.
	case r.GetCode() != wire.Code_OK || r.GetRow() == nil:
		s.w.bounce(in, r.GetCode())
	case s.freeze != nil, r.GetRow().GetOwner().GetIncarnation() != s.w.Incarnation():
		// Nothing is activated under a freeze for the next move (H1), nor for an
		// incarnation that is over.
		s.w.bounce(in, wire.Code_RETRY)
	default:
		in.open(s, r, with)
		s.w.unexpect(in)
	}
	return &wire.TransferResp{Code: r.GetCode(), Migration: r.GetMigration()}
}

func (w *Worker) unexpect(in *incoming) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.incoming[in.m.GetId()] == in {
		delete(w.incoming, in.m.GetId())
	}
}

// open makes the row of the pivot's result the session's activation and answers
// what was parked (step 8). s.mu is held, and it is the session's turn.
func (in *incoming) open(s *session, res *wire.Result, with brought) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return
	}
	in.closed, in.session = true, s
	defer in.changed.wake()
	epoch := res.GetRow().GetEpoch()
	if s.act == nil || s.act.epoch < epoch {
		s.dropLinks(wire.Code_RETRY, "the session was moved here anew")
		s.remake(res)
		if with.streamsSince != 0 {
			s.act.streamsSince = with.streamsSince
		}
	}
	if s.act.epoch == epoch {
		s.install(in.warm, with.gap)
		s.detachOrphans()
	}
	for client, c := range in.warm {
		if q := s.queues[client]; q == nil || q.att != c.att {
			c.att.link.Bye(wire.Code_RETRY, "the session has moved here without this client: attach with its secret")
			continue
		}
		for _, run := range s.unpark(s.queues[client], c) {
			s.w.spawn(run)
		}
	}
	if len(s.act.numbers) == 0 {
		s.drop(wire.Code_NOT_ATTACHED, "no client is attached")
	}
}

// install makes the streams of warm clients that the pivot attached serve. Who
// attached by itself meanwhile keeps that stream.
func (s *session) install(warm map[string]*warmClient, gap bool) {
	for client, number := range s.act.numbers {
		c := warm[client]
		if c == nil || s.queues[client] != nil {
			continue
		}
		c.att.opened(s.act.epoch, number)
		s.queues[client] = newQueue(c.att)
		s.announce(c.att, true, gap)
		s.sendPushes(c.att)
	}
}

// unpark feeds what the client sent before the pivot to the session, in order.
// It returns the queries among it, to be run without the mutex.
func (s *session) unpark(q *queue, c *warmClient) (queries []func()) {
	for _, f := range c.parked {
		if rd := s.dispatch(q, f); rd != nil {
			queries = append(queries, rd.run)
		}
	}
	c.parked = nil
	return queries
}

// bounce ends an incoming migration that was off: its clients go on at the
// source.
func (w *Worker) bounce(in *incoming, code wire.Code) {
	in.mu.Lock()
	if !in.closed {
		in.closed = true
		w.release(in)
		for _, c := range in.warm {
			_ = c.att.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Bounced{Bounced: &wire.Bounced{Migration: in.m.GetId(), Code: code}}})
			c.att.link.Bye(wire.Code_MIGRATION_ENDED, "the move is off: go on at the source")
		}
		in.changed.wake()
	}
	in.mu.Unlock()
	w.unexpect(in)
}

func (w *Worker) bounceAll(code wire.Code) {
	for _, in := range w.allIncoming() {
		w.bounce(in, code)
	}
}

func (w *Worker) allIncoming() []*incoming {
	w.mu.RLock()
	defer w.mu.RUnlock()
	all := make([]*incoming, 0, len(w.incoming))
	for _, in := range w.incoming {
		all = append(all, in)
	}
	return all
}

// observeMigration bounces the clients of a migration to this node that the
// log has ended without a pivot. One that has pivoted is over, too, unless the
// transfer that pivoted it is still to open it: a call that came twice, or late,
// must not leave this node expecting for ever what it has had already.
func (w *Worker) observeMigration(id uint64) {
	w.mu.RLock()
	in := w.incoming[id]
	w.mu.RUnlock()
	if in == nil {
		return
	}
	var m *wire.Migration
	var past bool
	w.cfg.View(func(st *store.Store) {
		m = st.Migration(id)
		past = st.Index() >= id>>store.PositionBits
	})
	switch m.GetPhase() {
	case wire.Phase_PHASE_ABORTED, wire.Phase_PHASE_FAILED:
		w.bounce(in, wire.Code_MIGRATION_ENDED)
	case wire.Phase_PHASE_PIVOTED, wire.Phase_PHASE_COMPLETED:
		if !in.pivotsUnderWay() {
			w.bounce(in, wire.Code_MIGRATION_ENDED)
		}
	case wire.Phase_PHASE_UNSPECIFIED:
		if past && !in.pivotsUnderWay() { // ended, and forgotten since
			w.bounce(in, wire.Code_MIGRATION_ENDED)
		}
	}
}
