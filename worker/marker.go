package worker

import (
	"sync"

	"github.com/baton-cluster/baton/wire"
)

// markers confirm queries: a marker names the incarnation of the activation that
// a query ran on, and is refused once that incarnation is over, in the log or in
// a leader's state that lacks nothing (cluster/confirm.go). Markers are shared: one for
// all queries of the node that came in while the last was on its way. There is never
// a second one: it would only make both smaller.
type markers struct {
	w       *Worker
	mu      sync.Mutex
	pending []*read
	flying  bool
}

func (m *markers) add(rd *read) {
	m.mu.Lock()
	m.pending = append(m.pending, rd)
	m.mu.Unlock()
	m.fly()
}

// fly sends a marker for all that waits, unless one is under way.
func (m *markers) fly() {
	m.mu.Lock()
	if len(m.pending) == 0 || m.flying {
		m.mu.Unlock()
		return
	}
	batch := m.pending
	m.pending = nil
	m.flying = true
	m.mu.Unlock()

	owner := batch[0].act.owner
	cmd := &wire.Command{Kind: &wire.Command_ReadMarker{ReadMarker: &wire.ReadMarker{Owner: owner}}}
	m.w.propose([]*wire.Command{cmd}, func(res []*wire.Result, err error) {
		m.mu.Lock()
		m.flying = false
		m.mu.Unlock()
		m.fly()
		m.w.spawn(func() { m.land(batch, owner, res, err) })
	})
}

// land answers the batch.
func (m *markers) land(batch []*read, owner *wire.Owner, res []*wire.Result, err error) {
	good := err == nil && res[0].GetCode() == wire.Code_OK
	for _, rd := range batch {
		rd.finish(good && rd.act.owner.GetIncarnation() == owner.GetIncarnation(), res)
	}
	if err == nil && res[0].GetCode() == wire.Code_STALE_INCARNATION {
		m.w.checkIncarnation(owner.GetIncarnation())
	}
}

// finish sends the answer if the version that it was read from was still being
// served, attached and not frozen, when its marker came back.
func (rd *read) finish(confirmed bool, res []*wire.Result) {
	s := rd.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if !rd.current() {
		return
	}
	rd.att.asked--
	if !confirmed {
		rd.askAgain()
		return
	}
	s.act.last = max(s.act.last, res[0].GetPosition())
	rd.send()
}

// fail gives up on queries that wait for a marker: their streams are being
// ended, and their clients ask elsewhere.
func (m *markers) fail() {
	m.mu.Lock()
	m.pending = nil
	m.mu.Unlock()
}
