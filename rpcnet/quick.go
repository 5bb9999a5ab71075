package rpcnet

import (
	"encoding/binary"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// Requests and responses are nearly all frames that there are, and protobuf
// finds its way through each by reflection. Here they are read and written by
// hand, to the same bytes and from them: FuzzQuick holds both against protobuf.
// What is not quite as usual (a field that this build does not know, text that is
// not UTF-8, a size over the limit) is left to protobuf, so there is one opinion
// about it.

// requestFrame is a frame with its request, in one piece of memory.
type requestFrame struct {
	req   wire.Request
	kind  wire.ClientFrame_Request
	frame wire.ClientFrame
}

// responseFrame is a frame with its response, likewise.
type responseFrame struct {
	resp  wire.Response
	kind  wire.ServerFrame_Response
	frame wire.ServerFrame
}

// Field numbers of the kinds, in ClientFrame and ServerFrame.
const (
	requestField  = 4
	responseField = 4
)

// inner returns the content of a frame that consists of one field, of this number.
func inner(b []byte, field protowire.Number) ([]byte, bool) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 || num != field || typ != protowire.BytesType {
		return nil, false
	}
	body, m := protowire.ConsumeBytes(b[n:])
	return body, m >= 0 && n+m == len(b)
}

// fields calls number or bytes with each field of b, until one says no; it
// reports whether all were taken.
func fields(b []byte, number func(protowire.Number, uint64) bool, bytes func(protowire.Number, []byte) bool) bool {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		ok := false
		switch typ {
		case protowire.VarintType:
			var v uint64
			v, n = protowire.ConsumeVarint(b)
			ok = n >= 0 && number(num, v)
		case protowire.BytesType:
			var v []byte
			v, n = protowire.ConsumeBytes(b)
			ok = n >= 0 && bytes(num, v)
		}
		if !ok {
			return false
		}
		b = b[n:]
	}
	return true
}

// quickRequest decodes a frame with a request; nil leaves b to protobuf. The
// frame does not alias b.
func quickRequest(b []byte) *wire.ClientFrame {
	body, ok := inner(b, requestField)
	if !ok {
		return nil
	}
	f := new(requestFrame)
	r := &f.req
	ok = fields(body, func(num protowire.Number, v uint64) bool {
		switch num {
		case 1:
			r.Seq = v
		case 2:
			r.Attempt = uint32(v)
		case 3:
			r.Prev = v
		case 4:
			r.Ack = v
		case 5:
			r.ReadOnly = v != 0
		case 6:
			r.TimeoutUs = v
		case 9:
			r.PushAck = v
		case 10:
			r.Confirmed = v != 0
		default:
			return false
		}
		return true
	}, func(num protowire.Number, v []byte) bool {
		switch num {
		case 7:
			r.Method = string(v)
			return utf8.Valid(v)
		case 8:
			r.Payload = slices.Clone(v)
			return true
		}
		return false
	})
	if !ok {
		return nil
	}
	f.kind.Request, f.frame.Kind = r, &f.kind
	return &f.frame
}

// quickResponse decodes a frame with a response; nil leaves b to protobuf. The
// frame does not alias b.
func quickResponse(b []byte) *wire.ServerFrame {
	body, ok := inner(b, responseField)
	if !ok {
		return nil
	}
	f := new(responseFrame)
	r := &f.resp
	ok = fields(body, func(num protowire.Number, v uint64) bool {
		switch num {
		case 1:
			r.Seq = v
		case 2:
			r.Attempt = uint32(v)
		case 3:
			r.Epoch = v
		case 4:
			r.Code = wire.Code(v)
		case 7:
			r.Settled = v != 0
		case 8:
			r.Change = v
		case 9:
			r.LeaseLeftUs = v
		default:
			return false
		}
		return true
	}, func(num protowire.Number, v []byte) bool {
		switch num {
		case 5:
			r.Message = string(v)
			return utf8.Valid(v)
		case 6:
			r.Payload = slices.Clone(v)
			return true
		}
		return false
	})
	if !ok {
		return nil
	}
	f.kind.Response, f.frame.Kind = r, &f.kind
	return &f.frame
}

