package rpcnet

import (
	"bufio"
	"io"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/baton-cluster/baton/bulk"
	"github.com/baton-cluster/baton/wire"
)

// byteLink is one QUIC stream under a byte stream: for as long as the session stays
// where it is, and the connection holds. The byte stream's mutex guards what
// changes.
type byteLink struct {
	site   site
	qs     MuxStream
	opened bool // the node has said where to go on
	over   bool
	ack    uint64 // to be sent, if ackDue
	ackDue bool
}

// reset ends the link from any goroutine, repeatedly.
func (l *byteLink) reset(code wire.Code) {
	l.qs.CancelRead(quic.StreamErrorCode(code))
	l.qs.CancelWrite(quic.StreamErrorCode(code))
}

// byeError is what a node ended a link with.
type byeError struct{ why *wire.Error }

func (e byeError) Error() string { return e.why.Error() }
func (e byeError) Unwrap() error { return e.why }

// run connects the stream wherever the session goes, until it has come to its end.
func (b *ByteStream) run() {
	defer b.release()
	var last site
	failures := 0
	for {
		wait := time.Duration(0)
		if failures > 0 {
			d := min(huntMax, huntMin<<min(failures, 8))
			wait = d/2 + b.r.client.jitter(d/2+1)
		}
		s, ok := b.awaitSite(last, wait)
		if !ok {
			return
		}
		opened, err := b.connect(s, failures)
		if b.isOver(opened, err) {
			return
		}
		if failures++; opened {
			failures = 1
		}
		last = s
	}
}

// isOver takes the end of a link, and reports whether it is the stream's.
func (b *ByteStream) isOver(opened bool, err error) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended != nil {
		return true
	}
	bye, refused := err.(byeError)
	code := wire.CodeOf(err)
	final := refused && (!code.Retryable() && code != wire.Code_OK || code == wire.Code_TOO_MANY) || code == wire.Code_BAD_REQUEST
	if b.in.Finished() {
		// The stream has its place until its owner has heard of that, which may be
		// another one by now.
		return final || refused && code == wire.Code_OK
	}
	if final {
		if b.ended = err; refused {
			b.ended = bye.why
		}
		b.cancel()
		b.wake()
		return true
	}
	if !opened && !b.begun {
		switch {
		case refused && code != wire.Code_UNAVAILABLE && code != wire.Code_SHUTTING_DOWN && code != wire.Code_DEADLINE_EXCEEDED:
			if !b.doubt {
				b.born = 0 // it was refused before anything began
			}
		default:
			b.doubt = b.born != 0
		}
	}
	return false
}

// connect brings the stream to where the session is served, and returns when that
// link has ended. opened: the node took the stream up.
func (b *ByteStream) connect(s site, failures int) (opened bool, err error) {
	pool := b.r.client.pool
	qs, pc, err := pool.open(b.ctx, s.addr, b.r.cfg.TLS)
	if err != nil {
		return false, wire.Errorf(wire.Code_UNAVAILABLE, "%v", err)
	}
	defer pool.release(pc)
	before := pc.qc.ConnectionStats().PacketsReceived
	link := &byteLink{site: s, qs: qs}
	frame, err := b.begin(link)
	if err != nil {
		link.reset(wire.Code_CANCELLED)
		return false, err
	}
	silent := b.r.cfg.Clock.AfterFunc(b.r.cfg.Silence<<min(failures, quietMax), func() { link.reset(wire.Code_DEADLINE_EXCEEDED) })
	written := make(chan struct{})
	b.r.client.wg.Go(func() {
		defer close(written)
		b.write(link, frame)
	})
	err = b.read(link, func() { silent.Stop() })
	if silent.Stop(); pc.qc.ConnectionStats().PacketsReceived == before {
		pool.retire(pc) // the node, or the way to it, is gone
	}
	b.mu.Lock()
	link.over = true
	opened = link.opened
	if b.link == link {
		b.link = nil
	}
	b.wake()
	b.mu.Unlock()
	link.reset(wire.Code_OK)
	<-written
	return opened, err
}

// begin makes link the stream's, and returns its first frame, encoded.
func (b *ByteStream) begin(link *byteLink) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended != nil {
		return nil, b.ended
	}
	if b.born == 0 {
		b.born = link.site.epoch
	}
	b.link = link
	c := &b.r.core.cfg // what is read of it never changes
	return AppendFrame(nil, &wire.ClientFrame{Kind: &wire.ClientFrame_Stream{Stream: &wire.StreamReq{
		Version: wire.Version, ClusterId: c.cluster(), Session: c.session, Instance: c.instance, Token: []byte(link.site.token),
		Stream: b.id, Method: b.method, Argument: b.argument, Opened: b.begun, Born: b.born,
		Received: b.in.Next(), Read: b.in.Tell(), Relay: link.site.relay, RelayTo: link.site.to,
	}}}, wire.FrameBytesMax)
}

