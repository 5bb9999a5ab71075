package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/baton-cluster/baton"
)

const (
	// callTime is a caller's patience; past it an outcome is unknown.
	callTime = 10 * time.Second
	// counterKey is what bump counts in, and ballastKey holds what it is given.
	counterKey, ballastKey = "n", "ballast"
	// ballastOf: one of so many bumps has some, and of ballastBytes at most, so that
	// entries of the log are many sectors long or few.
	ballastOf, ballastBytes = 8, 6 * sectorBytes
)

// application counts, and pushes each new count to all clients of the session.
func (w *world) application() *baton.Mux {
	m := baton.KV()
	m.Handle("bump", func(tx *baton.Tx, ballast []byte) ([]byte, error) {
		if len(ballast) > 0 {
			if err := tx.Put(ballastKey, ballast); err != nil {
				return nil, err
			}
		}
		n, err := tx.Incr(counterKey, 1)
		if err != nil {
			return nil, err
		}
		sum := strconv.AppendInt(nil, n, 10)
		return sum, tx.Push(sum)
	})
	m.HandleStream("mirror", w.mirror, baton.Resumable())
	return m
}

// ledger is what all clients of one session together were told. As all of them
// live in one bubble, "before" is a fact.
type ledger struct {
	w  *world
	id string

	mu      sync.Mutex
	issued  int64 // bumps sent
	unknown int64 // of those, outcomes unknown since the last acknowledged one
	acked   int64 // highest acknowledged sum
	seen    int64 // highest sum that anybody has read
	calls   int
	reads   int
	errs    map[string]int
}

func (l *ledger) issue() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.issued++
	l.calls++
}

// ack takes a bump's answer: one more than the last, or a little more where
// outcomes were unknown. More than that was applied twice; less was lost.
func (l *ledger) ack(sum int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if sum <= l.acked || sum > l.acked+l.unknown+1 {
		l.w.violation("%s: a bump came to %d, after %d and %d of unknown outcome", l.id, sum, l.acked, l.unknown)
	}
	l.acked, l.unknown = max(l.acked, sum), 0
}

func (l *ledger) fail(err error, write bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if write {
		l.unknown++
	}
	l.errs[baton.CodeOf(err).String()]++
}

// floor is what a read that begins now must at least see.
func (l *ledger) floor() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	return max(l.acked, l.seen)
}

func (l *ledger) read(floor, v int64, who string, r string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v < floor || v > l.issued {
		l.w.violation("%s: %s read %d when %d was known and %d were sent (%s)", l.id, who, v, floor, l.issued, r)
	}
	l.seen = max(l.seen, v)
}

// client is a program that uses sessions, on a host of its own.
type client struct {
	w    *world
	name string
	c    *baton.Client
	rng  *rand.Rand
	stop context.CancelFunc
	ctx  context.Context
	jobs sync.WaitGroup
}

func (w *world) newClient(i int) *client {
	c := &client{w: w, name: fmt.Sprintf("c%d", i), rng: rand.New(rand.NewPCG(w.seed, 100+uint64(i)))}
	c.ctx, c.stop = context.WithCancel(context.Background())
	var addrs []string
	for _, m := range w.machines {
		addrs = append(addrs, m.user())
	}
	ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
	defer cancel()
	var err error
	c.c, err = baton.Dial(ctx, baton.ClientConfig{
		Addrs: addrs, PKI: w.pki(), Network: w.host(c.ip(i)),
		Clock: clock{start: w.start, rate: 1 + driftMax*(2*c.rng.Float64()-1)},
	})
	must(w.t, err)
	w.clients = append(w.clients, c)
	return c
}

func (*client) ip(i int) string { return fmt.Sprintf("127.0.1.%d", 100+i) }

func (c *client) close() {
	c.stop()
	c.jobs.Wait()
	_ = c.c.Close()
}

func (c *client) run(f func(rng *rand.Rand)) {
	rng := rand.New(rand.NewPCG(c.rng.Uint64(), 3))
	c.jobs.Add(1)
	go func() {
		defer c.jobs.Done()
		f(rng)
	}()
}

// pause sleeps for up to d, in the calm for longer, and reports whether the client
// goes on.
func (c *client) pause(rng *rand.Rand, d time.Duration) bool {
	return c.w.pause(c.ctx.Done(), rng, d) && c.ctx.Err() == nil
}

// rest sleeps for up to d, whatever the weather, and reports whether the client
// goes on.
func (c *client) rest(rng *rand.Rand, d time.Duration) bool {
	select {
	case <-time.After(time.Duration(rng.Int64N(int64(d)))):
		return c.ctx.Err() == nil
	case <-c.ctx.Done():
		return false
	}
}

// write bumps without end.
func (c *client) write(s *baton.Session, l *ledger) {
	c.watch(s, l)
	c.run(func(rng *rand.Rand) {
		for c.pause(rng, 2*time.Second) {
			l.issue()
			ctx, cancel := context.WithTimeout(c.ctx, callTime)
			r, err := s.Call(ctx, "bump", ballast(rng))
			cancel()
			if err != nil {
				l.fail(err, true)
				c.ended(s, l)
				continue
			}
			sum, err := strconv.ParseInt(string(r.Payload), 10, 64)
			if err != nil {
				c.w.violation("%s: a bump answered %q", l.id, r.Payload)
			}
			l.ack(sum)
		}
	})
}

// ballast is mostly none.
func ballast(rng *rand.Rand) []byte {
	if rng.IntN(ballastOf) != 0 {
		return nil
	}
	b := make([]byte, rng.IntN(ballastBytes))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// read looks without end.
func (c *client) read(s *baton.Session, l *ledger) {
	c.watch(s, l)
	c.run(func(rng *rand.Rand) {
		for c.pause(rng, 2*time.Second) {
			floor := l.floor()
			ctx, cancel := context.WithTimeout(c.ctx, callTime)
			v, err := s.Get(ctx, counterKey)
			cancel()
			if err != nil {
				l.fail(err, false)
				c.ended(s, l)
				continue
			}
			n, _ := strconv.ParseInt(string(v.Value), 10, 64)
			l.read(floor, n, c.name, fmt.Sprintf("by %s in epoch %d", v.Owner, v.Epoch))
		}
	})
}

// ended notes a session that is over for the client: nobody closed it.
func (c *client) ended(s *baton.Session, l *ledger) {
	if err := s.Err(); err != nil && c.ctx.Err() == nil {
		c.w.violation("%s: the session ended for %s: %v", l.id, c.name, err)
		c.stop()
	}
}

// watch checks that pushes come in order, once, and that holes are told.
func (c *client) watch(s *baton.Session, l *ledger) {
	var mu sync.Mutex
	var last int64
	told := false
	s.OnGap(func(baton.Gap) {
		mu.Lock()
		defer mu.Unlock()
		told = true
	})
	s.OnPush(func(p baton.Push) {
		mu.Lock()
		defer mu.Unlock()
		n, _ := strconv.ParseInt(string(p.Payload), 10, 64)
		if n <= last || n != last+1 && last != 0 && !told {
			c.w.violation("%s: %s was pushed %d after %d, gap told: %v", l.id, c.name, n, last, told)
		}
		last, told = n, false
	})
}
