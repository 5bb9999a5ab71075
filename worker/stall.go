package worker

import (
	"sync"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// progress tells whether the log answers at all. It looks at all proposals of
// the worker together: without a quorum none returns.
type progress struct {
	mu          sync.Mutex
	outstanding int
	since       time.Duration // of the last answer, or of the first proposal after a lull
	stalled     bool
}

func (p *progress) begin(now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.outstanding == 0 {
		p.since = now
	}
	p.outstanding++
}

func (p *progress) end(now time.Duration, answered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outstanding--
	if answered {
		p.since = now
	}
	// With nothing under way there is nothing to judge by: let clients in again.
	if answered || p.outstanding == 0 {
		p.stalled = false
	}
}

// check reports whether the log has stalled just now.
func (p *progress) check(now, limit time.Duration) (began bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stalled || p.outstanding == 0 || now-p.since < limit {
		return false
	}
	p.stalled = true
	return true
}

// left is how long the log cannot be found to have stalled: until then there is
// nothing to look for.
func (p *progress) left(now, limit time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stalled || p.outstanding == 0 {
		return limit
	}
	return p.since + limit - now
}

func (p *progress) isStalled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stalled
}

// stallChecks is how often within its limit a stall is looked for that is due: a
// lease may hide it for longer.
const stallChecks = 8

// watchProgress sends the clients elsewhere when the log does not answer. What
// is in flight stays in flight: its outcome is decided by the log, later. While
// the lease holds nobody else could serve them, and queries are answered: an
// election that is shorter than the lease outlives its leader goes unnoticed.
func (w *Worker) watchProgress() {
	limit := w.cfg.StallAfter
	for seam.Sleep(w.ctx, w.cfg.Clock, max(w.progress.left(w.cfg.Clock.Now(), limit), limit/stallChecks)) == nil {
		if _, held := w.lease(w.Incarnation()); held {
			continue
		}
		if w.progress.check(w.cfg.Clock.Now(), limit) {
			w.cfg.Logger.Warn("the log does not answer: sending clients to other nodes", "limit", limit)
			w.markers.fail()
			w.dropLinks(wire.Code_UNAVAILABLE, "this node cannot reach a quorum: ask another node")
		}
	}
}

// dropLinks ends all streams but keeps the activations: what they know was
// committed, and the log will say whether it still holds.
func (w *Worker) dropLinks(code wire.Code, message string) {
	w.mu.RLock()
	all := make([]*session, 0, len(w.sessions))
	for _, s := range w.sessions {
		all = append(all, s)
	}
	w.mu.RUnlock()
	for _, s := range all {
		s.mu.Lock()
		s.dropLinks(code, message)
		s.mu.Unlock()
	}
}

// Stalled reports whether the log does not answer this node's proposals.
func (w *Worker) Stalled() bool { return w.progress.isStalled() }

// broadcast wakes everyone who waits.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func newBroadcast() *broadcast { return &broadcast{ch: make(chan struct{})} }

// wait returns a channel that is closed at the next wake.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

func (b *broadcast) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}
