// Package matrix is the failure matrix of a move: who fails × how × at which
// step of the handoff. Each cell is a subtest that bears its name, and runs in
// virtual time: real workers, real directors and a real store for each replica,
// over a log, a network and clients that are simulated.
//
// What is not here: sockets, disks, raft and QUIC themselves (jepsen-lite has
// them), and relays.
package matrix

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/baton-cluster/baton/lease"
	"github.com/baton-cluster/baton/wire"
)

const (
	// clientName is the client's place in the network.
	clientName = "client"
	sessionID  = "s"
	// hop is how long a message travels.
	hop = time.Millisecond
	// idleAfter is when a stream whose two ends cannot hear each other is lost.
	idleAfter = 5 * time.Second
	// gossipAfter is how long gossip needs to call a silent worker dead.
	gossipAfter = 1200 * time.Millisecond
)

var nodeNames = []string{"n1", "n2", "n3"}

// world is three nodes, one client, and what lies between them. It lives in a
// synctest bubble.
type world struct {
	t     *testing.T
	start time.Time
	ctx   context.Context
	end   context.CancelFunc
	wg    sync.WaitGroup
	log   *replog
	facts *facts
	steps *steps

	// mu guards what follows and the processes' marks. Whoever changes one of
	// them wakes those who wait in until.
	mu      sync.Mutex
	changed chan struct{}
	rng     *rand.Rand
	nodes   map[string]*node
	cutIn   map[string]bool
	cutOut  map[string]bool
	twice   map[string]bool // messages of it are delivered twice
	shuffle map[string]bool // messages of it are delayed at random
	links   []*link
	procs   []*process
	unheard map[[2]string]time.Duration // viewer, worker → since when, -1: heard
}

// node is a place where processes run, one after the other.
type node struct {
	id      string
	proc    *process // nil: down
	paused  bool
	stalled bool // its disk takes no writes
	started bool // before now
	// withdrawn are the incarnations that its server has agreed to fence.
	withdrawn []uint64
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, start: time.Now(), changed: make(chan struct{}), rng: rand.New(rand.NewPCG(seed, 1)),
		nodes: map[string]*node{}, cutIn: map[string]bool{}, cutOut: map[string]bool{},
		twice: map[string]bool{}, shuffle: map[string]bool{}, unheard: map[[2]string]time.Duration{},
	}
	w.ctx, w.end = context.WithCancel(context.Background())
	w.log, w.facts, w.steps = newReplog(w), newFacts(t), newSteps(w)
	for _, id := range nodeNames {
		w.nodes[id] = &node{id: id}
	}
	return w
}

func (w *world) now() time.Duration { return time.Since(w.start) }

// change runs fn under the lock and wakes all who wait.
func (w *world) change(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn()
	w.wake()
}

