package explore

import "github.com/baton-cluster/baton/migrate"

// Every step that a state allows. Kinds are numbers for the search and words for
// people; ranks put what happens by itself in an order, quickest first.

const (
	stNone = iota
	stCommit
	stCommitLost
	stCommitTwice
	stResult
	stStray
	stStrayAgain
	stObserve
	stRegister
	stRestart
	stCrash
	stFence
	stAssign
	stTick
	stExpire
	stCut
	stGone
	stAttach
	stSend
	stVersion
	stUnderLease
	stMarker
	stClose
	stAskMove
	stTakeHandover
	stTakeTransfer
	stGiveUp
	stPrepare
	stInvite
	stAwaitWarm
	stCallFails
	stWarm
	stLook
	stScan
	stTimeUp
	stAdopt
	stDirectorDies
	stLetterAgain
)

const (
	fairResult = iota + 1
	fairCommit
	fairRegister
	fairRestart
	fairObserve
	fairLetter
	fairCall
	fairWarm
	fairAssign
	fairClient
	fairTimeUp
	fairAdopt
)

// Slots of a node, then of directors.
const (
	slotGroup = iota
	slotReserve
	slotMarker
	slotDirector
)

func (s *state) slot(i, k uint8) *slot {
	switch k {
	case slotGroup:
		return &s.n[i].grp
	case slotReserve:
		return &s.n[i].rsv
	case slotMarker:
		return &s.n[i].mrk
	}
	return &s.d[i].slot
}

// stepper gathers the steps of one state.
type stepper struct {
	w   *world
	s   *state
	out []step
}

func (x *stepper) add(fair, kind uint8, a, b, c uint8, do func(t *state)) {
	t := *x.s
	do(&t)
	x.w.tidy(&t)
	x.out = append(x.out, step{Next: t, Fair: fair, Kind: kind, Args: [3]uint8{a, b, c}})
}

func (x *stepper) may(budget int) bool { return x.s.left[budget] > 0 }

func (w *world) Steps(s *state, out []step) []step {
	x := &stepper{w, s, out}
	for i := range w.nodes {
		for k := range uint8(slotDirector) {
			x.log(i, k)
		}
		x.node(i)
		if s.n[i].up == 1 {
			x.handover(i)
			for c := range w.clients {
				x.client(i, c)
			}
		}
	}
	for d := range uint8(len(s.d)) {
		x.log(d, slotDirector)
		x.director(d)
	}
	x.cluster()
	return x.out
}

// log is what can happen to a proposal.
func (x *stepper) log(i, k uint8) {
	w := x.w
	sl := x.s.slot(i, k)
	switch {
	case sl.prop == 0:
	case sl.ans != 0:
		x.add(fairResult, stResult, i, k, 0, func(t *state) { w.result(t, i, k) })
	default:
		x.add(fairCommit, stCommit, i, k, 0, func(t *state) {
			to := t.slot(i, k)
			t.head, to.ans = w.b.commit(t.head, to.prop, t.now)
		})
		if x.may(losses) {
			x.add(0, stCommitLost, i, k, 0, func(t *state) {
				t.left[losses]--
				t.head, _ = w.b.commit(t.head, t.slot(i, k).prop, t.now)
			})
		}
		if x.may(copies) {
			x.add(0, stCommitTwice, i, k, 0, func(t *state) {
				t.left[copies]--
				to := t.slot(i, k)
				t.head, to.ans = w.b.commit(t.head, to.prop, t.now)
				t.addStray(to.prop)
			})
		}
	}
}

// result brings an answer of the log to who waits for it.
func (w *world) result(s *state, i, k uint8) {
	switch k {
	case slotGroup:
		w.settle(s, i)
	case slotReserve:
		w.reserved(s, i)
	case slotMarker:
		w.marked(s, i)
	default:
		x := &s.d[i]
		a := w.b.answers.at(uint32(x.slot.ans)).a
		x.slot = slot{}
		if x.mig == 0 {
			x.mig = a.mig
		}
		w.tell(s, int(i), tell{kind: migrate.InProposed, res: result{code: a.code, dup: a.dup, mig: a.mig, phase: a.phase, epoch: a.epoch}})
	}
}

