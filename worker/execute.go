package worker

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/baton-cluster/baton/wire"
)

// groupRequestsMax bounds a group: one client's requests that are executed on
// top of each other and go to the log together. Larger groups amortise more and
// throw more away when one is refused.
const groupRequestsMax = 32

// group is the requests of one client instance that travel together. They are
// of one instance only, so that when one is refused, all that could have seen
// its writes are refused with it: their previous seq is not on record.
type group struct {
	s    *session
	act  *activation
	att  *attachment
	reqs []*request
	cmds []*wire.Command
}

// nextGroup picks a client whose next write in order is here. s.mu is held.
func (s *session) nextGroup() *group {
	if s.act == nil {
		return nil
	}
	for client, q := range s.queues {
		win := s.act.windows[client]
		if win == nil {
			continue
		}
		g := &group{s: s, act: s.act, att: q.att}
		for prev := win.last; len(g.reqs) < groupRequestsMax; {
			r := q.waiting[prev]
			if r == nil {
				break
			}
			room := s.roomFor(q, g, r)
			if !room && len(g.reqs) > 0 {
				break // it is looked at again when these have been answered
			}
			delete(q.waiting, prev)
			if !room {
				s.noRoom(q, r)
				break
			}
			r.running = true
			r.pushAck = max(r.pushAck, q.received)
			g.reqs = append(g.reqs, r)
			prev = r.seq
		}
		if len(g.reqs) > 0 {
			return g
		}
	}
	return nil
}

// execute runs the handlers in order, each on top of the buffered writes of the
// ones before, and makes their commands.
func (g *group) execute() {
	over := newOverlay(g.act, len(g.reqs))
	for _, r := range g.reqs {
		if r.cancel {
			g.cmds = append(g.cmds, &wire.Command{Kind: &wire.Command_Cancel{Cancel: &wire.Cancel{
				Session: g.s.id, Epoch: g.act.epoch, Owner: g.act.owner,
				Client: r.client, Seq: r.seq, Prev: r.prev, Ack: r.ack,
			}}})
			continue
		}
		tx := &Tx{over: over, ctx: g.s.w.ctx, fence: Fence{Session: g.s.id, Epoch: g.act.epoch, Client: string(r.client), Seq: r.seq}}
		var own Handler
		if r.method == wire.StreamCommitMethod {
			own = g.s.w.streams.runCommit
		}
		reply := g.s.w.cfg.App.run(tx, r, own)
		w := &wire.Write{
			Session: g.s.id, Epoch: g.act.epoch, Owner: g.act.owner,
			Client: r.client, Seq: r.seq, Prev: r.prev, Ack: r.ack, PushAck: r.pushAck,
			Changes: tx.changes(), Pushes: tx.pushes, Reply: reply,
		}
		w.Digest = wire.Digest(w)
		g.cmds = append(g.cmds, &wire.Command{Kind: &wire.Command_Write{Write: w}})
	}
}

// run calls the method's handler, or own if that is set, and turns what it says
// into the reply to be committed. A failed handler leaves no writes.
func (m *Mux) run(tx *Tx, r *request, own Handler) *wire.Reply {
	reply := &wire.Reply{Seq: r.seq}
	payload, err := m.call(tx, r, own)
	if err == nil && len(payload) > wire.ReplyBytesMax/2 {
		err = wire.Errorf(wire.Code_REPLY_TOO_LARGE, "the reply has %d bytes, at most %d fit the reply cache: read it with a query instead", len(payload), wire.ReplyBytesMax/2)
	}
	if err == nil {
		reply.Payload = payload
		tx.keep()
		return reply
	}
	tx.discard()
	reply.Code, reply.Message = outcome(err)
	return reply
}

// errorBytesMax bounds the text of a handler's error: it is committed and
// cached like a reply.
const errorBytesMax = 4 << 10

// outcome is how a handler's error travels: a typed one as itself, any other as
// HANDLER_ERROR. The text is cut and made UTF-8, which the log's format demands.
func outcome(err error) (wire.Code, string) {
	code, text := wire.Code_HANDLER_ERROR, err.Error()
	var typed *wire.Error
	if errors.As(err, &typed) && typed.Code != wire.Code_OK {
		code, text = typed.Code, typed.Message
	}
	return code, clip(text)
}

// clip makes a text fit for a message, whatever the application put into it.
func clip(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), errorBytesMax)], "")
}

func (m *Mux) call(tx *Tx, r *request, own Handler) (payload []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			payload, err = nil, wire.Errorf(wire.Code_HANDLER_PANIC, "the handler of %q panicked: %v", r.method, p)
			m.panicked(r.method, p, debug.Stack())
		}
	}()
	if own != nil {
		return own(tx, r.payload)
	}
	if h := m.handlers[r.method]; h != nil {
		return h(tx, r.payload)
	}
	if h := m.readers[r.method]; h != nil {
		return h(&View{state: tx.over.base, over: tx.over, fence: tx.fence, ctx: tx.ctx}, r.payload)
	}
	return nil, wire.Errorf(wire.Code_UNKNOWN_METHOD, "this server has no method %q", r.method)
}

