package explore

import (
	"strings"

	"github.com/baton-cluster/baton/wire"
)

// A worker's part: what package worker does with a session, told from its code
// (session.go, execute.go, attach.go, read.go), where it is an actor with
// goroutines and cannot be searched itself. Each step ends when the actor has
// nothing to do but wait.

// drops reports whether a rule is taken out of the search's own part.
func (w *world) drops(rule string) bool { return w.without != "" && strings.Contains(w.without, rule) }

func (w *world) propose(a, b cmd) slot { return slot{prop: w.b.props.small(prop{a, b})} }

// run is the actor's turn.
func (w *world) run(s *state, i uint8) {
	n := &s.n[i]
	for n.up == 1 && n.grp.prop == 0 {
		r := w.row(n)
		switch {
		case n.frozen != 0:
			w.refuse(n)
			w.settled(s, i)
			return
		case n.stale == 1 && n.act != 0:
			n.grp = w.propose(cmd{kind: kClaim, node: i, inc: r.inc, epoch: r.epoch}, cmd{})
			return
		case n.ops[0].kind != opNone:
			o := n.ops[0]
			copy(n.ops[:], n.ops[1:])
			n.ops[len(n.ops)-1] = op{}
			if w.build(s, i, o) {
				return
			}
		default:
			w.group(s, i)
			return
		}
	}
}

func (n *node) enqueue(o op) {
	for j := range n.ops {
		if n.ops[j].kind == opNone {
			n.ops[j] = o
			return
		}
	}
	panic("explore: too many operations wait")
}

// refuse answers the operations that a freeze does not park.
func (w *world) refuse(n *node) {
	kept := [4]op{}
	j := 0
	for _, o := range n.ops {
		if o.kind == opAttach {
			n.link[o.client] = linkNone
		} else if o.kind != opNone {
			kept[j] = o
			j++
		}
	}
	n.ops = kept
}

// build proposes what an operation comes to. It reports false if that is nothing.
func (w *world) build(s *state, i uint8, o op) bool {
	n := &s.n[i]
	r := w.row(n)
	switch o.kind {
	case opAttach:
		n.next++
		n.grp = w.propose(cmd{kind: kAttach, node: i, inc: n.inc, epoch: o.epoch, client: o.client, num: n.next}, cmd{})
	case opDetach:
		if n.act == 0 || r.num[o.client] != o.num {
			return false
		}
		n.grp = w.propose(cmd{kind: kDetach, node: i, inc: r.inc, epoch: r.epoch, client: o.client, num: o.num}, cmd{})
	case opClose:
		if n.act == 0 {
			return false
		}
		n.grp = w.propose(cmd{kind: kClose, node: i, inc: r.inc, epoch: r.epoch}, cmd{})
	case opPivot:
		if !w.drops("warm at the pivot") && !n.allWarm(n.xWarm) {
			w.transferred(s, i, wire.Code_CLIENT_CANNOT_REACH, result{})
			return false
		}
		n.grp = w.propose(cmd{kind: kPivot, mig: n.xMig, change: n.xChange, attested: n.xMig, warm: n.xWarm}, cmd{})
	}
	return true
}

func (n *node) allWarm(mask uint8) bool {
	for c := range n.link {
		if mask>>c&1 == 1 && (n.link[c] != linkWarm || n.inClosed == 1) {
			return false
		}
	}
	return true
}

// group proposes the write of a client whose turn it is.
func (w *world) group(s *state, i uint8) {
	n := &s.n[i]
	if n.act == 0 {
		return
	}
	r := w.row(n)
	for c := range w.clients {
		cl := &s.c[c]
		if n.link[c] != linkServed || n.wait[c] != waitHere || w.ask(cl) != 'w' || r.last[c] != cl.last {
			continue
		}
		n.wait[c] = waitRuns
		n.grp = w.propose(cmd{
			kind: kWrite, node: i, inc: r.inc, epoch: r.epoch, client: c, seq: cl.last + 1, prev: cl.last, value: r.value + 1, pushAck: cl.push,
		}, cmd{})
		return
	}
}

