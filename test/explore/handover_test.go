package explore

import (
	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/wire"
)

// Source and target of a migration: package worker's source.go, target.go,
// arrival.go and transfer.go.

const (
	begun     = uint8(wire.Phase_PHASE_BEGUN)
	pivoted   = uint8(wire.Phase_PHASE_PIVOTED)
	completed = uint8(wire.Phase_PHASE_COMPLETED)
)

func open(m *move) bool { return m.id != 0 && (m.phase == begun || m.phase == pivoted) }

// handOver goes on once the applied state shows the migration (H3).
func (w *world) handOver(s *state, i uint8) {
	n := &s.n[i]
	m := w.b.facts(n.view).move(n.hoMig)
	switch {
	case m == nil:
		n.ho = hoWaits
	case m.phase != begun:
		w.handedOver(s, i, result{}, false)
	case m.source != i || m.sinc != n.inc || n.frozen != 0 || n.act != 0 && w.row(n).epoch != m.epoch || !n.onlyServes(n.hoWarm):
		w.handedOver(s, i, result{}, false)
	default:
		n.frozen, n.ho, n.hoWarm = n.hoMig, hoSettles, 0
		for c := range n.link {
			if n.link[c] == linkServed {
				n.hoWarm |= 1 << c
			}
		}
		if w.drops("settled before attested") {
			w.capture(s, i)
			return
		}
		w.run(s, i)
	}
}

// onlyServes: whoever is attached is warm at the target.
func (n *node) onlyServes(warm uint8) bool {
	for c := range n.link {
		if n.link[c] == linkServed && warm>>c&1 == 0 {
			return false
		}
	}
	return true
}

// settled goes on once nothing of the session is with the log.
func (w *world) settled(s *state, i uint8) {
	if s.n[i].ho == hoSettles {
		w.capture(s, i)
	}
}

func (w *world) capture(s *state, i uint8) {
	n := &s.n[i]
	if n.act != 0 && n.stale == 0 && n.hoTries == 0 {
		w.send(s, i, w.row(n).change)
		return
	}
	m := w.b.facts(n.view).move(n.hoMig)
	if m == nil {
		w.resolve(s, i)
		return
	}
	n.ho = hoClaims
	n.rsv = w.propose(cmd{kind: kClaim, node: i, inc: m.sinc, epoch: m.epoch}, cmd{})
}

func (w *world) send(s *state, i uint8, change pos) {
	n := &s.n[i]
	n.ho = hoSends
	n.hoTries++
	s.post(letter{kind: toTransfer, mig: n.hoMig, warm: n.hoWarm, change: change, tries: n.hoTries, from: i})
}

func (s *state) post(l letter) {
	if s.mail[0].kind == 0 {
		s.mail[0] = l
	} else {
		s.mail[1] = l // one that was there is lost
	}
}

func (s *state) take(j int) letter {
	l := s.mail[j]
	if j == 0 {
		s.mail[0] = s.mail[1]
	}
	s.mail[1] = letter{}
	return l
}

// resolve makes the log decide.
func (w *world) resolve(s *state, i uint8) {
	n := &s.n[i]
	n.ho = hoResolves
	c := cmd{kind: kClaim, node: i}
	for _, f := range [...]*facts{w.b.facts(n.view), w.b.facts(s.head)} {
		if m := f.move(n.hoMig); m != nil {
			c.inc, c.epoch = m.sinc, m.epoch
		}
	}
	if w.drops("unfreezes unasked") {
		n.rsv = slot{}
		w.unfreeze(s, i, n.act)
		w.handedOver(s, i, result{}, false)
		return
	}
	n.rsv = w.propose(cmd{kind: kAbort, mig: n.hoMig}, c)
}

// reserved takes the log's answer to a capture's claim, or to resolve.
func (w *world) reserved(s *state, i uint8) {
	n := &s.n[i]
	a := w.b.answers.at(uint32(n.rsv.ans))
	n.rsv = slot{}
	if n.ho == hoClaims {
		if wire.Code(a.a.code) != wire.Code_OK {
			w.resolve(s, i)
			return
		}
		w.send(s, i, w.b.rows.at(uint32(a.a.row)).change)
		return
	}
	moved := wire.Code(a.b.code) != wire.Code_OK
	if moved {
		w.moved(s, i)
	} else {
		w.unfreeze(s, i, a.b.row)
	}
	w.handedOver(s, i, a.a, a.a.phase == pivoted || a.a.phase == completed)
}

// moved ends the source's part after the pivot.
func (w *world) moved(s *state, i uint8) {
	n := &s.n[i]
	n.frozen = 0
	n.drop()
	w.run(s, i)
}

// unfreeze ends the source's part after an abort.
func (w *world) unfreeze(s *state, i uint8, claimed uint16) {
	n := &s.n[i]
	n.frozen = 0
	r := w.b.rows.at(uint32(claimed))
	switch {
	case n.grp.prop != 0, n.act != 0 && r.change < w.row(n).change && !w.drops("an older claim"):
		// A claim may be older than the activation, though its answer comes last.
		if n.act != 0 {
			n.stale = 1
		}
	case n.act != 0 || r.attached():
		w.remake(s, i, claimed)
		w.orphans(s, i)
		w.release(s, i)
	}
	w.run(s, i)
}

// handedOver answers the director, if it still waits.
func (w *world) handedOver(s *state, i uint8, res result, good bool) {
	n := &s.n[i]
	mig := n.hoMig
	n.ho, n.hoMig, n.hoWarm, n.hoTries = hoNone, 0, 0, 0
	for d := range s.d {
		if s.d[d].call == uint8(migrate.ActHandover) && s.d[d].mig == mig {
			w.tell(s, d, tell{kind: migrate.InHandedOver, bad: !good, res: result{mig: res.mig, phase: res.phase, epoch: res.epoch}})
		}
	}
}

