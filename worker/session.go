package worker

import (
	"sync"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// session is the actor of one session on this worker.
type session struct {
	w  *Worker
	id string

	mu   sync.Mutex
	dead bool // no longer in the worker's table

	// Invariant: while busy, exactly one goroutine runs the session or exactly
	// one group of its commands is with the log; nobody else proposes for it.
	busy bool
	act  *activation
	// stale: a result did not follow the activation, which is remade by a Claim
	// before any reply leaves.
	stale bool
	held  []held // replies that wait for that Claim
	ops   []op
	// queues holds the requests of attached client instances.
	queues map[string]*queue
	freeze *freeze
}

// held is an answer that must not leave before the activation is known good.
type held struct {
	att   *attachment
	frame *wire.ServerFrame
}

// op is a control operation in its turn. build returns the commands, or none if
// there is nothing to do any more; done gets their results. Both run under the
// session's mutex.
type op struct {
	build func(*session) []*wire.Command
	// before, where set, sees the results first, without the mutex, while it is
	// still the session's turn: for what must come before the session is served.
	before func(*session, []*wire.Result)
	done   func(*session, []*wire.Result, error)
	// park: wait out a freeze instead of being refused under it.
	park bool
	// insist: propose again while the log has no room.
	insist bool
	refuse func()
}

// attachment is a client instance's stream to this session. Its session's mutex
// guards what changes.
type attachment struct {
	link   Link
	client []byte
	name   string // client, as the key of maps
	epoch  uint64 // in which it has number
	number uint64 // 0: none was ever opened for it
	sent   uint64 // highest push sent
	asked  int    // queries without an answer
	// streamToken shows that a byte stream is this attachment's.
	streamToken []byte
	// What the client was told last of who takes the session, and how.
	successor endpoint
	spread    time.Duration
}

// queue is what one client instance has asked for and has no answer to.
type queue struct {
	att     *attachment
	waiting map[uint64]*request // writes, by the seq that must come before
	bySeq   map[uint64]*request // the same and those in flight, by seq
	reads   []*request          // queries behind a write of their own client

	received uint64 // highest push that the client says it has
	acked    uint64 // lowest seq without an answer, as it says
	acking   bool   // an Ack is among the operations
	// ackWanted: the client was asked for acked, and has not said.
	ackWanted bool
	leaving   bool // a Close or Detach of the client is among the operations
}

// request is a Request or CancelReq of a client.
type request struct {
	client  []byte
	seq     uint64
	prev    uint64
	ack     uint64
	pushAck uint64
	attempt uint32
	cancel  bool
	running bool // in the group that is executed or with the log
	giveUp  bool // cancelled while it ran: if it is refused, settle it instead
	// confirmed: a query to be answered by way of the log.
	confirmed bool
	method    string
	payload   []byte
}

func newAttachment(link Link, client []byte, sent uint64) *attachment {
	return &attachment{link: link, client: client, name: string(client), sent: sent}
}

// opened notes what stands for it in the log. Each epoch counts anew.
func (a *attachment) opened(epoch, number uint64) *attachment {
	a.epoch, a.number = epoch, number
	return a
}

func newSession(w *Worker, id string) *session {
	return &session{w: w, id: id, queues: make(map[string]*queue)}
}

func newQueue(att *attachment) *queue {
	return &queue{att: att, waiting: make(map[uint64]*request), bySeq: make(map[uint64]*request)}
}

// kick starts the actor if it has something to do. s.mu is held.
func (s *session) kick() {
	if s.busy || s.dead {
		return
	}
	s.busy = true
	s.w.spawn(s.run)
}

// run does the session's work until there is none or some of it is with the
// log. It is entered with busy set and not holding the mutex.
func (s *session) run() {
	s.mu.Lock()
	for {
		if s.freeze != nil {
			s.busy = false
			s.refuseUnderFreeze()
			s.freeze.settle()
			s.mu.Unlock()
			return
		}
		if s.stale && s.act != nil {
			s.claim()
			s.mu.Unlock()
			return
		}
		if len(s.ops) > 0 {
			o := s.ops[0]
			s.ops = s.ops[1:]
			if cmds := o.build(s); len(cmds) > 0 {
				settled := func(res []*wire.Result, err error) { o.done(s, res, err) }
				if o.insist {
					s.insist(cmds, settled)
				} else {
					s.commit(cmds, o.before, settled)
				}
				s.mu.Unlock()
				return
			}
			continue
		}
		g := s.nextGroup()
		if g == nil {
			s.busy = false
			s.retire()
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		g.execute() // handlers run without the mutex; busy keeps the state still
		s.mu.Lock()
		s.commitGroup(g)
		s.mu.Unlock()
		return
	}
}

// commit hands commands to the log. before, if set, runs without the mutex,
// settled under it; then the actor goes on.
func (s *session) commit(cmds []*wire.Command, before func(*session, []*wire.Result), settled func([]*wire.Result, error)) {
	s.w.propose(cmds, func(res []*wire.Result, err error) {
		s.w.spawn(func() {
			if before != nil && err == nil {
				before(s, res)
			}
			s.mu.Lock()
			settled(res, err)
			s.mu.Unlock()
			s.run()
		})
	})
}

// commitGroup is commit for a group of requests, by way of the line.
func (s *session) commitGroup(g *group) {
	s.w.propose(g.cmds, func(res []*wire.Result, err error) {
		s.w.answers.add(s.w.spawn, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			g.settle(s, res, err)
			if !s.quiet() {
				s.w.spawn(s.run)
				return
			}
			s.busy = false
			s.retire()
		})
	})
}

// quiet reports whether run would find nothing to do. s.mu is held.
func (s *session) quiet() bool {
	if s.freeze != nil || s.stale || len(s.ops) > 0 {
		return false
	}
	for _, q := range s.queues {
		if len(q.waiting) > 0 {
			return false
		}
	}
	return true
}

// roomRetry is how soon commands that must be settled are proposed again when
// the log had no room for them.
const roomRetry = 50 * time.Millisecond

// insist is commit for commands that must be settled, whatever it takes: while
// the log has no room for them the session stays busy and proposes them again.
func (s *session) insist(cmds []*wire.Command, settled func([]*wire.Result, error)) {
	s.w.propose(cmds, func(res []*wire.Result, err error) {
		s.w.spawn(func() {
			if wire.CodeOf(err) == wire.Code_OVERLOADED && seam.Sleep(s.w.ctx, s.w.cfg.Clock, roomRetry) == nil {
				s.insist(cmds, settled)
				return
			}
			s.mu.Lock()
			settled(res, err)
			s.mu.Unlock()
			s.run()
		})
	})
}

// retire forgets a session that holds nothing. s.mu is held.
func (s *session) retire() {
	if s.act == nil && s.freeze == nil && len(s.ops) == 0 && len(s.queues) == 0 && !s.busy && !s.dead {
		s.w.forget(s)
	}
}

// enqueue adds a control operation. s.mu is held.
func (s *session) enqueue(o op) {
	s.ops = append(s.ops, o)
	if s.freeze != nil && !s.busy {
		s.refuseUnderFreeze()
		return
	}
	s.kick()
}

// refuseUnderFreeze answers operations that a freeze does not park.
func (s *session) refuseUnderFreeze() {
	kept := s.ops[:0]
	for _, o := range s.ops {
		if o.park {
			kept = append(kept, o)
		} else if o.refuse != nil {
			o.refuse()
		}
	}
	s.ops = kept
}

// claim remakes the activation from the log's answer, then lets held replies go.
func (s *session) claim() {
	cmd := &wire.Command{Kind: &wire.Command_Claim{Claim: &wire.Claim{Session: s.id, Epoch: s.act.epoch, Owner: s.act.owner}}}
	s.insist([]*wire.Command{cmd}, func(res []*wire.Result, err error) {
		if err != nil || s.act == nil {
			s.drop(wire.Code_RETRY, "ask again")
			return
		}
		if code := res[0].GetCode(); code != wire.Code_OK {
			s.lost(code)
			return
		}
		s.remake(res[0])
		s.detachOrphans()
		s.releaseHeld()
		s.reexamine()
	})
}

// detachOrphans closes attachments on record that no stream here stands for.
// Left open, they would keep the session from ever expiring.
func (s *session) detachOrphans() {
	for client, number := range s.act.numbers {
		if s.queues[client] == nil {
			s.ops = append(s.ops, detachOp(newAttachment(nil, []byte(client), 0).opened(s.act.epoch, number), false))
		}
	}
}

// remake replaces the activation by the row of a committed command. Streams of
// clients that are attached no more are ended.
func (s *session) remake(res *wire.Result) {
	first, since := res.GetPosition(), res.GetRow().GetEpoch()
	if s.act != nil && s.act.epoch == res.GetRow().GetEpoch() {
		first, since = s.act.first, s.act.streamsSince
	} else {
		s.retireActivation()
		s.w.streams.begin(s.id, res.GetRow().GetEpoch())
	}
	s.act = newActivation(res.GetRow(), res.GetPosition())
	s.act.first, s.act.streamsSince = first, since
	s.stale = false
	for client, q := range s.queues {
		if s.act.numbers[client] != q.att.number {
			s.displace(client, q)
		}
	}
}

// displace ends what serves a client that is attached no more.
func (s *session) displace(client string, q *queue) {
	q.att.link.Bye(wire.Code_DISPLACED, "another client attached to the session")
	delete(s.queues, client)
	s.w.streams.endClient(s.id, client, wire.Errorf(wire.Code_DISPLACED, "another client attached to the session"))
}

// releaseHeld sends the replies that waited for a Claim.
func (s *session) releaseHeld() {
	for _, h := range s.held {
		_ = h.att.link.Send(h.frame)
	}
	s.held = nil
	for _, q := range s.queues {
		s.sendPushes(q.att)
	}
}

// lost ends the activation because the log refused a command of its owner.
func (s *session) lost(code wire.Code) {
	switch code {
	case wire.Code_STALE_INCARNATION:
		inc := s.act.owner.GetIncarnation()
		s.drop(wire.Code_MOVED, "the session has another owner now")
		// The incarnation may be over, or only this session's ownership of it:
		// the local state machine tells which.
		s.w.spawn(func() { s.w.checkIncarnation(inc) })
	case wire.Code_UNKNOWN_SESSION, wire.Code_SESSION_CLOSED, wire.Code_SESSION_EXPIRED:
		s.drop(code, "the session is no more")
	default:
		s.drop(wire.Code_MOVED, "the session has another owner now")
	}
}

// drop ends the activation and all its streams. s.mu is held.
func (s *session) drop(code wire.Code, message string) {
	s.dropLinks(code, message)
	s.w.streams.dropped(s.id, code, message)
	s.retireActivation()
	s.act, s.stale, s.held = nil, false, nil
	if !s.busy {
		s.retire()
	}
}

// retireActivation keeps the record of what the activation served.
func (s *session) retireActivation() {
	if s.act != nil {
		s.w.served.add(s.act.served(s.id))
	}
}

// dropLinks ends all streams. Their detachment is the log's business: the
// attachments stay on record until a Detach, an Attach or a change of owner.
func (s *session) dropLinks(code wire.Code, message string) {
	for _, q := range s.queues {
		q.att.link.Bye(code, message)
	}
	clear(s.queues)
	s.w.streams.cut(s.id, "", code, message)
	s.held = nil
}

// sendPushes sends what the attachment has not been sent. s.mu is held.
func (s *session) sendPushes(att *attachment) {
	for _, p := range s.act.outbox {
		if p.GetSeq() > att.sent {
			att.sent = p.GetSeq()
			_ = att.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Push{Push: &wire.PushFrame{
				Seq: p.GetSeq(), Epoch: s.act.epoch, Payload: p.GetPayload(),
			}}})
		}
	}
}