// drop ends the activation and the streams that it serves.
func (n *node) drop() {
	for c := range n.link {
		if n.link[c] == linkServed {
			n.unlink(uint8(c))
		}
	}
	n.act, n.stale = 0, 0
}

func (n *node) unlink(c uint8) {
	n.link[c], n.num[c], n.wait[c], n.held[c], n.seen[c] = linkNone, 0, waitNone, 0, 0
}

// lost takes the log's word that this is not the owner.
func (w *world) lost(s *state, i uint8, code wire.Code) {
	s.n[i].drop()
	if code == wire.Code_STALE_INCARNATION {
		w.checkIncarnation(s, i)
	}
}

func (w *world) checkIncarnation(s *state, i uint8) {
	n := &s.n[i]
	f := w.b.facts(n.view)
	if n.inc == 0 || f.inc[i] < n.inc || f.valid(i, n.inc) {
		return
	}
	n.inc = 0
	n.drop()
	n.bounce()
}

// bounce ends the expectation of a migration.
func (n *node) bounce() {
	for c := range n.link {
		if n.link[c] == linkWarm {
			n.unlink(uint8(c))
		}
	}
	if n.in != 0 {
		n.inClosed = 1
	}
}

// remake makes the activation of a row.
func (w *world) remake(s *state, i uint8, number uint16) {
	n := &s.n[i]
	r := w.b.rows.at(uint32(number))
	n.act, n.stale = number, 0
	for c := range w.clients {
		if n.wait[c] == waitVersion || n.wait[c] == waitMarker {
			n.wait[c], n.seen[c] = waitHere, 0 // its client asks again
		}
		if n.link[c] == linkServed && r.num[c] != n.num[c] {
			w.displace(s, i, c)
		}
	}
}

// displace tells a client that another took its place.
func (w *world) displace(s *state, i, c uint8) {
	s.n[i].unlink(c)
	s.c[c].over = 2
}

// release lets go the replies that waited for a Claim, and looks at what waits.
func (w *world) release(s *state, i uint8) {
	n := &s.n[i]
	r := w.row(n)
	for c := range w.clients {
		if n.link[c] != linkServed {
			continue
		}
		if v := n.held[c]; v != 0 {
			n.held[c] = 0
			w.answer(s, c, r.last[c], v-1, r.epoch)
		}
		if n.wait[c] == waitHere && w.ask(&s.c[c]) == 'w' && r.last[c] > s.c[c].last {
			n.wait[c] = waitNone
			w.answer(s, c, r.last[c], r.reply[c], r.epoch)
		}
		w.push(s, i, c)
	}
}

// orphans detaches clients on record that have no stream here.
func (w *world) orphans(s *state, i uint8) {
	n := &s.n[i]
	r := w.row(n)
	for c := range w.clients {
		if r.num[c] != 0 && n.link[c] != linkServed && !w.drops("orphans") {
			n.enqueue(op{kind: opDetach, client: c, num: r.num[c]})
		}
	}
}

// push sends a client what it has not had.
func (w *world) push(s *state, i, c uint8) {
	n := &s.n[i]
	if n.act == 0 || n.stale == 1 || n.link[c] != linkServed || s.c[c].over != 0 {
		return
	}
	r := w.row(n)
	cl := &s.c[c]
	if cl.push+1 < r.pushLow && !w.shared { // of a shared session it is told as a gap
		s.bad = badPush
	}
	cl.push = max(cl.push, r.value)
}

