package matrix

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
	"github.com/baton-cluster/baton/worker"
)

// scene is a cell as it is played.
type scene struct {
	t       *testing.T
	w       *world
	c       cell
	source  string
	target  string
	secret  []byte
	client  *client   // the one that is attached, or was
	clients []*client // all there were
	healed  time.Duration
}

// move asks the leader for the move, or for the drain that makes it. What is
// returned is closed when nobody waits for its outcome any more.
func (s *scene) move() chan struct{} {
	done := make(chan struct{})
	leader := s.w.leaderProc()
	s.w.wg.Go(func() {
		defer close(done)
		s.w.steps.reach("1")
		if s.c.who == "drain" {
			s.setState(s.source, wire.WorkerState_WORKER_STATE_DRAINING)
			return
		}
		leader.gate()
		for range 40 {
			if leader == nil || leader.isDead() || s.w.is(func() bool { return s.w.log.leader != leader.id }) {
				leader = s.w.leaderProc() // who asks follows the leader
			}
			if leader != nil {
				_, err := leader.dir.Migrate(leader.ctx, migrate.Request{
					Session: sessionID, Target: s.target, Reason: wire.Reason_REASON_ADMIN_REQUEST, By: "matrix",
				})
				if code := wire.CodeOf(err); code != wire.Code_NOT_LEADER && code != wire.Code_NO_OWNER || leader.w.facts.anyBegun() {
					return
				}
			}
			if !sleep(s.w.ctx, 200*time.Millisecond) {
				return
			}
		}
	})
	return done
}

func (f *facts) anyBegun() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.began) > 0
}

// setState drains a worker, or ends that.
func (s *scene) setState(id string, state wire.WorkerState) {
	if p := s.w.leaderProc(); p != nil {
		_, _ = p.proposeWait(&wire.Command{Kind: &wire.Command_SetWorkerState{SetWorkerState: &wire.SetWorkerState{Id: id, State: state, By: "matrix"}}})
	}
}

// leave makes a client finish its calls and go.
func (s *scene) leave(c *client) {
	c.set(func() { c.stopped = true })
	select {
	case <-c.done:
	case <-time.After(20 * time.Second):
		acked, issued := c.counts()
		s.t.Errorf("the client does not come to its end: %d of %d calls are answered", acked, issued)
		c.set(func() { c.left = true })
		<-c.done
	}
}

// strike is the fault. It is called at its step, which goes on when it returns.
func (s *scene) strike() {
	w := s.w
	switch s.c.who {
	case "client":
		s.strikeClient()
		return
	case "second-director":
		w.change(func() { w.log.unaware["n1"] = true })
		w.log.depose(s.target)
		if s.c.what == "competing" {
			s.compete()
		}
		return
	case "session":
		s.strikeSession()
		return
	case "drain":
		s.setState(s.source, wire.WorkerState_WORKER_STATE_ACTIVE)
		return
	}
	for _, id := range s.c.struckNodes() {
		s.strikeNode(id)
	}
}

func (s *scene) strikeNode(id string) {
	w := s.w
	switch s.c.what {
	case "crash":
		w.crash(id)
	case "pause":
		w.change(func() { w.nodes[id].paused = true })
	case "disk-full", "fsync-error":
		w.failDisk(id)
	case "disk-stall":
		w.change(func() { w.nodes[id].stalled = true })
	case "duplicated":
		w.change(func() { w.twice[id] = true })
	case "reordered":
		w.change(func() { w.shuffle[id] = true })
	default:
		s.cut(id)
	}
}

func (s *scene) cut(id string) {
	s.w.change(func() {
		s.w.cutIn[id] = s.c.what == "cut" || s.c.what == "cut-inbound"
		s.w.cutOut[id] = s.c.what == "cut" || s.c.what == "cut-outbound"
	})
}

func (s *scene) strikeClient() {
	switch s.c.what {
	case "crash":
		s.client.set(func() { s.client.left = true })
		s.w.change(func() { // its streams are silent from now on
			s.w.cutIn[clientName], s.w.cutOut[clientName] = true, true
		})
	case "pause":
		s.client.set(func() { s.client.paused = true })
	default:
		s.cut(clientName)
	}
}

// strikeSession ends the session in mid-move. To expire it the step is held up
// until its time to live has passed.
func (s *scene) strikeSession() {
	if s.c.what == "closed" {
		s.client.set(func() { s.client.closing = true })
		time.Sleep(10 * hop)
		return
	}
	if !s.c.detached {
		s.client.set(func() { s.client.stopped = true })
	}
	time.Sleep(wire.TTLMin + 2*time.Second)
}

