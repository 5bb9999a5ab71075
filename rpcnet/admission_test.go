package rpcnet

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

func TestPlaces(t *testing.T) {
	p := places{max: 2}
	take := func(now time.Duration, want bool) uint64 {
		t.Helper()
		n, ok := p.take(now)
		if ok != want {
			t.Fatalf("at %v a place was given: %v", now, ok)
		}
		return n
	}
	a := take(ms, true)
	b := take(100*ms, true)
	take(200*ms, false)
	p.back(b)
	p.back(b) // twice is once
	c := take(300*ms, true)
	take(1000*ms, false)
	d := take(1001*ms, true) // the first was held for too long
	p.back(a)                // and is given back late
	take(1002*ms, false)
	p.back(d)
	p.back(c)
	take(1003*ms, true)
	take(1004*ms, true)
	take(1005*ms, false)
	take(2003*ms, true)
	if p.most != 2 || p.busy != 2 || len(p.held) > 3 {
		t.Errorf("%+v", p)
	}
}

// herd is a model of many clients' cores and of the one processor that their
// session's next owner has. Everything that arrives there is worked on at the same
// time, in equal shares, as goroutines are; so the more begins, the later all ends.
type herd struct {
	t       *testing.T
	now     time.Duration
	places  places
	clients []*herdClient
	work    []*herdWork
	dials   int // handshakes that the owner began
	vain    int // of those, given up by their client before they were done
	refused int
	others  int // dials to nodes that do not take the session
	served  int
}

type herdClient struct {
	c      *core
	routes map[int]*herdRoute
	served time.Duration

	connected bool // to b
}

type herdRoute struct {
	addr    string
	dropped bool
	stands  bool // and waits for its node to be the owner
}

// herdWork is one piece of work for the processor.
type herdWork struct {
	left  time.Duration
	until time.Duration // its client gives it up then
	done  func()
	gone  func()
}

const (
	herdStep      = ms
	herdHandshake = 3 * ms // of the processor
	herdAttach    = ms
	herdCall      = ms / 2
	herdFenced    = 1200 * ms // when the sessions have their next owner
)

// newHerd has n clients, attached at a, who were told of b, and of spread.
func newHerd(t *testing.T, n int, spread time.Duration) *herd {
	h := &herd{t: t, now: time.Minute, places: places{max: 128}}
	for i := range n {
		rng := rand.New(rand.NewPCG(uint64(i), 1))
		cl := &herdClient{routes: map[int]*herdRoute{}}
		s := newScript(t, func(c *coreConfig) {
			c.slot = rng.Float64()
			c.jitter = func(d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(max(1, d)))) }
			c.hears = func(route int) bool { return cl.routes[route] != nil && cl.routes[route].addr != "a:1" }
			c.book.next = 1
		})
		cl.c = s.c
		cl.c.start(h.now)
		cl.c.opened(h.now, 1)
		cl.c.frame(h.now, 1, foretoldFrame("a", 5, "b", spread))
		cl.c.take()
		cl.routes[1] = &herdRoute{addr: "a:1"}
		h.clients = append(h.clients, cl)
	}
	return h
}

// run kills a, has every client call, and ends when all are served or it has
// lasted too long.
func (h *herd) run(within time.Duration) {
	killed := h.now
	for _, cl := range h.clients {
		cl.c.ask(h.now, &call{method: "w"})
		h.carryOut(cl)
	}
	for h.served < len(h.clients) && h.now < killed+within {
		h.now += herdStep
		h.process()
		for _, cl := range h.clients {
			if cl.c.wake() > 0 && cl.c.wake() <= h.now {
				cl.c.tick(h.now)
				h.carryOut(cl)
			}
		}
		if h.now == killed+herdFenced {
			h.fenced()
		}
	}
}

// process gives the processor's time to all work alike.
func (h *herd) process() {
	if len(h.work) == 0 {
		return
	}
	share := max(1, herdStep/time.Duration(len(h.work)))
	work := h.work
	h.work = nil
	for _, w := range work {
		if w.left -= share; w.left <= 0 {
			w.done()
			continue
		}
		if w.until > 0 && w.until <= h.now && w.gone != nil {
			w.gone()
			w.gone = nil // the work is done all the same
			w.done = func() {}
		}
		h.work = append(h.work, w)
	}
}

func (h *herd) add(cost time.Duration, done func()) {
	h.work = append(h.work, &herdWork{left: cost, done: done})
}

func (h *herd) carryOut(cl *herdClient) {
	for _, a := range slices.Clone(cl.c.take()) {
		switch a.kind {
		case actDial:
			h.dial(cl, a.route, a.addr, a.crowd)
		case actSend:
			if r := cl.routes[a.route]; a.frame.GetRequest() != nil && r.addr == "b:1" {
				h.add(herdCall, func() { h.answer(cl, a.route, a.frame.GetRequest().GetSeq()) })
			}
		case actDrop:
			if r := cl.routes[a.route]; r != nil {
				r.dropped = true
			}
		}
	}
}