// settle takes the log's answer to the actor's commands.
func (w *world) settle(s *state, i uint8) {
	n := &s.n[i]
	p, a := w.b.props.at(uint32(n.grp.prop)), w.b.answers.at(uint32(n.grp.ans))
	asked := n.grp.prop
	n.grp = slot{}
	code := wire.Code(a.a.code)
	switch p.a.kind {
	case kWrite:
		w.wrote(s, i, p.a, a.a, asked)
	case kClaim:
		switch {
		case n.act == 0:
		case code != wire.Code_OK:
			w.lost(s, i, code)
		default:
			w.remake(s, i, a.a.row)
			w.orphans(s, i)
			w.release(s, i)
		}
	case kAttach:
		w.attached(s, i, p.a, a.a)
	case kDetach:
		w.detached(s, i, p.a, a.a)
	case kClose:
		if code == wire.Code_OK || code == wire.Code_SESSION_CLOSED || code == wire.Code_SESSION_EXPIRED {
			n.drop()
		} else if n.act != 0 {
			w.lost(s, i, code)
		}
	case kPivot:
		w.pivoted(s, i, a.a)
	}
	w.run(s, i)
}

func (w *world) wrote(s *state, i uint8, c cmd, res result, asked uint16) {
	n := &s.n[i]
	r := w.row(n)
	if n.act == 0 || r.epoch != c.epoch {
		return // the activation is over
	}
	k := c.client
	served := n.link[k] == linkServed && n.wait[k] == waitRuns
	switch code := wire.Code(res.code); code {
	case wire.Code_OK:
		follows := n.stale == 0 && !res.dup && res.before == r.change && res.digest == w.digest(asked)
		if follows || w.drops("follows") {
			r.value, r.last[k], r.reply[k], r.change = c.value, c.seq, c.value, res.after
			n.act = w.b.rows.small(r)
		} else {
			n.stale = 1
		}
		switch {
		case !served:
		case n.stale == 1 && !w.drops("held"):
			n.wait[k], n.held[k] = waitNone, res.reply+1
		default:
			n.wait[k] = waitNone
			w.answer(s, k, c.seq, res.reply, r.epoch)
		}
		for c := range w.clients {
			w.push(s, i, c)
		}
	case wire.Code_SEQ_MISMATCH, wire.Code_REPLY_GONE:
		n.stale = 1
		if served {
			n.wait[k] = waitHere
		}
	case wire.Code_NOT_ATTACHED, wire.Code_DISPLACED:
		n.stale = 1
		if n.link[k] == linkServed {
			w.displace(s, i, k)
		}
	default:
		w.lost(s, i, code)
	}
}

// digest is that of a proposed write.
func (w *world) digest(p uint16) uint64 {
	return w.b.digests.get(p, func() uint64 { return w.b.write(w.b.props.at(uint32(p)).a).GetDigest() })
}

func (w *world) attached(s *state, i uint8, c cmd, res result) {
	n := &s.n[i]
	cut := n.link[c.client] == linkCut
	n.link[c.client] = linkNone
	switch code := wire.Code(res.code); {
	case code != wire.Code_OK:
		if n.next == c.num {
			n.next-- // a number that opened nothing may as well be given out again
		}
		if code == wire.Code_STALE_INCARNATION {
			w.checkIncarnation(s, i)
		}
	case c.inc != n.inc:
	case n.frozen != 0 && !w.drops("activates nothing under a freeze"):
		if n.act != 0 {
			n.stale = 1
		}
	default:
		n.link[c.client], n.num[c.client] = linkServed, c.num
		s.c[c.client].epoch = max(s.c[c.client].epoch, c.epoch)
		w.remake(s, i, res.row)
		w.release(s, i)
		if cut {
			w.cut(s, i, c.client)
		}
	}
}

// cut takes the end of a stream.
func (w *world) cut(s *state, i, c uint8) {
	n := &s.n[i]
	switch n.link[c] {
	case linkAttaching:
		n.link[c] = linkCut
	case linkWarm:
		n.unlink(c)
	case linkServed:
		num := n.num[c]
		n.unlink(c)
		n.enqueue(op{kind: opDetach, client: c, num: num})
	}
}

func (w *world) detached(s *state, i uint8, c cmd, res result) {
	n := &s.n[i]
	r := w.row(n)
	switch {
	case n.act == 0:
	case wire.Code(res.code) != wire.Code_OK:
		w.lost(s, i, wire.Code(res.code))
	default:
		if res.before != r.change {
			n.stale = 1
		}
		r.change, r.num[c.client] = res.after, 0
		n.act = w.b.rows.small(r)
		if !r.attached() {
			n.drop()
		}
	}
}

