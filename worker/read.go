package worker

import (
	"time"

	"github.com/baton-cluster/baton/wire"
)

// A query runs on one version of the activation, taken after the query arrived
// and after its client's earlier writes ("Life of a read", step 2). What shows
// that the version was still the session's latest then is either the lease
// or, without one and where the client asks for it, a marker; see
// marker.go.

// readsMax bounds the unanswered queries of one stream. The client library keeps
// 512 outstanding, and may send them anew while the former are on their way.
const readsMax = 1024

// leaseLeftMin is the least that must be left of a lease to answer under it:
// with less the answer would reach hardly any client in time.
const leaseLeftMin = time.Millisecond

// read is a query on its way. Its fields do not change once it has run.
type read struct {
	s    *session
	act  *activation
	att  *attachment
	req  *request
	view View
	resp wire.Response
	// What resp travels in: all of a query is one piece of memory.
	kind  wire.ServerFrame_Response
	frame wire.ServerFrame
}

// admitQuery returns the query, ready to run, if nothing of its own client comes
// before it. s.mu is held.
func (s *session) admitQuery(q *queue, r *request) *read {
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
	return s.newRead(q.att, r)
}

func (s *session) behindWrite(q *queue, r *request) bool {
	for seq := range q.bySeq {
		if seq < r.seq {
			return true
		}
	}
	return false
}

// newRead takes the version that the query runs on. s.mu is held.
func (s *session) newRead(att *attachment, r *request) *read {
	rd := &read{s: s, act: s.act, att: att, req: r}
	rd.view = View{
		state: s.act.version(), ctx: s.w.ctx,
		fence: Fence{Session: s.id, Epoch: s.act.epoch, Client: att.name, Seq: r.seq},
	}
	rd.resp.Seq, rd.resp.Attempt, rd.resp.Epoch = r.seq, r.attempt, s.act.epoch
	rd.resp.Change, rd.resp.Settled = s.act.change, true
	return rd
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
		s.w.spawn(s.newRead(q.att, r).run)
	}
	clear(q.reads[len(kept):])
	q.reads = kept
}

// run runs the handler, without the mutex, and answers.
func (rd *read) run() {
	payload, err := rd.s.w.cfg.App.query(&rd.view, rd.req)
	switch {
	case err != nil:
		rd.resp.Code, rd.resp.Message = outcome(err)
	case len(payload) > wire.ValueBytesMax:
		rd.resp.Code, rd.resp.Message = wire.Code_REPLY_TOO_LARGE, "the reply does not fit a frame"
	default:
		rd.resp.Payload = payload
	}
	if !rd.underLease() {
		rd.s.w.markers.add(rd)
	}
}

// underLease answers the query if the lease holds, or the version is worth
// nothing any more. It reports false if the query takes a marker.
func (rd *read) underLease() bool {
	s := rd.s
	if rd.req.confirmed || s.w.cfg.Lease == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !rd.current() {
		return true
	}
	// The clock is read here, in Lease: after the query arrived and after its
	// version was taken. A lease that holds now held then, for an incarnation is
	// fenced once and for ever; so the version was the latest when it was taken.
	left, ok := s.w.lease(rd.act.owner.GetIncarnation())
	if !ok || left < leaseLeftMin {
		return false
	}
	rd.att.asked--
	rd.resp.LeaseLeftUs = uint64(left.Microseconds())
	rd.send()
	return true
}

// lease is how much is left of the lease of an incarnation, if queries may be
// answered under it.
func (w *Worker) lease(incarnation uint64) (left time.Duration, ok bool) {
	if w.cfg.Lease == nil || w.Incarnation() != incarnation || incarnation == 0 {
		return 0, false
	}
	return w.cfg.Lease(incarnation)
}

// current reports whether the version is of the activation that serves, attached
// and not frozen. If not, the query has been dealt with: its client asks again
// or is gone. s.mu is held.
func (rd *read) current() bool {
	s := rd.s
	q := s.queues[rd.att.name]
	if q != nil && q.att == rd.att && s.act == rd.act && s.freeze == nil {
		return true
	}
	rd.att.asked--
	if q != nil && q.att == rd.att {
		rd.askAgain()
	}
	return false
}

// askAgain refuses a query whose version was overtaken; nothing was consumed. It
// names the epoch that serves now: a client that has seen a later one than the
// version's passes over the answer, and would wait for ever. s.mu is held.
func (rd *read) askAgain() {
	epoch := rd.act.epoch
	if rd.s.act != nil {
		epoch = rd.s.act.epoch
	}
	_ = rd.att.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Response{Response: &wire.Response{
		Seq: rd.req.seq, Attempt: rd.req.attempt, Epoch: epoch, Code: wire.Code_RETRY, Message: "ask again",
	}}})
}

func (rd *read) send() {
	rd.kind.Response = &rd.resp
	rd.frame.Kind = &rd.kind
	_ = rd.att.link.Send(&rd.frame)
}
