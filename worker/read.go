package worker

import (
	"sync"

	"github.com/baton-cluster/baton/wire"
)

// A query is answered from one version of the activation, taken after the
// request arrived, once a marker that names the activation's incarnation has
// been committed (DESIGN section 5, step 4). Markers are shared: one for all
// queries of the node that came in while the last ones were on their way.

// markersInFlight bounds the markers under way. Two keep the log busy while
// answers travel; more would only make them smaller.
const markersInFlight = 2

type markers struct {
	w       *Worker
	mu      sync.Mutex
	pending []*read
	flying  int
}

// readsMax bounds the unanswered queries of one stream. The client library keeps
// 512 outstanding, and may send them anew while the former are on their way.
const readsMax = 1024

// read is a query that has run and waits for its marker.
type read struct {
	s    *session
	act  *activation
	att  *attachment
	resp *wire.Response
}

// admitQuery returns the query if nothing of its own client comes before it.
func (s *session) admitQuery(q *queue, r *request) *request {
	if s.freeze != nil {
		return nil // the client sends it to the target, or again after the freeze
	}
	if q.att.asked >= readsMax {
		s.reply(q, r, &wire.Response{Code: wire.Code_TOO_MANY, Message: "too many queries without an answer"})
		return nil
	}
	q.att.asked++
	if s.behindWrite(q, r) || s.stale {
		q.reads = append(q.reads, r)
		return nil
	}
	return r
}

func (s *session) behindWrite(q *queue, r *request) bool {
	for seq := range q.bySeq {
		if seq < r.seq {
			return true
		}
	}
	return false
}

// runReads starts the queries whose writes are settled. s.mu is held.
func (s *session) runReads(q *queue) {
	if s.act == nil || s.stale || s.freeze != nil {
		return
	}
	kept := q.reads[:0]
	for _, r := range q.reads {
		if s.behindWrite(q, r) {
			kept = append(kept, r)
			continue
		}
		act, att := s.act, q.att
		s.w.spawn(func() { s.query(act, att, r) })
	}
	q.reads = kept
}

// query runs a read-only handler and queues its answer for a marker. It is
// called without the mutex.
func (s *session) query(act *activation, att *attachment, r *request) {
	s.mu.Lock()
	if s.act != act || s.freeze != nil || s.stale {
		att.asked--
		epoch := s.epochNow(act)
		s.mu.Unlock()
		_ = att.link.Send(askAgain(r.seq, r.attempt, epoch))
		return
	}
	v := &View{state: act.state.Copy(), ctx: s.w.ctx, fence: Fence{Session: s.id, Epoch: act.epoch, Client: string(r.client), Seq: r.seq}}
	change := act.change
	s.mu.Unlock()

	resp := &wire.Response{Seq: r.seq, Attempt: r.attempt, Epoch: act.epoch, Change: change, Settled: true}
	payload, err := s.w.cfg.App.query(v, r)
	if err != nil {
		resp.Code, resp.Message = outcome(err)
	} else if len(payload) > wire.ValueBytesMax {
		resp.Code, resp.Message = wire.Code_REPLY_TOO_LARGE, "the reply does not fit a frame"
	} else {
		resp.Payload = payload
	}
	s.w.markers.add(&read{s: s, act: act, att: att, resp: resp})
}

// epochNow is the epoch that an answer names: a client that has seen a later one
// passes over it, and would wait for ever. s.mu is held.
func (s *session) epochNow(act *activation) uint64 {
	if s.act != nil {
		return s.act.epoch
	}
	return act.epoch
}

// askAgain refuses a query whose version was overtaken; nothing was consumed.
func askAgain(seq uint64, attempt uint32, epoch uint64) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Response{Response: &wire.Response{
		Seq: seq, Attempt: attempt, Epoch: epoch, Code: wire.Code_RETRY, Message: "ask again",
	}}}
}

func (m *markers) add(r *read) {
	m.mu.Lock()
	m.pending = append(m.pending, r)
	m.mu.Unlock()
	m.fly()
}

// fly sends a marker for all that waits, unless enough are under way.
func (m *markers) fly() {
	m.mu.Lock()
	if len(m.pending) == 0 || m.flying >= markersInFlight {
		m.mu.Unlock()
		return
	}
	batch := m.pending
	m.pending = nil
	m.flying++
	m.mu.Unlock()

	owner := batch[0].act.owner
	cmd := &wire.Command{Kind: &wire.Command_ReadMarker{ReadMarker: &wire.ReadMarker{Owner: owner}}}
	m.w.propose([]*wire.Command{cmd}, func(res []*wire.Result, err error) {
		m.mu.Lock()
		m.flying--
		m.mu.Unlock()
		m.fly()
		m.w.spawn(func() { m.land(batch, owner, res, err) })
	})
}

// land answers the batch.
func (m *markers) land(batch []*read, owner *wire.Owner, res []*wire.Result, err error) {
	good := err == nil && res[0].GetCode() == wire.Code_OK
	for _, r := range batch {
		r.finish(good && r.act.owner.GetIncarnation() == owner.GetIncarnation(), res)
	}
	if err == nil && res[0].GetCode() == wire.Code_STALE_INCARNATION {
		m.w.checkIncarnation(owner.GetIncarnation())
	}
}

// finish sends the answer if the version that it was read from was still being
// served, attached and not frozen, when its marker came back.
func (r *read) finish(confirmed bool, res []*wire.Result) {
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	r.att.asked--
	q := s.queues[string(r.att.client)]
	if q == nil || q.att != r.att {
		return
	}
	if !confirmed || s.act != r.act || s.freeze != nil {
		_ = r.att.link.Send(askAgain(r.resp.GetSeq(), r.resp.GetAttempt(), s.epochNow(r.act)))
		return
	}
	s.act.last = max(s.act.last, res[0].GetPosition())
	_ = r.att.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Response{Response: r.resp}})
}

// fail gives up on queries that wait for a marker: their streams are being
// ended, and their clients ask elsewhere.
func (m *markers) fail() {
	m.mu.Lock()
	m.pending = nil
	m.mu.Unlock()
}
