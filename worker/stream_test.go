package worker

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/bulk"
	"github.com/baton-cluster/baton/wire"
)

// withStreams registers stream methods:
//
//	mirror   resumable: writes back what it reads, and acknowledges that
//	blocks   resumable: the same, in blocks of blockBytes; what it has of a block is
//	         not acknowledged
//	hoard    resumable: reads and acknowledges nothing
//	fragile  not resumable: mirrors
//	stubborn resumable: does not return until w.block is closed
//	done     returns an error at once
func withStreams(w *world) {
	w.mux.HandleStream("mirror", func(st *ServerStream) error {
		w.runs.Store(st.Fence().Epoch, true)
		return mirror(st)
	}, Resumable())
	w.mux.HandleStream("blocks", blocks, Resumable())
	w.mux.HandleStream("hoard", func(st *ServerStream) error {
		_, err := io.Copy(io.Discard, st)
		return err
	}, Resumable())
	w.mux.HandleStream("fragile", func(st *ServerStream) error {
		_, err := io.Copy(st, st)
		return err
	})
	w.mux.HandleStream("stubborn", func(st *ServerStream) error {
		w.running <- struct{}{}
		<-w.block
		return st.cause()
	}, Resumable())
	w.mux.HandleStream("done", func(*ServerStream) error { return wire.Errorf(wire.Code_HANDLER_ERROR, "done") })
	w.mux.HandleStream("spanic", func(*ServerStream) error { panic("on purpose") })
}

const blockBytes = 10_000

func blocks(st *ServerStream) error {
	block := make([]byte, blockBytes)
	for {
		n, err := io.ReadFull(st, block)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			_, err = st.Write(block[:n])
			return err
		}
		if err != nil {
			return err
		}
		if _, err := st.Write(block); err != nil {
			return err
		}
		if err := st.Ack(st.ReadOffset(), nil); err != nil {
			return err
		}
	}
}

func mirror(st *ServerStream) error {
	cookie, again := st.Resumed()
	if want := fmt.Sprint(st.ReadOffset()); again && st.ReadOffset() > 0 && string(cookie) != want {
		return wire.Errorf(wire.Code_HANDLER_ERROR, "resumed at %s with cookie %q", want, cookie)
	}
	buf := make([]byte, 1000)
	for {
		n, rerr := st.Read(buf)
		to := st.ReadOffset() - uint64(n)
		k, werr := st.Write(buf[:n])
		to += uint64(k)
		if err := st.Ack(to, fmt.Append(nil, to)); err != nil {
			return err
		}
		switch {
		case rerr == io.EOF:
			return nil
		case rerr != nil:
			return rerr
		case werr != nil:
			return werr
		}
	}
}

// flow is a client's end of a byte stream.
type flow struct {
	c    *client // its link is the flow's
	req  *wire.StreamReq
	in   bulk.Receiver
	out  bulk.Sender
	got  []byte
	fin  *wire.StreamData
	sent int
	// asked is the last StreamCommit, encoded.
	asked []byte
}

var flowIDs struct {
	sync.Mutex
	last uint64
}

// flow begins a byte stream at a worker.
func (c *client) flow(worker, method string) *flow {
	f := &flow{req: &wire.StreamReq{Session: c.session, Instance: c.instance, Method: method}}
	flowIDs.Lock()
	flowIDs.last++
	f.req.Stream = flowIDs.last
	flowIDs.Unlock()
	f.connect(c, worker)
	return f
}

// connect sends the first frame on a new link, as the client whose attachment is c.
func (f *flow) connect(c *client, worker string) {
	link := *c
	f.c = &link
	f.req.Token, f.req.Received, f.req.Read = c.at.GetStreamToken(), f.in.Next(), f.in.Tell()
	if f.req.Born == 0 {
		f.req.Born = c.at.GetEpoch()
	}
	req := wire.StreamReq{
		Session: f.req.Session, Instance: f.req.Instance, Token: f.req.Token, Stream: f.req.Stream, Method: f.req.Method, Argument: f.req.Argument,
		Opened: f.req.Opened, Born: f.req.Born, Received: f.req.Received, Read: f.req.Read,
	}
	f.c.serve(worker, &wire.ClientFrame{Kind: &wire.ClientFrame_Stream{Stream: &req}})
}

