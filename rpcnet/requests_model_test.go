package rpcnet

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// A model of a cluster around one core, in virtual time: nodes that hand the
// session to each other, crash, fall silent, refuse, lose frames' streams; a
// client that writes, reads and gives up. Every frame takes a random time, and
// each stream keeps its order. The owner's rules are those of the store: dedup by
// (seq), prev chain, acknowledgements trim.
//
// Reads are answered under the owner's lease, which nobody fences before it has
// run out. The new owner of a fenced epoch is taken to acknowledge something to
// somebody at once.
//
// Checked throughout: no answer under a lease is taken once a later epoch that
// began by a fence has acknowledged anything; a write takes effect at most once, in the chain's order; an
// answered one did; a refused (settled) one did not; and at the end, when faults
// stop, everything settles.
type world struct {
	t   *testing.T
	rng *rand.Rand
	s   *script
	now time.Duration
	q   []worldEvent // unordered; the earliest goes next
	seq int

	epoch   uint64
	owner   int
	up      [3]bool
	silent  [3]bool
	streams map[int]*worldStream
	window  fakeWindow
	acked   uint64
	effects []uint64
	move    *worldMove
	cut     [3]bool // the client cannot reach the node; others can
	faults  bool
	count   map[string]int
	fenced  uint64           // the latest epoch that began by a fence
	down    [3]time.Duration // when the node last crashed or fell silent
}

// leaseTerm is how long a lease holds from its renewal, leaseRenewal how often an
// owner that is well renews it.
const (
	leaseTerm    = time.Second
	leaseRenewal = leaseTerm / 4
)

type worldEvent struct {
	at time.Duration
	n  int
	do func()
}

// worldStream is one stream, by its route at the client.
type worldStream struct {
	id, node      int           // node serves it
	near          int           // and this one is connected to: another if it relays
	up            time.Duration // when the last frame towards the node arrives
	down          time.Duration // and towards the client
	open          bool
	attached      bool
	warm          uint64
	parked        []*wire.ClientFrame
	clientDropped bool
}

type worldMove struct {
	id     uint64
	to     int
	frozen bool
	warm   *worldStream // the newest that came to the target
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	w.q = append(w.q, worldEvent{w.now + d, w.seq, do})
}

// latency is mostly small, sometimes longer than a session's patience.
func (w *world) latency() time.Duration {
	if w.faults && w.rng.IntN(100) == 0 {
		return time.Duration(w.rng.IntN(2000)) * ms
	}
	return time.Duration(100+w.rng.IntN(3000)) * time.Microsecond
}

// inOrder schedules do after everything that was sent before in that direction.
func (w *world) inOrder(last *time.Duration, do func()) {
	at := max(w.now+w.latency(), *last+1)
	*last = at
	w.after(at-w.now, do)
}

// ordered is the streams by id, so that a seed repeats a run.
func (w *world) ordered() []*worldStream {
	return slices.SortedFunc(maps.Values(w.streams), func(a, b *worldStream) int { return a.id - b.id })
}

func nodeIndex(addr string) int { return int(addr[0] - 'a') }

// carryOut does what the core asked for.
func (w *world) carryOut() {
	for _, a := range w.s.c.take() {
		switch a.kind {
		case actDial:
			w.count["dial"]++
			w.dial(a.route, nodeIndex(a.addr), a.frame)
		case actMove:
			w.count[map[bool]string{true: "move planned", false: "move unplanned"}[a.move.Planned]]++
		case actSend:
			switch {
			case a.frame.GetCancel() != nil:
				w.count["cancel"]++
			case a.frame.GetRequest().GetAttempt() > 1:
				w.count["retry"]++
			case a.frame.GetRequest() != nil:
				w.count["request"]++
			}
			if st := w.streams[a.route]; st != nil && st.open {
				f := a.frame
				w.inOrder(&st.up, func() { w.deliver(st, f) })
			}
		case actDrop:
			if st := w.streams[a.route]; st != nil {
				st.clientDropped = true
			}
		case actRelease:
			w.released(a.call)
		case actEnd:
			w.t.Fatalf("the session ended: %v", w.s.c.ended)
		}
	}
}

func (w *world) dial(id, node int, first *wire.ClientFrame) {
	st := &worldStream{id: id, node: node, near: node}
	w.streams[id] = st
	if a := first.GetAttach(); a.GetRelay() {
		w.count["relayed"]++
		st.node = w.owner
		if to := a.GetRelayTo(); to != "" {
			st.node = nodeIndex(to[len("id-"):])
		}
	}
	w.after(w.latency(), func() {
		if st.clientDropped {
			return
		}
		if !w.up[node] || w.cut[node] || st.near != st.node && !w.up[st.node] {
			w.event(func() { w.s.c.lost(w.now, id, wire.Errorf(wire.Code_UNAVAILABLE, "no answer"), false) })
			return
		}
		st.open = true
		w.inOrder(&st.up, func() { w.first(st, first) })
		w.event(func() { w.s.c.opened(w.now, id) })
	})
}

