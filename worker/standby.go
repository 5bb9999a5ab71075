package worker

import (
	"sync"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

const (
	// standbysMax bounds the clients that stand by at a worker: two for each
	// connection that a node takes by default.
	standbysMax = 200_000
	// standbysPerSession is how many clients a session can remember.
	standbysPerSession = wire.ClientWindowsMax
)

// standbys are the clients that wait here for their sessions' owners to be lost.
// It is a faster way to the new owner and no more: what it sees is the local state
// machine, which may lag, and every Attach goes through the log.
type standbys struct {
	mu        sync.Mutex
	count     int
	bySession map[string][]*standby // by rising age of registration
}

// standby is one of them. Its stream's goroutine reads frames from the beginning,
// as that of an attachment that is still to be opened.
type standby struct {
	att *attachment
	req *wire.AttachReq

	mu sync.Mutex
	// owner and epoch are the last that were seen valid.
	owner *wire.Owner
	epoch uint64
	over  bool // attaches, was sent elsewhere, or has left
}

func (b *standbys) add(sb *standby) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	id := sb.req.GetSession()
	if b.count >= standbysMax || len(b.bySession[id]) >= standbysPerSession {
		return wire.Errorf(wire.Code_TOO_MANY, "too many clients stand by here")
	}
	if b.bySession == nil {
		b.bySession = map[string][]*standby{}
	}
	b.count++
	b.bySession[id] = append(b.bySession[id], sb)
	return nil
}

func (b *standbys) remove(sb *standby) {
	b.mu.Lock()
	defer b.mu.Unlock()
	id := sb.req.GetSession()
	for i, other := range b.bySession[id] {
		if other == sb {
			b.count--
			b.bySession[id] = append(b.bySession[id][:i:i], b.bySession[id][i+1:]...)
			break
		}
	}
	if len(b.bySession[id]) == 0 {
		delete(b.bySession, id)
	}
}

// of returns those of a session; they may be over by now.
func (b *standbys) of(session string) []*standby {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bySession[session]
}

func (b *standbys) all() []*standby {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]*standby, 0, b.count)
	for _, list := range b.bySession {
		out = append(out, list...)
	}
	return out
}

// serveStandby keeps a client's stream until its session's owner is lost. Nothing
// is kept for one that does not have the secret of a session on record here.
func (w *Worker) serveStandby(link Link, f *wire.AttachReq) {
	if err := checkIDs(f.GetSession(), f.GetInstance()); err != nil {
		bye(link, err)
		return
	}
	if w.unavailable(link) {
		return
	}
	loc := w.location(f.GetSession())
	switch {
	case !loc.GetFound(), loc.GetEpoch() < f.GetEpoch():
		// Nothing terminal is said without the log.
		link.Bye(wire.Code_RETRY, "the session is not known here yet: ask again")
		return
	case !secretMatches(f.GetSecret(), loc):
		link.Bye(wire.Code_BAD_SECRET, "the secret is not that of the session")
		return
	}
	sb := &standby{
		att:   newAttachment(link, f.GetInstance(), f.GetPushAck()),
		req:   f,
		owner: loc.GetOwner(), epoch: loc.GetEpoch(),
	}
	if f.GetEpoch() > 0 && f.GetEpoch() < loc.GetEpoch() && loc.GetValid() {
		sb.epoch, sb.owner = f.GetEpoch(), nil // it has missed a change of owner
	}
	if err := w.standbys.add(sb); err != nil {
		bye(link, err)
		return
	}
	_ = link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Standing{Standing: &wire.Standing{
		Owner: w.nodeInfo(loc.GetOwner().GetWorker()), Epoch: loc.GetEpoch(),
	}}})
	w.look(sb)
	if w.closed.Load() {
		link.Bye(wire.Code_SHUTTING_DOWN, "the node stops")
	}
	w.serveFrames(sb.att, f.GetSession())
	w.standbys.remove(sb)
	sb.mu.Lock()
	sb.over = true
	sb.mu.Unlock()
	w.leave(sb.att, f.GetSession())
}

// look compares what a standby waits for with the local state machine. A move away from
// an incarnation that is still valid was planned, and the client knows. Any other change
// of owner is what the client waits for; it may be the second that this sees at once.
func (w *Worker) look(sb *standby) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.over {
		return
	}
	var loc *wire.Location
	var planned bool
	w.cfg.View(func(st *store.Store) {
		loc = st.Location(sb.req.GetSession())
		planned = sb.owner != nil && st.Valid(sb.owner) && st.ByMigration(sb.req.GetSession())
	})
	here := loc.GetOwner().GetWorker() == w.cfg.ID
	switch {
	case !loc.GetFound():
		sb.end(wire.Code_RETRY, "the session is no more")
	case loc.GetEpoch() <= sb.epoch || !loc.GetValid():
	case planned && here:
		sb.end(wire.Code_RETRY, "the session has moved here: it has another successor")
	case planned:
		sb.owner, sb.epoch = loc.GetOwner(), loc.GetEpoch()
	case here:
		sb.over = true
		w.standbys.remove(sb)
		w.takeOver(sb, loc)
	default:
		if to := w.nodeInfo(loc.GetOwner().GetWorker()); to != nil {
			_ = sb.att.link.Send(redirect(to, loc.GetEpoch()))
		}
		sb.end(wire.Code_NOT_OWNER, "attach at the owner")
	}
}

// end lets the client go. sb.mu is held.
func (sb *standby) end(code wire.Code, message string) {
	sb.over = true
	sb.att.link.Bye(code, message)
}

// takeOver attaches a client that stood by. It does not block; sb.mu is held, so
// that the client's leaving comes after it.
func (w *Worker) takeOver(sb *standby, loc *wire.Location) {
	if loc.GetOwner().GetIncarnation() != w.Incarnation() {
		sb.att.link.Bye(wire.Code_RETRY, "the node has just registered anew: ask again")
		return
	}
	attached := make(chan bool, 1)
	w.with(sb.req.GetSession(), func(s *session) { s.enqueue(attachOp(sb.att, sb.req, loc, attached)) })
}

// observeStandbys looks for those who have waited for a change of this session.
func (w *Worker) observeStandbys(session string) {
	for _, sb := range w.standbys.of(session) {
		w.look(sb)
	}
}

// attachesItself ends what an instance waits for here, as it attaches by itself:
// two attachments of one instance would displace each other.
func (w *Worker) attachesItself(session string, instance []byte) {
	for _, sb := range w.standbys.of(session) {
		if string(sb.att.client) != string(instance) {
			continue
		}
		sb.mu.Lock()
		if !sb.over {
			sb.end(wire.Code_RETRY, "the client attaches here by itself")
		}
		sb.mu.Unlock()
	}
}

// endStandbys lets all clients go that stand by.
func (w *Worker) endStandbys(code wire.Code, message string) {
	for _, sb := range w.standbys.all() {
		sb.mu.Lock()
		if !sb.over {
			sb.end(code, message)
		}
		sb.mu.Unlock()
	}
}

// Standbys counts the clients that stand by here.
func (w *Worker) Standbys() int {
	w.standbys.mu.Lock()
	defer w.standbys.mu.Unlock()
	return w.standbys.count
}
