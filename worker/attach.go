package worker

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"time"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// askTime bounds what a stream waits for before it is told to ask again: a
// barrier, or the leader's choice of an owner.
const askTime = 2 * time.Second

// HashSecret is what the log keeps of a session's secret. Secrets are random
// and long, so a plain hash cannot be searched.
func HashSecret(secret []byte) []byte {
	h := sha256.Sum256(secret)
	return h[:]
}

func checkIDs(session string, instance []byte) error {
	if err := wire.CheckSessionID(session); err != nil {
		return err
	}
	if len(instance) != wire.IDBytes {
		return wire.Errorf(wire.Code_BAD_REQUEST, "a client instance has %d bytes", wire.IDBytes)
	}
	return nil
}

func bye(link Link, err error) {
	link.Bye(wire.CodeOf(err), message(err))
}

func message(err error) string {
	if e := (*wire.Error)(nil); errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

// unavailable reports, and tells the link, that this node cannot serve now.
func (w *Worker) unavailable(link Link) bool {
	switch {
	case w.closed.Load():
		link.Bye(wire.Code_SHUTTING_DOWN, "the node stops: ask another one")
	case w.Stalled():
		link.Bye(wire.Code_UNAVAILABLE, "this node cannot reach a quorum: ask another node")
	case w.Incarnation() == 0:
		link.Bye(wire.Code_UNAVAILABLE, "this node is not registered yet: ask another node")
	default:
		return false
	}
	return true
}

// NodeInfo is how clients are told of a worker.
func NodeInfo(r *wire.WorkerRow) *wire.NodeInfo {
	return &wire.NodeInfo{Id: r.GetId(), Name: r.GetName(), Host: r.GetEndpoint().GetHost(), UserPort: r.GetEndpoint().GetUserPort()}
}

func redirect(to *wire.NodeInfo, epoch uint64) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Redirect{Redirect: &wire.Redirect{Owner: to, Epoch: epoch}}}
}

// serveAttach attaches a client here, or says (or is) the way to the owner.
func (w *Worker) serveAttach(link Link, f *wire.AttachReq) {
	if err := checkIDs(f.GetSession(), f.GetInstance()); err != nil {
		bye(link, err)
		return
	}
	if f.GetRelay() && f.GetRelayTo() != "" && f.GetRelayTo() != w.cfg.ID {
		w.relay(link, f, w.nodeInfo(f.GetRelayTo()))
		return
	}
	if w.unavailable(link) {
		return
	}
	loc, err := w.locate(f)
	if err != nil {
		bye(link, err)
		return
	}
	if loc.GetOwner().GetWorker() == w.cfg.ID {
		w.attachAt(link, f, loc)
		return
	}
	to := w.nodeInfo(loc.GetOwner().GetWorker())
	if to == nil {
		link.Bye(wire.Code_RETRY, "the owner is not known here yet: ask again")
		return
	}
	if f.GetRelay() {
		w.relay(link, f, to)
		return
	}
	_ = link.Send(redirect(to, loc.GetEpoch()))
	link.Bye(wire.Code_NOT_OWNER, "attach at the owner")
}

func (w *Worker) nodeInfo(id string) (info *wire.NodeInfo) {
	w.cfg.View(func(st *store.Store) {
		if row := st.Worker(id); row != nil {
			info = NodeInfo(row)
		}
	})
	return info
}

func (w *Worker) relay(link Link, f *wire.AttachReq, to *wire.NodeInfo) {
	w.relayTo(link, &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: f}}, to)
}

// relayTo passes a stream on that began with first.
func (w *Worker) relayTo(link Link, first *wire.ClientFrame, to *wire.NodeInfo) {
	if to == nil {
		link.Bye(wire.Code_RETRY, "the node to relay to is not known here")
		return
	}
	if err := w.cfg.Peers.Relay(link, first, to); err != nil {
		link.Bye(wire.Code_RETRY, "the owner cannot be reached from here: ask again")
	}
}

// locate finds a valid owner: by the local state machine, which may lag; by the
// log, before anything terminal is said; by the leader, if there is none.
func (w *Worker) locate(f *wire.AttachReq) (*wire.Location, error) {
	ctx, cancel := context.WithTimeout(w.ctx, askTime)
	defer cancel()
	loc := w.location(f.GetSession())
	if !loc.GetFound() || !secretMatches(f.GetSecret(), loc) || f.GetEpoch() > loc.GetEpoch() {
		res, err := w.proposeWait(ctx, &wire.Command{Kind: &wire.Command_Locate{Locate: &wire.Locate{Session: f.GetSession()}}})
		if err != nil {
			return nil, err
		}
		if loc = res[0].GetLocation(); loc == nil {
			return nil, wire.Errorf(wire.Code_RETRY, "the cluster does not serve yet: ask again")
		}
	}
	if !loc.GetFound() {
		return nil, wire.Errorf(loc.GetGone(), "there is no session %q", f.GetSession())
	}
	if !secretMatches(f.GetSecret(), loc) {
		return nil, wire.Errorf(wire.Code_BAD_SECRET, "the secret is not that of session %q", f.GetSession())
	}
	if loc.GetValid() {
		return loc, nil
	}
	assigned, err := w.cfg.Peers.Assign(ctx, f.GetSession())
	if err != nil {
		return nil, wire.Errorf(wire.Code_RETRY, "the session has no owner just now: ask again (%s)", message(err))
	}
	return assigned, nil
}

