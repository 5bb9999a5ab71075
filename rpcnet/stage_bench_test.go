package rpcnet

import (
	"bytes"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// BenchmarkStageFrame is what a request's frame costs: the client encodes it,
// the server reads and checks it.
func BenchmarkStageFrame(b *testing.B) {
	payload := make([]byte, 128)
	var out, in []byte
	b.ReportAllocs()
	seq := uint64(0)
	for b.Loop() {
		seq++
		var err error
		out, err = encodeFrame(out[:0], &wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: &wire.Request{
			Seq: seq, Prev: seq - 1, Ack: seq, Attempt: 1, Method: "put", Payload: payload,
		}}}, wire.FrameBytesMax)
		if err != nil {
			b.Fatal(err)
		}
		if in, err = ReadFrame(bytes.NewReader(out), wire.FrameBytesMax, in); err != nil {
			b.Fatal(err)
		}
		f, err := decodeClientFrame(in)
		if err != nil || f.GetRequest().GetSeq() != seq || len(f.GetRequest().GetPayload()) != len(payload) {
			b.Fatalf("%v %v", f, err)
		}
	}
}

// BenchmarkStageReply is what a response's frame costs, both sides.
func BenchmarkStageReply(b *testing.B) {
	payload := make([]byte, 32)
	var out, in []byte
	b.ReportAllocs()
	seq := uint64(0)
	for b.Loop() {
		seq++
		var err error
		out, err = encodeFrame(out[:0], &wire.ServerFrame{Kind: &wire.ServerFrame_Response{Response: &wire.Response{
			Seq: seq, Attempt: 1, Payload: payload,
		}}}, wire.FrameBytesMax)
		if err != nil {
			b.Fatal(err)
		}
		if in, err = ReadFrame(bytes.NewReader(out), wire.FrameBytesMax, in); err != nil {
			b.Fatal(err)
		}
		f, err := decodeServerFrame(in)
		if err != nil || f.GetResponse().GetSeq() != seq || len(f.GetResponse().GetPayload()) != len(payload) {
			b.Fatalf("%v %v", f, err)
		}
	}
}
