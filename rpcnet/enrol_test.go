package rpcnet

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// visit runs one connection against e and returns the client's end.
func visit(t *testing.T, e *Enrolment) (client net.Conn, done chan struct{}) {
	t.Helper()
	client, server := net.Pipe()
	done = make(chan struct{})
	go func() { defer close(done); e.Serve(server) }()
	t.Cleanup(func() { _ = client.Close(); <-done })
	return client, done
}

func TestEnrolmentAnswersOnce(t *testing.T) {
	e := NewEnrolment(func(_ context.Context, req *wire.EnrolReq) (*wire.EnrolResp, error) {
		if req.GetName() == "bad" {
			return nil, wire.Errorf(wire.Code_TOKEN_USED, "used")
		}
		return &wire.EnrolResp{Certificate: []byte(req.GetName())}, nil
	})
	for name, want := range map[string]wire.Code{"n4": wire.Code_OK, "bad": wire.Code_TOKEN_USED} {
		c, done := visit(t, e)
		if err := writeMessage(c, &wire.EnrolReq{Name: name}); err != nil {
			t.Fatal(err)
		}
		resp := &wire.EnrolResp{}
		if err := readMessage(c, resp); err != nil || resp.GetCode() != want || want != wire.Code_OK && resp.GetMessage() != "used" {
			t.Fatalf("%v, %v", resp, err)
		}
		<-done // closed, whatever else would be said
	}
}

// What a stranger sends that is no request reaches nobody, and ends the connection.
func TestEnrolmentOfStrangers(t *testing.T) {
	e := NewEnrolment(func(context.Context, *wire.EnrolReq) (*wire.EnrolResp, error) {
		t.Error("asked")
		return nil, nil
	})
	for _, said := range [][]byte{
		binary.BigEndian.AppendUint32(nil, enrolBytesMax+1),
		append(binary.BigEndian.AppendUint32(nil, 3), 0xff, 0xff, 0xff),
	} {
		c, done := visit(t, e)
		if _, err := c.Write(said); err != nil {
			t.Fatal(err)
		}
		<-done
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("%x: %v", said, err)
		}
	}
}

// One request is handled at a time, and few wait.
func TestEnrolmentIsBounded(t *testing.T) {
	var asked, most atomic.Int32
	let := make(chan struct{})
	e := NewEnrolment(func(context.Context, *wire.EnrolReq) (*wire.EnrolResp, error) {
		most.Store(max(most.Load(), asked.Add(1)))
		<-let
		asked.Add(-1)
		return &wire.EnrolResp{}, nil
	})
	var ends []chan struct{}
	for range enrolConnsMax {
		c, done := visit(t, e)
		if err := writeMessage(c, &wire.EnrolReq{}); err != nil { // a pipe: it has a place once this returns
			t.Fatal(err)
		}
		go func() { _ = readMessage(c, &wire.EnrolResp{}) }()
		ends = append(ends, done)
	}
	_, done := visit(t, e)
	<-done // no place
	close(let)
	for _, done := range ends {
		<-done
	}
	if most.Load() != 1 {
		t.Errorf("%d were handled at a time", most.Load())
	}
}
