package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
)

const (
	// clientsPerNode connections are shared by the sessions.
	clientsPerNode = 2
	// incrLanes increment a session's counter at once, so that several writes of
	// one session are outstanding when something breaks.
	incrLanes = 2
	// think is the mean pause between two calls of a lane. It leaves a two-core
	// machine room for the cluster itself.
	think = 60 * time.Millisecond
	// sharedEvery: each so many-th session is open to several clients.
	sharedEvery = 3
	// fillerMax bounds what a put carries besides its version, in bytes.
	fillerMax = 200
	// openersMax bounds how many sessions are opened at once.
	openersMax = 16
)

// load is clients on every node that use sessions without pause, and enter in
// the ledger whatever they see.
type load struct {
	ledger  *Ledger
	clients []*baton.Client
	all     []*loadSession

	pace atomic.Int32
	// stop ends the lanes after their present call; cancel ends the calls too.
	stop   chan struct{}
	cancel context.CancelFunc
	lanes  sync.WaitGroup
}

// How fast lanes call.
const (
	steady int32 = iota
	// hurry: without thinking, and mostly pushes, so that as much as possible is
	// outstanding when a node dies.
	hurry
	// hush: not at all, so that nothing is outstanding when a node is stopped: on
	// waking up it cannot tell from unanswered proposals that time has passed.
	hush
)

// loadSession is one session and the client that holds it.
type loadSession struct {
	id     string
	s      *baton.Session
	shared bool
	pushes atomic.Int64
}

func newLoad(l *Ledger) *load { return &load{ledger: l, stop: make(chan struct{})} }

// open dials clients through every node and opens n sessions over them.
func (l *load) open(ctx context.Context, f *fleet, n int) error {
	for i := range fleetSize * clientsPerNode {
		c, err := baton.Dial(ctx, baton.ClientConfig{Addrs: f.users(i % fleetSize), PKI: f.pki, RequestTimeout: demoMax})
		if err != nil {
			return fmt.Errorf("a client of node %s: %w", f.nodes[i%fleetSize].name, err)
		}
		l.clients = append(l.clients, c)
	}
	l.all = make([]*loadSession, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(openersMax)
	for i := range n {
		g.Go(func() error {
			ls := &loadSession{id: fmt.Sprintf("demo-%03d", i), shared: i%sharedEvery == sharedEvery-1}
			s, err := l.clients[i%len(l.clients)].Open(ctx, baton.OpenOptions{ID: ls.id, TTL: time.Hour, Shared: ls.shared})
			if err != nil {
				return fmt.Errorf("opening %s: %w", ls.id, err)
			}
			ls.s = s
			l.watch(ls)
			l.ledger.addKey(SessionKey{ls.id, hex.EncodeToString(s.Secret()), ls.shared})
			l.all[i] = ls
			return nil
		})
	}
	return g.Wait()
}

// watch enters the session's pushes and moves.
func (l *load) watch(ls *loadSession) {
	ls.s.OnPush(func(m baton.Push) {
		v, _ := parseVersion(m.Payload)
		l.ledger.addDelivery(Delivery{ls.id, m.Seq, m.Epoch, v})
	})
	ls.s.OnMove(func(m baton.Move) {
		l.ledger.addMove(MoveSeen{ls.id, m.Epoch, m.From.Name, m.To.Name, m.Planned, m.Pause.Microseconds()})
	})
}

// run starts the lanes. Calls have no deadline of their own: each is to succeed
// in the end, however long a node is away.
func (l *load) run(seed uint64) {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	for i, ls := range l.all {
		for lane := range incrLanes + 1 {
			rng := rand.New(rand.NewPCG(seed, uint64(i*(incrLanes+1)+lane)))
			l.lanes.Add(1)
			go func() {
				defer l.lanes.Done()
				if lane < incrLanes {
					l.incrLane(ctx, ls, rng)
				} else {
					l.mixedLane(ctx, ls, rng)
				}
			}()
		}
	}
}

// pause waits a while and reports whether to go on.
func (l *load) pause(rng *rand.Rand) bool {
	for {
		d := time.Duration(rng.Int64N(int64(2 * think)))
		if l.pace.Load() == hurry {
			d = 0
		}
		t := time.NewTimer(d)
		select {
		case <-l.stop:
			t.Stop()
			return false
		case <-t.C:
			if l.pace.Load() != hush {
				return true
			}
		}
	}
}

// over reports whether a session is beyond use: going on would only repeat the
// error.
func over(err error) bool {
	if err == nil {
		return false
	}
	var typed *baton.Error
	return errors.Is(err, context.Canceled) || errors.As(err, &typed) && !typed.Retryable()
}

func (l *load) incrLane(ctx context.Context, ls *loadSession, rng *rand.Rand) {
	for l.pause(rng) {
		var err error
		if l.pace.Load() == hurry && rng.IntN(4) > 0 {
			// A push that is applied twice shows at once. A counter may hide it: what
			// is committed is the sum.
			err = l.push(ctx, ls)
		} else {
			err = l.ledger.do(ls.id, kindIncr, func() (int64, baton.Reply, error) {
				return ls.s.Incr(ctx, keyCounter, 1)
			})
		}
		if over(err) {
			return
		}
	}
}

// push asks for a durable push that no other request asks for.
func (l *load) push(ctx context.Context, ls *loadSession) error {
	n := ls.pushes.Add(1)
	return l.ledger.do(ls.id, kindPush, func() (int64, baton.Reply, error) {
		r, err := ls.s.Push(ctx, versionBytes(n, 0))
		return n, r, err
	})
}

// mixedLane writes the register, reads both, and asks for pushes.
func (l *load) mixedLane(ctx context.Context, ls *loadSession, rng *rand.Rand) {
	version := int64(0)
	for l.pause(rng) {
		var err error
		what := rng.IntN(8)
		if l.pace.Load() == hurry && what < 6 {
			what = 7
		}
		switch what {
		case 0, 1, 2:
			version++
			value := versionBytes(version, rng.IntN(fillerMax))
			err = l.ledger.do(ls.id, kindPut, func() (int64, baton.Reply, error) {
				r, err := ls.s.Put(ctx, keyRegister, value)
				return version, r, err
			})
		case 3, 4:
			err = l.ledger.do(ls.id, kindGet, func() (int64, baton.Reply, error) {
				return readVersion(ctx, ls.s, keyRegister)
			})
		case 5, 6:
			err = l.ledger.do(ls.id, kindCount, func() (int64, baton.Reply, error) {
				return readVersion(ctx, ls.s, keyCounter)
			})
		default:
			err = l.push(ctx, ls)
		}
		if over(err) {
			return
		}
	}
}

// settle ends the load and waits until every call has its answer. It reports
// false if that took longer than limit; the rest is cancelled and stands in the
// ledger as unanswered.
func (l *load) settle(limit time.Duration) bool {
	close(l.stop)
	done := make(chan struct{})
	go func() { l.lanes.Wait(); close(done) }()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
		l.cancel()
		return true
	case <-t.C:
		l.cancel()
		<-done
		return false
	}
}