func (h *herd) dial(cl *herdClient, id int, addr string, crowd time.Duration) {
	r := &herdRoute{addr: addr}
	cl.routes[id] = r
	if addr != "b:1" {
		h.others++
		return // nobody there will do anything for the session
	}
	if cl.connected {
		cl.c.opened(h.now, id)
		h.add(herdAttach, func() { h.attach(cl, id) })
		h.carryOut(cl)
		return
	}
	place, ok := h.places.take(h.now)
	if !ok {
		h.refused++
		cl.c.lost(h.now, id, wire.Errorf(wire.Code_OVERLOADED, "refused"), false)
		h.carryOut(cl)
		return
	}
	h.dials++
	pool := newConnPool(poolConfig{quic: quicClientConfig(IdleTimeoutDefault), dialTimeout: DialTimeoutDefault})
	defer pool.close()
	h.work = append(h.work, &herdWork{
		left: herdHandshake, until: h.now + pool.patience(crowd > 0),
		gone: func() {
			h.vain++
			cl.c.lost(h.now, id, wire.Errorf(wire.Code_UNAVAILABLE, "no answer in time"), false)
			h.carryOut(cl)
		},
		done: func() {
			h.places.back(place)
			if r.dropped {
				h.vain++
				return
			}
			cl.connected = true
			cl.c.opened(h.now, id)
			h.carryOut(cl)
			h.add(herdAttach, func() { h.attach(cl, id) })
		},
	})
}

func (h *herd) attach(cl *herdClient, id int) {
	if h.now < time.Minute+herdFenced {
		cl.routes[id].stands = true
		cl.c.frame(h.now, id, standingFrame())
	} else {
		cl.c.frame(h.now, id, foretoldFrame("b", 6, "c", 0))
	}
	h.carryOut(cl)
}

// fenced is when b becomes the owner, and speaks to those who stand there.
func (h *herd) fenced() {
	for _, cl := range h.clients {
		for id, r := range cl.routes {
			if r.stands && !r.dropped {
				h.add(herdAttach, func() { h.attach(cl, id) })
			}
		}
	}
}

func (h *herd) answer(cl *herdClient, id int, seq uint64) {
	cl.c.frame(h.now, id, replyFrame(seq, 6, "done"))
	if h.carryOut(cl); cl.served == 0 {
		cl.served = h.now
		h.served++
	}
}

// TestHerd: more clients lose their node than the next one has processor time
// for, even though they were told to spread. None of its work is in vain, nobody
// asks a third node, and it is over when the work is done.
func TestHerd(t *testing.T) {
	const clients = 1000
	work := clients * (herdHandshake + herdAttach + herdCall)
	for _, spread := range []time.Duration{time.Second, 4 * time.Second, 12 * time.Second} {
		h := newHerd(t, clients, spread)
		h.run(2*work + 2*spread)
		t.Logf("spread %v: %d of %d clients served within %v (%v of work) by %d handshakes, %d in vain, %d turned away, %d dials to others, %d waited at most",
			spread, h.served, clients, h.now-time.Minute, work, h.dials, h.vain, h.refused, h.others, h.places.most)
		if h.served != clients || h.vain > 0 || h.others > 0 || h.dials > clients {
			t.Error("the crowd is not served, or makes work")
		}
		if h.places.most > h.places.max {
			t.Errorf("%d handshakes waited at once, %d may", h.places.most, h.places.max)
		}
	}
}

// Between them the acceptors and QUIC's own queue take whatever has a place, so
// that no handshake is refused when the work on it has been done.
func TestEveryPlaceIsAccepted(t *testing.T) {
	if HandshakesWaitingMaxDefault() > acceptors {
		t.Errorf("%d places, %d acceptors", HandshakesWaitingMaxDefault(), acceptors)
	}
}

// stoppedClock always tells the same time.
type stoppedClock struct{ seam.OSClock }

func (stoppedClock) Now() time.Duration { return time.Hour }

// A handshake that finds no place is refused at once, and a place is free again
// when QUIC has handed the connection over.
func TestHandshakesThatWaitAreBounded(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, err := NewServer(ServerConfig{
		Packet: pc, TLS: mgmtUser(t, mgmtIdentity(t, "n1")), Hello: func() *wire.HelloOK { return &wire.HelloOK{} },
		Serve: func(*Stream, *wire.ClientFrame) {}, HandshakesWaitingMax: 2, Clock: stoppedClock{},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = srv.Close(t.Context()) }()
	conf, err := pki.LoadClient(mgmtPKI())
	if err != nil {
		t.Fatal(err)
	}
	conf.NextProtos = []string{ALPNUser}
	dial := func() error {
		qc, err := quic.DialAddr(context.Background(), pc.LocalAddr().String(), conf, quicClientConfig(20*time.Second))
		if err == nil {
			t.Cleanup(func() { _ = qc.CloseWithError(0, "") })
		}
		return err
	}
	for range 2 {
		if err := dial(); err != nil {
			t.Fatal(err) // nobody accepts it, but there is a place
		}
	}
	if err := dial(); wire.CodeOf(streamErr(err)) != wire.Code_OVERLOADED {
		t.Fatalf("a third handshake found a place: %v", err)
	}
	if st := srv.Stats(); st.Refused == 0 || st.WaitingMost != 2 || st.WaitingMax != 2 {
		t.Errorf("%+v", st)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve() }()
	eventually(t, "there are places again", func() bool { return dial() == nil })
	_ = srv.Close(t.Context())
	if err := <-served; err != nil {
		t.Error(err)
	}
}
