package rpcnet

import (
	"time"

	"github.com/baton-cluster/baton/wire"
)

const (
	// hopsMax bounds the redirects followed in one go; two nodes may each think
	// that the other owns the session for a moment.
	hopsMax = 4
	// huntMin and huntMax bound the wait between attempts to attach.
	huntMin = 10 * time.Millisecond
	huntMax = 400 * time.Millisecond
	// crowdMin and crowdMax bound it after a refusal because others came at once.
	crowdMin = 100 * time.Millisecond
	crowdMax = 2 * time.Second
	// quietMax bounds how often the silence limit doubles while the cluster keeps
	// saying that the owner is the one we wait for: its handler is slow.
	quietMax = 3
)

// core is the client's side of one session without any IO: events and the time
// go in through its methods, actions come out of take. It decides which requests
// are out, on which stream, and where to attach. It is not safe for concurrent
// use; Session is its runner.
//
// A session has up to four streams, here called routes. serving is where the
// owner answers. attempt is where the core is trying to attach, because nothing
// serves or because what serves has fallen silent. warm leads to the target of a
// migration that the owner announced. stand.route waits at the node that takes the
// session if the owner is lost.
//
//	lost, silent       attempt      Attached: becomes serving
//	Pivot              warm         Attached: becomes serving
//	foretold           stand.route  Attached: becomes serving
//	Frozen             requests go to warm instead of serving
//	Bounced            warm is dropped; requests wait
//	Unfrozen           requests go to serving again
//
// Whenever another stream becomes the one that requests go to, everything
// unanswered is sent on it again, in order: the owner's dedup window makes that
// harmless. Epochs only rise: what comes from a lower one is ignored.
type core struct {
	requests
	cfg  coreConfig
	book *book

	epoch      uint64         // highest seen
	trusted    uint64         // the last for which a suspicion was ended
	owner      *wire.NodeInfo // as of the latest Attached
	token      string         // likewise: what byte streams show
	attached   bool           // an Attached was received once
	misfits    []string       // addresses that refused the client before
	ended      error          // why nothing goes any more
	leaving    leaving
	frameLimit int

	nextRoute int
	serving   *route
	warm      *route
	stand     standby
	frozen    bool // the owner takes no more requests, from frozenAt
	frozenAt  time.Duration
	hunt      hunt
	goneAt    time.Duration // when service was lost, 0: it was not
	lastHeard time.Duration
	// listenedAt is when the core last began to listen on the serving route, to go by
	// what it hears.
	listenedAt time.Duration
	quiet      int // consecutive silences

	received  uint64 // highest push taken from the wire
	pushNext  uint64 // by the first Attached: the first push that this client must get
	delivered uint64 // highest push that the application has had
	pushAcked uint64
	pushAckAt time.Duration

	due     time.Duration // when tick is needed, 0: never
	actions []action
}

// leaving is what the application wants of the session's end.
type leaving uint8

const (
	staying leaving = iota
	detaching
	closing
)

type coreConfig struct {
	session  string
	secret   []byte
	instance []byte
	open     *wire.OpenReq // set: the session is to be opened first
	prefer   string        // open it at this node (id or name), if known
	cluster  func() []byte
	relay    bool          // reach the owner through relays only
	silence  time.Duration // how long requests wait before the owner counts as silent
	suspect  time.Duration // how long a node that did not answer is avoided
	book     *book
	standby  bool                              // keep a stream to the successor
	slot     float64                           // this client's place in [0, 1) among those that lose their owner
	jitter   func(time.Duration) time.Duration // uniform in [0, d)
	boot     func() time.Duration              // the clock that goes on while the machine sleeps
	// hears reports whether anything has come from a route's node since actListen, or
	// since its stream began; nil: that is not known, and who is silent is gone.
	hears func(route int) bool
	// rtt is the round trip to a route's node, as it was lately; nil: not known.
	rtt func(route int) time.Duration
}

