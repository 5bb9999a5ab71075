package rpcnet

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// clientFrames is one good frame of each kind.
func clientFrames() []*wire.ClientFrame {
	secret, id := make([]byte, wire.SecretBytes), make([]byte, wire.IDBytes)
	return []*wire.ClientFrame{
		{Kind: &wire.ClientFrame_Hello{Hello: &wire.Hello{Version: wire.Version, ClusterId: id}}},
		{Kind: &wire.ClientFrame_Open{Open: &wire.OpenReq{Version: wire.Version, Session: "s", Secret: secret, Nonce: id, Instance: id, TtlUs: 1, Shared: true}}},
		{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{Version: wire.Version, Session: "s", Secret: secret, Instance: id, Fresh: true}}},
		{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{Version: wire.Version, Session: "s", Token: secret, Migration: 3, Instance: id, Relay: true, RelayTo: "n"}}},
		{Kind: &wire.ClientFrame_Request{Request: &wire.Request{Seq: 3, Attempt: 1, Prev: 2, Ack: 3, Method: "m", Payload: []byte("p")}}},
		{Kind: &wire.ClientFrame_Cancel{Cancel: &wire.CancelReq{Seq: 3, Prev: 2, Ack: 1}}},
		{Kind: &wire.ClientFrame_PushAck{PushAck: &wire.PushAck{Seq: 9}}},
		{Kind: &wire.ClientFrame_Close{Close: &wire.CloseReq{}}},
		{Kind: &wire.ClientFrame_Detach{Detach: &wire.DetachReq{}}},
		{Kind: &wire.ClientFrame_Confirm{Confirm: &wire.Confirm{Epoch: 4}}},
		{Kind: &wire.ClientFrame_Stream{Stream: &wire.StreamReq{Version: wire.Version, Session: "s", Instance: id, Token: id, Stream: 1, Method: "m", Argument: []byte("a"), Born: 5, Received: 9, Read: 8}}},
		{Kind: &wire.ClientFrame_StreamData{StreamData: &wire.StreamData{Offset: 7, Payload: []byte("p"), Fin: true}}},
		{Kind: &wire.ClientFrame_StreamAck{StreamAck: &wire.StreamAck{Offset: 7, Done: true}}},
		{Kind: &wire.ClientFrame_StreamCancel{StreamCancel: &wire.StreamCancel{}}},
	}
}

// serverFrames is one good frame of each kind.
func serverFrames() []*wire.ServerFrame {
	return []*wire.ServerFrame{
		{Kind: &wire.ServerFrame_Hello{Hello: &wire.HelloOK{Version: wire.Version, Self: testNode("a"), Nodes: []*wire.NodeInfo{testNode("a"), testNode("b")}}}},
		attachedFrame("a", 5),
		redirectFrame("a", 5),
		replyFrame(1, 5, "payload"),
		pushFrame(1, 5),
		pivotFrame(7, "b", 5),
		warmFrame(7), frozenFrame(7), unfrozenFrame(7), bouncedFrame(7),
		byeFrame(wire.Code_MOVED),
		{Kind: &wire.ServerFrame_AckWanted{AckWanted: &wire.AckWanted{}}},
		{Kind: &wire.ServerFrame_StreamOpened{StreamOpened: &wire.StreamOpened{Received: 9, Acked: 8}}},
		{Kind: &wire.ServerFrame_StreamData{StreamData: &wire.StreamData{Offset: 7, Payload: []byte("p"), Fin: true, Code: wire.Code_HANDLER_ERROR, Message: "m"}}},
		{Kind: &wire.ServerFrame_StreamAck{StreamAck: &wire.StreamAck{Offset: 7}}},
		standingFrame(), successorFrame("b", time.Second),
		{Kind: &wire.ServerFrame_StreamCommit{StreamCommit: &wire.StreamCommit{Stream: 1, Epoch: 5, Number: 2}}},
	}
}

func TestEveryKindIsDecoded(t *testing.T) {
	clients := map[string]bool{}
	for _, f := range clientFrames() {
		got, err := decodeClientFrame(marshal(t, f))
		if err != nil || !proto.Equal(got, f) {
			t.Errorf("%v: %v, %v", f, got, err)
		}
		clients[string(f.ProtoReflect().WhichOneof(f.ProtoReflect().Descriptor().Oneofs().Get(0)).Name())] = true
	}
	if n := (&wire.ClientFrame{}).ProtoReflect().Descriptor().Fields().Len(); len(clients) != n {
		t.Errorf("%d of %d kinds of ClientFrame are tested", len(clients), n)
	}
	servers := map[string]bool{}
	for _, f := range serverFrames() {
		b := marshal(t, f)
		got, err := decodeServerFrame(b)
		if err != nil || !proto.Equal(got, f) {
			t.Errorf("%v: %v, %v", f, got, err)
		}
		if endsStream(b) != isLast(f) {
			t.Errorf("%v: endsStream %v, isLast %v", f, endsStream(b), isLast(f))
		}
		servers[string(f.ProtoReflect().WhichOneof(f.ProtoReflect().Descriptor().Oneofs().Get(0)).Name())] = true
	}
	if n := (&wire.ServerFrame{}).ProtoReflect().Descriptor().Fields().Len(); len(servers) != n {
		t.Errorf("%d of %d kinds of ServerFrame are tested", len(servers), n)
	}
}

