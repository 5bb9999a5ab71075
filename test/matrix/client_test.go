package matrix

import (
	"slices"
	"sync"
	"time"

	"github.com/baton-cluster/baton/wire"
)

const (
	// silence is how long requests wait before the owner counts as silent.
	silence = time.Second
	// outstandingMax is how many calls the client has out at once.
	outstandingMax = 3
	// busyFor is how long the client calls without a break; then it calls less
	// often, for what may still happen takes long.
	busyFor   = 120 * time.Millisecond
	busyEvery = 2 * time.Millisecond
	calmEvery = 100 * time.Millisecond
)

// client is a client instance as the library of rpcnet is one, by the rules of
// its core: what it does on each frame, and when it looks elsewhere. It calls
// "incr" and keeps a ledger of what it was told.
type client struct {
	w        *world
	secret   []byte
	open     *wire.OpenReq // until attached once
	first    string        // the node to ask first
	instance []byte

	mu       sync.Mutex
	events   []event
	wake     chan struct{}
	done     chan struct{}
	stopped  bool // no new calls
	left     bool // gone without a word
	paused   bool
	closing  bool // close the session
	calling  bool
	busyTill time.Duration
	acked    int // calls acknowledged
	issued   int
	ended    error
	serves   bool
	replies  []int // the ledger: what "incr" answered, by rising seq

	// What follows is the loop's own.
	epoch      uint64
	everServed bool
	serving    *route
	warm       *route
	attempt    *route
	frozen     bool
	frozenAt   time.Duration
	heardAt    time.Duration
	hunting    bool
	huntAt     time.Duration
	round      int
	hint       string
	avoid      string
	seq, last  uint64
	calls      []*incr
	nextCall   time.Duration
	leave      bool
	closedOn   *route
}

type event struct {
	link  *link
	frame *wire.ServerFrame // nil: the stream is lost
}

type route struct {
	link      *link
	node      string
	deadline  time.Duration // of an attempt
	migration uint64
}

// incr is one call.
type incr struct {
	seq, prev uint64
	attempt   uint32
	on        *route
	sentAt    time.Duration
	retryAt   time.Duration
}

func newClient(w *world, secret []byte, first string) *client {
	return &client{w: w, secret: secret, first: first, instance: fresh(16), wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// start runs the client until its session ends or it leaves.
func (c *client) start() {
	c.hunting = true
	c.w.wg.Go(func() {
		defer close(c.done)
		for c.w.ctx.Err() == nil {
			c.w.until(c.w.ctx, func() bool { return !c.isPaused() })
			if c.step() {
				return
			}
			t := time.NewTimer(c.pace())
			select {
			case <-c.wake:
			case <-t.C:
			case <-c.w.ctx.Done():
			}
			t.Stop()
		}
	})
}

func (c *client) pace() time.Duration {
	if c.w.now() < c.busyUntil() {
		return busyEvery
	}
	return 20 * time.Millisecond
}

func (c *client) busyUntil() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.busyTill
}

func (c *client) isPaused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.paused && !c.left
}

// set changes what the client is to do.
func (c *client) set(fn func()) {
	c.mu.Lock()
	fn()
	c.mu.Unlock()
	c.w.change(func() {})
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// call makes the client call from now on, at first without a break.
func (c *client) call() {
	c.set(func() { c.calling, c.busyTill = true, c.w.now()+busyFor })
}

func (c *client) counts() (acked, issued int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.acked, c.issued
}

func (c *client) isServed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.serves
}

