package rpcnet

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/baton-cluster/baton/wire"
)

func drawRequest(t *rapid.T) *wire.ClientFrame {
	return &wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: &wire.Request{
		Seq: rapid.Uint64().Draw(t, "seq"), Attempt: rapid.Uint32().Draw(t, "attempt"), Prev: rapid.Uint64().Draw(t, "prev"),
		Ack: rapid.Uint64().Draw(t, "ack"), ReadOnly: rapid.Bool().Draw(t, "read only"), TimeoutUs: rapid.Uint64().Draw(t, "timeout"),
		Method: rapid.String().Draw(t, "method"), Payload: rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "payload"),
		PushAck: rapid.Uint64().Draw(t, "push ack"), Confirmed: rapid.Bool().Draw(t, "confirmed"),
	}}}
}

func drawResponse(t *rapid.T) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Response{Response: &wire.Response{
		Seq: rapid.Uint64().Draw(t, "seq"), Attempt: rapid.Uint32().Draw(t, "attempt"), Epoch: rapid.Uint64().Draw(t, "epoch"),
		Code: wire.Code(rapid.Int32().Draw(t, "code")), Message: rapid.String().Draw(t, "message"),
		Payload: rapid.SliceOfN(rapid.Byte(), 0, 20_000).Draw(t, "payload"), Settled: rapid.Bool().Draw(t, "settled"),
		Change: rapid.Uint64().Draw(t, "change"), LeaseLeftUs: rapid.Uint64().Draw(t, "lease left"),
	}}}
}

// TestQuickFramesAreProtobuf: what is written by hand protobuf reads, and what
// protobuf writes is read by hand, as the same message.
func TestQuickFramesAreProtobuf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := []byte("before")
		var m, read proto.Message
		if rapid.Bool().Draw(t, "request") {
			m, read = drawRequest(t), &wire.ClientFrame{}
		} else {
			m, read = drawResponse(t), &wire.ServerFrame{}
		}
		out, ok := quickFrame(before, m, wire.FrameBytesMax)
		if !ok || !bytes.HasPrefix(out, before) {
			t.Fatalf("%v was not written", m)
		}
		body, err := ReadFrame(bytes.NewReader(out[len(before):]), wire.FrameBytesMax, nil)
		if err != nil || len(out) != len(before)+frameHeaderBytes+len(body) {
			t.Fatalf("%v and a frame of %d bytes in %d", err, len(body), len(out)-len(before))
		}
		if err := proto.Unmarshal(body, read); err != nil || !proto.Equal(m, read) {
			t.Fatalf("%v: protobuf reads %v, want %v", err, read, m)
		}
		encoded, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if got := quick(encoded, m); got == nil || !proto.Equal(m, got) {
			t.Fatalf("by hand %v is read, want %v", got, m)
		}
	})
}

// quick decodes b by hand, as a frame of like's direction; nil if it does not.
func quick(b []byte, like proto.Message) proto.Message {
	if _, ok := like.(*wire.ClientFrame); ok {
		if f := quickRequest(b); f != nil {
			return f
		}
		return nil
	}
	if f := quickResponse(b); f != nil {
		return f
	}
	return nil
}

// TestQuickLeavesTheRest: frames that protobuf would refuse, or that hold more
// than is known here, are not taken.
func TestQuickLeavesTheRest(t *testing.T) {
	request := &wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: &wire.Request{Seq: 1, Method: "m"}}}
	plain := marshal(t, request)
	for name, b := range map[string][]byte{
		"empty":                 {},
		"two fields":            append(bytes.Clone(plain), plain...),
		"cut off":               plain[:len(plain)-1],
		"unknown field":         {requestField<<3 | 2, 3, 0x08, 0x01, 0x78},
		"unknown number":        {requestField<<3 | 2, 4, 0x08, 0x01, 0x78, 0x01},
		"not UTF-8":             {requestField<<3 | 2, 3, 7<<3 | 2, 1, 0xff},
		"length past the end":   {requestField<<3 | 2, 3, 7<<3 | 2, 9, 'm'},
		"a number as text":      {requestField<<3 | 2, 2, 7 << 3, 1},
		"text as a number":      {requestField<<3 | 2, 2, 1<<3 | 2, 0},
		"a group":               {requestField<<3 | 2, 2, 7<<3 | 3, 7<<3 | 4},
		"bytes after the frame": append(bytes.Clone(plain), 0),
	} {
		if f := quickRequest(b); f != nil {
			t.Errorf("%s: taken as %v", name, f)
		}
	}
	for name, m := range map[string]proto.Message{
		"another kind":  &wire.ClientFrame{Kind: &wire.ClientFrame_Close{Close: &wire.CloseReq{}}},
		"no kind":       &wire.ServerFrame{},
		"text not UTF8": &wire.ServerFrame{Kind: &wire.ServerFrame_Response{Response: &wire.Response{Message: "\xff"}}},
		"too large":     &wire.ServerFrame{Kind: &wire.ServerFrame_Response{Response: &wire.Response{Payload: make([]byte, wire.FrameBytesMax)}}},
	} {
		if out, ok := quickFrame([]byte("x"), m, wire.FrameBytesMax); ok || string(out) != "x" {
			t.Errorf("%s: written", name)
		}
	}
}

// FuzzQuick: whatever is read by hand, protobuf reads as the same message.
func FuzzQuick(f *testing.F) {
	for _, m := range clientFrames() {
		f.Add(marshal(f, m))
	}
	for _, m := range serverFrames() {
		f.Add(marshal(f, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range []proto.Message{&wire.ClientFrame{}, &wire.ServerFrame{}} {
			got := quick(b, m)
			if got == nil {
				continue
			}
			if err := proto.Unmarshal(b, m); err != nil || !proto.Equal(got, m) {
				t.Fatalf("%v: by hand %v, by protobuf %v", err, got, m)
			}
		}
	})
}
