package worker

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeLink is a client's stream.
type fakeLink struct {
	in    chan *wire.ClientFrame
	out   chan *wire.ServerFrame
	ended chan struct{} // by Bye
	gone  chan struct{} // by the client
	mu    sync.Mutex
	over  bool
	// shaking: the stream began in 0-RTT, and its handshake is not complete.
	shaking *handshake
}

// handshake is one that the test completes.
type handshake struct{ asked, done chan struct{} }

func newLink() *fakeLink {
	return &fakeLink{in: make(chan *wire.ClientFrame, 4096), out: make(chan *wire.ServerFrame, 4096), ended: make(chan struct{}), gone: make(chan struct{})}
}

func (l *fakeLink) Recv() (*wire.ClientFrame, error) {
	select {
	case <-l.ended:
		return nil, io.EOF
	default:
	}
	select { // what was sent before the client went is read first
	case f := <-l.in:
		return f, nil
	default:
	}
	select {
	case f := <-l.in:
		return f, nil
	case <-l.ended:
	case <-l.gone:
	}
	return nil, io.EOF
}

func (l *fakeLink) Send(f *wire.ServerFrame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return io.ErrClosedPipe
	}
	l.out <- f
	return nil
}

func (l *fakeLink) Bye(code wire.Code, message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.over = true
		l.out <- &wire.ServerFrame{Kind: &wire.ServerFrame_Bye{Bye: &wire.Bye{Code: code, Message: message}}}
		close(l.ended)
	}
}

func (l *fakeLink) Connection() *wire.Connection {
	return &wire.Connection{Alpn: "test/1", TlsVersion: 0x0304, Transport: &wire.Transport{MinRttUs: 7}}
}

func (l *fakeLink) Confirmed() error {
	if l.shaking == nil {
		return nil
	}
	close(l.shaking.asked)
	select {
	case <-l.shaking.done:
		return nil
	case <-l.gone:
		return io.EOF
	}
}

// world is a log and the workers on it.
type world struct {
	t       testing.TB
	log     *memLog
	clock   *fakeClock
	mux     *Mux
	workers map[string]*Worker
	procs   map[string]*process
	seals   map[string]*seals
	serving sync.WaitGroup
	clients []*client
	// transfer replaces the call between nodes, if set.
	transfer func(next func(context.Context) (*wire.TransferResp, error), req *wire.TransferReq) (*wire.TransferResp, error)
	block    chan struct{} // handlers of "block" wait for it
	running  chan struct{} // and say so here
	runs     sync.Map      // payload → times run, of "count"
	// leases are what the workers hold, if anything.
	leases leases
}

// leases answers for the lease of each worker; one that is not in it holds none.
type leases struct {
	mu    sync.Mutex
	left  map[string]time.Duration
	asked int
	inc   uint64 // the last that was asked about
}

func (l *leases) grant(worker string, left time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left == nil {
		l.left = map[string]time.Duration{}
	}
	l.left[worker] = left
}

func (l *leases) of(worker string) func(uint64) (time.Duration, bool) {
	return func(inc uint64) (time.Duration, bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.asked++
		l.inc = inc
		left, ok := l.left[worker]
		return left, ok
	}
}

func (l *leases) calls() (n int, inc uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked, l.inc
}

// seals are a node's seal keys: those of the generations in it.
type seals struct {
	mu  sync.Mutex
	has []uint64
}

func (s *seals) set(generations ...uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.has = generations
}

func (s *seals) Newest() migrate.SealKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sealKeyOf(slices.Max(s.has))
}

func (s *seals) Of(generation uint64) (migrate.SealKey, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sealKeyOf(generation), slices.Contains(s.has, generation)
}

func sealKeyOf(generation uint64) migrate.SealKey {
	return migrate.SealKey{Generation: generation, Key: bytes.Repeat([]byte{byte(generation + 1)}, migrate.SealKeyBytes)}
}