// opened waits until the node has taken the stream up.
func (f *flow) opened() *wire.StreamOpened {
	f.c.t.Helper()
	o := f.c.until("StreamOpened", func(s *wire.ServerFrame) bool { return s.GetStreamOpened() != nil }).GetStreamOpened()
	f.req.Opened = true
	if err := f.out.Ack(o.GetAcked()); err != nil {
		f.c.t.Fatal(err)
	}
	if err := f.out.Rewind(o.GetReceived()); err != nil {
		f.c.t.Fatal(err)
	}
	f.pump()
	return o
}

func (f *flow) pump() {
	for {
		c, ok := f.out.Next()
		if !ok {
			return
		}
		f.c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_StreamData{StreamData: &wire.StreamData{Offset: c.Offset, Payload: bytes.Clone(c.Data), Fin: c.Fin}}})
	}
}

// text is what flows carry from offset on.
func text(from, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte((from + i) * 31 >> 3)
	}
	return b
}

func (f *flow) write(n int) {
	f.c.t.Helper()
	if k := f.out.Write(text(f.sent, n)); k != n {
		f.c.t.Fatalf("the window takes %d of %d bytes", k, n)
	}
	f.sent += n
	f.pump()
}

func (f *flow) finish() {
	f.out.Finish()
	f.pump()
}

// take takes the next frame, and reads what came.
func (f *flow) take() *wire.Bye {
	f.c.t.Helper()
	s := f.c.next()
	switch {
	case s.GetStreamData() != nil:
		d := s.GetStreamData()
		if err := f.in.Take(bulk.Chunk{Offset: d.GetOffset(), Data: d.GetPayload(), Fin: d.GetFin()}); err != nil {
			f.c.t.Fatal(err)
		}
		if d.GetFin() {
			f.fin = d
		}
		buf := make([]byte, bulk.WindowBytes)
		n, _ := f.in.Read(buf)
		_ = f.in.Ack(f.in.ReadTo())
		f.got = append(f.got, buf[:n]...)
	case s.GetStreamAck() != nil:
		if err := f.out.Ack(s.GetStreamAck().GetOffset()); err != nil {
			f.c.t.Fatal(err)
		}
	case s.GetStreamCommit() != nil:
		f.asked, _ = proto.Marshal(s.GetStreamCommit())
	case s.GetBye() != nil:
		return s.GetBye()
	default:
		f.c.t.Fatalf("unexpected frame: %v", s)
	}
	return nil
}

// mirrored waits until n bytes in all have come back, and checks them.
func (f *flow) mirrored(n int) {
	f.c.t.Helper()
	for len(f.got) < n {
		if b := f.take(); b != nil {
			f.c.t.Fatalf("after %d bytes: %v", len(f.got), b)
		}
	}
	if !bytes.Equal(f.got, text(0, n)) {
		f.c.t.Fatalf("%d bytes came back, and are not those that were sent", len(f.got))
	}
}

// ended waits for the handler's end, and lets the worker forget the stream.
func (f *flow) ended(code wire.Code) {
	f.c.t.Helper()
	for f.fin == nil {
		if b := f.take(); b != nil {
			f.c.t.Fatalf("instead of the handler's end: %v", b)
		}
	}
	if f.fin.GetCode() != code {
		f.c.t.Fatalf("the handler ended with %v, want %v", f.fin, code)
	}
	f.c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_StreamAck{StreamAck: &wire.StreamAck{Offset: f.in.Next(), Done: true}}})
	f.bye(wire.Code_OK)
}

