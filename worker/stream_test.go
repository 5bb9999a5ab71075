package worker

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/baton-cluster/baton/bulk"
	"github.com/baton-cluster/baton/wire"
)

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
	eventually(t, "the stream's handler has ended", func() bool { return w.workers["a"].streams.running.Load() == 0 })
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
	synctest.Test(t, func(t *testing.T) {
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
		w.lost("a", "s")
		f.connect(c, "a")
		f.bye(wire.Code_STREAM_LOST)
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
	})
}

// TestLostStreamBeginsOnce: a client that has not heard that its stream had begun, nor
// that it ended, does not begin it again, here or where the session has moved.
func TestLostStreamBeginsOnce(t *testing.T) {
	for _, displaced := range []bool{false, true} {
		for _, moved := range []bool{false, true} {
			t.Run(fmt.Sprintf("displaced=%v/moved=%v", displaced, moved), inBubble(func(t *testing.T) {
				w := streamWorld(t, "a", "b")
				c := w.open("a", "s", false)
				f, other := c.flow("a", "mirror"), c.unsent("mirror")
				f.opened()
				f.c.hangUp()
				f.req.Opened = false
				if displaced {
					next := w.newClient("s", c.secret)
					next.attach("a", true)
					next.attached()
					c.bye(wire.Code_DISPLACED)
					c.attach("a", false)
					c.attached()
				} else {
					w.lost("a", "s")
				}
				owner, code := "a", wire.Code_OK
				if moved {
					mv := w.begin("s", "a", "b")
					warm := mv.invite(c)
					mv.moved(mv.handover(c))
					warm.pivoted(mv.m.GetSourceEpoch())
					owner, c = "b", warm
					code = wire.Code_STREAM_LOST // which of them had begun is known at a only
				}
				f.connect(c, owner)
				f.bye(wire.Code_STREAM_LOST)
				other.connect(c, owner)
				if code == wire.Code_OK {
					other.opened()
				} else {
					other.bye(code)
				}
				c.flow(owner, "mirror").opened()
			}))
		}
	}
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