func (x *stepper) node(i uint8) {
	w, n := x.w, &x.s.n[i]
	f := w.b.facts(x.s.head)
	if n.up == 0 {
		x.add(fairRestart, stRestart, i, 0, 0, func(t *state) { t.n[i].up, t.n[i].next = 1, numberFirst+1 })
		return
	}
	if n.view != x.s.head {
		x.add(fairObserve, stObserve, i, 0, 0, func(t *state) { w.observe(t, i) })
	}
	if n.inc == 0 {
		x.add(fairRegister, stRegister, i, 0, 0, func(t *state) {
			t.nonces++
			var ans uint16
			t.head, ans = w.b.commit(t.head, w.b.props.small(prop{a: cmd{kind: kRegister, node: i, num: t.nonces, inc: f.inc[i]}}), t.now)
			if a := w.b.answers.at(uint32(ans)).a; a.code == 0 {
				t.n[i].drop()
				t.n[i].bounce()
				t.n[i].inc = a.epoch
			}
		})
	}
	if x.may(crashes) {
		x.add(0, stCrash, i, 0, 0, func(t *state) { t.left[crashes]--; w.crash(t, i) })
	}
	if n.inc != 0 && n.mrk.prop == 0 {
		r := w.row(n)
		for c := range w.clients {
			if n.wait[c] == waitMarker {
				x.add(fairClient, stMarker, i, c, 0, func(t *state) { t.n[i].mrk = w.propose(cmd{kind: kMarker, node: i, inc: r.inc}, cmd{}) })
				break
			}
		}
	}
}

// cluster is what leaders do, and what nobody waits for.
func (x *stepper) cluster() {
	w, s := x.w, x.s
	f := w.b.facts(s.head)
	for j, p := range s.stray {
		if p == 0 {
			continue
		}
		x.add(0, stStray, uint8(j), 0, 0, func(t *state) {
			t.head, _ = w.b.commit(t.head, p, t.now)
			copy(t.stray[j:], t.stray[j+1:])
			t.stray[len(t.stray)-1] = 0
		})
		if x.may(copies) {
			x.add(0, stStrayAgain, uint8(j), 0, 0, func(t *state) { t.left[copies]--; t.head, _ = w.b.commit(t.head, p, t.now) })
		}
	}
	for i := range w.nodes {
		if x.may(fences) && f.ok[i] {
			x.add(0, stFence, i, 0, 0, func(t *state) { t.left[fences]--; w.lead(t, cmd{kind: kFence, node: i, inc: f.inc[i]}) })
		}
	}
	if r := w.b.rows.at(uint32(f.row)); f.row != 0 {
		if !f.valid(r.owner, r.inc) {
			for i := range w.nodes {
				if f.ok[i] {
					x.add(fairAssign, stAssign, i, 0, 0, func(t *state) { w.lead(t, cmd{kind: kAssign, epoch: r.epoch, to: i, toInc: f.inc[i]}) })
				}
			}
		}
		if w.ticks > 0 && !r.attached() && s.now > 0 {
			x.add(0, stExpire, 0, 0, 0, func(t *state) { w.lead(t, cmd{kind: kExpire, epoch: r.epoch}) })
		}
		if f.valid(r.owner, r.inc) && x.may(moves) {
			x.askMoves(&r, f)
		}
	}
	if x.may(ticks) {
		x.add(0, stTick, 0, 0, 0, func(t *state) { t.left[ticks]--; t.now++; w.lead(t, cmd{kind: kTick}) })
	}
	x.adopt(f)
}

// lead commits what a leader proposes. That it may come late is for strays to show.
func (w *world) lead(t *state, c cmd) {
	t.head, _ = w.b.commit(t.head, w.b.props.small(prop{a: c}), t.now)
}

func (x *stepper) askMoves(r *row, f *facts) {
	w := x.w
	d := -1
	for i := range x.s.d {
		if x.s.d[i].h == 0 {
			d = i
		}
	}
	if d < 0 {
		return
	}
	for to := range w.nodes {
		if to == r.owner || !f.ok[to] {
			continue
		}
		x.add(0, stAskMove, to, uint8(d), 0, func(t *state) {
			t.left[moves]--
			t.nonces++
			t.d[d] = director{}
			start := handoffStart{source: r.owner, sinc: r.inc, to: to, toInc: f.inc[to], epoch: r.epoch, nonce: t.nonces, time: t.now}
			w.obey(t, d, w.o.begin(start))
			t.d[d].slot = w.propose(cmd{
				kind: kBegin, node: r.owner, inc: r.inc, epoch: r.epoch, to: to, toInc: f.inc[to], num: t.nonces, value: t.now,
			}, cmd{})
		})
	}
}

// adopt is a director that finds a migration in the log which is not its own:
// because nobody else has it, or because it cannot know that somebody has.
func (x *stepper) adopt(f *facts) {
	w := x.w
	for _, m := range f.moves {
		if !open(&m) {
			continue
		}
		have, free := 0, -1
		for i := range x.s.d {
			if x.s.d[i].h == 0 {
				free = i
			} else if x.s.d[i].mig == m.id {
				have++
			}
		}
		if free < 0 || have > 0 && (have > 1 || !x.may(directors)) {
			continue
		}
		x.add(fairAdopt, stAdopt, uint8(free), 0, 0, func(t *state) {
			if have > 0 {
				t.left[directors]--
			}
			t.d[free] = director{mig: m.id}
			w.obey(t, free, w.o.begin(handoffStart{adopted: true, m: m}))
		})
	}
}