// wake is change's second half. w.mu is held.
func (w *world) wake() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// until waits for cond, which is called under the lock. False: ctx ended first.
func (w *world) until(ctx context.Context, cond func() bool) bool {
	for {
		w.mu.Lock()
		ok, changed := cond(), w.changed
		w.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// is reads something under the lock.
func (w *world) is(cond func() bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return cond()
}

// sleep waits, false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// open reports whether a message gets from one to the other. w.mu is held.
func (w *world) open(from, to string) bool {
	return from == to || !w.cutOut[from] && !w.cutIn[to]
}

// delay is how long a message between the two travels.
func (w *world) delay(from, to string) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shuffle[from] || w.shuffle[to] {
		return hop + time.Duration(w.rng.Int64N(int64(60*hop)))
	}
	return hop
}

// doubled reports whether a message between the two comes twice.
func (w *world) doubled(from, to string) bool {
	return w.is(func() bool { return w.twice[from] || w.twice[to] })
}

// carry brings a message from one place to another; while the way is cut it
// waits there, as it would in a socket's buffer, and comes late. False: ctx ended
// before it came.
func (w *world) carry(ctx context.Context, from, to string) bool {
	if from == to {
		return ctx.Err() == nil
	}
	return sleep(ctx, w.delay(from, to)) && w.until(ctx, func() bool { return w.open(from, to) })
}

// flow is carry for a stream, whose frames keep their order.
func (w *world) flow(ctx context.Context, from, to string) bool {
	return sleep(ctx, hop) && w.until(ctx, func() bool { return w.open(from, to) })
}

// hears reports whether gossip from id reaches viewer and back, be it through
// the third node. w.mu is held.
func (w *world) hears(viewer, id string) bool {
	both := func(a, b string) bool {
		na, nb := w.nodes[a], w.nodes[b]
		return na.proc != nil && nb.proc != nil && !na.paused && !nb.paused && w.open(a, b) && w.open(b, a)
	}
	if viewer == id || both(viewer, id) {
		return true
	}
	for _, third := range nodeNames {
		if third != viewer && third != id && both(viewer, third) && both(third, id) {
			return true
		}
	}
	return false
}

// gossip keeps who has been silent to whom for how long. w.mu is held.
func (w *world) gossip() {
	for _, viewer := range nodeNames {
		if n := w.nodes[viewer]; n.paused || n.proc == nil {
			continue
		}
		for _, id := range nodeNames {
			key := [2]string{viewer, id}
			if w.hears(viewer, id) {
				w.unheard[key] = -1
			} else if w.unheard[key] < 0 {
				w.unheard[key] = w.now()
			}
		}
	}
}

func (w *world) alive(viewer, id string) bool {
	return w.is(func() bool {
		since := w.unheard[[2]string{viewer, id}]
		return since < 0 || w.now()-since < gossipAfter
	})
}

// tick is the network's own time: gossip, elections, streams that die.
func (w *world) tick() {
	for sleep(w.ctx, 25*time.Millisecond) {
		w.mu.Lock()
		w.gossip()
		links := slices.Clone(w.links)
		w.mu.Unlock()
		w.log.elect()
		for _, l := range links {
			if l.check() {
				w.mu.Lock()
				w.links = slices.DeleteFunc(w.links, func(other *link) bool { return other == l })
				w.mu.Unlock()
			}
		}
	}
}

// boot starts all nodes, the first one leading, and waits until they serve.
func (w *world) boot() {
	for _, id := range nodeNames {
		for _, other := range nodeNames {
			w.unheard[[2]string{id, other}] = -1
		}
		w.startNode(id)
	}
	w.log.crown("n1")
	w.wg.Go(w.tick)
	w.must("all nodes register", 10*time.Second, w.allServe)
}

// allServe reports whether every node is up and its worker has an incarnation.
func (w *world) allServe() bool {
	return w.is(func() bool {
		for _, n := range w.nodes {
			if n.proc == nil || n.paused || n.proc.wk.Incarnation() == 0 {
				return false
			}
		}
		return true
	})
}

// must waits until cond holds, in virtual time.
func (w *world) must(what string, within time.Duration, cond func() bool) bool {
	for end := w.now() + within; !cond(); time.Sleep(10 * time.Millisecond) {
		if w.now() > end {
			w.t.Errorf("never within %v: %s", within, what)
			return false
		}
	}
	return true
}

// startNode starts a process on a node.
func (w *world) startNode(id string) {
	p := newProcess(w, id)
	w.change(func() {
		n := w.nodes[id]
		p.leases.server = lease.NewServer(w.now(), n.withdrawn, !n.started)
		n.started, n.proc = true, p
		w.procs = append(w.procs, p)
	})
	w.wg.Go(p.applyLoop)
	w.wg.Go(p.eventLoop)
	w.wg.Go(p.registerLoop)
	w.wg.Go(p.leaseLoop)
}

// crash ends a node's process as SIGKILL does: nothing more leaves it.
func (w *world) crash(id string) {
	w.mu.Lock()
	p := w.nodes[id].proc
	if p == nil || p.dead {
		w.mu.Unlock()
		return
	}
	p.dead = true
	w.nodes[id].proc, w.nodes[id].paused = nil, false
	w.wake()
	w.mu.Unlock()
	p.cancel()
	w.wg.Go(p.wk.Close) // only frees what it holds: it reaches nobody any more
}

// failDisk ends a node's process as the product does when its disk fails: it
// says goodbye to its clients, but its log takes nothing more.
func (w *world) failDisk(id string) {
	w.mu.Lock()
	p := w.nodes[id].proc
	if p == nil || p.dead || p.diskGone {
		w.mu.Unlock()
		return
	}
	p.diskGone = true
	w.wake()
	w.mu.Unlock()
	w.wg.Go(func() {
		p.wk.Close()
		time.Sleep(5 * hop) // the goodbyes leave
		w.crash(id)
	})
}

// close ends everything and waits for it.
func (w *world) close() {
	w.change(func() {
		clear(w.cutIn)
		clear(w.cutOut)
		for _, n := range w.nodes {
			n.paused, n.stalled = false, false
		}
	})
	for _, id := range nodeNames {
		w.crash(id)
	}
	w.end()
	for _, l := range w.links {
		l.cancel()
	}
	w.wg.Wait()
	for _, p := range w.procs {
		p.wk.Wait()
	}
}

// leaderProc is the process that leads now, nil if none does.
func (w *world) leaderProc() (p *process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.nodes[w.log.leader]; n != nil {
		p = n.proc
	}
	return p
}

func unavailable(text string) error { return wire.Errorf(wire.Code_UNAVAILABLE, "%s", text) }
