package worker

import "github.com/baton-cluster/baton/wire"

// A client acknowledges replies with its next request, and pushes likewise or by
// a frame of their own. That leaves the last replies of each client in the
// session's cache for as long as it asks nothing, which is as well, until other
// clients of a shared session need the room: then it is asked.

// roomFor reports whether the session's reply cache has room for the reply to r,
// with what its client acknowledges by it and beside the replies to the group
// that it joins. Of those who are not attached the log makes room itself. s.mu is
// held.
func (s *session) roomFor(q *queue, g *group, r *request) bool {
	kept := len(g.reqs)
	for client := range s.act.numbers {
		if win := s.act.windows[client]; win != nil {
			kept += len(win.replies)
		}
	}
	if kept < wire.RepliesMax || r.cancel {
		return true
	}
	for seq := range s.act.windows[q.att.name].replies {
		if seq < r.ack {
			kept--
		}
	}
	for _, before := range g.reqs {
		if before.seq < r.ack {
			kept--
		}
	}
	return kept < wire.RepliesMax
}

// noRoom refuses a request whose reply could not be kept, before anything of it
// has run, and asks all clients what they have received. s.mu is held.
func (s *session) noRoom(q *queue, r *request) {
	delete(q.bySeq, r.seq)
	s.reply(q, r, &wire.Response{Code: wire.Code_REPLY_CACHE_FULL, Message: refusal(wire.Code_REPLY_CACHE_FULL)})
	s.wantAcks()
	s.runReads(q)
}

func (s *session) wantAcks() {
	for client, q := range s.queues {
		win := s.act.windows[client]
		if !q.ackWanted && win != nil && (len(win.replies) > 0 || win.pushAck+1 < s.act.next) {
			q.ackWanted = true
			_ = q.att.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_AckWanted{AckWanted: &wire.AckWanted{}}})
		}
	}
}

// acknowledged notes how far the client has received pushes and replies, and
// proposes it when no write is there to carry it. s.mu is held.
func (s *session) acknowledged(q *queue, f *wire.PushAck) {
	q.received = max(q.received, f.GetSeq())
	q.acked = max(q.acked, f.GetAck())
	if q.acking {
		return
	}
	if !s.owesAck(q) || len(q.bySeq) > 0 {
		q.ackWanted = false // it has said; if that leads to nothing, the next refusal asks again
		return
	}
	q.acking = true
	epoch := s.act.epoch
	var ack wire.Ack
	s.enqueue(op{
		park: true,
		build: func(s *session) []*wire.Command {
			q.acking = false
			if s.act == nil || s.act.epoch != epoch || s.act.numbers[q.att.name] == 0 || !s.owesAck(q) {
				return nil
			}
			q.ackWanted = false
			ack = wire.Ack{Session: s.id, Epoch: epoch, Owner: s.act.owner, Client: q.att.client, PushAck: q.received, Ack: q.acked}
			return []*wire.Command{{Kind: &wire.Command_Ack{Ack: &ack}}}
		},
		done: func(s *session, res []*wire.Result, err error) {
			if err != nil || s.act == nil {
				return
			}
			if res[0].GetCode() != wire.Code_OK || res[0].GetBefore() != s.act.change {
				s.stale = true
				return
			}
			s.act.received(ack.GetClient(), ack.GetPushAck())
			if win := s.act.windows[q.att.name]; win != nil {
				s.act.acknowledge(win, ack.GetAck())
			}
			s.act.change, s.act.last = res[0].GetAfter(), res[0].GetPosition()
		},
	})
}

// owesAck reports whether the log should hear of what the client has received:
// there are pushes that wait for it, or its replies are in others' way.
func (s *session) owesAck(q *queue) bool {
	win := s.act.windows[q.att.name]
	if win == nil {
		return false
	}
	return q.received > win.pushAck && len(s.act.outbox) > 0 || q.ackWanted && q.acked > win.ack
}
