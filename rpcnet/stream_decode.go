package rpcnet

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/bulk"
	"github.com/baton-cluster/baton/wire"
)

const (
	// helloBytesMax bounds what a node answers a hello with. A list of nodes takes more
	// memory decoded than encoded, so it gets a smaller allowance than a payload.
	helloBytesMax = 64 << 10
	// firstBytesMax bounds a stream's first frame, which is kept for as long as the
	// stream: fields that nobody knows would be kept with it.
	firstBytesMax = 16 << 10
	// methodBytesMax bounds a method's name.
	methodBytesMax = wire.MethodBytesMax
	// tokenBytesMax bounds a migration token.
	tokenBytesMax = 64
	// nodeTextBytesMax bounds each text in a NodeInfo.
	nodeTextBytesMax = 256
)

// Field numbers of ServerFrame's kinds that this package tells apart undecoded.
const (
	serverFieldHello    = 1
	serverFieldRedirect = 3
	serverFieldBounced  = 10
	serverFieldBye      = 11
)

func badRequest(format string, args ...any) *wire.Error {
	return wire.Errorf(wire.Code_BAD_REQUEST, format, args...)
}

// decodeClientFrame decodes and checks a frame from a client. Whoever gets the
// frame may rely on: a kind that is set, and sizes and numbers as documented in
// wire/client.proto. Every error is a *wire.Error.
func decodeClientFrame(b []byte) (*wire.ClientFrame, error) {
	f := quickRequest(b)
	if f != nil {
		return f, orNil(checkRequest(f.GetRequest()))
	}
	f = new(wire.ClientFrame)
	if err := proto.Unmarshal(b, f); err != nil {
		return nil, badRequest("the frame cannot be decoded; check that the client speaks version %d", wire.Version)
	}
	switch k := f.Kind.(type) {
	case *wire.ClientFrame_Hello, *wire.ClientFrame_Open, *wire.ClientFrame_Attach, *wire.ClientFrame_Stream:
		if len(b) > firstBytesMax {
			return nil, badRequest("a stream's first frame has at most %d bytes, this one %d", firstBytesMax, len(b))
		}
		return f, orNil(checkFirst(f))
	case *wire.ClientFrame_Request:
		return f, orNil(checkRequest(k.Request))
	case *wire.ClientFrame_Cancel:
		return f, orNil(checkSeq(k.Cancel.GetSeq(), k.Cancel.GetPrev(), k.Cancel.GetAck()))
	case *wire.ClientFrame_PushAck, *wire.ClientFrame_Close, *wire.ClientFrame_Detach, *wire.ClientFrame_Confirm,
		*wire.ClientFrame_StreamAck, *wire.ClientFrame_StreamCancel:
		return f, nil
	case *wire.ClientFrame_StreamData:
		return f, orNil(checkStreamData(k.StreamData))
	}
	return nil, badRequest("the frame has no kind that this node knows; the client may be newer")
}

// checkFirst checks a frame that begins a stream.
func checkFirst(f *wire.ClientFrame) *wire.Error {
	switch k := f.Kind.(type) {
	case *wire.ClientFrame_Hello:
		return checkCluster(k.Hello.GetClusterId())
	case *wire.ClientFrame_Open:
		return checkOpen(k.Open)
	case *wire.ClientFrame_Attach:
		return checkAttach(k.Attach)
	}
	return checkStream(f.GetStream())
}

// orNil keeps a nil *wire.Error from becoming a non-nil error.
func orNil(err *wire.Error) error {
	if err == nil {
		return nil
	}
	return err
}

func checkCluster(id []byte) *wire.Error {
	if len(id) > 64 {
		return badRequest("a cluster id has at most 64 bytes, this one %d", len(id))
	}
	return nil
}

func checkOpen(o *wire.OpenReq) *wire.Error {
	if err := checkID(o.GetSession(), o.GetInstance(), o.GetClusterId()); err != nil {
		return err
	}
	switch {
	case len(o.GetSecret()) != wire.SecretBytes:
		return badRequest("a secret has %d bytes, this one %d", wire.SecretBytes, len(o.GetSecret()))
	case len(o.GetNonce()) != wire.IDBytes:
		return badRequest("a nonce has %d bytes, this one %d", wire.IDBytes, len(o.GetNonce()))
	}
	return nil
}

func checkAttach(a *wire.AttachReq) *wire.Error {
	if err := checkID(a.GetSession(), a.GetInstance(), a.GetClusterId()); err != nil {
		return err
	}
	switch {
	case len(a.GetToken()) > tokenBytesMax:
		return badRequest("a token has at most %d bytes", tokenBytesMax)
	case len(a.GetToken()) == 0 && len(a.GetSecret()) != wire.SecretBytes:
		return badRequest("an attach carries a secret of %d bytes or a token; the secret has %d", wire.SecretBytes, len(a.GetSecret()))
	case len(a.GetSecret()) != 0 && len(a.GetSecret()) != wire.SecretBytes:
		return badRequest("a secret has %d bytes, this one %d", wire.SecretBytes, len(a.GetSecret()))
	case a.GetStandby() && (len(a.GetToken()) > 0 || a.GetMigration() != 0):
		return badRequest("an attach that stands by carries a secret, and belongs to no migration")
	case len(a.GetRelayTo()) > nodeTextBytesMax:
		return badRequest("a node id has at most %d bytes", nodeTextBytesMax)
	}
	return nil
}