// handover is what a source or a target can do on its own.
func (x *stepper) handover(i uint8) {
	w, n := x.w, &x.s.n[i]
	f := w.b.facts(x.s.head)
	for j := range x.s.mail {
		l := x.s.mail[j]
		m := f.move(l.mig)
		switch {
		case l.kind == 0 || m == nil:
		case l.kind == toHandOver && m.source == i && n.ho == hoNone:
			x.add(fairLetter, stTakeHandover, i, 0, 0, func(t *state) {
				l := t.take(j)
				t.n[i].ho, t.n[i].hoMig, t.n[i].hoWarm, t.n[i].hoTries = hoWaits, l.mig, l.warm, 0
				w.handOver(t, i)
			})
		case l.kind == toTransfer && m.to == i:
			x.add(fairLetter, stTakeTransfer, i, 0, 0, func(t *state) { w.takeTransfer(t, i, t.take(j)) })
			if x.may(copies) {
				x.add(0, stLetterAgain, i, 0, 0, func(t *state) { t.left[copies]--; w.takeTransfer(t, i, l) })
			}
		}
	}
	if n.ho == hoSends || n.ho == hoSettles {
		fair := uint8(fairTimeUp)
		if n.ho == hoSettles {
			fair = 0 // it is answered first
		}
		x.add(fair, stGiveUp, i, 0, 0, func(t *state) { w.resolve(t, i) })
	}
}

func (x *stepper) director(d uint8) {
	w, s := x.w, x.s
	dir := &s.d[d]
	if dir.h == 0 {
		return
	}
	f := w.b.facts(s.head)
	m := f.move(dir.mig)
	fail := func(kind migrate.InputKind) {
		if !x.may(fails) {
			return // a time-out comes to the same, later
		}
		x.add(0, stCallFails, d, 0, 0, func(t *state) { t.left[fails]--; w.tell(t, int(d), tell{kind: kind, bad: true}) })
	}
	switch migrate.ActionKind(dir.call) {
	case migrate.ActPrepare:
		if n := &s.n[m.to]; n.up == 1 && n.inc == m.toInc {
			x.add(fairCall, stPrepare, d, m.to, 0, func(t *state) {
				t.n[m.to].expect(m.id)
				w.tell(t, int(d), tell{kind: migrate.InPrepared})
			})
		}
		fail(migrate.InPrepared)
	case migrate.ActInvite:
		if n := &s.n[m.source]; n.up == 1 && (n.act == 0 || w.row(n).epoch == m.epoch) {
			x.add(fairCall, stInvite, d, m.source, 0, func(t *state) { w.invite(t, d, m) })
		}
		fail(migrate.InInvited)
	case migrate.ActAwaitWarm:
		if n := &s.n[m.to]; n.up == 1 && n.in == m.id && n.allWarm(dir.warm) {
			x.add(fairCall, stAwaitWarm, d, m.to, 0, func(t *state) {
				w.tell(t, int(d), tell{kind: migrate.InWarm, warm: t.d[d].warm})
			})
		}
		fail(migrate.InWarm)
	case migrate.ActHandover:
		fail(migrate.InHandedOver)
	}
	if dir.look == 1 {
		x.add(fairCall, stLook, d, 0, 0, func(t *state) { t.d[d].look = 0; w.tell(t, int(d), seen(m)) })
	} else if m != nil && m.phase != begun {
		x.add(fairTimeUp, stScan, d, 0, 0, func(t *state) { w.tell(t, int(d), seen(m)) })
	}
	x.add(fairTimeUp, stTimeUp, d, 0, 0, func(t *state) { w.tell(t, int(d), tell{kind: migrate.InTime}) })
	if x.may(deaths) {
		x.add(0, stDirectorDies, d, 0, 0, func(t *state) {
			t.left[deaths]--
			t.astray(t.d[d].slot)
			t.d[d] = director{}
		})
	}
}

func seen(m *move) tell {
	if m == nil {
		return tell{kind: migrate.InSeen}
	}
	return tell{kind: migrate.InSeen, res: result{mig: m.id, phase: m.phase, epoch: m.toEpoch}}
}

func (w *world) invite(t *state, d uint8, m *move) {
	n := &t.n[m.source]
	mask := uint8(0)
	for c := range n.link {
		if n.act != 0 && n.link[c] == linkServed {
			mask |= 1 << c
			t.c[c].token = m.id
		}
	}
	w.tell(t, int(d), tell{kind: migrate.InInvited, warm: mask})
}