func (w *world) event(do func()) {
	w.s.now = w.now
	do()
	w.carryOut()
}

// send brings a frame to the client.
func (w *world) send(st *worldStream, f *wire.ServerFrame) {
	if w.silent[st.node] || w.silent[st.near] {
		return
	}
	w.inOrder(&st.down, func() {
		if !st.clientDropped {
			w.event(func() { w.s.c.frame(w.now, st.id, f) })
		}
	})
}

func (w *world) breakStream(st *worldStream) {
	st.open, st.attached, st.warm = false, false, 0
	w.after(w.latency(), func() {
		if !st.clientDropped {
			st.clientDropped = true
			w.event(func() { w.s.c.lost(w.now, st.id, wire.Errorf(wire.Code_UNAVAILABLE, "lost"), true) })
		}
	})
}

// first is a stream's first frame, at the node.
func (w *world) first(st *worldStream, f *wire.ClientFrame) {
	if !st.open || w.silent[st.node] || w.silent[st.near] {
		return
	}
	a := f.GetAttach()
	switch {
	case a.GetMigration() != 0:
		if w.move == nil || w.move.id != a.GetMigration() || w.move.to != st.node {
			w.send(st, byeFrame(wire.Code_TOKEN_UNKNOWN))
			return
		}
		st.warm, w.move.warm = a.GetMigration(), st
		w.send(st, warmFrame(st.warm))
		w.after(w.latency(), func() { w.freeze(a.GetMigration()) })
	case w.rng.IntN(8) == 0 && w.faults:
		w.send(st, byeFrame(wire.Code_RETRY))
	case w.owner != st.node:
		w.send(st, redirectFrame(string(rune('a'+w.owner)), w.epoch))
	case w.move != nil && w.move.frozen:
		w.send(st, byeFrame(wire.Code_FROZEN))
	default:
		for _, o := range w.ordered() {
			o.attached = false
		}
		st.attached = true
		w.send(st, attachedFrame(string(rune('a'+w.owner)), w.epoch))
	}
}

// deliver is a further frame, at the node.
func (w *world) deliver(st *worldStream, f *wire.ClientFrame) {
	switch {
	case !st.open || w.silent[st.node] || w.silent[st.near]:
	case st.warm != 0 && !st.attached:
		st.parked = append(st.parked, f)
	case !st.attached || w.owner != st.node || w.move != nil && w.move.frozen:
		if r := f.GetRequest(); r != nil && w.rng.IntN(2) == 0 {
			w.send(st, refusalFrame(r.GetSeq(), w.epoch, wire.Code_NOT_ATTACHED, false))
		}
	default:
		w.execute(st, f)
	}
}

func (w *world) execute(st *worldStream, f *wire.ClientFrame) {
	var seq, prev, ack uint64
	code := wire.Code_OK
	if r := f.GetRequest(); r != nil {
		seq, prev, ack = r.GetSeq(), r.GetPrev(), r.GetAck()
		if r.GetReadOnly() {
			f := replyFrame(seq, w.epoch, "")
			f.GetResponse().Attempt = r.GetAttempt()
			if !r.GetConfirmed() {
				f.GetResponse().LeaseLeftUs = uint64((leaseTerm - w.now%leaseRenewal).Microseconds())
			}
			w.send(st, f)
			return
		}
		if w.faults && w.rng.IntN(12) == 0 {
			refusals := []wire.Code{wire.Code_OVERLOADED, wire.Code_BUDGET_EXCEEDED, wire.Code_STATE_TOO_LARGE, wire.Code_FROZEN, wire.Code_STALE_EPOCH}
			w.send(st, refusalFrame(seq, w.epoch, refusals[w.rng.IntN(len(refusals))], false))
			return
		}
	} else if c := f.GetCancel(); c != nil {
		seq, prev, ack = c.GetSeq(), c.GetPrev(), c.GetAck()
		code = wire.Code_CANCELLED
	} else {
		return
	}
	old, cached := w.window.replies[seq]
	switch {
	case cached:
		w.send(st, refusalFrame(seq, w.epoch, old.GetCode(), true))
		return
	case seq < w.acked || seq <= w.window.last:
		w.t.Fatalf("seq %d comes again after it was acknowledged (last %d, acknowledged below %d)", seq, w.window.last, w.acked)
	case prev != w.window.last:
		w.send(st, refusalFrame(seq, w.epoch, wire.Code_SEQ_MISMATCH, false))
		return
	}
	w.window.last = seq
	w.window.replies[seq] = &wire.Response{Code: code}
	if code == wire.Code_OK {
		w.effects = append(w.effects, seq)
		w.count["effect"]++
	}
	w.acked = max(w.acked, ack)
	for s := range w.window.replies {
		if s < w.acked {
			delete(w.window.replies, s)
		}
	}
	w.send(st, refusalFrame(seq, w.epoch, code, true))
}