// detach leaves all sessions, so that others can read them undisturbed.
func (l *load) detach(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(openersMax)
	for _, ls := range l.all {
		// A session that cannot be left is displaced by its reader.
		g.Go(func() error { _ = ls.s.Detach(ctx); return nil })
	}
	_ = g.Wait()
}

// close ends the lanes, if they still run, and the clients.
func (l *load) close() {
	if l.cancel != nil {
		l.cancel()
		select {
		case <-l.stop:
		default:
			close(l.stop)
		}
		l.lanes.Wait()
	}
	for _, c := range l.clients {
		_ = c.Close()
	}
}

// versionBytes is a value that carries a number, and filler bytes.
func versionBytes(v int64, filler int) []byte {
	out := strconv.AppendInt(nil, v, 10)
	out = append(out, ' ')
	return append(out, bytes.Repeat([]byte{'x'}, filler)...)
}

// parseVersion reads the number that a value begins with.
func parseVersion(b []byte) (int64, error) {
	head, _, _ := bytes.Cut(b, []byte{' '})
	return strconv.ParseInt(string(head), 10, 64)
}

// readVersion reads a key that holds a number. A key that nobody has written
// counts as 0.
func readVersion(ctx context.Context, s *baton.Session, key string, options ...baton.QueryOption) (int64, baton.Reply, error) {
	v, err := s.Get(ctx, key, options...)
	if err != nil {
		return 0, baton.Reply{}, err
	}
	r := baton.Reply{Epoch: v.Epoch, Change: v.Index, Node: v.Owner, Leased: v.Leased, At: v.At}
	if !v.Found {
		return 0, r, nil
	}
	n, err := parseVersion(v.Value)
	return n, r, err
}
