// Package worker is the owner's side of sessions: it holds an activation of
// each session that this node serves, runs handlers, turns their effects into
// log commands, answers when the log has answered, and hands sessions over.
//
// It decides nothing about ownership. Every effect is a command that the state
// machine checks against (session, epoch, incarnation), and an activation only
// ever comes from the result of a committed command (rules S2, S3, S7, H1
// to H4 of ARCHITECTURE.md). It does no IO of its own: streams, log and peers come in through
// small interfaces.
//
// Threading: each session is an actor. Its mutex guards its fields; at most one
// goroutine runs it, and at most one group of its commands is in the log's
// hands at a time (busy). That is what makes "all own proposals are settled"
// (H1) the same as "not busy".
package worker

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/pool"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// Link is one client's stream. Send and Bye never block.
type Link interface {
	Recv() (*wire.ClientFrame, error)
	Send(*wire.ServerFrame) error
	// Bye sends the last frame; the stream ends once it is delivered.
	Bye(code wire.Code, message string)
	// Connection is what secures the stream, and what was measured of it.
	Connection() *wire.Connection
	// Confirmed waits until what came first on the stream is known to be no
	// replay. It fails if the stream ends before.
	Confirmed() error
}

// Log is where commands become facts. done is called once, with one result for
// each command; an error means that nothing will be known here any more
// (SHUTTING_DOWN) or that nothing was proposed (OVERLOADED).
type Log interface {
	Propose(cmds []*wire.Command, done func([]*wire.Result, error))
}

// Peers are the calls to other nodes that a worker makes.
type Peers interface {
	// Assign asks the leader for an owner of a session that has none.
	Assign(ctx context.Context, session string) (*wire.Location, error)
	// Transfer brings a sealed snapshot, or a chunk of it, to the target of a
	// migration.
	Transfer(ctx context.Context, addr string, req *wire.TransferReq) (*wire.TransferResp, error)
	// Relay pipes a stream to another node until either side ends.
	Relay(link Link, first *wire.ClientFrame, to *wire.NodeInfo) error
}

// Seals are the cluster's seal keys as this node knows them. After a change of
// them Observe must be called.
type Seals interface {
	// Newest is the key to seal with.
	Newest() migrate.SealKey
	// Of is the key of a generation, to open with, if the node has it.
	Of(generation uint64) (migrate.SealKey, bool)
}

// Config of a Worker. All fields are required but Logger, StallAfter, Lease
// and Spread.
type Config struct {
	ID string // the node's id
	// Self is how clients are told of this node. It is not read from the local
	// state machine, which may not have heard of the registration yet.
	Self      func() *wire.NodeInfo
	ClusterID func() []byte
	Log       Log
	View      func(func(*store.Store))
	Peers     Peers
	App       *Mux
	Clock     seam.Clock
	Rand      io.Reader
	Seals     Seals
	Logger    *slog.Logger
	// StallAfter is how long proposals may wait without any progress before the
	// worker tells its clients UNAVAILABLE, so that they ask elsewhere.
	StallAfter time.Duration
	// Lease tells how long the worker's lease for incarnation still lasts: while
	// ok, reads of the incarnation's activations need no confirmation by the log.
	// It reads the clock when it is called, so it is to be called after the
	// request arrived, for each request anew; what it answered must not be kept.
	// It is quick, and is called with sessions locked. nil: there are no leases, and
	// every read is confirmed.
	Lease func(incarnation uint64) (left time.Duration, ok bool)
	// OnFenced is told, without delay, that the incarnation is over: register
	// again. It must not block.
	OnFenced func()
	// Spread, if set, is over how long the clients of this node are to spread their
	// connections when it dies. It must be quick.
	Spread func() time.Duration
}

// StallElections is for how many election timeouts proposals may wait: shorter
// and an election would scatter the clients, longer and a cut-off owner would
// keep them waiting.
const StallElections = 3

// StallAfterDefault is that by the default profile.
const StallAfterDefault = StallElections * 500 * time.Millisecond

// attachmentFirst is the first attachment number that a worker hands out.
// Numbers below are a pivot's (one for each warm client).
const attachmentFirst = 1 << 10