// bye waits for the end of the link.
func (f *flow) bye(code wire.Code) {
	f.c.t.Helper()
	for {
		if b := f.take(); b != nil {
			if b.GetCode() != code {
				f.c.t.Fatalf("bye %v, want %v", b, code)
			}
			return
		}
	}
}

func (w *world) streamsGone(worker string) {
	w.t.Helper()
	eventually(w.t, worker+" keeps no streams", func() bool { return w.noStreams(worker) })
}

func (w *world) noStreams(worker string) bool {
	t := &w.workers[worker].streams
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.of) == 0 && t.running.Load() == 0
}

// stopping waits until the streams of a session are being stopped.
func (w *world) stopping(worker, session string) {
	w.t.Helper()
	t := &w.workers[worker].streams
	eventually(w.t, "streams are stopped", func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.of[session] != nil && t.of[session].migration != 0
	})
}

// read waits until the handler has read so many bytes.
func (w *world) read(worker string, f *flow, n uint64) {
	w.t.Helper()
	t := &w.workers[worker].streams
	t.mu.Lock()
	st := t.of[f.req.Session].byKey[streamKey{string(f.req.Instance), f.req.Stream}]
	t.mu.Unlock()
	eventually(w.t, "it is read", func() bool {
		st.mu.Lock()
		defer st.mu.Unlock()
		return st.in.ReadTo() == n
	})
}

// hangsUp waits until the worker has noticed.
func (c *client) hangsUp(worker string) {
	c.t.Helper()
	c.hangUp()
	eventually(c.t, "the client is detached", func() bool {
		s := c.w.workers[worker].lookup(c.session)
		if s == nil {
			return true
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.queues[string(c.instance)] == nil
	})
	c.w.idle(worker, c.session)
}

func streamWorld(t *testing.T, names ...string) *world {
	w := newWorld(t, names...)
	withStreams(w)
	return w
}

func TestStreamGoesOnOverAnotherConnection(t *testing.T) {
	w := streamWorld(t, "a")
	c := w.open("a", "s", false)
	f := c.flow("a", "mirror")
	f.opened()
	f.write(50_000)
	f.mirrored(50_000)
	for i := range 5 { // the connection breaks, with bytes on it each way
		f.write(20_000)
		if i%2 == 0 {
			f.c.hangUp()
		}
		f.connect(c, "a")
		f.opened()
		f.mirrored(50_000 + 20_000*(i+1))
	}
	f.finish()
	f.ended(wire.Code_OK)
	w.streamsGone("a")
}

// TestStreamIsAnAttachmentsOwn: nobody else can open one, and asking costs nothing.
func TestStreamIsAnAttachmentsOwn(t *testing.T) {
	w := streamWorld(t, "a")
	c, other := w.open("a", "s", false), w.open("a", "t", false)
	good := c.flow("a", "mirror")
	good.opened()
	for name, edit := range map[string]func(*client){
		"a stranger":                     func(x *client) { x.at = &wire.Attached{Epoch: c.at.GetEpoch(), StreamToken: fresh(16)} },
		"one without a token":            func(x *client) { x.at = &wire.Attached{Epoch: c.at.GetEpoch()} },
		"another instance":               func(x *client) { x.instance = fresh(16) },
		"another session's client":       func(x *client) { x.at, x.instance = other.at, other.instance },
		"one who names another session":  func(x *client) { x.session = "t" },
		"one who names none that exists": func(x *client) { x.session = "none" },
	} {
		x := *c
		edit(&x)
		f := &flow{req: &wire.StreamReq{Session: x.session, Instance: x.instance, Method: "mirror", Stream: 99}}
		f.connect(&x, "a")
		if b := f.take(); b.GetCode() != wire.Code_NOT_ATTACHED {
			t.Errorf("%s: %v", name, b)
		}
	}
	if of := w.workers["a"].streams.of; len(of) != 1 || len(of["s"].byKey) != 1 {
		t.Errorf("asking has left something behind: %v", of)
	}
	// Who is displaced loses what is open, and opens nothing.
	next := w.newClient("s", c.secret)
	next.attach("a", true)
	next.attached()
	good.bye(wire.Code_DISPLACED)
	f := c.flow("a", "mirror")
	f.bye(wire.Code_NOT_ATTACHED)
	w.streamsGone("a")
	// An attachment's end ends its token: a copy of it is good for nothing.
	token := next.at
	next.hangsUp("a")
	next.at = token
	f = next.flow("a", "mirror")
	f.bye(wire.Code_NOT_ATTACHED)
}

func TestStreamsAreBounded(t *testing.T) {
	w := streamWorld(t, "a")
	c := w.open("a", "s", false)
	for range wire.StreamsPerSessionMax {
		c.flow("a", "mirror").opened()
	}
	c.flow("a", "mirror").bye(wire.Code_TOO_MANY)
	c.flow("a", "none such").bye(wire.Code_UNKNOWN_METHOD)
	d := w.open("a", "t", false)
	w.workers["a"].streams.running.Add(streamsMax)
	d.flow("a", "mirror").bye(wire.Code_TOO_MANY)
	w.workers["a"].streams.running.Add(-streamsMax)
	f := d.flow("a", "hoard")
	f.opened()
	// A client that does not keep to the window, and a handler that does not
	// acknowledge: both are told.
	f.write(bulk.WindowBytes)
	f.ended(wire.Code_BAD_REQUEST)
	f = d.flow("a", "stubborn")
	f.opened()
	for off := uint64(0); off <= bulk.WindowBytes; off += bulk.ChunkBytesMax {
		f.c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_StreamData{StreamData: &wire.StreamData{Offset: off, Payload: make([]byte, bulk.ChunkBytesMax)}}})
	}
	f.bye(wire.Code_BAD_REQUEST)
	close(w.block)
}

