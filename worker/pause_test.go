package worker

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// A simulation of paused owners, in virtual time: real workers over a real store,
// several readers and a writer of one shared session. Owners are stopped at
// random instants and for random times; those whose leases have run out are
// fenced; a client learns of the next owner sooner or later, or not at all, and
// what an owner that wakes up hears first, its clients or the log, is chance.
// Histories are judged by Porcupine. Clients take every answer that they get: at
// the owner alone reads are to be linearizable.
type pauseSim struct {
	t   *testing.T
	w   *world
	rng *rand.Rand

	names   []string
	until   map[string]time.Duration // of leases
	fenced  map[string]bool
	owner   string
	writer  *pauseClient
	readers []*pauseClient
	next    int // value to be written
	stamp   int64
	ops     []porcupine.Operation
	count   map[string]int
}

// simTerm is how long a lease holds; owners that are well renew it all the time.
const simTerm = time.Second

type pauseClient struct {
	*client
	n    int
	at   string // the worker that it is attached at, empty: none
	busy *porcupine.Operation
	seq  uint64 // of busy
	// sent: the write that is busy was sent to at.
	sent bool
}

// registerOp is an operation's input; its output is the value read.
type registerOp struct {
	write bool
	value string
}

var registerModel = porcupine.Model{
	Init: func() any { return "none" },
	Step: func(state, in, out any) (bool, any) {
		if op := in.(registerOp); op.write {
			return true, op.value
		}
		return out.(string) == state.(string), state
	},
}

func newPauseSim(t *testing.T, seed uint64, count map[string]int) *pauseSim {
	s := &pauseSim{
		t: t, rng: rand.New(rand.NewPCG(seed, 7)), names: []string{"a", "b", "c"}, owner: "a",
		until: map[string]time.Duration{}, fenced: map[string]bool{}, count: count,
	}
	s.w = newWorld(t, s.names...)
	for _, name := range s.names {
		s.w.workers[name].cfg.Lease = s.lease(name)
	}
	s.renew()
	first := s.w.open("a", "s", true)
	s.writer = &pauseClient{client: first, at: "a"}
	for i := range 4 {
		r := &pauseClient{client: s.w.newClient("s", first.secret), n: i + 1, at: "a"}
		r.attach("a", true)
		r.attached()
		s.readers = append(s.readers, r)
	}
	return s
}

// lease reads the clock when it is called.
func (s *pauseSim) lease(name string) func(uint64) (time.Duration, bool) {
	return func(uint64) (time.Duration, bool) {
		s.w.leases.mu.Lock()
		defer s.w.leases.mu.Unlock()
		left := s.until[name] - s.w.clock.Now()
		return left, left > 0
	}
}

// renew is a round of renewals by all who can.
func (s *pauseSim) renew() {
	s.w.leases.mu.Lock()
	defer s.w.leases.mu.Unlock()
	for _, name := range s.names {
		if !s.stopped(name) && !s.fenced[name] {
			s.until[name] = s.w.clock.Now() + simTerm
		}
	}
}

func (s *pauseSim) stopped(name string) bool {
	p := s.w.procs[name]
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopped != nil
}

func (s *pauseSim) step() {
	switch n := s.rng.IntN(20); {
	case n < 7:
		s.read(s.readers[s.rng.IntN(len(s.readers))])
	case n < 10:
		s.write()
	case n < 14:
		s.w.clock.advance(time.Duration(1+s.rng.IntN(400)) * time.Millisecond)
		s.renew()
	case n < 16:
		s.w.procs[s.owner].stop()
	case n < 17:
		s.wake(s.names[s.rng.IntN(len(s.names))])
	case n < 19:
		s.fence()
	default:
		s.follow(s.readers[s.rng.IntN(len(s.readers))])
	}
	synctest.Wait()
	for _, c := range append([]*pauseClient{s.writer}, s.readers...) {
		s.collect(c)
	}
}

func (s *pauseSim) now() int64 { s.stamp++; return s.stamp }

func (s *pauseSim) read(r *pauseClient) {
	if r.busy != nil || r.at == "" {
		return
	}
	r.busy = &porcupine.Operation{ClientId: r.n, Input: registerOp{}, Call: s.now()}
	r.seq = r.query("get", "k")
}

// write begins the next write, or sends the one under way to the owner of now.
func (s *pauseSim) write() {
	c := s.writer
	if c.busy == nil {
		s.next++
		value := fmt.Sprint(s.next)
		c.busy = &porcupine.Operation{ClientId: 0, Input: registerOp{true, value}, Call: s.now()}
		c.client.seq++
		c.seq, c.sent = c.client.seq, false
	}
	if c.at != s.owner {
		s.follow(c)
		return
	}
	if !c.sent {
		c.sent = true
		c.request(c.seq, c.seq-1, "put", "k="+c.busy.Input.(registerOp).value)
	}
}

