package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
)

// survivorAnswered bounds a call: however long a failover takes, each is to
// succeed in the end, and one that does not is told.
const survivorAnswered = time.Minute

// survivors are sessions that are called while their nodes die, and compare every
// answer with what it must be: each counts its own calls, one at a time.
type survivors struct {
	think   time.Duration // mean pause between two calls of a session
	clients []*baton.Client
	all     []*survivor

	lost, duplicated atomic.Int64
	calls, refused   atomic.Int64 // refused: calls that ended in an error
	mu               sync.Mutex
	unread           int    // sessions whose counter could not be compared in the end
	why              string // of the last refusal, or of a sum that was wrong
	wake             chan struct{}
	lanes            sync.WaitGroup
}

// survivor is one session. The owner's mu guards what changes.
type survivor struct {
	id       string
	s        *baton.Session
	want     int64 // calls answered so far, and those that counted though refused
	maybe    int64 // calls that were refused, and may have counted or not
	epoch    uint64
	node     string // that answered last
	servedAt time.Time
}

func newSurvivors(think time.Duration) *survivors {
	return &survivors{think: think, wake: make(chan struct{})}
}

// open opens n sessions over the clients, each at the node that place names.
func (v *survivors) open(ctx context.Context, n int, place func(i int) string) error {
	run := randomID()[:8]
	v.all = make([]*survivor, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4 * openersMax)
	for i := range n {
		g.Go(func() error {
			s, err := v.clients[i%len(v.clients)].Open(ctx, baton.OpenOptions{ID: fmt.Sprintf("survivor-%s-%d", run, i), TTL: time.Hour, Node: place(i)})
			if err != nil {
				return err
			}
			sv := &survivor{id: s.ID(), s: s}
			v.all[i] = sv
			v.call(ctx, sv)
			return ctx.Err()
		})
	}
	return g.Wait()
}

// run calls all sessions until ctx ends; wait returns when the last call has its
// answer.
func (v *survivors) run(ctx context.Context) {
	for i, sv := range v.all {
		rng := rand.New(rand.NewPCG(uint64(i), 0))
		v.lanes.Go(func() {
			for v.pause(ctx, rng) {
				v.call(context.WithoutCancel(ctx), sv)
			}
		})
	}
}

// pause waits a while, or until a node was killed.
func (v *survivors) pause(ctx context.Context, rng *rand.Rand) bool {
	v.mu.Lock()
	wake := v.wake
	v.mu.Unlock()
	t := time.NewTimer(time.Duration(rng.Int64N(int64(2 * v.think))))
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
	case <-ctx.Done():
		return false
	}
	return true
}

func (v *survivors) call(ctx context.Context, sv *survivor) {
	ctx, cancel := context.WithTimeout(ctx, survivorAnswered)
	defer cancel()
	sum, r, err := sv.s.Incr(ctx, keyCounter, 1)
	v.calls.Add(1)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		v.refused.Add(1)
		sv.maybe++
		v.why = fmt.Sprintf("%s: %v", sv.id, err)
		return
	}
	sv.want++
	v.compare(sv, sum)
	if r.Epoch > sv.epoch {
		sv.epoch, sv.servedAt = r.Epoch, time.Now()
	}
	sv.node = r.Node
}

// compare holds a session's counter against what it must be. v.mu is held.
func (v *survivors) compare(sv *survivor, sum int64) {
	if counted := min(sum-sv.want, sv.maybe); counted > 0 {
		sv.want += counted
		sv.maybe -= counted
	}
	if sum == sv.want {
		return
	}
	v.why = fmt.Sprintf("%s: the sum was %d after %d calls", sv.id, sum, sv.want)
	v.lost.Add(max(0, sv.want-sum))
	v.duplicated.Add(max(0, sum-sv.want))
	sv.want = sum
}

// ownedBy are the sessions whose last answer came from a node, with their epochs.
func (v *survivors) ownedBy(node string) map[*survivor]uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := map[*survivor]uint64{}
	for _, sv := range v.all {
		if sv.node == node {
			out[sv] = sv.epoch
		}
	}
	return out
}

// hurry makes every session call now.
func (v *survivors) hurry() {
	v.mu.Lock()
	defer v.mu.Unlock()
	close(v.wake)
	v.wake = make(chan struct{})
}

// served waits until all of owned have answered under a later epoch, and tells
// how long after since each did, in microseconds, and how many have not.
func (v *survivors) served(ctx context.Context, owned map[*survivor]uint64, since time.Time) (took []int64, missing int) {
	for {
		took, missing = took[:0], 0
		v.mu.Lock()
		for sv, epoch := range owned {
			if sv.epoch > epoch {
				took = append(took, sv.servedAt.Sub(since).Microseconds())
			} else {
				missing++
			}
		}
		v.mu.Unlock()
		if missing == 0 {
			return took, 0
		}
		select {
		case <-ctx.Done():
			return took, missing
		case <-time.After(pollEvery):
		}
	}
}

// finish waits for the last answers and compares each session's counter on record
// with what its client was told.
func (v *survivors) finish(ctx context.Context) {
	v.lanes.Wait()
	var g errgroup.Group
	g.SetLimit(4 * openersMax)
	for _, sv := range v.all {
		g.Go(func() error {
			sum, _, err := readVersion(ctx, sv.s, keyCounter)
			v.mu.Lock()
			defer v.mu.Unlock()
			if err != nil {
				v.unread++
				v.why = fmt.Sprintf("%s could not be read in the end: %v", sv.id, err)
				return nil
			}
			v.compare(sv, sum)
			return nil
		})
	}
	_ = g.Wait()
	for _, sv := range v.all {
		g.Go(func() error { _ = sv.s.Close(ctx); return nil }) // what is left expires
	}
	_ = g.Wait()
}

func (v *survivors) close() {
	for _, c := range v.clients {
		_ = c.Close()
	}
}

// reason is what went wrong last, "" if nothing did.
func (v *survivors) reason() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.why
}