func TestStreamHandlersEnd(t *testing.T) {
	w := streamWorld(t, "a")
	c := w.open("a", "s", false)
	f := c.flow("a", "done")
	f.opened()
	f.ended(wire.Code_HANDLER_ERROR)
	f = c.flow("a", "spanic")
	f.opened()
	f.ended(wire.Code_HANDLER_PANIC)
	f = c.flow("a", "mirror")
	f.opened()
	f.c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_StreamCancel{StreamCancel: &wire.StreamCancel{}}})
	f.bye(wire.Code_CANCELLED)
	w.streamsGone("a")
	// A client that is away for too long.
	f = c.flow("a", "mirror")
	f.opened()
	f.c.hangUp()
	w.clock.waitFor(t, streamAloneTime/4, func() bool { return w.noStreams("a") })
	f.connect(c, "a")
	f.bye(wire.Code_STREAM_LOST)
	w.streamsGone("a")
	// The client leaves, or closes the session.
	f = c.flow("a", "mirror")
	f.opened()
	c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Detach{Detach: &wire.DetachReq{}}})
	f.bye(wire.Code_NOT_ATTACHED)
	c.attach("a", false)
	c.attached()
	f = c.flow("a", "mirror")
	f.opened()
	c.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Close{Close: &wire.CloseReq{}}})
	f.bye(wire.Code_SESSION_CLOSED)
	w.streamsGone("a")
}

// TestStreamOutlivesItsClientsConnection: the client attaches anew in the same
// epoch and finds its streams.
func TestStreamOutlivesItsClientsConnection(t *testing.T) {
	w := streamWorld(t, "a")
	c := w.open("a", "s", false)
	f := c.flow("a", "mirror")
	f.opened()
	f.write(1000)
	f.mirrored(1000)
	c.hangsUp("a")
	f.bye(wire.Code_RETRY) // nothing is served without an attachment
	c.attach("a", false)
	c.attached()
	f.connect(c, "a")
	f.opened()
	f.write(1000)
	f.mirrored(2000)
}