// route is one stream, dialled or being dialled.
type route struct {
	id       int
	addr     string // the node at its near end
	relay    bool   // that node forwards it
	opened   bool   // its first frame is on its way
	asOpen   bool   // its first frame was an OpenReq
	serving  bool
	silent   bool          // nothing came back
	stands   bool          // an attempt that may stand by instead of being redirected
	deadline time.Duration // for the answer to its first frame
	let      int           // how often that was put off, as its node lives
	// Of a warm route.
	migration uint64
	target    *wire.NodeInfo
	token     []byte
	epoch     uint64 // the source's
	warmed    bool   // the target has answered
	again     bool   // the way was tried before
}

// hunt is the search for a node to attach at.
type hunt struct {
	on      bool
	attempt *route
	nextAt  time.Duration
	round   int            // failures so far
	hops    int            // redirects followed since the last failure
	hint    *wire.NodeInfo // the owner, by the last redirect
	via     string         // who said so
	avoid   string         // where requests fell silent
	busy    bool           // the node asked last is well, and takes nobody just now: ask it again
	lastErr error
	// A relay to relayAddr failed; not again before relayAgain.
	relayAddr  string
	relayAgain time.Duration
}

func newCore(cfg coreConfig) *core {
	c := &core{cfg: cfg, book: cfg.book, frameLimit: wire.FrameBytesMax}
	c.bySeq = map[uint64]*call{}
	return c
}

func (c *core) act(a action) { c.actions = append(c.actions, a) }

// take returns what is to be done, in order. It is valid until the next event.
func (c *core) take() []action {
	a := c.actions
	c.actions = c.actions[:0]
	return a
}

// ownerName is what replies call the owner: its name, or its id if it has none.
func (c *core) ownerName() string {
	if n := c.owner.GetName(); n != "" {
		return n
	}
	return c.owner.GetId()
}

// backoff is a wait after n failures: doubling, and random in its upper half, so
// that clients who failed together do not come back together.
func (c *core) backoff(n int, least, most time.Duration) time.Duration {
	d := most
	if n < 16 {
		d = min(most, least<<max(0, n-1))
	}
	return d/2 + c.cfg.jitter(d/2+1)
}

// outlet is the route that requests go to now, nil if they have to wait.
func (c *core) outlet() *route {
	if c.ended != nil {
		return nil
	}
	if c.frozen {
		if c.warm != nil && c.warm.opened {
			return c.warm
		}
		return nil
	}
	return c.serving
}

// start begins the first hunt.
func (c *core) start(now time.Duration) { c.goHunting(now, nil, 0, "") }

// goHunting looks for the owner, in wait from now. hint says who it may be, avoid
// which node to ask last.
func (c *core) goHunting(now time.Duration, hint *wire.NodeInfo, wait time.Duration, avoid string) {
	if c.ended != nil || c.hunt.on {
		return
	}
	c.hunt = hunt{on: true, hint: hint, avoid: avoid, nextAt: now + wait, lastErr: c.hunt.lastErr}
	if c.goneAt == 0 {
		c.goneAt = now
		c.joinCrowd(now)
	}
	c.stepHunt(now)
}

// reroute looks elsewhere because the owner says that it is none.
func (c *core) reroute(now time.Duration) {
	if c.serving != nil {
		c.goHunting(now, nil, 0, "")
	}
}

// stepHunt starts the next attempt if its time has come.
func (c *core) stepHunt(now time.Duration) {
	h := &c.hunt
	if !h.on || h.attempt != nil {
		return
	}
	if now < h.nextAt {
		c.due = minDue(c.due, h.nextAt)
		return
	}
	if c.crowded(now) {
		h.nextAt = now + c.cfg.silence/2
		c.due = minDue(c.due, h.nextAt)
		return
	}
	addr, relay, relayTo := c.choose(now)
	h.busy = false
	r := c.newRoute(addr, relay)
	h.attempt = r
	f := &wire.ClientFrame{}
	if o := c.cfg.open; o != nil && !c.attached && !relay {
		r.asOpen = true
		o.ClusterId = c.cfg.cluster()
		f.Kind = &wire.ClientFrame_Open{Open: o}
	} else {
		a := c.attachReq(relay, relayTo)
		r.stands = c.attached && !relay && c.stand.route == nil && addr == nodeAddr(c.stand.next)
		a.Standby = r.stands
		f.Kind = &wire.ClientFrame_Attach{Attach: a}
	}
	c.act(action{kind: actDial, route: r.id, addr: addr, frame: f, crowd: c.inCrowd(now)})
}

