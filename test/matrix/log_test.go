package matrix

import (
	"context"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

const (
	// leaseTime is how long a leader goes on without hearing a majority.
	leaseTime = 400 * time.Millisecond
	// electionMin, and as much again at random, is how long it takes until there
	// is another.
	electionMin = 600 * time.Millisecond
	// appendTime is what a commit costs.
	appendTime = time.Millisecond
	// proposeRetry is how soon what has no known outcome is proposed again.
	proposeRetry = 10 * time.Millisecond
)

// reign is one leadership. Log time is what it was when it began, and what has
// passed since.
type reign struct {
	baseUS uint64
	at     time.Duration
	cancel context.CancelFunc // of the director's term
}

func (r *reign) stamp(now time.Duration) uint64 {
	return r.baseUS + uint64((now-r.at)/time.Microsecond)
}

// replog stands for raft: a leader with a majority within reach commits; entries
// that a lost leader had under way may turn out committed, or lost; and nobody
// who proposed them is told which.
type replog struct {
	w *world

	// The world's lock guards these.
	leader  string // "": none
	ready   bool   // there was one
	length  int
	lostAt  time.Duration // since when the leader cannot lead, -1: it can
	patient time.Duration // how long the others wait
	pending []*underway
	unaware map[string]bool // whose director does not hear that its reign is over

	mu      sync.Mutex // one commit at a time
	entries [][]byte
}

// underway is an entry in a leader's log that is not committed.
type underway struct {
	cmds    []*wire.Command
	reign   *reign
	leader  string
	spread  bool // another node has it
	decided bool // nobody waits for it any more
}

func newReplog(w *world) *replog {
	return &replog{w: w, lostAt: -1, unaware: map[string]bool{}}
}

// working reports whether a node takes part. w.mu is held.
func (l *replog) working(id string, disk bool) bool {
	n := l.w.nodes[id]
	return n.proc != nil && !n.proc.diskGone && !n.paused && (!disk || !n.stalled)
}

// majority reports whether a node reaches enough others, and they it. disk: they
// must be able to write, too. w.mu is held.
func (l *replog) majority(id string, disk bool) bool {
	if !l.working(id, disk) {
		return false
	}
	for _, other := range nodeNames {
		if other != id && l.working(other, disk) && l.w.open(id, other) && l.w.open(other, id) {
			return true
		}
	}
	return false
}

// knownTo is the leader as a process knows it. w.mu is held.
func (l *replog) knownTo(p *process) string {
	if p.reign != nil {
		return p.id
	}
	if l.leader != "" && l.leader != p.id && l.w.open(l.leader, p.id) && l.w.open(p.id, l.leader) && l.working(l.leader, false) {
		return l.leader
	}
	return ""
}

// elect looks after leadership, now and then.
func (l *replog) elect() {
	w := l.w
	w.mu.Lock()
	now := w.now()
	for _, p := range w.procs {
		// One that reigns no more hears of it once it runs.
		if p.reign != nil && p.id != l.leader && !p.dead && !w.nodes[p.id].paused {
			l.stepDown(p)
		}
	}
	if l.leader != "" && l.majority(l.leader, false) {
		l.lostAt = -1
		w.mu.Unlock()
		return
	}
	if l.lostAt < 0 {
		l.lostAt = now
		l.patient = electionMin + time.Duration(w.rng.Int64N(int64(electionMin)))
	}
	if n := w.nodes[l.leader]; n != nil && now-l.lostAt >= leaseTime {
		if p := n.proc; p != nil && !n.paused && p.reign != nil {
			l.stepDown(p)
		}
		l.leader = ""
		w.wake()
	}
	next := ""
	if now-l.lostAt >= l.patient {
		first := w.rng.IntN(len(nodeNames))
		for i := range nodeNames {
			if id := nodeNames[(first+i)%len(nodeNames)]; l.majority(id, true) {
				next = id
				break
			}
		}
	}
	w.mu.Unlock()
	if next != "" {
		l.crown(next)
	}
}

// stepDown ends a reign as its process knows it. w.mu is held.
func (l *replog) stepDown(p *process) {
	if l.unaware[p.id] {
		p.lateEnd = p.reign.cancel
	} else {
		p.reign.cancel()
	}
	for _, e := range l.pending {
		e.decided = e.decided || e.reign == p.reign
	}
	p.reign = nil
	l.w.wake()
}

// crown makes a node lead. What its predecessors had under way is decided.
func (l *replog) crown(id string) {
	w := l.w
	l.mu.Lock()
	defer l.mu.Unlock()
	w.mu.Lock()
	p := w.nodes[id].proc
	if p == nil || p.dead {
		w.mu.Unlock()
		return
	}
	pending := l.pending
	l.pending = nil
	var survive []*underway
	for _, e := range pending {
		e.decided = true
		if e.leader == id || e.spread && w.rng.IntN(2) == 0 {
			survive = append(survive, e)
		}
	}
	if p.reign != nil {
		l.stepDown(p)
	}
	w.mu.Unlock()

	p.apply(l.entries)
	r := &reign{at: w.now()}
	p.view(func(st *store.Store) { r.baseUS = st.TimeUS() })
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(p.ctx)
	if len(l.entries) == 0 {
		l.commit(p, r, []*wire.Command{{Kind: &wire.Command_InitCluster{InitCluster: &wire.InitCluster{ClusterId: clusterID, ByteBudget: 1 << 40}}}})
	}
	for _, e := range survive {
		l.commit(p, r, e.cmds)
	}
	w.change(func() {
		p.reign = r
		l.leader, l.ready, l.lostAt = id, true, -1
	})
	w.wg.Go(func() { p.dir.Run(ctx) })
}

// depose gives the leadership to another, whatever the network says.
func (l *replog) depose(to string) { l.crown(to) }

// commit puts one entry into the log and applies it at the leader. l.mu is held.
func (l *replog) commit(p *process, r *reign, cmds []*wire.Command) []*wire.Result {
	now := l.w.now()
	data, err := proto.Marshal(&wire.Entry{TimeUs: r.stamp(now), WallUs: time.Now().UnixMicro(), Commands: cmds})
	if err != nil {
		panic(err)
	}
	l.entries = append(l.entries, data)
	res := p.apply(l.entries)
	p.view(func(st *store.Store) { l.w.facts.note(now, cmds, res, st) })
	l.w.change(func() { l.length = len(l.entries) })
	for i := range res {
		res[i] = clone(res[i])
	}
	return res
}

// follow brings a follower up to date.
func (l *replog) follow(p *process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.apply(l.entries)
}

// append tries to commit at p, which believes that it leads. False: nobody knows
// what becomes of it.
func (l *replog) append(p *process, cmds []*wire.Command) (res []*wire.Result, ok bool) {
	w := l.w
	if !w.until(p.ctx, func() bool { return !w.nodes[p.id].stalled }) {
		return nil, false
	}
	e := &underway{cmds: cmds, leader: p.id}
	w.mu.Lock()
	if e.reign = p.reign; e.reign == nil || p.dead || p.diskGone {
		w.mu.Unlock()
		return nil, false
	}
	for _, other := range nodeNames {
		e.spread = e.spread || other != p.id && l.working(other, true) && w.open(p.id, other)
	}
	l.pending = append(l.pending, e)
	w.mu.Unlock()
	if !sleep(p.ctx, appendTime) {
		return nil, false
	}
	for {
		may := func() bool {
			return e.decided || l.leader == p.id && p.reign == e.reign && l.majority(p.id, true)
		}
		if !w.until(p.ctx, may) {
			return nil, false
		}
		l.mu.Lock()
		w.mu.Lock()
		yes, decided := may(), e.decided
		if yes && !decided {
			e.decided = true
			l.forget(e)
		}
		w.mu.Unlock()
		if decided || !yes {
			l.mu.Unlock()
			if decided {
				return nil, false
			}
			continue
		}
		res = l.commit(p, e.reign, cmds)
		l.mu.Unlock()
		w.steps.committed(cmds)
		return res, true
	}
}

// forget takes an entry off those under way. w.mu is held.
func (l *replog) forget(e *underway) {
	for i, other := range l.pending {
		if other == e {
			l.pending = append(l.pending[:i:i], l.pending[i+1:]...)
			return
		}
	}
}

// Propose is the cluster's promise to a worker: done is called once, and what
// has no known outcome is proposed again until it has one.
func (p *process) Propose(cmds []*wire.Command, done func([]*wire.Result, error)) {
	p.w.wg.Go(func() {
		p.w.steps.proposed(cmds)
		p.gate()
		res, ok := p.propose(cmds)
		p.gate()
		if !ok || p.w.is(func() bool { return p.dead || p.diskGone }) {
			done(nil, wire.Errorf(wire.Code_SHUTTING_DOWN, "this node is closing"))
			return
		}
		done(res, nil)
	})
}

func (p *process) propose(cmds []*wire.Command) ([]*wire.Result, bool) {
	w, l := p.w, p.w.log
	for {
		leader := ""
		var q *process
		if !w.until(p.ctx, func() bool {
			if leader = l.knownTo(p); leader != "" {
				q = w.nodes[leader].proc
			}
			return p.diskGone || q != nil && !w.nodes[p.id].paused
		}) || w.is(func() bool { return p.diskGone }) {
			return nil, false
		}
		times := 1
		if w.doubled(p.id, leader) {
			times = 2 // the first answer is lost, and the same is proposed again
		}
		var res []*wire.Result
		ok := true
		for range times {
			if ok {
				res, ok = p.forward(q, cmds)
			}
		}
		if ok {
			return res, true
		}
		if !sleep(p.ctx, proposeRetry) {
			return nil, false
		}
	}
}

// forward brings commands to the leader and results back. It gives up, not
// knowing, when the leader is another.
func (p *process) forward(q *process, cmds []*wire.Command) (res []*wire.Result, ok bool) {
	if q == p {
		return p.w.log.append(p, cmds)
	}
	type answer struct {
		res []*wire.Result
		ok  bool
	}
	ch := make(chan answer, 1)
	p.w.wg.Go(func() {
		if !p.w.carry(q.ctx, p.id, q.id) {
			return
		}
		q.gate()
		res, ok := p.w.log.append(q, cmds)
		q.gate()
		if p.w.carry(q.ctx, q.id, p.id) {
			ch <- answer{res, ok}
		}
	})
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	p.w.wg.Go(func() {
		p.w.until(ctx, func() bool { return p.w.log.knownTo(p) != q.id || q.dead })
		cancel()
	})
	select {
	case a := <-ch:
		return a.res, a.ok
	case <-ctx.Done():
		return nil, false
	}
}

// facts are what is noted of each commit, for the verdict.
type facts struct {
	t *testing.T

	mu     sync.Mutex
	owners map[uint64]string // epoch of the session → worker and incarnation
	epoch  uint64
	began  map[uint64]time.Duration
	ended  map[uint64]time.Duration
	phase  map[uint64]wire.Phase
	pivots int
}

func newFacts(t *testing.T) *facts {
	return &facts{t: t, owners: map[uint64]string{}, began: map[uint64]time.Duration{}, ended: map[uint64]time.Duration{}, phase: map[uint64]wire.Phase{}}
}

// note looks at the state after one entry.
func (f *facts) note(now time.Duration, cmds []*wire.Command, res []*wire.Result, st *store.Store) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, c := range cmds {
		if c.GetBegin() != nil && res[i].GetCode() == wire.Code_OK {
			if id := res[i].GetMigration().GetId(); f.began[id] == 0 {
				f.began[id] = now
			}
		}
		if c.GetPivot() != nil && res[i].GetCode() == wire.Code_OK && !res[i].GetDuplicate() {
			f.pivots++
		}
	}
	for id := range f.began {
		ph := st.Migration(id).GetPhase()
		f.phase[id] = ph
		if _, over := f.ended[id]; !over && ph != wire.Phase_PHASE_BEGUN && ph != wire.Phase_PHASE_PIVOTED {
			f.ended[id] = now
		}
	}
	sum, ok := st.Session(sessionID)
	if !ok || sum.Epoch == 0 {
		return
	}
	if sum.Epoch < f.epoch {
		f.t.Errorf("the epoch fell from %d to %d", f.epoch, sum.Epoch)
	}
	f.epoch = sum.Epoch
	owner := sum.Owner.String()
	if was := f.owners[sum.Epoch]; was != "" && was != owner {
		f.t.Errorf("epoch %d has two owners: %s and %s", sum.Epoch, was, owner)
	}
	f.owners[sum.Epoch] = owner
}
