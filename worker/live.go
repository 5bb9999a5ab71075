package worker

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// The application's live state: what it holds in memory for a session beside
// the replicated state (rule H4). A planned move carries it, sealed
// and bound to CommitPivot by its digest; a crash loses it, and says so.

// FreezeHook is asked for a session's live state when the session is frozen for
// a move: no handler of it runs, and none will until a ResumeHook was called,
// at the target or, if the move is off, here. Queries may still run; they are
// not answered. Afterwards the state is not the caller's any more, nor is the
// slice. An error or a panic calls the move off and leaves the state with the
// application; so does a hook that takes longer than five seconds.
type FreezeHook func(session string, fence Fence) ([]byte, error)

// ResumeHook is told, before any handler or query of epoch runs on this node,
// what became of the session's live state. ok: live is what the FreezeHook
// returned, at the former owner or, if a move was called off, here. Not ok: it
// is gone, with a node that crashed or could not hand it over, and what this
// node may still hold of it from earlier is not valid. It is not called for a
// session that was opened here. It must not block: past five seconds the
// session is served without it, as if the state were lost.
type ResumeHook func(session string, epoch uint64, live []byte, ok bool)

// OnFreeze registers the hook that gives up live state. Register hooks before
// the node opens, and the same on all nodes. It panics if there is one already.
func (m *Mux) OnFreeze(h FreezeHook) {
	if m.onFreeze != nil {
		panic("baton: OnFreeze is registered twice")
	}
	m.onFreeze = h
}

// OnResume registers the hook that takes live state. It panics if there is one
// already.
func (m *Mux) OnResume(h ResumeHook) {
	if m.onResume != nil {
		panic("baton: OnResume is registered twice")
	}
	m.onResume = h
}

// keepsLive reports whether the application has live state to lose.
func (m *Mux) keepsLive() bool { return m.onFreeze != nil || m.onResume != nil }

func (m *Mux) freeze(session string, fence Fence) (live []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			live, err = nil, wire.Errorf(wire.Code_HANDLER_PANIC, "the application's freeze hook panicked: %s", clip(fmt.Sprint(p)))
			m.panicked("OnFreeze", p, debug.Stack())
		}
	}()
	if live, err = m.onFreeze(session, fence); err != nil {
		code, text := outcome(err)
		return nil, wire.Errorf(code, "the application's freeze hook refused: %s", text)
	}
	return live, nil
}

// resume reports whether the application has taken what it was told.
func (m *Mux) resume(session string, epoch uint64, live []byte, ok bool) (took bool) {
	if m.onResume == nil {
		return false
	}
	defer func() {
		if p := recover(); p != nil {
			took = false
			m.panicked("OnResume", p, debug.Stack())
		}
	}()
	m.onResume(session, epoch, live, ok)
	return true
}

// holding is what the application was told of a session that this worker owns.
// It outlives activations: a session that its clients left and came back to
// keeps its live state.
type holding struct {
	epoch uint64
	first uint64 // position of the command that brought it
	lost  bool   // the epoch began without the live state of the one before
	// turn holds one token while a hook of the session runs. A later holding of
	// the session inherits it: the application sees one hook at a time.
	turn chan struct{}
}

// holdings are the sessions whose live state is the application's to hold here.
type holdings struct {
	mu   sync.Mutex
	held map[string]*holding
}

func (l *holdings) at(session string, epoch uint64) *holding {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.held[session]; h != nil && h.epoch == epoch {
		return h
	}
	return nil
}

// enter notes a new epoch of a session. It returns nil if it is none.
func (l *holdings) enter(row *wire.SessionRow, position uint64) *holding {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := &holding{epoch: row.GetEpoch(), first: position, turn: make(chan struct{}, 1)}
	if old := l.held[row.GetId()]; old != nil {
		if old.epoch >= h.epoch {
			return nil
		}
		h.turn = old.turn
	}
	if l.held == nil {
		l.held = make(map[string]*holding)
	}
	l.held[row.GetId()] = h
	return h
}

func (l *holdings) lose(h *holding) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.lost = true
}

func (l *holdings) lostAt(session string, epoch uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.held[session]
	return h != nil && h.epoch == epoch && h.lost
}

func (l *holdings) ids() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := make([]string, 0, len(l.held))
	for id := range l.held {
		ids = append(ids, id)
	}
	return ids
}