func (c *core) newRoute(addr string, relay bool) *route {
	c.nextRoute++
	return &route{id: c.nextRoute, addr: addr, relay: relay}
}

func (c *core) attachReq(relay bool, relayTo string) *wire.AttachReq {
	return &wire.AttachReq{
		Version: wire.Version, ClusterId: c.cfg.cluster(), Session: c.cfg.session, Instance: c.cfg.instance,
		Secret: c.cfg.secret, Fresh: !c.attached, Epoch: c.epoch, PushAck: c.delivered, Relay: relay, RelayTo: relayTo,
	}
}

// choose says whom to ask next: the owner, if one was named; through the node
// that named it, if the owner does not answer us; else the next known node.
func (c *core) choose(now time.Duration) (addr string, relay bool, relayTo string) {
	h := &c.hunt
	owner := nodeAddr(h.hint)
	if c.cfg.relay {
		if owner == "" || h.via == "" {
			h.via = c.book.pickSeed(now, h.avoid)
		}
		// Opening is the one thing that a relay cannot forward.
		return h.via, c.cfg.open == nil || c.attached || owner != "", h.hint.GetId()
	}
	if owner != "" {
		if !c.book.suspected(owner, now) {
			return owner, false, ""
		}
		if c.mayRelay(now, owner) {
			return h.via, true, h.hint.GetId()
		}
		h.hint = nil
	}
	if c.attached {
		if addr, relay, relayTo = c.chooseSuccessor(now); addr != "" {
			return addr, relay, relayTo
		}
	}
	if c.cfg.prefer != "" && !c.attached && h.round == 0 {
		if addr := c.book.find(c.cfg.prefer); addr != "" {
			return addr, false, ""
		}
	}
	waits := ""
	if c.stand.standing {
		waits = nodeAddr(c.stand.next)
	}
	addr, fresh := c.book.pick(now, h.avoid, waits)
	if !fresh && waits != "" {
		addr, _ = c.book.pick(now, h.avoid) // it lives, and the others may not
	}
	return addr, false, ""
}

// mayRelay reports whether to reach owner, which does not answer us, through the
// node that named it. At a first attachment that is at once: something stands
// between us and the owner. Later the owner has probably crashed, and a relay to
// it would only delay us until its successor is known; so a while must pass.
func (c *core) mayRelay(now time.Duration, owner string) bool {
	h := &c.hunt
	if h.via == "" || h.via == owner || h.relayAddr == owner && now < h.relayAgain {
		return false
	}
	return !c.attached || now-c.goneAt >= c.cfg.silence
}

// failAttempt ends the current attempt. In wait from now, or after a backoff
// that grows, comes the next one.
func (c *core) failAttempt(now time.Duration, err error, wait time.Duration, atOnce bool) {
	h := &c.hunt
	r := h.attempt
	h.attempt = nil
	h.lastErr = err
	h.round++
	h.hops = 0
	c.act(action{kind: actAttempt, attempt: Attempt{Addr: r.addr, Relay: r.relay, Err: err}})
	c.act(action{kind: actDrop, route: r.id, silent: r.silent})
	if c.serving != nil && c.lastHeard > c.goneAt && !c.waitingLong(now) {
		c.hunt = hunt{} // the silence was broken meanwhile
		c.goneAt = 0
		c.due = minDue(c.due, now+c.silenceLimit())
		return
	}
	if !atOnce {
		wait = max(wait, c.backoff(h.round, huntMin, huntMax))
	}
	h.nextAt = now + wait
	c.stepHunt(now)
}

