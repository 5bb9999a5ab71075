package worker

import (
	"github.com/baton-cluster/baton/wire"
)

// waitingMax bounds the unanswered requests of one client instance at its
// owner. The client library keeps fewer outstanding.
const waitingMax = 128

// serveFrames feeds the stream's frames to the session until the stream ends.
func (w *Worker) serveFrames(att *attachment, id string) {
	for {
		f, err := att.link.Recv()
		if err != nil {
			return
		}
		s := w.lookup(id)
		if s == nil {
			return
		}
		if !s.frame(att, f) {
			return
		}
	}
}

// frame takes one frame of an attached client. It reports whether the stream
// goes on.
func (s *session) frame(att *attachment, f *wire.ClientFrame) bool {
	s.mu.Lock()
	q := s.queues[att.name]
	if q == nil || q.att != att || s.act == nil {
		s.mu.Unlock()
		return false
	}
	rd := s.dispatch(q, f)
	s.mu.Unlock()
	if rd != nil {
		rd.run()
	}
	return true
}

// heldMax bounds the replies that wait for a Claim. What is over is not lost: it
// is in the window, and the client asks again.
const heldMax = 1024

// dispatch takes one frame. It returns a query that may run at once, for the
// caller to run without the mutex. s.mu is held.
func (s *session) dispatch(q *queue, f *wire.ClientFrame) *read {
	switch f := f.GetKind().(type) {
	case *wire.ClientFrame_Request:
		return s.request(q, f.Request)
	case *wire.ClientFrame_Cancel:
		s.cancel(q, f.Cancel)
	case *wire.ClientFrame_PushAck:
		s.acknowledged(q, f.PushAck)
	case *wire.ClientFrame_Close:
		s.leave(q, closeOp(q.att))
	case *wire.ClientFrame_Detach:
		s.leave(q, detachOp(q.att, true))
	case *wire.ClientFrame_Confirm: // the client has switched; nothing waits for it
	default:
		q.att.link.Bye(wire.Code_BAD_REQUEST, "unknown frame")
	}
	return nil
}

// leave takes a client's Close or Detach, once.
func (s *session) leave(q *queue, o op) {
	if !q.leaving {
		q.leaving = true
		s.enqueue(o)
	}
}

// request takes a Request. It returns a query that may run at once, for the
// caller to run without the mutex.
func (s *session) request(q *queue, f *wire.Request) *read {
	r := &request{
		client: q.att.client, seq: f.GetSeq(), prev: f.GetPrev(), ack: f.GetAck(), pushAck: f.GetPushAck(),
		attempt: f.GetAttempt(), confirmed: f.GetConfirmed(), method: f.GetMethod(), payload: f.GetPayload(),
	}
	if r.seq == 0 || r.prev >= r.seq || r.ack > r.seq {
		s.reply(q, r, &wire.Response{Code: wire.Code_BAD_REQUEST, Message: "seq must be above prev and not below ack"})
		return nil
	}
	if f.GetReadOnly() {
		return s.admitQuery(q, r)
	}
	s.admitWrite(q, r)
	return nil
}

func (s *session) cancel(q *queue, f *wire.CancelReq) {
	r := &request{client: q.att.client, seq: f.GetSeq(), prev: f.GetPrev(), ack: f.GetAck(), cancel: true}
	if r.seq == 0 || r.prev >= r.seq || r.ack > r.seq {
		s.reply(q, r, &wire.Response{Code: wire.Code_BAD_REQUEST, Message: "seq must be above prev and not below ack"})
		return
	}
	s.admitWrite(q, r)
}

// admitWrite queues a write-class request, joins the attempt that is under way,
// or answers from the window.
func (s *session) admitWrite(q *queue, r *request) {
	if old := q.bySeq[r.seq]; old != nil {
		old.attempt = r.attempt
		switch {
		case r.cancel && old.running:
			old.giveUp = true
		case r.cancel:
			old.cancel = true // it has not begun: settle it instead
		}
		return
	}
	if s.answerFromWindow(q, r) {
		return
	}
	if len(q.bySeq) >= waitingMax {
		s.reply(q, r, &wire.Response{Code: wire.Code_TOO_MANY, Message: "too many requests without an answer"})
		return
	}
	if other := q.waiting[r.prev]; other != nil {
		s.reply(q, r, &wire.Response{Code: wire.Code_BAD_REQUEST, Message: "another request has the same previous write"})
		return
	}
	q.bySeq[r.seq], q.waiting[r.prev] = r, r
	s.kick()
}

// answerFromWindow answers a request whose seq is settled.
func (s *session) answerFromWindow(q *queue, r *request) bool {
	win := s.act.windows[string(r.client)]
	if win == nil {
		return false
	}
	if rep := win.replies[r.seq]; rep != nil {
		f := settledFrame(s.act.epoch, r.attempt, rep, s.act.change)
		if !s.stale {
			_ = q.att.link.Send(f)
		} else if len(s.held) < heldMax {
			s.held = append(s.held, held{q.att, f})
		}
		return true
	}
	if r.seq <= win.last || r.seq < win.ack {
		s.reply(q, r, &wire.Response{Code: wire.Code_REPLY_GONE, Settled: true, Message: "the reply was acknowledged and dropped"})
		return true
	}
	if r.prev < win.last {
		// Its turn is over: a write that it does not know of came between.
		s.reply(q, r, &wire.Response{Code: wire.Code_SEQ_MISMATCH, Message: "the previous write is not the last on record"})
		return true
	}
	return false
}

// reexamine looks again at what waits, after the activation was remade.
func (s *session) reexamine() {
	for _, q := range s.queues {
		for prev, r := range q.waiting {
			if s.answerFromWindow(q, r) {
				delete(q.waiting, prev)
				delete(q.bySeq, r.seq)
			}
		}
		s.runReads(q)
	}
}