func checkMethod(name string) *wire.Error {
	switch {
	case name == "" || len(name) > methodBytesMax:
		return badRequest("a method has 1 to %d bytes, this one %d", methodBytesMax, len(name))
	case !utf8.ValidString(name):
		return badRequest("a method's name is UTF-8, unlike %q", name)
	}
	return nil
}

func checkStream(r *wire.StreamReq) *wire.Error {
	if err := checkID(r.GetSession(), r.GetInstance(), r.GetClusterId()); err != nil {
		return err
	}
	if err := checkMethod(r.GetMethod()); err != nil {
		return err
	}
	switch {
	case len(r.GetToken()) != wire.StreamTokenBytes:
		return badRequest("a stream's token has %d bytes, this one %d", wire.StreamTokenBytes, len(r.GetToken()))
	case len(r.GetArgument()) > wire.StreamArgumentBytesMax:
		return badRequest("a stream's argument has at most %d bytes, this one %d", wire.StreamArgumentBytesMax, len(r.GetArgument()))
	case r.GetStream() == 0 || r.GetRead() > r.GetReceived():
		return badRequest("stream %d, read %d, received %d: want a number above 0, and nothing read that was not received", r.GetStream(), r.GetRead(), r.GetReceived())
	case len(r.GetRelayTo()) > nodeTextBytesMax:
		return badRequest("a node id has at most %d bytes", nodeTextBytesMax)
	}
	return nil
}

func checkStreamData(d *wire.StreamData) *wire.Error {
	if len(d.GetPayload()) > bulk.ChunkBytesMax {
		return badRequest("a chunk has at most %d bytes, this one %d", bulk.ChunkBytesMax, len(d.GetPayload()))
	}
	return nil
}

func checkID(session string, instance, cluster []byte) *wire.Error {
	if err := wire.CheckSessionID(session); err != nil {
		return err.(*wire.Error)
	}
	if len(instance) != wire.IDBytes {
		return badRequest("a client instance has %d bytes, this one %d", wire.IDBytes, len(instance))
	}
	return checkCluster(cluster)
}

func checkRequest(r *wire.Request) *wire.Error {
	if err := checkMethod(r.GetMethod()); err != nil {
		return err
	}
	return checkSeq(r.GetSeq(), r.GetPrev(), r.GetAck())
}

func checkSeq(seq, prev, ack uint64) *wire.Error {
	if seq == 0 || prev >= seq || ack > seq {
		return badRequest("seq %d, prev %d, ack %d: want prev < seq, ack <= seq", seq, prev, ack)
	}
	return nil
}

// decodeServerFrame decodes and checks a frame from a node. Every error is a
// *wire.Error.
func decodeServerFrame(b []byte) (*wire.ServerFrame, error) {
	if f := quickResponse(b); f != nil {
		return f, nil
	}
	if field := frameField(b); field == serverFieldHello && len(b) > helloBytesMax {
		return nil, badRequest("a hello has at most %d bytes", helloBytesMax)
	}
	f := new(wire.ServerFrame)
	if err := proto.Unmarshal(b, f); err != nil {
		return nil, badRequest("the node's frame cannot be decoded; check that it speaks version %d", wire.Version)
	}
	if f.Kind == nil {
		return nil, badRequest("the node's frame has no kind that this client knows; the node may be newer")
	}
	for _, n := range []*wire.NodeInfo{f.GetHello().GetSelf(), f.GetAttached().GetNode(), f.GetRedirect().GetOwner(), f.GetPivot().GetTarget(),
		f.GetAttached().GetSuccessor(), f.GetSuccessor().GetNode(), f.GetStanding().GetOwner()} {
		if err := checkNode(n); err != nil {
			return nil, err
		}
	}
	if r := f.GetRedirect(); r != nil && r.GetOwner().GetHost() == "" {
		return nil, badRequest("a redirect that names no owner")
	}
	if err := checkStreamData(f.GetStreamData()); err != nil {
		return nil, err
	}
	if p := f.GetPivot(); p != nil && (p.GetTarget().GetHost() == "" || p.GetMigration() == 0) {
		return nil, badRequest("a pivot that names no migration and target")
	}
	return f, nil
}

func checkNode(n *wire.NodeInfo) error {
	if len(n.GetId()) > nodeTextBytesMax || len(n.GetName()) > nodeTextBytesMax || len(n.GetHost()) > nodeTextBytesMax || n.GetUserPort() > 65535 {
		return badRequest("a node's address is out of bounds")
	}
	return nil
}

// frameField returns the number of the field that decides a frame's kind, the
// last one at its top level, without decoding it: what protobuf's oneof does.
// Any hello makes it serverFieldHello, because decoding would build that too.
// 0 means that b is no frame.
func frameField(b []byte) int {
	kind, hello := 0, false
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return 0
		}
		b = b[n:]
		kind = int(num)
		hello = hello || kind == serverFieldHello
	}
	if hello {
		return serverFieldHello
	}
	return kind
}

// endsStream reports whether an encoded frame from a node is its stream's last.
func endsStream(b []byte) bool {
	switch frameField(b) {
	case serverFieldRedirect, serverFieldBounced, serverFieldBye:
		return true
	}
	return false
}

// isLast is endsStream for a decoded frame.
func isLast(f *wire.ServerFrame) bool {
	switch f.GetKind().(type) {
	case *wire.ServerFrame_Redirect, *wire.ServerFrame_Bounced, *wire.ServerFrame_Bye:
		return true
	}
	return false
}