// follow has a client attach at the owner, if that answers.
func (s *pauseSim) follow(c *pauseClient) {
	if c.at == s.owner || s.stopped(s.owner) {
		return
	}
	c.hangUp()
	if !c.busyWrite() {
		c.busy = nil // a query without an answer proves nothing
	}
	c.sent, c.at = false, s.owner
	c.attach(s.owner, false)
	s.count["followed"]++
}

func (c *pauseClient) busyWrite() bool { return c.busy != nil && c.busy.Input.(registerOp).write }

// collect takes what has come for a client.
func (s *pauseSim) collect(c *pauseClient) {
	for len(c.link.out) > 0 {
		f := <-c.link.out
		r := f.GetResponse()
		switch {
		case f.GetBye() != nil:
			c.at, c.sent = "", false
			if !c.busyWrite() {
				c.busy = nil
			}
		case r == nil || c.busy == nil || r.GetSeq() != c.seq:
		case r.GetCode() != wire.Code_OK:
			if c.sent = false; !c.busyWrite() {
				c.busy = nil
			}
		default:
			if r.GetLeaseLeftUs() > 0 {
				s.count["leased"]++
			}
			if !c.busyWrite() {
				c.busy.Output = string(r.GetPayload())
				s.count["read"]++
			}
			c.busy.Return = s.now()
			s.ops = append(s.ops, *c.busy)
			c.busy = nil
		}
	}
}

// fence gives the session of an owner that does not answer, and whose lease has
// run out, to another worker.
func (s *pauseSim) fence() {
	old := s.owner
	if !s.stopped(old) || s.w.clock.Now() < s.until[old] {
		return
	}
	for _, name := range s.names {
		if name == old || s.stopped(name) || s.fenced[name] {
			continue
		}
		s.w.fence(old)
		s.fenced[old] = true
		s.w.must(&wire.Command{Kind: &wire.Command_Assign{Assign: &wire.Assign{
			Session: "s", Replaces: s.w.row("s").GetEpoch(), Owner: s.w.workers[name].owner(), Reason: "test",
		}}})
		s.owner = name
		s.count["fence"]++
		return
	}
}

// wake lets a worker go on. If it was fenced it registers anew, in the end.
func (s *pauseSim) wake(name string) {
	if !s.stopped(name) {
		return
	}
	p := s.w.procs[name]
	p.goOn()
	if s.rng.IntN(4) > 0 { // mostly its sockets are faster than the log
		synctest.Wait()
	}
	p.hear(func() int { return s.rng.IntN(2) })
	synctest.Wait()
	if s.fenced[name] {
		s.w.workers[name].SetIncarnation(s.w.register(name, s.registered(name)).GetEpoch())
		s.fenced[name] = false
		s.count["woke fenced"]++
	}
	s.renew()
}

// registered is the incarnation on record.
func (s *pauseSim) registered(name string) (n uint64) {
	s.w.log.View(func(st *store.Store) { n = st.Worker(name).GetIncarnation() })
	return n
}

func (s *pauseSim) judge(seed uint64) {
	if s.writer.busy != nil { // it may have taken effect, or not
		s.writer.busy.Return = 1 << 62
		s.ops = append(s.ops, *s.writer.busy)
	}
	if !porcupine.CheckOperations(registerModel, s.ops) {
		for _, op := range s.ops {
			s.t.Logf("client %d: %+v → %v, %d to %d", op.ClientId, op.Input, op.Output, op.Call, op.Return)
		}
		s.t.Errorf("seed %d: not linearizable", seed)
	}
	for _, name := range s.names {
		s.w.procs[name].goOn()
		s.w.procs[name].hear(func() int { return fromLocal })
	}
}

// TestReadsOfPausedOwners: reads are linearizable wherever an owner is stopped.
func TestReadsOfPausedOwners(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 10
	}
	count := map[string]int{}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			s := newPauseSim(t, uint64(seed), count)
			for range 400 {
				s.step()
			}
			s.judge(uint64(seed))
		})
		if t.Failed() {
			return
		}
	}
	for _, what := range []string{"read", "leased", "fence", "woke fenced", "followed"} {
		if count[what] < seeds {
			t.Errorf("%d times %q in %d runs: the simulation has gone stale", count[what], what, seeds)
		}
	}
}