func newWorld(t testing.TB, names ...string) *world {
	w := &world{t: t, log: newMemLog(), clock: newFakeClock(), workers: map[string]*Worker{}, procs: map[string]*process{}, block: make(chan struct{}), running: make(chan struct{}, 64)}
	w.mux = testMux(w)
	w.must(&wire.Command{Kind: &wire.Command_InitCluster{InitCluster: &wire.InitCluster{ClusterId: []byte("cluster-of-tests")}}})
	for _, name := range names {
		res := w.register(name, 0)
		p := &process{}
		w.procs[name] = p
		wk := New(Config{
			ID: name, Self: func() *wire.NodeInfo { return &wire.NodeInfo{Id: name, Name: name} }, ClusterID: func() []byte { return []byte("cluster-of-tests") }, Log: processLog{w.log, p}, View: w.log.View,
			Peers: peers{w}, App: w.mux, Clock: w.clock, Rand: rand.Reader, Seals: w.sealsOf(name), Lease: w.leases.of(name),
		})
		wk.SetIncarnation(res.GetEpoch())
		w.workers[name] = wk
		w.log.mu.Lock()
		w.log.observers = append(w.log.observers, func(e []store.Event) { p.deliver(fromLocal, func() { wk.Observe(e) }) })
		w.log.mu.Unlock()
	}
	t.Cleanup(w.close)
	return w
}

func (w *world) sealsOf(name string) *seals {
	if w.seals == nil {
		w.seals = map[string]*seals{}
	}
	w.seals[name] = &seals{has: []uint64{0}}
	return w.seals[name]
}

func (w *world) register(name string, predecessor uint64) *wire.Result {
	return w.moved(name, predecessor, name)
}

// moved registers a worker that is found at another host now.
func (w *world) moved(name string, predecessor uint64, host string) *wire.Result {
	return w.must(&wire.Command{Kind: &wire.Command_RegisterWorker{RegisterWorker: &wire.RegisterWorker{
		Id: name, Name: name, Nonce: fresh(16), Predecessor: predecessor, Endpoint: &wire.Endpoint{Host: host, UserPort: 1, MgmtPort: 2},
		Place: &wire.Place{Boot: "boot", Inode: 7, Local: true},
	}}})
}

// must commits a command that is not refused.
func (w *world) must(c *wire.Command) *wire.Result {
	w.t.Helper()
	res := w.log.commit(c)[0]
	if res.GetCode() != wire.Code_OK {
		w.t.Fatalf("%v refused: %v", c, res.GetCode())
	}
	return res
}

func (w *world) close() {
	for _, wk := range w.workers {
		wk.Close()
		wk.Close()
	}
	w.log.close()
	for _, c := range w.clients {
		c.hangUp()
	}
	w.serving.Wait()
	w.log.flush()
	for _, wk := range w.workers {
		wk.Wait()
	}
	w.log.stop()
	w.checkServings()
	for name, wk := range w.workers {
		if n, of := wk.streams.running.Load(), len(wk.streams.of); n != 0 || of != 0 {
			w.t.Errorf("%s is closed, with %d handlers of streams and streams of %d sessions", name, n, of)
		}
	}
}

// checkServings fails if intervals of different epochs overlap (P1).
func (w *world) checkServings() {
	bySession := map[string][]Served{}
	for _, wk := range w.workers {
		for _, s := range wk.Servings() {
			bySession[s.Session] = append(bySession[s.Session], s)
		}
	}
	for id, list := range bySession {
		sort.Slice(list, func(i, j int) bool {
			return list[i].Epoch < list[j].Epoch || list[i].Epoch == list[j].Epoch && list[i].First < list[j].First
		})
		for i, s := range list {
			if s.First > s.Last || i > 0 && list[i-1].Epoch < s.Epoch && list[i-1].Last >= s.First {
				w.t.Errorf("servings of %s overlap: %+v", id, list)
			}
		}
	}
}

// peers calls the other workers directly.
type peers struct{ w *world }

func (p peers) Assign(_ context.Context, id string) (*wire.Location, error) {
	loc := p.location(id)
	for _, name := range slices.Sorted(maps.Keys(p.w.workers)) {
		wk := p.w.workers[name]
		if wk.Incarnation() == 0 {
			continue
		}
		res := p.w.log.commit(&wire.Command{Kind: &wire.Command_Assign{Assign: &wire.Assign{Session: id, Replaces: loc.GetEpoch(), Owner: wk.owner(), Reason: "test"}}})[0]
		if res.GetCode() == wire.Code_OK {
			return p.location(id), nil
		}
	}
	return nil, wire.Errorf(wire.Code_NO_OWNER, "none")
}

func (p peers) location(id string) (loc *wire.Location) {
	p.w.log.View(func(st *store.Store) { loc = st.Location(id) })
	return loc
}

func (p peers) Transfer(ctx context.Context, addr string, req *wire.TransferReq) (*wire.TransferResp, error) {
	next := func(ctx context.Context) (*wire.TransferResp, error) { return p.w.workers[addr].Transfer(ctx, req) }
	if p.w.transfer != nil {
		return p.w.transfer(next, req)
	}
	return next(ctx)
}