// settle takes the log's answers to the group. s.mu is held.
func (g *group) settle(s *session, res []*wire.Result, err error) {
	g.tellCommits(res)
	if s.act != g.act {
		return // the activation is over, its streams have been told
	}
	if err != nil {
		g.unproposed(err)
		return
	}
	q := s.queues[g.att.name]
	for i, r := range g.reqs {
		if q != nil {
			delete(q.bySeq, r.seq)
		}
		if !g.settleOne(q, r, g.cmds[i], res[i]) {
			return
		}
	}
	if s.stale {
		return
	}
	for _, each := range s.queues { // pushes are the session's, not the caller's
		s.sendPushes(each.att)
	}
	if q != nil {
		s.runReads(q)
	}
}

// settleOne reports whether the session is still this owner's.
func (g *group) settleOne(q *queue, r *request, cmd *wire.Command, res *wire.Result) bool {
	s := g.s
	switch code := res.GetCode(); code {
	case wire.Code_OK:
		follows := !s.stale && !res.GetDuplicate() && res.GetBefore() == s.act.change && res.GetDigest() == cmd.GetWrite().GetDigest()
		if follows {
			s.act.advance(cmd, res)
		} else {
			s.stale = true
		}
		s.answer(q, r, res)
	case wire.Code_SEQ_MISMATCH, wire.Code_REPLY_GONE:
		// One before it was refused, or the row is ahead of the activation: look
		// again once that is remade.
		s.stale = true
		if q != nil {
			s.requeue(q, r)
		}
	case wire.Code_NOT_ATTACHED, wire.Code_DISPLACED:
		s.stale = true
		if q != nil {
			s.displace(q.att.name, q)
		}
	case wire.Code_STALE_EPOCH, wire.Code_STALE_INCARNATION, wire.Code_UNKNOWN_SESSION,
		wire.Code_SESSION_CLOSED, wire.Code_SESSION_EXPIRED:
		s.lost(code)
		return false
	default:
		if code == wire.Code_REPLY_CACHE_FULL || code == wire.Code_OUTBOX_FULL {
			s.wantAcks()
		}
		s.reply(q, r, &wire.Response{Code: code, Message: refusal(code)})
	}
	return true
}

// requeue puts a request that had no effect back in its place.
func (s *session) requeue(q *queue, r *request) {
	if q.waiting[r.prev] != nil {
		s.reply(q, r, &wire.Response{Code: wire.Code_BAD_REQUEST, Message: "another request has the same previous write"})
		return
	}
	r.running, r.cancel = false, r.cancel || r.giveUp
	q.bySeq[r.seq], q.waiting[r.prev] = r, r
}

// answer sends a committed reply, or holds it until the activation is good.
func (s *session) answer(q *queue, r *request, res *wire.Result) {
	if q == nil {
		return
	}
	f := settledFrame(s.act.epoch, r.attempt, res.GetReply(), res.GetAfter())
	if s.stale {
		s.held = append(s.held, held{q.att, f})
		return
	}
	_ = q.att.link.Send(f)
}

func settledFrame(epoch uint64, attempt uint32, rep *wire.Reply, change uint64) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Response{Response: &wire.Response{
		Seq: rep.GetSeq(), Attempt: attempt, Epoch: epoch, Code: rep.GetCode(), Message: rep.GetMessage(),
		Payload: rep.GetPayload(), Settled: true, Change: change,
	}}}
}

// reply sends an answer that consumed nothing, unless it says otherwise.
func (s *session) reply(q *queue, r *request, resp *wire.Response) {
	if q == nil {
		return
	}
	resp.Seq, resp.Attempt = r.seq, r.attempt
	if s.act != nil {
		resp.Epoch = s.act.epoch
	}
	_ = q.att.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Response{Response: resp}})
}

// unproposed answers a group that did not get into the log.
func (g *group) unproposed(err error) {
	s, code := g.s, wire.CodeOf(err)
	if code == wire.Code_SHUTTING_DOWN {
		s.drop(code, "the node stops: ask another one")
		return
	}
	q := s.queues[g.att.name]
	for _, r := range g.reqs {
		if q != nil {
			delete(q.bySeq, r.seq)
		}
		s.reply(q, r, &wire.Response{Code: code, Message: message(err)})
	}
	if q != nil && !s.stale {
		s.runReads(q)
	}
}

// refusal says what to do about a command that the state machine refused.
func refusal(code wire.Code) string {
	switch code {
	case wire.Code_STATE_TOO_LARGE:
		return fmt.Sprintf("a session's state has at most %d bytes: delete keys first", wire.StateBytesMax)
	case wire.Code_VALUE_TOO_LARGE:
		return fmt.Sprintf("a value has at most %d bytes", wire.ValueBytesMax)
	case wire.Code_BAD_KEY:
		return fmt.Sprintf("a key has 1 to %d bytes of UTF-8", wire.KeyBytesMax)
	case wire.Code_BUDGET_EXCEEDED:
		return "the cluster's byte budget is used up: close sessions or raise it"
	case wire.Code_REPLY_CACHE_FULL:
		return "too many replies are not acknowledged: read them, then ask again"
	case wire.Code_OUTBOX_FULL:
		return "too many pushes are not received: let the client catch up, then ask again"
	}
	return "refused by the cluster"
}