// TestStreamMoves with its session, with bytes on their way in both directions;
// and a move that is called off starts the handler again where it was.
func TestStreamMoves(t *testing.T) {
	for _, off := range []bool{false, true} {
		t.Run(fmt.Sprintf("calledOff=%v", off), func(t *testing.T) {
			w := streamWorld(t, "a", "b")
			c := w.open("a", "s", false)
			f := c.flow("a", "mirror")
			f.opened()
			f.write(100_000)
			f.mirrored(30_000) // the rest is on its way
			g := c.flow("a", "blocks")
			g.opened()
			g.write(2*blockBytes + blockBytes/2)
			g.mirrored(2 * blockBytes) // half a block is read, and not acknowledged
			w.read("a", g, 2*blockBytes+blockBytes/2)
			mv := w.begin("s", "a", "b")
			warm := mv.invite(c)
			pivot := w.log.hold(isPivot)
			ch := mv.handover(c)
			p := pivot.next(t)
			f.write(50_000)
			f.bye(wire.Code_FROZEN)
			f.connect(c, "a")
			f.bye(wire.Code_FROZEN)
			at, worker := warm, "b"
			if off {
				mv.abort()
				at, worker = c, "a"
			}
			p.apply().answer()
			if off {
				mv.failed(ch, wire.Code_MIGRATION_ENDED)
				c.unfrozen()
			} else {
				mv.moved(ch)
				warm.pivoted(mv.m.GetSourceEpoch())
				w.streamsGone("a")
			}
			f.connect(at, worker)
			f.opened()
			f.write(10_000)
			f.mirrored(160_000)
			f.finish()
			f.ended(wire.Code_OK)
			g.connect(at, worker)
			if o := g.opened(); o.GetReceived() != 2*blockBytes {
				t.Errorf("the handler goes on at %d", o.GetReceived())
			}
			g.finish()
			g.mirrored(2*blockBytes + blockBytes/2)
			g.ended(wire.Code_OK)
			w.streamsGone(worker)
		})
	}
}

// TestStreamThatCannotMove is ended by the move, behind all that it wrote; so is
// one whose handler has ended and whose client has not heard.
func TestStreamThatCannotMove(t *testing.T) {
	w := streamWorld(t, "a", "b")
	c := w.open("a", "s", false)
	f, g := c.flow("a", "fragile"), c.flow("a", "done")
	f.opened()
	g.opened()
	f.write(1000)
	f.mirrored(1000)
	f.c.hangUp()
	g.c.hangUp()
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	mv.moved(mv.handover(c))
	warm.pivoted(mv.m.GetSourceEpoch())
	f.connect(warm, "b")
	f.opened()
	f.ended(wire.Code_STREAM_MOVED)
	g.connect(warm, "b")
	g.opened()
	g.ended(wire.Code_HANDLER_ERROR)
	w.streamsGone("b")
}

// TestStreamHoldsUpTheMove: a handler that does not return calls the move off
// before the session is frozen; the others go on.
func TestStreamHoldsUpTheMove(t *testing.T) {
	w := streamWorld(t, "a", "b")
	c := w.open("a", "s", false)
	f, g := c.flow("a", "mirror"), c.flow("a", "stubborn")
	f.opened()
	g.opened()
	<-w.running
	mv := w.begin("s", "a", "b")
	mv.invite(c)
	ch := mv.handover(c)
	w.stopping("a", "s")
	late := c.flow("a", "mirror")
	late.bye(wire.Code_FROZEN) // nothing begins any more, though the session serves
	var h handed
	w.clock.waitFor(t, freezeGrace/4, func() bool {
		select {
		case h = <-ch:
			return true
		default:
			return false
		}
	})
	if wire.CodeOf(h.err) != wire.Code_OVERLOADED {
		t.Fatal(h.err)
	}
	f.bye(wire.Code_FROZEN) // its handler was stopped, and has begun anew
	f.connect(c, "a")
	f.opened()
	f.write(1000)
	f.mirrored(1000)
	c.ok(c.write("incr", "n"), "1") // the session was never frozen
	close(w.block)
	g.bye(wire.Code_FROZEN)
	g.connect(c, "a")
	g.opened()
	<-w.running // anew
	mv.abort()
}