// takeTransfer is the target's: the snapshot has arrived.
func (w *world) takeTransfer(s *state, i uint8, l letter) {
	n := &s.n[i]
	m := w.b.facts(n.view).move(l.mig)
	expected := n.in == l.mig || n.in < l.mig && m != nil && m.phase == begun && m.to == i && m.toInc == n.inc
	switch {
	case !expected, n.in == l.mig && n.inClosed == 1:
		// The move has come to its end here, or this is not its target (any more).
		if m != nil && (m.phase == pivoted || m.phase == completed) {
			w.toSource(s, l.mig, wire.Code_OK, result{mig: m.id, phase: m.phase, epoch: m.toEpoch})
		} else {
			w.toSource(s, l.mig, wire.Code_MIGRATION_ENDED, result{})
		}
	case n.xMig != 0:
		// Another arrival is being settled: this one is refused, or waits with it.
		if n.xMig != l.mig || n.xChange != l.change {
			w.toSource(s, l.mig, wire.Code_RETRY, result{})
		}
	default:
		n.expect(l.mig)
		n.xMig, n.xChange, n.xWarm = l.mig, l.change, l.warm
		n.enqueue(op{kind: opPivot})
		w.run(s, i)
	}
}

// expect notes a migration to here. One that is older than what is expected has
// ended, and nothing comes of it.
func (n *node) expect(mig pos) {
	if mig > n.in {
		n.bounce()
		n.in, n.inClosed = mig, 0
	}
}

// pivoted takes the log's answer to CommitPivot.
func (w *world) pivoted(s *state, i uint8, res result) {
	n := &s.n[i]
	r := w.b.rows.at(uint32(res.row))
	code := wire.Code(res.code)
	switch {
	case code == wire.Code_CHANGE_MISMATCH:
	case code != wire.Code_OK || res.row == 0:
		n.bounce()
	case n.frozen != 0, r.inc != n.inc:
		n.bounce()
	case n.inClosed == 0:
		w.openPivoted(s, i, res.row)
	}
	w.transferred(s, i, code, res)
}

// openPivoted makes the pivot's row the activation, and its warm clients served.
func (w *world) openPivoted(s *state, i uint8, number uint16) {
	n := &s.n[i]
	n.inClosed = 1
	r := w.b.rows.at(uint32(number))
	if n.act == 0 || w.row(n).epoch < r.epoch {
		for c := range n.link {
			if n.link[c] == linkServed {
				n.unlink(uint8(c))
			}
		}
		w.remake(s, i, number)
	}
	if mine := w.row(n); mine.epoch == r.epoch {
		for c := range w.clients {
			if mine.num[c] != 0 && n.link[c] == linkWarm {
				n.link[c], n.num[c] = linkServed, mine.num[c]
				s.c[c].epoch = max(s.c[c].epoch, mine.epoch)
			}
		}
		w.orphans(s, i)
		w.release(s, i)
	}
	for c := range n.link {
		if n.link[c] == linkWarm {
			n.unlink(uint8(c))
		}
	}
	if mine := w.row(n); !mine.attached() {
		n.drop()
	}
}

// transferred ends an arrival, and answers the source.
func (w *world) transferred(s *state, i uint8, code wire.Code, res result) {
	n := &s.n[i]
	mig := n.xMig
	n.xMig, n.xChange, n.xWarm = 0, 0, 0
	if m := w.b.facts(n.view).move(n.in); m != nil && m.phase != begun {
		n.bounce() // the log had ended it while its pivot was under way
	}
	w.toSource(s, mig, code, res)
}

// toSource is the answer of a transfer, if the source waits for it.
func (w *world) toSource(s *state, mig pos, code wire.Code, res result) {
	for i := range w.nodes {
		n := &s.n[i]
		if n.ho != hoSends || n.hoMig != mig {
			continue
		}
		switch {
		case code == wire.Code_OK:
			w.moved(s, i)
			w.handedOver(s, i, res, true)
		case code == wire.Code_CHANGE_MISMATCH && n.hoTries < 2:
			w.capture(s, i)
		default:
			w.resolve(s, i)
		}
	}
}

// tell tells a director something and does what it wants.
func (w *world) tell(s *state, d int, in tell) {
	x := &s.d[d]
	if in.kind == migrate.InPrepared || in.kind == migrate.InInvited || in.kind == migrate.InWarm || in.kind == migrate.InHandedOver {
		x.call, x.warm = 0, 0
	}
	got := w.o.step(uint32(x.h), in)
	w.obey(s, d, got)
}

func (w *world) obey(s *state, d int, got stepped) {
	x := &s.d[d]
	x.h = uint16(got.to)
	if got.to > 1<<16-1 {
		panic("explore: too many handoffs")
	}
	if k := got.wants.propose; k != kNone {
		s.astray(x.slot)
		x.slot = w.propose(cmd{kind: k, mig: x.mig}, cmd{})
	}
	if got.wants.call != 0 {
		x.call, x.warm = uint8(got.wants.call), got.wants.warm
		if got.wants.call == migrate.ActHandover {
			s.post(letter{kind: toHandOver, mig: x.mig, warm: x.warm})
		}
	}
	if got.wants.look {
		x.look = 1
	}
	if got.wants.over {
		s.astray(x.slot)
		s.d[d] = director{}
	}
}
