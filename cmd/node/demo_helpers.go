package main

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baton-cluster/baton"
)

const (
	// moversMax migrations are asked for at once.
	moversMax = 2
	// moveEvery is the mean pause of a mover between two migrations.
	moveEvery = 150 * time.Millisecond
	// moveDeadline of one migration.
	moveDeadline = 5 * time.Second
	// recordEvery is how often the nodes' records are collected: a node that is
	// killed takes with it what was not.
	recordEvery = 2 * time.Second
)

// mover moves sessions between nodes, one after the other, until it is closed.
type mover struct {
	fleet  *fleet
	load   *load
	cancel context.CancelFunc
	wg     sync.WaitGroup

	moved   atomic.Int64
	aborted atomic.Int64

	mu      sync.Mutex
	avoided map[string]bool
}

func newMover(f *fleet, l *load, seed uint64) *mover {
	ctx, cancel := context.WithCancel(context.Background())
	m := &mover{fleet: f, load: l, cancel: cancel, avoided: map[string]bool{}}
	for i := range moversMax {
		rng := rand.New(rand.NewPCG(seed, uint64(1_000_000+i)))
		m.wg.Add(1)
		go func() {
			defer m.wg.Done()
			m.run(ctx, rng)
		}()
	}
	return m
}

func (m *mover) run(ctx context.Context, rng *rand.Rand) {
	for {
		t := time.NewTimer(time.Duration(rng.Int64N(int64(2 * moveEvery))))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		id := m.load.all[rng.IntN(len(m.load.all))].id
		to := m.target(rng, id)
		if to == "" {
			continue
		}
		err := m.fleet.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			ctx, cancel := context.WithTimeout(ctx, moveDeadline+askWithin)
			defer cancel()
			_, err := a.Migrate(ctx, baton.MigrateRequest{Session: id, To: to, Reason: "load_balancing", DeadlineUS: moveDeadline.Microseconds(), Priority: 3, By: "demo"})
			return err
		})
		if err == nil {
			m.moved.Add(1)
		} else if ctx.Err() == nil {
			m.aborted.Add(1)
		}
	}
}

// target picks a node that does not own the session now.
func (m *mover) target(rng *rand.Rand, id string) string {
	m.load.ledger.mu.Lock()
	owner := m.load.ledger.latest[id].owner
	m.load.ledger.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, n := range m.fleet.nodes {
		if n.name != owner && !m.avoided[n.name] {
			names = append(names, n.name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return names[rng.IntN(len(names))]
}

// avoid keeps the mover from choosing a node as a target, or no longer.
func (m *mover) avoid(node string, yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.avoided[node] = yes
}

// done is how many migrations were answered as done.
func (m *mover) done() int { return int(m.moved.Load()) }

func (m *mover) close() {
	m.cancel()
	m.wg.Wait()
}

// recorder collects the nodes' records of what they served.
type recorder struct {
	fleet  *fleet
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	servings []baton.Serving
}

func newRecorder(f *fleet) *recorder {
	ctx, cancel := context.WithCancel(context.Background())
	r := &recorder{fleet: f, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		t := time.NewTicker(recordEvery)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				r.now(ctx)
			}
		}
	}()
	return r
}

// now collects once. A node that does not answer is asked again later.
func (r *recorder) now(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	var more []baton.Serving
	err := r.fleet.ask(ctx, func(ctx context.Context, a *baton.Admin) (err error) {
		more, err = a.Servings(ctx)
		return err
	})
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.servings = mergeServings(r.servings, more)
}

func (r *recorder) all() []baton.Serving {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.servings
}

func (r *recorder) close() {
	r.cancel()
	<-r.done
}

// observers are clients, attached beside the load to shared sessions of one
// node, that do not turn away from a silent node.
type observers struct {
	ledger   *Ledger
	client   *baton.Client
	sessions []*baton.Session
	cancel   context.CancelFunc
	reads    sync.WaitGroup
}

// observerSilence is longer than any stall: an observer keeps waiting at the
// node that it knows.
const observerSilence = time.Minute

// observe attaches observers to shared sessions of n. Fewer than could be, even
// none, is no fault: they only sharpen the demo.
func (d *demo) observe(ctx context.Context, n *fleetNode) *observers {
	o := &observers{ledger: d.ledger}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	c, err := baton.Dial(ctx, baton.ClientConfig{Addrs: []string{n.user}, PKI: d.fleet.pki, Silence: observerSilence, RequestTimeout: demoMax})
	if err != nil {
		return o
	}
	o.client = c
	owned := d.ledger.owned(n.name)
	for _, k := range d.ledger.history().Keys {
		if _, here := owned[k.Session]; !here || !k.Shared || len(o.sessions) == observersMax {
			continue
		}
		secret, err := hex.DecodeString(k.Secret)
		if err != nil {
			continue
		}
		s, err := c.Resume(ctx, k.Session, secret)
		if err != nil {
			continue
		}
		if err := o.read(ctx, s); err == nil && s.Owner().Name == n.name {
			o.sessions = append(o.sessions, s)
		}
	}
	return o
}

func (o *observers) read(ctx context.Context, s *baton.Session) error {
	return o.ledger.do(s.ID(), kindCount, func() (int64, baton.Reply, error) {
		return readVersion(ctx, s, keyCounter)
	})
}

// ask begins a read of each session's counter. The requests go out to the
// stopped node; it finds them when it wakes up.
func (o *observers) ask(ctx context.Context) {
	ctx, o.cancel = context.WithCancel(ctx)
	for _, s := range o.sessions {
		o.reads.Add(1)
		go func() {
			defer o.reads.Done()
			_ = o.read(ctx, s)
		}()
	}
	// Time for the packets to leave; nothing depends on it but how sharp the
	// demo is.
	time.Sleep(paceFor)
}

// wait waits for the reads' answers.
func (o *observers) wait(limit time.Duration) bool {
	done := make(chan struct{})
	go func() { o.reads.Wait(); close(done) }()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		o.cancel()
		<-done
		return false
	}
}

func (o *observers) close() {
	if o.cancel != nil {
		o.cancel()
	}
	o.reads.Wait()
	if o.client != nil {
		_ = o.client.Close()
	}
}