// encodeFrame is AppendFrame for a frame that this process made.
func encodeFrame(dst []byte, m proto.Message, max int) ([]byte, error) {
	if out, ok := quickFrame(dst, m, max); ok {
		return out, nil
	}
	return AppendFrame(dst, m, max)
}

// quickFrame appends m as AppendFrame does, if it is a request or a response; not ok leaves it to AppendFrame, and dst as it was.
func quickFrame(dst []byte, m proto.Message, max int) ([]byte, bool) {
	// The header, the kind's tag and length, and all fields that are numbers.
	const most = frameHeaderBytes + 12*(1+binary.MaxVarintLen64)
	var body func([]byte) []byte
	text := 0
	switch f := m.(type) {
	case *wire.ClientFrame:
		r := f.GetRequest()
		if r == nil || !utf8.ValidString(r.Method) {
			return dst, false
		}
		text, body = len(r.Method)+len(r.Payload), func(b []byte) []byte { return appendRequest(b, r) }
	case *wire.ServerFrame:
		r := f.GetResponse()
		if r == nil || !utf8.ValidString(r.Message) {
			return dst, false
		}
		text, body = len(r.Message)+len(r.Payload), func(b []byte) []byte { return appendResponse(b, r) }
	default:
		return dst, false
	}
	if most+text > max {
		return dst, false
	}
	// The content is written where it would lie after a length of one byte, and
	// moved where that does not suffice.
	const tag = requestField<<3 | byte(protowire.BytesType) // responseField's too
	start := len(dst)
	out := append(slices.Grow(dst, most+text), 0, 0, 0, 0, tag, 0)
	at := len(out)
	out = body(out)
	n := len(out) - at
	if more := protowire.SizeVarint(uint64(n)) - 1; more > 0 {
		out = append(out, make([]byte, more)...)
		copy(out[at+more:], out[at:at+n])
	}
	protowire.AppendVarint(out[at-1:at-1], uint64(n))
	binary.BigEndian.PutUint32(out[start:], uint32(len(out)-start-frameHeaderBytes))
	return out, true
}

// appendNumber appends a field that is a number; 0 is not written.
func appendNumber(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

// appendText appends a field of bytes; none are not written.
func appendText[T string | []byte](b []byte, field protowire.Number, v T) []byte {
	if len(v) == 0 {
		return b
	}
	b = protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(len(v)))
	return append(b, v...)
}

func appendRequest(b []byte, r *wire.Request) []byte {
	b = appendNumber(b, 1, r.Seq)
	b = appendNumber(b, 2, uint64(r.Attempt))
	b = appendNumber(b, 3, r.Prev)
	b = appendNumber(b, 4, r.Ack)
	b = appendNumber(b, 5, protowire.EncodeBool(r.ReadOnly))
	b = appendNumber(b, 6, r.TimeoutUs)
	b = appendText(b, 7, r.Method)
	b = appendText(b, 8, r.Payload)
	b = appendNumber(b, 9, r.PushAck)
	return appendNumber(b, 10, protowire.EncodeBool(r.Confirmed))
}

func appendResponse(b []byte, r *wire.Response) []byte {
	b = appendNumber(b, 1, r.Seq)
	b = appendNumber(b, 2, uint64(r.Attempt))
	b = appendNumber(b, 3, r.Epoch)
	b = appendNumber(b, 4, uint64(int64(r.Code)))
	b = appendText(b, 5, r.Message)
	b = appendText(b, 6, r.Payload)
	b = appendNumber(b, 7, protowire.EncodeBool(r.Settled))
	b = appendNumber(b, 8, r.Change)
	return appendNumber(b, 9, r.LeaseLeftUs)
}