// observe forgets a session that the log has moved past (see observeSession).
func (l *holdings) observe(id string, view func(func(*store.Store))) {
	l.mu.Lock()
	h := l.held[id]
	l.mu.Unlock()
	if h == nil {
		return
	}
	var over bool
	view(func(st *store.Store) {
		sum, found := st.Session(id)
		over = found && sum.Epoch > h.epoch || !found && h.first>>store.PositionBits <= st.Index()
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if over && l.held[id] == h {
		delete(l.held, id)
	}
}

// beginEpoch tells the application of an epoch of a session that begins here,
// once, before anything of it is served. live is what the pivot brought; has:
// it did. It reports whether the epoch began without the live state that there
// was. It is called by the session's turn, without any mutex.
func (w *Worker) beginEpoch(res *wire.Result, live []byte, has bool) (lost bool) {
	row := res.GetRow()
	if !w.cfg.App.keepsLive() || row.GetOwner().GetIncarnation() != w.Incarnation() {
		return false
	}
	h := w.live.enter(row, res.GetPosition())
	if h == nil || opened(row) {
		return w.live.lostAt(row.GetId(), row.GetEpoch())
	}
	if !has {
		w.live.lose(h)
	}
	if !w.resumeLive(h, row.GetId(), live, has) {
		w.live.lose(h)
	}
	return w.live.lostAt(row.GetId(), row.GetEpoch())
}

// opened reports whether the row's epoch is its first.
func opened(row *wire.SessionRow) bool {
	n := len(row.GetHistory())
	return n > 0 && row.GetHistory()[n-1].GetFrom() == ""
}

// gap reports whether a client that has last seen the epoch seen has to be told
// that live state was lost since.
func (w *Worker) gap(row *wire.SessionRow, seen uint64) bool {
	if seen == 0 || seen >= row.GetEpoch() || !w.cfg.App.keepsLive() {
		return false
	}
	history := row.GetHistory()
	if len(history) >= wire.HistoryMax && history[0].GetEpoch() > seen {
		return true // what was before is not on record
	}
	for _, c := range history {
		if c.GetEpoch() > seen && c.GetFrom() != "" && c.GetMigration() == 0 {
			return true // taken from one who could not hand it over
		}
	}
	return w.live.lostAt(row.GetId(), row.GetEpoch())
}

// freezeLive takes the session's live state from the application, which must
// have been told of the epoch: else what it holds, if anything, is not valid.
// The session is frozen and settled.
func (w *Worker) freezeLive(f *freeze, m *wire.Migration) error {
	h := w.live.at(m.GetSession(), m.GetSourceEpoch())
	if w.cfg.App.onFreeze == nil || h == nil {
		return nil
	}
	var live []byte
	var refused error
	ok := w.runHook(h, func() {
		live, refused = w.cfg.App.freeze(m.GetSession(), Fence{Session: m.GetSession(), Epoch: m.GetSourceEpoch()})
	}, func() {
		if refused == nil && w.live.at(m.GetSession(), m.GetSourceEpoch()) != nil {
			w.cfg.App.resume(m.GetSession(), m.GetSourceEpoch(), live, true)
		}
	})
	switch {
	case !ok:
		return wire.Errorf(wire.Code_OVERLOADED, "the application's freeze hook held up the move for more than %v", freezeGrace)
	case refused != nil:
		return refused
	}
	f.live, f.hasLive = live, true
	if len(live) > wire.LiveBytesMax {
		return wire.Errorf(wire.Code_SNAPSHOT_TOO_LARGE,
			"live state has %d bytes, at most %d can move; the session stays where it is", len(live), wire.LiveBytesMax)
	}
	return nil
}

// giveBack returns what freezeLive took, as the move is off.
func (w *Worker) giveBack(f *freeze, m *wire.Migration) {
	h := w.live.at(m.GetSession(), m.GetSourceEpoch())
	if !f.hasLive || h == nil {
		return
	}
	if !w.resumeLive(h, m.GetSession(), f.live, true) {
		w.live.lose(h)
	}
}

// resumeLive reports whether the application took it in time.
func (w *Worker) resumeLive(h *holding, session string, live []byte, ok bool) bool {
	var took bool
	return w.runHook(h, func() { took = w.cfg.App.resume(session, h.epoch, live, ok) }, func() {}) && took
}

// runHook runs a hook in the session's turn, on a goroutine of its own, and
// waits for it no longer than the freeze's grace. late runs after a hook that
// was given up on, in the same turn.
func (w *Worker) runHook(h *holding, hook, late func()) bool {
	over := make(chan struct{})
	t := w.cfg.Clock.AfterFunc(freezeGrace, func() { close(over) })
	defer t.Stop()
	select {
	case h.turn <- struct{}{}:
	case <-over:
		return false
	case <-w.ctx.Done():
		return false
	}
	// Whoever comes first decides: the hook's end, or the end of patience.
	var decided atomic.Bool
	done := make(chan struct{})
	w.spawn(func() {
		defer func() { <-h.turn }()
		hook()
		if decided.CompareAndSwap(false, true) {
			close(done)
		} else {
			late()
		}
	})
	select {
	case <-done:
		return true
	case <-over:
	case <-w.ctx.Done():
	}
	if decided.CompareAndSwap(false, true) {
		w.cfg.Logger.Error("a hook of the application does not return", "after", freezeGrace)
		return false
	}
	<-done
	return true
}