func secretMatches(secret []byte, loc *wire.Location) bool {
	return len(secret) == wire.SecretBytes && subtle.ConstantTimeCompare(HashSecret(secret), loc.GetSecretHash()) == 1
}

// attachAt attaches a client whose secret was checked to a session that is this
// worker's by loc, and serves its stream.
func (w *Worker) attachAt(link Link, f *wire.AttachReq, loc *wire.Location) {
	if loc.GetOwner().GetIncarnation() != w.Incarnation() {
		link.Bye(wire.Code_RETRY, "the node has just registered anew: ask again")
		return
	}
	w.attachesItself(f.GetSession(), f.GetInstance())
	att := newAttachment(link, f.GetInstance(), f.GetPushAck())
	attached := make(chan bool, 1)
	w.with(f.GetSession(), func(s *session) { s.enqueue(attachOp(att, f, loc, attached)) })
	select {
	case ok := <-attached:
		if !ok {
			return
		}
	case <-w.ctx.Done():
		link.Bye(wire.Code_SHUTTING_DOWN, "the node stops: ask another one")
		return
	}
	w.serveFrames(att, f.GetSession())
	w.leave(att, f.GetSession())
}

// attachOp opens an attachment. attached is told whether the stream serves.
func attachOp(att *attachment, f *wire.AttachReq, loc *wire.Location, attached chan<- bool) op {
	no := func(code wire.Code, msg string) {
		att.link.Bye(code, msg)
		attached <- false
	}
	var gap bool
	return op{
		refuse: func() { no(wire.Code_FROZEN, "the session is being handed over: ask again") },
		build: func(s *session) []*wire.Command {
			if s.w.Stalled() {
				no(wire.Code_UNAVAILABLE, "this node cannot reach a quorum: ask another node")
				return nil
			}
			att.opened(loc.GetEpoch(), s.w.numbers.Add(1))
			return []*wire.Command{{Kind: &wire.Command_Attach{Attach: &wire.Attach{
				Session: s.id, Epoch: loc.GetEpoch(), Owner: loc.GetOwner(), Number: att.number,
				Client: att.client, Fresh: f.GetFresh(),
			}}}}
		},
		before: func(s *session, res []*wire.Result) {
			if res[0].GetCode() == wire.Code_OK {
				s.w.beginEpoch(res[0], nil, false)
				gap = s.w.gap(res[0].GetRow(), f.GetEpoch())
			}
		},
		done: func(s *session, res []*wire.Result, err error) {
			if err != nil {
				no(wire.CodeOf(err), message(err))
				return
			}
			switch code := res[0].GetCode(); {
			case code != wire.Code_OK:
				s.attachRefused(no, code, loc)
			case loc.GetOwner().GetIncarnation() != s.w.Incarnation():
				no(wire.Code_RETRY, "the node was fenced: ask again")
			case s.freeze != nil:
				// Nothing is activated under a freeze (H1). The row has changed:
				// the capture has to claim it. The client's stream that serves stands
				// for what is on record of it now.
				s.freeze.last = max(s.freeze.last, res[0].GetPosition())
				if q := s.queues[att.name]; q != nil {
					q.att.opened(att.epoch, att.number)
					att.opened(0, 0)
				}
				s.stale = s.act != nil
				no(wire.Code_FROZEN, "the session is being handed over: ask again")
			default:
				s.attached(att, res[0], gap)
				attached <- true
			}
		},
	}
}

func (s *session) attachRefused(no func(wire.Code, string), code wire.Code, loc *wire.Location) {
	switch code {
	case wire.Code_STALE_INCARNATION:
		inc := loc.GetOwner().GetIncarnation()
		s.w.spawn(func() { s.w.checkIncarnation(inc) })
		no(wire.Code_RETRY, "the session has another owner: ask again")
	case wire.Code_STALE_EPOCH:
		no(wire.Code_RETRY, "the session has another owner: ask again")
	case wire.Code_CLIENT_GONE:
		no(code, "too many other clients attached since: the outcome of unanswered requests is not known any more")
	default:
		no(code, "there is no such session")
	}
}

