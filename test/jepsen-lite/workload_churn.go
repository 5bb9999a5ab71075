package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/baton-cluster/baton"

	"github.com/baton-cluster/baton/test/jepsen-lite/control"
)

// Churn: sessions are opened, closed, opened again under the same id, left, and
// left to expire.

const (
	churnTTL = 4 * time.Second
	// early is the share of a TTL within which nothing may expire: log time goes by
	// the leader's clock, which may be fast.
	early = 1 / control.RateMax
)

// within reports that nothing that was left at some time can have expired yet.
func within(left time.Time) bool {
	ttl := churnTTL
	return time.Since(left) < time.Duration(early*float64(ttl))
}

func isGone(err error) bool {
	switch baton.CodeOf(err).Label() {
	case "session_closed", "session_expired", "unknown_session":
		return true
	}
	return false
}

// gone is a session that must not be there in the end, and why.
type gone struct {
	id      string
	expires bool // else it was closed
}

// churn lives one short life after the other, all of them under ids of the lane's.
func (n *lane) churn(ctx context.Context, rng *rand.Rand, wg *sync.WaitGroup) {
	for hand := range 2 {
		wg.Add(1)
		rng := rand.New(rand.NewPCG(rng.Uint64(), uint64(hand)))
		go func() {
			defer wg.Done()
			for i := 0; !n.spent(ctx); i++ {
				n.life(fmt.Sprintf("%s-%d-%d", n.id, hand, i), rng)
			}
		}()
	}
}

// life is one session's. Whatever is not known to have worked ends it without a
// verdict.
func (n *lane) life(id string, rng *rand.Rand) {
	s, ok := n.born(id, 0)
	if !ok {
		pause(context.Background(), 100*time.Millisecond)
		return
	}
	switch rng.IntN(3) {
	case 0:
		n.closeAndReopen(id, s)
	case 1:
		n.leaveAndReturn(id, s, rng)
	default:
		if n.leave(s) {
			n.load.expect(gone{id, true})
		}
	}
}

// born opens a session, which must be new, and writes to it.
func (n *lane) born(id string, after uint64) (*baton.Session, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), opLimit)
	defer cancel()
	began := time.Now()
	s, err := n.load.clients[n.home].Open(ctx, baton.OpenOptions{ID: id, TTL: churnTTL})
	if err != nil {
		// Opened, and not attached in time, it expires: then there is none of that id.
		if ctx.Err() == nil && (within(began) || !isGone(err)) {
			n.load.complain("churn", id, "opening it: "+err.Error())
		}
		return nil, false
	}
	if s.Epoch() <= after {
		n.load.complain("epochs", id, fmt.Sprintf("opened again, its epoch is %d, not above %d", s.Epoch(), after))
	}
	sum, _, err := s.Incr(ctx, "n", 1)
	if err == nil && sum != 1 {
		n.load.complain("churn", id, "a new session counts from "+strconv.FormatInt(sum, 10))
	}
	n.load.count(func(t *tally) { t.Lives++ })
	return s, err == nil
}

func (n *lane) closeAndReopen(id string, s *baton.Session) {
	ctx, cancel := context.WithTimeout(context.Background(), opLimit)
	defer cancel()
	epoch := s.Epoch()
	if s.Close(ctx) != nil {
		return
	}
	host := n.load.clients[(n.home+1)%len(n.load.clients)]
	if _, err := host.Resume(ctx, id, s.Secret()); err == nil {
		n.load.complain("revived", id, "it was closed, and then resumed")
	} else if ctx.Err() == nil && !isGone(err) {
		n.load.complain("churn", id, "resuming it after its close: "+err.Error())
	}
	again, ok := n.born(id, epoch)
	if !ok {
		return
	}
	if again.Close(ctx) == nil {
		n.load.expect(gone{id, false})
	}
}

// leave detaches.
func (n *lane) leave(s *baton.Session) bool {
	ctx, cancel := context.WithTimeout(context.Background(), opLimit)
	defer cancel()
	return s.Detach(ctx) == nil
}

// leaveAndReturn comes back within the TTL: the session must be as it was.
func (n *lane) leaveAndReturn(id string, s *baton.Session, rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), opLimit)
	defer cancel()
	left := time.Now()
	if !n.leave(s) {
		return
	}
	pause(ctx, time.Duration(rng.Int64N(int64(churnTTL/2))))
	again, err := n.load.clients[rng.IntN(len(n.load.clients))].Resume(ctx, id, s.Secret())
	switch {
	case err == nil:
	case within(left) && ctx.Err() == nil:
		n.load.complain("expired early", id, fmt.Sprintf("%v after it was left, with a TTL of %v: %v", time.Since(left), churnTTL, err))
		return
	default:
		return
	}
	if v, err := again.Get(ctx, "n"); err == nil && string(v.Value) != "1" {
		n.load.complain("lost", id, fmt.Sprintf("its counter was 1, and is %q after it was left and resumed", v.Value))
	}
	if again.Close(ctx) == nil {
		n.load.expect(gone{id, false})
	}
}

func (l *load) expect(g gone) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = append(l.gone, g)
}

// tally counts what the ledgers do not.
type tally struct {
	Lives       int            `json:"lives"` // of short-lived sessions
	Streams     int            `json:"streams"`
	StreamBytes int64          `json:"stream_bytes"`
	StreamsCut  int            `json:"streams_cut"` // ended before their time, with a reason
	Thefts      map[string]int `json:"thefts"`      // attempts, by the answer
}

func (l *load) count(fn func(*tally)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fn(&l.tally)
}