// compete has the new leader's director move the session, too, and elsewhere.
func (s *scene) compete() {
	p := s.w.nodes[s.target].proc
	s.w.wg.Go(func() {
		_, _ = p.dir.Migrate(p.ctx, migrate.Request{Session: sessionID, Target: "n1", Reason: wire.Reason_REASON_LOAD_BALANCING, By: "matrix"})
	})
}

// healAfter is how long the fault lasts: past failover, except for what is to
// pass by itself.
func (s *scene) healAfter() time.Duration {
	switch s.c.what {
	case "duplicated", "reordered":
		return 2 * time.Second
	case "disk-stall", "crash", "disk-full", "fsync-error":
		return 3 * time.Second
	}
	return 4 * time.Second
}

// heal ends the fault: what was cut is whole, who was paused goes on, who is
// down starts.
func (s *scene) heal() {
	w := s.w
	w.change(func() {
		clear(w.cutIn)
		clear(w.cutOut)
		clear(w.twice)
		clear(w.shuffle)
		for _, n := range w.nodes {
			n.paused, n.stalled = false, false
		}
		for id := range w.log.unaware {
			delete(w.log.unaware, id)
		}
	})
	for _, p := range w.procs {
		if p.lateEnd != nil && p.reign == nil {
			p.lateEnd()
		}
	}
	for _, id := range nodeNames {
		if w.is(func() bool { return w.nodes[id].proc == nil }) {
			w.startNode(id)
		}
	}
	if s.client != nil {
		s.client.set(func() { s.client.paused = false })
	}
	s.healed = w.now()
	if s.c.who == "client" && s.c.what == "crash" {
		<-s.client.done
		s.resume()
	}
}

// resume is the same user's next client: another instance with the same secret.
func (s *scene) resume() {
	s.client = newClient(s.w, s.secret, "")
	s.clients = append(s.clients, s.client)
	s.client.start()
}

// settle waits until nothing is under way any more, as long as promised (P6).
func (s *scene) settle() {
	limit := moveTime + election + tickTime
	s.w.must("all nodes serve", limit, s.w.allServe)
	s.w.must("no migration is left", limit, func() bool {
		var open, lost int
		p := s.w.leaderProc()
		if p == nil {
			return false
		}
		p.view(func(st *store.Store) { open, lost = len(st.ActiveMigrations()), st.Counts().Ownerless })
		return open == 0 && lost == 0
	})
}

// sessionEnds reports whether the fault was meant to end the session.
func (s *scene) sessionEnds() bool { return s.c.who == "session" }

// gone reports whether it did.
func (s *scene) gone() (gone bool) {
	s.w.leaderProc().view(func(st *store.Store) { _, found := st.Session(sessionID); gone = !found })
	return gone
}

// servesAgain: a client that attaches is answered, soon.
func (s *scene) servesAgain() {
	if s.c.detached || s.client.err() != nil && s.c.who == "session" {
		s.resume()
	}
	before, _ := s.client.counts()
	s.client.call()
	s.w.must("the session serves again", 10*time.Second, func() bool {
		acked, _ := s.client.counts()
		return acked >= before+10
	})
}

// movesAgain: nothing that the fault left behind is in the way of another move.
func (s *scene) movesAgain() {
	var owner string
	p := s.w.leaderProc()
	p.view(func(st *store.Store) { owner = st.Row(sessionID).GetOwner().GetWorker() })
	to := nodeNames[(slices.Index(nodeNames, owner)+1)%len(nodeNames)]
	ctx, cancel := context.WithTimeout(p.ctx, moveTime)
	defer cancel()
	rep, err := p.dir.Migrate(ctx, migrate.Request{Session: sessionID, Target: to, Reason: wire.Reason_REASON_ADMIN_REQUEST, By: "matrix"})
	if err != nil {
		s.t.Errorf("the next move from %s to %s ends %v: %v", owner, to, rep.State, err)
	}
	time.Sleep(200 * time.Millisecond)
}

