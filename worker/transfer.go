package worker

import (
	"context"
	"time"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// The source's side of a transfer ("Life of a pivot", step 6): the calls, and
// when to give up.

const (
	// transferTime bounds each call to the target, that with the commit included,
	// and how long a transfer may stand still while clients wait. Past it the
	// source asks the log what became of the migration.
	transferTime = 5 * time.Second
	// resumePause is between a cut and the next attempt: a peer's connection is
	// dialled anew within it.
	resumePause = 50 * time.Millisecond
	// listenAfter is how long nearly all transfers do not take. Past it the source
	// listens to the log beside waiting for the target.
	listenAfter = 100 * time.Millisecond
)

// sending is one transfer under way. Only its own goroutine touches it.
type sending struct {
	w        *Worker
	ctx      context.Context
	m        *wire.Migration
	addr     string
	out      *migrate.Outgoing
	answers  chan sent // has room for all that is under way: nobody need wait for it
	underway int
	moved    time.Duration // when the target was last known to have more
	cut      error         // a call was lost: nothing is sent until all are back
	// late is closed when the log is to be listened to, and changed then when it has
	// moved on.
	late, changed <-chan struct{}
}

type sent struct {
	resp *wire.TransferResp
	err  error
}

// send brings a sealed snapshot to the target, and returns what CommitPivot came
// to. A chunk that was cut off is sent again, until the target has had no more
// of it for transferTime, the migration's deadline has passed or the log has
// ended it. A snapshot of one message has nothing to resume: the log tells what
// became of it.
func (w *Worker) send(m *wire.Migration, addr string, out *migrate.Outgoing) (*wire.TransferResp, error) {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	t := &sending{
		w: w, ctx: ctx, m: m, addr: addr, out: out,
		answers: make(chan sent, migrate.TransferWindow), moved: w.cfg.Clock.Now(),
	}
	late := make(chan struct{})
	defer w.cfg.Clock.AfterFunc(listenAfter, func() { close(late) }).Stop()
	t.late = late
	for {
		t.fill()
		if t.underway == 0 {
			if err := t.resume(); err != nil {
				return nil, err
			}
			continue
		}
		a, err := t.next()
		if err != nil {
			return nil, err
		}
		t.underway--
		switch {
		case a.err == nil && decided(a.resp):
			return a.resp, nil
		case a.err == nil:
			if out.Has(a.resp.GetReceived()) {
				t.moved = w.cfg.Clock.Now()
			}
		case !t.resumable(a.err):
			return nil, a.err
		default:
			t.cut = a.err
		}
	}
}

// next is the next answer, or what the log says if that is sooner: a target that falls
// silent tells nobody. It fails if the log has called the migration off.
func (t *sending) next() (sent, error) {
	for {
		select {
		case a := <-t.answers:
			return a, nil
		case <-t.late:
			t.late = nil
		case <-t.changed:
		}
		t.changed = t.w.changed.wait()
		m, err := t.w.wanted(t.m.GetId())
		switch {
		case pivoted(m):
			return sent{resp: &wire.TransferResp{Migration: m}}, nil
		case err != nil:
			return sent{}, err
		}
	}
}

func pivoted(m *wire.Migration) bool {
	return m.GetPhase() == wire.Phase_PHASE_PIVOTED || m.GetPhase() == wire.Phase_PHASE_COMPLETED
}

// fill sends what the window allows.
func (t *sending) fill() {
	for t.cut == nil && t.underway < migrate.TransferWindow {
		req := t.out.Next()
		if req == nil {
			return
		}
		t.underway++
		t.w.spawn(func() {
			ctx, cancel := context.WithTimeout(t.ctx, transferTime)
			defer cancel()
			resp, err := t.w.cfg.Peers.Transfer(ctx, t.addr, req)
			t.answers <- sent{resp, err}
		})
	}
}

// decided reports whether an answer tells the pivot's outcome.
func decided(r *wire.TransferResp) bool {
	return r.GetCode() != wire.Code_OK || r.GetMigration() != nil
}

// resumable reports whether the transfer can go on after err. OVERLOADED: the
// target has no room for it just now, and has kept nothing.
func (t *sending) resumable(err error) bool {
	switch wire.CodeOf(err) {
	case wire.Code_OVERLOADED:
		return true
	case wire.Code_UNAVAILABLE, wire.Code_DEADLINE_EXCEEDED:
		return !t.out.Single()
	}
	return false
}

// resume waits a moment after a cut, and fails if it is no use to go on.
func (t *sending) resume() error {
	if t.cut == nil {
		t.cut = wire.Errorf(wire.Code_UNAVAILABLE, "the target does not keep what it is sent")
	}
	if t.w.cfg.Clock.Now()-t.moved >= transferTime {
		return t.cut
	}
	if _, err := t.w.wanted(t.m.GetId()); err != nil {
		return err
	}
	if seam.Sleep(t.ctx, t.w.cfg.Clock, resumePause) != nil {
		return wire.Errorf(wire.Code_SHUTTING_DOWN, "the node stops")
	}
	t.cut = nil
	t.out.Resume()
	return nil
}

// wanted returns the migration as the log has it. It fails once that has ended it, or
// its time is over as far as this node has heard.
func (w *Worker) wanted(id uint64) (m *wire.Migration, err error) {
	var now uint64
	w.cfg.View(func(st *store.Store) { m, now = st.Migration(id), st.TimeUS() })
	switch {
	case m.GetPhase() != wire.Phase_PHASE_BEGUN:
		return m, wire.Errorf(wire.Code_MIGRATION_ENDED, "the migration is over: %s", m.GetWhy())
	case now >= m.GetDeadlineUs():
		return m, wire.Errorf(wire.Code_DEADLINE_PASSED, "the snapshot was not at the target before the migration's deadline")
	}
	return m, nil
}