func (p peers) Relay(link Link, first *wire.ClientFrame, to *wire.NodeInfo) error {
	if a := first.GetAttach(); a != nil {
		a.Relay, a.RelayTo = false, ""
	}
	p.w.workers[to.GetId()].Serve(link, first)
	return nil
}

// testMux: put "k=v", get "k", push "text", fail, panic, big, block, count.
func testMux(w *world) *Mux {
	m := NewMux()
	m.Handle("put", func(tx *Tx, p []byte) ([]byte, error) {
		k, v, _ := strings.Cut(string(p), "=")
		return []byte(k), tx.Put(k, []byte(v))
	})
	m.Handle("incr", func(tx *Tx, p []byte) ([]byte, error) {
		n, err := tx.Incr(string(p), 1)
		return []byte(fmt.Sprint(n)), err
	})
	m.Handle("push", func(tx *Tx, p []byte) ([]byte, error) {
		return nil, tx.Push(p)
	})
	m.Handle("fail", func(tx *Tx, p []byte) ([]byte, error) {
		_ = tx.Put("failed", p)
		_ = tx.Push(p)
		return nil, errors.New("no: " + string(p))
	})
	m.Handle("panic", func(tx *Tx, p []byte) ([]byte, error) {
		_ = tx.Put("failed", p)
		panic("on purpose")
	})
	m.Handle("big", func(tx *Tx, p []byte) ([]byte, error) {
		_ = tx.Put("failed", p)
		return make([]byte, wire.ReplyBytesMax), nil
	})
	m.Handle("block", func(tx *Tx, p []byte) ([]byte, error) {
		w.running <- struct{}{}
		select {
		case <-w.block:
		case <-tx.Context().Done():
		}
		return p, tx.Put("blocked", p)
	})
	m.HandleRead("get", func(v *View, p []byte) ([]byte, error) {
		val, ok := v.Get(string(p))
		if !ok {
			return []byte("none"), nil
		}
		return val, nil
	})
	m.HandleRead("blockread", func(v *View, p []byte) ([]byte, error) {
		w.running <- struct{}{}
		select {
		case <-w.block:
		case <-v.Context().Done():
		}
		val, _ := v.Get(string(p))
		return val, nil
	})
	m.HandleRead("readpanic", func(*View, []byte) ([]byte, error) { panic("on purpose") })
	return m
}

func fresh(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// client is a client instance with one stream.
type client struct {
	w        *world
	t        testing.TB
	session  string
	secret   []byte
	instance []byte
	link     *fakeLink
	last     uint64 // last write's seq
	seq      uint64
	once     *sync.Once
	served   chan struct{} // closed when the worker is done with the stream
	kept     []*wire.ServerFrame
	at       *wire.Attached // the latest
}

func (w *world) newClient(session string, secret []byte) *client {
	return &client{w: w, t: w.t, session: session, secret: secret, instance: fresh(16)}
}

// serve gives a new stream to a worker.
func (c *client) serve(worker string, first *wire.ClientFrame) {
	c.serveOn(newLink(), worker, first)
}

func (c *client) serveOn(link *fakeLink, worker string, first *wire.ClientFrame) {
	c.link, c.once, c.kept, c.served = link, new(sync.Once), nil, make(chan struct{})
	alias := *c
	c.w.clients = append(c.w.clients, &alias)
	c.w.serving.Add(1)
	go func(link *fakeLink, served chan struct{}) {
		defer c.w.serving.Done()
		defer close(served)
		c.w.workers[worker].Serve(processLink{link, c.w.procs[worker]}, first)
	}(c.link, c.served)
}

func (c *client) hangUp() { c.once.Do(func() { close(c.link.gone) }) }

// open opens a session at worker and waits until it serves.
func (w *world) open(worker, session string, shared bool) *client {
	w.t.Helper()
	c := w.newClient(session, fresh(32))
	c.serve(worker, &wire.ClientFrame{Kind: &wire.ClientFrame_Open{Open: &wire.OpenReq{
		Session: session, Secret: c.secret, Nonce: fresh(16), Instance: c.instance, Shared: shared,
	}}})
	c.attached()
	return c
}

func (c *client) attach(worker string, isFresh bool) {
	c.serve(worker, &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
		Session: c.session, Instance: c.instance, Secret: c.secret, Fresh: isFresh,
	}}})
}

func (c *client) send(f *wire.ClientFrame) { c.link.in <- f }

func (c *client) request(seq, prev uint64, method, payload string) {
	c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: &wire.Request{
		Seq: seq, Prev: prev, Method: method, Payload: []byte(payload), Ack: 1,
	}}})
}