func (c *client) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// take gets what came on a stream.
func (c *client) take(l *link, f *wire.ServerFrame) {
	c.mu.Lock()
	c.events = append(c.events, event{l, f})
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// step does all that is to be done now. True: it was the last.
func (c *client) step() bool {
	c.mu.Lock()
	events := c.events
	c.events = nil
	left, stopped, closing, calling := c.left, c.stopped, c.closing, c.calling && !c.stopped
	c.mu.Unlock()
	if left {
		return true
	}
	now := c.w.now()
	for _, e := range events {
		c.frame(now, e.link, e.frame)
		if c.err() != nil {
			return true
		}
	}
	for calling && now >= c.nextCall && len(c.calls) < outstandingMax {
		every := calmEvery
		if now < c.busyUntil() {
			every = busyEvery
		}
		c.nextCall = now + every
		c.seq++
		c.calls = append(c.calls, &incr{seq: c.seq, prev: c.last})
		c.last = c.seq
		c.mu.Lock()
		c.issued++
		c.mu.Unlock()
	}
	c.timeouts(now)
	c.flush(now)
	c.hunt(now)
	if r := c.outlet(); closing && r != nil && c.closedOn != r {
		c.closedOn = r
		r.link.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Close{Close: &wire.CloseReq{}}})
	}
	if stopped && len(c.calls) == 0 && c.serving != nil && !c.frozen && !c.leave {
		c.leave = true
		c.serving.link.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Detach{Detach: &wire.DetachReq{}}})
	}
	served := c.serving != nil
	c.mu.Lock()
	c.serves = served
	c.mu.Unlock()
	return false
}

func (c *client) finish(err error) {
	for _, r := range []*route{c.serving, c.warm, c.attempt} {
		c.drop(r)
	}
	c.mu.Lock()
	c.ended = err
	c.mu.Unlock()
}

func (c *client) drop(r *route) {
	if r != nil {
		r.link.hangUp()
	}
}

// outlet is the stream that calls go to now.
func (c *client) outlet() *route {
	if c.frozen {
		return c.warm
	}
	return c.serving
}

// flush sends what is to be sent, in order. What is behind a refused call waits
// until that goes again.
func (c *client) flush(now time.Duration) {
	r := c.outlet()
	if r == nil {
		return
	}
	for _, p := range c.calls {
		if p.retryAt > now {
			return
		}
		if p.retryAt == 0 && p.on == r {
			continue
		}
		p.on, p.sentAt, p.retryAt = r, now, 0
		p.attempt++
		r.link.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: &wire.Request{
			Seq: p.seq, Prev: p.prev, Ack: c.calls[0].seq, Attempt: p.attempt, Method: "incr", Payload: []byte("n"),
		}}})
	}
}

func (c *client) resend() {
	for _, p := range c.calls {
		p.on, p.retryAt = nil, 0
	}
}

// timeouts looks elsewhere when the owner or an attempt is silent for too long.
func (c *client) timeouts(now time.Duration) {
	if c.attempt != nil && now >= c.attempt.deadline {
		c.avoid = c.attempt.node
		c.failAttempt(now)
	}
	if c.serving == nil || c.hunting {
		return
	}
	since, waits := c.frozenAt, c.frozen
	for _, p := range c.calls {
		if !waits && p.on == c.serving && p.retryAt == 0 {
			since, waits = p.sentAt, true
		}
	}
	if waits && now-max(since, c.heardAt) >= silence {
		c.avoid, c.heardAt = c.serving.node, now
		c.goHunting(now, "", 0)
	}
}

func (c *client) goHunting(now time.Duration, hint string, wait time.Duration) {
	if !c.hunting {
		c.hunting, c.hint, c.huntAt, c.round = true, hint, now+wait, 0
	}
}

func (c *client) failAttempt(now time.Duration) {
	c.drop(c.attempt)
	c.attempt, c.hint = nil, ""
	c.round++
	c.huntAt = now + min(400*time.Millisecond, 10*time.Millisecond<<min(c.round, 6))
}

// hunt tries to attach somewhere.
func (c *client) hunt(now time.Duration) {
	if !c.hunting || c.attempt != nil || now < c.huntAt {
		return
	}
	node := c.hint
	if node == "" && c.round == 0 && c.serving == nil && !c.everServed {
		node = c.first
	}
	if node == "" {
		candidates := slices.DeleteFunc(slices.Clone(nodeNames), func(id string) bool { return id == c.avoid })
		node = candidates[c.round%len(candidates)]
	}
	f := &wire.ClientFrame{}
	if c.open != nil && !c.everServed {
		f.Kind = &wire.ClientFrame_Open{Open: c.open}
	} else {
		f.Kind = &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
			Version: wire.Version, Session: sessionID, Instance: c.instance, Secret: c.secret, Fresh: !c.everServed, Epoch: c.epoch,
		}}
	}
	c.w.logf("client dials %s", node)
	c.attempt = &route{node: node, deadline: now + silence, link: c.w.dial(node, f, c.take)}
}