// attached makes the attachment the current one, tells the client, and sends
// what it has not received. s.mu is held.
func (s *session) attached(att *attachment, res *wire.Result, gap bool) {
	old := s.queues[att.name]
	if old != nil {
		old.att.link.Bye(wire.Code_RETRY, "the client attached anew")
		s.w.streams.cut(s.id, string(att.client), wire.Code_RETRY, "the client attached anew")
	}
	s.queues[att.name] = newQueue(att)
	s.remake(res)
	s.announce(att, false, gap)
	s.releaseHeld()
	s.reexamine()
}

// announce tells the client that its stream serves. gap: live state was lost
// since the client was last attached.
func (s *session) announce(att *attachment, pivoted, gap bool) {
	win := s.act.windows[att.name]
	successor, spreadUS := s.foretell(att)
	att.streamToken = s.w.newStreamToken()
	_ = att.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Attached{Attached: &wire.Attached{
		Session: s.id, Epoch: s.act.epoch, Number: att.number, Node: s.w.cfg.Self(),
		Last: win.last, PushNext: s.act.next, Pivoted: pivoted,
		FrameLimit: wire.FrameBytesMax, ClusterId: s.w.cfg.ClusterID(), Gap: gap,
		StreamToken: att.streamToken, Successor: successor, SpreadUs: spreadUS,
	}}})
}

// leave detaches a client whose stream has ended.
func (w *Worker) leave(att *attachment, id string) {
	s := w.lookup(id)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enqueue(detachOp(att, false))
}

// detachOp closes an attachment: what runs is finished, nothing new is served,
// and the Detach is repeated until it is settled (S7). say: the client asked for
// it and waits for a Bye.
func detachOp(att *attachment, say bool) op {
	bye := func(code wire.Code, msg string) {
		if say {
			att.link.Bye(code, msg)
		}
	}
	return op{
		park:   true,
		insist: true,
		build: func(s *session) []*wire.Command {
			if q := s.queues[att.name]; q != nil && q.att == att {
				delete(s.queues, att.name)
				if say {
					s.w.streams.endClient(s.id, att.name, wire.Errorf(wire.Code_NOT_ATTACHED, "the client has left the session"))
				} else {
					s.w.streams.cut(s.id, att.name, wire.Code_RETRY, "the client's connection was lost")
				}
			}
			if s.act == nil || att.number == 0 || s.act.epoch != att.epoch || s.act.numbers[att.name] != att.number {
				bye(wire.Code_OK, "detached")
				return nil
			}
			return []*wire.Command{{Kind: &wire.Command_Detach{Detach: &wire.Detach{
				Session: s.id, Epoch: s.act.epoch, Owner: s.act.owner, Number: att.number,
			}}}}
		},
		done: func(s *session, res []*wire.Result, err error) {
			switch {
			case err != nil:
				bye(wire.CodeOf(err), message(err))
				return
			case res[0].GetCode() != wire.Code_OK:
				bye(wire.Code_RETRY, "the session has another owner: ask again")
				if s.act != nil {
					s.lost(res[0].GetCode())
				}
				return
			}
			bye(wire.Code_OK, "detached")
			if s.act == nil {
				return
			}
			if res[0].GetBefore() != s.act.change {
				s.stale = true
			}
			s.act.change, s.act.last = res[0].GetAfter(), res[0].GetPosition()
			delete(s.act.numbers, att.name)
			if len(s.act.numbers) == 0 {
				s.drop(wire.Code_NOT_ATTACHED, "the client has left")
			}
		},
	}
}

// closeOp removes the session for good, if the client is attached still when its
// turn comes.
func closeOp(att *attachment) op {
	link := att.link
	return op{
		park: true,
		build: func(s *session) []*wire.Command {
			if q := s.queues[att.name]; s.act == nil || q == nil || q.att != att {
				link.Bye(wire.Code_RETRY, "ask again")
				return nil
			}
			return []*wire.Command{{Kind: &wire.Command_Close{Close: &wire.CloseSession{
				Session: s.id, Epoch: s.act.epoch, Owner: s.act.owner,
			}}}}
		},
		done: func(s *session, res []*wire.Result, err error) {
			if err != nil {
				link.Bye(wire.CodeOf(err), message(err))
				return
			}
			switch code := res[0].GetCode(); code {
			case wire.Code_OK, wire.Code_SESSION_CLOSED, wire.Code_UNKNOWN_SESSION:
				s.drop(wire.Code_SESSION_CLOSED, "the session is closed")
			case wire.Code_SESSION_EXPIRED:
				s.drop(code, "the session has expired")
			default:
				if s.act != nil {
					s.lost(code)
				}
			}
		},
	}
}
