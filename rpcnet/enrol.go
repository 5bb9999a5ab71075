package rpcnet

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

const (
	// enrolBytesMax bounds request and response: a certificate has a kilobyte.
	enrolBytesMax = 16 << 10
	// enrolAskTime is what a stranger gets to say what it wants, and enrolTime the
	// whole of its visit: a commit, perhaps an election, and a signature.
	enrolAskTime = 5 * time.Second
	enrolTime    = 30 * time.Second
	// enrolConnsMax bounds strangers with a finished handshake. Nodes join one by
	// one; who finds no place comes again.
	enrolConnsMax = 16
)

// Enrolment answers on connections of ALPNEnrol, whose other end has proved
// nothing: one bounded request, one response, and the end. Handle is asked for one
// request at a time, so that strangers cannot fill the log.
type Enrolment struct {
	Handle func(ctx context.Context, req *wire.EnrolReq) (*wire.EnrolResp, error)

	places chan struct{}
	turn   chan struct{}
}

// NewEnrolment makes one.
func NewEnrolment(handle func(context.Context, *wire.EnrolReq) (*wire.EnrolResp, error)) *Enrolment {
	return &Enrolment{Handle: handle, places: make(chan struct{}, enrolConnsMax), turn: make(chan struct{}, 1)}
}

// Serve is the handler for Mgmt.Handle. It closes c.
func (e *Enrolment) Serve(c net.Conn) {
	defer c.Close()
	select {
	case e.places <- struct{}{}:
		defer func() { <-e.places }()
	default:
		return
	}
	_ = c.SetDeadline(seam.Deadline(enrolAskTime))
	req := &wire.EnrolReq{}
	if err := readMessage(c, req); err != nil {
		return
	}
	_ = c.SetDeadline(seam.Deadline(enrolTime))
	ctx, cancel := context.WithTimeout(context.Background(), enrolTime)
	defer cancel()
	resp, err := e.answer(ctx, req)
	if err != nil {
		resp = &wire.EnrolResp{Code: wire.CodeOf(err), Message: err.Error()}
		var typed *wire.Error
		if errors.As(err, &typed) {
			resp.Message = typed.Message
		}
	}
	_ = writeMessage(c, resp)
}

func (e *Enrolment) answer(ctx context.Context, req *wire.EnrolReq) (*wire.EnrolResp, error) {
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
		return e.Handle(ctx, req)
	case <-ctx.Done():
		return nil, wire.Errorf(wire.Code_OVERLOADED, "too many ask to join just now: ask again")
	}
}

// Enrol asks the node at addr once, and returns the handshake's state too. An error
// is a *wire.Error: UNAVAILABLE if nobody answers there, else what the handshake or
// the node says.
func Enrol(ctx context.Context, network seam.Network, conf *tls.Config, addr string, req *wire.EnrolReq) (*wire.EnrolResp, tls.ConnectionState, error) {
	ctx, cancel := context.WithTimeout(ctx, enrolTime)
	defer cancel()
	fail := func(err error) (*wire.EnrolResp, tls.ConnectionState, error) {
		var typed *wire.Error
		if errors.As(err, &typed) {
			return nil, tls.ConnectionState{}, err
		}
		return nil, tls.ConnectionState{}, wire.Errorf(wire.Code_UNAVAILABLE, "no node lets anybody join at %s: %v", addr, err)
	}
	raw, err := network.Dial(ctx, addr)
	if err != nil {
		return fail(err)
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
	c := CarrierOf(network).SecureClient(raw, conf)
	if err := c.HandshakeContext(ctx); err != nil {
		return fail(err)
	}
	if err := writeMessage(c, req); err != nil {
		return fail(err)
	}
	resp := &wire.EnrolResp{}
	if err := readMessage(c, resp); err != nil {
		return fail(err)
	}
	if code := resp.GetCode(); code != wire.Code_OK {
		return fail(wire.Errorf(code, "%s", resp.GetMessage()))
	}
	return resp, c.ConnectionState(), nil
}

func readMessage(c net.Conn, m proto.Message) error {
	body, err := ReadFrame(c, enrolBytesMax, nil)
	if err != nil {
		return err
	}
	return proto.Unmarshal(body, m)
}

func writeMessage(c net.Conn, m proto.Message) error {
	frame, err := AppendFrame(nil, m, enrolBytesMax)
	if err != nil {
		return err
	}
	_, err = c.Write(frame)
	return err
}