// unanswered ends an attempt that got no answer: the node is avoided for a
// while, and others are asked at once as long as there are any.
func (c *core) unanswered(now time.Duration, err error) {
	h := &c.hunt
	r := h.attempt
	direct := nodeAddr(h.hint) == r.addr
	if r.relay {
		h.relayAddr, h.relayAgain = nodeAddr(h.hint), now+c.cfg.suspect
		if c.cfg.relay {
			c.book.suspect(r.addr, now+c.cfg.suspect)
		}
		h.hint = nil
		c.failAttempt(now, err, 0, false)
		return
	}
	if h.busy = wire.CodeOf(err) == wire.Code_OVERLOADED; h.busy {
		// It is well, and many come at once: so they come again, spread, and over the
		// longer the more they are.
		c.failAttempt(now, err, c.backoff(h.round+1, crowdMin, max(crowdMax, c.inCrowd(now)/2)), false)
		return
	}
	c.book.suspect(r.addr, now+c.cfg.suspect)
	if direct {
		c.failAttempt(now, err, 0, c.mayRelay(now, r.addr))
		return
	}
	_, others := c.book.pick(now, r.addr, h.avoid)
	c.failAttempt(now, err, 0, others && h.round < 8)
}

// end ends the session: every call is answered with why.
func (c *core) end(why error) {
	if c.ended != nil {
		return
	}
	c.ended = why
	for _, list := range [][]*call{c.waitWrite, c.waitRead, c.order} {
		for _, p := range list {
			c.release(p, Reply{}, why)
		}
	}
	c.requests = requests{nextSeq: c.nextSeq, lastWrite: c.lastWrite, bySeq: map[uint64]*call{}}
	for _, r := range []*route{c.serving, c.warm, c.hunt.attempt, c.stand.route} {
		if r != nil {
			c.act(action{kind: actDrop, route: r.id})
		}
	}
	c.serving, c.warm, c.hunt, c.stand = nil, nil, hunt{}, standby{}
	c.due = 0
	c.act(action{kind: actEnd})
}

// leave ends the session as the application wants it: with what is sent on the
// route that serves, or on the next one that does.
func (c *core) leave(how leaving) {
	if c.ended != nil {
		return
	}
	c.leaving = max(c.leaving, how)
	c.sendLeave()
}

func (c *core) sendLeave() {
	r := c.outlet()
	if r == nil {
		return
	}
	switch c.leaving {
	case detaching:
		c.act(action{kind: actSend, route: r.id, frame: &wire.ClientFrame{Kind: &wire.ClientFrame_Detach{Detach: &wire.DetachReq{}}}})
	case closing:
		c.act(action{kind: actSend, route: r.id, frame: &wire.ClientFrame{Kind: &wire.ClientFrame_Close{Close: &wire.CloseReq{}}}})
	}
}

// tick is due when wake says so; earlier or later does no harm.
func (c *core) tick(now time.Duration) {
	c.due = 0
	if c.ended != nil {
		return
	}
	due := c.tickCalls(now)
	if c.ended != nil {
		return
	}
	due = minDue(due, c.tickAttempt(now))
	due = minDue(due, c.tickStandby(now))
	c.stepHunt(now)
	due = minDue(due, c.tickSilence(now))
	if c.pushAckAt > 0 {
		if c.pushAckAt <= now {
			c.sendPushAck()
		} else {
			due = minDue(due, c.pushAckAt)
		}
	}
	c.due = minDue(c.due, due)
}

// wake is when tick is next needed; 0 means never.
func (c *core) wake() time.Duration { return c.due }

// gotPushed tells the core that the application has had the push seq.
func (c *core) gotPushed(now time.Duration, seq uint64) {
	c.delivered = max(c.delivered, seq)
	if c.pushAckAt == 0 && c.delivered > c.pushAcked {
		c.pushAckAt = now + pushAckDelay
		c.due = minDue(c.due, c.pushAckAt)
	}
}

// tellPushes is called when another stream, or the owner anew, takes what is sent: what
// was said of pushes before may not have come to the log. Where it has, the owner
// proposes nothing.
func (c *core) tellPushes(now time.Duration) {
	c.pushAcked = 0
	c.gotPushed(now, c.delivered)
}

func (c *core) sendPushAck() {
	c.pushAckAt = 0
	if c.delivered > c.pushAcked {
		c.sendAck()
	}
}

// sendAck tells the owner what has been received.
func (c *core) sendAck() {
	r := c.outlet()
	if r == nil {
		return
	}
	c.pushAcked = c.delivered
	c.act(action{kind: actSend, route: r.id, frame: &wire.ClientFrame{Kind: &wire.ClientFrame_PushAck{
		PushAck: &wire.PushAck{Seq: c.delivered, Ack: c.ack()}}}})
}
