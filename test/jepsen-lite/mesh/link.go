package mesh

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// Policy is what a link does to what travels on it, in one direction.
// The zero Policy is a perfect link.
type Policy struct {
	// Blocked: packets are dropped, stream bytes are held until it is lifted
	// (as TCP's retransmissions would bring them in the end, late).
	Blocked bool
	// Delay and Jitter: packets wait Delay plus a random share of Jitter, and
	// so may overtake each other; stream bytes wait as long but stay in order.
	Delay, Jitter time.Duration
	// Dialled is a further delay of streams that the sending host dialled, and
	// only of those: what a leader replicates is late, while answers on streams
	// that the other side dialled are not.
	Dialled time.Duration
	// Loss and Dup are probabilities, 0 to 1, for a packet. Streams ignore them.
	Loss, Dup float64
	// Reorder is the probability that a packet is held back for ReorderBy, so that
	// those behind it overtake it. Streams ignore it.
	Reorder float64
	// Rate, if set, is how many bytes a second pass. Packets wait for up to queueMax
	// and are dropped beyond; streams wait as long as it takes.
	Rate int
}

const (
	// ReorderBy is longer than what lies between the packets of a burst, and than
	// QUIC waits for one that is missing.
	ReorderBy = 30 * time.Millisecond
	// queueMax is a router's queue.
	queueMax = 200 * time.Millisecond
)

// link is one ordered pair of hosts.
type link struct {
	mu      sync.Mutex
	policy  Policy
	changed chan struct{} // closed and replaced at each change of policy
	rng     *rand.Rand
	free    time.Time // when what was sent so far has passed, at the policy's rate
	stats   LinkStats
}

// LinkStats counts what a link did since the start.
type LinkStats struct {
	Packets, Dropped, Held uint64 // Held: stream chunks that met a block
}

func newLink(seed uint64, from, to string) *link {
	h := uint64(14695981039346656037)
	for _, b := range []byte(from + ">" + to) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return &link{changed: make(chan struct{}), rng: rand.New(rand.NewPCG(seed, h))}
}

func (l *link) set(p Policy) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.policy = p
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *link) get() Policy {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.policy
}

// packet decides one packet's fate: after how long each of its copies arrives,
// none if it is lost.
func (l *link) packet(size int, buf []time.Duration) []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Packets++
	p := l.policy
	if p.Blocked || p.Loss > 0 && l.rng.Float64() < p.Loss {
		l.stats.Dropped++
		return buf[:0]
	}
	now := time.Now()
	if p.Rate > 0 && l.free.Sub(now) > queueMax {
		l.stats.Dropped++
		return buf[:0]
	}
	passed := l.pass(p, now, size)
	d := l.wait(p)
	if p.Reorder > 0 && l.rng.Float64() < p.Reorder {
		d += ReorderBy
	}
	buf = append(buf[:0], passed+d)
	if p.Dup > 0 && l.rng.Float64() < p.Dup {
		buf = append(buf, passed+l.wait(p))
	}
	return buf
}

// pass is how long it takes until size bytes have passed at the policy's rate,
// behind what was sent before. l.mu is held.
func (l *link) pass(p Policy, now time.Time, size int) time.Duration {
	if p.Rate <= 0 {
		return 0
	}
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(size) * time.Second / time.Duration(p.Rate))
	return l.free.Sub(now)
}

func (l *link) wait(p Policy) time.Duration {
	d := p.Delay
	if p.Jitter > 0 {
		d += time.Duration(l.rng.Int64N(int64(p.Jitter)))
	}
	return d
}

// chunk returns how long stream bytes that were just read are under way.
func (l *link) chunk(size int, dialled bool) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.wait(l.policy) + l.pass(l.policy, time.Now(), size)
	if dialled {
		d += l.policy.Dialled
	}
	return d
}

// open waits until the link is not blocked. It reports false if ctx ended.
func (l *link) open(ctx context.Context) bool {
	held := false
	for {
		l.mu.Lock()
		if !l.policy.Blocked {
			l.mu.Unlock()
			return ctx.Err() == nil
		}
		if !held {
			held = true
			l.stats.Held++
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}