// write sends the next write and returns its seq.
func (c *client) write(method, payload string) uint64 {
	c.seq++
	prev := c.last
	c.last = c.seq
	c.request(c.seq, prev, method, payload)
	return c.seq
}

// query sends a query and returns its seq.
func (c *client) query(method, payload string) uint64 {
	return c.queryWith(&wire.Request{Method: method, Payload: []byte(payload)})
}

func (c *client) queryWith(r *wire.Request) uint64 {
	c.seq++
	r.Seq, r.Prev, r.ReadOnly = c.seq, c.last, true
	c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: r}})
	return c.seq
}

// next is the next frame from the worker.
func (c *client) next() *wire.ServerFrame {
	c.t.Helper()
	if len(c.kept) > 0 {
		f := c.kept[0]
		c.kept = c.kept[1:]
		return f
	}
	select {
	case f := <-c.link.out:
		return f
	case <-time.After(patience):
		c.t.Fatal("no frame came")
		return nil
	}
}

// until reads to the first frame that pick takes; a Bye that it does not take
// fails the test.
func (c *client) until(what string, pick func(*wire.ServerFrame) bool) *wire.ServerFrame {
	c.t.Helper()
	for {
		f := c.next()
		if pick(f) {
			return f
		}
		if f.GetBye() != nil {
			c.t.Fatalf("waiting for %s: %v", what, f)
		}
	}
}

func (c *client) attached() *wire.Attached {
	c.t.Helper()
	c.at = c.until("Attached", func(f *wire.ServerFrame) bool { return f.GetAttached() != nil }).GetAttached()
	return c.at
}

func (c *client) response(seq uint64) *wire.Response {
	c.t.Helper()
	return c.until(fmt.Sprintf("response %d", seq), func(f *wire.ServerFrame) bool { return f.GetResponse().GetSeq() == seq && seq != 0 }).GetResponse()
}

func (c *client) bye(code wire.Code) {
	c.t.Helper()
	f := c.until("Bye", func(f *wire.ServerFrame) bool { return f.GetBye() != nil })
	if f.GetBye().GetCode() != code {
		c.t.Fatalf("Bye %v, want %v", f.GetBye(), code)
	}
}

// ok waits for a settled good answer with this payload.
func (c *client) ok(seq uint64, payload string) {
	c.t.Helper()
	r := c.response(seq)
	if r.GetCode() != wire.Code_OK || !r.GetSettled() || string(r.GetPayload()) != payload {
		c.t.Fatalf("response %v, want %q", r, payload)
	}
}

// silent fails if a frame is there.
func (c *client) silent() {
	c.t.Helper()
	select {
	case f := <-c.link.out:
		c.t.Fatalf("unexpected frame: %v", f)
	default:
	}
}

// idle waits until the worker's actor of the session rests.
func (w *world) idle(worker, session string) {
	w.t.Helper()
	w.log.flush()
	eventually(w.t, "the session rests", func() bool {
		s := w.workers[worker].lookup(session)
		if s == nil {
			return true
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return !s.busy && len(s.ops) == 0
	})
}

// taken waits until the worker has read all that the client sent, and has dealt
// with it as far as it can.
func (c *client) taken() {
	c.t.Helper()
	eventually(c.t, "frames are taken", func() bool { return len(c.link.in) == 0 })
	c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Confirm{Confirm: &wire.Confirm{}}})
	eventually(c.t, "frames are taken", func() bool { return len(c.link.in) == 0 })
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (w *world) row(session string) (row *wire.SessionRow) {
	w.log.View(func(st *store.Store) { row = st.Row(session) })
	return row
}

// state is the committed value of a key.
func (w *world) state(session, key string) string {
	for _, c := range w.row(session).GetState() {
		if c.GetKey() == key {
			return string(c.GetValue())
		}
	}
	return "none"
}

// ackedSend sends a write that acknowledges all but the latest window of them.
func (c *client) ackedSend() {
	c.seq++
	ack := uint64(1)
	if c.seq > groupRequestsMax {
		ack = c.seq - groupRequestsMax
	}
	c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: &wire.Request{
		Seq: c.seq, Prev: c.last, Ack: ack, Method: "put", Payload: []byte("key=value"),
	}}})
	c.last = c.seq
}

func (c *client) mustAnswer() {
	if r := c.next().GetResponse(); r.GetCode() != wire.Code_OK || !r.GetSettled() {
		c.t.Fatalf("%v", r)
	}
}

func (c *client) ackedWrite() {
	c.ackedSend()
	c.mustAnswer()
}