// read takes the node's frames until the link ends, and returns why it did.
func (b *ByteStream) read(link *byteLink, opened func()) error {
	br := bufio.NewReaderSize(link.qs, streamReadBytes)
	var buf []byte
	for {
		body, err := ReadFrame(br, wire.FrameBytesMax, buf)
		if err != nil {
			return streamErr(err)
		}
		buf = body
		f, err := decodeServerFrame(body)
		if err != nil {
			return err
		}
		switch k := f.Kind.(type) {
		case *wire.ServerFrame_StreamOpened:
			opened()
			err = b.gotOpened(link, k.StreamOpened)
		case *wire.ServerFrame_StreamData:
			err = b.gotData(link, k.StreamData)
		case *wire.ServerFrame_StreamAck:
			err = b.gotAck(link, k.StreamAck.GetOffset())
		case *wire.ServerFrame_StreamCommit:
			b.gotCommit(k.StreamCommit)
		case *wire.ServerFrame_Bye:
			return byeError{why: wire.Errorf(k.Bye.GetCode(), "%s", k.Bye.GetMessage())}
		default:
			err = badRequest("a node sent a frame that has no place on a byte stream")
		}
		if err != nil {
			return err
		}
	}
}

func (b *ByteStream) gotOpened(link *byteLink, o *wire.StreamOpened) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.out.Ack(o.GetAcked()); err != nil {
		return err
	}
	if err := b.out.Rewind(o.GetReceived()); err != nil {
		return err
	}
	if !b.begun {
		b.begun = true
		close(b.opened)
	}
	link.opened = true
	b.wake()
	return nil
}

func (b *ByteStream) gotData(link *byteLink, d *wire.StreamData) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !link.opened {
		return badRequest("data came before the stream was opened")
	}
	if err := b.in.Take(bulk.Chunk{Offset: d.GetOffset(), Data: d.GetPayload(), Fin: d.GetFin()}); err != nil {
		return err
	}
	if d.GetFin() && b.outcome == nil {
		if b.outcome = io.EOF; d.GetCode() != wire.Code_OK {
			b.outcome = wire.Errorf(d.GetCode(), "%s", d.GetMessage())
		}
	}
	b.wake()
	return nil
}

func (b *ByteStream) gotAck(link *byteLink, to uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !link.opened {
		return badRequest("an acknowledgement came before the stream was opened")
	}
	err := b.out.Ack(to)
	b.wake()
	return err
}

// movedTo cuts the link if it leads elsewhere.
func (b *ByteStream) movedTo(now site) {
	b.mu.Lock()
	link := b.link
	b.mu.Unlock()
	if link != nil && link.site != now {
		link.reset(wire.Code_MOVED)
	}
}

// write sends what there is to send on a link, first of all frame, until the link
// ends or has had its last frame.
func (b *ByteStream) write(link *byteLink, frame []byte) {
	last := false
	for {
		if len(frame) > 0 {
			if _, err := link.qs.Write(frame); err != nil {
				link.reset(wire.Code_UNAVAILABLE)
				return
			}
		}
		if last {
			_ = link.qs.Close()
			return
		}
		b.mu.Lock()
		f, end := b.nextFrame(link)
		changed, over := b.changed, link.over
		frame, last = frame[:0], end
		var err error
		if f != nil {
			frame, err = AppendFrame(frame, f, wire.FrameBytesMax)
		}
		b.mu.Unlock()
		switch {
		case over:
			return
		case err != nil:
			link.reset(wire.Code_INTERNAL)
			return
		case f == nil:
			<-changed
		}
	}
}

// nextFrame is what to send next, nil if there is nothing; last: nothing follows.
// b.mu is held.
func (b *ByteStream) nextFrame(link *byteLink) (f *wire.ClientFrame, last bool) {
	ack := func(to uint64, done bool) *wire.ClientFrame {
		return &wire.ClientFrame{Kind: &wire.ClientFrame_StreamAck{StreamAck: &wire.StreamAck{Offset: to, Done: done}}}
	}
	switch {
	case link.over:
		return nil, false
	case b.in.Finished():
		return ack(b.in.Next(), true), true
	case b.ended != nil:
		return &wire.ClientFrame{Kind: &wire.ClientFrame_StreamCancel{StreamCancel: &wire.StreamCancel{}}}, true
	case link.ackDue:
		link.ackDue = false
		return ack(link.ack, false), false
	case !link.opened:
		return nil, false
	}
	c, ok := b.out.Next()
	if !ok {
		return nil, false
	}
	return &wire.ClientFrame{Kind: &wire.ClientFrame_StreamData{StreamData: &wire.StreamData{
		Offset: c.Offset, Payload: c.Data, Fin: c.Fin,
	}}}, false
}
