package explore

import "github.com/baton-cluster/baton/wire"

// A client's part, as package rpcnet's core plays it: one request at a time, kept
// until it is answered; sent anew on any stream that there is; nothing taken of an
// epoch below the highest seen.

// ask is what the client wants next, 0: nothing any more.
func (w *world) ask(cl *client) byte {
	plan := w.plan
	if cl.who == 1 && w.planB != "" {
		plan = w.planB
	}
	if cl.over != 0 || int(cl.at) >= len(plan) {
		return 0
	}
	return plan[cl.at]
}

func (x *stepper) client(i, c uint8) {
	w, s := x.w, x.s
	n, cl := &s.n[i], &s.c[c]
	if cl.over != 0 {
		return
	}
	if x.may(cuts) && (n.link[c] == linkServed || n.link[c] == linkAttaching || n.link[c] == linkWarm) {
		x.add(0, stCut, i, c, 0, func(t *state) { t.left[cuts]--; w.cut(t, i, c); w.run(t, i) })
	}
	if x.may(gone) && i == 0 {
		x.add(0, stGone, c, 0, 0, func(t *state) {
			t.left[gone]--
			t.c[c].over = 1
			for k := range w.nodes {
				w.cut(t, k, c)
				w.run(t, k)
			}
		})
	}
	x.warm(i, c)
	ask := w.ask(cl)
	if ask == 0 {
		return
	}
	x.attach(i, c)
	switch {
	case (n.link[c] == linkServed || n.link[c] == linkWarm && ask == 'w') && n.wait[c] == waitNone && n.held[c] == 0:
		if x.may(closes) && n.link[c] == linkServed {
			x.add(0, stClose, i, c, 0, func(t *state) { t.left[closes]--; t.n[i].enqueue(op{kind: opClose}); w.run(t, i) })
		}
		x.add(fairClient, stSend, i, c, 0, func(t *state) { w.send1(t, i, c) })
	case n.wait[c] == waitHere && ask != 'w' && n.link[c] == linkServed && n.act != 0 && n.stale == 0:
		if n.frozen != 0 {
			return // the client sends it to the target, or again afterwards
		}
		x.add(fairClient, stVersion, i, c, 0, func(t *state) {
			m := &t.n[i]
			m.wait[c], m.seen[c] = waitVersion, w.row(m).value+1
			if ask == 'R' {
				m.wait[c] = waitMarker
			}
		})
	case n.wait[c] == waitVersion:
		x.add(fairClient, stUnderLease, i, c, 0, func(t *state) { w.underLease(t, i, c) })
	}
}

// send1 sends the request, or sends it again, where the client has a stream.
func (w *world) send1(t *state, i, c uint8) {
	n, cl := &t.n[i], &t.c[c]
	if cl.asked == 0 {
		cl.asked, cl.floor = 1, t.known
	}
	n.wait[c] = waitHere
	if r := w.row(n); n.act != 0 && n.link[c] == linkServed && w.ask(cl) == 'w' && r.last[c] > cl.last {
		n.wait[c] = waitNone
		if n.stale == 1 {
			n.held[c] = r.reply[c] + 1
		} else {
			w.answer(t, c, r.last[c], r.reply[c], r.epoch)
		}
		return
	}
	w.run(t, i)
}

// attach: a client without a stream that serves it attaches at a node which
// takes itself for the owner.
func (x *stepper) attach(i, c uint8) {
	w, s := x.w, x.s
	n := &s.n[i]
	for k := range s.n {
		if l := s.n[k].link[c]; l == linkServed || l == linkAttaching || l == linkCut {
			return
		}
	}
	f := w.b.facts(n.view)
	r := w.b.rows.at(uint32(f.row))
	if n.inc == 0 || f.row == 0 || r.owner != i || r.inc != n.inc || n.link[c] != linkNone {
		return
	}
	if n.frozen != 0 {
		return // refused: ask again
	}
	for j := range n.ops {
		if n.ops[j].kind == opAttach && n.ops[j].client == c {
			return
		}
	}
	x.add(fairClient, stAttach, i, c, 0, func(t *state) {
		t.n[i].link[c] = linkAttaching
		t.n[i].enqueue(op{kind: opAttach, client: c, epoch: r.epoch})
		w.run(t, i)
	})
}