// Worker serves the sessions that its node owns.
type Worker struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	jobs   pool.Pool

	// incarnation is the current one, 0 while not registered.
	incarnation atomic.Uint64
	numbers     atomic.Uint64 // attachment numbers, rising for the process

	mu       sync.RWMutex
	sessions map[string]*session
	incoming map[uint64]*incoming // migrations to this node, by id

	standbys   standbys
	successors successors

	markers  markers
	answers  line // to groups of requests
	progress progress
	served   servedRing
	live     holdings
	arriving room
	streams  streams
	changed  *broadcast // wakes those who wait for the local state machine
	closed   atomic.Bool
}

// New makes a Worker. It serves nothing until SetIncarnation.
func New(cfg Config) *Worker {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.StallAfter == 0 {
		cfg.StallAfter = StallAfterDefault
	}
	w := &Worker{
		cfg:      cfg,
		sessions: make(map[string]*session),
		incoming: make(map[uint64]*incoming),
		changed:  newBroadcast(),
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.numbers.Store(attachmentFirst)
	w.markers.w = w
	w.streams = streams{w: w, of: make(map[string]*sessionStreams)}
	w.spawn(w.watchProgress)
	return w
}

// SetIncarnation lets the worker serve as the incarnation that the log gave it.
// Activations made under another one are dropped first.
func (w *Worker) SetIncarnation(n uint64) {
	w.incarnation.Store(0) // what the log still answers to the former one activates nothing
	w.dropAll(wire.Code_RETRY, "the node registered anew: attach again")
	w.incarnation.Store(n)
}

// Incarnation is the one that the worker serves as; 0: none.
func (w *Worker) Incarnation() uint64 { return w.incarnation.Load() }

// Fenced ends the incarnation n: nothing is served until SetIncarnation. It
// reports whether n was the current one.
func (w *Worker) Fenced(n uint64) bool {
	if !w.incarnation.CompareAndSwap(n, 0) {
		return false
	}
	w.cfg.Logger.Warn("this incarnation of the worker is over", "incarnation", n)
	w.dropAll(wire.Code_RETRY, "the node was fenced: attach again")
	return true
}

// owner is how commands name this worker.
func (w *Worker) owner() *wire.Owner {
	return &wire.Owner{Worker: w.cfg.ID, Incarnation: w.incarnation.Load()}
}

// Serve runs one client's stream, from its first frame to its end.
func (w *Worker) Serve(link Link, first *wire.ClientFrame) {
	switch f := first.GetKind().(type) {
	case *wire.ClientFrame_Open:
		w.serveOpen(link, f.Open)
	case *wire.ClientFrame_Attach:
		if len(f.Attach.GetToken()) > 0 {
			w.serveWarm(link, f.Attach)
		} else if f.Attach.GetStandby() {
			w.serveStandby(link, f.Attach)
		} else {
			w.serveAttach(link, f.Attach)
		}
	case *wire.ClientFrame_Stream:
		w.serveStream(link, f.Stream)
	default:
		link.Bye(wire.Code_BAD_REQUEST, "a stream begins with open, attach or stream")
	}
}

// Observe takes what the local state machine applied. It must not block: it is
// called in the order of the log, and only notes and wakes.
func (w *Worker) Observe(events []store.Event) {
	for _, e := range events {
		switch e.Kind {
		case store.EventSession:
			w.observeSession(e.Session)
			w.observeStandbys(e.Session)
		case store.EventMigration:
			w.observeMigration(e.Migration)
		case store.EventWorker:
			w.successors.forget()
			w.tellSuccessors()
			if e.Worker == w.cfg.ID {
				w.checkIncarnation(w.Incarnation())
			}
		case store.EventRestored:
			w.observeAll()
		}
	}
	w.changed.wake()
}

func (w *Worker) observeAll() {
	w.mu.RLock()
	ids := make([]string, 0, len(w.sessions))
	for id := range w.sessions {
		ids = append(ids, id)
	}
	w.mu.RUnlock()
	for _, id := range ids {
		w.observeSession(id)
	}
	for _, id := range w.streams.ids() {
		w.streams.observe(id, w.cfg.View)
	}
	for _, sb := range w.standbys.all() {
		w.look(sb)
	}
	w.successors.forget()
	w.tellSuccessors()
	for _, id := range w.live.ids() {
		w.live.observe(id, w.cfg.View)
	}
	for _, in := range w.allIncoming() {
		w.observeMigration(in.m.GetId())
	}
	w.checkIncarnation(w.Incarnation())
}

// checkIncarnation ends the incarnation if the local state machine knows that it
// is over. If that lags, its own event will tell.
func (w *Worker) checkIncarnation(n uint64) {
	if n == 0 {
		return
	}
	var valid bool
	w.cfg.View(func(st *store.Store) {
		row := st.Worker(w.cfg.ID)
		valid = row.GetIncarnation() < n || st.Valid(&wire.Owner{Worker: w.cfg.ID, Incarnation: n})
	})
	if !valid && w.Fenced(n) && w.cfg.OnFenced != nil {
		w.cfg.OnFenced()
	}
}

// observeSession drops an activation that the log has moved past. The local
// state machine may lag behind the activation (results come from the leader),
// so only a higher epoch counts, or an absence that is newer than the row.
func (w *Worker) observeSession(id string) {
	w.live.observe(id, w.cfg.View)
	w.streams.observe(id, w.cfg.View)
	s := w.lookup(id)
	if s == nil {
		return
	}
	var sum store.Summary
	var found bool
	var index uint64
	gone := wire.Code_RETRY
	w.cfg.View(func(st *store.Store) {
		sum, found = st.Session(id)
		index = st.Index()
		if found {
			return
		}
		if code := st.Location(id).GetGone(); code == wire.Code_SESSION_CLOSED || code == wire.Code_SESSION_EXPIRED {
			gone = code // committed, and newer than the activation: as good as a barrier
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.act == nil || s.freeze != nil {
		return
	}
	if found && sum.Epoch > s.act.epoch {
		s.drop(wire.Code_MOVED, "the session has another owner now")
	} else if !found && s.act.first>>12 <= index && s.act.change>>12 <= index {
		s.drop(gone, "the session is no more")
	}
}

// dropAll ends every activation.
func (w *Worker) dropAll(code wire.Code, message string) {
	for _, s := range w.all() {
		s.mu.Lock()
		s.drop(code, message)
		s.mu.Unlock()
	}
	w.streams.dropAll(code, message)
	w.bounceAll(code)
}

// Close stops serving. What is with the log comes back to nobody.
func (w *Worker) Close() {
	if w.closed.Swap(true) {
		return
	}
	w.cancel()
	w.dropAll(wire.Code_SHUTTING_DOWN, "the node stops: ask another one")
	w.endStandbys(wire.Code_SHUTTING_DOWN, "the node stops")
}

// Wait returns when all goroutines of a closed worker have ended. The log must
// be closed before, so that no answer is pending, and so must the streams.
func (w *Worker) Wait() { w.jobs.Wait() }

// Sessions reports how many activations there are.
func (w *Worker) Sessions() int {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return len(w.sessions)
}

// lookup returns the session if this worker holds anything of it.
func (w *Worker) lookup(id string) *session {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.sessions[id]
}

// with runs fn on the session, made if need be, under its mutex.
func (w *Worker) with(id string, fn func(*session)) {
	for {
		w.mu.Lock()
		s := w.sessions[id]
		if s == nil {
			s = newSession(w, id)
			w.sessions[id] = s
		}
		w.mu.Unlock()
		s.mu.Lock()
		if s.dead {
			s.mu.Unlock()
			continue
		}
		fn(s)
		s.mu.Unlock()
		return
	}
}

// forget removes a session that holds nothing any more. s.mu is held.
func (w *Worker) forget(s *session) {
	s.dead = true
	w.mu.Lock()
	if w.sessions[s.id] == s {
		delete(w.sessions, s.id)
	}
	w.mu.Unlock()
}

// propose gives commands to the log and keeps the stall detector informed.
func (w *Worker) propose(cmds []*wire.Command, done func([]*wire.Result, error)) {
	w.progress.begin(w.cfg.Clock.Now())
	w.cfg.Log.Propose(cmds, func(res []*wire.Result, err error) {
		w.progress.end(w.cfg.Clock.Now(), err == nil)
		done(res, err)
	})
}

// proposeWait is propose for those who may block.
func (w *Worker) proposeWait(ctx context.Context, cmds ...*wire.Command) ([]*wire.Result, error) {
	type answer struct {
		res []*wire.Result
		err error
	}
	ch := make(chan answer, 1)
	w.propose(cmds, func(res []*wire.Result, err error) { ch <- answer{res, err} })
	select {
	case a := <-ch:
		return a.res, a.err
	case <-ctx.Done():
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "no quorum answered in time: ask again or another node")
	}
}

// spawn runs f as one of the worker's own goroutines, unless Wait is over.
func (w *Worker) spawn(f func()) { w.jobs.Go(f) }