// freeze hands over, or calls it off, once the client is warm. What still runs may hold
// it up for a while.
func (w *world) freeze(id uint64) {
	if w.move == nil || w.move.id != id || w.move.frozen {
		return
	}
	m := w.move
	m.frozen = true
	var source *worldStream
	for _, st := range w.ordered() {
		if st.attached {
			source = st
		}
	}
	if source != nil {
		w.send(source, frozenFrame(id))
	}
	settling := w.latency()
	if w.faults && w.rng.IntN(4) == 0 {
		settling += time.Duration(w.rng.IntN(3000)) * ms
	}
	w.after(settling, func() {
		if w.move != m {
			return
		}
		warm := m.warm
		if !w.up[m.to] || w.rng.IntN(3) == 0 { // aborted: the target may know first
			if warm.open {
				w.send(warm, bouncedFrame(id))
				warm.warm, warm.parked = 0, nil
			}
			w.after(settling/2, func() {
				if w.move != m {
					return
				}
				w.move = nil
				if source != nil && source.open {
					w.send(source, unfrozenFrame(id))
				}
			})
			return
		}
		w.move = nil
		w.epoch++
		w.owner = m.to
		if source != nil {
			source.attached = false
			w.send(source, byeFrame(wire.Code_MOVED))
		}
		if !warm.open {
			return
		}
		warm.attached = true
		w.send(warm, pivotedFrame(string(rune('a'+w.owner)), w.epoch))
		parked := warm.parked
		warm.parked = nil
		for _, f := range parked {
			w.deliver(warm, f)
		}
	})
}

// fault does one random bad thing, or starts a migration.
func (w *world) fault() {
	n := w.rng.IntN(3)
	switch w.rng.IntN(8) {
	case 0: // crash, and another owner if it was the owner
		if w.up[0] && w.up[1] && w.up[2] {
			w.up[n], w.down[n] = false, w.now
			for _, st := range w.ordered() {
				if (st.node == n || st.near == n) && st.open {
					w.breakStream(st)
				}
			}
			if w.owner == n {
				w.fence(n)
			}
			w.after(time.Duration(500+w.rng.IntN(3000))*ms, func() { w.up[n] = true })
		}
	case 1: // silence, long enough for another owner or not
		if !w.silent[0] && !w.silent[1] && !w.silent[2] {
			w.silent[n], w.down[n] = true, w.now
			if w.owner == n && w.rng.IntN(4) > 0 {
				w.fence(n)
			}
			w.after(time.Duration(w.rng.IntN(5000))*ms, func() {
				w.silent[n] = false
				for _, st := range w.ordered() { // what was lost in it never comes
					if (st.node == n || st.near == n) && st.open {
						w.breakStream(st)
					}
				}
			})
		}
	case 2: // the client's path to one node is cut
		if w.cut != [3]bool{} {
			return
		}
		w.cut[n] = true
		for _, st := range w.ordered() {
			if st.near == n && st.open {
				w.breakStream(st)
			}
		}
		w.after(time.Duration(w.rng.IntN(4000))*ms, func() { w.cut[n] = false })
	case 3:
		for _, st := range w.ordered() {
			if !st.open || w.rng.IntN(4) > 0 {
				continue
			}
			if st.near != st.node { // the relay's own connection broke
				w.send(st, byeFrame(wire.Code_UNAVAILABLE))
				st.open, st.attached, st.warm = false, false, 0
			} else {
				w.breakStream(st)
			}
			break
		}
	default:
		if to := (w.owner + 1) % 3; w.move == nil && w.up[to] && !w.silent[to] {
			w.seq++
			m := &worldMove{id: uint64(w.seq), to: to}
			w.move = m
			for _, st := range w.ordered() {
				if st.attached {
					w.send(st, pivotFrame(m.id, string(rune('a'+to)), w.epoch))
				}
			}
			w.after(3*time.Second, func() { // the migration's deadline
				if w.move == m && !m.frozen {
					w.move = nil
				}
			})
		}
	}
}