// warm: a client with a token opens a stream to the target.
func (x *stepper) warm(i, c uint8) {
	w, s := x.w, x.s
	n, cl := &s.n[i], &s.c[c]
	m := w.b.facts(s.head).move(cl.token)
	if m == nil || m.to != i || m.toInc != n.inc || n.link[c] != linkNone || cl.epoch > m.epoch {
		return
	}
	if n.in > m.id || n.in == m.id && n.inClosed == 1 {
		return
	}
	v := w.b.facts(n.view).move(m.id)
	if v == nil && n.in != m.id || v != nil && v.phase != begun {
		return // used, expired, revoked, or not heard of
	}
	x.add(fairWarm, stWarm, i, c, 0, func(t *state) {
		t.n[i].expect(m.id)
		t.n[i].link[c] = linkWarm
	})
}

// underLease answers a query if the lease holds, or it takes a marker. That a
// lease holds only while its incarnation is not fenced is what package lease's own
// search shows.
func (w *world) underLease(t *state, i, c uint8) {
	n := &t.n[i]
	r := w.row(n)
	switch {
	case n.act == 0 || n.link[c] != linkServed:
		n.wait[c], n.seen[c] = waitNone, 0
	case n.frozen != 0 && !w.drops("frozen reads"):
		n.wait[c], n.seen[c] = waitNone, 0 // ask again
	case n.inc == r.inc && w.b.facts(t.head).valid(i, n.inc):
		v := n.seen[c] - 1
		n.wait[c], n.seen[c] = waitNone, 0
		w.answer(t, c, 0, v, r.epoch)
	default:
		n.wait[c] = waitMarker
	}
}

// marked takes the log's answer to a marker.
func (w *world) marked(t *state, i uint8) {
	n := &t.n[i]
	p, a := w.b.props.at(uint32(n.mrk.prop)).a, w.b.answers.at(uint32(n.mrk.ans)).a
	n.mrk = slot{}
	r := w.row(n)
	for c := range w.clients {
		if n.wait[c] != waitMarker {
			continue
		}
		v := n.seen[c] - 1
		good := a.code == uint16(wire.Code_OK) && n.act != 0 && r.inc == p.inc && n.frozen == 0 && n.link[c] == linkServed
		n.wait[c], n.seen[c] = waitNone, 0
		if good {
			w.answer(t, c, 0, v, r.epoch)
		}
	}
	if wire.Code(a.code) == wire.Code_STALE_INCARNATION {
		w.checkIncarnation(t, i)
	}
}

// answer brings a client an answer: to a write of that seq, or, with none, to a
// query.
func (w *world) answer(t *state, c, seq, value, epoch uint8) {
	cl := &t.c[c]
	ask := w.ask(cl)
	if epoch < cl.epoch && !w.drops("lower epoch") {
		return
	}
	cl.epoch = max(cl.epoch, epoch)
	if ask == 0 || cl.asked == 0 || (ask == 'w') != (seq != 0) || seq != 0 && seq != cl.last+1 {
		return
	}
	if f := w.b.facts(t.head); f.row != 0 {
		head := w.b.rows.at(uint32(f.row)).value
		switch {
		case value > head:
			t.bad = badUncommitted
		case seq == 0 && value < cl.floor:
			t.bad = badRead
		case seq != 0 && value <= cl.floor:
			t.bad = badWrite
		}
	}
	if seq != 0 {
		cl.last = seq
	}
	t.known = max(t.known, value)
	cl.at++
	cl.asked, cl.floor = 0, 0
	for i := range t.n {
		n := &t.n[i]
		if n.wait[c] != waitRuns {
			n.wait[c], n.seen[c] = waitNone, 0
		}
		n.held[c] = 0
	}
}