// verdict: the ledger is exact (P2, P3).
func (s *scene) verdict() {
	s.leave(s.client)
	var acked, issued, last int
	exact := true
	for _, c := range s.clients {
		if err := c.err(); err != nil && err != errLeft {
			s.t.Errorf("a client ended: %v", err)
		}
		a, i := c.counts()
		acked, issued, exact = acked+a, issued+i, exact && a == i
		for _, n := range c.replies {
			if n <= last || exact && n != last+1 {
				s.t.Errorf("incr answered %d after %d", n, last)
			}
			last = n
		}
	}
	var final int
	s.w.leaderProc().view(func(st *store.Store) { final = counter(st) })
	if final < acked || final > issued || exact && final != issued {
		s.t.Errorf("the counter is %d after %d calls of which %d were acknowledged", final, issued, acked)
	}
}

func counter(st *store.Store) (n int) {
	for _, c := range st.Row(sessionID).GetState() {
		for _, digit := range c.GetValue() {
			n = n*10 + int(digit-'0')
		}
	}
	return n
}

// verdictGone: who was attached has been told, and the session does not come back.
func (s *scene) verdictGone() {
	if s.c.detached {
		s.resume()
	}
	s.client.call()
	select {
	case <-s.client.done:
	case <-time.After(10 * time.Second):
		s.t.Errorf("the client does not hear that the session has ended")
		s.client.set(func() { s.client.left = true })
		return
	}
	switch wire.CodeOf(s.client.err()) {
	case wire.Code_SESSION_CLOSED, wire.Code_SESSION_EXPIRED:
	default:
		if s.client.err() != errLeft {
			s.t.Errorf("the client was told %v", s.client.err())
		}
	}
}

// verdictAll is what must hold whatever happened.
func (s *scene) verdictAll() {
	s.checkMigrations()
	s.checkServings()
	for _, p := range s.running() {
		s.w.must(p.id+" has let go of everything", 5*time.Second, func() bool { return p.wk.Sessions() == 0 })
		for id := range s.w.facts.began {
			_, err := p.wk.AwaitWarm(s.w.ctx, &wire.WarmReq{Migration: id})
			if wire.CodeOf(err) != wire.Code_UNKNOWN_MIGRATION {
				s.t.Errorf("%s still expects migration %d: %v", p.id, id, err)
			}
		}
	}
	s.checkReplicas()
}

func (s *scene) running() (list []*process) {
	s.w.is(func() bool {
		for _, id := range nodeNames {
			list = append(list, s.w.nodes[id].proc)
		}
		return true
	})
	return list
}

// checkMigrations: each ended, as the states say, and in time (P6).
func (s *scene) checkMigrations() {
	f := s.w.facts
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, began := range f.began {
		ended, over := f.ended[id]
		if !over {
			s.t.Errorf("migration %d has not ended: %v", id, f.phase[id])
			continue
		}
		from := began
		if len(s.c.struckNodes()) > 1 || s.c.what == "disk-stall" {
			from = max(from, s.healed) // there was no majority until then
		}
		if limit := moveTime + election + tickTime; ended-from > limit {
			s.t.Errorf("migration %d took %v, more than %v", id, ended-from, limit)
		}
	}
}

// checkServings: one owner for each epoch, and no two epochs at once (P1).
func (s *scene) checkServings() {
	var all []worker.Served
	for _, p := range s.w.procs {
		all = append(all, p.wk.Servings()...)
	}
	slices.SortFunc(all, func(a, b worker.Served) int {
		if a.Epoch != b.Epoch {
			return int(a.Epoch) - int(b.Epoch)
		}
		return int(a.First) - int(b.First)
	})
	for i, sv := range all {
		if i == 0 {
			continue
		}
		before := all[i-1]
		if before.Epoch == sv.Epoch && before.Incarnation != sv.Incarnation || before.Epoch < sv.Epoch && before.Last >= sv.First {
			s.t.Errorf("two at once: %+v and %+v", before, sv)
		}
	}
}

// checkReplicas: once they have applied the same, all are the same.
func (s *scene) checkReplicas() {
	if !s.w.must("all replicas have the whole log", 5*time.Second, func() bool {
		for _, p := range s.running() {
			if s.w.is(func() bool { return int(p.applied.Load()) < s.w.log.length }) {
				return false
			}
		}
		return true
	}) {
		return
	}
	s.w.log.mu.Lock()
	defer s.w.log.mu.Unlock()
	hashes := map[uint64]bool{}
	for _, p := range s.running() {
		p.view(func(st *store.Store) { hashes[st.Hash()] = true })
	}
	if len(hashes) != 1 {
		s.t.Errorf("the replicas differ: %v", hashes)
	}
}