// fence gives the session to another node once the lease of n, which is down or
// cut off from now on, has run out, if it still is.
func (w *world) fence(n int) {
	since := w.down[n]
	w.after(leaseTerm+time.Duration(w.rng.IntN(400))*ms, func() {
		if w.owner == n && (!w.up[n] || w.silent[n]) && w.down[n] == since {
			w.assign((n + 1) % 3)
			w.fenced = w.epoch
			w.count["fence"]++
		}
	})
}

func (w *world) assign(to int) {
	w.epoch++
	w.owner = to
	w.move = nil
	for _, st := range w.ordered() {
		st.attached = false
	}
}

// released checks an answer against what the owner did.
func (w *world) released(p *call) {
	if p.reply.Leased {
		w.count["leased"]++
		if p.reply.Epoch < w.fenced {
			w.t.Fatalf("read %d took an answer under a lease of epoch %d, after epoch %d, which began by a fence, had acknowledged something", p.seq, p.reply.Epoch, w.fenced)
		}
	}
	if p.readOnly || p.seq == 0 {
		return
	}
	did := 0
	for _, e := range w.effects {
		if e == p.seq {
			did++
		}
	}
	if p.err == nil && did != 1 {
		w.t.Fatalf("write %d was answered, and took effect %d times", p.seq, did)
	}
}

func (w *world) run(until time.Duration) {
	for {
		at, wake := until, w.s.c.wake()
		if wake > 0 {
			at = min(at, max(wake, w.now))
		}
		next := -1
		for i, e := range w.q {
			if e.at < at || e.at == at && (next < 0 || e.n < w.q[next].n) {
				at, next = e.at, i
			}
		}
		w.now = max(w.now, at)
		switch {
		case next >= 0:
			do := w.q[next].do
			w.q[next] = w.q[len(w.q)-1]
			w.q = w.q[:len(w.q)-1]
			do()
		case wake > 0 && wake <= w.now:
			w.event(func() { w.s.c.tick(w.now) })
		default:
			return
		}
	}
}

func runWorld(t *testing.T, seed uint64, total map[string]int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	w := &world{
		t: t, rng: rng, now: time.Second, epoch: 5, up: [3]bool{true, true, true}, streams: map[int]*worldStream{},
		window: fakeWindow{replies: map[uint64]*wire.Response{}}, faults: true, count: total,
	}
	w.s = newScript(t, func(c *coreConfig) {
		c.jitter = func(d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }
	})
	w.event(func() { w.s.c.start(w.now) })
	var calls []*call
	for i := range 400 {
		w.run(w.now + time.Duration(rng.IntN(60))*ms)
		if rng.IntN(8) == 0 {
			w.fault()
		}
		p := &call{method: fmt.Sprint("w", i), readOnly: rng.IntN(4) == 0}
		if rng.IntN(3) == 0 {
			p.deadline = w.now + time.Duration(1+rng.IntN(800))*ms
		}
		calls = append(calls, p)
		w.event(func() { w.s.c.ask(w.now, p) })
		if rng.IntN(10) == 0 {
			q := calls[rng.IntN(len(calls))]
			w.event(func() { w.s.c.abandon(w.now, q, expired(q, context.Canceled)) })
		}
	}
	w.faults = false
	w.run(w.now + 2*time.Minute)
	total["late"] += w.s.c.late
	for _, p := range calls {
		if !p.released {
			t.Fatalf("seed %d: write %d (attempt %d) was never answered", seed, p.seq, p.attempt)
		}
	}
	if n := len(w.s.c.order); n != 0 {
		t.Fatalf("seed %d: %d calls never settled", seed, n)
	}
	seen := map[uint64]bool{}
	for i, e := range w.effects {
		if seen[e] || i > 0 && e < w.effects[i-1] {
			t.Fatalf("seed %d: effects twice or out of order: %v", seed, w.effects)
		}
		seen[e] = true
	}
}

func TestModel(t *testing.T) {
	seeds := 400
	if testing.Short() {
		seeds = 40
	}
	total := map[string]int{}
	for seed := range seeds {
		if t.Run(fmt.Sprint(seed), func(t *testing.T) { runWorld(t, uint64(seed), total) }); t.Failed() {
			return
		}
	}
	// A model in which nothing happens finds nothing.
	for _, what := range []string{"fence", "leased", "late", "effect", "dial", "relayed", "move planned", "move unplanned", "cancel", "request", "retry"} {
		if total[what] < seeds {
			t.Errorf("%d times %q in %d runs: the model has gone stale", total[what], what, seeds)
		}
	}
}