// observe brings a node's own copy of the tables up to date.
func (w *world) observe(s *state, i uint8) {
	n := &s.n[i]
	n.view = s.head
	f := w.b.facts(s.head)
	if n.act != 0 && n.frozen == 0 {
		r, mine := w.b.rows.at(uint32(f.row)), w.row(n)
		if f.row == 0 || r.epoch > mine.epoch {
			n.drop()
		}
	}
	if m := f.move(n.in); n.in != 0 && m != nil {
		switch wire.Phase(m.phase) {
		case wire.Phase_PHASE_BEGUN:
		case wire.Phase_PHASE_PIVOTED, wire.Phase_PHASE_COMPLETED:
			if n.xMig != n.in {
				n.bounce()
			}
		default:
			n.bounce()
		}
	}
	w.checkIncarnation(s, i)
	if n.ho == hoWaits {
		w.handOver(s, i)
	}
	w.run(s, i)
}

// crash loses all that a process holds; what it had proposed may come yet.
func (w *world) crash(s *state, i uint8) {
	n := &s.n[i]
	for _, sl := range [...]slot{n.grp, n.rsv, n.mrk} {
		s.astray(sl)
	}
	s.n[i] = node{view: n.view}
}

func (s *state) astray(sl slot) {
	if sl.prop != 0 && sl.ans == 0 {
		s.addStray(sl.prop)
	}
}

// addStray keeps a proposal that may come yet, in canonical order. If there are
// too many the rest are lost.
func (s *state) addStray(p uint16) {
	for j := range s.stray {
		if s.stray[j] == 0 || p < s.stray[j] {
			p, s.stray[j] = s.stray[j], p
		}
		if p == 0 {
			return
		}
	}
}

// tidy drops what can have no effect any more, so that states which differ in
// nothing else are one.
func (w *world) tidy(s *state) {
	f := w.b.facts(s.head)
	for j := 0; j < len(s.stray); {
		if s.stray[j] != 0 && w.spent(w.b.props.at(uint32(s.stray[j])), f) {
			copy(s.stray[j:], s.stray[j+1:])
			s.stray[len(s.stray)-1] = 0
		} else {
			j++
		}
	}
	for j := 0; j < len(s.mail); {
		if w.idle(s, s.mail[j]) {
			s.take(j)
		} else {
			j++
		}
	}
}

// spent: the log will refuse it for ever, or it is done.
func (w *world) spent(p prop, f *facts) bool {
	r := w.b.rows.at(uint32(f.row))
	switch c := p.a; c.kind {
	case kWrite:
		return r.epoch != c.epoch || c.seq <= r.last[c.client]
	case kAttach:
		return r.epoch != c.epoch || c.num <= r.high
	case kDetach, kClose, kBegin, kAssign, kExpire:
		return r.epoch != c.epoch
	case kPivot, kAbort:
		m := f.move(c.mig)
		return m == nil || m.phase != begun
	case kEnd:
		m := f.move(c.mig)
		return m == nil || m.phase != pivoted
	}
	return true // it changes nothing
}

// idle: nobody would do anything on this letter any more.
func (w *world) idle(s *state, l letter) bool {
	if l.kind == 0 {
		return false
	}
	m := w.b.facts(s.head).move(l.mig)
	if m == nil || m.phase == begun {
		return false
	}
	if l.kind == toHandOver {
		v := w.b.facts(s.n[m.source].view).move(l.mig)
		return v != nil && v.phase != begun && s.d[0].mig != l.mig && s.d[1].mig != l.mig
	}
	src, to := &s.n[m.source], &s.n[m.to]
	v := w.b.facts(to.view).move(l.mig)
	return v != nil && v.phase != begun && (src.ho != hoSends || src.hoMig != l.mig) && (to.in != l.mig || to.inClosed == 1)
}