func TestClientFramesAreChecked(t *testing.T) {
	edit := func(i int, change func(*wire.ClientFrame)) *wire.ClientFrame {
		f := clientFrames()[i]
		change(f)
		return f
	}
	for name, f := range map[string]*wire.ClientFrame{
		"open: secret too short":     edit(1, func(f *wire.ClientFrame) { f.GetOpen().Secret = []byte("x") }),
		"open: no nonce":             edit(1, func(f *wire.ClientFrame) { f.GetOpen().Nonce = nil }),
		"open: no instance":          edit(1, func(f *wire.ClientFrame) { f.GetOpen().Instance = nil }),
		"open: session id too long":  edit(1, func(f *wire.ClientFrame) { f.GetOpen().Session = string(bytes.Repeat([]byte("x"), 129)) }),
		"attach: neither credential": edit(2, func(f *wire.ClientFrame) { f.GetAttach().Secret = nil }),
		"attach: token too long":     edit(3, func(f *wire.ClientFrame) { f.GetAttach().Token = make([]byte, 65) }),
		"attach: odd secret":         edit(3, func(f *wire.ClientFrame) { f.GetAttach().Secret = []byte("x") }),
		"request: seq 0":             edit(4, func(f *wire.ClientFrame) { f.GetRequest().Seq = 0 }),
		"request: prev not before":   edit(4, func(f *wire.ClientFrame) { f.GetRequest().Prev = 3 }),
		"request: ack after seq":     edit(4, func(f *wire.ClientFrame) { f.GetRequest().Ack = 4 }),
		"request: no method":         edit(4, func(f *wire.ClientFrame) { f.GetRequest().Method = "" }),
		"attach: what nobody knows": edit(2, func(f *wire.ClientFrame) {
			f.GetAttach().ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 1000, protowire.BytesType), make([]byte, firstBytesMax)))
		}),
		"cancel: seq 0":              edit(5, func(f *wire.ClientFrame) { f.GetCancel().Seq = 0 }),
		"hello: cluster id too long": edit(0, func(f *wire.ClientFrame) { f.GetHello().ClusterId = make([]byte, 65) }),
		"no kind":                    {},
	} {
		if _, err := decodeClientFrame(marshal(t, f)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestHelloOfManyNodes: a client learns of as many nodes as it takes.
func TestHelloOfManyNodes(t *testing.T) {
	h := &wire.HelloOK{Self: testNode("a")}
	for i := range 5000 {
		h.Nodes = append(h.Nodes, testNode(fmt.Sprintf("node-of-a-large-cluster-%d", i)))
	}
	f, err := decodeServerFrame(marshal(t, helloFrame(h)))
	if err != nil || len(f.GetHello().GetNodes()) < 500 || f.GetHello().GetSelf().GetName() != "a" {
		t.Errorf("%v, %d nodes", err, len(f.GetHello().GetNodes()))
	}
}

func TestLongHelloIsNotDecoded(t *testing.T) {
	// A thousand bytes of empty NodeInfos take much more memory decoded; so many
	// that a frame holds them would take a hundred megabytes.
	h := &wire.HelloOK{Nodes: make([]*wire.NodeInfo, helloBytesMax)}
	for i := range h.Nodes {
		h.Nodes[i] = &wire.NodeInfo{}
	}
	b := marshal(t, &wire.ServerFrame{Kind: &wire.ServerFrame_Hello{Hello: h}})
	// Hidden behind a harmless last kind, too.
	hidden := append(bytes.Clone(b), marshal(t, warmFrame(1))...)
	for _, b := range [][]byte{b, hidden} {
		if n := testing.AllocsPerRun(1, func() {
			if _, err := decodeServerFrame(b); err == nil {
				t.Error("taken")
			}
		}); n > 10 {
			t.Errorf("%v allocations for a frame that is refused", n)
		}
	}
}

// FuzzClientFrame: what a server decodes from a stranger either is refused with a
// typed error, or has what decodeClientFrame promises.
func FuzzClientFrame(f *testing.F) {
	for _, m := range clientFrames() {
		f.Add(marshal(f, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeClientFrame(b)
		if err != nil {
			if c := wire.CodeOf(err); c == wire.Code_INTERNAL || c == wire.Code_OK {
				t.Fatalf("an untyped error: %v", err)
			}
			return
		}
		if m.Kind == nil {
			t.Fatal("no kind")
		}
		if a := m.GetAttach(); a != nil && (len(a.GetInstance()) != wire.IDBytes || len(a.GetSecret())+len(a.GetToken()) == 0) {
			t.Fatalf("attach without instance or credential: %v", a)
		}
		if r := m.GetRequest(); r != nil && (r.GetSeq() == 0 || r.GetPrev() >= r.GetSeq() || r.GetAck() > r.GetSeq()) {
			t.Fatalf("request with impossible numbers: %v", r)
		}
		if r := m.GetStream(); r != nil && (len(r.GetToken()) != wire.StreamTokenBytes || r.GetRead() > r.GetReceived() || len(r.GetArgument()) > wire.StreamArgumentBytesMax) {
			t.Fatalf("stream without a token, or out of bounds: %v", r)
		}
	})
}

// FuzzServerFrame: what a client decodes never panics, and the undecoded view
// that a relay takes of a frame agrees with the decoded one.
func FuzzServerFrame(f *testing.F) {
	for _, m := range serverFrames() {
		f.Add(marshal(f, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		last := endsStream(b)
		m, err := decodeServerFrame(b)
		if err != nil {
			return
		}
		if frameField(b) != serverFieldHello && len(m.ProtoReflect().GetUnknown()) == 0 && last != isLast(m) {
			t.Fatalf("endsStream %v, decoded %v", last, m)
		}
	})
}

// FuzzCore: whatever a node sends, in whatever order, the core neither panics nor
// answers a call twice, nor wants to be woken in a loop.
func FuzzCore(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13})
	f.Add([]byte{0, 20, 33, 14, 15, 2, 14, 6, 7, 8, 3, 9, 200, 11, 13, 12})
	f.Fuzz(func(t *testing.T, events []byte) {
		if len(events) > 512 {
			return
		}
		fuzzCore(t, events)
	})
}

func fuzzCore(t *testing.T, events []byte) {
	s := newScript(t, nil)
	answered := map[*call]bool{}
	calls := []*call{}
	check := func() {
		for _, a := range s.c.take() {
			if a.kind == actRelease {
				if answered[a.call] {
					t.Fatal("a call was answered twice")
				}
				answered[a.call] = true
			}
		}
		if s.c.writes > WritesInFlightMax || s.c.writes < 0 || s.c.reads < 0 || s.c.backingOff < 0 {
			t.Fatalf("writes %d, reads %d, backing off %d", s.c.writes, s.c.reads, s.c.backingOff)
		}
	}
	s.c.start(s.now)
	for i, e := range events {
		switch e % 16 {
		case 0:
			p := &call{method: "m", readOnly: e&16 != 0, deadline: s.now + time.Duration(1+e)*10*ms}
			calls = append(calls, p)
			s.c.ask(s.now, p)
		case 13:
			if len(calls) > 0 {
				p := calls[int(e>>4)%len(calls)]
				s.c.abandon(s.now, p, expired(p, context.Canceled))
			}
		case 15:
			check()
			s.pass(time.Duration(e) * 5 * ms)
			// pass has taken the actions; what it answered shows in released.
			for _, p := range calls {
				answered[p] = answered[p] || p.released
			}
		default:
			fuzzNode(s, i, e)
		}
		check()
	}
	s.c.end(errClosed)
	check()
	for _, p := range calls {
		if !p.released {
			t.Fatal("a call was never answered")
		}
	}
}

// fuzzNode is one event that a node causes.
func fuzzNode(s *script, i int, e byte) {
	id := 1 + int(e>>4)%max(1, s.c.nextRoute)
	epoch := uint64(5 + e>>6)
	node := []string{"a", "b", "c"}[i%3]
	seq := uint64(1 + i%7)
	switch e % 16 {
	case 1:
		s.c.opened(s.now, id)
	case 2:
		s.c.frame(s.now, id, attachedFrame(node, epoch))
	case 3:
		s.c.frame(s.now, id, replyFrame(seq, epoch, ""))
	case 4:
		s.c.frame(s.now, id, refusalFrame(seq, epoch, wire.Code_RETRY, false))
	case 5:
		s.c.frame(s.now, id, refusalFrame(seq, epoch, wire.Code_STALE_EPOCH, false))
	case 6:
		s.c.frame(s.now, id, pivotFrame(uint64(i), node, epoch))
	case 7:
		s.c.frame(s.now, id, frozenFrame(uint64(i-1)))
	case 8:
		s.c.frame(s.now, id, unfrozenFrame(0))
	case 9:
		s.c.frame(s.now, id, bouncedFrame(0))
	case 10:
		s.c.frame(s.now, id, redirectFrame(node, epoch))
	case 11:
		s.c.frame(s.now, id, byeFrame([]wire.Code{wire.Code_MOVED, wire.Code_RETRY, wire.Code_UNAVAILABLE}[i%3]))
	case 12:
		s.c.lost(s.now, id, wire.Errorf(wire.Code_UNAVAILABLE, "lost"), e&16 != 0)
	case 14:
		s.c.frame(s.now, id, pushFrame(seq, epoch))
		s.c.gotPushed(s.now, s.c.received)
	}
}