// TestStreamMovesOnBeforeItIsServed: the next move begins while the pivot of the
// last is with the log. What the first brought goes along with the second.
func TestStreamMovesOnBeforeItIsServed(t *testing.T) {
	w := streamWorld(t, "a", "b")
	c := w.open("a", "s", false)
	f := c.flow("a", "mirror")
	f.opened()
	f.write(1000)
	f.mirrored(1000)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	p := pivot.next(t).apply() // committed, and b has not heard
	back := w.begin("s", "b", "a")
	ch2 := back.handover()
	eventually(t, "b is frozen for the next move", func() bool {
		s := w.workers["b"].lookup("s")
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.freeze != nil
	})
	pivot.lift()
	p.answer()
	mv.moved(ch)
	back.moved(ch2)
	warm.bye(wire.Code_MIGRATION_ENDED)
	if _, ran := w.runs.Load(w.row("s").GetEpoch() - 1); ran {
		t.Fatal("a handler has run at b, which never served the session")
	}
	c.attach("a", false)
	c.attached()
	f.connect(c, "a")
	f.opened()
	f.write(1000)
	f.mirrored(2000)
	w.streamsGone("b")
}

// TestStreamOfAnotherSnapshot: the pivot names another snapshot than the one that
// came, so nothing of that is used.
func TestStreamOfAnotherSnapshot(t *testing.T) {
	w := streamWorld(t, "a", "b")
	c := w.open("a", "s", false)
	f := c.flow("a", "mirror")
	f.opened()
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	p := pivot.next(t)
	w.must(&wire.Command{Kind: &wire.Command_Pivot{Pivot: &wire.CommitPivot{
		Migration: mv.m.GetId(), Change: w.row("s").GetChange(), Digest: 1, Attested: mv.m.GetId(), Warm: [][]byte{c.instance},
	}}})
	p.apply().answer()
	mv.moved(ch)
	warm.bye(wire.Code_MIGRATION_ENDED)
	c.attach("b", false)
	c.attached()
	f.connect(c, "b")
	f.bye(wire.Code_STREAM_LOST)
	w.streamsGone("b")
}

// TestStreamIsLost with its owner: nobody begins it a second time.
func TestStreamIsLost(t *testing.T) {
	w := streamWorld(t, "a", "b")
	c := w.open("a", "s", false)
	f, unheard := c.flow("a", "mirror"), c.flow("a", "mirror")
	f.opened()
	w.fence("a")
	f.bye(wire.Code_RETRY)
	w.streamsGone("a")
	c.attach("b", false)
	c.attached()
	f.connect(c, "b")
	f.bye(wire.Code_STREAM_LOST)
	unheard.connect(c, "b") // its opening may have begun in the former epoch
	unheard.bye(wire.Code_STREAM_LOST)
	w.streamsGone("b")
	c.flow("b", "mirror").opened()
}

// TestStreamsEndWithTheirEpoch, also where nobody is attached.
func TestStreamsEndWithTheirEpoch(t *testing.T) {
	w := streamWorld(t, "a", "b")
	c := w.open("a", "s", false)
	f := c.flow("a", "mirror")
	f.opened()
	c.hangsUp("a")
	if w.noStreams("a") {
		t.Fatal("the stream has ended with the connection")
	}
	mv := w.begin("s", "a", "b") // detached, it moves all the same, and takes the stream along
	mv.moved(mv.handover())
	w.streamsGone("a")
	c.attach("b", false)
	c.attached()
	f.connect(c, "b")
	f.opened()
	f.write(10)
	f.mirrored(10)
	c.hangsUp("b")
	w.fence("b")
	w.streamsGone("b")
}
