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
	f := c.unsent(method)
	f.connect(c, worker)
	return f
}

// unsent is a byte stream that may have begun in the epoch that the client knows, as
// far as it knows, and of which no node has heard.
func (c *client) unsent(method string) *flow {
	f := &flow{req: &wire.StreamReq{Session: c.session, Instance: c.instance, Method: method, Born: c.at.GetEpoch()}}
	flowIDs.Lock()
	defer flowIDs.Unlock()
	flowIDs.last++
	f.req.Stream = flowIDs.last
	return f
}

// connect sends the first frame on a new link, as the client whose attachment is c.
func (f *flow) connect(c *client, worker string) {
	link := *c
	f.c = &link
	f.req.Token, f.req.Received, f.req.Read = c.at.GetStreamToken(), f.in.Next(), f.in.Tell()
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

// lost waits until nothing is left of a worker's streams but that a session's are lost.
func (w *world) lost(worker, session string) {
	w.t.Helper()
	t := &w.workers[worker].streams
	w.clock.waitFor(w.t, streamAloneTime/4, func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		e := t.of[session]
		return len(t.of) == 1 && e != nil && len(e.byKey) == 0 && len(e.lost) > 0 && t.running.Load() == 0
	})
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
